/* What was decided about a packet that goes no further: counted, and told to whoever listens. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "frontend.h"
#include "event.h"

/* To the program that tells it, if anybody listens; that one does not come back. The packet has
 * been saved. */
INLINE void hand_to_tell(struct __sk_buff *skb, u32 reason, u32 remains)
{
#ifndef TRACE
	if (!is_anybody_listening())
		return;
	handoff(skb)->told = reason;
	handoff(skb)->remains = remains;
	programs.call(skb, FAMILY_PROGRAM(TELL));
#endif
}

/* Drops a packet that has been saved. */
INLINE int drop(struct __sk_buff *skb, u32 reason)
{
	count(skb, reason);
	hand_to_tell(skb, reason, 0);
	return DROP;
}

/* ... or one that was only parsed. */
INLINE int drop_parsed(struct __sk_buff *skb, const struct packet *p, u32 reason)
{
#ifndef TRACE
	if (is_anybody_listening())
		save_packet(skb, p);
#endif
	return drop(skb, reason);
}

/* ... from a program that every packet of the node runs: all of it is left to another. */
INLINE int drop_elsewhere(struct __sk_buff *skb, const struct packet *p, u32 reason)
{
#ifdef TRACE
	return drop(skb, reason);
#else
	save_packet(skb, p);
	handoff(skb)->told = reason;
	handoff(skb)->remains = REMAINS_COUNT;
	programs.call(skb, FAMILY_PROGRAM(TELL));
	return DROP; /* should that program be missing, at least this is right */
#endif
}

/* Counts why and hands the packet to the program that answers it (refuse.h). */
INLINE int refuse(struct __sk_buff *skb, u32 reason)
{
	count(skb, reason);
	hand_to_tell(skb, reason, REMAINS_ANSWER);
	programs.call(skb, FAMILY_PROGRAM(REFUSE));
	count(skb, REASON_INTERNAL);
	return DROP;
}

/* Of what cannot be read, there is told what can. */
INLINE void tell_decided(struct __sk_buff *skb)
{
	struct frontend_key key;
	struct flow_event *event;
	struct frontend frontend;
	struct packet p;

	restore_packet(skb, &p);
	make_frontend_key(&key, &p.dst, p.dport, p.proto);
	find_frontend(&key, &frontend);
	event = begin_event(EVENT_TURNED_AWAY, handoff(skb)->told);
	if (!event)
		return;
	widen(&event->src, &p.src);
	widen(&event->dst, &p.dst);
	event->sport = p.sport;
	event->dport = p.dport;
	event->proto = p.proto;
	event->service = frontend.service;
	event->packets_in = 1;
	event->bytes_in = skb->len - p.l3;
	finish_event(event);
}

/* The program for packets that go no further. */
INLINE int tell(struct __sk_buff *skb)
{
	u32 remains = handoff(skb)->remains;

	if (remains & REMAINS_COUNT)
		count(skb, handoff(skb)->told);
	if (is_anybody_listening())
		tell_decided(skb);
	if (!(remains & REMAINS_ANSWER))
		return DROP;
	programs.call(skb, FAMILY_PROGRAM(REFUSE));
	count(skb, REASON_INTERNAL);
	return DROP;
}
