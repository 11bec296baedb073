/* The flow tables: finding, adding and ending flows. docs/datapath.md tells the whole story. */
#pragma once

#include <linux/in.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "config.h"
#include "parse.h"
#include "stats.h"

INLINE void make_key(struct flow_key *key, const struct packet *p)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = p->src;
	key->dst = p->dst;
	key->sport = p->sport;
	key->dport = p->dport;
	key->proto = p->proto;
}

/* The key of the other direction's entry; the same formula both ways. */
INLINE void make_pair_key(struct flow_key *pair, const struct flow_key *key, const struct flow *f)
{
	__builtin_memset(pair, 0, sizeof(*pair));
	if (f->flags & FLOW_REPLY) {
		pair->src = key->dst;
		pair->sport = f->client_port;
		pair->dst = f->addr;
		pair->dport = f->port;
	} else {
		pair->src = f->addr;
		pair->sport = f->port;
		pair->dst = key->src;
		pair->dport = f->client_port;
	}
	pair->proto = key->proto;
}

/* Is this the forward entry of the flow whose reply entry's key that is? */
INLINE bool replies_by(const struct flow *forward, const struct flow_key *reply_key)
{
	return !(forward->flags & FLOW_REPLY) && same_address(&forward->addr, &reply_key->src) &&
	       forward->port == reply_key->sport && forward->client_port == reply_key->dport;
}

/* Does `pair`, found under the pair key, belong to the flow of `key`? */
INLINE bool is_pair(const struct flow *pair, const struct flow_key *key, const struct flow *f)
{
	if (f->flags & FLOW_REPLY)
		return replies_by(pair, key);
	return pair->flags & FLOW_REPLY && same_address(&pair->addr, &key->dst) &&
	       pair->port == key->dport && pair->client_port == key->sport;
}

INLINE u64 *tcp_entries(struct table_state *state)
{
#if FAMILY == 6
	return &state->tcp_entries6;
#else
	return &state->tcp_entries4;
#endif
}

INLINE u32 *overflowed(struct table_state *state)
{
#if FAMILY == 6
	return &state->overflowed6;
#else
	return &state->overflowed4;
#endif
}

INLINE u32 *has_direct(struct table_state *state)
{
#if FAMILY == 6
	return &state->direct6;
#else
	return &state->direct4;
#endif
}

INLINE u32 *direct_notes(struct table_state *state)
{
#if FAMILY == 6
	return &state->notes6;
#else
	return &state->notes4;
#endif
}

/* May TCP entries be in the LRU table? */
INLINE bool forgettable(struct table_state *state)
{
	return *overflowed(state) || *direct_notes(state) != NOTES_NONE;
}

/* A note is found too, and changes nothing: who uses it keeps it from being forgotten. */
INLINE struct flow *find_flow(struct flow_key *key)
{
	struct table_state *state;
	struct flow *f;

	if (key->proto != IPPROTO_TCP)
		return FLOWS_LRU.lookup(key);
	f = FLOWS.lookup(key);
	if (f)
		return f;
	state = get_table_state();
	if (state && forgettable(state))
		return FLOWS_LRU.lookup(key);
	return 0;
}

/* Is the plain TCP table so full that only established flows may enter? */
INLINE bool under_pressure(const struct table_state *state)
{
	const struct config *c = get_config();

	return c && *tcp_entries((struct table_state *)state) >= c->flow_limit;
}

/* Adds an entry that must not exist yet. 0, -EEXIST, or another error when there is no room. */
INLINE int add_flow(struct flow_key *key, struct flow *f)
{
	struct table_state *state = get_table_state();
	int error;

	if (!state)
		return -ENOENT;
	if (key->proto == IPPROTO_TCP) {
		if (!under_pressure(state)) {
			error = FLOWS.insert(key, f);
			if (!error)
				__sync_fetch_and_add(tcp_entries(state), 1);
			if (!error || error == -EEXIST)
				return error;
		}
		*overflowed(state) = 1;
	}
	return FLOWS_LRU.insert(key, f);
}

/* False if it was gone already: another CPU did it. */
INLINE bool delete_flow(struct flow_key *key)
{
	struct table_state *state = get_table_state();

	if (key->proto == IPPROTO_TCP && !FLOWS.delete(key)) {
		if (state)
			__sync_fetch_and_add(tcp_entries(state), -1);
		return true;
	}
	return !FLOWS_LRU.delete(key);
}

/* The two more entries of a masqueraded flow (masquerade.h), given its forward entry: their keys,
 * and the one that packets to the backend go out by. */
INLINE struct flow *find_sides(const struct flow_key *key, const struct flow *f,
			       struct flow_key *out_key, struct flow_key *back_key)
{
	struct flow *out;

	__builtin_memset(out_key, 0, sizeof(*out_key));
	out_key->src = key->src;
	out_key->sport = f->client_port;
	out_key->dst = f->addr;
	out_key->dport = f->port;
	out_key->proto = key->proto;
	out = find_flow(out_key);
	if (!out || out->state != FLOW_SIDE)
		return 0;
	__builtin_memset(back_key, 0, sizeof(*back_key));
	back_key->src = out_key->dst;
	back_key->sport = out_key->dport;
	back_key->dst = out->addr;
	back_key->dport = out->port;
	back_key->proto = key->proto;
	return out;
}

/* Are both side entries of a masqueraded flow still there? Asking keeps them from being forgotten.
 */
