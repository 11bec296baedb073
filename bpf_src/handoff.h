/* What goes with a packet from program to program by tail call. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "parse.h"

/* Lies in the bytes that the kernel keeps for programs (skb->cb, five words). Where a word has two
 * names, the program that is called tells which one holds. */
struct handoff {
	union {
		__u32 turn;	  /* to follow, connect and what they lead to, see open.h */
		__u32 early;	  /* to fragment: enum early */
		__u32 generation; /* to begin_anew: of the flow that is over; to go_past and
				     encapsulate: of the packet's; to open_masqueraded: of its
				     cells; to arrive_new: of one that is to end, or 0 */
		__u32 mtu;	  /* to too_big: how long the packet may be */
		__u32 told;	  /* to tell: enum reason */
		__u32 reason;	  /* in the trace variant, which follows no flows: for the caller */
	};
	union {
		__u32 service;	   /* to choose, open, open_dsr, masquerade and node_flow, and to
				      the trace variant's caller: whose backend it is or will be */
		__u32 fragment_id; /* to fragment */
		__u32 out;     /* to open_masqueraded: the place of a reserved cell, and `turn` */
		__u32 place;   /* to go_past and encapsulate: of the cell that was found */
		__u32 remains; /* to tell: enum remains */
	};
	union {
		__u32 frontend_flags; /* to choose */
		__u32 backend;	      /* to open, open_dsr, masquerade and node_flow: id |
					 generation << 24 */
		__u32 known;	      /* to arrive_new: is there a flow that it goes on with? */
		__u32 back;	      /* to open_masqueraded: the place of the other one */
		__u32 masqueraded;    /* in the trace variant, which calls no masquerade: enum
					 traced_way */
	};
	union {
		__u32 from;   /* by the entry programs: enum origin, perhaps with BARE_LINK */
		__u32 packet; /* by all others: offsets, fragment_kind, origin and protocol */
	};
	__u32 ports; /* source and destination, network byte order */
};

_Static_assert(offsetof(struct __sk_buff, cb) == HANDOFF_PLACE, "where `lbctl trace` reads");
_Static_assert(sizeof(struct handoff) == sizeof(((struct __sk_buff *)0)->cb), "all of skb->cb");
_Static_assert(offsetof(struct handoff, reason) == 4 * HANDOFF_REASON, "see HANDOFF_REASON");
_Static_assert(offsetof(struct handoff, service) == 4 * HANDOFF_SERVICE, "see HANDOFF_SERVICE");
_Static_assert(offsetof(struct handoff, masqueraded) == 4 * HANDOFF_MASQUERADED,
	       "see HANDOFF_MASQUERADED");

INLINE struct handoff *handoff(struct __sk_buff *skb)
{
	return (struct handoff *)skb->cb;
}

/* What is still to be done with a packet that goes no further. */
enum remains { REMAINS_COUNT = 1, REMAINS_ANSWER = 2 };

/* The word `packet`, from the lowest bit: where the transport header is, where the IP header is,
 * fragment_kind, origin, protocol. */
#define L3_SHIFT L4_BITS
#define FRAGMENT_SHIFT (L3_SHIFT + L3_BITS)
#define ORIGIN_SHIFT (FRAGMENT_SHIFT + 2)
#define PROTO_SHIFT (ORIGIN_SHIFT + 2)

/* What was parsed goes along: headers are walked once. */
INLINE void save_packet(struct __sk_buff *skb, const struct packet *p)
{
	handoff(skb)->packet = p->l4 | p->l3 << L3_SHIFT | p->fragment << FRAGMENT_SHIFT |
			       p->origin << ORIGIN_SHIFT | p->proto << PROTO_SHIFT;
	handoff(skb)->ports = p->sport | (u32)p->dport << 16;
}

/* False only if the packet is not what it was, which cannot happen between our own programs. */
INLINE bool restore_packet(struct __sk_buff *skb, struct packet *p)
{
	u32 saved = handoff(skb)->packet, ports = handoff(skb)->ports;
	void *network, *end = packet_end(skb);

	__builtin_memset(p, 0, sizeof(*p));
	p->l4 = saved & L4_MASK;
	p->l3 = saved >> L3_SHIFT & L3_MASK;
	p->fragment = saved >> FRAGMENT_SHIFT & 3;
	p->origin = saved >> ORIGIN_SHIFT & 3;
	p->proto = saved >> PROTO_SHIFT;
	p->sport = ports;
	p->dport = ports >> 16;
	network = packet_start(skb) + p->l3;
	if (network + IP_HEADER_LENGTH > end)
		return false;
#if FAMILY == 4
	p->src = ((struct iphdr *)network)->saddr;
	p->dst = ((struct iphdr *)network)->daddr;
	p->l4_length = ntohs(((struct iphdr *)network)->tot_len);
#else
	__builtin_memcpy(&p->src, &((struct ipv6hdr *)network)->saddr, 16);
	__builtin_memcpy(&p->dst, &((struct ipv6hdr *)network)->daddr, 16);
	p->l4_length = ntohs(((struct ipv6hdr *)network)->payload_len);
	if (p->l4_length || !skb->gso_size)
		p->l4_length += IP_HEADER_LENGTH;
#endif
	if (!p->l4_length) /* a GSO packet above 64 KiB */
		p->l4_length = skb->len - p->l3;
	p->l4_length -= p->l4 - p->l3;
	if (p->proto == IPPROTO_TCP && p->fragment != FRAGMENT_LATER) {
		void *transport = packet_start(skb) + p->l4;

		if (transport + sizeof(struct tcphdr) > end)
			return false;
		p->tcp_flags = *((u8 *)transport + 13);
		p->tcp_ack = ((struct tcphdr *)transport)->ack_seq;
	}
	return true;
}
