/* A packet of a flow that is known: what almost every packet is. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "frontend.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "tailcall.h"
#include "flow.h"
#include "tcp.h"
#include "nat.h"
#include "select.h"

/* A flow's reply entry fell out of the LRU table while the flow lives: put it back, in place of the
 * `note` that its next reply left then. */
INLINE void restore_reply(struct flow_key *pair_key, const struct flow_key *key,
			  const struct flow *f, u32 tick, struct flow *note)
{
	struct flow reply = *f;

	reply.addr = key->dst;
	reply.port = key->dport;
	reply.client_port = key->sport;
	reply.flags |= FLOW_REPLY;
	reply.seen = tick;
	reply.beat = beat();
	reply.tick_packets = 0;
	reply.tick_bytes = 0;
	reply.packets = 0;
	reply.bytes = 0;
	if (note)
		*note = reply;
	else
		add_flow(pair_key, &reply);
}

/* Once per beat of a UDP flow: the two entries keep each other from being forgotten, and agree on
 * whether the backend ever answered. False when the flow had timed out. */
INLINE bool refresh_datagram(struct flow_key *key, struct flow *f, u32 tick)
{
	struct flow_key pair_key;
	struct flow *pair;

	make_pair_key(&pair_key, key, f);
	pair = find_flow(&pair_key);
	if (f->flags & FLOW_REPLY) {
		if (pair && is_pair(pair, key, f))
			pair->flags |= FLOW_REPLIED;
		f->flags |= FLOW_REPLIED;
		return true;
	}
	if (entry_idle(f, tick) && (!pair || entry_idle(pair, tick)))
		return false;
	if (!pair || is_note(pair, &pair_key))
		restore_reply(&pair_key, key, f, tick, pair);
	return !(f->flags & FLOW_MASQUERADED) || has_sides(key, f);
}

/* Must the packet begin anew, although a flow was found? A SYN on a connection that lives, with a
 * backend that serves, goes there: the two ends find out what it is. */
INLINE bool starts_over(struct packet *p, struct flow_key *key, struct flow *f)
{
	if (f->state == FLOW_SIDE || f->flags & FLOW_REPLY)
		return false;
	if (p->proto == IPPROTO_TCP && !starts_connection(p))
		return false;
	if (!(f->flags & FLOW_DIRECT) && !still_serving(f))
		return true;
	return p->proto == IPPROTO_TCP && finished(key, f, now());
}

/* What established() leaves to others, beside verdicts: the flow is over, begin anew; or the packet
 * is for upkeep(). Each is handed on in one place per program, which keeps them small. */
#define BEGIN_ANEW (-1000)
#define UPKEEP_DUE (-1001)

/* Follows and translates a packet of flow `f`. */
INLINE int established(struct __sk_buff *skb, struct packet *p, struct flow_key *key,
		       struct flow *f, bool reply)
{
	u16 now_beat = beat();

	if (!reply && starts_over(p, key, f))
		return BEGIN_ANEW;
	if (f->beat != now_beat || f->tick_bytes >> 31) {
		if (f->state == FLOW_DATAGRAM)
			return UPKEEP_DUE;
		flush_counts(f);
		f->seen = now();
		f->beat = now_beat;
	}
	if (p->proto == IPPROTO_TCP && p->fragment != FRAGMENT_LATER &&
	    !tcp_unremarkable(p, f, reply))
		return hand_to_track(skb, reply);
	count_packet(f, skb->len - p->l3);
	return translate(skb, p, reply, &f->addr, f->port, f->client_port);
}

/* A datagram to a pod that belongs to no flow, from what is also some service's endpoint: if the
 * pod calls that service later, with the port that this one was sent to, the replies would have the
 * tuple that this conversation has (SIP, and whoever else uses one port for both). */
INLINE int note_incoming(const struct packet *p, struct flow_key *key, u32 tick)
{
	if (p->fragment != FRAGMENT_LATER && is_endpoint(&p->src, p->sport))
		note_tuple(key, FLOW_DATAGRAM, tick);
	return PASS;
}

/* The program for the first packet of a datagram flow in a beat, and for datagrams to pods that
 * belong to none. */
INLINE int upkeep(struct __sk_buff *skb)
{
	bool reply = handoff(skb)->reply;
	struct flow_key key;
	struct packet p;
	struct flow *f;
	u32 tick = now();

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
	f = find_flow(&key);
	if (!f)
		return reply ? note_incoming(&p, &key, tick) : PASS;
	if (!refresh_datagram(&key, f, tick))
		return begin_anew(skb, &p);
	flush_counts(f);
	f->seen = tick;
	f->beat = beat();
	count_packet(f, skb->len - p.l3);
	return send_on(skb, &p, translate(skb, &p, reply, &f->addr, f->port, f->client_port));
}
