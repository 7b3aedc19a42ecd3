#include "zone.h"

#include <assert.h>
#include <string.h>

#define NONE UINT32_MAX
/* Main gives at least one page in so many: otherwise nothing would be learnt of its pages. */
#define PROBE 32
/* What is known of the queues halves when so many demotions are counted, or a sixth of the window. */
#define MEMORY 4096
/* Most pages that are made free ahead of need in one step: a sixteenth of a small window. */
#define MOST_SPARE 16
/*
 * So many of the pages that were brought in last stay (an eighth of a small window): the one that is waited for must be
 * used, and a burst of touches must be over, before a page is judged.
 */
#define GRACE 64
/* A page of fresh was given up too early if it comes back before so many times fresh's length of others have left. */
#define EARLY 4
/* One page of main that comes back moves the boundary to fresh as far as so many pages of fresh do. */
#define MAIN_WEIGHT 2
/* Most pages that one page moves that boundary. */
#define MOST_STEP 20
/* What is known of pages that came back so often in a row halves when so many of them were given up. */
#define TRIED 128

uint32_t vb_zone_window(uint32_t pages, unsigned percent)
{
	uint32_t window = (uint32_t)((uint64_t)(100 - percent) * pages / 100);

	if (window < VB_MINIMUM_WINDOW)
		window = VB_MINIMUM_WINDOW;
	return window < pages ? window : pages;
}

void vb_zone_init(struct vb_zone *zone, uint32_t first, uint32_t count, uint32_t limit, struct vb_page *pages)
{
	memset(zone, 0, sizeof *zone);
	zone->first = first;
	zone->count = count;
	zone->pages = pages;
	zone->limit = zone->goal = limit;
	vb_zone_clear(zone);
}

void vb_zone_clear(struct vb_zone *zone)
{
	const struct vb_queue empty = {NONE, NONE, 0};

	for (uint32_t page = 0; page < zone->count; page++) {
		zone->pages[page].state = VB_ABSENT;
		zone->pages[page].sealed = 0;
	}
	zone->plaintext = zone->plaintext_max = 0;
	zone->fresh = zone->main = zone->standby = empty;
	for (unsigned i = 0; i < VB_STREAMS; i++)
		zone->streams[i].next = NONE;
}

void vb_zone_gain(struct vb_zone *zone, uint32_t pages)
{
	zone->plaintext += pages;
	assert(zone->plaintext <= zone->limit);
	if (zone->plaintext > zone->plaintext_max)
		zone->plaintext_max = zone->plaintext;
}

void vb_zone_lose(struct vb_zone *zone, uint32_t pages)
{
	assert(zone->plaintext >= pages);
	zone->plaintext -= pages;
}

uint32_t vb_zone_expect(struct vb_zone *zone, uint32_t page, struct vb_stream **stream)
{
	for (unsigned i = 0; i < VB_STREAMS; i++) {
		struct vb_stream *candidate = &zone->streams[i];

		if (candidate->next == page) {
			*stream = candidate;
			return candidate->run * 2 < VB_RUN ? candidate->run * 2 : VB_RUN;
		}
	}
	*stream = &zone->streams[zone->oldest];
	zone->oldest = (zone->oldest + 1) % VB_STREAMS;
	return 1;
}

/* --- queues -------------------------------------------------------------------------------------------------- */

static void push(struct vb_zone *zone, struct vb_queue *queue, uint32_t page, enum vb_state state)
{
	struct vb_page *entry = &zone->pages[page];

	entry->state = state;
	entry->next = NONE;
	entry->previous = queue->tail;
	if (queue->tail == NONE)
		queue->head = page;
	else
		zone->pages[queue->tail].next = page;
	queue->tail = page;
	queue->count++;
}

static struct vb_queue *queue_of(struct vb_zone *zone, enum vb_state state)
{
	return state == VB_FRESH ? &zone->fresh : state == VB_MAIN ? &zone->main : &zone->standby;
}

/* Out of the queue that its state names. */
static void pull(struct vb_zone *zone, uint32_t page, enum vb_state state)
{
	struct vb_page *entry = &zone->pages[page];
	struct vb_queue *queue = queue_of(zone, entry->state);

	assert(entry->state == VB_FRESH || entry->state == VB_MAIN || entry->state == VB_STANDBY);
	if (entry->previous == NONE)
		queue->head = entry->next;
	else
		zone->pages[entry->previous].next = entry->next;
	if (entry->next == NONE)
		queue->tail = entry->previous;
	else
		zone->pages[entry->next].previous = entry->previous;
	queue->count--;
	entry->state = state;
}

/* --- what comes back ----------------------------------------------------------------------------------------- */

/*
 * A page of fresh (0) or main (1) came back: its queue should be longer. If few of a queue's pages leave, each one that
 * comes back stands for more.
 */
