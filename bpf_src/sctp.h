/* New ports in an SCTP packet. Its checksum is a CRC-32C of all of it, which no program can read;
 * but a CRC is linear: what a difference in the first four bytes, the ports, makes of it depends on
 * nothing but the packet's length. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "checksum.h"
#include "nat.h"

#define CRC32C 0x82f63b78
#define CRC_ONE (1u << 31)  /* x^0: coefficients are in reversed order, as in the checksum */
#define CRC_BYTE (1u << 23) /* x^8 */
#define LENGTH_BITS 17
#define SCTP_CHECKSUM 8

/* Product of two polynomials modulo the CRC's. */
INLINE u32 crc_multiply(u32 a, u32 b)
{
	u32 product = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < 32; i++) {
		product ^= b & -(a >> 31);
		a <<= 1;
		b = b >> 1 ^ (CRC32C & -(b & 1));
	}
	return product;
}

/* What `difference` in the first four of `length` bytes adds to the checksum: its product with
 * x^(8 * length), by squaring. */
INLINE u32 crc_difference(u32 difference, u32 length)
{
	u32 power = CRC_BYTE;

#pragma clang loop unroll(disable)
	for (int i = 0; i < LENGTH_BITS; i++) {
		u32 bit = -(length >> i & 1);

		difference = crc_multiply(difference, (power & bit) | (CRC_ONE & ~bit));
		power = crc_multiply(power, power);
	}
	return difference;
}

/* The program that sets the ports that come with the packet. */
INLINE int set_sctp_ports(struct __sk_buff *skb)
{
	u32 old, ports, check, changed;
	struct packet p;

	if (!restore_packet(skb, &p) || bpf_skb_load_bytes(skb, p.l4, &old, 4) ||
	    bpf_skb_load_bytes(skb, p.l4 + SCTP_CHECKSUM, &check, 4))
		goto failed;
	/* The checksum is over more than a fragment, and we do not know how much. */
	if (p.fragment != WHOLE)
		goto failed;
	ports = join_ports(p.sport, p.dport);
	changed = check;
	/* Zero: the device will fill it in. */
	if (check)
		changed ^= crc_difference(old ^ ports, p.l4_length);
	/* What the device summed of the whole packet has to learn of both. */
	bpf_csum_update(skb, fold((u64)(u32)~old + ports + (u32)~check + changed));
	if (bpf_skb_store_bytes(skb, p.l4, &ports, 4, 0) ||
	    bpf_skb_store_bytes(skb, p.l4 + SCTP_CHECKSUM, &changed, 4, 0))
		goto failed;
	return PASS;
failed:
	count(skb, REASON_REWRITE_FAILED);
	return DROP;
}
