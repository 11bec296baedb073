/* Past the stack: packets of a flow that is established go straight to the pod or the device that
 * they are for, where nobody on the way would have a say about them. Whether that is so the agent
 * tells (config.fast_open, fast_devices), and only for a while; all that is not quite sure takes
 * the stack.
 *
 * What goes to a device meets its egress program there, which translates as ever. A pod's is
 * skipped when a packet is given to the pod itself: what it would have done is done here. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "config.h"
#include "beat.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "checksum.h"
#include "cpu.h"
#include "tailcall.h"
#include "flow.h"
#include "plain.h"
#include "masquerade.h"
#include "established.h"
#include "tcp.h"
#include "hop.h"

/* Does a backend take the connection whose SYN has passed the stack? */
INLINE bool is_syn_ack(const struct packet *p, u32 kind)
{
	return p->proto == IPPROTO_TCP && kind & CELL_REPLY &&
	       (p->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* May this packet, whose flow was found, go on by itself? It must be one in the middle: those that
 * open and close a connection take the stack, but for the SYN-ACK, for which its client waits. So
 * does what is none of this host's, or has no link header. */
INLINE bool may_pass(struct __sk_buff *skb, const struct packet *p, u32 kind, u32 state)
{
	if (kind & (CELL_DIRECT | CELL_NODE | CELL_NOTE | CELL_FRAGMENT) || skb->pkt_type ||
	    p->l3 != ETH_HLEN)
		return false;
	/* What goes whole is past the stack as it is (dsr.h); the SYN-ACK of what came so is
	 * changed (tcp.h). */
	if (goes_whole(kind) || (kind & CELL_DSR && state == STATE_SYN))
		return false;
	/* Of masqueraded flows the two that act where packets come in. */
	if (kind & CELL_MASQUERADED && !acts_coming_in(kind))
		return false;
	if (p->proto != IPPROTO_TCP)
		return state == STATE_DATAGRAM;
	if (state == STATE_SYN)
		return is_syn_ack(p, kind);
	return state == STATE_ESTABLISHED && !(p->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST));
}

/* The longest datagram that the packet becomes on the wire. 0: it is not what it was. */
INLINE u32 length_on_wire(struct __sk_buff *skb, const struct packet *p)
{
	void *transport = packet_start(skb) + (p->l4 & L4_MASK);
	u32 header = sizeof(struct udphdr);

	if (!skb->gso_size)
		return skb->len - p->l3;
	if (p->proto == IPPROTO_TCP) {
		if (transport + sizeof(struct tcphdr) > packet_end(skb))
			return 0;
		header = ((struct tcphdr *)transport)->doff * 4;
	}
	return IP_HEADER_LENGTH + header + skb->gso_size;
}

/* May a router send it on, or has it been on the way for too long? That the stack answers. */
INLINE bool has_hops_left(struct __sk_buff *skb, const struct packet *p)
{
	void *network = packet_start(skb) + (p->l3 & L3_MASK);

	if (network + IP_HEADER_LENGTH > packet_end(skb))
		return false;
#if FAMILY == 4
	return ((struct iphdr *)network)->ttl > 1;
#else
	return ((struct ipv6hdr *)network)->hop_limit > 1;
#endif
}

/* As a router does. */
INLINE void count_hop(struct __sk_buff *skb, const struct packet *p)
{
	void *network = packet_start(skb) + (p->l3 & L3_MASK);
	u16 *word, before;

	if (network + IP_HEADER_LENGTH > packet_end(skb))
		return;
#if FAMILY == 4
	word = (u16 *)&((struct iphdr *)network)->ttl;
	before = *word;
	((struct iphdr *)network)->ttl--;
	((struct iphdr *)network)->check =
	    adjusted(((struct iphdr *)network)->check, fold((u64)(u16)~before + *word));
#else
	word = (u16 *)&((struct ipv6hdr *)network)->nexthdr;
	before = *word;
	((struct ipv6hdr *)network)->hop_limit--;
	if (checksum_kind(skb) == CHECKSUM_COMPLETE)
		bpf_csum_update(skb, fold((u64)(u16)~before + *word));
#endif
}

INLINE void count_passed(void)
{
	struct cpu *own = this_cpu();

	if (own)
		own->passed++;
}

INLINE int give_to_device(const struct hop *hop)
{
	struct bpf_redir_neigh next = {.nh_family = AF_OF_FAMILY};

#if FAMILY == 6
	__builtin_memcpy(next.ipv6_nh, &hop->next, sizeof(hop->next));
#else
	next.ipv4_nh = hop->next;
#endif
	count_passed();
	return redirect_neigh(hop->ifindex, &next, sizeof(next), 0);
}

/* The pod's own stack never looks at the frame's addresses; what it does with the packet, a bridge
 * in it for example, may. */
INLINE int give_to_pod(struct __sk_buff *skb, const struct hop *hop)
{
	void *frame = packet_start(skb);

	if (frame + ETH_HLEN > packet_end(skb))
		return DROP;
	__builtin_memcpy(frame, hop->macs, sizeof(hop->macs));
	count_passed();
	return redirect_peer(hop->ifindex, 0);
}

/* Where a packet goes by itself: nowhere (`hop` is 0) if the stack is to have it, or if that is yet
 * to be asked (`unknown`). */
struct passage {
	const struct hop *hop;
	bool unknown;
};

INLINE void find_passage(struct __sk_buff *skb, const struct config *c, const struct packet *p,
			 const ip_addr *to, struct passage *way)
{
	struct hop_key from = {.addr = p->src, .in = skb->ifindex, .epoch = c->fast_epoch};
	struct hop_key key = {.addr = *to, .epoch = c->fast_epoch};
	const struct table *t = get_table();
	const struct hop *sender, *hop;

	if (!t)
		return;
	sender = find_hop(t, &from);
	hop = find_hop(t, &key);
	if (!sender || !hop) {
		way->unknown = true;
		return;
	}
	if (sender->flags & FAST_FROM && hop->flags && length_on_wire(skb, p) - 1 < hop->mtu &&
	    has_hops_left(skb, p))
		way->hop = hop;
}

/* It is not so plain after all. */
INLINE int hand_back(struct __sk_buff *skb, const struct packet *p)
{
	handoff(skb)->from = p->origin;
	return hand_to(skb, FAMILY_PROGRAM(COMING_IN));
}

INLINE int hand_to_learn(struct __sk_buff *skb, const struct packet *p)
{
	save_packet(skb, p);
	return hand_to(skb, FAMILY_PROGRAM(LEARN_HOPS));
}

/* Is it given to the pod itself? Not where there is another half of the translation to be done, by
 * the egress program. */
INLINE bool goes_to_pod(const struct passage *way, u32 kind)
{
	return way->hop && way->hop->flags & FAST_PEER && !(kind & CELL_MASQUERADED);
}

INLINE int send_past(struct __sk_buff *skb, const struct packet *p, const struct passage *way,
		     u32 kind)
{
	if (way->unknown)
		return hand_to_learn(skb, p);
	if (!way->hop)
		return PASS;
	count_hop(skb, p);
	return goes_to_pod(way, kind) ? give_to_pod(skb, way->hop) : give_to_device(way->hop);
}

/* The cell that the packet's tuple was found in. False if the flow has ended since. */
INLINE bool restore_found(struct __sk_buff *skb, struct found *f)
{
	return get_cell(handoff(skb)->place, f) &&
	       HEAD_GENERATION(f->head) == handoff(skb)->generation && state_of(f) >= STATE_LIVE;
}

/* The program for plain packets of flows while the way is open. A backend's answer is translated
 * where it goes out; or here, if it skips that. */
INLINE int go_past(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct passage way = {};
	struct ends ends;
	struct packet p;
	struct found f;
	u32 kind;
	bool coming;
	int verdict;

	if (!c || !restore_packet(skb, &p))
		return PASS;
	if (!restore_found(skb, &f))
		return hand_back(skb, &p);
	kind = kind_of(&f);
	coming = acts_coming_in(kind);
	if ((s32)(c->fast_until - now()) >= 0)
		find_passage(skb, c, &p, coming ? &f.cell->addr : &p.dst, &way);
	if (!coming && !goes_to_pod(&way, kind))
		return send_past(skb, &p, &way, kind);
	if (is_syn_ack(&p, kind))
		return hand_to(skb, FAMILY_PROGRAM(TRACK_PAST));
	verdict = plain(skb, &p, &f, &ends, false);
	if (verdict == NOT_PLAIN)
		return hand_back(skb, &p);
	return verdict == PASS ? send_past(skb, &p, &way, kind) : verdict;
}

/* The program for a SYN-ACK that goes to a pod by itself: what it says of the flow is noted here,
 * too. If anything is not as it was, the stack and the program at its end see to it. */
INLINE int track_past(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct passage way = {};
	struct flow_key key;
	struct packet p;
	struct found f;
	struct pair pair;
	struct ends ends;
	int verdict;

	if (!c || !restore_packet(skb, &p))
		return PASS;
	make_key(&key, &p);
	if (!find_cell(&key, &f) || !is_syn_ack(&p, kind_of(&f)))
		return PASS;
	find_passage(skb, c, &p, &p.dst, &way);
	if (!goes_to_pod(&way, kind_of(&f)) || !read_ends(&f, &ends) || !find_pair(&f, &pair))
		return PASS;
	track_tcp(skb, &p, &pair);
	verdict = translate_by(skb, &p, kind_of(&f), &ends);
	return verdict == PASS ? send_past(skb, &p, &way, kind_of(&f)) : verdict;
}

/* A plain packet that comes in, and has a flow. All that the way past costs while it is shut is the
 * first word. */
INLINE int plain_or_past(struct __sk_buff *skb, const struct config *c, struct packet *p,
			 const struct found *f)
{
	struct ends ends;

	if (c->fast_open && may_pass(skb, p, kind_of(f), state_of(f))) {
		save_packet(skb, p);
		handoff(skb)->generation = HEAD_GENERATION(f->head);
		handoff(skb)->place = f->place;
		return hand_to(skb, FAMILY_PROGRAM(GO_PAST));
	}
	return acts_coming_in(kind_of(f)) ? plain(skb, p, f, &ends, true) : PASS;
}
