/* A new flow to a service: choose a backend, reserve the reply's tuple, remember both directions.
 *
 * Two flows of one client may meet in the tuple their replies carry (one source port towards two
 * services with a common backend, or towards a service and directly to its backend). Whoever comes
 * second gets another source port, as the kernel's conntrack does. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
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
#include "tailcall.h"
#include "flow.h"
#include "nat.h"
#include "frontend.h"
#include "select.h"
#include "refuse.h"
#include "owned.h"
#include "outgoing.h"

/* A source port to try: any of the range that the node keeps for this, or for its own flows.
 * Network byte order. */
INLINE u16 random_port(const struct config *c, bool node)
{
	u32 first = node ? c->port_max + 1 : c->port_min;
	u32 span = (node ? c->node_port_max : c->port_max) - first + 1;

	return htons(first + (u32)((u64)bpf_get_prandom_u32() * span >> 32));
}

/* May the entry that holds our reply tuple be taken over? Either it is this very flow's leftover,
 * or it has ended long ago: after a close the backend may hold the tuple in TIME_WAIT, and after a
 * reset a new SYN may arrive there first. As a last resort a close is enough; a reset never is, it
 * may be forged. A note of a direct conversation only goes when that was idle for long. */
INLINE bool may_take_over(const struct flow_key *key, const struct flow *held,
			  const struct flow *reply, u32 tick, bool last_resort)
{
	if (held->state == FLOW_SIDE) /* goes with its flow, which only the sweep can find */
		return false;
	if (!(held->flags & FLOW_REPLY))
		return entry_idle(held, tick);
	if (same_address(&held->addr, &reply->addr) && held->port == reply->port &&
	    held->client_port == reply->client_port)
		return true;
	/* Both side entries under this port are ours, so those of the one that holds it are gone.
	 */
	if (held->flags & reply->flags & FLOW_MASQUERADED)
		return true;
	return (last_resort && held->state == FLOW_TIME_WAIT) || idle(key, held, tick);
}

/* Adds the reply entry under its key, taking over a leftover. 0, or -EEXIST when a live flow has
 * it. */
INLINE int reserve_reply(struct flow_key *key, struct flow *reply, u32 tick, bool last_resort)
{
	struct table_state *state = get_table_state();
	struct flow *held;
	int error;

	/* What goes straight to the backend is noted in the LRU table, also for TCP (direct.h), and
	 * handshakes may be there. */
	if (key->proto == IPPROTO_TCP && state && forgettable(state)) {
		held = FLOWS_LRU.lookup(key);
		if (held && !(held->flags & FLOW_DIRECT && entry_idle(held, tick)))
			return -EEXIST;
	}
	error = add_flow(key, reply);

	if (error != -EEXIST)
		return error;
	held = find_flow(key);
	if (!held || !may_take_over(key, held, reply, tick, last_resort))
		return -EEXIST;
	*held = *reply;
	return 0;
}

/* Sets a client port under which nothing is known of the reply tuple, if one is found; of the range
 * that the key's is of. */
INLINE void pick_port(const struct config *c, struct flow_key *key)
{
	bool node = is_node_port(c, key->dport);
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < SOURCE_PORT_TRIES; i++) {
		key->dport = random_port(c, node);
		if (!FLOWS_LRU.lookup(key) && !FLOWS.lookup(key))
			break;
	}
}

/* Reserves the reply's tuple: with the client port in the key if it is free, else with another. */
INLINE int reserve_port(struct __sk_buff *skb, struct flow_key *key, struct flow *reply, u32 tick)
{
	const struct config *c = get_config();
	int error = reserve_reply(key, reply, tick, false);

	/* A masqueraded flow has its port already, in the entries at its sides. */
	if (error == -EEXIST && c && !(reply->flags & FLOW_MASQUERADED)) {
		pick_port(c, key);
		error = reserve_reply(key, reply, tick, true);
		if (!error)
			count(skb, REASON_SOURCE_TRANSLATED);
	}
	if (error)
		count(skb, error == -EEXIST ? REASON_PORTS_EXHAUSTED : REASON_FLOWS_FULL);
	return error;
}

/* The forward entry `f` could not be added: takes back what was made for it. If another CPU opened
 * the same flow, to the same backend, the reply entry is that one's by now; sides never are. */
INLINE void take_back(struct flow_key *key, const struct flow *f, struct flow_key *reply_key)
{
	struct flow *other = find_flow(key);
	struct flow_key out_key, back_key;

	if (!other || !replies_by(other, reply_key))
		delete_flow(reply_key);
	if (f->flags & FLOW_MASQUERADED && find_sides(key, f, &out_key, &back_key)) {
		delete_flow(&out_key);
		delete_flow(&back_key);
	}
}

