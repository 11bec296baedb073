/* A packet on a flow that is over, or whose backend left: it begins another one. What is left of
 * the old one decides nothing about the new one; but its tuple may have to rest. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "beat.h"
#include "ending.h"
#include "stats.h"
#include "tailcall.h"
#include "flow.h"
#include "select.h"
#include "owner.h"

/* A tuple that is not given to others yet, and the cell that keeps it. */
struct rest {
	struct flow_key key;
	struct ends ends;
	u32 state; /* 0: nothing rests */
};

/* The tuple by which the backend knows a flow: it holds that in TIME_WAIT if it closed first, and
 * nobody else's SYN may come there by it. Of datagrams, answers may still be under way. */
INLINE void find_rest(const struct flow_key *key, const struct found *f, struct rest *rest)
{
	struct found reply, out;
	struct ends ends;

	if (goes_whole(kind_of(f)) || !read_ends(f, &ends) || !find_next(f, &reply))
		return;
	if (key->proto == IPPROTO_TCP && !(flags_of(reply.state) & CELL_FIRST))
		return;
	rest->key.src = ends.addr;
	rest->key.sport = ends.port;
	rest->key.dst = key->src;
	rest->key.dport = ends.client_port;
	rest->key.proto = key->proto;
	rest->ends.addr = key->dst;
	rest->ends.port = key->dport;
	rest->ends.client_port = key->sport;
	if (kind_of(f) & CELL_MASQUERADED) {
		if (key->proto != IPPROTO_TCP || !find_next(&reply, &out) ||
		    !read_ends(&out, &ends))
			return;
		rest->key.dst = ends.addr;
	}
	rest->state = key->proto == IPPROTO_TCP ? STATE_TIME_WAIT : STATE_DATAGRAM;
}

/* The program; handoff.generation is the old flow's. Others may have ended it, or opened the new
 * one already. */
INLINE int begin_anew(struct __sk_buff *skb)
{
	struct rest rest = {};
	struct flow_key key;
	struct packet p;
	struct found f;
	bool moved;

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
	if (!find_cell(&key, &f) || HEAD_GENERATION(f.head) != handoff(skb)->generation)
		return hand_to_connect(skb, &p);
	moved = p.proto != IPPROTO_TCP &&
		(!still_serving(f.state->backend, f.state->service) || has_new_owner(&p, &f));
	find_rest(&key, &f, &rest);
	if (end_flow(&f, moved ? END_BACKEND : END_REPLACED)) {
		if (moved)
			count(skb, REASON_FLOW_MOVED);
		if (rest.state)
			add_note(&rest.key, rest.state, &rest.ends, CELL_FIRST, now());
	}
	if (kind_of(&f) & CELL_DIRECT)
		return hand_to(skb, kind_of(&f) & CELL_NODE ? FAMILY_PROGRAM(OUTGOING)
							    : FAMILY_PROGRAM(DIRECT));
	return hand_to_connect(skb, &p);
}
