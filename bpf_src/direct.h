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
#include "stats.h"
#include "tailcall.h"
#include "flow.h"
#include "select.h"
#include "connect.h"

INLINE int translate_direct(struct __sk_buff *skb, struct packet *p)
{
	struct choice choice = {.kind = CELL_DIRECT};
	struct flow_key key;

	choice.addr = p->dst;
	choice.port = p->dport;
	choice.client_port = p->sport;
	make_key(&key, p);
	return open_and_forward(skb, p, &key, &choice, CONNECT_TURNS - 1, new_generation(), 0);
}

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
	if (!find_cell(&reply_key, &held)) {
		note_reply(&reply_key, beat);
		return PASS;
	}
	if (is_own_note(&held, &reply_key)) {
		held.state->seen = beat;
		if (state_of(&held) == STATE_TIME_WAIT)
			set_state(&held, STATE_TIME_WAIT, STATE_ESTABLISHED);
		return PASS;
	}
	if (!(kind_of(&held) & CELL_REPLY) || kind_of(&held) & CELL_SIDE)
		return PASS;
	if (!is_idle(&held, beat))
		return translate_direct(skb, &p);
	/* A finished flow's leftover must not catch the replies of this conversation. */
	end_flow(&held, END_REPLACED);
	note_reply(&reply_key, beat);
	return PASS;
}
