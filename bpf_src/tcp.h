/* The life of a TCP flow as seen from the middle: flags decide, and both closes must be acked.
 *
 * The two directions' packets are on two CPUs at once. So each sets and clears flags of its own
 * cell alone, and reads the other's; the state is the forward cell's, changed by compare-and-swap.
 * `ack` is the number that the direction's last packet acknowledged, in network byte order; from
 * its FIN until that is acknowledged, the number that will. In the handshake it is what the other
 * direction's SYN expects to be acknowledged. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/tcp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "parse.h"
#include "handoff.h"
#include "hash.h"
#include "config.h"
#include "cells.h"
#include "account.h"
#include "beat.h"
#include "ending.h"
#include "tell.h"
#include "tailcall.h"
#include "flow.h"
#include "established.h"
#include "mss.h"
#include "outer.h"

/* How far behind what was acknowledged a FIN or RST may be that others' data overtook: larger than
 * almost every window, and 1 of 256 for who knows no number. */
#define PLAUSIBLE_WINDOW (1 << 24)
#define CHANGE_TRIES 4 /* of a state that others change, too */

/* The two directions, as the packet sees them. */
struct pair {
	struct found forward;
	struct cell_state *own;
	struct cell_state *other;
	bool reply;
	bool closed; /* by this packet */
};

INLINE bool find_pair(const struct found *f, struct pair *pair)
{
	struct found reply = *f;

	pair->reply = kind_of(f) & CELL_REPLY;
	pair->closed = false;
	pair->forward = *f;
	if (pair->reply ? !find_forward(f, &pair->forward) : !find_next(f, &reply))
		return false;
	pair->own = f->state;
	pair->other = pair->reply ? pair->forward.state : reply.state;
	return true;
}

/* Has `a` sent a FIN that `b` has not acknowledged yet? Then a->ack is the number that will. */
INLINE bool fin_waits(const struct cell_state *a, const struct cell_state *b)
{
	return flags_of(a) & CELL_FIN && !(flags_of(b) & CELL_ACKED);
}

/* Nothing comes after a FIN, so that what acknowledges it is one number. */
INLINE void note_ack(const struct packet *p, const struct tcphdr *tcp, struct pair *pair)
{
	if (!(p->tcp_flags & TCP_ACK))
		return;
	if (fin_waits(pair->other, pair->own) && tcp->ack_seq == pair->other->ack) {
		set_flags(pair->own, flags_of(pair->own) | CELL_ACKED);
		/* What the other side acknowledged meanwhile was not kept: this is close. */
		pair->other->ack = tcp->seq;
	}
	if (!fin_waits(pair->own, pair->other))
		pair->own->ack = tcp->ack_seq;
}

/* A FIN where none can be is none. True if it stands right behind what the other side has
 * acknowledged: nobody invents that. */
INLINE bool note_fin(const struct packet *p, const struct tcphdr *tcp, struct pair *pair)
{
	u32 end = segment_end(p, tcp), acked = ntohl(pair->other->ack);
	bool known = !fin_waits(pair->other, pair->own);
	u8 flags = flags_of(pair->own);

	if (flags_of(pair->other) & CELL_ACKED) /* sent again */
		return false;
	if (known && end - acked - 1 >= PLAUSIBLE_WINDOW)
		return false;
	if (!(flags & CELL_FIN))
		set_flags(pair->own, flags | CELL_FIN | (flags & CELL_ACKED ? 0 : CELL_FIRST));
	pair->own->ack = htonl(end);
	return known && ntohl(tcp->seq) == acked;
}

/* The numbers of the handshake: what the client's ACK must be is kept where its last one will be,
 * what the backend acknowledged where it always is. */
INLINE void note_syn(const struct packet *p, const struct tcphdr *tcp, struct pair *pair)
{
	u32 end = htonl(ntohl(tcp->seq) + 1);

	if (pair->reply && p->tcp_flags & TCP_ACK) {
		set_flags(pair->own, flags_of(pair->own) | CELL_REPLIED);
		pair->own->ack = tcp->ack_seq;
		pair->other->ack = end;
	} else if (!pair->reply && !(flags_of(pair->other) & CELL_REPLIED)) {
		pair->other->ack = end;
	}
}

/* Does the client's packet acknowledge the backend's SYN, or what came behind it? Where no SYN-ACK
 * passed, nobody can tell. */
