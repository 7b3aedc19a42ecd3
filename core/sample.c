#include "sample.h"

#include <string.h>

void vb_sample_start(struct vb_sample *sample, uint32_t pages)
{
	memset(sample, 0, sizeof *sample);
	sample->pages = pages;
	sample->shift = VB_SAMPLE_SHIFT;
	/* A hash does not share out evenly: with an average of half the places, there is one for each. */
	while (pages >> sample->shift > VB_SAMPLED / 2)
		sample->shift++;
	sample->on = true;
}

bool vb_sampled(const struct vb_sample *sample, uint32_t page)
{
	/* Fibonacci hashing: not every n-th page, which could be the stride of an array. */
	return sample->on && page * 2654435769u >> (32 - sample->shift) == 0;
}

bool vb_sample_note(struct vb_sample *sample, uint32_t page, uint32_t *aside)
{
	uint32_t depth = 0, moved;

	while (depth < sample->count && sample->recent[depth] != page)
		depth++;
	sample->touches++;
	if (depth < sample->count) {
		uint64_t percent = ((uint64_t)depth << sample->shift) * 100 / sample->pages;

		sample->reuse[percent < VB_REUSE ? percent : VB_REUSE - 1]++;
	} else if (sample->count < VB_SAMPLED) {
		sample->count++;
	}
	moved = depth < VB_SAMPLED ? depth : VB_SAMPLED - 1;
	memmove(sample->recent + 1, sample->recent, moved * sizeof *sample->recent);
	sample->recent[0] = page;
	if (depth < VB_SAMPLE_STAY || sample->count <= VB_SAMPLE_STAY)
		return false;
	*aside = sample->recent[VB_SAMPLE_STAY];
	return true;
}
