/* What an uplink's driver runs before the stack sees a packet; FAMILY is 4 or 6. entry.c hands it
 * the frames.
 *
 * It does what TC would do where all of that is certain: packets in the middle of masqueraded flows
 * to endpoints on other nodes, and their answers, for which TC writes one end coming in and the
 * other going out; packets of flows that go to such endpoints whole; and drops. Everything else
 * goes up as it came. TC does all of it just as well, so that nothing here has to. */
#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "address.h"
#include "config.h"
#include "parse.h"
#include "algorithm.h"
#include "frontend.h"
#include "cells.h"
#include "beat.h"
#include "stats.h"
#include "event.h"
#include "flow.h"
#include "established.h"
#include "plain.h"
#include "select.h"
#include "frame.h"
#include "xdphop.h"
#include "xdpwhole.h"

#ifdef TRACE /* which asks what TC does */
XDP_PROGRAM(FAMILY_NAME(xdp_forward))
{
	return XDP_PASS;
}
#else

/* Of a flow with four cells, the one whose tuple a packet has where it would go out: two further in
 * the ring (masquerade.h). False if the flow has ended, or is on its way to another bank. */
INLINE bool find_leaving(const struct found *come, struct found *go)
{
	const struct table *t = get_table();
	u32 place = next_place(come->state);

	if (!t || ((come->place ^ t->bank) | (place ^ t->bank)) & PLACE_BANK ||
	    !get_cell_in(true, place, go) || !same_generation(go->head, come->head))
		return false;
	place = next_place(go->state);
	return !((place ^ t->bank) & PLACE_BANK) && get_cell_in(true, place, go) &&
	       same_generation(go->head, come->head) && state_of(go) >= STATE_LIVE &&
	       kind_of(go) == ((kind_of(come) ^ CELL_SIDE) | CELL_REPLY);
}

/* A packet of such a flow: where it comes in, `come` says what becomes of its destination, and
 * where it would go out, another cell what becomes of its source. */
INLINE int carry(struct xdp_md *ctx, const struct config *c, struct packet *p,
		 const struct found *come)
{
	bool answer = kind_of(come) & CELL_SIDE;
	u32 beat = now();
	struct rewriting to;
	struct found go;
	struct ends ends;
	struct way way;

	if (!may_send_on(c, beat) || !find_leaving(come, &go) ||
	    !is_plain(p, answer ? &go : come, beat) || !is_finished_frame(ctx, p) ||
	    !read_ends(come, &ends) || !find_way(ctx, c, p, &ends, 0, beat, &way))
		return XDP_PASS;
	to.dst = ends.addr;
	if (!read_ends(&go, &ends))
		return XDP_PASS;
	to.src = ends.addr;
	to.sport = ends.port;
	to.dport = ends.client_port;
	if (answer)
		follow(p, &go, datagram_length(p), beat);
	else
		follow(p, come, frame_length(ctx), beat);
	return send_frame(ctx, p, &to, &way);
}

INLINE int drop_frame(struct xdp_md *ctx, u32 reason)
{
	count((struct __sk_buff *)ctx, reason);
	return XDP_DROP;
}

/* Does the service refuse this client by not answering? */
INLINE bool is_shut_out(const struct packet *p, const struct frontend *frontend)
{
	struct request request = {.service = frontend->service};

	if (!(frontend->flags & FRONTEND_SOURCE_RANGES) || is_martian_source(&p->src) ||
	    frontend->flags & (FRONTEND_SOCKETS | FRONTEND_CLUSTER_IP))
		return false;
	widen(&request.client, &p->src);
	return !in_source_ranges(&request);
}

/* A packet that no flow has, and no note: is it one of those that nobody is to get? Who listens
 * hears of it from TC. */
INLINE int without_flow(struct xdp_md *ctx, const struct config *c, const struct packet *p)
{
	bool begins = p->proto != IPPROTO_TCP || starts_connection(p);
	struct frontend_key key;
	struct frontend frontend;

	if (is_anybody_listening())
		return XDP_PASS;
	if (begins) {
		make_frontend_key(&key, &p->dst, p->dport, p->proto);
		if (find_frontend(&key, &frontend))
			return is_shut_out(p, &frontend) && is_to_us(ctx)
				   ? drop_frame(ctx, REASON_SOURCE_RANGE)
				   : XDP_PASS;
	}
	if (c->flags & CONFIG_PASS_MIDSTREAM || !in_service_range(c, &p->dst) ||
	    address_flags(&p->dst) || (begins && is_endpoint(&p->dst, p->dport)) || !is_to_us(ctx))
		return XDP_PASS;
	return drop_frame(ctx, REASON_UNALLOCATED);
}

XDP_PROGRAM(FAMILY_NAME(xdp_forward))
{
	const struct config *c = get_config();
	struct flow_key key;
	struct packet p;
	struct found come;

	if (!c || !read_frame(ctx, &p))
		return XDP_PASS;
	make_key(&key, &p);
	if (!find_cell_inline(&key, &come))
		return without_flow(ctx, c, &p);
	if ((kind_of(&come) & ~CELL_SIDE) == CELL_MASQUERADED)
		return carry(ctx, c, &p, &come);
	return goes_whole(kind_of(&come)) ? carry_whole(ctx, c, &p, &come) : XDP_PASS;
}

#endif
