"""What each reason of bpf_src/consts.h (enum reason) means, in a sentence for people."""

from __future__ import annotations

from collections.abc import Mapping

_PREFIX = "REASON_"
_END = "END_"

SENTENCES = {
    "not_service": "No service has this address: the packet goes on untouched.",
    "forwarded": "The service has usable endpoints: each new connection gets one of them.",
    "no_endpoint": "The service has no usable endpoint anywhere: the client is refused at once.",
    "no_local_endpoint": (
        "The service's traffic policy is Local and this node has no usable endpoint, though others "
        "have: the packet is dropped."
    ),
    "source_range": (
        "The service's loadBalancerSourceRanges do not include the client: the packet is dropped."
    ),
    "unknown_port": (
        "The address is the ClusterIP of a service that has no such port and protocol: the client "
        "is refused at once."
    ),
    "unallocated": (
        "The address is inside the service range, but no service has it: the packet is dropped, "
        "since nothing else may answer there."
    ),
    "no_flow_reset": (
        "A TCP packet of a connection that is not known here: the sender gets a reset."
    ),
    "no_flow_passed": (
        "A TCP packet of a connection that is not known here: it goes on untouched, since the "
        "connection may be kube-proxy's."
    ),
    "malformed": "A header of the packet contradicts itself: it is dropped.",
    "truncated": "A header ends beyond the packet: it is dropped.",
    "too_many_headers": (
        "The packet has more IPv6 extension headers than the programs parse: it is dropped."
    ),
    "fragment_unmatched": (
        "A fragment came before the first one of its datagram, which did not follow in time, or it "
        "was too large to be kept: it is dropped."
    ),
    "flows_full": (
        "The flow table has no room for another connection (--flows): the packet is dropped, and "
        "the client tries again."
    ),
    "ports_exhausted": (
        "No source port is free to tell this connection from others to its endpoint: the packet "
        "is dropped."
    ),
    "icmp_translated": "An ICMP error about a translated connection, translated like it.",
    "flow_moved": "A UDP flow whose endpoint stopped serving went on to another one.",
    "source_translated": (
        "The client's port was changed, since another connection to the same endpoint has it."
    ),
    "left_to_stack": (
        "The packet belongs to the node itself, although a service has the address: it goes on "
        "untouched."
    ),
    "rewrite_failed": "The kernel did not allow the packet to be changed: it is dropped.",
    "endpoint_is_node": (
        "A socket of the node, which no socket hook served, called a service whose endpoints are "
        "all processes of this node: it is refused at once."
    ),
    "port_reused": (
        "A masqueraded flow got a port whose last connection the backend may still remember: its "
        "handshake may take a second longer."
    ),
    "node_unrouted": (
        "A packet that the node sent was translated on its way out, and there is no route to the "
        "endpoint: it is dropped."
    ),
    "dsr_too_big": (
        "A packet to an endpoint on another node is too large to be encapsulated: its sender is "
        "told how large it may be."
    ),
    "dsr_unrouted": (
        "A packet was to be encapsulated to another node, and there is no route there: it is "
        "dropped."
    ),
    "dsr_unknown": (
        "Another node sent an encapsulated packet, for an endpoint that this node does not know: "
        "it goes on untouched, to nobody. That happens for a moment after an endpoint has left."
    ),
    "internal": (
        "The programs found their tables inconsistent, which is a bug: restart the agent, and "
        "report it if it happens again."
    ),
}


# Why flows end, and what that means; the names are those of enum end_reason.
ENDINGS = {
    "closed": "Both sides closed it.",
    "reset": "One side reset it.",
    "idle": "It had no packets for longer than its state allows.",
    "evicted": "The table of flows was full, and another needed its place.",
    "replaced": "Its client opened a new connection from the same port.",
    "backend": "Its endpoint stopped serving.",
    "deleted": "Somebody ended it (`lbctl flow flush`), or a policy did.",
}

# What became of a packet, by what was decided about it.
VERDICTS = {
    "passed": ("not_service", "no_flow_passed", "left_to_stack", "dsr_unknown"),
    "translated": (
        *("forwarded", "flow_moved", "source_translated", "icmp_translated", "port_reused"),
    ),
    "refused": (
        *("no_endpoint", "unknown_port", "no_flow_reset", "endpoint_is_node", "dsr_too_big"),
    ),
    "dropped": (
        *("no_local_endpoint", "source_range", "unallocated", "malformed", "truncated"),
        *("too_many_headers", "fragment_unmatched", "flows_full", "ports_exhausted"),
        *("rewrite_failed", "node_unrouted", "dsr_unrouted", "internal"),
    ),
}
_VERDICT_OF = {reason: verdict for verdict, reasons in VERDICTS.items() for reason in reasons}


def verdict(reason: str) -> str:
    """What became of the packet: one of VERDICTS; "unknown" for one this version does not know."""
    return _VERDICT_OF.get(reason, "unknown")


def sentence(reason: str) -> str:
    """What `reason` (lower case, no prefix) means; empty for one this version does not know."""
    return SENTENCES.get(reason, "")


def reason_names(enums: Mapping[str, int]) -> dict[int, str]:
    """enum reason by number: lower case, without the prefix."""
    return {
        number: name.removeprefix(_PREFIX).lower()
        for name, number in enums.items()
        if name.startswith(_PREFIX) and name != f"{_PREFIX}MAX"
    }


def ending_names(enums: Mapping[str, int]) -> dict[int, str]:
    """enum end_reason by number: lower case, without the prefix."""
    return {
        number: name.removeprefix(_END).lower()
        for name, number in enums.items()
        if name.startswith(_END) and name != f"{_END}MAX"
    }
