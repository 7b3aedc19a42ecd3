/*
 * A service of a disk's own system: answers one client, then tells what its root may do in the Realm, and ends well.
 *
 *   service PORT REPORT       the report has a line for each thing that was tried: its name and the error, or "open"
 *
 * Run as root of the system. The first line says where the pages of its memory are, by NUMA node.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#ifndef AF_VSOCK
#define AF_VSOCK 40
#endif
enum { BYTES = 4 << 20, NODES = 16 };

static void tell(FILE *report, const char *what, long result)
{
	fprintf(report, "%s: %s\n", what, result < 0 ? strerror(errno) : "open");
}

static void tell_nodes(FILE *report)
{
	char line[4096], *place;
	long pages[NODES] = { 0 };
	FILE *maps;

	memset(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 1, BYTES);
	maps = fopen("/proc/self/numa_maps", "r");
	if (!maps)
		exit(2);
	while (fgets(line, sizeof line, maps)) {
		if (!strstr(line, "anon="))
			continue;
		for (place = line; (place = strstr(place, " N")); place += 2) {
			long node, count;

			if (sscanf(place, " N%ld=%ld", &node, &count) == 2 && node >= 0 && node < NODES)
				pages[node] += count;
		}
	}
	fclose(maps);
	fprintf(report, "pages:");
	for (long node = 0; node < NODES; node++)
		if (pages[node])
			fprintf(report, " %ld=%ld", node, pages[node]);
	fprintf(report, "\n");
}

/* How much memory the whole system may have. */
static void tell_limit(FILE *report)
{
	char text[64] = "unknown\n";
	FILE *limit = fopen("/sys/fs/cgroup/memory.max", "r");

	if (limit && fgets(text, sizeof text, limit))
		fprintf(report, "limit: %s", text);
}

static void tell_rights(FILE *report)
{
	unsigned major;
	char name[64];
	FILE *devices = fopen("/proc/devices", "r");

	tell(report, "vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
	tell(report, "memory", open("/dev/mem", O_RDONLY));
	tell(report, "port", open("/dev/vport0p1", O_RDWR));
	while (devices && fgets(name, sizeof name, devices))
		if (sscanf(name, "%u virtio-portsdev", &major) == 1 && strstr(name, "virtio-portsdev"))
			tell(report, "node", mknod("/tmp/port", S_IFCHR | 0600, makedev(major, 1)));
	tell(report, "module", syscall(SYS_init_module, "", 0L, ""));
	tell(report, "kexec", syscall(SYS_kexec_load, 0L, 0L, NULL, 0L));
	tell(report, "setting", open("/proc/sys/kernel/core_pattern", O_WRONLY));
	tell(report, "group", open("/sys/fs/cgroup/cpuset.mems", O_WRONLY));
	tell(report, "bound", open("/sys/fs/cgroup/memory.max", O_WRONLY));
	tell_limit(report);
	tell(report, "namespace", unshare(CLONE_NEWUSER));
	tell(report, "agent", open("/run/vambrace/key.pem", O_RDONLY));
	/* Process 1 is the system's own, and of the agent there is none. */
	fprintf(report, "processes: %s\n", kill(1, 0) == 0 && access("/usr/lib/vambrace", F_OK) ? "own" : "others");
}

int main(int count, char **words)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), client;
	const char *word = getenv("WORD");
	FILE *report;

	if (count != 3 || !word)
		return 2;
	address.sin_port = htons(atoi(words[1]));
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1))
		return 3;
	printf("serving as %d\n", getuid());
	fflush(stdout);
	client = accept(listener, NULL, NULL);
	if (client < 0 || write(client, word, strlen(word)) < 0)
		return 4;
	close(client);
	report = fopen(words[2], "w");
	if (!report)
		return 5;
	tell_nodes(report);
	tell_rights(report);
	fprintf(stderr, "reported\n");
	return fclose(report) ? 6 : 0;
}