static void adapt(struct vb_zone *zone, unsigned arm)
{
	uint32_t step = (zone->departed[!arm] + 1) / (zone->departed[arm] + 1);

	step = step < 1 ? 1 : step > MOST_STEP ? MOST_STEP : step;
	if (!arm)
		zone->wanted += step;
	else
		zone->wanted -= step * MAIN_WEIGHT < zone->wanted ? step * MAIN_WEIGHT : zone->wanted;
	if (zone->wanted > zone->limit)
		zone->wanted = zone->limit;
}

/* A page that its queue gave up proves to be in use. */
static void came_back(struct vb_zone *zone, struct vb_page *entry)
{
	zone->returned[entry->arm]++;
	if (entry->arm)
		zone->again[entry->returns]++;
	if (entry->returns < VB_RETURNS)
		entry->returns++;
}

/* More than three in five pages of main with so many returns in a row have come back once more. */
static bool trusted(const struct vb_zone *zone, unsigned returns)
{
	return (uint64_t)zone->again[returns] * 5 > (uint64_t)zone->tried[returns] * 3;
}

/*
 * Four in five pages that main lost came back: it is used in turn by more pages than it has room for. Then each of them that comes
 * back would cost another that will, and it is better that some stay and the others come and go through fresh.
 */
static bool main_is_overrun(const struct vb_zone *zone)
{
	return (uint64_t)zone->missed[1] * 5 >= (uint64_t)zone->departed[1] * 4;
}

/* The share of `all` that came `back` is less than half as large for main (1) as for fresh (0). */
static bool rarer(const uint32_t *back, const uint32_t *all)
{
	return (uint64_t)back[1] * (all[0] + 1) * 2 < (uint64_t)back[0] * (all[1] + 1);
}

/*
 * Main's pages come back clearly less often than fresh's; clearly, since to lose main is the greater loss. Returns from
 * standby tell at once, but only of what is used all the time, and through a small standby most of main passes untouched;
 * misses tell of the rest, late.
 */
static bool main_is_worth_less(const struct vb_zone *zone)
{
	return rarer(zone->returned, zone->demoted) && rarer(zone->missed, zone->departed);
}

/* --- in ------------------------------------------------------------------------------------------------------ */

void vb_zone_call(struct vb_zone *zone, uint32_t page)
{
	struct vb_page *entry = &zone->pages[page];
	uint32_t others; /* that left since it did */
	bool near;

	switch ((enum vb_state)entry->state) {
	case VB_STANDBY:
		pull(zone, page, VB_COMING);
		if (entry->given) {
			came_back(zone, entry);
			entry->spared = (uint8_t)((1 << entry->returns) - 1);
			entry->held = 1;
			adapt(zone, entry->arm);
		} /* else it was set aside, and goes back to where it was */
		return;
	case VB_ENCRYPTED:
		/*
		 * Main was worth it once, so its pages have a window's length of departures to come back in, unless it
		 * is overrun. For others the bar rises as main grows at fresh's expense: else all that comes back would
		 * turn main over for pages that are no better.
		 */
		others = zone->departures - entry->next;
		near = others < zone->limit / 2;
		if (entry->arm)
			entry->held = others < zone->limit && !main_is_overrun(zone);
		else
			entry->held = others < (uint64_t)EARLY * zone->fresh.count;
		zone->missed[entry->arm] += near;
		/* What comes back to fresh later than this may be a loop, which no fresh is long enough for. */
		if (entry->arm ? near : entry->held)
			adapt(zone, entry->arm);
		break;
	default:
		assert(entry->state == VB_ABSENT);
		entry->held = 0;
		entry->returns = entry->spared = 0;
	}
	entry->state = VB_COMING;
}

void vb_zone_admit(struct vb_zone *zone, uint32_t page)
{
	struct vb_page *entry = &zone->pages[page];

	assert(entry->state == VB_COMING);
	if (entry->sealed) /* until now there was a tag */
		entry->returns = entry->spared = 0;
	entry->sealed = 0;
	if (entry->held)
		push(zone, &zone->main, page, VB_MAIN);
	else
		push(zone, &zone->fresh, page, VB_FRESH);
}

/* --- out ----------------------------------------------------------------------------------------------------- */

uint32_t vb_zone_standby_target(const struct vb_zone *zone)
{
	return zone->goal / 8;
}

uint32_t vb_zone_spare(const struct vb_zone *zone)
{
	return zone->goal / 16 < MOST_SPARE ? zone->goal / 16 : MOST_SPARE;
}

static struct vb_queue *victims(struct vb_zone *zone)
{
	uint32_t grace = zone->goal / 8 < GRACE ? zone->goal / 8 : GRACE;
	bool from_main = zone->fresh.count <= zone->wanted || main_is_worth_less(zone);

	if (zone->kept) /* what cannot be moved gathers in main */
		return zone->fresh.count ? &zone->fresh : &zone->main;
	if (zone->fresh.count <= grace || ++zone->turn >= PROBE)
		from_main = true;
	if (from_main && !zone->main.count)
		from_main = false;
	if (from_main)
		zone->turn = 0;
	return from_main ? &zone->main : &zone->fresh;
}

