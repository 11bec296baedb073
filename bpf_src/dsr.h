/* DSR: a flow from outside whose endpoint is on another node, and whose answers do not come back
 * through this one. The packet, still addressed to the service, goes inside an outer header to the
 * endpoint's address, which says by that which endpoint was chosen (arrive.h is the other end):
 *
 *   client:cp -> service:sp      coming in: becomes
 *   node:hash -> backend:port [client:cp -> service:sp]      and leaves by the device that leads
 * there
 *
 * One cell, of what comes in alone. Where the service's address is the node's own, it is the outer
 * source too: so the other end knows whose address it answers from. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "config.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "claim.h"
#include "account.h"
#include "select.h"
#include "beat.h"
#include "cpu.h"
#include "flow.h"
#include "stats.h"
#include "decided.h"
#include "tell.h"
#include "tailcall.h"
#include "masquerade.h"
#include "mss.h"
#include "outer.h"
#include "whole.h"
#include "toobig.h"
#include "open.h"

#if FAMILY == 6
#define ENCAP_FAMILY BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
#else
#define ENCAP_FAMILY BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
#endif

/* The program for a packet that begins such a flow. */
INLINE int open_dsr(struct __sk_buff *skb)
{
	u32 turn = handoff(skb)->turn, generation = new_generation(), beat = now(), place;
	struct choice choice = {};
	struct flow_key key;
	struct packet p;
	struct found f;

	if (!restore_packet(skb, &p) ||
	    !restore_choice(&choice, &p, handoff(skb)->backend, handoff(skb)->service))
		return DROP;
	make_key(&key, &p);
	place = reserve_cell(&key, &p.src, CELL_DSR, generation);
	if (place == CELL_FULL)
		return drop(skb, REASON_FLOWS_FULL);
	if (!IS_PLACE(place))
		return hand_to_turn(skb, turn, FAMILY_PROGRAM(RETRY));
	fill_cell(place, &choice.addr, choice.port, p.sport, choice.backend, choice.service, place,
		  beat);
	if (!get_cell_in(true, place, &f))
		return DROP;
	f.state->packets = 1;
	f.state->bytes += skb->len - p.l3;
	tell_opened(place, beat);
	publish_cell(place, p.proto == IPPROTO_TCP ? STATE_SYN : STATE_DATAGRAM);
	count_opened(choice.backend, choice.service);
	count(skb, REASON_FORWARDED);
	return hand_to_encapsulate(skb, &p, &f);
}

/* How long the largest of the packets is that this one becomes on the wire, from its IP header on.
 */
INLINE u32 wire_length(struct __sk_buff *skb, const struct packet *p)
{
	u32 headers = p->l4 - p->l3 + sizeof(struct udphdr);
	u8 offset;

	if (!skb->gso_size)
		return p->l4 - p->l3 + p->l4_length;
	if (p->proto == IPPROTO_TCP && !bpf_skb_load_bytes(skb, p->l4 + 12, &offset, 1))
		headers = p->l4 - p->l3 + (offset >> 4) * 4;
	return headers + skb->gso_size;
}

/* What a close or a reset is measured by. */
INLINE void note_packet(struct __sk_buff *skb, const struct packet *p, struct cell_state *state)
{
	struct tcphdr *tcp = packet_start(skb) + (p->l4 & L4_MASK);

	if (p->proto == IPPROTO_TCP && p->fragment != FRAGMENT_LATER &&
	    (void *)(tcp + 1) <= packet_end(skb))
		note_sequence(p, segment_end(p, tcp), state);
}

/* Where the packet goes next, and by which address of the node's. */
struct route {
	ip_addr source;
	u32 ifindex;
	u32 mtu; /* if it does not fit: how long it may be there */
};

