/* At a driver, a packet of a flow that goes to its endpoint whole (dsr.h): the outer header is put
 * before it in the frame. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/tcp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "parse.h"
#include "beat.h"
#include "cells.h"
#include "established.h"
#include "flow.h"
#include "frame.h"
#include "outer.h"
#include "plain.h"
#include "whole.h"
#include "xdphop.h"

/* The number behind TCP's last byte; of other protocols 0. */
INLINE u32 frame_segment_end(struct xdp_md *ctx, const struct packet *p)
{
	struct tcphdr *tcp = frame_start(ctx) + FRAME_L4;

	return p->proto == IPPROTO_TCP && (void *)(tcp + 1) <= frame_end(ctx) ? segment_end(p, tcp)
									      : 0;
}

/* Makes room for so many bytes, a constant, and fills it. False if there is none: the frame is as
 * it was. */
INLINE bool put_before(struct xdp_md *ctx, const struct outer *o, u32 length, const struct way *way)
{
	struct ethhdr *eth;

	if (bpf_xdp_adjust_head(ctx, -(int)length))
		return false;
	eth = frame_start(ctx);
	if ((void *)(eth + 1) + length > frame_end(ctx))
		return false;
	__builtin_memcpy(eth, way->macs, sizeof(way->macs));
	eth->h_proto = htons(ETHERTYPE);
	__builtin_memcpy(eth + 1, o, length);
	return true;
}

/* Where kernels do not tell a route's source, TC asks the agent's table instead. */
INLINE int carry_whole(struct xdp_md *ctx, const struct config *c, const struct packet *p,
		       const struct found *f)
{
	void *network = frame_start(ctx) + ETH_HLEN;
	u32 beat = now(), end = frame_segment_end(ctx, p);
	struct outer o = {};
	struct ends ends;
	struct way way;

	if (!may_send_on(c, beat) || c->flags & CONFIG_MASQUERADE_BY_DEVICE ||
	    !is_plain(p, f, beat) || !is_finished_frame(ctx, p) || !read_ends(f, &ends) ||
	    !find_way(ctx, c, p, &ends, outer_length(c), beat, &way) ||
	    network + IP_HEADER_LENGTH > frame_end(ctx))
		return XDP_PASS;
	fill_outer(&o, c, p, network, is_called_by_own(p) ? &p->dst : &way.source, &ends.addr);
	if (!(c->flags & CONFIG_DSR_IPIP ? put_before(ctx, &o, IP_HEADER_LENGTH, &way)
					 : put_before(ctx, &o, OUTER_UDP_LENGTH, &way)))
		return XDP_PASS;
	follow(p, f, datagram_length(p), beat); /* as what TC has trimmed */
	if (p->proto == IPPROTO_TCP)
		note_sequence(p, end, f->state);
	return bpf_redirect(way.out, 0);
}
