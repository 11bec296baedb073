/* The programs of one family; FAMILY is 4 or 6. entry.c hands them the packets.
 *
 * TRACE builds the variant behind `lbctl trace`: the same decisions on the same maps, but every
 * packet is the first of its flow, none is remembered and nothing is counted. */
#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "parse.h"
#include "handoff.h"
#include "tailcall.h"
#include "classify.h"
#include "flow.h"
#include "established.h"
#include "outgoing.h"
#include "tcp.h"
#include "connect.h"
#include "masquerade.h"
#include "direct.h"
#include "refuse.h"
#include "sctp.h"
#include "icmp.h"
#include "node.h"
#include "stash.h"

PROGRAM(FAMILY_NAME(from_pod))
{
	return coming_in(skb, ORIGIN_POD);
}

PROGRAM(FAMILY_NAME(to_pod))
{
	return going_out(skb, ORIGIN_POD);
}

/* The entry program says where from, and whether there is a link header. */
PROGRAM(FAMILY_NAME(from_net))
{
	return coming_in(skb, handoff(skb)->from);
}

PROGRAM(FAMILY_NAME(to_net))
{
	return going_out(skb, handoff(skb)->from);
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
	/* A reply found here is one to the node's own socket (node.h), or there by a coincidence in
	 * the filters. One call for both: what every packet runs is short. */
	if (!f || f->flags & FLOW_REPLY) {
		handoff(skb)->old_flow = false;
		return hand_to(skb, f ? FAMILY_PROGRAM(NODE) : FAMILY_PROGRAM(CONNECT));
	}
	verdict = established(skb, &p, &key, f, false);
	if (verdict == UPKEEP_DUE)
		return hand_to_upkeep(skb, false);
	return verdict == BEGIN_ANEW ? hand_to_connect(skb, true) : verdict;
}

PROGRAM(FAMILY_NAME(node))
{
	return node_packet(skb);
}

PROGRAM(FAMILY_NAME(node_open))
{
	return node_open(skb);
}

PROGRAM(FAMILY_NAME(node_flow))
{
	return node_flow(skb);
}

PROGRAM(FAMILY_NAME(node_send))
{
	return node_send(skb);
}

PROGRAM(FAMILY_NAME(reply))
{
	struct flow_key key;
	struct flow *f;
	struct packet p;
	int verdict = PASS;

	if (!restore_packet(skb, &p))
		return PASS;
	make_key(&key, &p);
	f = find_flow(&key);
	if (f && f->flags & FLOW_REPLY)
		verdict = established(skb, &p, &key, f, true);
#ifndef TRACE
	else if (!f && may_be_own(&p))
		programs.call(skb, FAMILY_PROGRAM(OUTGOING));
	else if (!f && p.origin == ORIGIN_POD && p.proto != IPPROTO_TCP)
		verdict = UPKEEP_DUE;
#endif
	return verdict == UPKEEP_DUE ? hand_to_upkeep(skb, true) : verdict;
}

PROGRAM(FAMILY_NAME(outgoing))
{
#ifdef TRACE
	return PASS; /* of replies, and what is remembered for them */
#else
	return outgoing(skb);
#endif
}

PROGRAM(FAMILY_NAME(track))
{
	return track(skb);
}

PROGRAM(FAMILY_NAME(upkeep))
{
	return upkeep(skb);
}

PROGRAM(FAMILY_NAME(connect))
{
	return connect(skb);
}

PROGRAM(FAMILY_NAME(choose))
{
	return choose(skb);
}

PROGRAM(FAMILY_NAME(masquerade))
{
	return masquerade(skb);
}

PROGRAM(FAMILY_NAME(open))
{
	return open_masqueraded(skb);
}

PROGRAM(FAMILY_NAME(direct))
{
#ifdef TRACE
	return PASS; /* only flows can be in the way */
#else
	return direct(skb);
#endif
}

PROGRAM(FAMILY_NAME(refuse))
{
	return answer(skb);
}

PROGRAM(FAMILY_NAME(sctp))
{
	return set_sctp_ports(skb);
}

PROGRAM(FAMILY_NAME(icmp_from_pod))
{
	return icmp_error(skb, false);
}

PROGRAM(FAMILY_NAME(icmp_to_pod))
{
	return icmp_error(skb, true);
}

PROGRAM(FAMILY_NAME(fragment))
{
	return fragment(skb);
}
