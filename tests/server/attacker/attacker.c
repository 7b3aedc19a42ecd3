/* A guest that is nothing but a hostile virtio driver: it boots in place of a kernel and does to each of its devices
 * what no driver may. It says what came of it through the agent's port, as the reason of its end. With FLOOD it ends by
 * more requests there than may wait.
 *
 * Memory is used with the MMU off, which is good enough for an emulated machine.
 */
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define MMIO 0x0a000000ul
#define RAM 0x40000000ul
#define RINGS (RAM + 0x400000) /* 64 KiB for each queue */
#define DATA (RAM + 0x600000)
#define SIZE 8
#define QUEUES 6

enum { FEATURES = 0x10, FEATURES_SELECT = 0x14, DRIVER = 0x20, DRIVER_SELECT = 0x24, SELECT = 0x30, QUEUE_MAX = 0x34,
	QUEUE_SIZE = 0x38, READY = 0x44, NOTIFY = 0x50, STATUS = 0x70, TABLE = 0x80, AVAILABLE = 0x90, USED = 0xa0 };
enum { DRIVER_OK = 4, NEEDS_RESET = 64 };
enum { NEXT = 1, WRITE = 2 };
enum { NET = 1, DISK = 2, CONSOLE = 3, ENTROPY = 4, BALLOON = 5, SOCKET = 19 };
enum { TX_AGENT = 5 };

struct descriptor { u64 address; u32 length; u16 flags, next; };

struct queue {
	volatile struct descriptor *table;
	volatile u16 *available; /* flags, index, ring */
	volatile u16 *used;
};

static struct {
	u32 attacks, stopped, resets, kicks, accesses, served, broken;
} count;

static u64 memory_end;
static u32 noise = 1;

static u32 random(void)
{
	noise = noise * 1664525 + 1013904223;
	return noise >> 8;
}

static void barrier(void)
{
	__asm__ volatile("dsb sy" ::: "memory");
}

/* Of an access to a device the hypervisor sees what a plain load or store did, and no other instruction. */
#define STORE(address, value, width, suffix) \
	__asm__ volatile("str" suffix " %" width "0, [%1]" :: "r"(value), "r"(address) : "memory")
#define LOAD(address, value, width, suffix) \
	__asm__ volatile("ldr" suffix " %" width "0, [%1]" : "=r"(value) : "r"(address) : "memory")

static void set(int slot, int offset, u32 value)
{
	barrier();
	STORE(MMIO + (u64)slot * 0x1000 + offset, value, "w", "");
	barrier();
}

static u32 get(int slot, int offset)
{
	u32 value;

	barrier();
	LOAD(MMIO + (u64)slot * 0x1000 + offset, value, "w", "");
	return value;
}

static void fill(volatile u8 *at, u8 value, u64 length)
{
	while (length--)
		*at++ = value;
}

static struct queue queue(int index)
{
	u64 base = RINGS + (u64)index * 0x10000;
	struct queue queue = { (void *)base, (void *)(base + 0x1000), (void *)(base + 0x2000) };
	return queue;
}

static void kick(int slot, int index)
{
	set(slot, NOTIFY, index);
	count.kicks++;
}

static void reset(int slot)
{
	set(slot, STATUS, 0);
	count.resets++;
	if (get(slot, STATUS) != 0)
		count.broken++;
}

/* Bring a device up as Linux does, and stop after so many writes; whether all were done. */
static int bring_up(int slot, u32 writes)
{
	u64 base;
	int index;

#define STEP(offset, value) do { if (!writes--) return 0; set(slot, offset, value); } while (0)
	STEP(STATUS, 1);
	STEP(STATUS, 3);
	STEP(DRIVER_SELECT, 0);
	STEP(DRIVER, 0);
	STEP(DRIVER_SELECT, 1);
	STEP(DRIVER, 1);
	STEP(STATUS, 11);
	for (index = 0; index < QUEUES; index++) {
		STEP(SELECT, index);
		if (get(slot, QUEUE_MAX) == 0)
			break;
		base = RINGS + (u64)index * 0x10000;
		fill((volatile u8 *)base, 0, 0x3000);
		STEP(QUEUE_SIZE, SIZE);
		STEP(TABLE, base);
		STEP(AVAILABLE, base + 0x1000);
		STEP(USED, base + 0x2000);
		STEP(READY, 1);
	}
	STEP(STATUS, 15);
#undef STEP
	return 1;
}

static void start(int slot)
{
	reset(slot);
	if (!bring_up(slot, ~0u) || get(slot, STATUS) != 15)
		count.broken++;
}

static void describe(struct queue queue, int index, u64 address, u32 length, u16 flags, u16 next)
{
	queue.table[index].address = address;
	queue.table[index].length = length;
	queue.table[index].flags = flags;
	queue.table[index].next = next;
}

static void offer(struct queue queue, u16 head)
{
	u16 index = queue.available[1];

	queue.available[2 + index % SIZE] = head;
	barrier();
	queue.available[1] = index + 1;
}

