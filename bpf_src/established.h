/* A packet of a flow that is known: what almost every packet is. plain.h does the same for those
 * that ask for nothing special. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "address.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "account.h"
#include "beat.h"
#include "tailcall.h"
#include "flow.h"
#include "nat.h"
#include "select.h"
#include "owner.h"

/* Must the packet begin anew, although a flow was found? A SYN on a connection that lives, with a
 * backend that serves, goes there: the two ends find out what it is. */
INLINE bool starts_over(const struct packet *p, const struct found *f, u32 beat)
{
	u32 kind = kind_of(f);

	if (kind & (CELL_REPLY | CELL_SIDE | CELL_NOTE))
		return false;
	if (p->proto == IPPROTO_TCP && !starts_connection(p))
		return false;
	if (!(kind & CELL_DIRECT) && !still_serving(f->state->backend, f->state->service))
		return true;
	if (p->proto == IPPROTO_TCP)
		return is_over(state_of(f)) || state_of(f) == STATE_FIN_WAIT || is_idle(f, beat);
	if (kind & CELL_DIRECT || f->state->seen == beat)
		return false;
	return is_idle(f, beat) || has_new_owner(p, f);
}

/* TCP that may change its flow's state is for track(). */
INLINE bool is_remarkable(const struct packet *p, const struct found *f)
{
	if (p->proto != IPPROTO_TCP || p->fragment == FRAGMENT_LATER || kind_of(f) & CELL_SIDE)
		return false;
	return state_of(f) != STATE_ESTABLISHED || p->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST);
}

/* Who answers a datagram flow makes it one that lasts longer; so does who goes on without an answer
 * that this node could see. */
INLINE void note_answer(const struct found *f)
{
	u8 flags = flags_of(f->state);

	if (kind_of(f) & (CELL_REPLY | CELL_DSR) && !(flags & CELL_REPLIED))
		set_flags(f->state, flags | CELL_REPLIED);
}

/* Follows a packet whose flow needs no more than this. The cells at a masqueraded flow's sides
 * count nothing: its own see the same packets. */
INLINE void follow(const struct packet *p, const struct found *f, u32 bytes, u32 beat)
{
	if (kind_of(f) & CELL_SIDE)
		return;
	count_packet(f->state, bytes, beat);
	if (p->proto != IPPROTO_TCP)
		note_answer(f);
	else if (p->fragment != FRAGMENT_LATER && p->tcp_flags & TCP_ACK && !goes_whole(kind_of(f)))
		f->state->ack = p->tcp_ack;
}

/* What a cell says is written. A note has mostly what is there already. */
INLINE int translate_by(struct __sk_buff *skb, struct packet *p, u32 kind, const struct ends *ends)
{
	if (kind & CELL_NOTE && same_address(&ends->addr, &p->src))
		return PASS;
	return translate(skb, p, writes_source(kind), &ends->addr, ends->port, ends->client_port);
}

/* Follows and translates a packet of a flow. */
INLINE int established(struct __sk_buff *skb, struct packet *p, const struct found *f)
{
	struct ends ends;
	u32 beat = now();

	if (starts_over(p, f, beat))
		return hand_to_begin_anew(skb, HEAD_GENERATION(f->head));
	if (is_remarkable(p, f))
		return hand_to(skb, FAMILY_PROGRAM(TRACK));
	if (!read_ends(f, &ends))
		return ended_meanwhile(skb);
	follow(p, f, skb->len - p->l3, beat);
	if (goes_whole(kind_of(f)))
		return hand_to_encapsulate(skb, p, f);
	return send_on(skb, kind_of(f), translate_by(skb, p, kind_of(f), &ends));
}

/* The program for packets of a flow that are not plain. */
INLINE int follow_any(struct __sk_buff *skb)
{
	struct flow_key key;
	struct packet p;
	struct found f;

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
	return find_cell(&key, &f) ? established(skb, &p, &f) : ended_meanwhile(skb);
}
