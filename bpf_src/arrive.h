/* DSR, at the endpoint's node: a packet to a service that another node has sent inside an outer
 * header (dsr.h). The header is taken off, and the packet is translated like any that comes from
 * outside; its answers leave with the service's address straight for the client.
 *
 * The outer address is the endpoint's, and says which one was chosen. That counts only where our
 * own tables join the two: by a flow, or by a frontend and an endpoint of its service on this node.
 * All else that comes to the port is left to whom it is addressed to. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include "unit.h"
#include "hash.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "algorithm.h"
#include "config.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "flow.h"
#include "beat.h"
#include "ending.h"
#include "established.h"
#include "masquerade.h"
#include "fragment.h"
#include "frontend.h"
#include "select.h"
#include "stats.h"
#include "decided.h"
#include "subprogram.h"
#include "tailcall.h"
#include "icmp.h"
#include "outer.h"
#include "classify.h"

/* Whose the packet inside is here. */
struct arrival {
	u32 backend; /* id | generation << 24 */
	u32 service;
	u32 replaced; /* generation of a flow that leads elsewhere, and is to end; or 0 */
	bool known;   /* a flow has it already */
	bool of_node; /* this node's own socket has sent it, to the other node's address */
};

/* Reads the packet inside. The outer one is as dsr.h makes it: without options, whole. */
INLINE bool parse_inner(struct __sk_buff *skb, const struct packet *outer, struct packet *p)
{
	u32 at = outer->l3 + IP_HEADER_LENGTH;
	u32 wanted;

	if (outer->fragment != WHOLE || outer->l4 != at)
		return false;
	at = (outer->l3 & L3_MASK) + IP_HEADER_LENGTH;
	if (outer->proto == IPPROTO_UDP)
		at += sizeof(struct udphdr);
	wanted = at + IP_HEADER_LENGTH + 20;
	if (packet_start(skb) + wanted > packet_end(skb))
		bpf_skb_pull_data(skb, wanted < skb->len ? wanted : skb->len);
	ORDERED; /* both ways read the bounds again */
	p->l3 = at;
	p->origin = ORIGIN_DSR;
	return !parse_network(skb, p) && !parse_ports(skb, p);
}

/* A service's endpoint that is asked for, and found. */
struct endpoint_call {
	struct addr addr;
	__u32 service;
	__u32 backend; /* id | generation << 24 */
};

INLINE bool same_wide(const struct addr *a, const struct addr *b)
{
	return !((a->w[3] ^ b->w[3]) | (a->w[2] ^ b->w[2]) | (a->w[1] ^ b->w[1]) |
		 (a->w[0] ^ b->w[0]));
}

/* The one of a service's endpoints on this node that has the address. Of two, with different ports,
 * the first: who chose knew no more. */
CALLED(endpoint, struct endpoint_call, SUBPROGRAM_ENDPOINT);
SIZED(endpoint, struct endpoint_call)
SUBPROGRAM(endpoint, struct endpoint_call)
{
	u32 service, base, length;
	struct service *s;
	u64 region;

	if (!own)
		return false;
	service = own->service;
	s = services.lookup(&service);
	if (!s)
		return false;
	region = *(volatile u64 *)&s->local;
	base = region;
	length = region >> REGION_LENGTH_SHIFT & REGION_LENGTH_MASK;
	ROLLED
	for (u32 i = 0; i < DSR_ENDPOINTS && i < length; i++) {
		u32 place = base + i, id;
		struct slot *slot = slots.lookup(&place);
		struct backend *b;

		if (!slot)
			return false;
		id = slot->backend;
		b = backends.lookup(&id);
		if (!b || !same_wide(&b->addr, &own->addr))
			continue;
		own->backend = id | (u32)b->generation << BACKEND_GENERATION_SHIFT;
		return b->flags & BACKEND_SERVING && b->service == service;
	}
	return false;
}

INLINE bool find_endpoint(u32 service, const ip_addr *address, u32 *reference)
{
	struct endpoint_call call = {.service = service};

	widen(&call.addr, address);
	if (!call_endpoint(&call))
		return false;
	*reference = call.backend;
	return true;
}

/* The service that was called. A node port was called by the other node's address, which says so
 * itself; ours leads to the same. */
INLINE bool find_called(const struct config *c, const struct packet *outer, const struct packet *p,
			struct frontend *called)
{
	struct frontend_key key;
	ip_addr own;

