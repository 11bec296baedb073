/* Traffic straight to an address and port that is also some service's backend. If the same client
 * port is in use for a flow through that service, the replies could not be told apart: the direct
 * flow then gets another source port. If not, its tuple is noted, by a SYN or the first datagram,
 * and it is the service's flow that gets another port when it comes later. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "address.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "beat.h"
#include "ending.h"
#include "tailcall.h"
#include "flow.h"

/* Is it what such a conversation has noted, and no rest of a service's flow? */
INLINE bool is_own_note(const struct found *held, const struct flow_key *reply_key)
{
	return kind_of(held) & CELL_NOTE && same_address(&held->cell->addr, &reply_key->src) &&
	       held->cell->port == reply_key->sport;
}

/* The program; no flow has the packet's own tuple. */
INLINE int direct(struct __sk_buff *skb)
{
	struct flow_key reply_key;
	struct found held;
	struct packet p;
	u32 beat = now();

	if (!restore_packet(skb, &p))
		return PASS;
	/* To itself a pod sends nothing this way; its tuple may be that of a masqueraded flow. */
	if (same_address(&p.src, &p.dst))
		return PASS;
	make_key_back(&reply_key, &p);
	if (find_cell(&reply_key, &held)) {
		if (is_own_note(&held, &reply_key)) {
			held.state->seen = beat;
			if (state_of(&held) == STATE_TIME_WAIT)
				set_state(&held, STATE_TIME_WAIT, STATE_ESTABLISHED);
			return PASS;
		}
		if (!(kind_of(&held) & (CELL_REPLY | CELL_NOTE)) || kind_of(&held) & CELL_SIDE)
			return PASS;
		if (!is_idle(&held, beat)) {
			handoff(skb)->turn = 0;
			handoff(skb)->backend = 0;
			handoff(skb)->service = 0;
			return hand_to(skb, FAMILY_PROGRAM(OPEN));
		}
		/* A finished flow's leftover must not catch this conversation's replies. */
		end_flow(&held, END_REPLACED);
	}
	note_reply(&reply_key, beat);
	return PASS;
}
