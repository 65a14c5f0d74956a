/* Wait for a sync_file with nothing but poll(), and tell success from error.
 *
 *     cc -Wall -Wextra -Werror -o wait examples/wait.c
 *     ./wait FD [TIMEOUT-MS]          FD: a descriptor this process inherited
 *
 * No library is needed, in any language.  A sync_file is an eventfd that becomes readable when the fence
 * signals and stays so.  Do not read() from it: the status is in its counter.
 *
 *     readable, not writable     signalled: OK
 *     readable and writable      usually an error; /proc/self/fdinfo tells, see status_from_fdinfo()
 *
 * Exit status: 0 signalled OK, 1 signalled with an error, 2 wrong arguments, 3 timed out, 4 not a sync_file.
 */

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NOT_A_SYNC_FILE = 1 };

/* Return 0 for OK, a negative errno, or NOT_A_SYNC_FILE.
 *
 * The top 16 bits of the counter are the status: ffff is OK, 8000 + e is the error e.  Anything else was
 * written by somebody other than the broker.
 */
static int status_from_fdinfo(int fd)
{
	char path[64], line[256];
	uint64_t count = 0;
	int top, found = 0;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "re");
	if (!info)
		return NOT_A_SYNC_FILE;
	while (!found && fgets(line, sizeof(line), info))
		found = sscanf(line, "eventfd-count: %" SCNx64, &count) == 1;
	fclose(info);

	top = (int)(count >> 48);
	if (!found)
		return NOT_A_SYNC_FILE;
	if (top == 0xffff)
		return 0;
	if (top > 0x8000 && top <= 0x8fff)
		return -(top & 0xfff);
	return NOT_A_SYNC_FILE;
}

static int number(const char *text, int *value)
{
	char *end;
	long parsed;

	errno = 0;
	parsed = strtol(text, &end, 10);
	*value = (int)parsed;
	return *text && !*end && !errno && parsed >= -1 && parsed <= 1000000000;
}

int main(int argc, char **argv)
{
	struct pollfd fence = { .fd = -1, .events = POLLIN };
	int timeout = -1, ready, status;

	if (argc < 2 || argc > 3 || !number(argv[1], &fence.fd) || fence.fd < 0 ||
	    (argc == 3 && !number(argv[2], &timeout))) {
		fprintf(stderr, "usage: wait FD [TIMEOUT-MS]\n");
		return 2;
	}

	do {
		ready = poll(&fence, 1, timeout);
	} while (ready < 0 && errno == EINTR);
	if (ready == 0) {
		fprintf(stderr, "not signalled within %d ms\n", timeout);
		return 3;
	}
	if (ready < 0 || fence.revents & POLLNVAL) {
		fprintf(stderr, "descriptor %d is not open\n", fence.fd);
		return 4;
	}

	/* Signalled.  A second look, at writability, tells OK from the rest. */
	fence.events = POLLIN | POLLOUT;
	poll(&fence, 1, 0);
	status = fence.revents & POLLOUT ? status_from_fdinfo(fence.fd) : 0;

	if (status == NOT_A_SYNC_FILE) {
		fprintf(stderr, "descriptor %d is not a sync_file of fencebroker\n", fence.fd);
		return 4;
	}
	if (status < 0) {
		printf("signalled with error %d: %s\n", -status, strerror(-status));
		return 1;
	}
	printf("signalled: OK\n");
	return 0;
}
