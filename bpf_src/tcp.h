/* The life of a TCP flow as seen from the middle: flags decide, and both closes must be acked. */
#pragma once

/* Most packets need no more than this: the flow opens, or is open. False: see track_tcp. */
INLINE bool tcp_unremarkable(const struct packet *p, struct flow *f, bool reply)
{
	struct table_state *state;

	if (p->tcp_flags & (TCP_FIN | TCP_RST) || f->flags & (FLOW_FIN | FLOW_PEER_FIN))
		return f->state == FLOW_SIDE;
	if (f->state == FLOW_ESTABLISHED || f->state == FLOW_SIDE)
		return true;
	if (f->state != FLOW_SYN)
		return false;
	if (p->tcp_flags & TCP_SYN) {
		if (reply)
			f->flags |= FLOW_REPLIED;
		return true;
	}
	state = get_table_state();
	if (!state || *overflowed(state))
		return false;
	f->state = FLOW_ESTABLISHED;
	return true;
}

INLINE void note_fin(struct packet *p, const struct tcphdr *tcp, struct flow *f, struct flow *pair)
{
	if (!(f->flags & FLOW_FIN)) {
		f->flags |= FLOW_FIN;
		if (!(f->flags & FLOW_PEER_FIN))
			f->flags |= FLOW_FIRST;
	}
	f->state = FLOW_CLOSING;
	pair->state = FLOW_CLOSING;
	pair->flags |= FLOW_PEER_FIN;
	pair->peer_fin = ntohl(tcp->seq) + p->l4_length - tcp->doff * 4 + 1;
}

/* The handshake is over. Entries among those that may be forgotten move to where they stay. */
INLINE struct flow *settle(struct flow_key *key, struct flow *f)
{
	struct flow_key out_key, back_key;

	f->state = FLOW_ESTABLISHED;
	if (f->flags & FLOW_MASQUERADED && !(f->flags & FLOW_REPLY) &&
	    find_sides(key, f, &out_key, &back_key)) {
		promote(&out_key);
		promote(&back_key);
	}
	promote(key);
	return find_flow(key);
}

/* What the flow's end means for its entries, once the packet is accounted for. */
enum tcp_end { TCP_GOES_ON, TCP_ENDED, TCP_ENDED_BACKEND_WAITS };

/* Follows a remarkable packet. `f` is the entry of the packet's direction. */
INLINE int track_tcp(struct __sk_buff *skb, struct packet *p, struct flow *f, struct flow *pair)
{
	struct table_state *state = get_table_state();
	bool pressed = state && under_pressure(state);
	struct flow *reply;
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(skb, p->l4, &tcp, sizeof(tcp)))
		return TCP_GOES_ON;
	if (p->tcp_flags & TCP_RST) {
		/* Perhaps not in the window, then the flow goes on; nobody but the ends can tell.
		 */
		f->state = FLOW_RESET;
		pair->state = FLOW_RESET;
		return pressed ? TCP_ENDED : TCP_GOES_ON;
	}
	if (p->tcp_flags & TCP_SYN)
		return TCP_GOES_ON;
	if (f->state == FLOW_RESET) {
		f->state = f->flags & (FLOW_FIN | FLOW_PEER_FIN) ? FLOW_CLOSING : FLOW_ESTABLISHED;
		if (pair->state == FLOW_RESET)
			pair->state = f->state;
	}
	if (p->tcp_flags & TCP_FIN)
		note_fin(p, &tcp, f, pair);
	if (f->flags & FLOW_PEER_FIN && p->tcp_flags & TCP_ACK &&
	    (s32)(ntohl(tcp.ack_seq) - f->peer_fin) >= 0)
		f->flags |= FLOW_ACKED;
	if (!(f->flags & FLOW_ACKED && pair->flags & FLOW_ACKED))
		return TCP_GOES_ON;
	/* Both sides closed and both know. Who closed first keeps the tuple in TIME_WAIT. */
	reply = f->flags & FLOW_REPLY ? f : pair;
	return reply->flags & FLOW_FIRST && !pressed ? TCP_ENDED_BACKEND_WAITS : TCP_ENDED;
}

/* The program for remarkable packets of a flow. */
INLINE int track(struct __sk_buff *skb)
{
	bool reply = skb->cb[1];
	struct flow_key key, pair_key;
	struct flow *f, *pair;
	u16 port, client_port;
	struct packet p;
	ip_addr addr;
	int end;

	if (!restore_packet(skb, &p))
		return DROP;
	make_key(&key, &p);
	f = find_flow(&key);
	if (!f)
		return PASS;
	/* Copied before the flow can end: its entry may be reused at once. */
	addr = f->addr;
	port = f->port;
	client_port = f->client_port;
	count_packet(f, skb->len - p.l3);
	f->seen = now();
	make_pair_key(&pair_key, &key, f);
	pair = find_flow(&pair_key);
	if (pair && is_pair(pair, &key, f)) {
		if (f->state == FLOW_SYN && !(p.tcp_flags & (TCP_SYN | TCP_RST))) {
			/* Both: the backend may have nothing to say for a long time. */
			f = settle(&key, f);
			pair = settle(&pair_key, pair);
		}
		end = f && pair ? track_tcp(skb, &p, f, pair) : TCP_GOES_ON;
		if (reply)
			key = pair_key;
		if (end != TCP_GOES_ON)
			end_flow(&key, end == TCP_ENDED_BACKEND_WAITS, !reply);
	}
	return translate(skb, &p, reply, &addr, port, client_port);
}
