// SPDX-License-Identifier: Apache-2.0
#include "fuse_block.h"

static bool is_word(uint32_t word)
{
	return word == FUSE_BLANK || word == FUSE_BLOWN;
}

static bool all(const uint8_t *bytes, unsigned int count, uint8_t value)
{
	uint8_t difference = 0;
	unsigned int i = 0;

	for (i = 0; i < count; i++)
		difference |= bytes[i] ^ value;
	return !difference;
}

/* A decommissioned fuse has no key any more: all of it burnt away. */
static bool key_good(const struct fuse_block *fuse)
{
	uint8_t difference = 0;
	unsigned int i = 0;

	if (fuse->decommissioned == FUSE_BLOWN)
		return all(fuse->key, FUSE_KEY_BYTES, 0) && all(fuse->key_check, FUSE_KEY_BYTES, 0);
	for (i = 0; i < FUSE_KEY_BYTES; i++)
		difference |= fuse->key[i] ^ (uint8_t)~fuse->key_check[i];
	return !difference && !all(fuse->key, FUSE_KEY_BYTES, 0) && !all(fuse->key, FUSE_KEY_BYTES, 0xff);
}

uint32_t fuse_counter_word(uint32_t value, unsigned int index)
{
	uint32_t before = 32 * index;

	if (value <= before)
		return FUSE_BLANK;
	return value - before >= 32 ? FUSE_BLOWN : FUSE_BLANK << (value - before);
}

bool fuse_counter(const uint32_t words[FUSE_COUNTER_WORDS], uint32_t *value)
{
	uint32_t burnt = 0;
	unsigned int i = 0;

	for (i = 0; i < FUSE_COUNTER_WORDS; i++) {
		uint32_t zeros = ~words[i];

		for (; zeros; zeros &= zeros - 1)
			burnt++;
	}
	*value = burnt;
	for (i = 0; i < FUSE_COUNTER_WORDS; i++)
		if (words[i] != fuse_counter_word(burnt, i))
			return false;
	return true;
}

bool fuse_good(const struct fuse_block *fuse)
{
	static const uint8_t magic[8] = { 'V', 'A', 'M', 'B', 'F', 'U', 'S', 'E' };
	uint8_t difference = 0;
	uint32_t version = 0;
	unsigned int i = 0;

	for (i = 0; i < sizeof(magic); i++)
		difference |= fuse->magic[i] ^ magic[i];
	return !difference && is_word(fuse->secured) && is_word(fuse->debug) && is_word(fuse->decommissioned) &&
	       key_good(fuse) && !all(fuse->root_key_hash, FUSE_HASH_BYTES, 0xff) &&
	       fuse_counter(fuse->firmware_version, &version) && fuse_counter(fuse->host_version, &version);
}

uint32_t fuse_lifecycle(const struct fuse_block *fuse)
{
	if (fuse->decommissioned == FUSE_BLOWN)
		return LIFECYCLE_DECOMMISSIONED;
	if (fuse->debug == FUSE_BLOWN)
		return LIFECYCLE_DEBUG;
	return fuse->secured == FUSE_BLOWN ? LIFECYCLE_SECURED : LIFECYCLE_NOT_PROVISIONED;
}
