/* Times TCP connections between two network namespaces, from a single thread.
 *
 * The client's sockets are opened in one namespace, the listener in the other, both by this thread:
 * a packet's whole way (client, node, server and back) then runs inside the sending system call,
 * nobody has to be woken, and what is timed is the path and not the scheduler.
 *
 *   connect MODE CLIENT_NETNS SERVER_NETNS CPU LISTEN_PORT COUNT [MORE]   < "ADDRESS PORT" lines
 *
 * CPU is the one to stay on, -1 for any. Modes, and what they print, one number per line:
 *   connect    nanoseconds of connect() alone, per connection
 *   cycle      nanoseconds of socket, connect, accept, a byte each way, close
 *   roundtrip  nanoseconds of a byte each way, on one established connection
 *   many       opens COUNT connections, then says "open N": N waited for a second SYN. Then, for
 *              each number on standard input, as many round trips, each on another of them:
 *              nanoseconds and "cpu" as below. MORE: the server's interface to listen on, since
 *              others have the same port. The targets end with the line ". 0"
 *   watch      connects until one is accepted by MORE, then prints the monotonic clock (ns); the
 *              word "watching" comes first, after a connection that worked. COUNT: seconds to try
 * -1 stands for a connection that failed. The last line is "cpu N", the thread's CPU time in ns
 * spent between the first and the last number.
 *
 * "connect http - SERVER_NETNS CPU LISTEN_PORT 0" serves HTTP until it is killed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "sockets.h"
#include "many.h"

#define WARM_UP 20

/* One connection; its time, -1 if it failed. Returns the accepted end's address in `at`. */
static int64_t once(int listener, int number, int whole, struct in_addr *at)
{
	struct sockaddr_in local = {};
	socklen_t size = sizeof(local);
	uint64_t start = now(CLOCK_MONOTONIC), end;
	int fd = client(), accepted = -1, good;

	if (!whole)
		start = now(CLOCK_MONOTONIC);
	good = reach(fd, number) == 0;
	end = now(CLOCK_MONOTONIC);
	if (good) {
		accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		good = accepted >= 0;
	}
	if (good && at && !getsockname(accepted, (struct sockaddr *)&local, &size))
		*at = local.sin_addr;
	if (good && whole) {
		limit_waits(accepted);
		good = exchange(fd, accepted);
	}
	close(fd);
	if (accepted >= 0)
		close(accepted);
	if (whole)
		end = now(CLOCK_MONOTONIC);
	return good ? (int64_t)(end - start) : -1;
}

static void connections(int listener, int count, int whole)
{
	int64_t *times = room_for(count);
	uint64_t cpu = 0;
	int i;

	for (i = -WARM_UP; i < count; i++) {
		int64_t took;

		if (i == 0)
			cpu = now(CLOCK_THREAD_CPUTIME_ID);
		took = once(listener, i + WARM_UP, whole, NULL);
		if (i >= 0)
			times[i] = took;
	}
	print(times, count, now(CLOCK_THREAD_CPUTIME_ID) - cpu);
	free(times);
}

static void roundtrips(int listener, int count)
{
	int64_t *times = room_for(count);
	int fd = client(), accepted, on = 1, i;
	uint64_t cpu = 0, start;

	if (reach(fd, 0))
		die("connect");
	accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (accepted < 0)
		die("accept");
	limit_waits(accepted);
	setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	/* The first segments are acknowledged at once, later ones with the answer. */
	for (i = -100; i < count; i++) {
		if (i == 0)
			cpu = now(CLOCK_THREAD_CPUTIME_ID);
		start = now(CLOCK_MONOTONIC);
		if (!exchange(fd, accepted))
			die("exchange");
		if (i >= 0)
			times[i] = (int64_t)(now(CLOCK_MONOTONIC) - start);
	}
	print(times, count, now(CLOCK_THREAD_CPUTIME_ID) - cpu);
	free(times);
	close(fd);
	close(accepted);
}

static int watch(int listener, int seconds, const char *address)
{
	uint64_t end = now(CLOCK_MONOTONIC) + seconds * 1000000000ull;
	struct timespec pause = {.tv_nsec = 20000};
	struct in_addr wanted, at;
	int started = 0;

	if (inet_pton(AF_INET, address, &wanted) != 1)
		die(address);
	while (now(CLOCK_MONOTONIC) < end) {
		int64_t took = once(listener, 0, 0, &at);

		if (took >= 0 && started && at.s_addr == wanted.s_addr) {
			printf("%llu\n", (unsigned long long)now(CLOCK_MONOTONIC));
			return 0;
		}
		if (took >= 0 && !started) {
			printf("watching\n");
			fflush(stdout);
			started = 1;
		}
		nanosleep(&pause, NULL);
	}
	fprintf(stderr, "no connection reached %s within %d s\n", address, seconds);
	return 3;
}

static void http(int listener)
{
	static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
	struct epoll_event events[64], want = {.events = EPOLLIN, .data.fd = listener};
	int poll = epoll_create1(EPOLL_CLOEXEC), ready, i, fd;
	char request[4096];

	if (poll < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, listener, &want))
		die("epoll");
	puts("serving");
	fflush(stdout);
	while ((ready = epoll_wait(poll, events, 64, -1)) >= 0 || errno == EINTR) {
		for (i = 0; i < ready; i++) {
			fd = events[i].data.fd;
			if (fd == listener) {
				want.data.fd =
				    accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
				if (want.data.fd >= 0 &&
				    epoll_ctl(poll, EPOLL_CTL_ADD, want.data.fd, &want))
					close(want.data.fd);
				continue;
			}
			/* A load generator's request fits one segment, and it sends one at a time.
			 */
			if (recv(fd, request, sizeof(request), 0) <= 0 ||
			    send(fd, answer, sizeof(answer) - 1, MSG_NOSIGNAL) < 0)
				close(fd);
		}
	}
	die("epoll_wait");
}

int main(int argc, char **argv)
{
	int listener, count, is_many;

	if (argc < 7) {
		fprintf(stderr, "usage: see the head of connect.c\n");
		return 2;
	}
	pin(atoi(argv[4]));
	enter(argv[3]);
	is_many = !strcmp(argv[1], "many") && argc > 7;
	listener = listen_on(atoi(argv[5]), is_many ? argv[7] : NULL);
	count = atoi(argv[6]);
	if (!strcmp(argv[1], "http"))
		http(listener);
	read_targets();
	enter(argv[2]);
	if (!strcmp(argv[1], "connect"))
		connections(listener, count, 0);
	else if (!strcmp(argv[1], "cycle"))
		connections(listener, count, 1);
	else if (!strcmp(argv[1], "roundtrip"))
		roundtrips(listener, count);
	else if (is_many)
		many(listener, count);
	else if (!strcmp(argv[1], "watch") && argc > 7)
		return watch(listener, count, argv[7]);
	else
		return 2;
	return 0;
}
