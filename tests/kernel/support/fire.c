/* The data path's own lookup, millions of times per second, with a judge in the kernel: it knows
 * which sets of backends may be chosen, before and after each lookup. Compiled by fire.py together
 * with bpf_src. */
#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "parse.h"
#include "address.h"
#include "frontend.h"
#include "select.h"

/* Written by the updater: a set's number is in the address of each of its backends. */
struct fire_epochs {
	struct frontend_key frontend;
	__u32 service;
	__u64 started;	 /* the newest set that may be seen */
	__u64 committed; /* the oldest set that may be seen by a lookup that begins now */
};

struct fire_counts {
	__u64 lookups;
	__u64 no_frontend;
	__u64 wrong_frontend;
	__u64 refused;
	__u64 foreign; /* of a set that was neither the old one nor the new one */
	__u64 torn;    /* no member of the set it says it is of */
	__u64 sets;    /* how often the lookup before this one saw another set */
	__u64 last;
	__u64 members[8];
};

BPF_F_TABLE("array", u32, struct fire_epochs, fire_epochs, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct fire_counts, fire_counts, 1, BPF_F_MMAPABLE);

INLINE void judge(struct fire_counts *n, const struct choice *choice, u32 before, u32 after)
{
	u32 set = choice->addr, member = choice->port >> 8, length = choice->port & 0xff;

	if (set - before > after - before)
		n->foreign++;
	if (member >= length || member >= 8) {
		n->torn++;
		return;
	}
	n->members[member & 7]++;
	if (n->last != set) {
		n->last = set;
		n->sets++;
	}
}

int fire(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct fire_epochs *epochs = fire_epochs.lookup(&zero);
	struct fire_counts *n = fire_counts.lookup(&zero);
	struct request request = {};
	struct choice choice = {};
	struct frontend_key key;
	struct frontend found;
	u32 before, after;

	if (!epochs || !n)
		return TC_ACT_SHOT;
	n->lookups++;
	key = epochs->frontend;
	if (!find_frontend(&key, &found)) {
		n->no_frontend++;
		return TC_ACT_SHOT;
	}
	if (found.service != epochs->service) {
		n->wrong_frontend++;
		return TC_ACT_SHOT;
	}
	request.service = found.service;
	request.frontend_flags = found.flags;
	before = *(volatile u64 *)&epochs->committed;
	if (choose_backend(&request, true, &choice)) {
		n->refused++;
		return TC_ACT_SHOT;
	}
	after = *(volatile u64 *)&epochs->started;
	judge(n, &choice, before, after);
	return TC_ACT_UNSPEC;
}