INLINE bool ends_handshake(const struct packet *p, const struct tcphdr *tcp,
			   const struct pair *pair)
{
	if (pair->reply || !(p->tcp_flags & TCP_ACK))
		return false;
	return !(flags_of(pair->other) & CELL_REPLIED) ||
	       ntohl(tcp->ack_seq) - ntohl(pair->own->ack) <= bytes_of(pair->other);
}

/* In the handshake a RST acknowledges the SYN (RFC 9293, 3.10.7.3), or stands where the other side
 * has acknowledged up to. */
INLINE bool resets_handshake(const struct packet *p, const struct tcphdr *tcp,
			     const struct pair *pair)
{
	if (tcp->seq == pair->other->ack && (!pair->reply || flags_of(pair->own) & CELL_REPLIED))
		return true;
	return pair->reply && p->tcp_flags & TCP_ACK &&
	       ntohl(tcp->ack_seq) - ntohl(pair->own->ack) <= bytes_of(pair->other);
}

/* The state after a RST. It counts if it stands right behind what the other side has acknowledged
 * (RFC 5961). If it could stand behind data that is under way, the flow may be over, and lasts no
 * longer than one that is half closed. Else it is a stray, or forged. */
INLINE u32 state_of_reset(const struct packet *p, const struct tcphdr *tcp, const struct pair *pair,
			  u32 state)
{
	u32 ahead = ntohl(tcp->seq) - ntohl(pair->other->ack);

	if (state == STATE_RESET)
		return state;
	if (state == STATE_SYN)
		return resets_handshake(p, tcp, pair) ? STATE_RESET : state;
	if (fin_waits(pair->other, pair->own))
		return STATE_FIN_WAIT;
	if (!ahead)
		return STATE_RESET;
	if (ahead < PLAUSIBLE_WINDOW && !((flags_of(pair->own) | flags_of(pair->other)) & CELL_FIN))
		return STATE_CLOSING;
	return state;
}

/* What FINs and their acknowledgements come to. `certain`: the packet's own FIN is. */
INLINE u32 state_of_close(const struct pair *pair, u32 state, bool certain)
{
	u8 own = flags_of(pair->own), other = flags_of(pair->other);

	if (own & other & CELL_ACKED)
		return STATE_TIME_WAIT;
	if (own & other & CELL_FIN)
		return STATE_FIN_WAIT;
	if ((own | other) & CELL_ACKED)
		return STATE_CLOSING;
	if (!((own | other) & CELL_FIN))
		return STATE_ESTABLISHED;
	return certain || state == STATE_FIN_WAIT ? STATE_FIN_WAIT : STATE_CLOSING;
}

INLINE u32 current_state(const struct pair *pair)
{
	return HEAD_STATE(LOAD(&pair->forward.cell->head));
}

/* Of two packets at once, each sees at least the flags that the other has set before: counting the
 * bytes is a full barrier between setting and reading. */
INLINE void follow_close(const struct packet *p, const struct tcphdr *tcp, struct pair *pair,
			 u32 bytes)
{
	bool certain = false;
	int i;

	note_ack(p, tcp, pair);
	if (p->tcp_flags & TCP_FIN)
		certain = note_fin(p, tcp, pair);
	__sync_fetch_and_add(&pair->own->bytes, bytes);
	ROLLED
	for (i = 0; i < CHANGE_TRIES; i++) {
		u32 from = current_state(pair), to = state_of_close(pair, from, certain);

		if (from == to || from == STATE_TIME_WAIT)
			return;
		if (set_state(&pair->forward, from, to)) {
			pair->closed = to == STATE_TIME_WAIT && from != STATE_RESET;
			return;
		}
	}
}

