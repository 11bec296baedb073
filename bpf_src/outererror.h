/* A router between the nodes says that what was sent on (dsr.h) is too big for its next link. It
 * says so to this node, about the outer packet; the client has to hear it, about its own one. Other
 * errors about outer packets are the stack's, which knows nothing of them. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include <linux/udp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "address.h"
#include "config.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "flow.h"
#include "icmp.h"
#include "masquerade.h"
#include "outer.h"
#include "refuse.h"
#include "stats.h"

/* What the error says fits, with the outer header; 0: it is another error. */
INLINE u32 told_mtu(struct __sk_buff *skb, const struct packet *p)
{
	struct error said;

	if (bpf_skb_load_bytes(skb, p->l4, &said, sizeof(said)))
		return 0;
#if FAMILY == 6
	return said.type == 2 ? ntohl(said.rest) : 0;
#else
	return said.type == 3 && said.code == 4 ? ntohl(said.rest) & 0xffff : 0;
#endif
}

/* The endpoint that the quoted outer packet was for, and how long its outer header is; 0: it is
 * none. */
INLINE u32 read_quoted_outer(struct __sk_buff *skb, const struct config *c, const struct packet *p,
			     ip_addr *endpoint)
{
	struct outer o;
	u8 proto;

	if (bpf_skb_load_bytes(skb, p->l4 + 8, &o, sizeof(o)))
		return 0;
#if FAMILY == 6
	__builtin_memcpy(endpoint, &o.ip.daddr, 16);
	proto = o.ip.nexthdr;
#else
	if (o.ip.ihl != 5)
		return 0;
	*endpoint = o.ip.daddr;
	proto = o.ip.protocol;
#endif
	if (proto == PROTO_IN_IP)
		return IP_HEADER_LENGTH;
	return proto == IPPROTO_UDP && o.udp.dest == c->dsr_port ? OUTER_UDP_LENGTH : 0;
}

/* Has the client of the quoted packet such a flow, to that endpoint? */
INLINE bool was_sent_on(const struct packet *inner, const ip_addr *endpoint)
{
	struct flow_key key;
	struct found f;
	struct ends ends;

	make_key(&key, inner);
	return find_cell(&key, &f) && goes_whole(kind_of(&f)) && read_ends(&f, &ends) &&
	       same_address(&ends.addr, endpoint);
}

/* To the client, whatever way the error came. */
INLINE int send_to_client(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_fib_lookup fib;
	int found;

	make_fib_question(&fib, skb, p, &p->src);
	found = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return DROP;
	return redirect_neigh(fib.ifindex, 0, 0, 0);
}

/* The program. All in front of the packet that is quoted goes, and an error of our own about it
 * comes. */
INLINE int outer_error(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct packet p, inner = {}, quote;
	struct error error;
	ip_addr endpoint;
	u32 outer, mtu, gone;

	if (!c || !restore_packet(skb, &p))
		return PASS;
	mtu = told_mtu(skb, &p);
	outer = mtu ? read_quoted_outer(skb, c, &p, &endpoint) : 0;
	if (!outer || mtu <= outer || p.l4_length < 8 + outer)
		return PASS;
	quote = p;
	quote.l4 += outer;
	quote.l4_length -= outer;
	if (!parse_quote(skb, &quote, &inner) || inner.l4_length < QUOTED_TRANSPORT ||
	    !was_sent_on(&inner, &endpoint))
		return PASS;
	gone = inner.l3 - p.l3;
	if (bpf_skb_adjust_room(skb, -(s32)gone, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return DROP;
	inner.l3 -= gone;
	inner.l4 -= gone;
	error = (struct error)ICMP_TOO_BIG(mtu - outer);
	count(skb, REASON_DSR_TOO_BIG);
	return make_error(skb, &inner, &error) ? send_to_client(skb, &inner) : DROP;
}
