/* A new flow to a service: choose a backend, reserve the reply's tuple, remember both directions.
 *
 * Two flows of one client may meet in the tuple their replies carry (one source port towards two
 * services with a common backend, or towards a service and directly to its backend). Whoever comes
 * second gets another source port, as the kernel's conntrack does (way.h). */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
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
#include "account.h"
#include "stats.h"
#include "tailcall.h"
#include "flow.h"
#include "cpu.h"
#include "nat.h"
#include "algorithm.h"
#include "beat.h"
#include "ending.h"
#include "claim.h"
#include "tell.h"
#include "frontend.h"
#include "select.h"
#include "decided.h"
#include "owned.h"
#include "outgoing.h"

#define CONNECT_TURNS 5 /* until a flow is open: another CPU is at it, there is no room, ... */
/* Per turn, with a pause before each. A call takes some twenty or thirty ns, and is one step for
 * the verifier: some hundred ns in the first turn, some microseconds in the others, since the other
 * CPU's caches may be cold. */
#define RETRY_LOOKS 4
#define RETRY_PAUSE 8
#define RETRY_LONGER_PAUSE 100

/* handoff.turn: how often it was tried, and the client port as the backend is to see it (network
 * byte order; 0: its own). */
#define TURN_PORT_SHIFT 16

INLINE u16 port_of(u32 turn)
{
	return turn >> TURN_PORT_SHIFT;
}

INLINE u32 with_port(u32 turn, u16 port)
{
	return (turn & TURN_MASK) | (u32)port << TURN_PORT_SHIFT;
}

/* Tries again, by a program that may mend what was in the way. */
INLINE int hand_to_turn(struct __sk_buff *skb, u32 turn, u32 program)
{
	if ((turn & TURN_MASK) >= CONNECT_TURNS)
		return drop(skb, REASON_FLOWS_FULL);
	handoff(skb)->turn = turn + 1;
	programs.call(skb, program);
	return drop(skb, REASON_INTERNAL);
}

/* The first packet; the only one that says what the backend's RST would have to acknowledge. */
INLINE void note_first(struct __sk_buff *skb, const struct packet *p, u32 forward, u32 reply)
{
	struct found own, other;
	u32 seq;

	if (!get_cell_in(true, forward, &own) || !get_cell_in(true, reply, &other))
		return;
	own.state->packets = 1;
	own.state->bytes += skb->len - p->l3;
	if (p->proto == IPPROTO_TCP && read_tcp_seq(skb, p, &seq))
		other.state->ack = htonl(ntohl(seq) + 1);
}

/* The cells at a masqueraded flow's sides (masquerade.h), which are reserved already. */
struct sides {
	u32 out;
	u32 back;
};

INLINE void abandon_sides(const struct sides *sides)
{
	if (!sides)
		return;
	abandon_cell(sides->out);
	abandon_cell(sides->back);
}

/* Makes a ring of all four; those of the sides are filled in already. */
INLINE void publish_sides(const struct sides *sides, u32 forward, u32 state)
{
	struct found out, back;

	if (!get_cell_in(true, sides->out, &out) || !get_cell_in(true, sides->back, &back))
		return;
	out.state->link = sides->back;
	back.state->link = forward;
	publish_cell(sides->back, state);
	publish_cell(sides->out, state);
}

/* The tuple by which the backend answers, given the client port that it sees. */
INLINE void make_reply_key(struct flow_key *key, const struct packet *p,
			   const struct choice *choice)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = choice->addr;
	key->sport = choice->port;
	key->dst = p->src;
	key->dport = choice->client_port;
	key->proto = p->proto;
}

#define NO_ROOM PROGRAM_MAX /* in place of a program: nobody may be evicted */

/* Reserves both of a flow's own cells: first the reply's tuple, which may be taken. 0, or the
 * program that sees to what is in the way. */
