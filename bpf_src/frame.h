/* A frame at its device's driver, before the stack has it: reading it, and writing both its ends at
 * once. Nothing is written before all of it is certain. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
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
#include "parse.h"
#include "checksum.h"
#include "nat.h"

#define FRAME_L4 (ETH_HLEN + IP_HEADER_LENGTH)

INLINE void *frame_start(struct xdp_md *ctx)
{
	return (void *)(long)ctx->data;
}

INLINE void *frame_end(struct xdp_md *ctx)
{
	return (void *)(long)ctx->data_end;
}

/* Bytes behind the link header, padding included, as TC counts what comes in. */
INLINE u32 frame_length(struct xdp_md *ctx)
{
	return frame_end(ctx) - frame_start(ctx) - ETH_HLEN;
}

/* ... and as it counts what goes out, when the stack has cut the padding off. */
INLINE u32 datagram_length(const struct packet *p)
{
	return p->l4_length + IP_HEADER_LENGTH;
}

/* The network header; the caller checked the bounds. 0, or the length of what it carries. What has
 * more than one lifetime left can be forwarded; a header whose own checksum is wrong is dropped by
 * the stack. */
INLINE u32 read_network(const void *network, struct packet *p, u32 room)
{
	u32 length;
#if FAMILY == 4
	const struct iphdr *ip = network;

	length = ntohs(ip->tot_len);
	if (*(u8 *)ip != 0x45 || ip->frag_off & htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET) ||
	    ip->ttl <= 1 || length <= IP_HEADER_LENGTH || length > room ||
	    fold(sum_of_header(ip)) != 0xffff)
		return 0;
	p->src = ip->saddr;
	p->dst = ip->daddr;
	p->proto = ip->protocol;
	return length - IP_HEADER_LENGTH;
#else
	const struct ipv6hdr *ip = network;

	length = ntohs(ip->payload_len);
	if (ip->version != 6 || ip->hop_limit <= 1 || length + IP_HEADER_LENGTH > room)
		return 0;
	__builtin_memcpy(&p->src, &ip->saddr, 16);
	__builtin_memcpy(&p->dst, &ip->daddr, 16);
	p->proto = ip->nexthdr;
	return length;
#endif
}

/* Is it a plain packet, without tag, options, fragments or extension headers, that the frame has
 * all of? A frame in several buffers shows its first one alone. */
INLINE bool read_frame(struct xdp_md *ctx, struct packet *p)
{
	void *data = frame_start(ctx), *end = frame_end(ctx), *transport = data + FRAME_L4;

	__builtin_memset(p, 0, sizeof(*p));
	p->origin = ORIGIN_NET;
	p->l3 = ETH_HLEN;
	p->l4 = FRAME_L4;
	if (transport + sizeof(struct udphdr) > end ||
	    ((struct ethhdr *)data)->h_proto != htons(ETHERTYPE))
		return false;
	p->l4_length = read_network(data + ETH_HLEN, p, frame_length(ctx));
	return parse_plain_transport(p, transport, end);
}

/* Is the frame for this node? Others are none of its business, as at TC. */
INLINE bool is_to_us(struct xdp_md *ctx)
{
	u32 ifindex = ctx->ingress_ifindex;
	struct xdp_device *own = xdp_devices.lookup(&ifindex);
	u16 *to = frame_start(ctx);

	return own && (void *)to + ETH_HLEN <= frame_end(ctx) &&
	       !((to[0] ^ own->mac[0]) | (to[1] ^ own->mac[1]) | (to[2] ^ own->mac[2]));
}

/* Sums are added up in 64 bits and folded where one is needed: folding takes longer than all that
 * is added. What another address in the place of one adds to a sum. */
INLINE u64 sum_of_change(const ip_addr *from, const ip_addr *to)
{
#if FAMILY == 4
	return (u64)(u32) ~*from + *to;
#else
	u64 sum = 0;

#pragma unroll
	for (int i = 0; i < 4; i++)
		sum += (u64)(u32)~from->w[i] + to->w[i];
	return sum;
#endif
}

/* A checksum field after what it covers has changed (RFC 1624). */
INLINE u16 summed(u16 check, u64 change)
{
	return ~fold((u16)~check + change);
}

/* The field, or 0 if the frame may not be touched. */
INLINE u16 *frame_checksum(struct xdp_md *ctx, const struct packet *p)
{
	void *transport = frame_start(ctx) + FRAME_L4, *end = frame_end(ctx);
	u16 *field = transport + (p->proto == IPPROTO_TCP ? 16 : 6);

	return (void *)(field + 1) > end ? 0 : field;
}

INLINE bool is_finished_frame(struct xdp_md *ctx, const struct packet *p)
{
	u16 *field = frame_checksum(ctx, p);

	if (!field)
		return false;
	return (p->proto == IPPROTO_UDP && !*field) || !is_unfinished(p, *field);
}

/* The device and the link addresses that a frame leaves with (xdphop.h). */
struct way {
	u32 out;
	u32 macs[3];
	ip_addr source; /* the node's on that way, for an outer header */
};

/* Both ends as they will be. */
struct rewriting {
	ip_addr src;
	ip_addr dst;
	__u16 sport;
	__u16 dport;
};

/* The network header, with one lifetime less. The caller checked the bounds. */
INLINE void write_network(void *network, const struct rewriting *to, u64 addresses)
{
#if FAMILY == 4
	struct iphdr *ip = network;
	u16 *lifetime = (u16 *)&ip->ttl, before = *lifetime;

	ip->ttl--;
	ip->check = summed(ip->check, addresses + (u16)~before + *lifetime);
	ip->saddr = to->src;
	ip->daddr = to->dst;
#else
	struct ipv6hdr *ip = network;

	ip->hop_limit--;
	__builtin_memcpy(&ip->saddr, &to->src, 16);
	__builtin_memcpy(&ip->daddr, &to->dst, 16);
#endif
}

/* Writes both ends and sends the frame on. By redirection also where it goes back out of the device
 * it came by: that is what a device's test tries, and XDP_TX is not the same everywhere (a veth
 * whose peer has GRO, but no program, leaves such frames lying until others come). */
INLINE int send_frame(struct xdp_md *ctx, const struct packet *p, const struct rewriting *to,
		      const struct way *way)
{
	u16 *field = frame_checksum(ctx, p);
	struct ethhdr *eth = frame_start(ctx);
	void *network = frame_start(ctx) + ETH_HLEN;
	u32 *both = network + IP_HEADER_LENGTH;
	u64 addresses, ports;

	if (!field || (void *)(both + 1) > frame_end(ctx))
		return XDP_PASS;
	addresses = sum_of_change(&p->src, &to->src) + sum_of_change(&p->dst, &to->dst);
	ports = (u64)(u32)~join_ports(p->sport, p->dport) + join_ports(to->sport, to->dport);
	if (p->proto == IPPROTO_TCP || *field) {
		*field = summed(*field, addresses + ports);
		if (p->proto == IPPROTO_UDP && !*field)
			*field = 0xffff;
	}
	write_network(network, to, addresses);
	*both = join_ports(to->sport, to->dport);
	__builtin_memcpy(eth, way->macs, sizeof(way->macs));
	return bpf_redirect(way->out, 0);
}
