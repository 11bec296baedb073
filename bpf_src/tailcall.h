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

INLINE int hand_to_track(struct __sk_buff *skb, bool reply)
{
	handoff(skb)->reply = reply;
	return hand_to(skb, FAMILY_PROGRAM(TRACK));
}

INLINE int hand_to_upkeep(struct __sk_buff *skb, bool reply)
{
	handoff(skb)->reply = reply;
	return hand_to(skb, FAMILY_PROGRAM(UPKEEP));
}

/* A flow is over, and its packet begins another: in the program for whoever sent it. */
INLINE int begin_anew(struct __sk_buff *skb, const struct packet *p)
{
	handoff(skb)->old_flow = true;
	return hand_to(skb, p->origin == ORIGIN_NODE ? FAMILY_PROGRAM(NODE_OPEN)
						     : FAMILY_PROGRAM(CONNECT));
}

/* The end of a packet's translation: one of the node's own has yet to be sent (node.h). */
INLINE int send_on(struct __sk_buff *skb, const struct packet *p, int verdict)
{
	return verdict == PASS && p->origin == ORIGIN_NODE ? hand_to(skb, FAMILY_PROGRAM(NODE_SEND))
							   : verdict;
}

/* `old_flow`: a flow with the packet's tuple is in the way. */
INLINE int hand_to_connect(struct __sk_buff *skb, bool old_flow)
{
	handoff(skb)->old_flow = old_flow;
	return hand_to(skb, FAMILY_PROGRAM(CONNECT));
}