INLINE u32 reserve_flow(const struct packet *p, const struct choice *choice, u32 generation,
			u32 *reply, u32 *forward)
{
	struct flow_key key;

	make_reply_key(&key, p, choice);
	*reply = reserve_cell(&key, &p->src, choice->kind | CELL_REPLY, generation);
	if (!IS_PLACE(*reply))
		return *reply == CELL_FULL ? NO_ROOM : FAMILY_PROGRAM(MAKE_WAY);
	make_key(&key, p);
	*forward = reserve_cell(&key, &p->src, choice->kind, generation);
	if (IS_PLACE(*forward))
		return 0;
	abandon_cell(*reply);
	return *forward == CELL_FULL ? NO_ROOM : FAMILY_PROGRAM(RETRY);
}

/* Remembers the flow in both directions. `choice` tells where it goes, and the client port that the
 * backend sees. 0, or the program that sees to what is in the way, or NO_ROOM. */
INLINE u32 open_flow(struct __sk_buff *skb, struct packet *p, const struct choice *choice,
		     u32 generation, const struct sides *sides)
{
	u32 state = p->proto == IPPROTO_TCP ? STATE_SYN : STATE_DATAGRAM;
	u32 reply = 0, forward = 0, beat = now();
	u32 way = reserve_flow(p, choice, generation, &reply, &forward);

	if (way) {
		abandon_sides(sides);
		return way;
	}
	fill_cell(reply, &p->dst, p->dport, p->sport, choice->backend, choice->service,
		  sides ? sides->out : forward, beat);
	fill_cell(forward, &choice->addr, choice->port, choice->client_port, choice->backend,
		  choice->service, reply, beat);
	note_first(skb, p, forward, reply);
	if (sides)
		publish_sides(sides, forward, state);
	publish_cell(reply, state);
	tell_opened(forward, beat);
	publish_cell(forward, state);
	if (choice->backend & BACKEND_ID_MASK)
		count_opened(choice->backend, choice->service);
	return 0;
}

/* `turn` is how often it was tried. What comes of a packet that cannot be sent on is a program that
 * mends it, and has the backend chosen anew where that is simpler. */
INLINE int open_and_forward(struct __sk_buff *skb, struct packet *p, const struct choice *choice,
			    u32 turn, u32 generation, const struct sides *sides)
{
	u32 way = open_flow(skb, p, choice, generation, sides);

	if (way == NO_ROOM)
		return drop(skb, REASON_FLOWS_FULL);
	if (way)
		return hand_to_turn(skb, turn, sides ? FAMILY_PROGRAM(RETRY) : way);
	if (port_of(turn) && !sides && choice->kind != CELL_NODE)
		count(skb, REASON_SOURCE_TRANSLATED);
	count(skb, REASON_FORWARDED);
	return send_on(skb, choice->kind,
		       translate(skb, p, false, &choice->addr, choice->port, choice->client_port));
}

/* What was chosen before the packet was handed on: a backend, or none where it goes straight to an
 * endpoint and only its port is to change (direct.h). */
INLINE bool restore_choice(struct choice *choice, const struct packet *p, u32 reference,
			   u32 service)
{
	u32 id = reference & BACKEND_ID_MASK;
	struct backend *b = backends.lookup(&id);

	choice->kind = p->origin == ORIGIN_NODE ? CELL_NODE : 0;
	if (!id) {
		choice->addr = p->dst;
		choice->port = p->dport;
		choice->kind |= CELL_DIRECT;
		return true;
	}
	if (!b)
		return false;
	take_backend(choice, b, reference, service);
	return true;
}

/* The program that opens the flow. */
INLINE int open_chosen(struct __sk_buff *skb)
{
	u32 turn = handoff(skb)->turn;
	struct choice choice = {};
	struct packet p;

	if (!restore_packet(skb, &p) ||
	    !restore_choice(&choice, &p, handoff(skb)->backend, handoff(skb)->service))
		return DROP;
	choice.client_port = port_of(turn) ? port_of(turn) : p.sport;
	return open_and_forward(skb, &p, &choice, turn, new_generation(), 0);
}

/* The program for a packet whose flow another CPU may have opened meanwhile. A note that has its
 * tuple gives way to it. */
