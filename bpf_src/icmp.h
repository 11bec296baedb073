/* ICMP errors about translated flows: the packet they quote is one that the receiver never sent or
 * got in that form, so the quote is translated as well as the outer header. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "config.h"
#include "outer.h"
#include "address.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "stats.h"
#include "tailcall.h"
#include "flow.h"
#include "checksum.h"
#include "nat.h"

INLINE bool is_icmp_error(struct __sk_buff *skb, const struct packet *p)
{
	u8 type;

	if (p->fragment == FRAGMENT_LATER || bpf_skb_load_bytes(skb, p->l4, &type, 1))
		return false;
#if FAMILY == 6
	return type >= 1 && type <= 4;
#else
	return type == 3 || type == 11 || type == 12;
#endif
}

/* The quoted packet: addresses, ports and offsets within the outer frame. `l4_length` is how much
 * of its transport header and payload is quoted. */
INLINE bool parse_quote(struct __sk_buff *skb, const struct packet *outer, struct packet *inner)
{
	u32 end = outer->l4 + outer->l4_length;
	u16 ports[2];

	__builtin_memset(inner, 0, sizeof(*inner));
	inner->l3 = outer->l4 + 8;
#if FAMILY == 4
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, inner->l3, &ip, sizeof(ip)) || ip.ihl < 5 || ip.version != 4)
		return false;
	if (ntohs(ip.frag_off) & IP_FRAGMENT_OFFSET)
		return false;
	inner->src = ip.saddr;
	inner->dst = ip.daddr;
	inner->proto = ip.protocol;
	inner->l4 = inner->l3 + ip.ihl * 4;
#else
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, inner->l3, &ip, sizeof(ip)) || ip.version != 6)
		return false;
	__builtin_memcpy(&inner->src, &ip.saddr, 16);
	__builtin_memcpy(&inner->dst, &ip.daddr, 16);
	inner->proto = ip.nexthdr;
	inner->l4_length = ntohs(ip.payload_len);
	if (skip_extensions(skb, inner) || inner->fragment == FRAGMENT_LATER)
		return false;
#endif
	if (!has_ports(inner->proto) || inner->l4 + sizeof(ports) > end ||
	    bpf_skb_load_bytes(skb, inner->l4, ports, sizeof(ports)))
		return false;
	inner->l4_length = end - inner->l4;
	inner->sport = ports[0];
	inner->dport = ports[1];
	return true;
}

/* Changes one address and the ports of the quote; the ICMP checksum follows. */
INLINE int rewrite_quote(struct __sk_buff *skb, u32 icmp_check, struct packet *inner, bool source,
			 ip_addr *to, u16 sport, u16 dport)
{
	u32 old_ports = join_ports(inner->sport, inner->dport), ports = join_ports(sport, dport);
	ip_addr from = source ? inner->src : inner->dst;
	u16 address = address_difference(&from, to);
	u16 port = fold((u64)(u32)~old_ports + ports);
	u32 check_offset = checksum_offset(inner);
	u32 changed = port;
	u16 check;
	int error = 0;

	/* The quote may end before TCP's checksum, which is none of our business then. */
	if (check_offset && check_offset + 2 <= inner->l4 + inner->l4_length &&
	    !bpf_skb_load_bytes(skb, check_offset, &check, 2) &&
	    (check || inner->proto == IPPROTO_TCP)) {
		changed += (u16)~check;
		check = adjusted(check, fold((u64)address + port));
		changed += check;
		error |= bpf_skb_store_bytes(skb, check_offset, &check, 2, 0);
	}
#if FAMILY == 4
	/* The quoted header's own checksum makes up for the address. */
	error |= bpf_l3_csum_replace(skb, inner->l3 + 10, from, *to, 4);
	error |= bpf_skb_store_bytes(skb, inner->l3 + (source ? 12 : 16), to, 4, 0);
#else
	changed += address;
	error |= bpf_skb_store_bytes(skb, inner->l3 + (source ? 8 : 24), to, 16, 0);
#endif
	error |= bpf_skb_store_bytes(skb, inner->l4, &ports, 4, 0);
	error |= bpf_l4_csum_replace(skb, icmp_check, 0, changed, 0);
	return error;
}

/* The outer address; ICMPv6's checksum covers it, ICMP's does not. */
INLINE int rewrite_outer(struct __sk_buff *skb, const struct packet *outer, bool source,
			 ip_addr *to)
{
	ip_addr from = source ? outer->src : outer->dst;
	u16 difference = address_difference(&from, to);
	void *network;

	if (FAMILY == 6 && adjust_for_address(skb, outer->l4 + 2, 0, difference))
		return -EFAULT;
	network = packet_start(skb) + (outer->l3 & L3_MASK);
	if (network + IP_HEADER_LENGTH > packet_end(skb))
		return -EFAULT;
	store_address(network, source, to, difference);
	return 0;
}

/* `reply`: towards the pod, about what it sent. Otherwise from the pod, about what it received.
 * What has no ports in its quote may be of a packet in a packet. */
INLINE int icmp_error(struct __sk_buff *skb, bool reply)
{
	const struct config *c = get_config();
	struct packet outer, inner;
	struct flow_key key = {};
	struct ends ends;
	struct found f;
	int error;

	if (!restore_packet(skb, &outer))
		return PASS;
	if (!parse_quote(skb, &outer, &inner) || (c && is_outer_port(c, inner.proto, inner.dport)))
		return reply ? PASS : hand_to(skb, FAMILY_PROGRAM(OUTER_ERROR));
	/* It is told to whoever sent what it is about. */
	if (!same_address(&outer.dst, &inner.src))
		return PASS;
	key.src = inner.dst;
	key.sport = inner.dport;
	key.dst = inner.src;
	key.dport = inner.sport;
	key.proto = inner.proto;
	if (!find_cell(&key, &f) || kind_of(&f) & CELL_NOTE || !read_ends(&f, &ends))
		return PASS;
	/* Where the packets that it is about would be translated, and nowhere else. */
	if (reply ? !acts_going_out(kind_of(&f)) : !acts_coming_in(kind_of(&f)))
		return PASS;
	/* About what the endpoint has answered, which its node alone has translated. */
	if (goes_whole(kind_of(&f)))
		return hand_to_encapsulate(skb, &outer, &f);
	/* What comes in about a flow of the node's own is about what its client sent. */
	if (kind_of(&f) & CELL_REPLY)
		reply = true;
	count(skb, REASON_ICMP_TRANSLATED);
	error = reply ? rewrite_quote(skb, outer.l4 + 2, &inner, false, &ends.addr,
				      ends.client_port, ends.port)
		      : rewrite_quote(skb, outer.l4 + 2, &inner, true, &ends.addr, ends.port,
				      ends.client_port);
	/* A router on the way speaks for itself; the backend speaks as the service. */
	if (!reply || same_address(&outer.src, &inner.dst))
		error |= rewrite_outer(skb, &outer, reply, &ends.addr);
	if (!error)
		return PASS;
	count(skb, REASON_REWRITE_FAILED);
	return DROP;
}
