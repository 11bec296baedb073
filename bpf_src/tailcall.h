/* Handing a packet to another program of its family. Apart from handoff.h, since a call that fails
 * is counted, and the trace variant counts into what is handed on. */
#pragma once

#include "unit.h"
#include "consts.h"
#include "maps.h"
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

/* `old_flow`: a flow with the packet's tuple is in the way. */
INLINE int hand_to_connect(struct __sk_buff *skb, bool old_flow)
{
	handoff(skb)->old_flow = old_flow;
	return hand_to(skb, FAMILY_PROGRAM(CONNECT));
}
