/* What to do when a new flow's reply tuple is taken: the one that has it ends, if it may, or the
 * new flow gets another client port. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "address.h"
#include "config.h"
#include "cpu.h"
#include "parse.h"
#include "handoff.h"
#include "hash.h"
#include "cells.h"
#include "beat.h"
#include "ending.h"
#include "decided.h"
#include "flow.h"
#include "select.h"
#include "tailcall.h"
#include "open.h"

/* A source port to try: any of the range that the node keeps for this, or for its own flows.
 * Network byte order. */
INLINE u16 random_port(const struct config *c, bool node)
{
	u32 first = node ? c->port_max + 1 : c->port_min;
	u32 span = (node ? c->node_port_max : c->port_max) - first + 1;

	return htons(first + (u32)((u64)next_random() * span >> 32));
}

/* Sets a client port under which nothing is known of the reply tuple, if one is found. */
INLINE void pick_port(const struct config *c, struct flow_key *key, bool node)
{
	struct found held;
	int i;

	ROLLED
	for (i = 0; i < SOURCE_PORT_TRIES; i++) {
		key->dport = random_port(c, node);
		if (!find_cell(key, &held))
			break;
	}
}

/* Does a cell write what the new flow's reply cell would? */
INLINE bool is_alike(const struct found *held, const struct packet *p)
{
	struct ends ends;

	return read_ends(held, &ends) && same_address(&ends.addr, &p->dst) &&
	       ends.port == p->dport && ends.client_port == p->sport;
}

/* May what holds our reply tuple be ended? Either it is what rests of this very flow, or it has
 * been idle for so long that the sweep would end it. As a last resort a close is enough; a reset
 * never is, it may be forged. */
INLINE bool may_end(const struct found *held, const struct packet *p, bool last_resort)
{
	if (kind_of(held) & CELL_NOTE && is_alike(held, p))
		return true;
	return (last_resort && state_of(held) == STATE_TIME_WAIT) || is_idle(held, now());
}

/* The program. What was chosen for the packet stays with it. */
INLINE int make_way(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	u32 turn = handoff(skb)->turn;
	struct choice choice = {};
	struct flow_key key;
	struct found held;
	struct packet p;

	if (!c || !restore_packet(skb, &p) ||
	    !restore_choice(&choice, &p, handoff(skb)->backend, handoff(skb)->service))
		return DROP;
	choice.client_port = port_of(turn) ? port_of(turn) : p.sport;
	make_reply_key(&key, &p, &choice);
	/* Another CPU is at it: perhaps with this very flow. */
	if (!find_cell(&key, &held) || (kind_of(&held) & CELL_REPLY && is_alike(&held, &p)))
		return hand_to(skb, FAMILY_PROGRAM(RETRY));
	if (may_end(&held, &p, port_of(turn) && p.origin != ORIGIN_NODE)) {
		end_flow(&held, END_REPLACED);
	} else if (port_of(turn)) {
		return drop(skb, REASON_PORTS_EXHAUSTED);
	} else {
		pick_port(c, &key, false);
		handoff(skb)->turn = with_port(turn, key.dport);
	}
	return hand_to(skb, FAMILY_PROGRAM(OPEN));
}
