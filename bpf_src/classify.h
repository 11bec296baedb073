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
#include "stats.h"
#include "tailcall.h"
#include "flow.h"
#include "fragment.h"
#include "icmp.h"

/* A packet that is not for a service. `ports`: whether it has any that could be read. */
INLINE int not_service(struct __sk_buff *skb, const struct config *c, struct packet *p, bool ports)
{
	if (in_service_range(c, &p->dst) && !(c->flags & CONFIG_PASS_MIDSTREAM)) {
		count(skb, REASON_UNALLOCATED);
		return DROP;
	}
#ifndef TRACE
	if (p->origin == ORIGIN_POD && ports && p->fragment == WHOLE &&
	    is_endpoint(&p->dst, p->dport)) {
		struct table_state *state = get_table_state();

		if (p->proto != IPPROTO_TCP || starts_connection(p) ||
		    (state && *has_direct(state))) {
			save_packet(skb, p);
			return hand_to(skb, FAMILY_PROGRAM(DIRECT));
		}
	}
#endif
	return PASS;
}

/* Of a packet to a service whose ports were read, with `reason` if that failed: fragments get, or
 * give, theirs. 0 or a reason. */
INLINE int ports_or_reason(struct packet *p, int reason)
{
	if (reason || p->fragment == WHOLE)
		return reason;
#ifndef TRACE
	if (p->fragment == FRAGMENT_FIRST)
		remember_fragment(p);
	else if (!recall_fragment(p))
		return REASON_FRAGMENT_UNMATCHED;
#endif
	return 0;
}

/* Is this an address that only services have? Other traffic's broken packets and fragments are the
 * stack's, as are those for an address that the node itself or another proxy has. */
INLINE bool is_cluster_ip(u32 address)
{
	return address & FRONTEND_ADDRESS && !(address & FRONTEND_SHARED);
}

/* The flow that has the packet's tuple. */
INLINE struct flow *flow_of(struct packet *p)
{
#ifdef TRACE
	return 0;
#else
	struct flow_key key;

	if (!has_ports(p->proto) || (p->fragment == FRAGMENT_LATER && !recall_fragment(p)))
		return 0;
	make_key(&key, p);
	return find_flow(&key);
#endif
}

INLINE bool is_to_frontend(const struct packet *p)
{
	struct frontend_key key;

	make_frontend_key(&key, &p->dst, p->dport, p->proto);
	return frontend_word(&key);
}

/* A packet of a flow, or one of no flow: is it for this program, which translates what comes in?
 * What comes in may also be the reply to a socket of the node's own (node.h). */
INLINE bool is_translated(const struct config *c, const struct packet *p, const struct flow *f)
{
	if (!f || f->flags & FLOW_DIRECT)
		return false;
	return !(f->flags & FLOW_REPLY) || is_node_port(c, p->dport);
}

/* A packet that comes in: whom does it concern? This and going_out() write nothing, so that traffic
 * that is none of ours is not copied for it. */
INLINE int coming_in(struct __sk_buff *skb, u32 from)
{
	const struct config *c = get_config();
	struct packet p;
	struct flow *f;
	u32 address;
	int reason = parse_addresses(skb, &p, from);

	if (!c)
		return PASS;
	if (reason) {
		/* If only extension headers are at fault, the addresses are known. */
		bool ours = p.l4 && is_cluster_ip(address_flags(&p.dst));

		if (ours || !p.l4)
			count(skb, reason);
		return ours ? DROP : PASS;
	}
#ifndef TRACE
	if (p.proto == PROTO_ICMP && is_icmp_error(skb, &p)) {
		save_packet(skb, &p);
		return hand_to(skb, FAMILY_PROGRAM(ICMP_FROM_POD));
	}
#endif
	reason = parse_ports(skb, &p);
	f = reason ? 0 : flow_of(&p);
	address = address_flags(&p.dst);
	if (!address && !is_translated(c, &p, f))
		return not_service(skb, c, &p, !reason && has_ports(p.proto));
	reason = ports_or_reason(&p, reason);
	if (reason) {
		/* An address that is also the node's own gets what the stack makes of it. */
		count(skb, reason);
		return is_cluster_ip(address) ? DROP : PASS;
	}
	save_packet(skb, &p);
	if (!(address & FRONTEND_ADDRESS) && !f && !is_to_frontend(&p))
		return PASS;
#ifdef TRACE
	return hand_to(skb, FAMILY_PROGRAM(CONNECT));
#else
	return hand_to(skb, FAMILY_PROGRAM(SERVICE));
#endif
}

/* May a socket of the node's own have sent this to a service (node.h)? What is forwarded has no
 * socket. */
INLINE bool calls_service(struct __sk_buff *skb, const struct packet *p, const struct flow *f)
{
	if (!skb->sk || (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP))
		return false;
	return f ? !(f->flags & FLOW_REPLY) : address_flags(&p->dst) != 0;
}

/* Of no flow: may it be from a service's port, an endpoint, or a server of the node's own that was
 * asked by another address (outgoing.h)? */
INLINE bool may_be_answer(struct __sk_buff *skb, const struct config *c, const struct packet *p)
{
	struct frontend_key key;
	ip_addr node;

	make_frontend_key(&key, &p->src, p->sport, p->proto);
	if (frontend_word(&key) || is_endpoint(&p->src, p->sport))
		return true;
	narrow(&node, NODE_ADDRESS(c));
	return p->proto == IPPROTO_UDP && skb->sk && is_endpoint(&node, p->sport);
}

/* A packet that goes out: may it be a reply, or one whose source is to change? */
INLINE int going_out(struct __sk_buff *skb, u32 to)
{
	const struct config *c = get_config();
	struct packet p;
	struct flow *f;

	if (!c || parse_addresses(skb, &p, to))
		return PASS;
	if (p.proto == PROTO_ICMP && is_icmp_error(skb, &p)) {
		save_packet(skb, &p);
		return hand_to(skb, FAMILY_PROGRAM(ICMP_TO_POD));
	}
	if (!has_ports(p.proto) || parse_ports(skb, &p))
		return PASS;
	if (p.fragment == FRAGMENT_LATER && !recall_fragment(&p))
		return PASS;
	f = flow_of(&p);
	if (to != ORIGIN_POD && calls_service(skb, &p, f)) {
		p.origin = ORIGIN_NODE;
		save_packet(skb, &p);
		if (p.fragment == FRAGMENT_FIRST)
			remember_fragment(&p);
		return hand_to(skb, FAMILY_PROGRAM(NODE));
	}
	if (!f && !may_be_answer(skb, c, &p))
		return PASS;
	save_packet(skb, &p);
	if (p.fragment == FRAGMENT_FIRST)
		remember_fragment(&p);
	return hand_to(skb, FAMILY_PROGRAM(REPLY));
}
