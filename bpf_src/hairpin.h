/* A pod that reaches itself through a service. Its own address cannot be the source it sees, so on
 * the way back in the packet gets the node's address, which two more entries translate:
 *
 *   pod:cp -> service:sp    at the hook from the pod: becomes pod:np -> pod:bp (the flow's entry)
 *   pod:np -> pod:bp        at the hook to the pod: becomes node:np -> pod:bp (side entry)
 *   pod:bp -> node:np       from the pod: becomes pod:bp -> pod:np (side entry)
 *   pod:bp -> pod:np        to the pod: becomes service:sp -> pod:cp (the flow's reply entry)
 *
 * np is of the port range that the node uses for nothing else. */
#pragma once

/* The node's address of this family; the service's own where the agent knows none. */
INLINE void hairpin_source(ip_addr *source, const struct config *c, const struct packet *p)
{
#if FAMILY == 6
	narrow(source, &c->node6);
#else
	narrow(source, &c->node4);
#endif
	if (is_zero(source))
		*source = p->dst;
}

INLINE int add_side(u8 proto, const ip_addr *from, const ip_addr *to, u16 sport, u16 dport,
		    struct flow *side)
{
	struct flow_key key = {.proto = proto};

	key.src = *from;
	key.dst = *to;
	key.sport = sport;
	key.dport = dport;
	return add_flow(&key, side);
}

INLINE void delete_side(u8 proto, const ip_addr *from, const ip_addr *to, u16 sport, u16 dport)
{
	struct flow_key key = {.proto = proto};

	key.src = *from;
	key.dst = *to;
	key.sport = sport;
	key.dport = dport;
	delete_flow(&key);
}

/* Adds both side entries under a port that is free; sets the choice's client port. */
INLINE int add_hairpin_sides(struct __sk_buff *skb, struct packet *p, struct choice *choice)
{
	const struct config *c = get_config();
	struct flow side = {.state = FLOW_SIDE, .service = choice->service, .seen = now()};
	int error = -EEXIST;
	ip_addr node;

	if (!c)
		return -ENOENT;
	hairpin_source(&node, c, p);
#pragma clang loop unroll(disable)
	for (int i = 0; i < SOURCE_PORT_TRIES / 2; i++) {
		u16 port = p->proto == IPPROTO_SCTP ? p->sport : random_port(c);

		if (port == choice->port)
			continue;
		side.addr = choice->addr;
		side.port = port;
		side.client_port = choice->port;
		side.flags = 0;
		error = add_side(p->proto, &choice->addr, &node, choice->port, port, &side);
		if (error == -EEXIST)
			continue;
		if (error)
			break;
		side.addr = node;
		side.flags = FLOW_REPLY;
		error = add_side(p->proto, &choice->addr, &choice->addr, port, choice->port, &side);
		if (!error) {
			choice->client_port = port;
			return 0;
		}
		delete_side(p->proto, &choice->addr, &node, choice->port, port);
	}
	count(skb, error == -EEXIST ? REASON_PORTS_EXHAUSTED : REASON_FLOWS_FULL);
	return error;
}

INLINE int hairpin(struct __sk_buff *skb)
{
	u32 id = skb->cb[2] & BACKEND_ID_MASK;
	struct backend *b = backends.lookup(&id);
	struct choice choice = {.service = skb->cb[1], .backend = skb->cb[2]};
	struct flow_key key;
	struct packet p;

	if (!b || !restore_packet(skb, &p) || p.fragment == FRAGMENT_LATER)
		return DROP;
	choice.addr = p.src;
	choice.port = b->port;
	choice.flags = FLOW_HAIRPIN;
	make_key(&key, &p);
	if (add_hairpin_sides(skb, &p, &choice))
		return DROP;
	return open_and_forward(skb, &p, &key, &choice);
}
