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

bool request_valid(const struct realm_request *request)
{
	static const uint8_t zeros[sizeof(request->reserved)];

	return request->version == REQUEST_VERSION && !(request->flags & ~REQUEST_DEBUG) &&
	       (request->hash_algorithm == REQUEST_HASH_SHA256 || request->hash_algorithm == REQUEST_HASH_SM3) &&
	       request->key_storage == REQUEST_KEY_IN_DRAM && partition_text(request->cache_partition) &&
	       class_text(request->domain_class) && !memcmp(request->reserved, zeros, sizeof(zeros));
}
