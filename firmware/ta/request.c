// SPDX-License-Identifier: Apache-2.0
#include "request.h"

#include <stddef.h>
#include <string.h>

const char *partition_text(uint8_t cache_partition)
{
	switch (cache_partition) {
	case REQUEST_PARTITION_NONE:
		return "none";
	case REQUEST_PARTITION_WAYS:
		return "ways";
	case REQUEST_PARTITION_COLOURS_UNCONFIRMED:
		return "colours-unconfirmed";
	case REQUEST_PARTITION_COLOURS_CONFIRMED:
		return "colours-confirmed";
	default:
		return NULL;
	}
}

const char *class_text(uint8_t domain_class)
{
	switch (domain_class) {
	case REQUEST_CLASS_REALM:
		return "realm";
	case REQUEST_CLASS_SECURE:
		return "secure";
	default:
		return NULL;
	}
}

static bool suite_known(uint8_t suite)
{
	return suite == REQUEST_SUITE_NIST || suite == REQUEST_SUITE_SM;
}

bool request_valid(const struct realm_request *request)
{
	static const uint8_t zeros[sizeof(request->reserved)];

	return request->version == REQUEST_VERSION && !(request->flags & ~REQUEST_DEBUG) &&
	       suite_known(request->suite) &&
	       request->key_storage == REQUEST_KEY_IN_DRAM && partition_text(request->cache_partition) &&
	       class_text(request->domain_class) && !memcmp(request->reserved, zeros, sizeof(zeros));
}

static bool all_zero(const uint8_t *bytes, size_t length)
{
	uint8_t found = 0;
	size_t i = 0;

	for (i = 0; i < length; i++)
		found |= bytes[i];
	return !found;
}

bool sealing_valid(const struct sealing_request *request)
{
	if (request->version != SEALING_VERSION || request->flags & ~REQUEST_DEBUG ||
	    !class_text(request->domain_class) || !all_zero(request->reserved, sizeof(request->reserved)) ||
	    !all_zero(request->reserved_too, sizeof(request->reserved_too)))
		return false;
	switch (request->policy) {
	case SEAL_TO_MEASUREMENT:
		return suite_known(request->suite) &&
		       all_zero(request->name, sizeof(request->name)) && !request->image_version;
	case SEAL_TO_OWNER:
		/* Without the owner's verdict nobody keeps others from claiming to be theirs. */
		return request->domain_class == REQUEST_CLASS_REALM && !request->suite &&
		       all_zero(request->rim, sizeof(request->rim)) && request->name[0];
	default:
		return false;
	}
}
