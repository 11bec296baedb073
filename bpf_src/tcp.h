/* The life of a TCP flow as seen from the middle: flags decide, and both closes must be acked. */
#pragma once

/* Nothing to note about most packets: the flow is open and the packet changes that in no way. */
INLINE bool tcp_unremarkable(const struct packet *p, const struct flow *f)
{
	return f->state == FLOW_ESTABLISHED &&
	       !((p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) |
		 (f->flags & (FLOW_FIN | FLOW_PEER_FIN)));
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

/* Follows a remarkable packet. True when it was the last of the flow, whose entries are then gone:
 * the caller copied what it needs. `key` and `f` are those of the packet's direction. */
INLINE bool track_tcp(struct __sk_buff *skb, struct packet *p, struct flow_key *key, struct flow *f)
{
	struct flow_key pair_key;
	struct table_state *state = get_table_state();
	struct tcphdr tcp;
	struct flow *pair;

	if (f->state == FLOW_SIDE || bpf_skb_load_bytes(skb, p->l4, &tcp, sizeof(tcp)) || !state)
		return false;
	make_pair_key(&pair_key, key, f);
	pair = find_flow(&pair_key);
	if (!pair || !is_pair(pair, key, f))
		return false;

	if (p->tcp_flags & TCP_RST) {
		/* Perhaps not in the window, then the flow goes on; nobody but the ends can tell. */
		f->state = FLOW_RESET;
		pair->state = FLOW_RESET;
		if (!under_pressure(state))
			return false;
		if (f->flags & FLOW_REPLY)
			end_flow(&pair_key, pair, false);
		else
			end_flow(key, f, false);
		return true;
	}
	if (p->tcp_flags & TCP_SYN) {
		if (f->flags & FLOW_REPLY)
			f->flags |= FLOW_REPLIED;
		return false;
	}
	if (f->state == FLOW_SYN && !(f->flags & FLOW_REPLY)) {
		f->state = FLOW_ESTABLISHED;
		pair->state = FLOW_ESTABLISHED;
		if (*overflowed(state)) {
			promote(key);
			promote(&pair_key);
			/* Both may have moved: what follows would write to the old ones. */
			f = find_flow(key);
			pair = find_flow(&pair_key);
			if (!f || !pair)
				return false;
		}
	} else if (f->state == FLOW_RESET) {
		f->state = f->flags & (FLOW_FIN | FLOW_PEER_FIN) ? FLOW_CLOSING : FLOW_ESTABLISHED;
	}
	if (p->tcp_flags & TCP_FIN)
		note_fin(p, &tcp, f, pair);
	if (f->flags & FLOW_PEER_FIN && p->tcp_flags & TCP_ACK &&
	    (s32)(ntohl(tcp.ack_seq) - f->peer_fin) >= 0)
		f->flags |= FLOW_ACKED;
	if (!(f->flags & FLOW_ACKED && pair->flags & FLOW_ACKED))
		return false;

	/* Both sides closed and both know. Who closed first keeps the tuple in TIME_WAIT. */
	if (f->flags & FLOW_REPLY)
		end_flow(&pair_key, pair, f->flags & FLOW_FIRST && !under_pressure(state));
	else
		end_flow(key, f, pair->flags & FLOW_FIRST && !under_pressure(state));
	return true;
}
