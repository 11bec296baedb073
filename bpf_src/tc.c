/* The programs of one family; FAMILY is 4 or 6. entry.c hands them the packets.
 *
 * TRACE builds the variant behind `lbctl trace`: the same decisions on the same maps, but every
 * packet is the first of its flow, none is remembered and nothing is counted. Of it only what
 * decides about a first packet is loaded. */
#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "handoff.h"
#include "classify.h"
#include "established.h"
#include "tcp.h"
#include "anew.h"
#include "outgoing.h"
#include "open.h"
#include "connect.h"
#include "way.h"
#include "masquerade.h"
#include "takeport.h"
#include "direct.h"
#include "refuse.h"
#include "toobig.h"
#include "decided.h"
#include "sctp.h"
#include "icmp.h"
#include "node.h"
#include "stash.h"
#include "dsr.h"
#include "arrive.h"
#include "outererror.h"
#include "fast.h"
#include "hop.h"

PROGRAM(FAMILY_NAME(from_pod))
{
	return come_in(skb, ORIGIN_POD);
}

PROGRAM(FAMILY_NAME(to_pod))
{
	return go_out(skb, ORIGIN_POD);
}

/* The entry program says where from, and whether there is a link header. */
PROGRAM(FAMILY_NAME(from_net))
{
	return come_in(skb, handoff(skb)->from);
}

PROGRAM(FAMILY_NAME(to_net))
{
	return go_out(skb, handoff(skb)->from);
}

PROGRAM(FAMILY_NAME(coming_in))
{
	return coming_in(skb);
}

PROGRAM(FAMILY_NAME(going_out))
{
	return going_out(skb);
}

PROGRAM(FAMILY_NAME(follow))
{
	return follow_any(skb);
}

PROGRAM(FAMILY_NAME(track))
{
	return track(skb);
}

PROGRAM(FAMILY_NAME(begin_anew))
{
	return begin_anew(skb);
}

PROGRAM(FAMILY_NAME(node_open))
{
	return node_open(skb);
}

PROGRAM(FAMILY_NAME(node_flow))
{
	return node_flow(skb);
}

PROGRAM(FAMILY_NAME(node_send))
{
	return node_send(skb);
}

PROGRAM(FAMILY_NAME(outgoing))
{
	return outgoing(skb);
}

PROGRAM(FAMILY_NAME(connect))
{
	return connect(skb);
}

PROGRAM(FAMILY_NAME(choose))
{
	return choose(skb);
}

PROGRAM(FAMILY_NAME(open))
{
	return open_chosen(skb);
}

PROGRAM(FAMILY_NAME(retry))
{
	return retry(skb);
}

PROGRAM(FAMILY_NAME(make_way))
{
	return make_way(skb);
}

PROGRAM(FAMILY_NAME(masquerade))
{
	return masquerade(skb);
}

PROGRAM(FAMILY_NAME(take_port))
{
	return take_port(skb);
}

PROGRAM(FAMILY_NAME(open_masqueraded))
{
	return open_masqueraded(skb);
}

PROGRAM(FAMILY_NAME(direct))
{
	return direct(skb);
}

PROGRAM(FAMILY_NAME(open_dsr))
{
	return open_dsr(skb);
}

PROGRAM(FAMILY_NAME(encapsulate))
{
	return encapsulate(skb);
}

PROGRAM(FAMILY_NAME(too_big))
{
	return too_big(skb);
}

PROGRAM(FAMILY_NAME(outer_error))
{
	return outer_error(skb);
}

PROGRAM(FAMILY_NAME(arrive))
{
	return arrive(skb);
}

PROGRAM(FAMILY_NAME(arrive_new))
{
	return arrive_new(skb);
}

PROGRAM(FAMILY_NAME(arrive_error))
{
	return arrive_error(skb);
}

PROGRAM(FAMILY_NAME(refuse))
{
	return answer(skb);
}

PROGRAM(FAMILY_NAME(tell))
{
	return tell(skb);
}

PROGRAM(FAMILY_NAME(sctp))
{
	return set_sctp_ports(skb);
}

PROGRAM(FAMILY_NAME(icmp_from_pod))
{
	return icmp_error(skb, false);
}

PROGRAM(FAMILY_NAME(icmp_to_pod))
{
	return icmp_error(skb, true);
}

PROGRAM(FAMILY_NAME(fragment))
{
	return fragment(skb);
}

PROGRAM(FAMILY_NAME(go_past))
{
	return go_past(skb);
}

PROGRAM(FAMILY_NAME(track_past))
{
	return track_past(skb);
}

PROGRAM(FAMILY_NAME(learn_hops))
{
	return learn_hops(skb);
}
