/* Whom does a packet concern? Almost all of a node's traffic gets no further than here. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "config.h"
#include "frontend.h"
#include "address.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "stats.h"
#include "decided.h"
#include "tailcall.h"
#include "flow.h"
#include "fragment.h"
#include "stash.h"
#include "icmp.h"
#include "masquerade.h"
#include "plain.h"
#include "outgoing.h"
#include "outer.h"
#include "fast.h"

/* A packet that is not for a service. */
INLINE int not_service(struct __sk_buff *skb, const struct config *c, const struct packet *p)
{
	if (!in_service_range(c, &p->dst) || c->flags & CONFIG_PASS_MIDSTREAM)
		return PASS;
	return drop_elsewhere(skb, p, REASON_UNALLOCATED);
}

/* May its answers be taken for those of a flow through a service (direct.h)? */
INLINE bool may_meet_flow(const struct packet *p)
{
	return p->fragment == WHOLE && has_ports(p->proto) &&
	       (p->proto != IPPROTO_TCP || starts_connection(p)) && is_endpoint(&p->dst, p->dport);
}

INLINE bool is_to_frontend(const struct packet *p)
{
	struct frontend_key key;

	make_frontend_key(&key, &p->dst, p->dport, p->proto);
	return frontend_word(&key);
}

/* No flow has the tuple of a packet that comes in. Its ports are known; `address` is what services
 * have the destination for. */
INLINE int comes_without_flow(struct __sk_buff *skb, const struct config *c, struct packet *p,
			      u32 address)
{
	if (address & FRONTEND_ADDRESS || (address && is_to_frontend(p))) {
		save_packet(skb, p);
		return hand_to_connect(skb, p);
	}
#ifndef TRACE
	if (may_be_outer(c, p)) {
		save_packet(skb, p);
		return hand_to(skb, FAMILY_PROGRAM(ARRIVE));
	}
	if (may_meet_flow(p)) {
		save_packet(skb, p);
		return hand_to(skb, FAMILY_PROGRAM(DIRECT));
	}
#endif
	return address ? PASS : not_service(skb, c, p);
}

/* May a socket of the node's own have sent this to a service (node.h)? What is forwarded has no
 * socket. */
INLINE bool calls_service(struct __sk_buff *skb, const struct packet *p)
{
	return skb->sk && (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) &&
	       address_flags(&p->dst);
}

/* May it be from a service's port, an endpoint, or a server of the node's own that was asked by
 * another address; or is it the node's, to an endpoint (outgoing.h)? The established packets of
 * others' TCP have nothing to say. */
INLINE bool may_be_answer(struct __sk_buff *skb, const struct packet *p)
{
	const struct config *c = get_config();
	struct frontend_key key;
	ip_addr node;

	if (!c || (p->proto == IPPROTO_TCP && !starts_connection(p)))
		return false;
	make_frontend_key(&key, &p->src, p->sport, p->proto);
	if (frontend_word(&key) || is_of_node(skb, c, p))
		return true;
	if (p->proto == IPPROTO_TCP) /* an endpoint that calls: nothing is noted of it */
		return false;
	narrow(&node, NODE_ADDRESS(c));
	return is_endpoint(&p->src, p->sport) ||
	       (p->proto == IPPROTO_UDP && skb->sk && is_endpoint(&node, p->sport));
}

/* No flow has the tuple of a packet that goes out. */
INLINE int goes_without_flow(struct __sk_buff *skb, struct packet *p)
{
	if (p->origin != ORIGIN_POD && calls_service(skb, p)) {
		p->origin = ORIGIN_NODE;
		save_packet(skb, p);
		return hand_to_connect(skb, p);
	}
#ifndef TRACE
	if (may_be_answer(skb, p)) {
		save_packet(skb, p);
		return hand_to(skb, FAMILY_PROGRAM(OUTGOING));
	}
#endif
	return PASS;
}

#ifndef TRACE
/* What almost every packet needs; NOT_PLAIN for the rest. A reply is translated where it goes out,
 * unless it passes by there (fast.h). */
INLINE int plain_coming_in(struct __sk_buff *skb, const struct config *c, u32 from)
{
	struct flow_key key;
	struct packet p;
	struct found f;

	if (!c || !parse_plain(skb, &p, from))
		return NOT_PLAIN;
	make_key(&key, &p);
	if (!find_cell_inline(&key, &f) || kind_of(&f) & CELL_NOTE)
		return comes_without_flow(skb, c, &p, address_flags_inline(&p.dst));
	return plain_or_past(skb, c, &p, &f);
}

INLINE int plain_going_out(struct __sk_buff *skb, u32 to)
{
	struct flow_key key;
	struct packet p;
	struct found f;
	struct ends ends;

	if (!parse_plain(skb, &p, to))
		return NOT_PLAIN;
	make_key(&key, &p);
	if (!find_cell_inline(&key, &f))
		return goes_without_flow(skb, &p);
	if (!acts_going_out(kind_of(&f)))
		return PASS;
	return kind_of(&f) & CELL_NODE ? NOT_PLAIN : plain(skb, &p, &f, &ends, false);
}
#endif

/* The programs for what comes in and goes out. They write nothing where a packet is none of ours,
 * so that it is not copied for that. */
INLINE int come_in(struct __sk_buff *skb, u32 from)
{
#ifndef TRACE
	int verdict = plain_coming_in(skb, get_config(), from);

	if (verdict != NOT_PLAIN)
		return verdict;
#endif
	handoff(skb)->from = from;
	return hand_to(skb, FAMILY_PROGRAM(COMING_IN));
}

