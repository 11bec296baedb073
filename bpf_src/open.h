/* Opening a flow whose backend is chosen: its cells are reserved, filled and published, or what is
 * in the way is handed to the program that sees to it.
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
#include "beat.h"
#include "ending.h"
#include "claim.h"
#include "tell.h"
#include "select.h"
#include "decided.h"

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
	u32 reply_kind = choice->kind | CELL_REPLY | (p->origin == ORIGIN_DSR ? CELL_DSR : 0);
	struct flow_key key;

	make_reply_key(&key, p, choice);
	*reply = reserve_cell(&key, &p->src, reply_kind, generation);
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
	return hand_to(skb, beginning_program(&p));
}
