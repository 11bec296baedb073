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
        "A TCP packet in mid-stream whose connection is not known here: the sender gets a reset."
    ),
    "no_flow_passed": (
        "A TCP packet in mid-stream whose connection is not known here: it goes on untouched, "
        "since kube-proxy may still own the connection."
    ),
    "malformed": "A header of the packet contradicts itself: it is dropped.",
    "truncated": "A header ends beyond the packet: it is dropped.",
    "too_many_headers": (
        "The packet has more IPv6 extension headers than are followed: it is dropped."
    ),
    "fragment_unmatched": (
        "A fragment waited in vain for the first one of its datagram, or was too large to wait: it "
        "is dropped."
    ),
    "flows_full": (
        "The table of connections has no room for another (--flows): the packet is dropped, and "
        "the client tries again."
    ),
    "ports_exhausted": (
        "No source port is free that would keep this connection apart from another one: the packet "
        "is dropped."
    ),
    "icmp_translated": "An ICMP error about a translated connection, translated like it.",
    "flow_moved": "A UDP flow whose endpoint stopped serving went on to another one.",
    "source_translated": (
        "The client's port was changed, since another connection to the same endpoint has it."
    ),
    "left_to_stack": (
        "The packet is the node's own business, though a service has the address: it goes on "
        "untouched."
    ),
    "rewrite_failed": "The kernel did not allow the packet to be changed: it is dropped.",
    "endpoint_is_node": (
        "A socket of the node's own, which no socket hook served, called a service all of whose "
        "endpoints are processes of this node: it is refused at once."
    ),
    "port_reused": (
        "A masqueraded flow got a port whose last connection the backend may still remember: its "
        "handshake may take a second longer."
    ),
    "node_unrouted": (
        "A packet of the node's own was translated on its way out, and there is no route to the "
        "endpoint: it is dropped."
    ),
    "internal": (
        "The programs found their tables inconsistent, which is a fault: restart the agent, and "
        "report it if it stays."
    ),
}


# Why flows end, and what that means; the names are those of enum end_reason.
ENDINGS = {
    "closed": "Both sides closed it.",
    "reset": "One side reset it.",
    "idle": "Nothing was seen of it for as long as its kind may be silent.",
    "evicted": "The table of flows was full, and another needed its place.",
    "replaced": "Its client began anew from the same port.",
    "backend": "Its endpoint stopped serving.",
    "deleted": "A person or a policy ended it.",
}

# What became of a packet, by what was decided about it.
VERDICTS = {
    "passed": ("not_service", "no_flow_passed", "left_to_stack"),
    "translated": (
        *("forwarded", "flow_moved", "source_translated", "icmp_translated", "port_reused"),
    ),
    "refused": ("no_endpoint", "unknown_port", "no_flow_reset", "endpoint_is_node"),
    "dropped": (
        *("no_local_endpoint", "source_range", "unallocated", "malformed", "truncated"),
        *("too_many_headers", "fragment_unmatched", "flows_full", "ports_exhausted"),
        *("rewrite_failed", "node_unrouted", "internal"),
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
