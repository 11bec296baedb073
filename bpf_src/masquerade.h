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
#include "filter.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "flow.h"
#include "cpu.h"
#include "select.h"
#include "owned.h"
#include "connect.h"

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
	if (error)
		return false;
#if FAMILY == 6
	__builtin_memcpy(source, fib.ipv6_src, sizeof(*source));
#else
	*source = fib.ipv4_src;
#endif
	return true;
}

/* The node's address that the backend is to see: the one of the way there, else the primary one,
 * else, where the agent knows none, the service's own. Replies to an address that is not in the
 * filter would not be seen: it is so new that the agent has not heard of it. */
INLINE void masquerade_source(ip_addr *source, struct __sk_buff *skb, const struct config *c,
			      const struct packet *p, const ip_addr *backend)
{
	if (ask_route(skb, c, p, backend, source) && maybe_service(source, 0) && !is_zero(source))
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

/* How readily a flow gives its port away; 0: never. First those that are closed; then handshakes
 * that nobody goes on with; last what the backend may still hold in TIME_WAIT, where its kernel may
 * ignore the first SYN. Of each the longest unseen. */
#define WAY_SHIFT 24
#define HOLDS_NOTHING (3 << WAY_SHIFT)
#define NO_HANDSHAKE (2 << WAY_SHIFT)
#define BACKEND_HOLDS (1 << WAY_SHIFT)
#define HANDSHAKE_BEATS 4 /* one to ten seconds, depending on the kernel's HZ */

INLINE u32 gives_way(const struct found *held, u32 beat)
{
	struct found forward = *held, reply;
	u32 age;

	if (kind_of(held) & CELL_NOTE) {
		if (state_of(held) != STATE_TIME_WAIT)
			return 0;
		return BACKEND_HOLDS | ((beat - held->state->seen) & ((1 << WAY_SHIFT) - 1));
	}
	if (!(kind_of(held) & CELL_MASQUERADED) || !find_forward(held, &forward) ||
	    !find_next(&forward, &reply))
		return 0;
	age = (beat - forward.state->seen) & ((1 << WAY_SHIFT) - 1);
	if (state_of(&forward) == STATE_TIME_WAIT)
		return age | (flags_of(reply.state) & CELL_FIRST ? BACKEND_HOLDS : HOLDS_NOTHING);
	return state_of(&forward) == STATE_SYN && is_older(beat, forward.state->seen, HANDSHAKE_BEATS)
		   ? age | NO_HANDSHAKE
		   : 0;
}

/* May the client's own port be tried? A pod that reaches itself would take it for its own socket's;
 * and what flows with a changed port have is theirs. */
INLINE bool may_keep_port(const struct config *c, const struct packet *p, bool to_itself)
{
	return !to_itself && p->sport && !is_own_port(c, p->sport);
}

/* Looks for a port that is free towards the backend: the client's own, else one of the range, tried
 * one after another from a random one; if all are taken, the one whose flow gives way first, which
 * is ended. False if there is none. */
INLINE bool find_port(struct __sk_buff *skb, const struct config *c, const struct packet *p,
		      const ip_addr *node, struct flow_key *back)
{
	u32 span = c->port_max - c->port_min + 1, start = next_random() >> 1, beat = now();
	bool to_itself = same_address(&p->src, &back->src);
	u16 victim = 0, port = p->sport;
	bool keep = may_keep_port(c, p, to_itself);
	struct found held;
	u32 best = 0;
	int i;

	ROLLED
	for (i = 0; i <= MASQUERADE_PORT_TRIES; i++) {
		u32 way;

		back->dport = i || !keep ? htons(c->port_min + (start + i) % span) : port;
		if (to_itself && back->dport == back->sport)
			continue;
		if (is_free_port(back, node, &p->src, &held)) {
			if (i || !keep || !is_used_by_node(skb, back))
				return true;
			continue;
		}
		way = gives_way(&held, beat);
		if (way > best) {
			best = way;
			victim = back->dport;
		}
	}
	if (!best)
		return false;
	back->dport = victim;
	if (is_free_port(back, node, &p->src, &held) || !end_flow(&held, END_EVICTED))
		return false;
	if (best >> WAY_SHIFT == BACKEND_HOLDS >> WAY_SHIFT)
		count(skb, REASON_PORT_REUSED);
	back->dst = *node;
	return true;
}

/* Reserves both cells at the flow's sides, under a port that is free as far as can be seen: what
 * comes back first. */
INLINE u32 reserve_sides(const struct packet *p, struct flow_key *back, struct sides *sides,
			 u32 generation)
{
	struct flow_key key = *back;
	u32 place = CELL_TAKEN;
	int i;

	sides->out = sides->back = NO_PLACE;
	ROLLED
	for (i = 0; i < 2; i++) {
		place = reserve_cell(&key, &p->src, CELL_MASQUERADED | CELL_SIDE | (i ? CELL_REPLY : 0),
				     generation);
		if (!IS_PLACE(place))
			break;
		if (i) {
			sides->out = place;
			return place;
		}
		sides->back = place;
		key.src = p->src;
		key.sport = back->dport;
		key.dst = back->src;
		key.dport = back->sport;
	}
	if (IS_PLACE(sides->back))
		abandon_cell(sides->back);
	return place;
}

/* The sides first: they have the port. One program's stack has no room for the rest. */
INLINE int masquerade(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	u32 turn = handoff(skb)->turn, generation = new_generation(), place, beat = now();
	struct choice choice = {};
	struct flow_key back = {};
	struct sides sides;
	struct packet p;
	ip_addr node;

	if (!c || !restore_choice(&choice, handoff(skb)->backend, handoff(skb)->service) ||
	    !restore_packet(skb, &p) || p.fragment == FRAGMENT_LATER)
		return DROP;
	masquerade_source(&node, skb, c, &p, &choice.addr);
	back.src = choice.addr;
	back.sport = choice.port;
	back.proto = p.proto;
	if (!find_port(skb, c, &p, &node, &back)) {
		count(skb, REASON_PORTS_EXHAUSTED);
		return DROP;
	}
	place = reserve_sides(&p, &back, &sides, generation);
	if (place == CELL_TAKEN)
		return retry_later(skb, turn);
	if (!IS_PLACE(place)) {
		count(skb, REASON_FLOWS_FULL);
		return DROP;
	}
	fill_cell(sides.back, &p.src, back.dport, choice.port, choice.backend, choice.service,
		  sides.back, beat);
	fill_cell(sides.out, &node, back.dport, choice.port, choice.backend, choice.service,
		  sides.back, beat);
	handoff(skb)->generation = generation;
	handoff(skb)->out = sides.out | turn << LINK_FLAGS_SHIFT;
	handoff(skb)->back = sides.back;
	programs.call(skb, FAMILY_PROGRAM(OPEN_MASQUERADED));
	abandon_sides(&sides);
	count(skb, REASON_INTERNAL);
	return DROP;
}

/* The program for a masqueraded flow's own cells. */
INLINE int open_masqueraded(struct __sk_buff *skb)
{
	u32 turn = handoff(skb)->out >> LINK_FLAGS_SHIFT, generation = handoff(skb)->generation;
	struct sides sides = {.out = handoff(skb)->out & LINK_PLACE_MASK,
			      .back = handoff(skb)->back & LINK_PLACE_MASK};
	struct choice choice = {};
	struct flow_key key;
	struct found back;
	struct packet p;

	if (!get_cell(sides.back, &back) ||
	    !restore_choice(&choice, back.state->backend, back.state->service) ||
	    !restore_packet(skb, &p)) {
		abandon_sides(&sides);
		return DROP;
	}
	choice.kind = CELL_MASQUERADED;
	choice.client_port = back.cell->port;
	make_key(&key, &p);
	return open_and_forward(skb, &p, &key, &choice, turn, generation, &sides);
}
