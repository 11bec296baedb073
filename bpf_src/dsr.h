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
#include "frontend.h"
#include "stats.h"
#include "decided.h"
#include "tell.h"
#include "tailcall.h"
#include "checksum.h"
#include "masquerade.h"
#include "mss.h"
#include "tcp.h"
#include "outer.h"
#include "open.h"

#define OUTER_TTL 64
#define OUTER_PORT_FIRST 0xc000 /* of 16384, which nobody has for good (RFC 6335) */

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

/* Where the client's next packet will stand: what a close or a reset must (track_one_way() in
 * tcp.h).
 */
INLINE void note_sequence(struct __sk_buff *skb, const struct packet *p, struct cell_state *state)
{
	struct tcphdr *tcp = packet_start(skb) + (p->l4 & L4_MASK);
	u32 end;

	if (p->proto != IPPROTO_TCP || p->fragment == FRAGMENT_LATER || p->tcp_flags & TCP_RST ||
	    (void *)(tcp + 1) > packet_end(skb))
		return;
	end = segment_end(p, tcp);
	if (p->tcp_flags & TCP_SYN || (s32)(end - ntohl(state->ack)) > 0)
		state->ack = htonl(end);
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

/* Has the node itself the address that was called? */
INLINE bool is_called_by_own(const struct packet *p)
{
	struct frontend_key key;
	struct frontend called;

	make_frontend_key(&key, &p->dst, p->dport, p->proto);
	return find_frontend(&key, &called) && called.flags & FRONTEND_SHARED;
}

/* The outer IP header around a packet of `length` bytes; more than fit into its field, of a bundle
 * above 64 KiB, are filled in when it is cut. */
INLINE void fill_outer_ip(struct outer *o, const void *inner, const ip_addr *source,
			  const ip_addr *endpoint, u32 length, bool udp)
{
	u8 proto = udp ? IPPROTO_UDP : PROTO_IN_IP;

#if FAMILY == 6
	u32 payload = length + (udp ? sizeof(struct udphdr) : 0);

	*(u32 *)&o->ip = *(u32 *)inner; /* version, class, flow label */
	o->ip.payload_len = payload > 0xffff ? 0 : htons(payload);
	o->ip.nexthdr = proto;
	o->ip.hop_limit = OUTER_TTL;
	__builtin_memcpy(&o->ip.saddr, source, 16);
	__builtin_memcpy(&o->ip.daddr, endpoint, 16);
#else
	const struct iphdr *ip = inner;
	u32 total = length + (udp ? OUTER_UDP_LENGTH : IP_HEADER_LENGTH);

	o->ip.version = 4;
	o->ip.ihl = 5;
	o->ip.tos = ip->tos;
	o->ip.tot_len = total > 0xffff ? 0 : htons(total);
	o->ip.frag_off = ip->frag_off & htons(IP_DONT_FRAGMENT);
	o->ip.id = o->ip.frag_off ? 0 : next_random();
	o->ip.ttl = OUTER_TTL;
	o->ip.protocol = proto;
	o->ip.saddr = *source;
	o->ip.daddr = *endpoint;
	o->ip.check = ~fold(bpf_csum_diff(0, 0, (void *)&o->ip, sizeof(o->ip), 0));
#endif
}

/* Without a checksum of its own, which would need the sum of the whole packet: the packet inside
 * has one (RFC 6936). */
INLINE void fill_outer_udp(struct outer *o, const struct config *c, const struct packet *p,
			   u32 length)
{
	const struct table *t = get_table();
	struct flow_key key;
	u32 total = length + sizeof(o->udp);

	make_key(&key, p);
	o->udp.source = htons(OUTER_PORT_FIRST | (t ? hash_key(&key, t) >> 50 : 0));
	o->udp.dest = c->dsr_port;
	o->udp.len = total > 0xffff ? 0 : htons(total);
}

/* Puts the outer header before the packet. */
INLINE bool put_outer(struct __sk_buff *skb, const struct config *c, const struct packet *p,
		      const ip_addr *source, const ip_addr *endpoint)
{
	bool udp = !(c->flags & CONFIG_DSR_IPIP);
	u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | ENCAP_FAMILY;
	u32 length = p->l4 - p->l3 + p->l4_length, l3 = p->l3 & L3_MASK;
	void *network = packet_start(skb) + l3;
	struct outer o = {};

	if (network + IP_HEADER_LENGTH > packet_end(skb))
		return false;
	fill_outer_ip(&o, network, source, endpoint, length, udp);
	if (!udp)
		return !bpf_skb_adjust_room(skb, IP_HEADER_LENGTH, BPF_ADJ_ROOM_MAC, flags) &&
		       !bpf_skb_store_bytes(skb, l3, &o, IP_HEADER_LENGTH, BPF_F_RECOMPUTE_CSUM);
	fill_outer_udp(&o, c, p, length);
	flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	return !bpf_skb_adjust_room(skb, OUTER_UDP_LENGTH, BPF_ADJ_ROOM_MAC, flags) &&
	       !bpf_skb_store_bytes(skb, l3, &o, OUTER_UDP_LENGTH, BPF_F_RECOMPUTE_CSUM);
}

INLINE int hand_to_too_big(struct __sk_buff *skb, u32 mtu)
{
	count(skb, REASON_DSR_TOO_BIG);
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
	note_sequence(skb, &p, f.state);
	outer = outer_length(c);
	found = find_route(skb, c, &p, &ends.addr, wire_length(skb, &p) + outer, &route);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return hand_to_too_big(skb, route.mtu - outer);
	if (found != BPF_FIB_LKUP_RET_SUCCESS)
		return drop(skb, REASON_DSR_UNROUTED);
	if (is_called_by_own(&p))
		route.source = p.dst;
	if (p.proto == IPPROTO_TCP && p.tcp_flags & TCP_SYN)
		lower_mss(skb, &p, outer);
	if (!put_outer(skb, c, &p, &route.source, &ends.addr))
		return drop(skb, REASON_REWRITE_FAILED);
	return redirect_neigh(route.ifindex, 0, 0, 0);
}