static void remember(struct vb_zone *zone, unsigned arm, unsigned returns)
{
	uint32_t most = zone->limit / 6 < MEMORY ? zone->limit / 6 : MEMORY;

	if (++zone->demoted[arm] >= most) {
		zone->demoted[arm] /= 2;
		zone->returned[arm] /= 2;
	}
	if (arm && ++zone->tried[returns] > TRIED) {
		zone->tried[returns] /= 2;
		zone->again[returns] /= 2;
	}
}

/* The oldest of main that are in steady use go behind the others, so many of them that a fault need not wait long. */
static void spare(struct vb_zone *zone)
{
	for (uint32_t i = 0; i < VB_RUN && zone->main.count; i++) {
		uint32_t page = zone->main.head;
		struct vb_page *entry = &zone->pages[page];

		if (!entry->spared || !trusted(zone, entry->returns))
			break;
		entry->spared--;
		pull(zone, page, VB_LEAVING);
		push(zone, &zone->main, page, VB_MAIN);
	}
}

uint32_t vb_zone_demote(struct vb_zone *zone, uint32_t most, uint32_t *page)
{
	struct vb_queue *queue = victims(zone);
	unsigned arm = queue == &zone->main;
	uint32_t run = 0;

	if (arm && !zone->kept) /* where pages cannot be moved, each one is tried */
		spare(zone);
	*page = queue->head;
	while (run < most && queue->count && queue->head == *page + run) {
		struct vb_page *entry = &zone->pages[*page + run];

		if (run && entry->spared)
			break;
		pull(zone, *page + run, VB_LEAVING);
		entry->arm = arm & 1;
		entry->given = 1;
		remember(zone, arm, entry->returns);
		run++;
	}
	return run;
}

void vb_zone_park(struct vb_zone *zone, uint32_t page)
{
	assert(zone->pages[page].state == VB_LEAVING);
	zone->kept = 0;
	push(zone, &zone->standby, page, VB_STANDBY);
}

void vb_zone_keep(struct vb_zone *zone, uint32_t page)
{
	assert(zone->pages[page].state == VB_LEAVING);
	zone->kept++;
	came_back(zone, &zone->pages[page]); /* it is in use */
	push(zone, &zone->main, page, VB_MAIN);
}

uint32_t vb_zone_expel(struct vb_zone *zone, uint32_t most, uint32_t *pages)
{
	uint32_t count = 0;

	while (count < most && zone->standby.count) {
		pages[count] = zone->standby.head;
		pull(zone, pages[count], VB_LEAVING);
		count++;
	}
	return count;
}

void vb_zone_depart(struct vb_zone *zone, uint32_t page)
{
	struct vb_page *entry = &zone->pages[page];

	assert(entry->state == VB_LEAVING || entry->state == VB_COMING);
	entry->state = VB_ENCRYPTED;
	entry->sealed = 1;
	zone->departed[entry->arm]++;
	if (zone->departed[0] + zone->departed[1] > zone->limit) {
		for (unsigned arm = 0; arm < 2; arm++) {
			zone->departed[arm] /= 2;
			zone->missed[arm] /= 2;
		}
	}
	entry->next = zone->departures++;
}

void vb_zone_forget(struct vb_zone *zone, uint32_t page)
{
	struct vb_page *entry = &zone->pages[page];

	assert(entry->state == VB_LEAVING || entry->state == VB_COMING);
	entry->state = VB_ABSENT;
	entry->sealed = 0;
}

/* --- stays --------------------------------------------------------------------------------------------------- */

void vb_zone_hold(struct vb_zone *zone, uint32_t page)
{
	struct vb_page *entry = &zone->pages[page];

	if (entry->state == VB_FIXED) {
		entry->held = 2;
		entry->state = VB_LEAVING;
		return;
	}
	entry->held = entry->state == VB_MAIN;
	entry->given = 0;
	pull(zone, page, VB_LEAVING);
}

void vb_zone_release(struct vb_zone *zone, uint32_t page)
{
	struct vb_page *entry = &zone->pages[page];

	assert(entry->state == VB_LEAVING);
	if (entry->held == 2)
		entry->state = VB_FIXED;
	else if (entry->held == 1)
		push(zone, &zone->main, page, VB_MAIN);
	else
		push(zone, &zone->fresh, page, VB_FRESH);
}

void vb_zone_pin(struct vb_zone *zone, uint32_t page)
{
	struct vb_page *entry = &zone->pages[page];

	assert(entry->pins < VB_MOST_PINS);
	if (!entry->pins++) {
		pull(zone, page, VB_FIXED);
		zone->pinned++;
	}
}

void vb_zone_unpin(struct vb_zone *zone, uint32_t page)
{
	struct vb_page *entry = &zone->pages[page];

	assert(entry->state == VB_FIXED && entry->pins && zone->pinned);
	if (!--entry->pins) {
		zone->pinned--;
		push(zone, &zone->main, page, VB_MAIN);
	}
}

uint32_t vb_zone_busy(const struct vb_zone *zone)
{
	uint32_t settled = zone->fresh.count + zone->main.count + zone->standby.count + zone->pinned;

	return zone->plaintext > settled ? zone->plaintext - settled : 0;
}