INLINE int go_out(struct __sk_buff *skb, u32 to)
{
#ifndef TRACE
	int verdict = plain_going_out(skb, to);

	if (verdict != NOT_PLAIN)
		return verdict;
#endif
	handoff(skb)->from = to;
	return hand_to(skb, FAMILY_PROGRAM(GOING_OUT));
}

/* Is this an address that only services have? Other traffic's broken packets and fragments are the
 * stack's, as are those for an address that the node itself or another proxy has. */
INLINE bool is_cluster_ip(u32 address)
{
	return address & FRONTEND_ADDRESS && !(address & FRONTEND_SHARED);
}

/* A packet that cannot be read. An address that is also the node's own gets what the stack makes of
 * it. */
INLINE int unreadable(struct __sk_buff *skb, const struct config *c, const struct packet *p,
		      int reason)
{
	u32 address = address_flags(&p->dst);

	if (!address)
		return not_service(skb, c, p);
	if (is_cluster_ip(address))
		return drop_parsed(skb, p, reason);
	count(skb, reason);
	return PASS;
}

/* Is it for the node itself? The primary address need not be asked about, and is known where
 * nothing is forwarded. A multicast address or none at all counts too: nobody loses by that. */
INLINE bool is_for_node(struct __sk_buff *skb, const struct config *c, const struct packet *p)
{
	struct bpf_fib_lookup fib;
	ip_addr node;

	narrow(&node, NODE_ADDRESS(c));
	if (same_address(&p->dst, &node))
		return true;
	make_fib_question(&fib, skb, p, &p->dst);
	return bpf_fib_lookup(skb, &fib, sizeof(fib), 0) == BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* A later fragment that comes in, whose first was not seen. Who masquerades has an address of the
 * node's, that of the way to the backend: what answers there may be anybody's. */
INLINE int early_coming_in(struct __sk_buff *skb, const struct config *c, const struct packet *p)
{
	u32 address = address_flags(&p->dst);

	if (!has_ports(p->proto) || (!address && !is_for_node(skb, c, p)))
		return unreadable(skb, c, p, REASON_FRAGMENT_UNMATCHED);
	return hand_fragment(skb, p, is_cluster_ip(address) ? EARLY_OURS : 0);
}

/* Any packet that comes in. */
INLINE int coming_in(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct flow_key key;
	struct packet p;
	struct found f;
	u32 from = handoff(skb)->from;
	int reason = parse_addresses(skb, &p, from);

	if (!c)
		return PASS;
	if (reason) {
		/* If only extension headers are at fault, the addresses are known. */
		bool ours = p.l4 && is_cluster_ip(address_flags(&p.dst));

		if (ours)
			return drop_parsed(skb, &p, reason);
		if (!p.l4)
			count(skb, reason);
		return PASS;
	}
	reason = parse_ports(skb, &p);
	if (reason)
		return unreadable(skb, c, &p, reason);
#ifndef TRACE
	if (p.fragment == FRAGMENT_LATER && !recall_fragment(&p))
		return early_coming_in(skb, c, &p);
	if (p.proto == PROTO_ICMP && is_icmp_error(skb, &p)) {
		if (!address_flags(&p.dst) && not_service(skb, c, &p) == DROP)
			return DROP;
		save_packet(skb, &p);
		return hand_to(skb, FAMILY_PROGRAM(ICMP_FROM_POD));
	}
	make_key(&key, &p);
	if (find_cell(&key, &f) && !(kind_of(&f) & CELL_NOTE)) {
		if (!acts_coming_in(kind_of(&f)))
			return PASS;
		if (is_news(&p, from))
			return hand_first(skb, &p, 0);
		save_packet(skb, &p);
		handoff(skb)->turn = 0;
		return hand_to(skb, FAMILY_PROGRAM(FOLLOW));
	}
	if (is_news(&p, from) && address_flags(&p.dst))
		return hand_first(skb, &p, 0);
#endif
	return comes_without_flow(skb, c, &p, address_flags(&p.dst));
}

/* Any packet that goes out. */
INLINE int going_out(struct __sk_buff *skb)
{
	struct flow_key key;
	struct packet p;
	struct found f;
	u32 to = handoff(skb)->from;

	if (parse_addresses(skb, &p, to))
		return PASS;
	if (p.proto == PROTO_ICMP && is_icmp_error(skb, &p)) {
		save_packet(skb, &p);
		return hand_to(skb, FAMILY_PROGRAM(ICMP_TO_POD));
	}
	if (!has_ports(p.proto) || parse_ports(skb, &p))
		return PASS;
	/* What has a socket was cut here, in order. */
	if (p.fragment == FRAGMENT_LATER && !recall_fragment(&p))
		return skb->sk || !is_endpoint_address(&p.src)
			   ? PASS
			   : hand_fragment(skb, &p, EARLY_GOING_OUT);
	make_key(&key, &p);
	if (!find_cell(&key, &f)) {
		if (is_news(&p, to) && (is_endpoint(&p.src, p.sport) || may_be_answer(skb, &p) ||
					address_flags(&p.dst)))
			return hand_first(skb, &p, EARLY_GOING_OUT);
		return goes_without_flow(skb, &p);
	}
	if (!acts_going_out(kind_of(&f)))
		return PASS;
	if (is_news(&p, to))
		return hand_first(skb, &p, EARLY_GOING_OUT);
	if (kind_of(&f) & CELL_NODE)
		p.origin = ORIGIN_NODE;
	save_packet(skb, &p);
	handoff(skb)->turn = NO_TURN;
	return hand_to(skb, FAMILY_PROGRAM(FOLLOW));
}
