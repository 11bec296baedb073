/* A new flow whose backend is to see the node's address instead of the client's, so that the reply
 * comes back here: from outside to a backend on another node, and a pod that reaches itself. The
 * destination is written where the packet comes in, the source where it leaves (the IPv4 stack
 * drops what enters with one of the node's own addresses as source); so there are two more entries:
 *
 *   client:cp -> service:sp      coming in: becomes client:np -> backend:bp (the flow's entry)
 *   client:np -> backend:bp      going out: becomes node:np -> backend:bp (side entry)
 *   backend:bp -> node:np        coming in: becomes backend:bp -> client:np (side entry)
 *   backend:bp -> client:np      going out: becomes service:sp -> client:cp (the flow's reply
 * entry)
 *
 * np is of the port range that the node uses for nothing else. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "config.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "flow.h"
#include "select.h"
#include "connect.h"

/* Newer than the UAPI headers of some distributions: linux/bpf.h, since 6.3 and 6.7. */
#define FIB_SKIP_NEIGHBOUR (1 << 2)
#define FIB_SOURCE (1 << 4)

#if FAMILY == 6
#define AF_OF_FAMILY 10
#define DEVICE_ADDRESS(device) (&(device)->node6)
#else
#define AF_OF_FAMILY 2
#define DEVICE_ADDRESS(device) (&(device)->node4)
#endif

INLINE void make_fib_question(struct bpf_fib_lookup *fib, const struct __sk_buff *skb,
			      const struct packet *p, const ip_addr *backend)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = AF_OF_FAMILY;
	fib->ifindex = skb->ifindex;
	fib->l4_protocol = p->proto;
#if FAMILY == 6
	__builtin_memcpy(fib->ipv6_src, &p->src, sizeof(p->src));
	__builtin_memcpy(fib->ipv6_dst, backend, sizeof(*backend));
#else
	fib->ipv4_src = p->src;
	fib->ipv4_dst = *backend;
#endif
}

/* The node's address on the device that the route leads to, as the agent says. That a neighbour is
 * not known yet, or the packet too large, does not change the route. */
INLINE bool ask_device(struct __sk_buff *skb, struct bpf_fib_lookup *fib, ip_addr *source)
{
	int error = bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
	u32 ifindex = fib->ifindex;
	struct device *device;

	if (error && error != BPF_FIB_LKUP_RET_NO_NEIGH && error != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return false;
	device = devices.lookup(&ifindex);
	if (!device)
		return false;
	narrow(source, DEVICE_ADDRESS(device));
	return true;
}

/* The address that belongs on the way to the backend: what the kernel itself would take (6.7), or
 * what the agent says of the device. */
INLINE bool ask_route(struct __sk_buff *skb, const struct config *c, const struct packet *p,
		      const ip_addr *backend, ip_addr *source)
{
	struct bpf_fib_lookup fib;
	int error = -EINVAL;

	make_fib_question(&fib, skb, p, backend);
	if (!(c->flags & CONFIG_MASQUERADE_BY_DEVICE))
		error = bpf_fib_lookup(skb, &fib, sizeof(fib), FIB_SKIP_NEIGHBOUR | FIB_SOURCE);
	if (error == -EINVAL) /* a kernel that does not know the flags */
		return ask_device(skb, &fib, source);
	if (error)
		return false;
#if FAMILY == 6
	__builtin_memcpy(source, fib.ipv6_src, sizeof(*source));
#else
	*source = fib.ipv4_src;
#endif
	return true;
}

/* The node's address that the backend is to see: the one of the way there, else the primary one,
 * else, where the agent knows none, the service's own. */
INLINE void masquerade_source(ip_addr *source, struct __sk_buff *skb, const struct config *c,
			      const struct packet *p, const ip_addr *backend)
{
	if (ask_route(skb, c, p, backend, source) && !is_zero(source))
		return;
	narrow(source, NODE_ADDRESS(c));
	if (is_zero(source))
		*source = p->dst;
}

INLINE void make_side_key(struct flow_key *key, u8 proto, const ip_addr *src, u16 sport,
			  const ip_addr *dst, u16 dport)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = *src;
	key->dst = *dst;
	key->sport = sport;
	key->dport = dport;
	key->proto = proto;
}

/* Was the flow closed that has a port, given its entry for what comes in, and only rests? Sets the
 * key of its reply entry. */
INLINE struct flow *find_closed(struct flow_key *back_key, struct flow_key *reply_key)
{
	struct flow *back = find_flow(back_key), *reply;

	if (!back || back->state != FLOW_SIDE)
		return 0;
	*reply_key = *back_key;
	reply_key->dst = back->addr;
	reply_key->dport = back->port;
	reply = find_flow(reply_key);
	return reply && reply->state == FLOW_TIME_WAIT ? reply : 0;
}