static u64 now(void)
{
	u64 value;
	__asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(value));
	return value;
}

static u64 seconds(u64 number)
{
	u64 frequency;
	__asm__ volatile("mrs %0, cntfrq_el0" : "=r"(frequency));
	return number * frequency;
}

/* Whether the device says in time that it needs a reset. */
static int stops(int slot)
{
	u64 end = now() + seconds(20);

	while (now() < end)
		if (get(slot, STATUS) & NEEDS_RESET)
			return 1;
	return 0;
}

/* Whether a request comes back in time. */
static int returns(struct queue queue, u16 index)
{
	u64 end = now() + seconds(20);

	while (now() < end) {
		barrier();
		if (queue.used[1] == index)
			return 1;
	}
	return 0;
}

/* After a reset a device serves as if nothing had been. */
static void works(int slot, u32 kind)
{
	struct queue first = queue(0);
	volatile u8 *data = (volatile u8 *)DATA;
	u32 differ = 0;
	int i;

	start(slot);
	if (kind != ENTROPY && kind != DISK)
		return;
	fill(data, 0, 0x1000);
	describe(first, 0, DATA, 16, NEXT, 1); /* to read, from sector 0 */
	describe(first, 1, DATA + 0x200, 512, NEXT | WRITE, 2);
	describe(first, 2, DATA + 0x100, 1, WRITE, 0);
	if (kind == ENTROPY)
		describe(first, 0, DATA + 0x200, 64, WRITE, 0);
	data[0x100] = 0xff;
	offer(first, 0);
	kick(slot, 0);
	if (!returns(first, 1)) {
		count.broken++;
		return;
	}
	/* The disk's first sector counts upwards. */
	for (i = 0; i < 64; i++)
		differ += data[0x200 + i] != (kind == DISK ? i : 0);
	if (kind == DISK ? differ || data[0x100] != 0 : !differ)
		count.broken++;
	else
		count.served++;
}

/* Requests that must stop the device. */
enum { LOOP, LONG_LOOP, WRONG_HEAD, WRONG_NEXT, BEFORE, ACROSS, BEYOND, NOWHERE, WRAPPED, TOO_LONG, INDIRECT, ORDER,
	JUMP, JUMP_BACK, BAD_REQUESTS };

static void bad_request(int slot, int index, int attack)
{
	struct queue target = queue(index);

	start(slot);
	describe(target, 0, DATA, 16, 0, 0);
	switch (attack) {
	case LOOP: describe(target, 0, DATA, 16, NEXT, 0); break;
	case LONG_LOOP:
		for (int i = 0; i < SIZE; i++)
			describe(target, i, DATA, 1, NEXT, (i + 1) % SIZE);
		break;
	case WRONG_NEXT: describe(target, 0, DATA, 16, NEXT, SIZE); break;
	case BEFORE: describe(target, 0, RAM - 8, 16, WRITE, 0); break;
	case ACROSS: describe(target, 0, memory_end - 8, 16, WRITE, 0); break;
	case BEYOND: describe(target, 0, memory_end, 1, 0, 0); break;
	case NOWHERE: describe(target, 0, MMIO, 64, WRITE, 0); break;
	case WRAPPED: describe(target, 0, ~7ull, 0xffffffff, WRITE, 0); break;
	case TOO_LONG: describe(target, 0, DATA, 0xffffffff, WRITE, 0); break;
	case INDIRECT: describe(target, 0, DATA, 16, 4, 0); break;
	case ORDER:
		describe(target, 0, DATA, 16, NEXT | WRITE, 1);
		describe(target, 1, DATA, 16, 0, 0);
		break;
	}
	if (attack == JUMP || attack == JUMP_BACK)
		target.available[1] = attack == JUMP ? SIZE + 1 : 0xffff;
	else
		offer(target, attack == WRONG_HEAD ? SIZE : 0);
	kick(slot, index);
	count.attacks++;
	count.stopped += stops(slot);
}

/* Queues that must stop the device as they are set up; the last one is a start without any features. */
enum { EMPTY, ODD, LARGE, UNALIGNED, OUTSIDE, AT_END, OVERFLOW, UNREADY, BAD_QUEUES };

static void bad_queue(int slot, int attack)
{
	u64 base = RINGS;
	u32 high = 0;

	reset(slot);
	bring_up(slot, 8); /* features, and queue 0 selected */
	switch (attack) {
	case UNALIGNED: base += 1; break;
	case OUTSIDE: base = MMIO; break;
	case AT_END: base = memory_end - 16; break;
	case OVERFLOW: high = 0xffffffff; break;
	}
	if (attack == UNREADY) {
		reset(slot);
		set(slot, STATUS, 7);
	} else {
		set(slot, QUEUE_SIZE, attack == EMPTY ? 0 : attack == ODD ? 3 : attack == LARGE ? 0x10000 : SIZE);
		set(slot, TABLE, base);
		set(slot, TABLE + 4, high);
		set(slot, AVAILABLE, RINGS + 0x1000);
		set(slot, USED, RINGS + 0x2000);
		set(slot, READY, 1);
	}
	count.attacks++;
	count.stopped += stops(slot);
}