/* Remembers the flow in both directions: first the reply's tuple, which may be taken, then the
 * forward entry. `choice` tells where it goes and learns the client port. 0, -EEXIST when another
 * CPU was quicker, or an error that was counted. */
INLINE int open_flow(struct __sk_buff *skb, struct packet *p, struct flow_key *key,
		     struct choice *choice)
{
	struct flow_key reply_key = {};
	struct flow f = {};
	u32 tick = now();
	int error;

	reply_key.src = choice->addr;
	reply_key.sport = choice->port;
	reply_key.dst = p->src;
	reply_key.dport = choice->client_port;
	reply_key.proto = p->proto;
	f.addr = p->dst;
	f.port = p->dport;
	f.client_port = p->sport;
	f.backend = choice->backend;
	f.service = choice->service;
	f.seen = tick;
	f.beat = beat();
	f.state = p->proto == IPPROTO_TCP ? FLOW_SYN : FLOW_DATAGRAM;
	f.flags = choice->flags | FLOW_REPLY;
	error = reserve_port(skb, &reply_key, &f, tick);
	if (error)
		return error;

	choice->client_port = reply_key.dport;
	f.addr = choice->addr;
	f.port = choice->port;
	f.client_port = choice->client_port;
	f.flags = choice->flags;
	count_packet(&f, skb->len - p->l3);
	error = add_flow(key, &f);
	if (error) {
		take_back(key, &f, &reply_key);
		if (error != -EEXIST)
			count(skb, REASON_FLOWS_FULL);
		return error;
	}
	if (!(choice->flags & FLOW_DIRECT))
		count_connection(choice->service);
	return 0;
}

INLINE int open_and_forward(struct __sk_buff *skb, struct packet *p, struct flow_key *key,
			    struct choice *choice)
{
	int error = open_flow(skb, p, key, choice);

	if (error == -EEXIST) {
		/* The other CPU opened this flow just now (a SYN sent twice): use that one. */
		struct flow *f = find_flow(key);

		if (!f)
			return DROP;
		choice->addr = f->addr;
		choice->port = f->port;
		choice->client_port = f->client_port;
	} else if (error) {
		return DROP;
	}
	count(skb, REASON_FORWARDED);
	return translate(skb, p, false, &choice->addr, choice->port, choice->client_port);
}

/* Would the reply not come back through this node, or not be told from the pod's own? Masquerade
 * then; never where Kubernetes promises the client's address. */
INLINE bool needs_masquerade(const struct config *c, const struct packet *p, u32 frontend_flags,
			     const struct choice *choice)
{
	if (same_address(&p->src, &choice->addr))
		return true;
	if (choice->local || p->origin == ORIGIN_NODE)
		return false;
	if (!(frontend_flags & FRONTEND_CLUSTER_IP))
		return p->origin == ORIGIN_NET;
	if (c->flags & CONFIG_MASQUERADE_ALL)
		return true;
	return p->origin == ORIGIN_NET && POD_CIDR_COUNT(c) && !in_pod_range(c, &p->src);
}

INLINE int connect_service(struct __sk_buff *skb, struct packet *p, struct flow_key *key,
			   const struct frontend *frontend)
{
	struct request request = {.service = frontend->service, .frontend_flags = frontend->flags};
	struct choice choice = {.client_port = p->sport};
	const struct config *c = get_config();
	bool masquerade;
	int reason;

	if (!c)
		return DROP;
	widen(&request.client, &p->src);
	request.outside = p->origin == ORIGIN_NET;
	reason = choose_backend(&request, &choice);
	if (reason == REASON_NO_ENDPOINT)
		return refuse(skb, reason);
	if (reason) {
		count(skb, reason);
		return DROP;
	}
	masquerade = needs_masquerade(c, p, frontend->flags, &choice);
	handoff(skb)->service = choice.service;
#ifdef TRACE
	handoff(skb)->masqueraded = masquerade;
	count(skb, REASON_FORWARDED);
	return translate(skb, p, false, &choice.addr, choice.port, choice.client_port);
#else
	if (!masquerade)
		return open_and_forward(skb, p, key, &choice);
	handoff(skb)->backend = choice.backend;
	return hand_to(skb, FAMILY_PROGRAM(MASQUERADE));
#endif
}

INLINE int leave_to_stack(struct __sk_buff *skb)
{
	count(skb, REASON_LEFT_TO_STACK);
	return PASS;
}

