/* Where a frame goes next: what the kernel said of its destination, kept by each CPU until the
 * agent says that something may have changed, as hop.h does for TC. Asking the kernel costs more
 * than all else that a driver does, twice as much in IPv6. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "hash.h"
#include "parse.h"
#include "cells.h"
#include "cpu.h"
#include "flow.h"
#include "masquerade.h"
#include "frame.h"

#define XDP_HOP_WAYS 2 /* places that an address may have its hop in */

/* Has the agent looked lately? What it said is over, if not. */
INLINE bool is_looked_after(const struct config *c, u32 beat)
{
	return (s32)(c->fast_until - beat) >= 0;
}

INLINE bool may_send_on(const struct config *c, u32 beat)
{
	return c->xdp & XDP_SENDS_ALWAYS || (c->xdp & XDP_SENDS_ON && is_looked_after(c, beat));
}

/* The first of its places. */
INLINE u32 xdp_hop_place(const struct table *t, const ip_addr *to)
{
#if FAMILY == 6
	const u32 *w = to->w;
	u64 hash =
	    NH(w[0] | (u64)w[1] << 32, t->secret[3]) + NH(w[2] | (u64)w[3] << 32, t->secret[4]);
#else
	u64 hash = *to ^ t->secret[0];
#endif
	hash = (hash ^ hash >> 32) * (t->secret[1] | 1);
	return (u32)(hash >> (64 - XDP_HOP_BITS + 1)) * XDP_HOP_WAYS;
}

/* What is asked of the way: where a frame goes, and how much is put before its packet. With an
 * outer header it needs an address of the node's, too. */
struct going {
	const struct ends *to;
	u32 outer;
	u32 epoch;
};

/* A frame for another machine has no hop either. */
INLINE bool is_xdp_hop(const struct xdp_hop *hop, struct xdp_md *ctx, const struct going *going)
{
	u16 *mac = frame_start(ctx);

	return hop->epoch == going->epoch && same_address(&hop->addr, &going->to->addr) &&
	       (!going->outer || !is_zero(&hop->source)) && hop->in == ctx->ingress_ifindex &&
	       (void *)mac + ETH_HLEN <= frame_end(ctx) &&
	       !((mac[0] ^ hop->own[0]) | (mac[1] ^ hop->own[1]) | (mac[2] ^ hop->own[2]));
}

INLINE const struct xdp_hop *find_xdp_hop(const struct table *t, struct xdp_md *ctx,
					  const struct going *going)
{
	u32 place = xdp_hop_place(t, &going->to->addr);
	const struct xdp_hop *hop = XDP_HOPS.lookup(&place);

	if (!hop || is_xdp_hop(hop, ctx, going))
		return hop;
	place++;
	hop = XDP_HOPS.lookup(&place);
	return hop && is_xdp_hop(hop, ctx, going) ? hop : 0;
}

INLINE void keep_xdp_hop(const struct table *t, struct xdp_md *ctx, const struct going *going,
			 const struct way *way, u16 mtu)
{
	u32 place = xdp_hop_place(t, &going->to->addr);
	struct xdp_hop *hop = XDP_HOPS.lookup(&place);
	u16 *mac = frame_start(ctx);

	/* Its own one without an address gives way first. */
	if (hop && hop->epoch == going->epoch && !same_address(&hop->addr, &going->to->addr) &&
	    next_random() & 1) {
		place++;
		hop = XDP_HOPS.lookup(&place);
	}
	if (!hop || (void *)mac + ETH_HLEN > frame_end(ctx))
		return;
	hop->addr = going->to->addr;
	hop->source = way->source;
	hop->in = ctx->ingress_ifindex;
	hop->epoch = going->epoch;
	hop->out = way->out;
	hop->mtu = mtu;
	__builtin_memcpy(hop->macs, way->macs, sizeof(hop->macs));
	__builtin_memcpy(hop->own, mac, sizeof(hop->own));
}

/* Would nobody else have a say about what comes in and leaves there? */
INLINE bool nobody_minds(u32 in, u32 out)
{
	u32 *from = fast_devices.lookup(&in), *to = fast_devices.lookup(&out);

	return from && to && *from & FAST_FROM && *to & FAST_LEAVE;
}

