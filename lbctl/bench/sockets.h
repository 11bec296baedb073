/* Sockets in two namespaces, clocks, and numbers printed: what all modes of connect.c need. */
#ifndef SOCKETS_H
#define SOCKETS_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_TARGETS 4096
#define WAIT_SECONDS 1
#define BACKLOG 4096

static struct sockaddr_in targets[MAX_TARGETS];
static int target_count;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

static void enter(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die(path);
	close(fd);
}

static void pin(int cpu)
{
	cpu_set_t set;

	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static void limit_waits_to(int fd, int seconds)
{
	struct timeval wait = {.tv_sec = seconds};

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
}

static void limit_waits(int fd)
{
	limit_waits_to(fd, WAIT_SECONDS);
}

static int listen_on(int port, const char *device)
{
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	limit_waits(fd); /* accept() waits no longer either */
	if (device && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device)))
		die(device);
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, BACKLOG))
		die("listening in the server's namespace");
	return fd;
}

static void read_targets(void)
{
	char address[64];
	int port;

	while (target_count < MAX_TARGETS && scanf("%63s %d", address, &port) == 2) {
		struct sockaddr_in *to = &targets[target_count++];

		if (!strcmp(address, ".")) {
			target_count--;
			break;
		}
		to->sin_family = AF_INET;
		to->sin_port = htons(port);
		if (inet_pton(AF_INET, address, &to->sin_addr) != 1) {
			fprintf(stderr, "not an IPv4 address: %s\n", address);
			exit(2);
		}
	}
	if (!target_count) {
		fprintf(stderr, "no target on standard input\n");
		exit(2);
	}
}

/* A client socket whose close resets the connection: no TIME_WAIT, no port is used up. */
static int client(void)
{
	struct linger reset = {.l_onoff = 1};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	limit_waits(fd);
	return fd;
}

static int reach(int fd, int number)
{
	struct sockaddr_in *to = &targets[number % target_count];

	return connect(fd, (struct sockaddr *)to, sizeof(*to));
}

static int exchange(int from, int to)
{
	char byte = 'x';

	return send(from, &byte, 1, 0) == 1 && recv(to, &byte, 1, 0) == 1 &&
	       send(to, &byte, 1, 0) == 1 && recv(from, &byte, 1, 0) == 1;
}

/* Printing waits until the end: it would count as the connections' CPU time. */
static int64_t *room_for(int count)
{
	int64_t *times = calloc(count > 0 ? count : 1, sizeof(*times));

	if (!times)
		die("calloc");
	return times;
}

static void print_times(const int64_t *times, int count)
{
	int i;

	for (i = 0; i < count; i++)
		printf("%lld\n", (long long)times[i]);
}

static void print(const int64_t *times, int count, uint64_t cpu)
{
	print_times(times, count);
	printf("cpu %llu\n", (unsigned long long)cpu);
}

#endif
