/* Refusing at once, from here: a TCP reset, or ICMP port unreachable, sent back where the packet
 * came from. No rate limit, no help from the stack. The packet itself becomes the answer.
 *
 * A packet whose checksum is still to be filled in by the device (CHECKSUM_PARTIAL: most of what
 * pods send) stays one, and the device will sum from where the transport header was. So that header
 * stays where it is, and its checksum field is given what that kind of packet needs. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "parse.h"
#include "handoff.h"
#include "checksum.h"

#if FAMILY == 6
#define ICMP_PORT_UNREACHABLE                                                                      \
	{                                                                                          \
		.type = 1, .code = 4                                                               \
	}
#define ICMP_TOO_BIG(mtu)                                                                          \
	{                                                                                          \
		.type = 2, .rest = htonl(mtu)                                                      \
	}
#define QUOTE_MAX (40 + 48 + 8) /* extension headers beyond that: dropped instead */
#else
#define ICMP_PORT_UNREACHABLE                                                                      \
	{                                                                                          \
		.type = 3, .code = 3                                                               \
	}
#define ICMP_TOO_BIG(mtu)                                                                          \
	{                                                                                          \
		.type = 3, .code = 4, .rest = htonl(mtu)                                           \
	}
#define QUOTE_MAX (60 + 8)
#endif
#define QUOTED_TRANSPORT 8
#define ANSWER_TTL 64

/* The helper leaves a CHECKSUM_PARTIAL packet's field alone and changes any other's: the only way
 * to tell from here. The field is restored. */
INLINE bool checksum_pending(struct __sk_buff *skb, u32 offset)
{
	u16 before = 0, after = 0;

	if (bpf_skb_load_bytes(skb, offset, &before, 2) ||
	    bpf_l4_csum_replace(skb, offset, 0, 1, 2) || bpf_skb_load_bytes(skb, offset, &after, 2))
		return false;
	if (before == after)
		return true;
	bpf_skb_store_bytes(skb, offset, &before, 2, 0);
	return false;
}

/* Nothing to swap on a device without link header. */
INLINE void swap_macs(struct __sk_buff *skb, const struct packet *p)
{
	u8 macs[12], swapped[12];

	if (!p->l3 || bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return;
	__builtin_memcpy(swapped, macs + 6, 6);
	__builtin_memcpy(swapped + 6, macs, 6);
	bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0);
}

/* Sum of the pseudo header of an answer: the original's addresses, either way round. */
INLINE s64 pseudo_sum(struct packet *p, u32 proto, u32 length)
{
	u32 tail[2] = {htonl(length), htonl(proto)};
	s64 sum = bpf_csum_diff(0, 0, (void *)&p->src, sizeof(p->src), 0);

	sum = bpf_csum_diff(0, 0, (void *)&p->dst, sizeof(p->dst), sum);
	return bpf_csum_diff(0, 0, (void *)tail, sizeof(tail), sum);
}

/* Turns the IP header at `l3` round: the service answers the client. Other headers stay. */
INLINE int answer_header(struct __sk_buff *skb, struct packet *p, u32 payload)
{
#if FAMILY == 4
	struct iphdr old, ip;
	s64 difference;

	if (bpf_skb_load_bytes(skb, p->l3, &old, sizeof(old)))
		return -EFAULT;
	ip = old;
	ip.saddr = p->dst;
	ip.daddr = p->src;
	ip.tot_len = htons(p->l4 - p->l3 + payload);
	ip.id = 0;
	ip.frag_off = htons(IP_DONT_FRAGMENT);
	ip.ttl = ANSWER_TTL;
	difference = bpf_csum_diff((void *)&old, sizeof(old), (void *)&ip, sizeof(ip), 0);
	ip.check = ~fold((u32)difference + (u16)~old.check);
	return bpf_skb_store_bytes(skb, p->l3, &ip, sizeof(ip), 0);
#else
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, p->l3, &ip, sizeof(ip)))
		return -EFAULT;
	__builtin_memcpy(&ip.saddr, &p->dst, 16);
	__builtin_memcpy(&ip.daddr, &p->src, 16);
	ip.payload_len = htons(p->l4 - p->l3 - IP_HEADER_LENGTH + payload);
	ip.hop_limit = ANSWER_TTL;
	return bpf_skb_store_bytes(skb, p->l3, &ip, sizeof(ip), 0);
#endif
}

/* Where it came from: out of the same interface, or into it for the node's own socket. */
INLINE int send_back(struct __sk_buff *skb, const struct packet *p)
{
	return bpf_redirect(skb->ifindex, p->origin == ORIGIN_NODE ? BPF_F_INGRESS : 0);
}

/* RFC 9293, 3.10.7.1: what a closed port answers. */
INLINE int answer_reset(struct __sk_buff *skb, struct packet *p)
{
	struct tcphdr old, tcp = {};
	bool pending = checksum_pending(skb, p->l4 + 16);
	s64 sum;
	u32 length;

	if (bpf_skb_load_bytes(skb, p->l4, &old, sizeof(old)))
		return DROP;
	length = p->l4_length - old.doff * 4;
	tcp.source = old.dest;
	tcp.dest = old.source;
	tcp.doff = sizeof(tcp) / 4;
	tcp.rst = 1;
	if (old.ack) {
		tcp.seq = old.ack_seq;
	} else {
		tcp.ack = 1;
		tcp.ack_seq = htonl(ntohl(old.seq) + length + old.syn + old.fin);
	}
	sum = pseudo_sum(p, IPPROTO_TCP, sizeof(tcp));
	if (pending) {
		tcp.check = fold(sum);
	} else {
		sum = bpf_csum_diff(0, 0, (void *)&tcp, sizeof(tcp), sum);
		tcp.check = ~fold(sum);
	}
	if (bpf_skb_change_tail(skb, p->l4 + sizeof(tcp), 0) ||
	    bpf_skb_store_bytes(skb, p->l4, &tcp, sizeof(tcp), 0) ||
	    answer_header(skb, p, sizeof(tcp)))
		return DROP;
	swap_macs(skb, p);
	return send_back(skb, p);
}

