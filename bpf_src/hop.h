/* Where packets pass the stack by: what the kernel said of an address, kept by each CPU until the
 * agent says that something may have changed (config.fast_epoch).
 *
 * An address has a hop for each role. One that packets come from must be reached by the device they
 * came in by, as strict source validation has it (RFC 3704), whatever rp_filter says: nobody passes
 * the stack by with an address that is not his. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "hash.h"
#include "config.h"
#include "handoff.h"
#include "parse.h"
#include "cells.h"
#include "cpu.h"
#include "masquerade.h"

enum hop_role { HOP_TO, HOP_FROM };
#define HOP_WAYS 2 /* places that an address may have its hop in */

/* Of which address, in which role: `in` is the device that packets come from it by, 0 for where
 * they go to. */
struct hop_key {
	ip_addr addr;
	__u32 in;
	__u32 epoch;
};

INLINE enum hop_role role_of(const struct hop_key *key)
{
	return key->in ? HOP_FROM : HOP_TO;
}

/* The first of its places. Roles do not share any: the two ends of a flow must not contend for one.
 */
INLINE u32 hop_place(const struct table *t, const struct hop_key *key)
{
#if FAMILY == 6
	const u32 *w = key->addr.w;
	u64 hash =
	    NH(w[0] | (u64)w[1] << 32, t->secret[3]) + NH(w[2] | (u64)w[3] << 32, t->secret[4]);
#else
	u64 hash = key->addr ^ t->secret[0];
#endif
	hash = (hash ^ hash >> 32) * (t->secret[1] | 1);
	return ((u32)(hash >> (64 - HOP_BITS + 2)) * 2 + role_of(key)) * HOP_WAYS;
}

INLINE bool is_hop(const struct hop *hop, const struct hop_key *key)
{
	return hop->epoch == key->epoch && same_address(&hop->addr, &key->addr) &&
	       hop->role == role_of(key) && (!key->in || hop->ifindex == key->in);
}

/* What is known; 0: nobody has asked in this epoch. */
INLINE struct hop *find_hop(const struct table *t, const struct hop_key *key)
{
	u32 place = hop_place(t, key);
	struct hop *hop = HOPS.lookup(&place);

	if (!hop || is_hop(hop, key))
		return hop;
	place++;
	hop = HOPS.lookup(&place);
	return hop && is_hop(hop, key) ? hop : 0;
}

/* Where to keep what is about to be known. */
INLINE struct hop *make_hop(const struct table *t, const struct hop_key *key)
{
	u32 place = hop_place(t, key);
	struct hop *hop = HOPS.lookup(&place);

	if (hop && hop->epoch == key->epoch && next_random() & 1) {
		place++;
		hop = HOPS.lookup(&place);
	}
	if (!hop)
		return 0;
	__builtin_memset(hop, 0, sizeof(*hop));
	hop->addr = key->addr;
	hop->role = role_of(key);
	hop->ifindex = key->in;
	hop->epoch = key->epoch;
	return hop;
}

INLINE u32 fast_flags_of(u32 ifindex)
{
	u32 *flags = fast_devices.lookup(&ifindex);

	return flags ? *flags : 0;
}

/* Asks the kernel for the way to `to`, as for a packet that came in here. */
INLINE int ask_way(struct __sk_buff *skb, const struct packet *p, const ip_addr *from,
		   const ip_addr *to, struct bpf_fib_lookup *fib)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = AF_OF_FAMILY;
	fib->ifindex = skb->ifindex;
	fib->l4_protocol = p->proto;
	fib->tot_len = 1; /* it tells the route's MTU then */
#if FAMILY == 6
	__builtin_memcpy(fib->ipv6_src, from, sizeof(*from));
	__builtin_memcpy(fib->ipv6_dst, to, sizeof(*to));
#else
	fib->ipv4_src = *from;
	fib->ipv4_dst = *to;
#endif
	return bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
}

/* The sender is where it should be if packets to it leave by this device; its neighbour need not be
 * known for that. */
INLINE void learn_from(struct __sk_buff *skb, const struct packet *p, struct hop *hop)
{
	struct bpf_fib_lookup fib;
	int error = ask_way(skb, p, &p->dst, &p->src, &fib);

	if ((!error || error == BPF_FIB_LKUP_RET_NO_NEIGH) && fib.ifindex == hop->ifindex)
		hop->flags = fast_flags_of(hop->ifindex) & FAST_FROM;
}

/* A neighbour that is not known is the stack's to ask for; so is all for a gateway of the other
 * family. Of a route's MTU the helper knows nothing unless it is locked, while the stack goes by
 * it: the least one of all routes holds for each. */
INLINE void learn_to(struct __sk_buff *skb, const struct config *c, const struct packet *p,
		     struct hop *hop)
{
	struct bpf_fib_lookup fib;

	if (ask_way(skb, p, &p->src, &p->dst, &fib) || fib.family != AF_OF_FAMILY)
		return;
	hop->ifindex = fib.ifindex;
	hop->flags = fast_flags_of(fib.ifindex) & (FAST_NEIGH | FAST_PEER);
	hop->mtu = fib.mtu_result < c->fast_mtu ? fib.mtu_result : c->fast_mtu;
	__builtin_memcpy(hop->macs, fib.dmac, 6);
	__builtin_memcpy(hop->macs + 6, fib.smac, 6);
#if FAMILY == 6
	__builtin_memcpy(&hop->next, fib.ipv6_dst, sizeof(hop->next));
#else
	hop->next = fib.ipv4_dst;
#endif
}

/* The program that asks the kernel about both ends of a packet, which takes the stack once more.
 * Its destination is where it goes by now. */
INLINE int learn_hops(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	const struct table *t = get_table();
	struct hop_key key = {};
	struct packet p;
	struct hop *hop;

	if (!c || !t || !restore_packet(skb, &p))
		return PASS;
	/* First: what changes while it is asked ends the epoch. */
	key.epoch = LOAD(&c->fast_epoch);
	ORDERED;
	key.addr = p.dst;
	hop = find_hop(t, &key) ? 0 : make_hop(t, &key);
	if (hop)
		learn_to(skb, c, &p, hop);
	key.addr = p.src;
	key.in = skb->ifindex;
	hop = find_hop(t, &key) ? 0 : make_hop(t, &key);
	if (hop)
		learn_from(skb, &p, hop);
	return PASS;
}
