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
INLINE void hand_to_tell(struct __sk_buff *skb, u32 reason, bool answered)
{
#ifndef TRACE
	if (!is_anybody_listening())
		return;
	handoff(skb)->told = reason;
	handoff(skb)->answered = answered;
	programs.call(skb, FAMILY_PROGRAM(TELL));
#endif
}

/* Drops a packet that has been saved. */
INLINE int drop(struct __sk_buff *skb, u32 reason)
{
	count(skb, reason);
	hand_to_tell(skb, reason, false);
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

/* Counts why and hands the packet to the program that answers it (refuse.h). */
INLINE int refuse(struct __sk_buff *skb, u32 reason)
{
	count(skb, reason);
	hand_to_tell(skb, reason, true);
	programs.call(skb, FAMILY_PROGRAM(REFUSE));
	count(skb, REASON_INTERNAL);
	return DROP;
}

/* The program. Of what cannot be read, there is told what can. */
INLINE int tell_decided(struct __sk_buff *skb)
{
	struct frontend_key key;
	struct flow_event *event;
	struct frontend frontend;
	struct packet p;

	restore_packet(skb, &p);
	make_frontend_key(&key, &p.dst, p.dport, p.proto);
	find_frontend(&key, &frontend);
	event = begin_event(EVENT_TURNED_AWAY, handoff(skb)->told);
	if (event) {
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
	if (!handoff(skb)->answered)
		return DROP;
	programs.call(skb, FAMILY_PROGRAM(REFUSE));
	count(skb, REASON_INTERNAL);
	return DROP;
}
