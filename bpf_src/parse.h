/* What a packet says: headers are read here and nowhere else, never beyond the packet's end. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"

enum fragment_kind { WHOLE, FRAGMENT_FIRST, FRAGMENT_LATER };

struct packet {
	ip_addr src;
	ip_addr dst;
	__u16 sport; /* zero where the protocol has none */
	__u16 dport;
	__u8 proto;
	__u8 tcp_flags;
	__u8 fragment; /* enum fragment_kind; a later one has no ports of its own */
	__u8 origin;   /* enum origin */
	__u16 l3;      /* offsets from the start of the frame */
	__u16 l4;
	__u32 tcp_ack;	 /* acknowledgement number, network byte order */
	__u32 l4_length; /* bytes from l4 to the end of the datagram, padding not counted */
	__u32 id;	 /* of a fragment */
};

/* What the offsets can be: link header and two VLAN tags, then IP header and extension headers. The
 * verifier follows no value through a tail call: where one is used as an offset, it is masked. */
#define L3_BITS 6
#define L3_MASK ((1 << L3_BITS) - 1)
#define L4_BITS 14
#define L4_MASK ((1 << L4_BITS) - 1)

#define IP_DONT_FRAGMENT 0x4000
#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff
#define SCTP_HEADER_LENGTH 12
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Bytes that parsing wants in the linear part of any packet: no more than what a bulk transfer's
 * packets have there, which would else be pulled together one by one. */
#define HEADERS_LINEAR (14 + IP_HEADER_LENGTH + 20)

#if FAMILY == 6
#define IP_HEADER_LENGTH 40
#define PROTO_ICMP IPPROTO_ICMPV6
#define ETHERTYPE ETH_P_IPV6
#else
#define IP_HEADER_LENGTH 20
#define PROTO_ICMP IPPROTO_ICMP
#define ETHERTYPE ETH_P_IP
#endif

/* Network header fields are read through these: the frame may be unlinear beyond what we pulled. */
INLINE void *packet_start(struct __sk_buff *skb)
{
	return (void *)(long)skb->data;
}

INLINE void *packet_end(struct __sk_buff *skb)
{
	return (void *)(long)skb->data_end;
}

/* Headers must be linear to be read directly; a frame whose data lies in pages is pulled together.
 */
INLINE void make_linear(struct __sk_buff *skb)
{
	void *start = packet_start(skb);
	u32 linear = packet_end(skb) - start;

	if (linear < HEADERS_LINEAR && linear < skb->len) {
		u32 wanted = skb->len < 256 ? skb->len : 256;

		bpf_skb_pull_data(skb, wanted);
	}
}

/* Offset of the IP header. The kernel keeps an outer VLAN tag beside the frame; what is still in
 * the frame is followed twice. 0: not of this family. */
INLINE int find_ip_header(struct __sk_buff *skb)
{
	void *data = packet_start(skb), *end = packet_end(skb);
	struct ethhdr *eth = data;
	u32 offset = ETH_HLEN;
	u16 type;

	if (data + ETH_HLEN > end)
		return -1;
	type = eth->h_proto;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (type != htons(ETH_P_8021Q) && type != htons(ETH_P_8021AD))
			break;
		if (data + offset + 4 > end)
			return -1;
		type = *(u16 *)(data + offset + 2);
		offset += 4;
	}
	return type == htons(ETHERTYPE) ? offset : -1;
}

INLINE bool has_ports(u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP;
}

/* Ports and TCP flags of a packet whose addresses are known. 0 or a reason. */
INLINE int parse_transport(struct __sk_buff *skb, struct packet *p)
{
	void *data = packet_start(skb), *end = packet_end(skb);
	u32 l4 = p->l4 & L4_MASK;

	if (p->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = data + l4;

		if ((void *)(tcp + 1) > end)
			return REASON_TRUNCATED;
		if (tcp->doff < 5 || tcp->doff * 4 > p->l4_length)
			return REASON_MALFORMED;
		p->sport = tcp->source;
		p->dport = tcp->dest;
		p->tcp_flags = *((u8 *)tcp + 13);
	} else if (p->proto == IPPROTO_UDP) {
		struct udphdr *udp = data + l4;
		u32 length;

		if ((void *)(udp + 1) > end)
			return REASON_TRUNCATED;
		length = ntohs(udp->len);
		if (p->l4_length < sizeof(*udp) || length < sizeof(*udp) ||
		    (length > p->l4_length && p->fragment == WHOLE))
			return REASON_MALFORMED;
		p->sport = udp->source;
		p->dport = udp->dest;
	} else if (p->proto == IPPROTO_SCTP) {
		u16 *ports = data + l4;

		if ((void *)ports + SCTP_HEADER_LENGTH > end)
			return REASON_TRUNCATED;
		if (p->l4_length < SCTP_HEADER_LENGTH)
			return REASON_MALFORMED;
		p->sport = ports[0];
		p->dport = ports[1];
	}
	return 0;
}

/* The transport header of a plain packet (plain.h), read where it lies: the caller has checked that
 * eight bytes of it are there. False for one that contradicts itself, or has no such header. */
INLINE bool parse_plain_transport(struct packet *p, void *transport, void *end)
{
	p->sport = ((struct udphdr *)transport)->source;
	p->dport = ((struct udphdr *)transport)->dest;
	if (p->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = transport;

		if ((void *)(tcp + 1) > end || tcp->doff < 5 || tcp->doff * 4 > p->l4_length)
			return false;
		p->tcp_flags = *((u8 *)tcp + 13);
		p->tcp_ack = tcp->ack_seq;
		return true;
	}
	if (p->proto == IPPROTO_UDP) {
		u32 length = ntohs(((struct udphdr *)transport)->len);

		return length >= sizeof(struct udphdr) && length <= p->l4_length;
	}
	return false;
}

