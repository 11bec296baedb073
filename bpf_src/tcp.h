/* The life of a TCP flow as seen from the middle: flags decide, and both closes must be acked. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/tcp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "config.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "tailcall.h"
#include "flow.h"
#include "nat.h"

/* Most packets need no more than this: the flow opens, or is open. False: see track_tcp. */
INLINE bool tcp_unremarkable(const struct packet *p, struct flow *f, bool reply)
{
	struct table_state *state;

	if (p->tcp_flags & (TCP_FIN | TCP_RST) || f->flags & (FLOW_FIN | FLOW_PEER_FIN))
		return f->state == FLOW_SIDE;
	if (f->state == FLOW_ESTABLISHED || f->state == FLOW_SIDE)
		return true;
	if (f->state != FLOW_SYN)
		return false;
	if (p->tcp_flags & TCP_SYN) {
		if (reply)
			f->flags |= FLOW_REPLIED;
		return true;
	}
	state = get_table_state();
	if (!state || *overflowed(state))
		return false;
	f->state = FLOW_ESTABLISHED;
	return true;
}

INLINE bool acknowledges_fin(const struct packet *p, const struct tcphdr *tcp, const struct flow *f)
{
	return f->flags & FLOW_PEER_FIN && p->tcp_flags & TCP_ACK &&
	       (s32)(ntohl(tcp->ack_seq) - f->peer_fin) >= 0;
}

INLINE void note_fin(struct packet *p, const struct tcphdr *tcp, struct flow *f, struct flow *pair)
{
	if (!(f->flags & FLOW_FIN)) {
		f->flags |= FLOW_FIN;
		if (!acknowledges_fin(p, tcp, f))
			f->flags |= FLOW_FIRST;
	}
	f->state = FLOW_CLOSING;
	pair->state = FLOW_CLOSING;
	pair->flags |= FLOW_PEER_FIN;
	pair->peer_fin = ntohl(tcp->seq) + p->l4_length - tcp->doff * 4 + 1;
}

/* The handshake is over. Entries among those that may be forgotten move to where they stay. */
INLINE struct flow *settle(struct flow_key *key, struct flow *f)
{
	struct flow_key out_key, back_key;

	f->state = FLOW_ESTABLISHED;
	if (f->flags & FLOW_MASQUERADED && !(f->flags & FLOW_REPLY) &&
	    find_sides(key, f, &out_key, &back_key)) {
		promote(&out_key);
		promote(&back_key);
	}
	promote(key);
	return find_flow(key);
}

/* Follows a remarkable packet. `f` is the entry of the packet's direction. True if the flow ends
 * with this packet. */
INLINE bool track_tcp(struct __sk_buff *skb, struct packet *p, struct flow *f, struct flow *pair)
{
	struct table_state *state = get_table_state();
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(skb, p->l4, &tcp, sizeof(tcp)))
		return false;
	if (f->state == FLOW_TIME_WAIT)
		return false;
	if (p->tcp_flags & TCP_RST) {
		/* Perhaps not in the window, then the flow goes on; nobody but the ends can tell.
		 */
		f->state = FLOW_RESET;
		pair->state = FLOW_RESET;
		return state && under_pressure(state);
	}
	if (p->tcp_flags & TCP_SYN)
		return false;
	if (f->state == FLOW_RESET) {
		f->state = f->flags & (FLOW_FIN | FLOW_PEER_FIN) ? FLOW_CLOSING : FLOW_ESTABLISHED;
		if (pair->state == FLOW_RESET)
			pair->state = f->state;
	}
	if (p->tcp_flags & TCP_FIN)
		note_fin(p, &tcp, f, pair);
	if (acknowledges_fin(p, &tcp, f))
		f->flags |= FLOW_ACKED;
	return f->flags & FLOW_ACKED && pair->flags & FLOW_ACKED;
}

/* The program for remarkable packets of a flow. */
INLINE int track(struct __sk_buff *skb)
{
	bool reply = handoff(skb)->reply;
	struct flow_key key, pair_key;
	struct flow *f, *pair;
	u16 port, client_port;
	struct packet p;
	ip_addr addr;

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
	f = find_flow(&key);
	if (!f)
		return PASS;
	/* Copied before the flow can end: its entry may be reused at once. */
	addr = f->addr;
	port = f->port;
	client_port = f->client_port;
	count_packet(f, skb->len - p.l3);
	f->seen = now();
	make_pair_key(&pair_key, &key, f);
	pair = find_flow(&pair_key);
	if (pair && is_pair(pair, &key, f)) {
		if (f->state == FLOW_SYN && !(p.tcp_flags & (TCP_SYN | TCP_RST))) {
			/* Both: the backend may have nothing to say for a long time. */
			f = settle(&key, f);
			pair = settle(&pair_key, pair);
		}
		if (f && pair && track_tcp(skb, &p, f, pair))
			linger(reply ? &pair_key : &key, f, pair);
	}
	return send_on(skb, &p, translate(skb, &p, reply, &addr, port, client_port));
}
