/* A new flow whose backend is to see the node's address instead of the client's, so that the reply
 * comes back here: from outside to a backend on another node, and a pod that reaches itself. The
 * destination is written where the packet comes in, the source where it leaves (the IPv4 stack
 * drops what enters with one of the node's own addresses as source); so there are two more entries:
 *
 *   client:cp -> service:sp      coming in: becomes client:np -> backend:bp (the flow's entry)
 *   client:np -> backend:bp      going out: becomes node:np -> backend:bp (side entry)
 *   backend:bp -> node:np        coming in: becomes backend:bp -> client:np (side entry)
 *   backend:bp -> client:np      going out: becomes service:sp -> client:cp (the flow's reply
 * entry)
 *
 * np is of the port range that the node uses for nothing else. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "config.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "flow.h"
#include "select.h"
#include "connect.h"

/* The node's address of this family; the service's own where the agent knows none. */
INLINE void masquerade_source(ip_addr *source, const struct config *c, const struct packet *p)
{
	narrow(source, NODE_ADDRESS(c));
	if (is_zero(source))
		*source = p->dst;
}

INLINE void make_side_key(struct flow_key *key, u8 proto, const ip_addr *src, u16 sport,
			  const ip_addr *dst, u16 dport)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = *src;
	key->dst = *dst;
	key->sport = sport;
	key->dport = dport;
	key->proto = proto;
}

/* Was the flow closed that has a port, given its entry for what comes in, and only rests? Sets the
 * key of its reply entry. */
INLINE struct flow *find_closed(struct flow_key *back_key, struct flow_key *reply_key)
{
	struct flow *back = find_flow(back_key), *reply;

	if (!back || back->state != FLOW_SIDE)
		return 0;
	*reply_key = *back_key;
	reply_key->dst = back->addr;
	reply_key->dport = back->port;
	reply = find_flow(reply_key);
	return reply && reply->state == FLOW_TIME_WAIT ? reply : 0;
}

/* Makes room under its port: a backend that still waits for the last packet may cost the next
 * connection a second. False if another CPU is at the same: whoever deletes the reply entry has it.
 */
INLINE bool evict_closed(struct flow_key *back_key)
{
	struct flow_key key, reply_key;
	struct flow *reply = find_closed(back_key, &reply_key), *f;

	if (!reply)
		return false;
	make_pair_key(&key, &reply_key, reply);
	f = find_flow(&key);
	if (f && is_pair(f, &reply_key, reply))
		delete_flow(&key);
	if (!delete_flow(&reply_key))
		return false;
	make_side_key(&key, reply_key.proto, &reply_key.dst, reply_key.dport, &reply_key.src,
		      reply_key.sport);
	delete_flow(&key);
	delete_flow(back_key);
	return true;
}

/* Adds both side entries under a port, which may be taken: -EEXIST. */
INLINE int add_sides_at(const struct packet *p, struct choice *choice, const ip_addr *node,
			u16 port, struct flow_key *key)
{
	struct flow side = {.state = FLOW_SIDE, .service = choice->service, .seen = now()};
	int error;

	make_side_key(key, p->proto, &choice->addr, choice->port, node, port);
	side.addr = p->src;
	side.port = port;
	side.client_port = choice->port;
	error = add_flow(key, &side);
	if (error)
		return error;
	make_side_key(key, p->proto, &p->src, port, &choice->addr, choice->port);
	side.addr = *node;
	side.flags = FLOW_REPLY;
	error = add_flow(key, &side);
	if (!error) {
		choice->client_port = port;
		return 0;
	}
	make_side_key(key, p->proto, &choice->addr, choice->port, node, port);
	delete_flow(key);
	return error;
}

/* Adds both side entries under a port that is free; sets the choice's client port. UDP flows hold
 * theirs until they time out, so many may be taken: the next ones are tried after a random one, and
 * if all are taken, those that only rest. */
INLINE int add_sides(struct __sk_buff *skb, struct packet *p, struct choice *choice)
{
	const struct config *c = get_config();
	u32 span, start = bpf_get_prandom_u32() >> 1;
	bool to_itself = same_address(&p->src, &choice->addr);
	struct flow_key key, reply_key;
	int error = -EEXIST, i;
	ip_addr node;
	u16 port = 0;

	if (!c)
		return -ENOENT;
	span = c->port_max - c->port_min + 1;
	masquerade_source(&node, c, p);
#pragma clang loop unroll(disable)
	for (i = 0; i < MASQUERADE_PORT_TRIES && error == -EEXIST; i++) {
		port = htons(c->port_min + (start + i) % span);
		if (!to_itself || port != choice->port)
			error = add_sides_at(p, choice, &node, port, &key);
	}
	if (error == -EEXIST) {
#pragma clang loop unroll(disable)
		for (i = 0; i < MASQUERADE_PORT_TRIES; i++) {
			port = htons(c->port_min + (start + i) % span);
			make_side_key(&key, p->proto, &choice->addr, choice->port, &node, port);
			if (find_closed(&key, &reply_key))
				break;
		}
		if (!(to_itself && port == choice->port) && evict_closed(&key))
			error = add_sides_at(p, choice, &node, port, &key);
	}
	if (error)
		count(skb, error == -EEXIST ? REASON_PORTS_EXHAUSTED : REASON_FLOWS_FULL);
	return error;
}

INLINE int masquerade(struct __sk_buff *skb)
{
	u32 id = handoff(skb)->backend & BACKEND_ID_MASK;
	struct backend *b = backends.lookup(&id);
	struct choice choice = {};
	struct flow_key key;
	struct packet p;

	if (!b || !restore_packet(skb, &p) || p.fragment == FRAGMENT_LATER)
		return DROP;
	take_backend(&choice, b, handoff(skb)->backend, handoff(skb)->service);
	choice.flags = FLOW_MASQUERADED;
	make_key(&key, &p);
	if (add_sides(skb, &p, &choice))
		return DROP;
	return open_and_forward(skb, &p, &key, &choice);
}
