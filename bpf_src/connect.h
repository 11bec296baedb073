/* A new flow to a service: whose is the packet, may it begin a flow, and which backend does it get?
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
#include "nat.h"
#include "algorithm.h"
#include "frontend.h"
#include "select.h"
#include "decided.h"
#include "owned.h"
#include "outgoing.h"

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

/* Does such a packet go to the endpoint whole instead (dsr.h)? From a device without link header
 * there is no way on: the kernel redirects no frame of theirs to a next hop. */
INLINE bool goes_by_dsr(const struct packet *p, u32 frontend_flags, const struct choice *choice)
{
	return choice->dsr && p->origin == ORIGIN_NET && p->l3 &&
	       !(frontend_flags & FRONTEND_CLUSTER_IP) && !same_address(&p->src, &choice->addr);
}

/* To the program that knows all algorithms. */
INLINE int hand_to_choose(struct __sk_buff *skb, const struct frontend *frontend)
{
	handoff(skb)->service = frontend->service;
	handoff(skb)->frontend_flags = frontend->flags;
	return hand_to(skb, FAMILY_PROGRAM(CHOOSE));
}

INLINE int connect_service(struct __sk_buff *skb, struct packet *p, const struct frontend *frontend,
			   bool algorithms)
{
	struct request request = {.service = frontend->service, .frontend_flags = frontend->flags};
	const struct config *c = get_config();
	struct choice choice = {};
	bool masquerade, dsr;
	int reason;

	if (!c)
		return DROP;
	widen(&request.client, &p->src);
	request.outside = p->origin == ORIGIN_NET;
	request.ports = p->sport | (u32)p->dport << 16;
	reason = choose_backend(&request, algorithms, &choice);
	if (reason == CHOICE_ELSEWHERE)
		return hand_to_choose(skb, frontend);
	if (reason == REASON_NO_ENDPOINT)
		return refuse(skb, reason);
	if (reason)
		return drop(skb, reason);
	masquerade = needs_masquerade(c, p, frontend->flags, &choice);
	dsr = masquerade && goes_by_dsr(p, frontend->flags, &choice);
	handoff(skb)->service = choice.service;
#ifdef TRACE
	handoff(skb)->masqueraded = dsr ? TRACED_DSR : masquerade ? TRACED_MASQUERADED : 0;
	count(skb, REASON_FORWARDED);
	return translate(skb, p, false, &choice.addr, choice.port, p->sport);
#else
	handoff(skb)->backend = choice.backend;
	if (dsr)
		return hand_to(skb, FAMILY_PROGRAM(OPEN_DSR));
	return hand_to(skb, masquerade ? FAMILY_PROGRAM(MASQUERADE) : FAMILY_PROGRAM(OPEN));
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
		return drop(skb, REASON_UNALLOCATED);
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
		return drop(skb, REASON_NO_FLOW_RESET);
	}
	return refuse(skb, REASON_NO_FLOW_RESET);
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
	if (is_martian_source(&p.src))
		return leave_to_stack(skb);
	make_frontend_key(&frontend_key, &p.dst, p.dport, p.proto);
	if (!find_frontend(&frontend_key, &frontend) || frontend.flags & FRONTEND_SOCKETS)
		return no_frontend(skb, &p);
	if (p.proto == IPPROTO_TCP && !starts_connection(&p) && picks_up(frontend.service))
		return hand_to_choose(skb, &frontend);
	if (is_nodes_own(skb, &p, &key, &frontend_key, frontend.flags))
		return leave_to_stack(skb);
	if (p.proto == IPPROTO_TCP && !starts_connection(&p))
		return no_flow(skb, &p);
	return connect_service(skb, &p, &frontend, false);
}

/* Is TCP in mid-stream that has no flow the node's own, although the service picks up such? */
INLINE bool is_own_midstream(struct __sk_buff *skb, const struct packet *p, struct flow_key *key,
			     u32 frontend_flags)
{
	struct addr client, called;

	if (!(frontend_flags & FRONTEND_CLUSTER_IP) && is_answer(key))
		return true;
	if (!(frontend_flags & FRONTEND_SHARED))
		return false;
	widen(&client, &p->src);
	widen(&called, &p->dst);
	return is_bound(skb, &client, p->sport, &called, p->dport, p->proto);
}

/* The same for a service that does not take just any endpoint, and for what such a one picks up:
 * TCP in mid-stream goes to whom the table names, which is whom the node named that had the flow. A
 * RST is not worth a flow, and what kube-proxy may own is its own. */
INLINE int choose(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct frontend frontend = {};
	struct flow_key key;
	struct packet p;

	if (!restore_packet(skb, &p) || !c)
		return DROP;
	make_key(&key, &p);
	frontend.service = handoff(skb)->service;
	frontend.flags = handoff(skb)->frontend_flags;
#ifndef TRACE /* whose packets all begin a connection */
	if (p.proto == IPPROTO_TCP && !starts_connection(&p)) {
		if (is_own_midstream(skb, &p, &key, frontend.flags))
			return leave_to_stack(skb);
		if (c->flags & CONFIG_PASS_MIDSTREAM || p.tcp_flags & TCP_RST)
			return no_flow(skb, &p);
	}
#endif
	return connect_service(skb, &p, &frontend, true);
}
