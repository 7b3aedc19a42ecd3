/* The kernel refuses what the window needs of it: the window fails, says so, and ends in time. */
#define _GNU_SOURCE
#include "support.h"

#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

/* What is refused from now on; these stand before libc's, the sanitizers' too. */
static atomic_bool refuse_read, refuse_madvise, refuse_register;

/* Of a userfaultfd: the handler looks up, so that it is refused wherever it is. */
ssize_t read(int fd, void *data, size_t bytes)
{
	ssize_t done;

	if (bytes % sizeof(struct uffd_msg))
		return syscall(SYS_read, fd, data, bytes);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	do {
		if (atomic_load(&refuse_read)) {
			errno = ENOMEM;
			return -1;
		}
		done = syscall(SYS_read, fd, data, bytes);
	} while (done < 0 && errno == EAGAIN && usleep(1000) == 0);
	return done;
}

int madvise(void *start, size_t bytes, int advice)
{
	if (advice == MADV_NOHUGEPAGE && atomic_load(&refuse_madvise)) {
		errno = ENOMEM;
		return -1;
	}
	return (int)syscall(SYS_madvise, start, bytes, advice);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (request == UFFDIO_REGISTER && atomic_load(&refuse_register)) {
		errno = ENOMEM;
		return -1;
	}
	return (int)syscall(SYS_ioctl, fd, request, argument);
}

static void expect_failure(struct vb_window *window, uint32_t zone)
{
	struct pollfd end = {.fd = vb_window_failure_fd(window), .events = POLLIN};
	struct vb_failure failure;
	uint8_t byte;

	CHECK(poll(&end, 1, 10000) == 1);
	failure = vb_window_failure(window);
	CHECK(failure.status == -ENOMEM && failure.zone == zone && failure.page == 0);
	CHECK(vb_window_read(window, 0, &byte, 1) == VB_FAILED);
	CHECK(vb_window_set_percent(window, 0, 50) == VB_FAILED);
}

static void test_read(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){256, 50, 0}, 1);

	atomic_store(&refuse_read, true);
	expect_failure(window, 0);
	atomic_store(&refuse_read, false);
	vb_window_free(window);
}

/* Nobody closes that window: the process ends. */
static void test_read_grace(void)
{
	int result = 0;
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		open_with_grace(&(struct vb_zone_config){256, 50, 0}, 1, 200);
		atomic_store(&refuse_read, true);
		sleep(10);
		_exit(8);
	}
	CHECK(waitpid(child, &result, 0) == child);
	CHECK(WIFEXITED(result) && WEXITSTATUS(result) == VB_EXIT_FAILED);
}

/* The first rise of an open zone. */
static void test_watch(atomic_bool *refuse)
{
	const struct vb_zone_config zones[] = {{256, 50, 0}, {512, 0, 0}};
	struct vb_window *window = open_window(zones, 2);

	window->guest[300 * VB_PAGE_SIZE_BYTES] = 1;
	atomic_store(refuse, true);
	CHECK(vb_window_set_percent(window, 1, 50) == -ENOMEM);
	atomic_store(refuse, false);
	expect_failure(window, 1);
	vb_window_free(window);
}

int main(void)
{
	test_read();
	test_read_grace();
	test_watch(&refuse_madvise);
	test_watch(&refuse_register);
	return 0;
}
