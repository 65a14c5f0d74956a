/* A client of the broker in plain C, written from protocol.md alone: no library, no MessagePack library.
 *
 *     cc -Wall -Wextra -Werror -o client docs/client.c
 *     ./client SOCKET-PATH
 *
 * It says hello, creates a timeline, exports two points, waits for the first with poll(), and fails the second.
 */

#define _GNU_SOURCE
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* Send one packet, a literal of protocol.md. */
static void say(int sock, const void *packet, size_t size)
{
	if (send(sock, packet, size, MSG_NOSIGNAL) != (ssize_t)size)
		fail("send");
}

/* Receive one answer and up to two descriptors; exit unless it is [serial, 0, ...] with the n we expect. */
static size_t hear(int sock, uint8_t *packet, int *fds, int n)
{
	union { char room[CMSG_SPACE(253 * sizeof(int))]; struct cmsghdr align; } control;
	struct iovec part = { packet, 16 * 1024 + 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	ssize_t size = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
	struct cmsghdr *header = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;

	if (size <= 0)
		fail("the broker hung up");
	if (header && header->cmsg_len == CMSG_LEN(n * sizeof(int)))
		memcpy(fds, CMSG_DATA(header), n * sizeof(int));
	else if (header || n)
		size = 0;
	/* An array of at least two; a serial below 128; errno 0. */
	if (size < 3 || (packet[0] & 0xf0) != 0x90 || packet[1] > 0x7f || packet[2] != 0) {
		fprintf(stderr, "refused, or not what protocol.md says\n");
		exit(1);
	}
	return (size_t)size;
}

/* 1: OK.  0: active.  Negative errno: failed.  See "The status a descriptor carries". */
static int status(int fence, int timeout)
{
	struct pollfd ready = { .fd = fence, .events = POLLIN };
	char path[64], line[256];
	uint64_t count = 0;
	FILE *info;

	if (poll(&ready, 1, timeout) == 0)
		return 0;
	ready.events = POLLIN | POLLOUT;
	poll(&ready, 1, 0);
	if (!(ready.revents & POLLOUT))
		return 1;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fence);
	info = fopen(path, "re");
	while (info && fgets(line, sizeof(line), info))
		sscanf(line, "eventfd-count: %" SCNx64, &count);
	if (info)
		fclose(info);
	return count >> 48 == 0xffff ? 1 : -(int)(count >> 48 & 0xfff);
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	static uint8_t answer[16 * 1024 + 1];
	int sock, timeline, fence[2];

	if (argc != 2 || strlen(argv[1]) >= sizeof(address.sun_path)) {
		fprintf(stderr, "usage: client SOCKET-PATH\n");
		return 2;
	}
	strcpy(address.sun_path, argv[1]);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof(address)))
		fail(argv[1]);

	say(sock, "\x94\x01\x01\x01\xa1" "c", 6);                             /* [1, 1, 1, "c"]: hello, version 1 */
	hear(sock, answer, NULL, 0);
	say(sock, "\x96\x02\x02\xc0\xa1" "c" "\xcd\x01\x80\xc0", 10);         /* [2, 2, nil, "c", 0600, nil]: create_timeline */
	hear(sock, answer, &timeline, 1);
	/* [3, 6, context, [1, 2], "", false]: export.  The context is a small number: one byte. */
	say(sock, (uint8_t[]){ 0x96, 3, 6, answer[3], 0x92, 1, 2, 0xa0, 0xc2 }, 9);
	hear(sock, answer, fence, 2);

	printf("point 1: %d\n", status(fence[0], 0));
	say(timeline, "\x94\x2a\x01\x01\x01", 5);                             /* [42, 1, 1, 1]: advance to 1 */
	printf("point 1: %d\n", status(fence[0], 5000));
	say(timeline, "\x95\x2a\x02\x03\x02\x05", 6);                         /* [42, 2, 3, 2, 5]: fail point 2 with EIO */
	printf("point 2: %d\n", status(fence[1], 5000));
	return 0;
}
