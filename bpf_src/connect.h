/* A new flow to a service: choose a backend, reserve the reply's tuple, remember both directions.
 *
 * Two flows of one client may meet in the tuple their replies carry (one source port towards two
 * services with a common backend, or towards a service and directly to its backend). Whoever comes
 * second gets another source port, as the kernel's conntrack does. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "config.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "tailcall.h"
#include "flow.h"
#include "established.h"
#include "nat.h"
#include "cpu.h"
#include "select.h"
#include "refuse.h"
#include "owned.h"
#include "outgoing.h"

#define CONNECT_TURNS 5 /* while another CPU may be opening the same flow */
#define RETRY_LOOKS 8	/* per turn */
#define CELL_OURS 0xfffffffd /* beside those of reserve_cell: another CPU opens this very flow */

/* A source port to try: any of the range that the node keeps for this, or for its own flows.
 * Network byte order. */
INLINE u16 random_port(const struct config *c, bool node)
{
	u32 first = node ? c->port_max + 1 : c->port_min;
	u32 span = (node ? c->node_port_max : c->port_max) - first + 1;

	return htons(first + (u32)((u64)next_random() * span >> 32));
}

/* Sets a client port under which nothing is known of the reply tuple, if one is found. */
INLINE void pick_port(const struct config *c, struct flow_key *key, bool node)
{
	struct found held;
	int i;

	ROLLED
	for (i = 0; i < SOURCE_PORT_TRIES; i++) {
		key->dport = random_port(c, node);
		if (!find_cell(key, &held))
			break;
	}
}

/* May what holds our reply tuple be ended? Either it is what rests of this very flow, or it has
 * been idle for so long that the sweep would end it. As a last resort a close is enough; a reset
 * never is, it may be forged. */
INLINE bool may_end(const struct found *held, const struct packet *p, u32 beat, bool last_resort)
{
	struct ends ends;

	if (!read_ends(held, &ends))
		return false;
	if (kind_of(held) & CELL_NOTE && same_address(&ends.addr, &p->dst) &&
	    ends.port == p->dport && ends.client_port == p->sport)
		return true;
	return is_idle(held, beat) || (last_resort && state_of(held) == STATE_TIME_WAIT);
}

/* Is it this very flow, which another CPU opens? */
INLINE bool is_ours(const struct found *held, const struct packet *p)
{
	struct ends ends;

	return kind_of(held) & CELL_REPLY && !(kind_of(held) & CELL_NOTE) &&
	       read_ends(held, &ends) && same_address(&ends.addr, &p->dst) &&
	       ends.port == p->dport && ends.client_port == p->sport;
}

/* Reserves the reply's tuple: with the client port in the key if it is free, else with another one
 * (a masqueraded flow has its port already). What has it and may go is ended. The place, or
 * CELL_FULL, CELL_TAKEN, or CELL_OURS if another CPU is at the same. */
INLINE u32 reserve_reply(struct flow_key *key, const struct packet *p, u32 kind, u32 generation)
{
	const struct config *c = get_config();
	u32 place = CELL_TAKEN, beat = now();
	u16 wanted = key->dport;
	struct found held;
	int i;

	ROLLED
	for (i = 0; i < 3; i++) {
		place = reserve_cell(key, &p->src, kind, generation);
		if (place != CELL_TAKEN || !c)
			break;
		if (!find_cell(key, &held))
			continue;
		if (is_ours(&held, p))
			return CELL_OURS;
		if (may_end(&held, p, beat, key->dport != wanted))
			end_flow(&held, END_REPLACED);
		else if (!(kind & CELL_MASQUERADED))
			pick_port(c, key, kind & CELL_NODE);
	}
	return place;
}