/* Makes room under its port: a backend that still waits for the last packet may cost the next
 * connection a second. False if another CPU is at the same: whoever deletes the reply entry has it.
 */
INLINE bool evict_closed(struct flow_key *back_key)
{
	struct flow_key key, reply_key;
	struct flow *reply = find_closed(back_key, &reply_key), *f;

	if (!reply)
		return false;
	make_pair_key(&key, &reply_key, reply);
	f = find_flow(&key);
	if (f && is_pair(f, &reply_key, reply))
		delete_flow(&key);
	if (!delete_flow(&reply_key))
		return false;
	make_side_key(&key, reply_key.proto, &reply_key.dst, reply_key.dport, &reply_key.src,
		      reply_key.sport);
	delete_flow(&key);
	delete_flow(back_key);
	return true;
}

/* Adds both side entries under a port, which may be taken: -EEXIST. */
INLINE int add_sides_at(const struct packet *p, struct choice *choice, const ip_addr *node,
			u16 port, struct flow_key *key)
{
	struct flow side = {.state = FLOW_SIDE, .service = choice->service, .seen = now()};
	int error;

	make_side_key(key, p->proto, &choice->addr, choice->port, node, port);
	side.addr = p->src;
	side.port = port;
	side.client_port = choice->port;
	error = add_flow(key, &side);
	if (error)
		return error;
	make_side_key(key, p->proto, &p->src, port, &choice->addr, choice->port);
	side.addr = *node;
	side.flags = FLOW_REPLY;
	error = add_flow(key, &side);
	if (!error) {
		choice->client_port = port;
		return 0;
	}
	make_side_key(key, p->proto, &choice->addr, choice->port, node, port);
	delete_flow(key);
	return error;
}

/* Adds both side entries under a port that is free; sets the choice's client port. UDP flows hold
 * theirs until they time out, so many may be taken: the next ones are tried after a random one, and
 * if all are taken, those that only rest. */
INLINE int add_sides(struct __sk_buff *skb, struct packet *p, struct choice *choice)
{
	const struct config *c = get_config();
	u32 span, start = bpf_get_prandom_u32() >> 1;
	bool to_itself = same_address(&p->src, &choice->addr);
	struct flow_key key, reply_key;
	int error = -EEXIST, i;
	ip_addr node;
	u16 port = 0;

	if (!c)
		return -ENOENT;
	span = c->port_max - c->port_min + 1;
	masquerade_source(&node, skb, c, p, &choice->addr);
#pragma clang loop unroll(disable)
	for (i = 0; i < MASQUERADE_PORT_TRIES && error == -EEXIST; i++) {
		port = htons(c->port_min + (start + i) % span);
		if (!to_itself || port != choice->port)
			error = add_sides_at(p, choice, &node, port, &key);
	}
	if (error == -EEXIST) {
#pragma clang loop unroll(disable)
		for (i = 0; i < MASQUERADE_PORT_TRIES; i++) {
			port = htons(c->port_min + (start + i) % span);
			make_side_key(&key, p->proto, &choice->addr, choice->port, &node, port);
			if (find_closed(&key, &reply_key))
				break;
		}
		if (!(to_itself && port == choice->port) && evict_closed(&key))
			error = add_sides_at(p, choice, &node, port, &key);
	}
	if (error)
		count(skb, error == -EEXIST ? REASON_PORTS_EXHAUSTED : REASON_FLOWS_FULL);
	return error;
}

/* The backend that was chosen before the packet was handed on. */
INLINE bool restore_choice(struct __sk_buff *skb, struct choice *choice)
{
	u32 id = handoff(skb)->backend & BACKEND_ID_MASK;
	struct backend *b = backends.lookup(&id);

	if (!b)
		return false;
	take_backend(choice, b, handoff(skb)->backend, handoff(skb)->service);
	choice->flags = FLOW_MASQUERADED;
	return true;
}

/* The sides first: they have the port. One program's stack has no room for the rest. */
INLINE int masquerade(struct __sk_buff *skb)
{
	struct choice choice = {};
	struct packet p;

	if (!restore_choice(skb, &choice) || !restore_packet(skb, &p) ||
	    p.fragment == FRAGMENT_LATER)
		return DROP;
	if (add_sides(skb, &p, &choice))
		return DROP;
	handoff(skb)->client_port = choice.client_port;
	programs.call(skb, FAMILY_PROGRAM(OPEN));
	count(skb, REASON_INTERNAL);
	return DROP;
}

/* The program for a masqueraded flow's own entries. */
INLINE int open_masqueraded(struct __sk_buff *skb)
{
	struct choice choice = {};
	struct flow_key key;
	struct packet p;

	if (!restore_choice(skb, &choice) || !restore_packet(skb, &p))
		return DROP;
	choice.client_port = handoff(skb)->client_port;
	make_key(&key, &p);
	return open_and_forward(skb, &p, &key, &choice);
}
