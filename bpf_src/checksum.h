/* The checksum over a transport header, after an address or ports that it covers have changed. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include "unit.h"
#include "kernel.h"
#include "types.h"
#include "parse.h"

#define NO_CHECKSUM 0

/* Where the transport checksum lies; SCTP's does not cover addresses, and sctp.h sees to its ports.
 */
INLINE u32 checksum_offset(const struct packet *p)
{
	if (p->proto == IPPROTO_TCP)
		return p->l4 + 16;
	if (p->proto == IPPROTO_UDP)
		return p->l4 + 6;
	return NO_CHECKSUM;
}

INLINE u16 fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

#if FAMILY == 4
/* Of a header without options. */
INLINE u64 sum_of_header(const struct iphdr *ip)
{
	const u32 *words = (const u32 *)ip;

	return (u64)words[0] + words[1] + words[2] + words[3] + words[4];
}
#endif

/* What an address adds to a sum. */
INLINE u64 sum_of(const ip_addr *address)
{
#if FAMILY == 4
	return *address;
#else
	return (u64)address->w[0] + address->w[1] + address->w[2] + address->w[3];
#endif
}

/* Has the sender left a whole packet's checksum to a device, with the pseudo header's sum in the
 * field? Virtual devices hand such packets on as they are. Where nothing says so (at a driver, and
 * at TC before Linux 6.2) the field does, and one of 65,535 finished ones looks the same. */
INLINE bool is_unfinished(const struct packet *p, u16 check)
{
	u64 pseudo = sum_of(&p->src) + sum_of(&p->dst) + htons(p->proto) + htons(p->l4_length);

	return fold((u16)~check + pseudo) == 0xffff;
}

/* What replacing one address by another adds to a sum over it, in 16 bits. */
INLINE u16 address_difference(const ip_addr *from, const ip_addr *to)
{
#if FAMILY == 4
	return fold((u64)(u32) ~*from + *to);
#else
	u64 sum = 0;

#pragma unroll
	for (int i = 0; i < 4; i++)
		sum += (u64)(u32)~from->w[i] + to->w[i];
	return fold(sum);
#endif
}

/* A checksum field after what it covers has changed by `difference` (RFC 1624). */
INLINE u16 adjusted(u16 check, u16 difference)
{
	return ~fold((u64)(u16)~check + difference);
}

/* The transport checksum over a changed address, whatever kind it is: one that the device will fill
 * in (CHECKSUM_PARTIAL), one it took of the whole packet (CHECKSUM_COMPLETE), or a plain one. For
 * IPv6 the whole packet's sum must also learn of the address itself; IPv4's header checksum makes
 * up for it. */
INLINE int adjust_for_address(struct __sk_buff *skb, u32 offset, u64 flags, u16 difference)
{
	int error = bpf_l4_csum_replace(skb, offset, 0, difference, BPF_F_PSEUDO_HDR | flags);

#if FAMILY == 6
	bpf_csum_update(skb, difference);
#endif
	return error;
}

/* Does the field hold a finished checksum? A pseudo header sum (CHECKSUM_PARTIAL) grew by the
 * address difference where a checksum shrank; only a difference of nothing would not tell. */
INLINE bool is_finished(u16 before, u16 after, u16 difference)
{
	u16 expected = adjusted(before, difference);

	return after == expected || (!expected && after == 0xffff);
}

INLINE bool tells_nothing(u16 difference)
{
	return !difference || difference == 0xffff;
}

INLINE u16 *checksum_field(struct __sk_buff *skb, const struct packet *p)
{
	void *transport = packet_start(skb) + (p->l4 & L4_MASK);

	if (p->proto == IPPROTO_TCP)
		return transport + 18 > packet_end(skb) ? 0 : transport + 16;
	return transport + 8 > packet_end(skb) ? 0 : transport + 6;
}

/* Of skb->ip_summed, which the kernel shows to nobody but itself. */
enum checksum_kind {
	CHECKSUM_NONE,
	CHECKSUM_UNNECESSARY,
	CHECKSUM_COMPLETE, /* the device summed the whole packet, and that sum must stay right */
	CHECKSUM_PARTIAL,  /* the field holds the pseudo header's sum, the device does the rest */
};

/* Completed by ebpf/kernel/fields.py for the kernel that the program is loaded into: the call
 * becomes a cast to the kernel's own struct sk_buff, and the read finds the place and the bits. A
 * kernel without that cast (before 6.2) always answers CHECKSUM_COMPLETE, for which the helper is
 * asked. */
static u64 (*kernel_skb)(void *skb) = (void *)-1;

INLINE u32 checksum_kind(struct __sk_buff *skb)
{
	u64 kind, own = kernel_skb(skb);

	asm volatile("%[kind] = *(u8 *)(%[own] + 32766)\n"
		     "%[kind] >>= 0\n"
		     "%[kind] &= 3\n"
		     : [kind] "=r"(kind)
		     : [own] "r"(own));
	return kind;
}

/* By the helper, which knows the kind: one call for the address, and what is left for the ports.
 * The device sums the ports itself where it fills in the checksum. */
INLINE int ask_helper(struct __sk_buff *skb, struct packet *p, u64 flags, u16 address, u16 ports)
{
	u32 offset = checksum_offset(p);
	u16 before, *field = checksum_field(skb, p);

	if (!field)
		return -EFAULT;
	before = *field;
	if (adjust_for_address(skb, offset, flags, address))
		return -EFAULT;
	if (!ports)
		return 0;
	if (tells_nothing(address))
		return bpf_l4_csum_replace(skb, offset, 0, ports, flags);
	field = checksum_field(skb, p);
	if (!field)
		return -EFAULT;
	if (is_finished(before, *field, address)) {
		*field = adjusted(*field, ports);
		if (flags && !*field)
			*field = 0xffff;
	}
	return 0;
}

/* `address` and `ports` are what their change adds to a sum; zero for no change. */
INLINE int adjust_checksum(struct __sk_buff *skb, struct packet *p, u16 address, u16 ports)
{
	u64 flags = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	u16 *field = checksum_field(skb, p);
	u32 kind;

	if (!field)
		return -EFAULT;
	if (flags && !*field) {
		/* UDP without checksum; what the device summed still has to learn of the change. */
		bpf_csum_update(skb, ports);
		if (FAMILY == 6)
			bpf_csum_update(skb, address);
		return 0;
	}
	kind = checksum_kind(skb);
	if (kind == CHECKSUM_COMPLETE)
		return ask_helper(skb, p, flags, address, ports);
	if (kind == CHECKSUM_PARTIAL) {
		*field = fold((u64)*field + address);
		return 0;
	}
	*field = adjusted(*field, fold((u64)address + ports));
	if (flags && !*field)
		*field = 0xffff;
	return 0;
}