/* Follows a remarkable packet. */
INLINE void track_tcp(struct __sk_buff *skb, struct packet *p, struct pair *pair)
{
	u32 state = current_state(pair), bytes = skb->len - p->l3, to;
	u8 flags = flags_of(pair->own);
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(skb, p->l4, &tcp, sizeof(tcp)))
		return;
	pair->own->seen = now();
	pair->own->packets++;
	if (state == STATE_TIME_WAIT || p->tcp_flags & (TCP_RST | TCP_SYN) || state == STATE_SYN)
		pair->own->bytes += bytes;
	if (state == STATE_TIME_WAIT)
		return;
	if (p->tcp_flags & TCP_RST) {
		to = state_of_reset(p, &tcp, pair, state);
		if (to == STATE_RESET && state != STATE_RESET)
			set_flags(pair->own, flags | CELL_RST);
		if (to != state && set_state(&pair->forward, state, to))
			pair->closed = to == STATE_RESET;
		return;
	}
	if (p->tcp_flags & TCP_SYN) {
		if (state == STATE_SYN)
			note_syn(p, &tcp, pair);
		return;
	}
	if (state == STATE_SYN) {
		if (!ends_handshake(p, &tcp, pair)) {
			if (pair->reply && p->tcp_flags & TCP_ACK)
				pair->own->ack = tcp.ack_seq;
			return;
		}
		set_state(&pair->forward, STATE_SYN, STATE_ESTABLISHED);
		bytes = 0;
	}
	if (state == STATE_RESET) {
		/* Only who sent the RST can tell that it was none. */
		if (!(flags & CELL_RST))
			return;
		set_flags(pair->own, flags & ~CELL_RST);
	}
	follow_close(p, &tcp, pair, bytes);
}

/* A conversation past services is over when one side says so: what comes after that keeps the note
 * for as long as a tuple rests, as that of an end which closed first does. */
INLINE void track_note(const struct packet *p, struct found *f)
{
	f->state->seen = now();
	if (!(p->tcp_flags & (TCP_FIN | TCP_RST)) || state_of(f) != STATE_ESTABLISHED)
		return;
	if (p->tcp_flags & TCP_FIN)
		set_flags(f->state, flags_of(f->state) | CELL_FIRST);
	set_state(f, STATE_ESTABLISHED, STATE_TIME_WAIT);
}

/* What the client alone tells of a flow whose answers do not come here. `ack` is the number that
 * its next packet will stand at (note_sequence() in whole.h), since none of the other side's is
 * known. A close is complete when nothing more comes. */
INLINE void track_one_way(struct __sk_buff *skb, const struct packet *p, struct found *f)
{
	u32 state = state_of(f), to = state, ahead;
	bool exactly;
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(skb, p->l4, &tcp, sizeof(tcp)))
		return;
	count_packet(f->state, skb->len - p->l3, now());
	ahead = ntohl(tcp.seq) - ntohl(f->state->ack);
	exactly = tcp.seq == f->state->ack;
	if (p->tcp_flags & (TCP_RST | TCP_FIN)) {
		if (exactly)
			to = p->tcp_flags & TCP_RST ? STATE_RESET : STATE_FIN_WAIT;
		else if (ahead < PLAUSIBLE_WINDOW && state < STATE_CLOSING)
			to = STATE_CLOSING;
	} else if (state == STATE_SYN && p->tcp_flags & TCP_ACK) {
		to = STATE_ESTABLISHED;
	} else if (state == STATE_CLOSING && segment_end(p, &tcp) != ntohl(tcp.seq)) {
		to = STATE_ESTABLISHED; /* it was none: it goes on */
	}
	if (to != state && !is_over(state) && set_state(f, state, to) && to == STATE_RESET)
		tell_one_way_closed(f, END_RESET);
}

/* The program for remarkable packets of a flow. */
INLINE int track(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct flow_key key;
	struct found f;
	struct packet p;
	struct pair pair = {};
	struct ends ends;
	u32 kind;

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
	if (!find_cell(&key, &f))
		return ended_meanwhile(skb);
	kind = kind_of(&f);
	if (starts_over(&p, &f, now()))
		return hand_to_begin_anew(skb, HEAD_GENERATION(f.head));
	if (!read_ends(&f, &ends))
		return ended_meanwhile(skb);
	if (goes_whole(kind)) {
		track_one_way(skb, &p, &f);
		return hand_to_encapsulate(skb, &p, &f);
	}
	if (kind & CELL_NOTE)
		track_note(&p, &f);
	else if (find_pair(&f, &pair))
		track_tcp(skb, &p, &pair);
	if (pair.closed)
		tell_closed(&pair.forward, pair.reply ? pair.own : pair.other,
			    p.tcp_flags & TCP_RST ? END_RESET : END_CLOSED);
	/* What the client sends gets an outer header on its way here. */
	if (kind & CELL_DSR && p.tcp_flags & TCP_SYN && c)
		lower_mss(skb, &p, outer_length(c));
	return send_on(skb, kind, translate_by(skb, &p, kind, &ends));
}
