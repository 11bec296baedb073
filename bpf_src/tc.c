/* The programs of one family; FAMILY is 4 or 6. entry.c hands them the packets.
 *
 * TRACE builds the variant behind `lbctl trace`: the same decisions on the same maps, but every
 * packet is the first of its flow, none is remembered and nothing is counted. */
#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"

#if FAMILY == 6
#define FAMILY_NAME(name) name##6
#define FAMILY_PROGRAM(name) PROGRAM_##name##6
#else
#define FAMILY_NAME(name) name##4
#define FAMILY_PROGRAM(name) PROGRAM_##name##4
#endif
#define PROGRAM(name) int name(struct __sk_buff *skb)

#include "parse.h"
#include "address.h"
#include "stats.h"
#include "flow.h"
#include "nat.h"
#include "tcp.h"
#include "refuse.h"
#include "select.h"
#include "fragment.h"
#include "connect.h"
#include "hairpin.h"
#include "direct.h"
#include "icmp.h"
#include "established.h"

/* A packet from a pod that is not for a service. */
INLINE int not_service(struct __sk_buff *skb, struct packet *p)
{
	const struct config *c = get_config();

	if (c && in_service_range(c, &p->dst) && !(c->flags & CONFIG_PASS_MIDSTREAM)) {
		count(skb, REASON_UNALLOCATED);
		return DROP;
	}
#ifndef TRACE
	if (has_ports(p->proto) && p->fragment == WHOLE && !parse_ports(skb, p) &&
	    maybe_backend(&p->dst, p->dport)) {
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

/* This one and to_pod write nothing, so that traffic that is none of ours is not copied for it. */
PROGRAM(FAMILY_NAME(from_pod))
{
	struct packet p;
	int reason = parse_addresses(skb, &p);

	if (reason) {
		/* If only extension headers are at fault, the addresses are known. */
		bool ours = p.l4 && maybe_service(&p.dst);

		if (ours || !p.l4)
			count(skb, reason);
		return ours ? DROP : PASS;
	}
	if (!maybe_service(&p.dst))
		return not_service(skb, &p);
	reason = ports_or_reason(skb, &p);
	if (reason) {
		count(skb, reason);
		return DROP;
	}
	save_packet(skb, &p);
#ifdef TRACE
	return hand_to_connect(skb, false);
#else
	if (p.proto == PROTO_ICMP && is_icmp_error(skb, &p))
		return hand_to(skb, FAMILY_PROGRAM(ICMP_FROM_POD));
	return hand_to(skb, FAMILY_PROGRAM(SERVICE));
#endif
}

PROGRAM(FAMILY_NAME(service))
{
	struct flow_key key;
	struct flow *f;
	struct packet p;
	int verdict;

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
	f = find_flow(&key);
	if (!f)
		return hand_to_connect(skb, false);
	verdict = established(skb, &p, &key, f, false);
	return verdict == -EAGAIN ? hand_to_connect(skb, true) : verdict;
}

PROGRAM(FAMILY_NAME(to_pod))
{
	struct packet p;

	if (parse_addresses(skb, &p))
		return PASS;
	if (p.proto == PROTO_ICMP && is_icmp_error(skb, &p)) {
		save_packet(skb, &p);
		return hand_to(skb, FAMILY_PROGRAM(ICMP_TO_POD));
	}
	if (!has_ports(p.proto) || parse_ports(skb, &p))
		return PASS;
	if (p.fragment == FRAGMENT_LATER && !recall_fragment(&p))
		return PASS;
	if (!maybe_backend(&p.src, p.sport) && !same_address(&p.src, &p.dst))
		return PASS;
	save_packet(skb, &p);
	if (p.fragment == FRAGMENT_FIRST)
		remember_fragment(&p);
	return hand_to(skb, FAMILY_PROGRAM(REPLY));
}

PROGRAM(FAMILY_NAME(reply))
{
	struct flow_key key;
	struct flow *f;
	struct packet p;

	if (!restore_packet(skb, &p))
		return PASS;
	make_key(&key, &p);
	f = find_flow(&key);
	return f ? established(skb, &p, &key, f, true) : PASS;
}

PROGRAM(FAMILY_NAME(track))
{
	return track(skb);
}

PROGRAM(FAMILY_NAME(connect))
{
	return connect(skb);
}

PROGRAM(FAMILY_NAME(hairpin))
{
	return hairpin(skb);
}

PROGRAM(FAMILY_NAME(direct))
{
	return direct(skb);
}

PROGRAM(FAMILY_NAME(refuse))
{
	return answer(skb);
}

PROGRAM(FAMILY_NAME(icmp_from_pod))
{
	return icmp_error(skb, false);
}

PROGRAM(FAMILY_NAME(icmp_to_pod))
{
	return icmp_error(skb, true);
}