/* The first eight bytes of an ICMP error; its checksum is filled in. */
struct error {
	__u8 type;
	__u8 code;
	__u16 check;
	__u32 rest;
};

struct error_headers {
#if FAMILY == 6
	struct ipv6hdr ip;
#else
	struct iphdr ip;
#endif
	struct error icmp;
} __attribute__((packed));

INLINE void fill_error(struct error_headers *u, struct packet *p, const struct error *error,
		       u32 quoted, s64 quote_sum)
{
	u32 icmp = 8 + quoted;
	s64 sum;

	__builtin_memset(u, 0, sizeof(*u));
#if FAMILY == 4
	u->ip.version = 4;
	u->ip.ihl = 5;
	u->ip.tot_len = htons(sizeof(u->ip) + icmp);
	u->ip.frag_off = htons(IP_DONT_FRAGMENT);
	u->ip.ttl = ANSWER_TTL;
	u->ip.protocol = IPPROTO_ICMP;
	u->ip.saddr = p->dst;
	u->ip.daddr = p->src;
	u->ip.check = ~fold(bpf_csum_diff(0, 0, (void *)&u->ip, sizeof(u->ip), 0));
	sum = quote_sum;
#else
	u->ip.version = 6;
	u->ip.payload_len = htons(icmp);
	u->ip.nexthdr = IPPROTO_ICMPV6;
	u->ip.hop_limit = ANSWER_TTL;
	__builtin_memcpy(&u->ip.saddr, &p->dst, 16);
	__builtin_memcpy(&u->ip.daddr, &p->src, 16);
	sum = (u32)quote_sum + (u64)fold(pseudo_sum(p, IPPROTO_ICMPV6, icmp));
	sum = (u32)sum + (sum >> 32);
#endif
	u->icmp = *error;
	sum = bpf_csum_diff(0, 0, (void *)&u->icmp, 8, sum);
	u->icmp.check = ~fold(sum);
}

/* Sum of what is quoted, as it will be on the wire: if the device still fills in the checksum, the
 * transport header that it covers will sum to the complement of what the field holds now. */
INLINE s64 sum_quote(struct __sk_buff *skb, struct packet *p, u32 headers, bool pending)
{
	u8 quote[QUOTE_MAX] = {};
	u32 length = headers + (pending ? 0 : QUOTED_TRANSPORT);
	u16 held;
	s64 sum;

	if (length < IP_HEADER_LENGTH || length > sizeof(quote) ||
	    bpf_skb_load_bytes(skb, p->l3, quote, length))
		return -1;
	sum = bpf_csum_diff(0, 0, (void *)quote, sizeof(quote), 0);
	if (!pending)
		return sum;
	if (bpf_skb_load_bytes(skb, checksum_offset(p), &held, 2))
		return -1;
	return (u32)fold(sum) + (u16)~held;
}

/* Moves the link header, with its VLAN tags, to the new front of the frame. */
INLINE int move_link_header(struct __sk_buff *skb, u32 length, u32 by)
{
	u32 rest = (length - 12) & 15;
	u8 link[16] = {};

	if (!length)
		return 0;
	if (!rest || bpf_skb_load_bytes(skb, by, link, 12) ||
	    bpf_skb_store_bytes(skb, 0, link, 12, 0) ||
	    bpf_skb_load_bytes(skb, by + 12, link, rest))
		return -EFAULT;
	return bpf_skb_store_bytes(skb, 12, link, rest, 0);
}

/* Room for the new headers goes in front of the frame, so that nothing of the quote moves. Of TCP
 * whose checksum the device fills in, the whole header is quoted, or there would be no field. */
INLINE bool make_error(struct __sk_buff *skb, struct packet *p, const struct error *error)
{
	struct error_headers answer;
	u32 headers = p->l4 - p->l3, check = checksum_offset(p);
	bool pending = check && checksum_pending(skb, check);
	u32 quoted = pending && p->proto == IPPROTO_TCP ? sizeof(struct tcphdr) : QUOTED_TRANSPORT;
	s64 sum;

	if (headers > QUOTE_MAX - QUOTED_TRANSPORT || p->l4_length < quoted)
		return false;
	sum = sum_quote(skb, p, headers, pending);
	if (sum < 0)
		return false;
	fill_error(&answer, p, error, headers + quoted, sum);
	return !bpf_skb_change_tail(skb, p->l4 + quoted, 0) &&
	       !bpf_skb_change_head(skb, sizeof(answer), 0) &&
	       !move_link_header(skb, p->l3, sizeof(answer)) &&
	       !bpf_skb_store_bytes(skb, p->l3, &answer, sizeof(answer), 0);
}

INLINE int answer_error(struct __sk_buff *skb, struct packet *p, const struct error *error)
{
	if (!make_error(skb, p, error))
		return DROP;
	swap_macs(skb, p);
	return send_back(skb, p);
}

INLINE int answer(struct __sk_buff *skb)
{
	struct error error = ICMP_PORT_UNREACHABLE;
	struct packet p;

	if (!restore_packet(skb, &p) || p.fragment == FRAGMENT_LATER)
		return DROP;
	if (p.proto != IPPROTO_TCP)
		return answer_error(skb, &p, &error);
	/* A reset is never answered with one. */
	return p.tcp_flags & TCP_RST ? DROP : answer_reset(skb, &p);
}