/* Is this packet, which belongs to no flow, the node's own business, although a service has the
 * address and port? At a ClusterIP that the node has itself, what one of its sockets is bound to
 * is; at any other address, what answers a conversation of the node's own. TCP that begins nothing
 * is enough to tell where the node has the address: the stack resets what nobody has. */
INLINE bool is_nodes_own(struct __sk_buff *skb, const struct packet *p, struct flow_key *key,
			 const struct frontend_key *called, u32 frontend_flags)
{
	struct addr client = {};
	bool begins = p->proto != IPPROTO_TCP || starts_connection(p);

	if (frontend_flags & FRONTEND_SHARED && !begins)
		return true;
	if (frontend_flags & FRONTEND_CLUSTER_IP) {
		if (!(frontend_flags & FRONTEND_SHARED))
			return false;
		if (p->proto != IPPROTO_TCP)
			widen(&client, &p->src);
		return is_bound(skb, &client, p->proto == IPPROTO_TCP ? 0 : p->sport, &called->addr,
				p->dport, p->proto);
	}
#ifdef TRACE
	return false; /* every packet of it begins a flow of somebody else's */
#else
	return (p->proto != IPPROTO_TCP || !begins) && is_answer(key);
#endif
}

/* Nobody serves this port. Ours to refuse only on a live ClusterIP that is nobody else's. */
INLINE int no_frontend(struct __sk_buff *skb, struct packet *p)
{
	const struct config *c = get_config();
	u32 flags = address_flags(&p->dst);

	if (flags & FRONTEND_SHARED)
		return leave_to_stack(skb);
	if (flags & FRONTEND_ADDRESS)
		return refuse(skb, REASON_UNKNOWN_PORT);
	if (c && !flags && !(c->flags & CONFIG_PASS_MIDSTREAM) && in_service_range(c, &p->dst)) {
		count(skb, REASON_UNALLOCATED);
		return DROP;
	}
	count(skb, REASON_NOT_SERVICE);
	return PASS;
}

/* TCP that does not begin a connection and has no flow. */
INLINE int no_flow(struct __sk_buff *skb, struct packet *p)
{
	const struct config *c = get_config();

	if (c && c->flags & CONFIG_PASS_MIDSTREAM) {
		count(skb, REASON_NO_FLOW_PASSED);
		return PASS;
	}
	if (p->tcp_flags & TCP_RST) { /* a reset is never answered with one */
		count(skb, REASON_NO_FLOW_RESET);
		return DROP;
	}
	return refuse(skb, REASON_NO_FLOW_RESET);
}

/* Has another CPU opened it just now, in place of the one that this packet had found? */
INLINE bool opened_meanwhile(const struct flow_key *key, const struct flow *f)
{
	if (f->state != FLOW_SYN && f->state != FLOW_DATAGRAM)
		return false;
	return still_serving(f) && !entry_idle(f, now()) &&
	       (!(f->flags & FLOW_MASQUERADED) || has_sides(key, f));
}

/* The flow that stands in the way of a new one: finished TCP, or UDP whose backend went away, whose
 * replies may still be under way and keep their entry. Those of a masqueraded flow need all four,
 * and its port must not stay half taken. */
INLINE void leave_old_flow(struct __sk_buff *skb, struct flow_key *key)
{
	struct flow *f = find_flow(key);

	if (!f || opened_meanwhile(key, f))
		return;
	if (f->state == FLOW_DATAGRAM && !still_serving(f))
		count(skb, REASON_FLOW_MOVED);
	if (f->state != FLOW_DATAGRAM || f->flags & FLOW_MASQUERADED) {
		end_entries(key, f);
		return;
	}
	flush_counts(f);
	delete_flow(key);
}

INLINE int connect(struct __sk_buff *skb)
{
	struct frontend_key frontend_key;
	struct frontend frontend;
	struct flow_key key;
	struct packet p;

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
#ifndef TRACE
	if (handoff(skb)->old_flow)
		leave_old_flow(skb, &key);
#endif
	if (is_martian_source(&p.src))
		return leave_to_stack(skb);
	make_frontend_key(&frontend_key, &p.dst, p.dport, p.proto);
	if (!find_frontend(&frontend_key, &frontend) || frontend.flags & FRONTEND_SOCKETS)
		return no_frontend(skb, &p);
	if (is_nodes_own(skb, &p, &key, &frontend_key, frontend.flags))
		return leave_to_stack(skb);
	if (p.proto == IPPROTO_TCP && !starts_connection(&p))
		return no_flow(skb, &p);
	return connect_service(skb, &p, &key, &frontend);
}
