/* A new flow whose backend is to see the node's address instead of the client's, so that the reply
 * comes back here: from outside to a backend on another node, and a pod that reaches itself. The
 * destination is written where the packet comes in, the source where it leaves (the IPv4 stack
 * drops what enters with one of the node's own addresses as source); so there are two more cells:
 *
 *   client:cp -> service:sp      coming in: becomes client:np -> backend:bp (the flow's own)
 *   client:np -> backend:bp      going out: becomes node:np -> backend:bp (at its side)
 *   backend:bp -> node:np        coming in: becomes backend:bp -> client:np (at its side)
 *   backend:bp -> client:np      going out: becomes service:sp -> client:cp (the flow's reply)
 *
 * np is the client's own port where that is free, else of a range that the node uses for nothing
 * else. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "config.h"
#include "parse.h"
#include "handoff.h"
#include "hash.h"
#include "cells.h"
#include "decided.h"
#include "cpu.h"
#include "beat.h"
#include "claim.h"
#include "select.h"
#include "tailcall.h"
#include "owned.h"
#include "open.h"

/* Newer than the UAPI headers of some distributions: linux/bpf.h, since 6.3 and 6.7. */
#define FIB_SKIP_NEIGHBOUR (1 << 2)
#define FIB_SOURCE (1 << 4)

#if FAMILY == 6
#define AF_OF_FAMILY 10
#define DEVICE_ADDRESS(device) (&(device)->node6)
#else
#define AF_OF_FAMILY 2
#define DEVICE_ADDRESS(device) (&(device)->node4)
#endif

INLINE void make_fib_question(struct bpf_fib_lookup *fib, const struct __sk_buff *skb,
			      const struct packet *p, const ip_addr *backend)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = AF_OF_FAMILY;
	fib->ifindex = skb->ifindex;
	fib->l4_protocol = p->proto;
#if FAMILY == 6
	__builtin_memcpy(fib->ipv6_src, &p->src, sizeof(p->src));
	__builtin_memcpy(fib->ipv6_dst, backend, sizeof(*backend));
#else
	fib->ipv4_src = p->src;
	fib->ipv4_dst = *backend;
#endif
}

/* The node's address on the device that the route leads to, as the agent says. That a neighbour is
 * not known yet, or the packet too large, does not change the route. */