INLINE int find_route(struct __sk_buff *skb, const struct config *c, const struct packet *p,
		      const ip_addr *endpoint, u32 length, struct route *route)
{
	struct bpf_fib_lookup fib;
	int found = -EINVAL;
	struct device *device;

	make_fib_question(&fib, skb, p, endpoint);
	fib.tot_len = length;
	if (!(c->flags & CONFIG_MASQUERADE_BY_DEVICE)) {
		found = bpf_fib_lookup(skb, &fib, sizeof(fib), FIB_SKIP_NEIGHBOUR | FIB_SOURCE);
#if FAMILY == 6
		__builtin_memcpy(&route->source, fib.ipv6_src, sizeof(route->source));
#else
		route->source = fib.ipv4_src;
#endif
	}
	if (found == -EINVAL) { /* a kernel that does not know the flags */
		found = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
		if (found == BPF_FIB_LKUP_RET_NO_NEIGH)
			found = BPF_FIB_LKUP_RET_SUCCESS;
		route->ifindex = fib.ifindex;
		device = devices.lookup(&route->ifindex);
		narrow(&route->source, device ? DEVICE_ADDRESS(device) : NODE_ADDRESS(c));
	}
	route->ifindex = fib.ifindex;
	route->mtu = fib.mtu_result;
	if (is_zero(&route->source))
		narrow(&route->source, NODE_ADDRESS(c));
	return found;
}

/* Takes off what is behind the packet, and has been counted: padding, or what the other half of one
 * that was cut has (toobig.h). */
INLINE bool trim(struct __sk_buff *skb, const struct packet *p, struct cell_state *state)
{
	u32 end = p->l4 + p->l4_length;

	if (skb->gso_size || skb->len <= end)
		return true;
	state->bytes -= skb->len - end;
	return !bpf_skb_change_tail(skb, end, 0);
}

/* Puts the outer header before the packet. */
INLINE bool put_outer(struct __sk_buff *skb, const struct config *c, const struct packet *p,
		      const ip_addr *source, const ip_addr *endpoint)
{
	bool udp = !(c->flags & CONFIG_DSR_IPIP);
	u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | ENCAP_FAMILY;
	u32 l3 = p->l3 & L3_MASK;
	void *network = packet_start(skb) + l3;
	struct outer o = {};

	if (network + IP_HEADER_LENGTH > packet_end(skb))
		return false;
	fill_outer(&o, c, p, network, source, endpoint);
	if (!udp)
		return !bpf_skb_adjust_room(skb, IP_HEADER_LENGTH, BPF_ADJ_ROOM_MAC, flags) &&
		       !bpf_skb_store_bytes(skb, l3, &o, IP_HEADER_LENGTH, BPF_F_RECOMPUTE_CSUM);
	flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	return !bpf_skb_adjust_room(skb, OUTER_UDP_LENGTH, BPF_ADJ_ROOM_MAC, flags) &&
	       !bpf_skb_store_bytes(skb, l3, &o, OUTER_UDP_LENGTH, BPF_F_RECOMPUTE_CSUM);
}

/* What is cut comes again in parts, which are counted then. */
INLINE int hand_to_too_big(struct __sk_buff *skb, const struct packet *p, struct cell_state *state,
			   u32 mtu)
{
	if (may_be_cut(skb, p, mtu)) {
		state->packets--;
		state->bytes -= skb->len - p->l3;
	}
	handoff(skb)->mtu = mtu;
	programs.call(skb, FAMILY_PROGRAM(TOO_BIG));
	return DROP;
}

/* The program that sends a packet to the endpoint whole; handoff says by which cell. What it told
 * the flow is done. */
INLINE int encapsulate(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	u32 generation = handoff(skb)->generation, outer;
	struct route route = {};
	struct ends ends;
	struct packet p;
	struct found f;
	int found;

	if (!c || !get_cell(handoff(skb)->place & LINK_PLACE_MASK, &f) ||
	    HEAD_GENERATION(f.head) != generation || !restore_packet(skb, &p) ||
	    !read_ends(&f, &ends))
		return DROP;
	note_packet(skb, &p, f.state);
	outer = outer_length(c);
	found = find_route(skb, c, &p, &ends.addr, wire_length(skb, &p) + outer, &route);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return hand_to_too_big(skb, &p, f.state, route.mtu - outer);
	if (found != BPF_FIB_LKUP_RET_SUCCESS)
		return drop(skb, REASON_DSR_UNROUTED);
	if (is_called_by_own(&p))
		route.source = p.dst;
	if (p.proto == IPPROTO_TCP && p.tcp_flags & TCP_SYN)
		lower_mss(skb, &p, outer);
	if (!trim(skb, &p, f.state) || !put_outer(skb, c, &p, &route.source, &ends.addr))
		return drop(skb, REASON_REWRITE_FAILED);
	return redirect_neigh(route.ifindex, 0, 0, 0);
}
