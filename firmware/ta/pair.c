// SPDX-License-Identifier: Apache-2.0
#include "pair.h"

#include <mbedtls/ecp.h>
#include <string.h>

/* mbedtls's way of asking for random numbers; TEE_GenerateRandom panics rather than fail. */
static int random_bytes(void *context, unsigned char *out, size_t length)
{
	(void)context;
	TEE_GenerateRandom(out, length);
	return 0;
}

static int load_group(const struct suite *suite, mbedtls_ecp_group *group)
{
	const struct curve *curve = suite->curve;
	int bad = 0;

	if (!curve)
		return mbedtls_ecp_group_load(group, MBEDTLS_ECP_DP_SECP256R1);
	/* The library for user space has been built without this curve. A stays unset, which means -3. */
	bad = mbedtls_mpi_read_binary(&group->P, curve->p, COORDINATE_BYTES);
	if (!bad)
		bad = mbedtls_mpi_read_binary(&group->B, curve->b, COORDINATE_BYTES);
	if (!bad)
		bad = mbedtls_mpi_read_binary(&group->N, curve->n, COORDINATE_BYTES);
	if (!bad)
		bad = mbedtls_mpi_read_binary(&group->G.MBEDTLS_PRIVATE(X), curve->x, COORDINATE_BYTES);
	if (!bad)
		bad = mbedtls_mpi_read_binary(&group->G.MBEDTLS_PRIVATE(Y), curve->y, COORDINATE_BYTES);
	if (!bad)
		bad = mbedtls_mpi_lset(&group->G.MBEDTLS_PRIVATE(Z), 1);
	group->pbits = mbedtls_mpi_bitlen(&group->P);
	group->nbits = mbedtls_mpi_bitlen(&group->N);
	return bad ? bad : mbedtls_ecp_check_pubkey(group, &group->G);
}

/* scalar = wide mod (n - excluded) + 1, and its public point. */
int compute_pair(const struct suite *suite, const uint8_t wide[WIDE_BYTES], uint8_t scalar[COORDINATE_BYTES],
		 uint8_t x[COORDINATE_BYTES], uint8_t y[COORDINATE_BYTES])
{
	uint8_t encoded[1 + 2 * COORDINATE_BYTES] = { 0 };
	mbedtls_ecp_group group;
	mbedtls_ecp_point point;
	mbedtls_mpi number;
	mbedtls_mpi bound;
	size_t length = 0;
	int bad = 0;

	mbedtls_ecp_group_init(&group);
	mbedtls_ecp_point_init(&point);
	mbedtls_mpi_init(&number);
	mbedtls_mpi_init(&bound);
	bad = load_group(suite, &group);
	if (!bad)
		bad = mbedtls_mpi_sub_int(&bound, &group.N, suite->excluded);
	if (!bad)
		bad = mbedtls_mpi_read_binary(&number, wide, WIDE_BYTES);
	if (!bad)
		bad = mbedtls_mpi_mod_mpi(&number, &number, &bound);
	if (!bad)
		bad = mbedtls_mpi_add_int(&number, &number, 1);
	if (!bad)
		bad = mbedtls_ecp_check_privkey(&group, &number);
	if (!bad)
		bad = mbedtls_ecp_mul(&group, &point, &number, &group.G, random_bytes, NULL);
	if (!bad)
		bad = mbedtls_mpi_write_binary(&number, scalar, COORDINATE_BYTES);
	if (!bad)
		bad = mbedtls_ecp_point_write_binary(&group, &point, MBEDTLS_ECP_PF_UNCOMPRESSED, &length, encoded,
						     sizeof(encoded));
	if (!bad && length != sizeof(encoded))
		bad = MBEDTLS_ERR_ECP_BAD_INPUT_DATA;
	if (!bad) {
		memcpy(x, encoded + 1, COORDINATE_BYTES);
		memcpy(y, encoded + 1 + COORDINATE_BYTES, COORDINATE_BYTES);
	}
	mbedtls_mpi_free(&bound);
	mbedtls_mpi_free(&number);
	mbedtls_ecp_point_free(&point);
	mbedtls_ecp_group_free(&group);
	return bad;
}
