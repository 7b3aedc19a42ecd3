/* Pages sealed and opened, and every way of changing one. */
#define _GNU_SOURCE
#include "../cipher.h"
#include "support.h"

static uint8_t page[VB_PAGE_SIZE_BYTES], copy[VB_PAGE_SIZE_BYTES], tag[VB_TAG_BYTES];

static struct vb_cipher *cipher_for(enum vb_cipher_kind kind, uint8_t key_byte, uint8_t instance_byte, uint32_t zone,
				    uint32_t epoch)
{
	uint8_t key[VB_REALM_KEY_BYTES] = {key_byte}, instance[VB_INSTANCE_BYTES] = {instance_byte};
	struct vb_cipher *cipher = NULL;
	struct vb_secret secret;

	CHECK(vb_secret_create(&secret, &vb_libcrypto, kind, key, instance, zone) == VB_OK);
	secret.epoch = epoch;
	CHECK(vb_cipher_create(&secret, &cipher) == VB_OK);
	CHECK(vb_cipher_epoch(cipher) == epoch);
	vb_secret_erase(&secret);
	return cipher;
}

static int seal(struct vb_cipher *cipher, const struct vb_job *job)
{
	int status = vb_seal_begin(cipher, job, 1);

	return status ? status : vb_seal_finish(cipher);
}

static int reopen(struct vb_cipher *cipher, uint64_t number, uint64_t version)
{
	uint8_t data[VB_PAGE_SIZE_BYTES];
	struct vb_job job = {.page = number, .version = version, .data = data, .tag = tag};
	size_t failed;
	int status;

	memcpy(data, page, sizeof data);
	status = vb_open_pages(cipher, &job, 1, &failed);
	if (!status)
		CHECK(!memcmp(data, copy, sizeof data));
	else
		for (size_t i = 0; i < sizeof data; i++)
			CHECK(data[i] == 0); /* what did not authenticate is not left behind */
	return status;
}

static void test_kind(enum vb_cipher_kind kind)
{
	struct vb_cipher *cipher = cipher_for(kind, 1, 1, 3, 0), *other;
	struct vb_job job = {.page = 7, .version = 1, .data = page, .tag = tag};

	for (size_t i = 0; i < sizeof page; i++)
		copy[i] = page[i] = (uint8_t)(i * 7);
	CHECK(seal(cipher, &job) == VB_OK);
	CHECK(memcmp(page, copy, sizeof page));
	CHECK(reopen(cipher, 7, 1) == VB_OK);
	CHECK(reopen(cipher, 7, 2) == VB_AUTHENTICATION);
	CHECK(reopen(cipher, 8, 1) == VB_AUTHENTICATION);
	for (size_t bit = 0; bit < 8 * sizeof page; bit += 97) {
		page[bit / 8] ^= (uint8_t)(1 << bit % 8);
		CHECK(reopen(cipher, 7, 1) == VB_AUTHENTICATION);
		page[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (size_t bit = 0; bit < 8 * sizeof tag; bit++) {
		tag[bit / 8] ^= (uint8_t)(1 << bit % 8);
		CHECK(reopen(cipher, 7, 1) == VB_AUTHENTICATION);
		tag[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (int i = 0; i < 4; i++) { /* another key, instance, zone, epoch */
		other = cipher_for(kind, i == 0 ? 2 : 1, i == 1 ? 2 : 1, i == 2 ? 4 : 3, i == 3);
		CHECK(reopen(other, 7, 1) == VB_AUTHENTICATION);
		vb_cipher_destroy(other);
	}
	job.page = VB_PAGE_LIMIT;
	CHECK(seal(cipher, &job) == VB_INVALID);
	job.page = 7;
	job.version = VB_VERSION_LIMIT;
	CHECK(seal(cipher, &job) == VB_EXHAUSTED);
	vb_cipher_destroy(cipher);
}

int main(void)
{
	CHECK(vb_cipher_self_test(&vb_libcrypto, VB_AES_256_GCM) == VB_OK);
	test_kind(VB_AES_256_GCM);
	switch (vb_cipher_self_test(&vb_libcrypto, VB_SM4_GCM)) {
	case VB_OK:
		test_kind(VB_SM4_GCM);
		break;
	case VB_NO_CIPHER:
		puts("SM4-GCM: not in this libcrypto");
		break;
	default:
		CHECK(!"SM4-GCM gave a wrong answer");
	}
	return 0;
}