#if FAMILY == 4
INLINE int parse_network(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr *ip = packet_start(skb) + p->l3;
	u32 total, offset, header;

	if ((void *)(ip + 1) > packet_end(skb))
		return REASON_TRUNCATED;
	header = ip->ihl * 4;
	if (ip->version != 4 || header < sizeof(*ip))
		return REASON_MALFORMED;
	total = ntohs(ip->tot_len);
	if (!total && skb->gso_size) /* a GSO packet above 64 KiB */
		total = skb->len - p->l3;
	if (total < header)
		return REASON_MALFORMED;
	if (total + p->l3 > skb->len)
		return REASON_TRUNCATED;
	p->src = ip->saddr;
	p->dst = ip->daddr;
	p->proto = ip->protocol;
	p->l4 = p->l3 + header;
	p->l4_length = total - header;
	offset = ntohs(ip->frag_off);
	if (offset & (IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET)) {
		p->id = ip->id;
		p->fragment = offset & IP_FRAGMENT_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
	}
	return 0;
}
#else
/* Follows extension headers to the transport header. */
INLINE int skip_extensions(struct __sk_buff *skb, struct packet *p)
{
	u32 offset = p->l3 + IP_HEADER_LENGTH;
	u8 next = p->proto;

#pragma unroll
	for (int i = 0; i <= MAX_IPV6_HEADERS; i++) {
		u8 header[8];
		u32 length;

		/* What follows a later fragment's header is payload, whatever it looks like. */
		if (p->fragment == FRAGMENT_LATER ||
		    (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING &&
		     next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)) {
			u32 passed = offset - p->l3 - IP_HEADER_LENGTH;

			if (passed > p->l4_length)
				return REASON_MALFORMED;
			p->l4_length -= passed;
			p->proto = next;
			p->l4 = offset;
			return 0;
		}
		if (i == MAX_IPV6_HEADERS)
			break;
		if (bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
			return REASON_TRUNCATED;
		length = 8;
		if (next == IPPROTO_FRAGMENT) {
			p->id = *(u32 *)(header + 4);
			if (ntohs(*(u16 *)(header + 2)) & ~7)
				p->fragment = FRAGMENT_LATER;
			else if (header[3] & 1)
				p->fragment = FRAGMENT_FIRST;
		} else {
			length = (header[1] + 1) * 8;
		}
		next = header[0];
		offset += length;
	}
	return REASON_TOO_MANY_HEADERS;
}

INLINE int parse_network(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr *ip = packet_start(skb) + p->l3;
	u32 length;

	if ((void *)(ip + 1) > packet_end(skb))
		return REASON_TRUNCATED;
	if (ip->version != 6)
		return REASON_MALFORMED;
	length = ntohs(ip->payload_len);
	if (!length && skb->gso_size) /* a GSO packet above 64 KiB */
		length = skb->len - p->l3 - IP_HEADER_LENGTH;
	if (length + p->l3 + IP_HEADER_LENGTH > skb->len)
		return REASON_TRUNCATED;
	__builtin_memcpy(&p->src, &ip->saddr, 16);
	__builtin_memcpy(&p->dst, &ip->daddr, 16);
	p->proto = ip->nexthdr;
	p->l4 = p->l3 + IP_HEADER_LENGTH;
	p->l4_length = length;
	if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP)
		return 0;
	return skip_extensions(skb, p);
}
#endif

/* Addresses only: enough to tell whether the packet concerns us. `from` is an origin, with
 * BARE_LINK where the device has no link header. 0 or a reason. */
INLINE int parse_addresses(struct __sk_buff *skb, struct packet *p, u32 from)
{
	int l3 = 0;

	__builtin_memset(p, 0, sizeof(*p));
	p->origin = from & 3;
	make_linear(skb);
	if (!(from & BARE_LINK))
		l3 = find_ip_header(skb);
	if (l3 < 0)
		return REASON_TRUNCATED;
	p->l3 = l3;
	return parse_network(skb, p);
}

/* Ports may lie behind options or extension headers, beyond the linear part. */
INLINE int parse_ports(struct __sk_buff *skb, struct packet *p)
{
	u32 wanted = (p->l4 & L4_MASK) + (p->proto == IPPROTO_TCP ? 20 : 12);
	int reason;

	if (p->fragment == FRAGMENT_LATER)
		return 0;
	reason = parse_transport(skb, p);
	if (reason != REASON_TRUNCATED || bpf_skb_pull_data(skb, wanted))
		return reason;
	return parse_transport(skb, p);
}

INLINE bool starts_connection(const struct packet *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* The number after the segment's last, SYN and FIN included. */
INLINE u32 segment_end(const struct packet *p, const struct tcphdr *tcp)
{
	return ntohl(tcp->seq) + p->l4_length - tcp->doff * 4 + !!(p->tcp_flags & TCP_FIN) +
	       !!(p->tcp_flags & TCP_SYN);
}

/* The sequence number of TCP, network byte order. */
INLINE bool read_tcp_seq(struct __sk_buff *skb, const struct packet *p, u32 *seq)
{
	struct tcphdr *tcp = packet_start(skb) + (p->l4 & L4_MASK);

	if ((void *)(tcp + 1) > packet_end(skb))
		return false;
	*seq = tcp->seq;
	return true;
}
