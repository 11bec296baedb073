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
#include "maps.h"
#include "address.h"
#include "config.h"
#include "frontend.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "tailcall.h"
#include "flow.h"
#include "established.h"
#include "nat.h"

/* Is it worth a look? The established packets of others' TCP have nothing to say here. */
INLINE bool may_be_own(const struct packet *p)
{
	return p->proto != IPPROTO_TCP || starts_connection(p);
}

INLINE u32 answer_timeout(const struct config *c, u8 proto)
{
	return proto == IPPROTO_TCP ? c->established_timeout : c->datagram_stream_timeout;
}

/* Was a packet with these ends, turned round, sent from here a while ago? Datagrams keep the note
 * only by going out: who is outside must not hold a tuple by calling again and again, when what it
 * was noted for is long over. TCP that gets here begins nothing, and is noted by its SYN alone. */
INLINE bool is_answer(struct flow_key *key)
{
	const struct config *c = get_config();
	u32 *seen = ANSWERS.lookup(key), tick;

	if (!seen || !c)
		return false;
	tick = now();
	if (tick - *seen > answer_timeout(c, key->proto))
		return false;
	if (key->proto == IPPROTO_TCP)
		*seen = tick;
	return true;
}

/* A conversation that begins, or goes on, from a port that is also a service's: its replies are to
 * be told from new traffic to the service. TCP tells by itself where the node has the address. What
 * a client of the service has begun goes before. Only what leaves this node gets here, so nobody
 * outside can take a tuple from a client. False if no service has the port. */
INLINE bool note_conversation(struct packet *p)
{
	struct flow_key key = {};
	struct frontend_key frontend_key;
	struct frontend frontend;
	u32 tick = now(), *seen;

	make_frontend_key(&frontend_key, &p->src, p->sport, p->proto);
	if (!find_frontend(&frontend_key, &frontend) || frontend.flags & FRONTEND_CLUSTER_IP ||
	    (p->proto == IPPROTO_TCP && frontend.flags & FRONTEND_SHARED))
		return false;
	key.src = p->dst;
	key.dst = p->src;
	key.sport = p->dport;
	key.dport = p->sport;
	key.proto = p->proto;
	seen = ANSWERS.lookup(&key);
	if (seen)
		*seen = tick;
	else if (!find_flow(&key))
		ANSWERS.update(&key, &tick);
	return true;
}

/* A server on the node that is bound to all addresses answers from the one that the route to the
 * client has, while the flow is to its endpoint's address, the node's primary one. Sets the key of
 * that flow's reply entry. */
INLINE struct flow *find_by_endpoint(struct __sk_buff *skb, const struct packet *p,
				     struct flow_key *key)
{
	const struct config *c = get_config();
	struct flow *f;

	if (p->proto != IPPROTO_UDP || !skb->sk || !c)
		return 0;
	make_key(key, p);
	narrow(&key->src, NODE_ADDRESS(c));
	f = find_flow(key);
	return f && f->flags & FLOW_REPLY && !(f->flags & FLOW_DIRECT) ? f : 0;
}

/* The program for what belongs to no flow by its own addresses. */
INLINE int outgoing(struct __sk_buff *skb)
{
	struct flow_key key;
	struct packet p;
	struct flow *f;
	u32 tick = now();

	if (!restore_packet(skb, &p))
		return PASS;
	f = find_by_endpoint(skb, &p, &key);
	if (!f) {
		/* A server of the node may be an endpoint that calls somebody, as a pod may. Not
		 * both: a note among the flows would be found before this program is asked again.
		 */
		if (!note_conversation(&p) && p.origin == ORIGIN_POD && p.proto != IPPROTO_TCP)
			return hand_to_upkeep(skb, true);
		return PASS;
	}
	if (f->beat != beat()) {
		refresh_datagram(&key, f, tick);
		flush_counts(f);
		f->seen = tick;
		f->beat = beat();
	}
	count_packet(f, skb->len - p.l3);
	return translate(skb, &p, true, &f->addr, f->port, f->client_port);
}
