/* Rewriting one address and the ports of a packet, with every checksum that covers them.
 *
 * A call of a helper costs more here than everything else together, so one is made: the one that
 * knows what kind of checksum the packet has. The rest is written directly. */
#pragma once

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

INLINE u32 join_ports(u16 sport, u16 dport)
{
	u16 ports[2] = {sport, dport};
	u32 word;

	__builtin_memcpy(&word, ports, 4);
	return word;
}

INLINE u16 fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
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

/* The address and the header's own checksum (IPv4). The caller checked the bounds. */
INLINE void store_address(void *header, bool source, const ip_addr *to, u16 difference)
{
#if FAMILY == 4
	struct iphdr *ip = header;

	ip->check = adjusted(ip->check, difference);
	if (source)
		ip->saddr = *to;
	else
		ip->daddr = *to;
#else
	struct ipv6hdr *ip = header;

	__builtin_memcpy(source ? &ip->saddr : &ip->daddr, to, 16);
#endif
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
	void *transport = packet_start(skb) + (p->l4 & 0x3fff);

	if (p->proto == IPPROTO_TCP)
		return transport + 18 > packet_end(skb) ? 0 : transport + 16;
	return transport + 8 > packet_end(skb) ? 0 : transport + 6;
}

/* Everything over the transport header: its checksum for the address and for the ports. The device
 * sums the ports itself where it fills in the checksum. */
INLINE int adjust_checksum(struct __sk_buff *skb, struct packet *p, u16 address, u32 old, u32 ports)
{
	u32 offset = checksum_offset(p);
	u64 flags = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	u16 before, difference, *field = checksum_field(skb, p);

	if (!field)
		return -EFAULT;
	before = *field;
	if (flags && !before) {
		/* UDP without checksum; what the device summed still has to learn of the change. */
		bpf_csum_update(skb, fold((u64)(u32)~old + ports));
		if (FAMILY == 6)
			bpf_csum_update(skb, address);
		return 0;
	}
	if (adjust_for_address(skb, offset, flags, address))
		return -EFAULT;
	if (old == ports)
		return 0;
	difference = fold((u64)(u32)~old + ports);
	if (tells_nothing(address))
		return bpf_l4_csum_replace(skb, offset, 0, difference, flags);
	field = checksum_field(skb, p);
	if (!field)
		return -EFAULT;
	if (is_finished(before, *field, address)) {
		*field = adjusted(*field, difference);
		if (flags && !*field)
			*field = 0xffff;
	}
	return 0;
}

/* Makes `to` the packet's source or destination and sets both ports. A later fragment has neither
 * ports nor checksum. */
INLINE int rewrite(struct __sk_buff *skb, struct packet *p, bool source, const ip_addr *to,
		   u16 sport, u16 dport)
{
	u32 old = join_ports(p->sport, p->dport), ports = join_ports(sport, dport);
	u16 difference = address_difference(source ? &p->src : &p->dst, to);
	bool whole = p->fragment != FRAGMENT_LATER;
	void *network, *transport;

	if (whole && checksum_offset(p)) {
		if (adjust_checksum(skb, p, difference, old, ports))
			goto failed;
	} else if (FAMILY == 6) {
		bpf_csum_update(skb, difference);
	}
	network = packet_start(skb) + (p->l3 & 0x3f);
	if (network + IP_HEADER_LENGTH > packet_end(skb))
		goto failed;
	store_address(network, source, to, difference);
	if (!whole || old == ports)
		return PASS;
	if (p->proto == IPPROTO_SCTP) {
		skb->cb[4] = ports;
		programs.call(skb, FAMILY_PROGRAM(SCTP));
		count(skb, REASON_INTERNAL);
		return DROP;
	}
	transport = packet_start(skb) + (p->l4 & 0x3fff);
	if (transport + 4 > packet_end(skb))
		goto failed;
	*(u32 *)transport = ports;
	return PASS;
failed:
	count(skb, REASON_REWRITE_FAILED);
	return DROP;
}

/* What a flow entry says: a reply entry writes the source, others the destination. */
INLINE int translate(struct __sk_buff *skb, struct packet *p, bool reply, const ip_addr *addr,
		     u16 port, u16 client_port)
{
	return reply ? rewrite(skb, p, true, addr, port, client_port)
		     : rewrite(skb, p, false, addr, client_port, port);
}