INLINE int retry(struct __sk_buff *skb)
{
	bool known = false;
	struct flow_key key;
	struct packet p;
	struct found f;
	int i, pause;
	bool longer;

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
	handoff(skb)->turn &= TURN_MASK;
	longer = handoff(skb)->turn > 1;
	ROLLED
	for (i = 0; i < RETRY_LOOKS && !known; i++) {
		ROLLED
		for (pause = 0; i && pause < (longer ? RETRY_LONGER_PAUSE : RETRY_PAUSE); pause++)
			bpf_ktime_get_ns(); /* only to spend time */
		known = find_cell(&key, &f);
	}
	if (known && kind_of(&f) & CELL_NOTE)
		end_flow(&f, END_REPLACED); /* a client goes before */
	else if (known && !(kind_of(&f) & CELL_REPLY))
		return hand_to(skb, FAMILY_PROGRAM(FOLLOW));
	return hand_to(skb, p.origin == ORIGIN_NODE ? FAMILY_PROGRAM(NODE_OPEN)
						    : FAMILY_PROGRAM(CONNECT));
}

/* Would the reply not come back through this node, or not be told from the pod's own? Masquerade
 * then; never where Kubernetes promises the client's address. */
INLINE bool needs_masquerade(const struct config *c, const struct packet *p, u32 frontend_flags,
			     const struct choice *choice)
{
	if (same_address(&p->src, &choice->addr))
		return true;
	if (choice->local || p->origin == ORIGIN_NODE)
		return false;
	if (!(frontend_flags & FRONTEND_CLUSTER_IP))
		return p->origin == ORIGIN_NET;
	if (c->flags & CONFIG_MASQUERADE_ALL)
		return true;
	return p->origin == ORIGIN_NET && POD_CIDR_COUNT(c) && !in_pod_range(c, &p->src);
}

/* To the program that knows all algorithms. */
INLINE int hand_to_choose(struct __sk_buff *skb, const struct frontend *frontend)
{
	handoff(skb)->service = frontend->service;
	handoff(skb)->frontend_flags = frontend->flags;
	return hand_to(skb, FAMILY_PROGRAM(CHOOSE));
}

INLINE int connect_service(struct __sk_buff *skb, struct packet *p, const struct frontend *frontend,
			   bool algorithms)
{
	struct request request = {.service = frontend->service, .frontend_flags = frontend->flags};
	const struct config *c = get_config();
	struct choice choice = {};
	bool masquerade;
	int reason;

	if (!c)
		return DROP;
	widen(&request.client, &p->src);
	request.outside = p->origin == ORIGIN_NET;
	request.ports = p->sport | (u32)p->dport << 16;
	reason = choose_backend(&request, algorithms, &choice);
	if (reason == CHOICE_ELSEWHERE)
		return hand_to_choose(skb, frontend);
	if (reason == REASON_NO_ENDPOINT)
		return refuse(skb, reason);
	if (reason)
		return drop(skb, reason);
	masquerade = needs_masquerade(c, p, frontend->flags, &choice);
	handoff(skb)->service = choice.service;
#ifdef TRACE
	handoff(skb)->masqueraded = masquerade;
	count(skb, REASON_FORWARDED);
	return translate(skb, p, false, &choice.addr, choice.port, p->sport);
#else
	handoff(skb)->backend = choice.backend;
	return hand_to(skb, masquerade ? FAMILY_PROGRAM(MASQUERADE) : FAMILY_PROGRAM(OPEN));
#endif
}

INLINE int leave_to_stack(struct __sk_buff *skb)
{
	count(skb, REASON_LEFT_TO_STACK);
	return PASS;
}

/* Is this packet, which belongs to no flow, the node's own business, although a service has the
 * address and port? At a ClusterIP that the node has itself, what one of its sockets is bound to
 * is; at any other address, what answers a conversation of the node's own. TCP that begins nothing
 * is enough to tell where the node has the address: the stack resets what nobody has. */
INLINE bool is_nodes_own(struct __sk_buff *skb, const struct packet *p, struct flow_key *key,
			 const struct frontend_key *called, u32 frontend_flags)
{
	struct addr client = {};
	bool begins = p->proto != IPPROTO_TCP || starts_connection(p);

	if (frontend_flags & FRONTEND_SHARED && !begins)
		return true;
	if (frontend_flags & FRONTEND_CLUSTER_IP) {
		if (!(frontend_flags & FRONTEND_SHARED))
			return false;
		if (p->proto != IPPROTO_TCP)
			widen(&client, &p->src);
		return is_bound(skb, &client, p->proto == IPPROTO_TCP ? 0 : p->sport, &called->addr,
				p->dport, p->proto);
	}
#ifdef TRACE
	return false; /* every packet of it begins a flow of somebody else's */
#else
	return (p->proto != IPPROTO_TCP || !begins) && is_answer(key);
#endif
}

