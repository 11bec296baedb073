/* The life of a TCP flow as seen from the middle: flags decide, and both closes must be acked.
 *
 * The two directions' packets are on two CPUs at once. So each sets and clears flags of its own
 * entry alone, and reads the other's; states are written to both, and the next packet puts right
 * what crossed. `ack` is the number that the direction's last packet acknowledged, in network byte
 * order; from its FIN until that is acknowledged, the number that will. */
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

/* How far behind what was acknowledged a FIN or RST may be that others' data overtook: larger than
 * almost every window, and 1 of 256 for who knows no number. */
#define PLAUSIBLE_WINDOW (1 << 24)

/* Most packets need no more than this: the flow opens, or is open. False: see track_tcp. */
INLINE bool tcp_unremarkable(const struct packet *p, struct flow *f, bool reply)
{
	struct table_state *state;

	if (f->state == FLOW_SIDE)
		return true;
	if (p->tcp_flags & (TCP_FIN | TCP_RST))
		return false;
	if (f->state == FLOW_SYN) {
		if (p->tcp_flags & TCP_SYN) {
			if (reply)
				f->flags |= FLOW_REPLIED;
		} else {
			state = get_table_state();
			if (!state || *overflowed(state))
				return false;
			f->state = FLOW_ESTABLISHED;
		}
	} else if (f->state != FLOW_ESTABLISHED) {
		return false;
	}
	if (p->tcp_flags & TCP_ACK)
		f->ack = p->tcp_ack;
	return true;
}

/* The number after the segment's last, a FIN included. */
INLINE u32 segment_end(const struct packet *p, const struct tcphdr *tcp)
{
	return ntohl(tcp->seq) + p->l4_length - tcp->doff * 4 + (p->tcp_flags & TCP_FIN);
}

/* Has `f` sent a FIN that is not acknowledged yet? Then f->ack is the number that will. */
INLINE bool fin_waits(const struct flow *f, const struct flow *pair)
{
	return f->flags & FLOW_FIN && !(pair->flags & FLOW_ACKED);
}

/* Nothing comes after a FIN, so that what acknowledges it is one number. */
INLINE void note_ack(const struct packet *p, const struct tcphdr *tcp, struct flow *f,
		     struct flow *pair)
{
	if (!(p->tcp_flags & TCP_ACK))
		return;
	if (fin_waits(pair, f) && tcp->ack_seq == pair->ack) {
		f->flags |= FLOW_ACKED;
		/* What the other side acknowledged meanwhile was not kept: this is close. */
		pair->ack = tcp->seq;
	}
	if (!fin_waits(f, pair))
		f->ack = tcp->ack_seq;
}

/* A FIN where none can be is none. True if it stands right behind what the other side has
 * acknowledged: nobody invents that. */
INLINE bool note_fin(const struct packet *p, const struct tcphdr *tcp, struct flow *f,
		     struct flow *pair)
{
	u32 end = segment_end(p, tcp), acked = ntohl(pair->ack);
	bool known = !fin_waits(pair, f);

	if (pair->flags & FLOW_ACKED) /* sent again */
		return false;
	if (known && end - acked - 1 >= PLAUSIBLE_WINDOW)
		return false;
	if (!(f->flags & FLOW_FIN))
		f->flags |= f->flags & FLOW_ACKED ? FLOW_FIN : FLOW_FIN | FLOW_FIRST;
	f->ack = htonl(end);
	return known && ntohl(tcp->seq) == acked;
}

/* A RST counts if it stands right behind what the other side has acknowledged (RFC 5961). If it
 * could stand behind data that is under way, the flow may be over, and lasts no longer than one
 * that is half closed. Else it is a stray, or forged. */
INLINE void note_reset(const struct tcphdr *tcp, struct flow *f, struct flow *pair)
{
	u32 ahead = ntohl(tcp->seq) - ntohl(pair->ack);
	u8 state = FLOW_RESET;

	if (f->state == FLOW_RESET)
		return;
	if (f->state != FLOW_SYN || pair->state != FLOW_SYN) {
		if (fin_waits(pair, f))
			state = FLOW_FIN_WAIT;
		else if (ahead && ahead < PLAUSIBLE_WINDOW &&
			 !((f->flags | pair->flags) & FLOW_FIN))
			state = FLOW_CLOSING;
		else if (ahead)
			return;
	}
	if (state == FLOW_RESET)
		f->flags |= FLOW_RST;
	f->state = state;
	pair->state = state;
}

/* What FINs and their acknowledgements come to. `certain`: the packet's own FIN is. */
INLINE u8 state_of_close(const struct flow *f, const struct flow *pair, bool certain)
{
	if (f->flags & pair->flags & FLOW_FIN)
		return FLOW_FIN_WAIT;
	if ((f->flags | pair->flags) & FLOW_ACKED)
		return FLOW_CLOSING;
	if (!((f->flags | pair->flags) & FLOW_FIN))
		return FLOW_ESTABLISHED;
	if (certain)
		return FLOW_FIN_WAIT;
	return f->state == FLOW_FIN_WAIT ? FLOW_FIN_WAIT : FLOW_CLOSING;
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
	bool certain = false;
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(skb, p->l4, &tcp, sizeof(tcp)))
		return false;
	if (f->state == FLOW_TIME_WAIT)
		return false;
	if (p->tcp_flags & TCP_RST) {
		note_reset(&tcp, f, pair);
		return f->state == FLOW_RESET && state && under_pressure(state);
	}
	if (p->tcp_flags & TCP_SYN)
		return false;
	if (f->state == FLOW_RESET) {
		/* Only who sent the RST can tell that it was none. */
		if (!(f->flags & FLOW_RST))
			return false;
		f->flags &= ~FLOW_RST;
	}
	note_ack(p, &tcp, f, pair);
	if (p->tcp_flags & TCP_FIN)
		certain = note_fin(p, &tcp, f, pair);
	f->state = state_of_close(f, pair, certain);
	pair->state = f->state;
	return f->flags & pair->flags & FLOW_ACKED;
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
