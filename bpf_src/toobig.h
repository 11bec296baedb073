/* What does not fit on its way with an outer header (dsr.h): its sender is told, or it is cut.
 *
 * An IPv4 packet that may be cut is, before it gets its outer header: the endpoint's node puts
 * nothing together that is not addressed to it, but takes fragments as any others. Both parts come
 * in once more, at the same hook, as if the client had sent them so. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "parse.h"
#include "handoff.h"
#include "checksum.h"
#include "decided.h"
#include "refuse.h"
#include "stats.h"

#define ROOM_MOST 0xfff /* bytes that bpf_skb_adjust_room() takes away at once */

#if FAMILY == 4
/* Bytes that the first part carries. */
INLINE u32 first_length(u32 mtu)
{
	return (mtu - IP_HEADER_LENGTH) & ~7;
}

/* Is the transport checksum there already, or in another fragment? */
INLINE bool is_summed(struct __sk_buff *skb, const struct packet *p)
{
	u16 *field = checksum_field(skb, p);

	if (p->fragment != WHOLE)
		return true;
	return field && ((p->proto == IPPROTO_UDP && !*field) || !is_unfinished(p, *field));
}

/* One without options and tags, whose checksum is adjusted without knowing the rest. */
INLINE bool may_be_cut(struct __sk_buff *skb, const struct packet *p, u32 mtu)
{
	struct iphdr *ip = packet_start(skb) + ETH_HLEN;

	return (void *)(ip + 1) <= packet_end(skb) && !(ip->frag_off & htons(IP_DONT_FRAGMENT)) &&
	       p->l3 == ETH_HLEN && p->l4 == ETH_HLEN + IP_HEADER_LENGTH &&
	       (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) && !skb->gso_size &&
	       mtu >= IP_HEADER_LENGTH + 8 && mtu <= ROOM_MOST &&
	       first_length(mtu) < p->l4_length && is_summed(skb, p);
}

/* The header of a part that carries so much, from `offset` on, as the header's field has it. */
INLINE bool write_part(struct __sk_buff *skb, u32 l3, struct iphdr *ip, u32 length, u32 offset)
{
	ip->tot_len = htons(IP_HEADER_LENGTH + length);
	ip->frag_off = htons(offset);
	ip->check = 0;
	ip->check = ~fold(sum_of_header(ip));
	/* Headers that are right have all the same sum: CHECKSUM_COMPLETE stays so. */
	return !bpf_skb_store_bytes(skb, l3, ip, sizeof(*ip), 0);
}

INLINE int cut(struct __sk_buff *skb, const struct packet *p, u32 mtu)
{
	u32 l3 = p->l3 & L3_MASK, first = first_length(mtu), offset;
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, l3, &ip, sizeof(ip)))
		return DROP;
	offset = ntohs(ip.frag_off);
	/* What is behind the first part goes when it gets its outer header. */
	if (!write_part(skb, l3, &ip, first, offset | IP_MORE_FRAGMENTS) ||
	    bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS) ||
	    bpf_skb_adjust_room(skb, -(s32)first, BPF_ADJ_ROOM_NET, 0) ||
	    !write_part(skb, l3, &ip, p->l4_length - first, offset + first / 8))
		return drop(skb, REASON_REWRITE_FAILED);
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}
#else
INLINE bool may_be_cut(struct __sk_buff *skb, const struct packet *p, u32 mtu)
{
	return false;
}

INLINE int cut(struct __sk_buff *skb, const struct packet *p, u32 mtu)
{
	return DROP;
}
#endif

/* The program. An error is not answered with one. */
INLINE int too_big(struct __sk_buff *skb)
{
	u32 mtu = handoff(skb)->mtu;
	struct error error = ICMP_TOO_BIG(mtu);
	struct packet p;

	if (!restore_packet(skb, &p))
		return DROP;
	if (may_be_cut(skb, &p, mtu))
		return cut(skb, &p, mtu);
	count(skb, REASON_DSR_TOO_BIG);
	if (p.fragment == FRAGMENT_LATER || p.proto == PROTO_ICMP)
		return DROP;
	return answer_error(skb, &p, &error);
}
