/* Traffic of a pod straight to an address and port that is also some service's backend. If the same
 * client port is in use for a flow through that service, the replies could not be told apart: the
 * direct flow then gets another source port. If not, its tuple is noted (in the LRU table, by a SYN
 * or the first datagram), and it is the service's flow that gets another port when it comes later.
 */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "address.h"
#include "config.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "tailcall.h"
#include "flow.h"
#include "tcp.h"
#include "nat.h"
#include "select.h"
#include "connect.h"

INLINE int translate_direct(struct __sk_buff *skb, struct packet *p, struct flow_key *key,
			    struct flow *held)
{
	struct table_state *state = get_table_state();
	struct choice choice = {
	    .service = held->service, .backend = held->backend, .flags = FLOW_DIRECT};

	if (!state)
		return PASS;
	*has_direct(state) = 1;
	choice.addr = p->dst;
	choice.port = p->dport;
	choice.client_port = p->sport;
	return open_and_forward(skb, p, key, &choice);
}

/* A finished flow's leftover must not catch the replies of this connection. */
INLINE void drop_leftover(struct flow_key *reply_key, struct flow *held)
{
	struct flow_key forward_key;
	struct flow *forward;

	make_pair_key(&forward_key, reply_key, held);
	forward = find_flow(&forward_key);
	if (forward && is_pair(forward, reply_key, held))
		delete_flow(&forward_key);
	delete_flow(reply_key);
}

/* Nobody uses this tuple: it is this conversation's from now on. */
INLINE void note_direct(struct table_state *state, struct flow_key *reply_key, u32 tick)
{
	bool tcp = reply_key->proto == IPPROTO_TCP;

	if (tcp)
		*direct_notes(state) = NOTES_POSSIBLE;
	note_tuple(reply_key, tcp ? FLOW_ESTABLISHED : FLOW_DATAGRAM, tick);
}

INLINE int direct(struct __sk_buff *skb)
{
	struct table_state *state = get_table_state();
	struct flow_key key, reply_key = {};
	struct flow *f;
	struct packet p;
	u32 tick = now();

	if (!restore_packet(skb, &p) || !state)
		return PASS;
	/* To itself a pod sends nothing this way; its tuple may be that of a masqueraded flow. */
	if (same_address(&p.src, &p.dst))
		return PASS;
	make_key(&key, &p);
	f = *has_direct(state) ? find_flow(&key) : 0;
	if (f && !(starts_connection(&p) && finished(&key, f, tick))) {
		ip_addr addr = f->addr;
		u16 port = f->port, client_port = f->client_port;

		if (p.proto == IPPROTO_TCP && !tcp_unremarkable(&p, f, false))
			return hand_to_track(skb, false);
		f->seen = tick;
		return translate(skb, &p, false, &addr, port, client_port);
	}
	if (f)
		end_entries(&key, f);
	else if (p.proto == IPPROTO_TCP && !starts_connection(&p))
		return PASS;
	reply_key.src = p.dst;
	reply_key.sport = p.dport;
	reply_key.dst = p.src;
	reply_key.dport = p.sport;
	reply_key.proto = p.proto;
	f = find_flow(&reply_key);
	if (f && is_note(f, &reply_key)) {
		f->seen = tick;
		return PASS;
	}
	if (f && f->flags & FLOW_REPLY && idle(&reply_key, f, tick)) {
		drop_leftover(&reply_key, f);
		f = 0;
	}
	if (!f) {
		note_direct(state, &reply_key, tick);
		return PASS;
	}
	if (!(f->flags & FLOW_REPLY) || f->state == FLOW_SIDE)
		return PASS;
	return translate_direct(skb, &p, &key, f);
}
