/* Packets that sockets of the node's own sent to a service's address: of those that were connected
 * before the service existed, or before there were socket hooks; of those the hooks leave alone,
 * since they share their port with others; of all with --socket-lb off. They are met where they
 * leave by an uplink, since that is where the route to such an address leads. Two cells:
 *
 *   node:cp -> service:sp    going out: becomes node:np -> backend:bp, sent by another device
 *   backend:bp -> node:np    coming in anywhere: becomes service:sp -> node:cp
 *
 * The second one acts where others' replies are left alone, and np is of a range of its own. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "address.h"
#include "config.h"
#include "parse.h"
#include "handoff.h"
#include "tailcall.h"
#include "algorithm.h"
#include "frontend.h"
#include "select.h"
#include "decided.h"
#include "connect.h"
#include "way.h"
#include "open.h"

#if FAMILY == 6
#define ADDRESS_FAMILY 10
#else
#define ADDRESS_FAMILY 2
#endif

/* A backend, but not the node itself if there is another: what a process here answers never leaves
 * the node, so it could not be translated. 0 or a reason. */
INLINE int choose_elsewhere(const struct config *c, const struct packet *p, struct request *request,
			    struct choice *choice)
{
	ip_addr node;
	int i;

	narrow(&node, NODE_ADDRESS(c));
#pragma clang loop unroll(disable)
	for (i = 0; i < NODE_CHOICE_TRIES; i++) {
		int reason = choose_backend(request, true, choice);

		if (reason)
			return reason;
		if (!same_address(&choice->addr, &node) && !same_address(&choice->addr, &p->src))
			return 0;
		request->again++;
	}
	return REASON_ENDPOINT_IS_NODE;
}

/* As the socket hooks have it: all processes of the node are one client. */
INLINE void identify_node(const struct config *c, const struct packet *p, struct request *request)
{
	if (request->frontend_flags & FRONTEND_SOURCE_RANGES) {
		widen(&request->client, &p->src);
		return;
	}
	request->client.w[0] = c->host_netns;
	request->client.w[1] = c->host_netns >> 32;
}

/* Chooses for a packet that begins a flow. */
INLINE int node_open(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct frontend_key frontend_key;
	struct request request = {};
	struct choice choice = {};
	struct frontend frontend;
	struct packet p;
	int reason;

	if (!c || !restore_packet(skb, &p))
		return PASS;
	make_frontend_key(&frontend_key, &p.dst, p.dport, p.proto);
	if (!find_frontend(&frontend_key, &frontend))
		return no_frontend(skb, &p);
	/* A connection to an outside address that others served before it became a service's. */
	if (p.proto == IPPROTO_TCP && !starts_connection(&p))
		return frontend.flags & FRONTEND_CLUSTER_IP ? no_flow(skb, &p) : PASS;
	request.service = frontend.service;
	request.frontend_flags = frontend.flags;
	request.ports = p.sport | (u32)p.dport << 16;
	identify_node(c, &p, &request);
	reason = choose_elsewhere(c, &p, &request, &choice);
	if (reason == REASON_NO_ENDPOINT || reason == REASON_ENDPOINT_IS_NODE)
		return refuse(skb, reason);
	if (reason)
		return drop(skb, reason);
	handoff(skb)->backend = choice.backend;
	handoff(skb)->service = choice.service;
	return hand_to(skb, FAMILY_PROGRAM(NODE_FLOW));
}

/* A port of the node's range that is free towards the backend that was chosen. */
INLINE int node_flow(struct __sk_buff *skb)
{
	const struct config *c = get_config();
	struct choice choice = {};
	struct flow_key key;
	struct packet p;

	if (!c || !restore_packet(skb, &p) ||
	    !restore_choice(&choice, &p, handoff(skb)->backend, handoff(skb)->service))
		return DROP;
	make_reply_key(&key, &p, &choice);
	pick_port(c, &key, true);
	handoff(skb)->turn = with_port(handoff(skb)->turn, key.dport);
	return hand_to(skb, FAMILY_PROGRAM(OPEN));
}

/* Sends a translated packet where it belongs now. It has been routed to the service's address: that
 * route's device and next hop are not the backend's. */
INLINE int node_send(struct __sk_buff *skb)
{
	struct bpf_fib_lookup route = {.family = ADDRESS_FAMILY, .ifindex = skb->ifindex};
	struct packet p;
	int found;

	if (!restore_packet(skb, &p))
		return DROP;
	route.l4_protocol = p.proto;
#if FAMILY == 6
	__builtin_memcpy(route.ipv6_src, &p.src, 16);
	__builtin_memcpy(route.ipv6_dst, &p.dst, 16);
#else
	route.ipv4_src = p.src;
	route.ipv4_dst = p.dst;
#endif
	/* As if it had come in there: for what goes out, the helper would look at that device
	 * alone. */
	found = bpf_fib_lookup(skb, &route, sizeof(route), 0);
	switch (found) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH: /* the kernel asks for it when it sends */
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return redirect_neigh(route.ifindex, 0, 0, 0);
	case BPF_FIB_LKUP_RET_FWD_DISABLED: /* no router: all leaves by one device */
		return PASS;
	}
	return drop(skb, REASON_NODE_UNROUTED);
}
