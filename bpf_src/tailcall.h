/* Handing a packet to another program of its family. Apart from handoff.h, since a call that fails
 * is counted, and the trace variant counts into what is handed on. */
#pragma once

#include "unit.h"
#include "consts.h"
#include "maps.h"
#include "parse.h"
#include "handoff.h"
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

/* No flow has the packet's tuple: to the program that may begin one, for whoever sent it. */
INLINE int hand_to_connect(struct __sk_buff *skb, const struct packet *p)
{
	handoff(skb)->turn = 0;
#ifndef TRACE /* which asks what the node's sockets would get */
	if (p->origin == ORIGIN_NODE)
		return hand_to(skb, FAMILY_PROGRAM(NODE_OPEN));
#endif
	return hand_to(skb, FAMILY_PROGRAM(CONNECT));
}

/* The end of a packet's translation: one that a socket of the node's own sent to a service has yet
 * to be sent (node.h). `kind`: of the cell that it was translated by. */
INLINE int send_on(struct __sk_buff *skb, u32 kind, int verdict)
{
	if (verdict != PASS || (kind & (CELL_NODE | CELL_REPLY | CELL_DIRECT)) != CELL_NODE)
		return verdict;
	return hand_to(skb, FAMILY_PROGRAM(NODE_SEND));
}
