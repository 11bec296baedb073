/* What to do when no port is left that a backend could see: the flow that can do best without its
 * own gives it away. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "config.h"
#include "cpu.h"
#include "parse.h"
#include "handoff.h"
#include "hash.h"
#include "cells.h"
#include "beat.h"
#include "ending.h"
#include "evict.h"
#include "stats.h"
#include "decided.h"
#include "flow.h"
#include "select.h"
#include "tailcall.h"
#include "masquerade.h"
#include "open.h"

/* How readily a flow gives its port away; 0: never. First those that are closed; then handshakes
 * that nobody goes on with; last what the backend may still hold in TIME_WAIT, where its kernel may
 * ignore the first SYN. Of each the longest unseen. */
#define WAY_SHIFT 24
#define WAY_AGE_MASK ((1 << WAY_SHIFT) - 1)
enum way { KEEPS_PORT, BACKEND_HOLDS, NO_HANDSHAKE, HOLDS_NOTHING };

INLINE u32 gives_way(const struct found *held, u32 beat)
{
	struct found forward, reply;
	u32 age, way = KEEPS_PORT;

	if (!get_cell(next_place(held->state), &forward) ||
	    !get_cell(next_place(forward.state), &reply))
		return KEEPS_PORT;
	age = beat - forward.state->seen;
	if (state_of(held) == STATE_TIME_WAIT)
		way = kind_of(held) & CELL_NOTE || flags_of(reply.state) & CELL_FIRST
			  ? BACKEND_HOLDS
			  : HOLDS_NOTHING;
	else if (state_of(held) == STATE_SYN && age > HANDSHAKE_BEATS && age <= WAY_AGE_MASK)
		way = NO_HANDSHAKE;
	return way ? way << WAY_SHIFT | (age & WAY_AGE_MASK) : KEEPS_PORT;
}

/* The program. It hands the packet back with the port that has become free. */
INLINE int take_port(struct __sk_buff *skb)
{
	u32 turn = handoff(skb)->turn, start = next_random() >> 1, beat = now();
	const struct config *c = get_config();
	struct cpu *cpu = this_cpu();
	struct choice choice = {};
	struct flow_key back;
	struct found held;
	struct packet p;
	u16 port = 0;
	ip_addr node;
	u64 best;
	int i;

	if (!c || !cpu || !restore_packet(skb, &p) ||
	    !restore_choice(&choice, &p, handoff(skb)->backend, handoff(skb)->service))
		return DROP;
	masquerade_source(&node, skb, c, &p, &choice.addr);
	make_back_key(&back, &p, &choice, &node, 0);
	best = forgotten(cpu, 0);
	ROLLED
	for (i = 0; i < MASQUERADE_PORT_TRIES; i++) {
		u64 way;

		back.dport = nth_port(c, start, i);
		if (!find_cell(&back, &held))
			continue;
		way = forgotten(cpu, gives_way(&held, beat));
		if (way > best) {
			best = way;
			port = back.dport;
		}
	}
	back.dport = port;
	if (!port || !find_cell(&back, &held) || !end_flow(&held, END_EVICTED)) {
		return drop(skb, REASON_PORTS_EXHAUSTED);
	}
	if (best >> WAY_SHIFT == BACKEND_HOLDS)
		count(skb, REASON_PORT_REUSED);
	handoff(skb)->turn = with_port(turn, port);
	return hand_to(skb, FAMILY_PROGRAM(MASQUERADE));
}
