// SPDX-License-Identifier: Apache-2.0
#include "sha256.h"

#include <arm_neon.h>

#define BLOCK 64

static const uint32_t round_constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

struct state {
	uint32x4_t abcd;
	uint32x4_t efgh;
};

static void compress(struct state *state, const uint8_t *block)
{
	uint32x4_t abcd = state->abcd;
	uint32x4_t efgh = state->efgh;
	uint32x4_t w[4];
	unsigned int i;

	for (i = 0; i < 4; i++)
		w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(block + 16 * i)));
	for (i = 0; i < 16; i++) {
		uint32x4_t sum = vaddq_u32(w[i % 4], vld1q_u32(round_constants + 4 * i));
		uint32x4_t before = abcd;

		/* The schedule's next four words take this slot's place while more are needed. */
		if (i < 12)
			w[i % 4] = vsha256su1q_u32(vsha256su0q_u32(w[i % 4], w[(i + 1) % 4]), w[(i + 2) % 4],
						   w[(i + 3) % 4]);
		abcd = vsha256hq_u32(abcd, efgh, sum);
		efgh = vsha256h2q_u32(efgh, before, sum);
	}
	state->abcd = vaddq_u32(state->abcd, abcd);
	state->efgh = vaddq_u32(state->efgh, efgh);
}

void sha256(const uint8_t *data, uint64_t length, uint8_t digest[32])
{
	static const uint32_t initial[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
					     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
	struct state state = { vld1q_u32(initial), vld1q_u32(initial + 4) };
	uint8_t last[2 * BLOCK];
	uint64_t rest = length % BLOCK;
	uint64_t end = rest < BLOCK - 8 ? BLOCK : 2 * BLOCK;
	uint64_t i;

	for (i = 0; i + BLOCK <= length; i += BLOCK)
		compress(&state, data + i);
	for (i = 0; i < end; i++)
		last[i] = i < rest ? data[length - rest + i] : i == rest ? 0x80 : 0;
	for (i = 0; i < 8; i++)
		last[end - 1 - i] = (uint8_t)(length * 8 >> 8 * i);
	for (i = 0; i < end; i += BLOCK)
		compress(&state, last + i);
	vst1q_u8(digest, vrev32q_u8(vreinterpretq_u8_u32(state.abcd)));
	vst1q_u8(digest + 16, vrev32q_u8(vreinterpretq_u8_u32(state.efgh)));
}
