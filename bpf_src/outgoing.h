/* Packets that go out and belong to no flow, from an address that is also a service's, or the
 * node's: conversations of the node's own, or of a pod behind the node's masquerading, whose
 * replies are no service traffic; and datagrams with which a server of the node answers a service's
 * client from another of the node's addresses than it was called by. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "address.h"
#include "config.h"
#include "frontend.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "beat.h"
#include "ending.h"
#include "tailcall.h"
#include "flow.h"
#include "established.h"
#include "nat.h"

INLINE u32 answer_timeout(const struct config *c, u8 proto)
{
	return proto == IPPROTO_TCP ? c->established_timeout : c->datagram_stream_timeout;
}

/* Was a packet with these ends, turned round, sent from here a while ago? Datagrams keep the note
 * only by going out: who is outside must not hold a tuple by calling again and again, when what it
 * was noted for is long over. TCP that gets here begins nothing, and is noted by its SYN alone. */
INLINE bool is_answer(const struct flow_key *key)
{
	const struct config *c = get_config();
	struct found note;
	u32 beat = now();

	if (!c || !find_cell(key, &note) || kind_of(&note) != CELL_NOTE ||
	    is_older(beat, note.state->seen, answer_timeout(c, key->proto)))
		return false;
	if (key->proto == IPPROTO_TCP)
		note.state->seen = beat;
	return true;
}

/* Are the replies to this packet to be told from new traffic to a service? TCP tells by itself
 * where the node has the address. */
INLINE bool is_from_service(const struct packet *p)
{
	struct frontend_key frontend_key;
	struct frontend frontend;

	make_frontend_key(&frontend_key, &p->src, p->sport, p->proto);
	return find_frontend(&frontend_key, &frontend) && !(frontend.flags & FRONTEND_CLUSTER_IP) &&
	       !(p->proto == IPPROTO_TCP && frontend.flags & FRONTEND_SHARED);
}

/* Does it call an endpoint straight, by the node's address: a socket of the node's own, or what is
 * forwarded with that as its source? */
INLINE bool is_of_node(struct __sk_buff *skb, const struct config *c, const struct packet *p)
{
	ip_addr node;

	narrow(&node, NODE_ADDRESS(c));
	return p->origin != ORIGIN_POD && (skb->sk || same_address(&p->src, &node)) &&
	       is_endpoint(&p->dst, p->dport);
}

/* A conversation that begins, or goes on, from a port that is also a service's, or with an
 * endpoint: what comes back is noted. What a client of the service has begun goes before. Only what
 * leaves this node gets here, so nobody outside can take a tuple from a client. If it is the tuple
 * by which a backend answers a masqueraded flow, this one gets another port, as node.h's have. */
INLINE int note_conversation(struct __sk_buff *skb, struct packet *p, u32 beat)
{
	struct ends ends = {.addr = p->dst, .port = p->dport, .client_port = p->sport};
	bool tcp = p->proto == IPPROTO_TCP;
	struct flow_key back;
	struct found held;

	make_key_back(&back, p);
	if (find_cell(&back, &held)) {
		if (kind_of(&held) & CELL_NOTE) {
			held.state->seen = beat;
			return PASS;
		}
		if (!(kind_of(&held) & CELL_SIDE))
			return PASS;
		if (!is_idle(&held, beat) && state_of(&held) != STATE_TIME_WAIT) {
			handoff(skb)->turn = 0;
			handoff(skb)->backend = 0;
			handoff(skb)->service = 0;
			p->origin = ORIGIN_NODE;
			save_packet(skb, p);
			return hand_to(skb, FAMILY_PROGRAM(NODE_FLOW));
		}
		end_flow(&held, END_REPLACED);
	}
	/* Of a socket the kernel tells whoever looks for a port (masquerade.h). */
	if (skb->sk && !is_from_service(p))
		return PASS;
	add_note(&back, tcp ? STATE_ESTABLISHED : STATE_DATAGRAM, &ends, tcp ? 0 : CELL_REPLIED,
		 beat);
	return PASS;
}

/* A datagram to a pod that belongs to no flow, from what is also some service's endpoint: if the
 * pod calls that service later, with the port that this one was sent to, the replies would have the
 * tuple that this conversation has (SIP, and whoever else uses one port for both). */
INLINE void note_incoming(const struct packet *p, u32 beat)
{
	struct flow_key key;

	if (p->origin != ORIGIN_POD || p->proto == IPPROTO_TCP || p->fragment == FRAGMENT_LATER ||
	    !is_endpoint(&p->src, p->sport))
		return;
	make_key(&key, p);
	note_reply(&key, beat);
}

/* A server on the node that is bound to all addresses answers from the one that the route to the
 * client has, while the flow is to its endpoint's address, the node's primary one. */
INLINE bool find_by_endpoint(struct __sk_buff *skb, const struct packet *p, struct found *f)
{
	const struct config *c = get_config();
	struct flow_key key;

	if (p->proto != IPPROTO_UDP || !skb->sk || !c)
		return false;
	make_key(&key, p);
	narrow(&key.src, NODE_ADDRESS(c));
	return find_cell(&key, f) && kind_of(f) & CELL_REPLY &&
	       !(kind_of(f) & (CELL_DIRECT | CELL_NOTE | CELL_NODE));
}

/* The program for what belongs to no flow by its own addresses. */
INLINE int outgoing(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	u32 beat = now();
	struct ends ends;
	struct packet p;
	struct found f;

	if (!restore_packet(skb, &p))
		return PASS;
	if (find_by_endpoint(skb, &p, &f)) {
		if (!read_ends(&f, &ends))
			return DROP;
		follow(&p, &f, skb->len - p.l3, beat);
		return translate(skb, &p, true, &ends.addr, ends.port, ends.client_port);
	}
	/* A server of the node may be an endpoint that calls somebody, as a pod may. */
	if (is_from_service(&p) || (c && is_of_node(skb, c, &p)))
		return note_conversation(skb, &p, beat);
	note_incoming(&p, beat);
	return PASS;
}