INLINE bool ask_device(struct __sk_buff *skb, struct bpf_fib_lookup *fib, ip_addr *source)
{
	int error = bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
	u32 ifindex = fib->ifindex;
	struct device *device;

	if (error && error != BPF_FIB_LKUP_RET_NO_NEIGH && error != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return false;
	device = devices.lookup(&ifindex);
	if (!device)
		return false;
	narrow(source, DEVICE_ADDRESS(device));
	return true;
}

/* The address that belongs on the way to the backend: what the kernel itself would take (6.7), or
 * what the agent says of the device. */
INLINE bool ask_route(struct __sk_buff *skb, const struct config *c, const struct packet *p,
		      const ip_addr *backend, ip_addr *source)
{
	struct bpf_fib_lookup fib;
	int error = -EINVAL;

	make_fib_question(&fib, skb, p, backend);
	if (!(c->flags & CONFIG_MASQUERADE_BY_DEVICE))
		error = bpf_fib_lookup(skb, &fib, sizeof(fib), FIB_SKIP_NEIGHBOUR | FIB_SOURCE);
	if (error == -EINVAL) /* a kernel that does not know the flags */
		return ask_device(skb, &fib, source);
	/* A packet that is too large for the way may be the first of a flow as well. */
	if (error && error != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return false;
#if FAMILY == 6
	__builtin_memcpy(source, fib.ipv6_src, sizeof(*source));
#else
	*source = fib.ipv4_src;
#endif
	return true;
}

/* The node's address that the backend is to see: the one of the way there, else the primary one,
 * else, where the agent knows none, the service's own. */
INLINE void masquerade_source(ip_addr *source, struct __sk_buff *skb, const struct config *c,
			      const struct packet *p, const ip_addr *backend)
{
	if (ask_route(skb, c, p, backend, source) && !is_zero(source))
		return;
	narrow(source, NODE_ADDRESS(c));
	if (is_zero(source))
		*source = p->dst;
}

/* Has a socket of the node's own a conversation with the backend by this port? Those that begin
 * later are noted where they leave (outgoing.h). */
INLINE bool is_used_by_node(struct __sk_buff *skb, const struct flow_key *back)
{
	struct bpf_sock_tuple tuple = {};
	u32 size = sizeof(tuple.ipv4);
	struct bpf_sock *sk;
	bool used;

#if FAMILY == 6
	size = sizeof(tuple.ipv6);
	__builtin_memcpy(tuple.ipv6.saddr, &back->src, 16);
	__builtin_memcpy(tuple.ipv6.daddr, &back->dst, 16);
	tuple.ipv6.sport = back->sport;
	tuple.ipv6.dport = back->dport;
#else
	tuple.ipv4.saddr = back->src;
	tuple.ipv4.daddr = back->dst;
	tuple.ipv4.sport = back->sport;
	tuple.ipv4.dport = back->dport;
#endif
	sk = find_socket(skb, &tuple, size, back->proto);
	if (!sk)
		return false;
	used = back->proto != IPPROTO_TCP || sk->state != BPF_TCP_LISTEN;
	bpf_sk_release(sk);
	return used;
}

/* Is a port free that the backend is to see? Neither may it be taken towards the node, nor may the
 * reply be another flow's when it goes out. `held` is who has it. */
INLINE bool is_free_port(struct flow_key *back, const ip_addr *node, const ip_addr *client,
			 struct found *held)
{
	back->dst = *client;
	if (find_cell(back, held))
		return false;
	back->dst = *node;
	return !find_cell(back, held);
}

/* May the client's own port be tried? A pod that reaches itself would take it for its own socket's;
 * and what flows with a changed port have is theirs. */
INLINE bool may_keep_port(const struct config *c, const struct packet *p, bool to_itself)
{
	return !to_itself && p->sport && !is_own_port(c, p->sport);
}

/* The ports that are tried, one after another. */
INLINE u16 nth_port(const struct config *c, u32 start, u32 n)
{
	return htons(c->port_min + (start + n) % (c->port_max - c->port_min + 1));
}

/* Looks for a port that is free towards the backend: the client's own, else one of the range, from
 * a random one on. False if all that were tried are taken. */
INLINE bool find_port(struct __sk_buff *skb, const struct config *c, const struct packet *p,
		      const ip_addr *node, struct flow_key *back)
{
	bool to_itself = same_address(&p->src, &back->src);
	u32 start = next_random() >> 1;
	struct found held;
	int i;

	back->dport = p->sport;
	if (may_keep_port(c, p, to_itself) && is_free_port(back, node, &p->src, &held) &&
	    !is_used_by_node(skb, back))
		return true;
	ROLLED
	for (i = 0; i < MASQUERADE_PORT_TRIES; i++) {
		back->dport = nth_port(c, start, i);
		if (to_itself && back->dport == back->sport)
			continue;
		if (is_free_port(back, node, &p->src, &held))
			return true;
	}
	return false;
}

/* The tuple by which the backend answers the node. */
INLINE void make_back_key(struct flow_key *key, const struct packet *p, const struct choice *choice,
			  const ip_addr *node, u16 port)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = choice->addr;
	key->sport = choice->port;
	key->dst = *node;
	key->dport = port;
	key->proto = p->proto;
}

/* Reserves both cells at the flow's sides, under a port that is free as far as can be seen. */
INLINE u32 reserve_sides(const struct packet *p, const struct flow_key *back, struct sides *sides,
			 u32 generation)
{
	u32 kind = CELL_MASQUERADED | CELL_SIDE;
	struct flow_key out = {};

	sides->back = reserve_cell(back, &p->src, kind, generation);
	if (!IS_PLACE(sides->back))
		return sides->back;
	out.src = p->src;
	out.sport = back->dport;
	out.dst = back->src;
	out.dport = back->sport;
	out.proto = p->proto;
	sides->out = reserve_cell(&out, &p->src, kind | CELL_REPLY, generation);
	if (IS_PLACE(sides->out))
		return sides->out;
	abandon_cell(sides->back);
	return sides->out;
}

/* The sides first: they have the port. One program's stack has no room for the rest. */
INLINE int masquerade(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	u32 turn = handoff(skb)->turn, generation = new_generation(), place, beat = now();
	struct choice choice = {};
	struct sides sides = {}; /* or LLVM may save what it has not set, which is no program */
	struct flow_key back;
	struct packet p;
	ip_addr node;

	if (!c || !restore_packet(skb, &p) || p.fragment == FRAGMENT_LATER ||
	    !restore_choice(&choice, &p, handoff(skb)->backend, handoff(skb)->service))
		return DROP;
	masquerade_source(&node, skb, c, &p, &choice.addr);
	make_back_key(&back, &p, &choice, &node, port_of(turn));
	if (!port_of(turn) && !find_port(skb, c, &p, &node, &back))
		return hand_to_turn(skb, turn, FAMILY_PROGRAM(TAKE_PORT));
	place = reserve_sides(&p, &back, &sides, generation);
	if (place == CELL_FULL)
		return drop(skb, REASON_FLOWS_FULL);
	if (!IS_PLACE(place))
		return hand_to_turn(skb, turn, FAMILY_PROGRAM(RETRY));
	fill_cell(sides.back, &p.src, back.dport, choice.port, choice.backend, choice.service,
		  sides.back, beat);
	fill_cell(sides.out, &node, back.dport, choice.port, choice.backend, choice.service,
		  sides.back, beat);
	handoff(skb)->generation = generation;
	handoff(skb)->out = sides.out | (turn & TURN_MASK) << LINK_FLAGS_SHIFT;
	handoff(skb)->back = sides.back;
	programs.call(skb, FAMILY_PROGRAM(OPEN_MASQUERADED));
	abandon_sides(&sides);
	return drop(skb, REASON_INTERNAL);
}

/* The program for a masqueraded flow's own cells. */
INLINE int open_masqueraded(struct __sk_buff *skb)
{
	u32 turn = handoff(skb)->out >> LINK_FLAGS_SHIFT, generation = handoff(skb)->generation;
	struct sides sides = {.out = handoff(skb)->out & LINK_PLACE_MASK,
			      .back = handoff(skb)->back & LINK_PLACE_MASK};
	struct choice choice = {};
	struct found back;
	struct packet p;

	if (!get_cell_in(true, sides.back, &back) || !restore_packet(skb, &p) ||
	    !restore_choice(&choice, &p, back.state->backend, back.state->service)) {
		abandon_sides(&sides);
		return DROP;
	}
	choice.kind = CELL_MASQUERADED;
	choice.client_port = back.cell->port;
	return open_and_forward(skb, &p, &choice, turn, generation, &sides);
}