/* Buffers over the rings and over each other, and chains that go round where only the kernel reads them: whatever
 * comes of it, a reset ends it. */
static void overlap(int slot, u32 kind)
{
	start(slot);
	for (int index = 0; index < QUEUES; index++) {
		struct queue target = queue(index);

		if (kind == CONSOLE && index == TX_AGENT)
			continue; /* what the monitor is told is the end's */

		for (int i = 0; i < SIZE; i++)
			describe(target, i, (u64)target.table + 64 * (random() % 128), random() % 0x1000, random() % 4,
				random() % (SIZE + 1));
		for (int i = 0; i < SIZE; i++)
			offer(target, random() % SIZE);
		kick(slot, index);
		kick(slot, index);
	}
	reset(slot);
}

static void resets_at_every_moment(int slot)
{
	u32 writes = 0;

	do
		reset(slot);
	while (!bring_up(slot, writes++));
	/* With requests under way. */
	for (int i = 0; i < 20; i++) {
		struct queue first = queue(0);

		describe(first, 0, DATA, 4096, WRITE, 0);
		for (int n = 0; n < SIZE; n++)
			offer(first, 0);
		kick(slot, 0);
		reset(slot);
		bring_up(slot, ~0u);
	}
}

static void storm(int slots)
{
	for (int i = 0; i < 500; i++)
		for (int slot = 0; slot < slots; slot++)
			kick(slot, i % QUEUES);
	for (int i = 0; i < 500; i++) {
		/* Any register of any width, and addresses where nothing is. */
		u64 address = MMIO + random() % ((slots + 1) * 0x1000u);
		u32 value = random() << random() % 24;
		u64 wide;

		switch (random() % 4) {
		case 0: STORE(address, value, "w", "b"); break;
		case 1: STORE(address & ~1ul, value, "w", "h"); break;
		case 2: STORE(address & ~3ul, value, "w", ""); break;
		default: LOAD(address & ~7ul, wide, "x", ""); break;
		}
		count.accesses++;
	}
}

static char *text(char *at, const char *from)
{
	while (*from)
		*at++ = *from++;
	return at;
}

static char *number(char *at, const char *name, u32 value)
{
	char digits[10];
	int length = 0;

	at = text(at, name);
	do
		digits[length++] = '0' + value % 10;
	while (value /= 10);
	while (length)
		*at++ = digits[--length];
	return at;
}

static int find(int slots, u32 kind)
{
	for (int slot = 0; slot < slots; slot++)
		if (get(slot, 8) == kind)
			return slot;
	return -1;
}

static void say(int console, char *line, char *end, int times)
{
	struct queue port = queue(TX_AGENT);

	start(console);
	describe(port, 0, (u64)line, end - line, 0, 0);
	for (int i = 1; i <= times; i++) {
		offer(port, 0);
		kick(console, TX_AGENT);
		returns(port, i);
	}
}

void main(void)
{
	static char line[512];
	char *end = line;
	int slots = 0;

	memory_end = RAM + MEMORY;
	while (get(slots, 0) == 0x74726976)
		slots++;
#ifdef FLOOD
	end = text(end, "{\"id\":1,\"op\":\"identity\"}\n");
	say(find(slots, CONSOLE), line, end, 100000);
#endif
	for (u64 stop = now() + seconds(SECONDS); now() < stop;) {
		for (int slot = 0; slot < slots; slot++) {
			u32 kind = get(slot, 8);
			int input = kind == CONSOLE ? TX_AGENT : kind == BALLOON ? 2 : 0;

			if (kind != SOCKET && kind != NET) /* the kernel serves these */
				for (int attack = 0; attack < BAD_REQUESTS; attack++)
					bad_request(slot, input, attack);
			works(slot, kind);
			for (int attack = 0; attack < BAD_QUEUES; attack++)
				bad_queue(slot, attack);
			works(slot, kind);
			overlap(slot, kind);
			works(slot, kind);
			resets_at_every_moment(slot);
			works(slot, kind);
		}
		storm(slots);
	}
	/* On a line of its own, whatever was said before. */
	end = text(end, "\n{\"id\":1,\"op\":\"report\",\"state\":\"failed\",\"detail\":\"devices ");
	end = number(end, "", slots);
	end = number(end, ", attacks ", count.attacks);
	end = number(end, ", stopped ", count.stopped);
	end = number(end, ", resets ", count.resets);
	end = number(end, ", kicks ", count.kicks);
	end = number(end, ", accesses ", count.accesses);
	end = number(end, ", served ", count.served);
	end = number(end, ", broken ", count.broken);
	end = text(end, "\"}\n");
	say(find(slots, CONSOLE), line, end, 1);
}
