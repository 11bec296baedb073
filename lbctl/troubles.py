"""Kinds of what can be wrong, by the word that metrics, Events and documents call them.

`lbctl status` has a sentence for each one that holds; lbctl_condition counts them by kind. What
helps is said here once: docs/observability.md is made from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import msgspec

MOST_LINES: Final = 100  # of one kind; a line is about one object


class Kind(msgspec.Struct, frozen=True):
    """One kind. `event` is the reason of an Event on the Node while it holds; empty: there is none,
    since it is about objects, or nobody but who runs the agent has to do with it."""

    what: str
    remedy: str
    event: str = ""


KINDS: Final = {
    "interface": Kind(
        "An interface has no programs.",
        "The sentence has the kernel's reason; `lbctl doctor` what the kernel offers.",
        "InterfaceWithoutPrograms",
    ),
    "interfaces": Kind(
        "Most interfaces of pods have no programs: load balancers are told to go elsewhere.",
        "As above; if the node was only just started, wait until their turn has come.",
        "InterfacesWithoutPrograms",
    ),
    "removed": Kind(
        "Programs were taken away by others, and put back.",
        "Find who else puts programs on interfaces: `bpftool net`, another CNI's agent.",
        "ProgramsRemoved",
    ),
    "programs": Kind(
        "The kernel has not taken the programs.",
        "The log says how far it is; `lbctl doctor` what is missing.",
        "ProgramsNotLoaded",
    ),
    "sockets": Kind(
        "Sockets of the node's own processes are not served, or not all that is asked for can be.",
        "`--cgroup` names the right cgroup, `--socket-lb off` does without.",
        "SocketsNotServed",
    ),
    "xdp": Kind(
        "`--xdp on` is asked for, and an uplink's driver does not do it: TC does the same.",
        "The sentence names the device and what it lacks; `--xdp auto` takes what there is.",
    ),
    "maps": Kind(
        "Changes cannot be written: what was there before is served.",
        "The sentence names the map, and the option for a larger one.",
        "ChangesNotWritten",
    ),
    "room": Kind(
        "A map is nearly full.",
        "Start the agent with the larger option that the sentence names.",
        "MapNearlyFull",
    ),
    "growth": Kind(
        "Tables do not grow, though they are about to be full.",
        "The sentence has the reason: usually the kernel has no memory, or does not take the "
        "programs. It is tried again every minute.",
        "TablesNotGrowing",
    ),
    "source": Kind(
        "The agent is cut off from the API server or the manifests; what is known is served.",
        "Look at the API server, the way to it (`--api-server`), and the agent's rights.",
    ),
    "node": Kind(
        "No Node object has this node's name: no endpoint counts as local.",
        "Give `--node-name` the name that `kubectl get nodes` shows.",
    ),
    "thread": Kind(
        "A thread of the agent, or a part of its loop, fails again and again.",
        "The log says where; report it. A restart of the agent may help.",
        "AgentFailing",
    ),
    "services": Kind(
        "A service is not served as its object says: it lost an address or its place, or a part "
        "of the object cannot be used.",
        "The sentence names both sides; `lbctl service show` has all of one service's.",
    ),
    "objects": Kind(
        "A part of an object, or all of it, cannot be read.",
        "Correct the field that the sentence names.",
    ),
    "hints": Kind(
        "Topology hints of endpoints are not gone by.",
        "The sentence says why; usually the node's zone label, or hints that leave a zone empty.",
    ),
    "listeners": Kind(
        "Nobody can listen to events of flows: `lbctl observe` and `lbctl ui` have none to show.",
        "The warning says what is in the way: the agent has to be able to write /run/lbctl.",
    ),
    "reserved-ports": Kind(
        "Source ports cannot be reserved: a process may use one that a connection was given.",
        "Let the agent write net.ipv4.ip_local_reserved_ports, as deploy/ does.",
        "PortsNotReserved",
    ),
    "stale-sockets": Kind(
        "Sockets whose endpoint is gone cannot be closed: they wait until they time out.",
        "The sentence says what is missing; `lbctl doctor` too.",
    ),
    "listening": Kind(
        "A port that the agent is to answer on cannot be had.",
        "`ss -ltnp` says who has it; a kube-proxy that still runs has several.",
        "PortTaken",
    ),
    "sweep": Kind(
        "Flows that ended are not removed from their tables.",
        "The sentence has the kernel's reason. If it stays, report it.",
        "SweepFailing",
    ),
    "attachments": Kind(
        "Programs that should not be attached any more, or pins of them, cannot be removed.",
        "The sentence has the kernel's reason; it is tried again every minute.",
    ),
    "cache": Kind(
        "Compiled programs are neither kept nor believed: each start compiles.",
        "The sentence says who could write to the directory; give it to root alone.",
    ),
    "status": Kind(
        "The status file cannot be written: `lbctl status` shows an old one.",
        "Make room in /run, or mount it to be written.",
    ),
    "settings": Kind(
        "The file behind --config cannot be used, or a part of it waits for a restart.",
        "Correct it, or restart the agent.",
    ),
    "events": Kind(
        "Events cannot be written.",
        "Give the agent the right (deploy/components/events), or turn `events` off.",
    ),
}


ADDRESS_TAKEN: Final = "AddressTaken"
NO_ROOM: Final = "NoRoom"
PARTLY_SERVED: Final = "PartlyServed"
FIELD_UNREADABLE: Final = "FieldUnreadable"

# Reasons of Events on Services. One more is a line here, and whoever finds it says it by
# `Notes.complaints` or `Source.service_problems`.
REASONS: Final = {
    ADDRESS_TAKEN: Kind(
        "Another service has an address and port that this one asks for.",
        "The note names both. Take the address out of one of them.",
    ),
    NO_ROOM: Kind(
        "There is no room for the service, or for some of its ports or endpoints.",
        "Start the agents with the larger option that the note names.",
    ),
    PARTLY_SERVED: Kind(
        "A part of the object cannot be honoured: an address that no service may have, a port "
        "without its node port, two ports of one name, a value that means nothing.",
        "Correct what the note names.",
    ),
    FIELD_UNREADABLE: Kind(
        "A field holds what it cannot hold; the rest of the object is used, or the object as it "
        "was known before.",
        "Correct the field that the note names.",
    ),
}


# On the Node, beside those of KINDS.
DOCTOR: Final = "DoctorAdvises"
NODE_REASONS: Final = {
    **{kind.event: kind for kind in KINDS.values() if kind.event},
    DOCTOR: Kind(
        "`lbctl doctor` finds something missing, or something that costs.",
        "The note has the remedies; `lbctl doctor` on the node all of them.",
    ),
}


class Said(NamedTuple):
    """A sentence about something that is wrong now, and its kind."""

    kind: str
    text: str


def of_kind(kind: str, texts: Iterable[str]) -> Iterator[Said]:
    """The first of them, and how many more there are."""
    return (Said(kind, text) for text in bounded(texts))


def bounded(texts: Iterable[str], most: int = MOST_LINES) -> list[str]:
    """The first of them, and how many more there are."""
    texts = iter(texts)
    found = list(islice(texts, most))
    more = sum(1 for _ in texts)
    return [*found, f"... and {more} more of this kind"] if more else found