/* A note gives way to a client. */
INLINE u32 reserve_forward(const struct flow_key *key, u32 kind, u32 generation)
{
	u32 place = CELL_TAKEN;
	struct found held;
	int i;

	ROLLED
	for (i = 0; i < 2; i++) {
		place = reserve_cell(key, &key->src, kind, generation);
		if (place != CELL_TAKEN || !find_cell(key, &held) ||
		    !(kind_of(&held) & CELL_NOTE))
			break;
		end_flow(&held, END_REPLACED);
	}
	return place;
}

/* The first packet: the only one that says what the backend's RST would have to acknowledge. */
INLINE void note_first(struct __sk_buff *skb, const struct packet *p, u32 forward, u32 reply)
{
	struct found own, other;
	u32 seq;

	if (!get_cell(forward, &own) || !get_cell(reply, &other))
		return;
	own.state->packets = 1;
	own.state->bytes = skb->len - p->l3;
	if (p->proto == IPPROTO_TCP && !bpf_skb_load_bytes(skb, p->l4 + 4, &seq, sizeof(seq)))
		other.state->ack = htonl(ntohl(seq) + 1);
}

/* The cells at a masqueraded flow's sides (masquerade.h), which are reserved already. */
struct sides {
	u32 out;
	u32 back;
};

INLINE void abandon_sides(const struct sides *sides)
{
	if (!sides)
		return;
	abandon_cell(sides->out);
	abandon_cell(sides->back);
}

/* The four cells of a ring; those of the sides are filled in already. */
INLINE void publish_sides(const struct sides *sides, u32 forward, u32 state)
{
	struct found out, back;

	if (!get_cell(sides->out, &out) || !get_cell(sides->back, &back))
		return;
	out.state->link = sides->back;
	back.state->link = forward;
	publish_cell(sides->back, state);
	publish_cell(sides->out, state);
}

/* Remembers the flow in both directions: first the reply's tuple, which may be taken, then the
 * forward cell. `choice` tells where it goes and learns the client port. 0, -EEXIST when another
 * CPU is opening it, or an error that was counted. */
INLINE int open_flow(struct __sk_buff *skb, struct packet *p, const struct flow_key *key,
		     struct choice *choice, u32 generation, const struct sides *sides)
{
	u32 state = p->proto == IPPROTO_TCP ? STATE_SYN : STATE_DATAGRAM;
	u32 reply, forward, beat = now();
	struct flow_key reply_key = {};

	reply_key.src = choice->addr;
	reply_key.sport = choice->port;
	reply_key.dst = p->src;
	reply_key.dport = choice->client_port;
	reply_key.proto = p->proto;
	reply = reserve_reply(&reply_key, p, choice->kind | CELL_REPLY, generation);
	if (reply == CELL_OURS || !IS_PLACE(reply)) {
		abandon_sides(sides);
		if (reply == CELL_OURS)
			return -EEXIST;
		count(skb, reply == CELL_TAKEN ? REASON_PORTS_EXHAUSTED : REASON_FLOWS_FULL);
		return -ENOENT;
	}
	forward = reserve_forward(key, choice->kind, generation);
	if (!IS_PLACE(forward)) {
		abandon_cell(reply);
		abandon_sides(sides);
		if (forward == CELL_TAKEN)
			return -EEXIST;
		count(skb, REASON_FLOWS_FULL);
		return -ENOENT;
	}
	if (reply_key.dport != choice->client_port)
		count(skb, REASON_SOURCE_TRANSLATED);
	choice->client_port = reply_key.dport;
	fill_cell(reply, &p->dst, p->dport, p->sport, choice->backend, choice->service,
		  sides ? sides->out : forward, beat);
	fill_cell(forward, &choice->addr, choice->port, choice->client_port, choice->backend,
		  choice->service, reply, beat);
	note_first(skb, p, forward, reply);
	if (sides)
		publish_sides(sides, forward, state);
	publish_cell(reply, state);
	publish_cell(forward, state);
	if (choice->service)
		count_opened(choice->backend, choice->service);
	return 0;
}

/* Another CPU opens this flow (a SYN sent twice, two datagrams at once), or will not: then it is
 * this packet's turn again. */
