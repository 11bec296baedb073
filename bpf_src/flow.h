/* Flows as the programs see them: tuples, what is written, when one is idle or over. cells.h has
 * the table; docs/datapath.md tells the whole story. */
#pragma once

#include <linux/in.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "config.h"
#include "parse.h"
#include "hash.h"
#include "beat.h"
#include "cells.h"
#include "claim.h"
#include "cpu.h"
#include "subprogram.h"

/* In whole words, as the table reads them: a load that spans several stores waits for them. */
INLINE void make_key(struct flow_key *key, const struct packet *p)
{
	u64 *words = (u64 *)key, rest = p->sport | (u32)p->dport << 16 | (u64)p->proto << 32;

#if FAMILY == 4
	words[0] = p->src | (u64)p->dst << 32;
	words[1] = rest;
#else
	words[0] = p->src.w[0] | (u64)p->src.w[1] << 32;
	words[1] = p->src.w[2] | (u64)p->src.w[3] << 32;
	words[2] = p->dst.w[0] | (u64)p->dst.w[1] << 32;
	words[3] = p->dst.w[2] | (u64)p->dst.w[3] << 32;
	words[4] = rest;
#endif
}

/* The tuple of what comes back for a packet that goes there. */
INLINE void make_key_back(struct flow_key *back, const struct packet *p)
{
	__builtin_memset(back, 0, sizeof(*back));
	back->src = p->dst;
	back->dst = p->src;
	back->sport = p->dport;
	back->dport = p->sport;
	back->proto = p->proto;
}

INLINE u32 kind_of(const struct found *f)
{
	return HEAD_KIND(f->head);
}

INLINE u32 state_of(const struct found *f)
{
	return HEAD_STATE(f->head);
}

/* Translated where a packet comes in: destinations; and the sources of what answers the node's own
 * sockets, which has no way out where it could be done. */
INLINE bool acts_coming_in(u32 kind)
{
	return !(kind & (CELL_NOTE | CELL_FRAGMENT)) && !(kind & CELL_REPLY) == !(kind & CELL_NODE);
}

/* ... and where it goes out: sources; and the destinations of the node's own sockets. */
INLINE bool acts_going_out(u32 kind)
{
	return kind & CELL_NOTE ||
	       (!(kind & CELL_FRAGMENT) && !(kind & CELL_REPLY) != !(kind & CELL_NODE));
}

/* Is it the source that is written, or else the destination? */
INLINE bool writes_source(u32 kind)
{
	return kind & (CELL_REPLY | CELL_NOTE);
}

/* What a cell has written: an address, its port, and the port of the other end. */
struct ends {
	ip_addr addr;
	__u16 port;
	__u16 client_port;
};

/* False if the cell is another flow's by now. */
INLINE bool read_ends(const struct found *f, struct ends *to)
{
	to->addr = f->cell->addr;
	to->port = f->cell->port;
	to->client_port = f->cell->client_port;
	return unchanged(f);
}

/* What a direction's packets have noted; each direction writes its own cell's alone. */
INLINE u8 flags_of(const struct cell_state *state)
{
	return LOAD(&state->link) >> LINK_FLAGS_SHIFT;
}

INLINE void set_flags(struct cell_state *state, u8 flags)
{
	*((volatile u8 *)&state->link + LINK_FLAGS_SHIFT / 8) = flags;
}

INLINE void count_packet(struct cell_state *state, u32 bytes, u32 beat)
{
	if (state->seen != beat)
		state->seen = beat;
	state->packets++;
	state->bytes += bytes;
}

INLINE u32 timeout_of(const struct config *c, u32 state, bool replied)
{
	switch (state) {
	case STATE_SYN:
		return c->syn_timeout;
	case STATE_ESTABLISHED:
		return c->established_timeout;
	case STATE_CLOSING:
		return c->closing_timeout;
	case STATE_FIN_WAIT:
		return c->fin_wait_timeout;
	case STATE_RESET:
		return c->reset_timeout;
	case STATE_TIME_WAIT:
		return c->time_wait_timeout;
	}
	return replied ? c->datagram_stream_timeout : c->datagram_timeout;
}

CALLED(idle, struct cell_call, SUBPROGRAM_IDLE);
SIZED(idle, struct cell_call)
SUBPROGRAM(idle, struct cell_call)
{
	const struct config *c = get_config();
	struct found forward, reply;
	u32 timeout;

	if (!c || !own || !found_at(own->place, own->head, &forward))
		return false;
	reply = forward;
	if (!(kind_of(&forward) & CELL_NOTE)) {
		struct found any = forward;

		if (!find_forward(&any, &forward) || !find_next(&forward, &reply))
			return false;
	}
	timeout = timeout_of(c, state_of(&forward), flags_of(reply.state) & CELL_REPLIED);
	return is_older(own->to, forward.state->seen, timeout) &&
	       is_older(own->to, reply.state->seen, timeout);
}

/* Has nothing been seen of the flow for as long as its state allows? It lives as long as either
 * direction does. */
INLINE bool is_idle(const struct found *any, u32 beat)
{
	struct cell_call call = {any->head, any->place, beat};

	return call_idle(&call);
}

/* What a note counts from the start: it is no less to be kept than a flow that was answered. */
#define NOTE_PACKETS 2

/* A tuple that others are to keep away from. Not if somebody has it, or there is no room. */
INLINE void add_note(const struct flow_key *key, u32 state, const struct ends *ends, u8 flags,
		     u32 beat)
{
	u32 place = reserve_free_cell(key, &key->src, CELL_NOTE, new_generation());
	struct found note;

	if (!IS_PLACE(place))
		return;
	fill_cell(place, &ends->addr, ends->port, ends->client_port, 0, 0, place, beat);
	if (!get_cell_in(true, place, &note))
		return;
	note.state->packets = NOTE_PACKETS;
	if (flags)
		set_flags(note.state, flags);
	publish_cell(place, state);
}

/* Notes that a conversation which is none of a service's has this reply tuple, so that a flow
 * through a service keeps away from it. What would be written is there already. */
INLINE void note_reply(const struct flow_key *reply, u32 beat)
{
	struct ends ends = {.addr = reply->src, .port = reply->sport, .client_port = reply->dport};

	add_note(reply, reply->proto == IPPROTO_TCP ? STATE_ESTABLISHED : STATE_DATAGRAM, &ends, 0,
		 beat);
}