INLINE bool has_sides(const struct flow_key *key, const struct flow *f)
{
	struct flow_key out_key, back_key;

	return find_sides(key, f, &out_key, &back_key) && find_flow(&back_key);
}

/* Ends a flow, given its forward entry. While the backend may still hold its tuple in TIME_WAIT,
 * what reserves that tuple stays, so that nobody else gets it: the reply entry and, of a
 * masqueraded flow, the side entry of what comes in. Not if room is short. */
INLINE void end_entries(struct flow_key *key, struct flow *f)
{
	struct flow_key pair_key, out_key, back_key;
	struct table_state *state = get_table_state();
	struct flow *pair;
	bool keep = false;

	flush_counts(f);
	make_pair_key(&pair_key, key, f);
	pair = find_flow(&pair_key);
	if (pair && is_pair(pair, key, f)) {
		flush_counts(pair);
		keep = pair->flags & FLOW_FIRST && state && !under_pressure(state);
		if (keep)
			pair->state = FLOW_TIME_WAIT;
		else
			delete_flow(&pair_key);
	}
	if (f->flags & FLOW_MASQUERADED && find_sides(key, f, &out_key, &back_key)) {
		delete_flow(&out_key);
		if (!keep)
			delete_flow(&back_key);
	}
	delete_flow(key);
}

/* Both sides have closed and both know. The last packet may still be under way, and a new
 * connection's first one overtake it (two CPUs deliver them): the flow keeps its tuples until some
 * others have ended on this CPU, or the next one if room is short. */
INLINE void linger(struct flow_key *key, struct flow *f, struct flow *pair)
{
	struct table_state *state = get_table_state();
	u32 zero = 0, place, number;
	struct ended *ended = ENDED.lookup(&zero);
	struct flow_key oldest;

	f->state = FLOW_TIME_WAIT;
	pair->state = FLOW_TIME_WAIT;
	flush_counts(f);
	flush_counts(pair);
	if (!ended || !state)
		return;
	place = ended->oldest % LINGERING;
	if (!under_pressure(state))
		ended->oldest++;
	oldest = ended->flows[place].key;
	number = ended->flows[place].number;
	ended->count++;
	ended->flows[place].key = *key;
	ended->flows[place].number = ended->count;
	f->ack = ended->count;
	pair->ack = ended->count;
	f = find_flow(&oldest);
	if (f && f->state == FLOW_TIME_WAIT && f->ack == number)
		end_entries(&oldest, f);
}

INLINE u32 timeout_of(const struct config *c, const struct flow *f)
{
	switch (f->state) {
	case FLOW_SYN:
		return c->syn_timeout;
	case FLOW_ESTABLISHED:
		return c->established_timeout;
	case FLOW_CLOSING:
		return c->closing_timeout;
	case FLOW_RESET:
		return c->reset_timeout;
	case FLOW_TIME_WAIT:
		return c->time_wait_timeout;
	case FLOW_FIN_WAIT:
		return FIN_WAIT_TICKS;
	}
	return f->flags & FLOW_REPLIED ? c->datagram_stream_timeout : c->datagram_timeout;
}

/* Has nothing been seen of this entry for as long as its state allows? */
INLINE bool entry_idle(const struct flow *f, u32 tick)
{
	const struct config *c = get_config();

	return c && tick - f->seen > timeout_of(c, f);
}

/* A flow lives as long as either direction does. */
INLINE bool idle(const struct flow_key *key, const struct flow *f, u32 tick)
{
	struct flow_key pair_key;
	struct flow *pair;

	if (!entry_idle(f, tick))
		return false;
	make_pair_key(&pair_key, key, f);
	pair = find_flow(&pair_key);
	return !pair || !is_pair(pair, key, f) || entry_idle(pair, tick);
}

/* Is the TCP conversation over, so that a SYN on the same ports is a new one? What nobody can forge
 * who does not see the packets: a SYN alone ends nothing that lives. */
INLINE bool finished(const struct flow_key *key, const struct flow *f, u32 tick)
{
	if (f->state == FLOW_RESET || f->state == FLOW_TIME_WAIT || f->state == FLOW_FIN_WAIT)
		return true;
	return idle(key, f, tick);
}

/* Notes that a conversation which is none of a service's has this reply tuple, so that a flow
 * through a service keeps away from it. A note changes nothing if it is found as a flow. */
INLINE void note_tuple(struct flow_key *reply_key, u8 state, u32 tick)
{
	struct flow note = {.flags = FLOW_DIRECT | FLOW_REPLY, .seen = tick, .state = state};

	note.addr = reply_key->src;
	note.port = reply_key->sport;
	note.client_port = reply_key->dport;
	FLOWS_LRU.update(reply_key, &note);
}

INLINE bool is_note(const struct flow *f, const struct flow_key *reply_key)
{
	return f->flags & FLOW_DIRECT && same_address(&f->addr, &reply_key->src) &&
	       f->port == reply_key->sport && f->client_port == reply_key->dport;
}

/* Moves an established flow's entry out of the table that forgets. */
INLINE void promote(struct flow_key *key)
{
	struct table_state *state = get_table_state();
	struct flow *f = FLOWS_LRU.lookup(key);
	struct flow copy;

	if (!f || !state)
		return;
	copy = *f;
	if (FLOWS.insert(key, &copy))
		return;
	__sync_fetch_and_add(tcp_entries(state), 1);
	FLOWS_LRU.delete(key);
}