INLINE int retry_later(struct __sk_buff *skb, u32 turn)
{
	if (turn >= CONNECT_TURNS) {
		count(skb, REASON_FLOWS_FULL);
		return DROP;
	}
	handoff(skb)->turn = turn + 1;
	programs.call(skb, FAMILY_PROGRAM(RETRY));
	count(skb, REASON_INTERNAL);
	return DROP;
}

INLINE int open_and_forward(struct __sk_buff *skb, struct packet *p, const struct flow_key *key,
			    struct choice *choice, u32 turn, u32 generation,
			    const struct sides *sides)
{
	int error = open_flow(skb, p, key, choice, generation, sides);

	if (error)
		return error == -EEXIST ? retry_later(skb, turn) : DROP;
	count(skb, REASON_FORWARDED);
	return translate(skb, p, false, &choice->addr, choice->port, choice->client_port);
}

/* The backend that was chosen before the packet was handed on. */
INLINE bool restore_choice(struct choice *choice, u32 reference, u32 service)
{
	u32 id = reference & BACKEND_ID_MASK;
	struct backend *b = backends.lookup(&id);

	if (!b)
		return false;
	take_backend(choice, b, reference, service);
	return true;
}

/* The program that opens the flow. One program's stack has no room for this and the choice. */
INLINE int open_chosen(struct __sk_buff *skb)
{
	u32 turn = handoff(skb)->turn;
	struct choice choice = {};
	struct flow_key key;
	struct packet p;

	if (!restore_choice(&choice, handoff(skb)->backend, handoff(skb)->service) ||
	    !restore_packet(skb, &p))
		return DROP;
	choice.client_port = p.sport;
	make_key(&key, &p);
	return open_and_forward(skb, &p, &key, &choice, turn, new_generation(), 0);
}

/* The program for a packet whose flow another CPU may have opened meanwhile. */
INLINE int retry(struct __sk_buff *skb)
{
	struct flow_key key;
	struct packet p;
	struct found f;
	int i;

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
	ROLLED
	for (i = 0; i < RETRY_LOOKS; i++) {
		if (find_cell(&key, &f) && !(kind_of(&f) & (CELL_NOTE | CELL_REPLY)))
			return established(skb, &p, &f);
	}
	return hand_to(skb, p.origin == ORIGIN_NODE ? FAMILY_PROGRAM(NODE_OPEN)
						    : FAMILY_PROGRAM(CONNECT));
}

/* Would the reply not come back through this node, or not be told from the pod's own? Masquerade
 * then; never where Kubernetes promises the client's address. */
INLINE bool needs_masquerade(const struct config *c, const struct packet *p, u32 frontend_flags,
			     const struct choice *choice)
{
	if (same_address(&p->src, &choice->addr))
		return true;
	if (choice->local || p->origin == ORIGIN_NODE)
		return false;
	if (!(frontend_flags & FRONTEND_CLUSTER_IP))
		return p->origin == ORIGIN_NET;
	if (c->flags & CONFIG_MASQUERADE_ALL)
		return true;
	return p->origin == ORIGIN_NET && POD_CIDR_COUNT(c) && !in_pod_range(c, &p->src);
}

INLINE int connect_service(struct __sk_buff *skb, struct packet *p,
			   const struct frontend *frontend)
{
	struct request request = {.service = frontend->service, .frontend_flags = frontend->flags};
	const struct config *c = get_config();
	struct choice choice = {};
	bool masquerade;
	int reason;

	if (!c)
		return DROP;
	widen(&request.client, &p->src);
	request.outside = p->origin == ORIGIN_NET;
	reason = choose_backend(&request, &choice);
	if (reason == REASON_NO_ENDPOINT)
		return refuse(skb, reason);
	if (reason) {
		count(skb, reason);
		return DROP;
	}
	masquerade = needs_masquerade(c, p, frontend->flags, &choice);
	handoff(skb)->service = choice.service;
#ifdef TRACE
	handoff(skb)->masqueraded = masquerade;
	count(skb, REASON_FORWARDED);
	return translate(skb, p, false, &choice.addr, choice.port, p->sport);
#else
	handoff(skb)->backend = choice.backend;
	return hand_to(skb, masquerade ? FAMILY_PROGRAM(MASQUERADE) : FAMILY_PROGRAM(OPEN));
#endif
}