	make_frontend_key(&key, &p->dst, p->dport, p->proto);
	if (find_frontend(&key, called))
		return !(called->flags & (FRONTEND_CLUSTER_IP | FRONTEND_SOCKETS));
	if (!same_address(&outer->src, &p->dst))
		return false;
	narrow(&own, NODE_PORT_ADDRESS(c));
	make_frontend_key(&key, &own, p->dport, p->proto);
	return find_frontend(&key, called) && called->flags & FRONTEND_NODE_PORT;
}

/* May the client call the service? Asked there already; but anybody may send outer headers. */
INLINE bool may_call(const struct frontend *called, const struct packet *p)
{
	struct request r = {.service = called->service, .frontend_flags = called->flags};

	if (is_martian_source(&p->src))
		return false;
	widen(&r.client, &p->src);
	return !(called->flags & FRONTEND_SOURCE_RANGES) || in_source_ranges(&r);
}

/* May a flow begin with it? */
INLINE bool begins(const struct packet *p)
{
	return p->proto != IPPROTO_TCP || starts_connection(p);
}

/* Does the flow lead to the endpoint that the outer header names? */
INLINE bool leads_to(const struct found *f, const ip_addr *endpoint)
{
	struct ends ends;

	return !(kind_of(f) & CELL_DSR) && read_ends(f, &ends) &&
	       same_address(&ends.addr, endpoint);
}

INLINE bool find_flow(const struct packet *p, struct found *f)
{
	struct flow_key key;

	make_key(&key, p);
	return find_cell(&key, f) &&
	       !(kind_of(f) & (CELL_REPLY | CELL_SIDE | CELL_NOTE | CELL_FRAGMENT));
}

/* Did this node itself send it, by the other one? Its packets come in with an own address as
 * source, and its endpoint's answers never leave: they are translated as those to its own sockets
 * are (node.h), which have a port of their own. */
