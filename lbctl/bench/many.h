/* Many connections that stay open, and a round trip on another one each time. */
#ifndef MANY_H
#define MANY_H

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "sockets.h"

#define MAX_HOLDERS 64
#define MOST_FILES 32768 /* of one process */
#define OTHER_FILES 256
#define ROOM_SECONDS 60	      /* tables may have to grow first */
#define MOST_ROUNDTRIPS 65536 /* at once */

struct pair {
	int client, accepted;
};

/* Acknowledgements wait for the answer: a round trip is then two packets, as on an old connection.
 */
static void acknowledge_late(int fd)
{
	int quick = 0;

	setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &quick, sizeof(quick));
}

/* Counts in `late` what needed more than one SYN. */
static struct pair open_pair(int listener, int number, uint64_t *late)
{
	struct pair made = {.client = client()};
	uint64_t start = now(CLOCK_MONOTONIC);
	int on = 1;

	limit_waits_to(made.client, ROOM_SECONDS);
	if (reach(made.client, number))
		die("connect");
	*late += now(CLOCK_MONOTONIC) - start > 1000000000;
	made.accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (made.accepted < 0)
		die("accept");
	limit_waits(made.accepted);
	setsockopt(made.accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	acknowledge_late(made.client);
	acknowledge_late(made.accepted);
	return made;
}

/* Round trips on connections `first` to `first + flows`, as many as are asked for on `in`. */
static void hold(int listener, int first, int flows, int in, int out, int64_t *times)
{
	struct pair *pairs = calloc(flows, sizeof(*pairs));
	int count, i, at = 0;
	uint64_t cpu = 0, start;

	if (!pairs)
		die("calloc");
	for (i = 0; i < flows; i++)
		pairs[i] = open_pair(listener, first + i, &cpu);
	/* The first number it says is how many were late. */
	while (write(out, &cpu, sizeof(cpu)) > 0 && read(in, &count, sizeof(count)) > 0) {
		cpu = now(CLOCK_THREAD_CPUTIME_ID);
		for (i = 0; i < count; i++) {
			/* Far from the one before, and all before one comes again. */
			at = (at + 40503) % flows;
			start = now(CLOCK_MONOTONIC);
			if (!exchange(pairs[at].client, pairs[at].accepted))
				die("exchange");
			times[i] = (int64_t)(now(CLOCK_MONOTONIC) - start);
		}
		cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
	}
	exit(0);
}

struct holder {
	int in, out;
};

static struct holder start_holder(int listener, int first, int flows, int64_t *times)
{
	int asking[2], telling[2];
	pid_t child;

	if (pipe(asking) || pipe(telling) || (child = fork()) < 0)
		die("a process for connections");
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(asking[1]);
		hold(listener, first, flows, asking[0], telling[1], times);
	}
	close(asking[0]);
	close(telling[1]);
	return (struct holder){.in = telling[0], .out = asking[1]};
}

static uint64_t wait_for(const struct holder *from)
{
	uint64_t cpu;

	if (read(from->in, &cpu, sizeof(cpu)) != sizeof(cpu))
		exit(1); /* it has said why */
	return cpu;
}

static void ask(const struct holder *of, int count)
{
	if (write(of->out, &count, sizeof(count)) != sizeof(count))
		die("asking for round trips");
}

/* One process may have fewer files than there are connections: several hold them. */
static void many(int listener, int flows)
{
	struct holder holders[MAX_HOLDERS];
	struct rlimit files;
	int64_t *times;
	int each, used = 0, first, count, i, share, done;
	uint64_t cpu, late = 0;

	if (getrlimit(RLIMIT_NOFILE, &files))
		die("getrlimit");
	files.rlim_cur = files.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &files))
		die("setrlimit");
	each = ((files.rlim_cur < MOST_FILES ? files.rlim_cur : MOST_FILES) - OTHER_FILES) / 2;
	times = mmap(NULL, MOST_ROUNDTRIPS * sizeof(*times), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (times == MAP_FAILED)
		die("mmap");
	for (first = 0; first < flows && used < MAX_HOLDERS; first += each) {
		count = flows - first < each ? flows - first : each;
		holders[used] = start_holder(listener, first, count, times);
		late += wait_for(&holders[used++]);
	}
	if (first < flows) {
		fprintf(stderr, "%d files are too few for %d connections (ulimit -n)\n",
			(int)files.rlim_cur, flows);
		exit(1);
	}
	printf("open %llu\n", (unsigned long long)late);
	fflush(stdout);
	while (scanf("%d", &count) == 1 && count <= MOST_ROUNDTRIPS) {
		cpu = 0;
		for (i = done = 0; i < used; i++, done += share) {
			share = (count - done) / (used - i);
			ask(&holders[i], share);
			cpu += wait_for(&holders[i]);
			print_times(times, share);
		}
		printf("cpu %llu\n", (unsigned long long)cpu);
		fflush(stdout);
	}
	for (i = used; i--; wait(NULL)) /* the later ones have copies of the earlier ones' pipes */
		close(holders[i].out);
}

#endif
