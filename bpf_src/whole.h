/* A packet that goes to its flow's endpoint whole, inside an outer header: what is written around
 * it, and noted of it, at TC (dsr.h) and at a driver (xdpwhole.h). */
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
#include "parse.h"
#include "cells.h"
#include "cpu.h"
#include "flow.h"
#include "frontend.h"
#include "checksum.h"
#include "outer.h"

#define OUTER_TTL 64
#define OUTER_PORT_FIRST 0xc000 /* of 16384, which nobody has for good (RFC 6335) */

/* Where the client's next packet will stand: what a close or a reset must (track_one_way() in
 * tcp.h). */
INLINE void note_sequence(const struct packet *p, u32 end, struct cell_state *state)
{
	if (p->tcp_flags & TCP_RST)
		return;
	if (p->tcp_flags & TCP_SYN || (s32)(end - ntohl(state->ack)) > 0)
		state->ack = htonl(end);
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
	o->ip.check = ~fold(sum_of_header(&o->ip));
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

/* `inner` is the packet's IP header. */
INLINE void fill_outer(struct outer *o, const struct config *c, const struct packet *p,
		       const void *inner, const ip_addr *source, const ip_addr *endpoint)
{
	bool udp = !(c->flags & CONFIG_DSR_IPIP);
	u32 length = p->l4 - p->l3 + p->l4_length;

	fill_outer_ip(o, inner, source, endpoint, length, udp);
	if (udp)
		fill_outer_udp(o, c, p, length);
}