INLINE bool is_own_client(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_fib_lookup fib;

	make_fib_question(&fib, skb, p, &p->src);
	return bpf_fib_lookup(skb, &fib, sizeof(fib), 0) == BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* What flow has the packet already. TCP stays with one that leads elsewhere until it is over, as
 * everywhere (established.h); datagrams go where they are sent now. True if there is nothing else
 * to ask: it leads to the endpoint that the outer header names, and nothing is to begin. */
INLINE bool judge_flow(const struct packet *outer, const struct packet *p, struct arrival *a)
{
	bool leads;
	struct found f;

	if (!find_flow(p, &f))
		return false;
	leads = leads_to(&f, &outer->dst);
	a->of_node = kind_of(&f) & CELL_NODE;
	a->known = leads || (p->proto == IPPROTO_TCP && !(kind_of(&f) & CELL_DSR));
	a->replaced = begins(p) && !a->known ? HEAD_GENERATION(f.head) : 0;
	a->backend = f.state->backend;
	a->service = f.state->service;
	if (a->of_node && starts_over(p, &f, now())) {
		end_flow(&f, END_REPLACED); /* others would choose its endpoint themselves */
		a->known = leads = false;
	}
	return leads && (!begins(p) || still_serving(a->backend, a->service));
}

/* 0, or the reason why it is not for one of our endpoints. */
INLINE int judge(struct __sk_buff *skb, const struct config *c, const struct packet *outer,
		 const struct packet *p, struct arrival *a)
{
	struct frontend called;

	if (!find_called(c, outer, p, &called) ||
	    !find_endpoint(called.service, &outer->dst, &a->backend))
		return REASON_DSR_UNKNOWN;
	a->service = called.service;
	if (!may_call(&called, p))
		return REASON_SOURCE_RANGE;
	if (p->proto == IPPROTO_TCP && p->tcp_flags & TCP_RST && !a->known)
		return REASON_NO_FLOW_RESET;
	a->of_node = is_own_client(skb, p);
	/* Between two sockets of the node nothing is translated. */
	return a->of_node && same_address(&p->src, &outer->dst) ? REASON_ENDPOINT_IS_NODE : 0;
}

/* An error about what an endpoint here has answered: about a flow to the one that the outer header
 * names. */
INLINE bool is_error_for_endpoint(struct __sk_buff *skb, const struct packet *outer,
				  const struct packet *p)
{
	struct packet quote, sent = {};
	struct found f;

	if (!is_icmp_error(skb, p) || !parse_quote(skb, p, &quote))
		return false;
	sent.src = quote.dst;
	sent.sport = quote.dport;
	sent.dst = quote.src;
	sent.dport = quote.sport;
	sent.proto = quote.proto;
	return find_flow(&sent, &f) && leads_to(&f, &outer->dst);
}

/* Takes the outer header off; what routers on the way have noted in it goes along (RFC 6040). */
INLINE bool take_off(struct __sk_buff *skb, const struct packet *outer, struct packet *p)
{
	s32 length = IP_HEADER_LENGTH + (outer->proto == IPPROTO_UDP ? sizeof(struct udphdr) : 0);
	bool congested = is_congested(skb, outer);

	if (bpf_skb_adjust_room(skb, -length, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return false;
	if (congested)
		bpf_skb_ecn_set_ce(skb);
	p->l3 -= length;
	p->l4 -= length;
	return true;
}

/* It was none. */
INLINE int leave_outer(struct __sk_buff *skb, const struct config *c, const struct packet *outer)
{
	if (may_meet_flow(outer))
		return hand_to(skb, FAMILY_PROGRAM(DIRECT));
	return address_flags(&outer->dst) ? PASS : not_service(skb, c, outer);
}

INLINE int leave_unknown(struct __sk_buff *skb, const struct config *c, const struct packet *outer)
{
	count(skb, REASON_DSR_UNKNOWN);
	return leave_outer(skb, c, outer);
}

/* What came in the form of an outer header. It is one if what is inside is for an address of
 * services, or for the address of the node that sent it. */
INLINE bool read_arrival(struct __sk_buff *skb, struct packet *outer, struct packet *p)
{
	return parse_inner(skb, outer, p) &&
	       (address_flags(&p->dst) || same_address(&p->dst, &outer->src));
}

/* Takes the outer header off and hands on what was inside. */
INLINE int let_in(struct __sk_buff *skb, const struct packet *outer, struct packet *p,
		  const struct arrival *a)
{
	if (!take_off(skb, outer, p))
		return drop(skb, REASON_REWRITE_FAILED);
	if (a->of_node)
		p->origin = ORIGIN_NODE;
	save_packet(skb, p);
	handoff(skb)->turn = 0;
	handoff(skb)->backend = a->backend;
	handoff(skb)->service = a->service;
	if (a->known)
		return hand_to(skb, FAMILY_PROGRAM(FOLLOW));
	if (a->of_node)
		return hand_to(skb, FAMILY_PROGRAM(NODE_FLOW));
	if (a->replaced)
		return hand_to_begin_anew(skb, a->replaced);
	return hand_to(skb, FAMILY_PROGRAM(OPEN));
}

/* The program for it: what has a flow goes on. */
INLINE int arrive(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct packet outer, p = {};
	struct arrival a = {};

	if (!c || !restore_packet(skb, &outer))
		return PASS;
	if (!read_arrival(skb, &outer, &p))
		return leave_outer(skb, c, &outer);
	if (p.proto == PROTO_ICMP)
		return hand_to(skb, FAMILY_PROGRAM(ARRIVE_ERROR));
	if (p.fragment == FRAGMENT_LATER && !recall_fragment(&p))
		return drop(skb, REASON_FRAGMENT_UNMATCHED);
	if (!judge_flow(&outer, &p, &a)) {
		handoff(skb)->generation = a.replaced;
		handoff(skb)->known = a.known;
		return hand_to(skb, FAMILY_PROGRAM(ARRIVE_NEW));
	}
	if (p.fragment == FRAGMENT_FIRST)
		remember_fragment(&p);
	return let_in(skb, &outer, &p, &a);
}

/* The program for what has none yet, or may begin another. One stack has no room for both. */
INLINE int arrive_new(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct packet outer, p = {};
	struct arrival a = {.replaced = handoff(skb)->generation, .known = handoff(skb)->known};
	int reason;

	if (!c || !restore_packet(skb, &outer) || !read_arrival(skb, &outer, &p))
		return PASS;
	if (p.fragment == FRAGMENT_LATER && !recall_fragment(&p))
		return drop(skb, REASON_FRAGMENT_UNMATCHED);
	reason = judge(skb, c, &outer, &p, &a);
	if (reason == REASON_DSR_UNKNOWN)
		return leave_unknown(skb, c, &outer);
	if (reason)
		return drop_parsed(skb, &p, reason);
	if (p.fragment == FRAGMENT_FIRST)
		remember_fragment(&p);
	return let_in(skb, &outer, &p, &a);
}

/* The program for ICMP inside: errors are for whom their quote is of. */
INLINE int arrive_error(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct packet outer, p = {};

	if (!c || !restore_packet(skb, &outer))
		return PASS;
	if (!read_arrival(skb, &outer, &p) || !is_error_for_endpoint(skb, &outer, &p))
		return leave_unknown(skb, c, &outer);
	if (!take_off(skb, &outer, &p))
		return drop(skb, REASON_REWRITE_FAILED);
	save_packet(skb, &p);
	return hand_to(skb, FAMILY_PROGRAM(ICMP_FROM_POD));
}