/* A driver may give frames to a device that transmits for others. */
INLINE bool may_leave_by(const struct config *c, u32 in, u32 out)
{
	struct xdp_device *device = xdp_devices.lookup(&out);

	return device && device->flags & XDP_DEVICE_SENDS &&
	       (c->xdp & XDP_SENDS_ALWAYS || nobody_minds(in, out));
}

/* Asks the kernel where the stack would send a packet that came in here, with the destination it
 * has by then. Success alone counts: all is known, and it fits. Of a route's MTU the helper knows
 * nothing (hop.h): the least one of all holds. */
INLINE bool ask_next(struct xdp_md *ctx, const struct config *c, const struct packet *p,
		     const struct going *going, struct bpf_fib_lookup *fib)
{
	void *network = frame_start(ctx) + ETH_HLEN;

	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = AF_OF_FAMILY;
	fib->ifindex = ctx->ingress_ifindex;
	fib->l4_protocol = p->proto;
	fib->tot_len = datagram_length(p) + going->outer;
	if (network + IP_HEADER_LENGTH > frame_end(ctx) || fib->tot_len > c->fast_mtu)
		return false;
	if (!going->outer) { /* whose way is its address's alone (find_route() in dsr.h) */
		fib->sport = going->to->client_port;
		fib->dport = going->to->port;
	}
#if FAMILY == 6
	if (!going->outer)
		fib->flowinfo = *(u32 *)network & htonl(0x0fffffff);
	__builtin_memcpy(fib->ipv6_src, &p->src, sizeof(p->src));
	__builtin_memcpy(fib->ipv6_dst, &going->to->addr, sizeof(going->to->addr));
#else
	if (!going->outer)
		fib->tos = ((struct iphdr *)network)->tos;
	fib->ipv4_src = p->src;
	fib->ipv4_dst = going->to->addr;
#endif
	return bpf_fib_lookup(ctx, fib, sizeof(*fib), going->outer ? FIB_SOURCE : 0) ==
	       BPF_FIB_LKUP_RET_SUCCESS;
}

/* What the kernel has answered. */
INLINE void read_way(struct way *way, const struct bpf_fib_lookup *fib, u32 outer)
{
	way->out = fib->ifindex;
	__builtin_memcpy(way->macs, fib->dmac, ETH_ALEN);
	__builtin_memcpy((void *)way->macs + ETH_ALEN, fib->smac, ETH_ALEN);
	__builtin_memset(&way->source, 0, sizeof(way->source));
	if (!outer)
		return;
#if FAMILY == 6
	__builtin_memcpy(&way->source, fib->ipv6_src, sizeof(way->source));
#else
	way->source = fib->ipv4_src;
#endif
}

/* By what is known, or by asking. `to` is where the packet goes by now, `outer` what is put before
 * it. */
INLINE bool find_way(struct xdp_md *ctx, const struct config *c, const struct packet *p,
		     const struct ends *to, u32 outer, u32 beat, struct way *way)
{
	bool keeps = c->xdp & XDP_KEEPS_HOPS && is_looked_after(c, beat);
	const struct table *t = get_table();
	/* The epoch first: what changes while it is asked ends it. */
	struct going going = {to, outer, LOAD(&c->fast_epoch)};
	const struct xdp_hop *hop;
	struct bpf_fib_lookup fib;

	ORDERED;
	if (!t)
		return false;
	hop = keeps ? find_xdp_hop(t, ctx, &going) : 0;
	if (hop) {
		way->out = hop->out;
		way->source = hop->source;
		__builtin_memcpy(way->macs, hop->macs, sizeof(way->macs));
		return datagram_length(p) + outer <= hop->mtu;
	}
	if (!is_to_us(ctx) || !ask_next(ctx, c, p, &going, &fib) ||
	    !may_leave_by(c, ctx->ingress_ifindex, fib.ifindex))
		return false;
	read_way(way, &fib, outer);
	if (outer && is_zero(&way->source))
		return false;
	if (keeps)
		keep_xdp_hop(t, ctx, &going, way,
			     fib.mtu_result < c->fast_mtu ? fib.mtu_result : c->fast_mtu);
	return true;
}