INLINE int leave_to_stack(struct __sk_buff *skb)
{
	count(skb, REASON_LEFT_TO_STACK);
	return PASS;
}

/* Is this packet, which belongs to no flow, the node's own business, although a service has the
 * address and port? At a ClusterIP that the node has itself, what one of its sockets is bound to
 * is; at any other address, what answers a conversation of the node's own. TCP that begins nothing
 * is enough to tell where the node has the address: the stack resets what nobody has. */
INLINE bool is_nodes_own(struct __sk_buff *skb, const struct packet *p, struct flow_key *key,
			 const struct frontend_key *called, u32 frontend_flags)
{
	struct addr client = {};
	bool begins = p->proto != IPPROTO_TCP || starts_connection(p);

	if (frontend_flags & FRONTEND_SHARED && !begins)
		return true;
	if (frontend_flags & FRONTEND_CLUSTER_IP) {
		if (!(frontend_flags & FRONTEND_SHARED))
			return false;
		if (p->proto != IPPROTO_TCP)
			widen(&client, &p->src);
		return is_bound(skb, &client, p->proto == IPPROTO_TCP ? 0 : p->sport, &called->addr,
				p->dport, p->proto);
	}
#ifdef TRACE
	return false; /* every packet of it begins a flow of somebody else's */
#else
	return (p->proto != IPPROTO_TCP || !begins) && is_answer(key);
#endif
}

/* Nobody serves this port. Ours to refuse only on a live ClusterIP that is nobody else's. */
INLINE int no_frontend(struct __sk_buff *skb, struct packet *p)
{
	struct frontend_key key;
	struct frontend found;
	const struct config *c = get_config();

	make_frontend_key(&key, &p->dst, 0, 0);
	if (find_frontend(&key, &found))
		return found.flags & FRONTEND_SHARED ? leave_to_stack(skb)
						     : refuse(skb, REASON_UNKNOWN_PORT);
	if (c && !(c->flags & CONFIG_PASS_MIDSTREAM) && in_service_range(c, &p->dst)) {
		count(skb, REASON_UNALLOCATED);
		return DROP;
	}
	count(skb, REASON_NOT_SERVICE);
	return PASS;
}

/* TCP that does not begin a connection and has no flow. */
INLINE int no_flow(struct __sk_buff *skb, struct packet *p)
{
	const struct config *c = get_config();

	if (c && c->flags & CONFIG_PASS_MIDSTREAM) {
		count(skb, REASON_NO_FLOW_PASSED);
		return PASS;
	}
	if (p->tcp_flags & TCP_RST) { /* a reset is never answered with one */
		count(skb, REASON_NO_FLOW_RESET);
		return DROP;
	}
	return refuse(skb, REASON_NO_FLOW_RESET);
}

INLINE int connect(struct __sk_buff *skb)
{
	struct frontend_key frontend_key;
	struct frontend frontend;
	struct flow_key key;
	struct packet p;

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
	if (is_martian_source(&p.src))
		return leave_to_stack(skb);
	make_frontend_key(&frontend_key, &p.dst, p.dport, p.proto);
	if (!find_frontend(&frontend_key, &frontend) || frontend.flags & FRONTEND_SOCKETS)
		return no_frontend(skb, &p);
	if (is_nodes_own(skb, &p, &key, &frontend_key, frontend.flags))
		return leave_to_stack(skb);
	if (p.proto == IPPROTO_TCP && !starts_connection(&p))
		return no_flow(skb, &p);
	return connect_service(skb, &p, &frontend);
}
