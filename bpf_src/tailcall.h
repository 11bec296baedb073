/* Handing a packet to another program of its family. Apart from handoff.h, since a call that fails
 * is counted, and the trace variant counts into what is handed on. */
#pragma once

#include "unit.h"
#include "consts.h"
#include "maps.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "stats.h"

/* Hands the packet on; a missing program is counted and the packet let through. */
INLINE int hand_to(struct __sk_buff *skb, u32 program)
{
	programs.call(skb, program);
	count(skb, REASON_INTERNAL);
	return PASS;
}

/* handoff.turn, where a packet may find no flow any more: of one that goes out, which begins none.
 */
#define TURN_MASK 0xff
#define NO_TURN TURN_MASK

/* A flow was there, and has ended this very moment: what comes in begins another. */
INLINE int ended_meanwhile(struct __sk_buff *skb)
{
	if ((handoff(skb)->turn & TURN_MASK) == NO_TURN)
		return DROP;
	return hand_to(skb, FAMILY_PROGRAM(RETRY));
}

/* A flow is over, and its packet begins another. */
INLINE int hand_to_begin_anew(struct __sk_buff *skb, u32 generation)
{
	handoff(skb)->generation = generation;
	return hand_to(skb, FAMILY_PROGRAM(BEGIN_ANEW));
}

/* The program that may begin a flow for a packet that has none, by whoever sent it. What came in an
 * outer header (arrive.h) has its endpoint, which goes along. */
INLINE u32 beginning_program(const struct packet *p)
{
#ifndef TRACE /* which asks what the node's sockets would get */
	if (p->origin == ORIGIN_NODE)
		return FAMILY_PROGRAM(NODE_OPEN);
	if (p->origin == ORIGIN_DSR)
		return FAMILY_PROGRAM(OPEN);
#endif
	return FAMILY_PROGRAM(CONNECT);
}

/* No flow has the packet's tuple. */
INLINE int hand_to_connect(struct __sk_buff *skb, const struct packet *p)
{
	handoff(skb)->turn = 0;
	return hand_to(skb, beginning_program(p));
}

/* A packet that goes to its flow's endpoint whole (dsr.h). */
INLINE int hand_to_encapsulate(struct __sk_buff *skb, const struct packet *p, const struct found *f)
{
	save_packet(skb, p);
	handoff(skb)->generation = HEAD_GENERATION(f->head);
	handoff(skb)->place = f->place;
	programs.call(skb, FAMILY_PROGRAM(ENCAPSULATE));
	count(skb, REASON_INTERNAL);
	return DROP;
}

/* The end of a packet's translation: one that a socket of the node's own sent to a service has yet
 * to be sent (node.h). `kind`: of the cell that it was translated by. */
INLINE int send_on(struct __sk_buff *skb, u32 kind, int verdict)
{
	if (verdict != PASS || (kind & (CELL_NODE | CELL_REPLY | CELL_DIRECT)) != CELL_NODE)
		return verdict;
	return hand_to(skb, FAMILY_PROGRAM(NODE_SEND));
}
