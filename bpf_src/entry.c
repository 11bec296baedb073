/* What is attached: tells the families apart and hands the packet to its programs. */
#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "maps.h"
#include "handoff.h"

/* Ethertype behind at most two VLAN tags, network byte order. */
INLINE u16 ethertype(struct __sk_buff *skb)
{
	u32 offset = offsetof(struct ethhdr, h_proto);
	u16 type = skb->protocol;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (type != htons(ETH_P_8021Q) && type != htons(ETH_P_8021AD))
			break;
		offset += 4;
		if (bpf_skb_load_bytes(skb, offset, &type, sizeof(type)))
			return 0;
	}
	return type;
}

PROGRAM(entry_from_pod)
{
	u16 type = ethertype(skb);

	if (type == htons(ETH_P_IP))
		programs.call(skb, PROGRAM_FROM_POD4);
	else if (type == htons(ETH_P_IPV6))
		programs.call(skb, PROGRAM_FROM_POD6);
	return PASS;
}

PROGRAM(entry_to_pod)
{
	u16 type = ethertype(skb);

	if (type == htons(ETH_P_IP))
		programs.call(skb, PROGRAM_TO_POD4);
	else if (type == htons(ETH_P_IPV6))
		programs.call(skb, PROGRAM_TO_POD6);
	return PASS;
}

INLINE int from_net(struct __sk_buff *skb, u16 type, u32 from)
{
	handoff(skb)->from = from;
	if (type == htons(ETH_P_IP))
		programs.call(skb, PROGRAM_FROM_NET4);
	else if (type == htons(ETH_P_IPV6))
		programs.call(skb, PROGRAM_FROM_NET6);
	return PASS;
}

INLINE int to_net(struct __sk_buff *skb, u16 type, u32 to)
{
	handoff(skb)->from = to;
	if (type == htons(ETH_P_IP))
		programs.call(skb, PROGRAM_TO_NET4);
	else if (type == htons(ETH_P_IPV6))
		programs.call(skb, PROGRAM_TO_NET6);
	return PASS;
}

/* Frames for another machine, and for many, are none of this node's business: a port that mirrors
 * or a switch that has to flood brings them. A pod's interface is not asked, since a bridge marks
 * what it forwards in the same way; a device without link header has no such frames. */
PROGRAM(entry_from_net)
{
	if (skb->pkt_type != PACKET_HOST)
		return PASS;
	return from_net(skb, ethertype(skb), ORIGIN_NET);
}

PROGRAM(entry_to_net)
{
	return to_net(skb, ethertype(skb), ORIGIN_NET);
}

/* Tunnels without link header: the frame begins with the IP header. */
PROGRAM(entry_from_tunnel)
{
	return from_net(skb, skb->protocol, ORIGIN_NET | BARE_LINK);
}

PROGRAM(entry_to_tunnel)
{
	return to_net(skb, skb->protocol, ORIGIN_NET | BARE_LINK);
}

/* At an uplink's driver. What has a VLAN tag goes up: it is another device's. */
XDP_PROGRAM(xdp_uplink)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	if (eth->h_proto == htons(ETH_P_IP))
		xdp_programs.call((void *)ctx, XDP_FORWARD4);
	else if (eth->h_proto == htons(ETH_P_IPV6))
		xdp_programs.call((void *)ctx, XDP_FORWARD6);
	return XDP_PASS;
}

/* For the test of a device: what it is given goes out again (lbctl/agent/drivertest.py). */
XDP_PROGRAM(xdp_probe)
{
	return XDP_TX;
}

#ifdef TRACE
/* What starts on the node is chosen for at its sockets, by the same code; those hooks have no test
 * run. */
PROGRAM(entry_from_node)
{
	return from_net(skb, ethertype(skb), ORIGIN_NODE);
}
#endif