/* Nobody serves this port. Ours to refuse only on a live ClusterIP that is nobody else's. */
INLINE int no_frontend(struct __sk_buff *skb, struct packet *p)
{
	const struct config *c = get_config();
	u32 flags = address_flags(&p->dst);

	if (flags & FRONTEND_SHARED)
		return leave_to_stack(skb);
	if (flags & FRONTEND_ADDRESS)
		return refuse(skb, REASON_UNKNOWN_PORT);
	if (c && !flags && !(c->flags & CONFIG_PASS_MIDSTREAM) && in_service_range(c, &p->dst)) {
		return drop(skb, REASON_UNALLOCATED);
	}
	count(skb, REASON_NOT_SERVICE);
	return PASS;
}

/* TCP that does not begin a connection and has no flow. */
INLINE int no_flow(struct __sk_buff *skb, struct packet *p)
{
	const struct config *c = get_config();

	if (c && c->flags & CONFIG_PASS_MIDSTREAM) {
		count(skb, REASON_NO_FLOW_PASSED);
		return PASS;
	}
	if (p->tcp_flags & TCP_RST) { /* a reset is never answered with one */
		return drop(skb, REASON_NO_FLOW_RESET);
	}
	return refuse(skb, REASON_NO_FLOW_RESET);
}

INLINE int connect(struct __sk_buff *skb)
{
	struct frontend_key frontend_key;
	struct frontend frontend;
	struct flow_key key;
	struct packet p;

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
	if (is_martian_source(&p.src))
		return leave_to_stack(skb);
	make_frontend_key(&frontend_key, &p.dst, p.dport, p.proto);
	if (!find_frontend(&frontend_key, &frontend) || frontend.flags & FRONTEND_SOCKETS)
		return no_frontend(skb, &p);
	if (p.proto == IPPROTO_TCP && !starts_connection(&p) && picks_up(frontend.service))
		return hand_to_choose(skb, &frontend);
	if (is_nodes_own(skb, &p, &key, &frontend_key, frontend.flags))
		return leave_to_stack(skb);
	if (p.proto == IPPROTO_TCP && !starts_connection(&p))
		return no_flow(skb, &p);
	return connect_service(skb, &p, &frontend, false);
}

/* Is TCP in mid-stream that has no flow the node's own, although the service picks up such? */
INLINE bool is_own_midstream(struct __sk_buff *skb, const struct packet *p, struct flow_key *key,
			     u32 frontend_flags)
{
	struct addr client, called;

	if (!(frontend_flags & FRONTEND_CLUSTER_IP) && is_answer(key))
		return true;
	if (!(frontend_flags & FRONTEND_SHARED))
		return false;
	widen(&client, &p->src);
	widen(&called, &p->dst);
	return is_bound(skb, &client, p->sport, &called, p->dport, p->proto);
}

/* The same for a service that does not take just any endpoint, and for what such a one picks up:
 * TCP in mid-stream goes to whom the table names, which is whom the node named that had the flow. A
 * RST is not worth a flow, and what kube-proxy may own is its own. */
INLINE int choose(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct frontend frontend = {};
	struct flow_key key;
	struct packet p;

	if (!restore_packet(skb, &p) || !c)
		return DROP;
	make_key(&key, &p);
	frontend.service = handoff(skb)->service;
	frontend.flags = handoff(skb)->frontend_flags;
#ifndef TRACE /* whose packets all begin a connection */
	if (p.proto == IPPROTO_TCP && !starts_connection(&p)) {
		if (is_own_midstream(skb, &p, &key, frontend.flags))
			return leave_to_stack(skb);
		if (c->flags & CONFIG_PASS_MIDSTREAM || p.tcp_flags & TCP_RST)
			return no_flow(skb, &p);
	}
#endif
	return connect_service(skb, &p, &frontend, true);
}
