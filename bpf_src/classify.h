/* Whom does a packet concern? Almost all of a node's traffic gets no further than here. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "config.h"
#include "filter.h"
#include "address.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "tailcall.h"
#include "flow.h"
#include "select.h"
#include "fragment.h"
#include "stash.h"
#include "icmp.h"

/* A packet that is not for a service. */
INLINE int not_service(struct __sk_buff *skb, const struct config *c, struct packet *p)
{
	if (in_service_range(c, &p->dst) && !(c->flags & CONFIG_PASS_MIDSTREAM)) {
		count(skb, REASON_UNALLOCATED);
		return DROP;
	}
#ifndef TRACE
	if (p->origin == ORIGIN_POD && has_ports(p->proto) && p->fragment == WHOLE &&
	    !parse_ports(skb, p) && maybe_endpoint(&p->dst, p->dport)) {
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

/* Ports for a packet to a service, also of fragments. 0 or a reason. */
INLINE int ports_or_reason(struct __sk_buff *skb, struct packet *p)
{
	int reason = parse_ports(skb, p);

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

/* Is this really a ClusterIP, or at least an address that only services have? The filter's bit may
 * be there by chance, and other traffic's broken packets and fragments are the stack's, as are
 * those for an address that the node itself or another proxy has. */
INLINE bool is_cluster_ip(const struct config *c, const struct packet *p)
{
	struct frontend_key key;
	struct frontend found;

	if (!maybe_service(&p->dst, 1))
		return false;
	make_frontend_key(&key, &p->dst, 0, 0);
	if (find_frontend(&key, &found))
		return !(found.flags & FRONTEND_SHARED);
	return in_service_range(c, &p->dst);
}

/* A packet that comes in: whom does it concern? This and going_out() write nothing, so that traffic
 * that is none of ours is not copied for it. */
INLINE int coming_in(struct __sk_buff *skb, u32 from)
{
	const struct config *c = get_config();
	struct packet p;
	bool cluster_ip;
	u32 early = 0;
	int reason = parse_addresses(skb, &p, from);

	if (!c)
		return PASS;
	if (reason) {
		/* If only extension headers are at fault, the addresses are known. */
		bool ours = p.l4 && is_cluster_ip(c, &p);

		if (ours || !p.l4)
			count(skb, reason);
		return ours ? DROP : PASS;
	}
	if (!maybe_service(&p.dst, 0))
		return not_service(skb, c, &p);
	cluster_ip = maybe_service(&p.dst, 1);
	reason = ports_or_reason(skb, &p);
	if (reason) {
		bool ours = is_cluster_ip(c, &p);

		if (reason == REASON_FRAGMENT_UNMATCHED && has_ports(p.proto)) {
			early = ours ? EARLY_OURS : 0;
			goto fragment;
		}
		/* An address that is also the node's own gets what the stack makes of it. */
		count(skb, reason);
		return ours ? DROP : PASS;
	}
	save_packet(skb, &p);
#ifndef TRACE
	if (p.proto == PROTO_ICMP && is_icmp_error(skb, &p))
		return hand_to(skb, FAMILY_PROGRAM(ICMP_FROM_POD));
#endif
	if (!cluster_ip && !maybe_endpoint(&p.dst, p.dport) && !is_own_port(c, p.dport))
		return PASS;
#ifdef TRACE
	return hand_to(skb, FAMILY_PROGRAM(CONNECT));
#else
	if (p.fragment != FRAGMENT_FIRST)
		return hand_to(skb, FAMILY_PROGRAM(SERVICE));
#endif
fragment:
	return hand_fragment(skb, &p, early);
}

/* May a socket of the node's own have sent this to a service (node.h)? What is forwarded has no
 * socket. */
INLINE bool calls_service(struct __sk_buff *skb, const struct packet *p)
{
	return skb->sk && (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) &&
	       maybe_service(&p->dst, 0);
}

/* A packet that goes out: may it be a reply, or one whose source is to change? */
INLINE int going_out(struct __sk_buff *skb, u32 to)
{
	const struct config *c = get_config();
	struct packet p;

	if (!c || parse_addresses(skb, &p, to))
		return PASS;
	if (p.proto == PROTO_ICMP && is_icmp_error(skb, &p)) {
		save_packet(skb, &p);
		return hand_to(skb, FAMILY_PROGRAM(ICMP_TO_POD));
	}
	if (!has_ports(p.proto) || parse_ports(skb, &p))
		return PASS;
	if (p.fragment == FRAGMENT_LATER && !recall_fragment(&p)) {
		/* What has a socket was cut here, in order. */
		if (skb->sk || !maybe_endpoint(&p.src, 0))
			return PASS;
		goto fragment;
	}
	if (to != ORIGIN_POD && calls_service(skb, &p)) {
		p.origin = ORIGIN_NODE;
		save_packet(skb, &p);
		if (p.fragment == FRAGMENT_FIRST)
			remember_fragment(&p);
		return hand_to(skb, FAMILY_PROGRAM(NODE));
	}
	if (!maybe_endpoint(&p.src, p.sport) && !is_own_port(c, p.sport) &&
	    !same_address(&p.src, &p.dst))
		return PASS;
	if (p.fragment == FRAGMENT_FIRST) {
		remember_fragment(&p);
		if (!skb->sk)
			goto fragment;
	}
	save_packet(skb, &p);
	return hand_to(skb, FAMILY_PROGRAM(REPLY));
fragment:
	return hand_fragment(skb, &p, EARLY_GOING_OUT);
}
