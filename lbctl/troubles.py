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
        "The message has the kernel's reason; `lbctl doctor` says what the kernel supports.",
        "InterfaceWithoutPrograms",
    ),
    "interfaces": Kind(
        "Most pod interfaces have no programs: load balancers are told to use other nodes.",
        "As above; if the node has just started, wait until all have been attached.",
        "InterfacesWithoutPrograms",
    ),
    "removed": Kind(
        "Somebody else removed programs; they were put back.",
        "Find out who else attaches programs to interfaces: `bpftool net`, a CNI's agent.",
        "ProgramsRemoved",
    ),
    "programs": Kind(
        "The kernel has not accepted the programs yet.",
        "The log says what it is doing; `lbctl doctor` says what is missing.",
        "ProgramsNotLoaded",
    ),
    "sockets": Kind(
        "Sockets of the node's own processes are not served, or not all those asked for.",
        "Name the right cgroup with `--cgroup`, or turn it off with `--socket-lb off`.",
        "SocketsNotServed",
    ),
    "xdp": Kind(
        "`--xdp on` is set, but an uplink's driver cannot do it: TC does the work instead.",
        "The message names the device and what it lacks; `--xdp auto` uses it where possible.",
    ),
    "maps": Kind(
        "Changes cannot be written; services work as they did before.",
        "The message names the map, and the option that makes it larger.",
        "ChangesNotWritten",
    ),
    "room": Kind(
        "A map is nearly full.",
        "Restart the agent with a larger value of the option that the message names.",
        "MapNearlyFull",
    ),
    "growth": Kind(
        "Tables cannot grow, although they are nearly full.",
        "The message has the reason: usually the kernel has no memory, or does not accept the "
        "programs. It is tried again every minute.",
        "TablesNotGrowing",
    ),
    "source": Kind(
        "The agent cannot read from the API server or the manifests; it serves what it knows.",
        "Check the API server, its address (`--api-server`), and the agent's permissions.",
    ),
    "node": Kind(
        "No Node object has this node's name: no endpoint counts as local.",
        "Give `--node-name` the name that `kubectl get nodes` shows.",
    ),
    "thread": Kind(
        "A thread of the agent, or a part of its loop, keeps failing.",
        "The log says where; please report it. Restarting the agent may help.",
        "AgentFailing",
    ),
    "services": Kind(
        "A service is not served as specified: another one has its address, there is no room for "
        "it, or a part of the object cannot be used.",
        "The message names the objects; `lbctl service show` has all messages about a service.",
    ),
    "objects": Kind(
        "A part of an object, or all of it, cannot be read.",
        "Correct the field that the message names.",
    ),
    "hints": Kind(
        "Topology hints of endpoints are not used.",
        "The message says why; usually the node has no zone label, or a zone has no endpoint.",
    ),
    "listeners": Kind(
        "Nobody can read events of flows: `lbctl observe` and `lbctl ui` have none to show.",
        "The message says why; the agent has to be able to write to /run/lbctl.",
    ),
    "reserved-ports": Kind(
        "Source ports cannot be reserved: a process may use one that a translated connection has.",
        "Let the agent write net.ipv4.ip_local_reserved_ports, as deploy/ does.",
        "PortsNotReserved",
    ),
    "stale-sockets": Kind(
        "Sockets whose endpoint is gone cannot be closed: they stay until they time out.",
        "The message says what is missing, and so does `lbctl doctor`.",
    ),
    "listening": Kind(
        "A port that the agent should listen on is taken.",
        "`ss -ltnp` says by whom; a kube-proxy that still runs has several of them.",
        "PortTaken",
    ),
    "sweep": Kind(
        "Flows that ended cannot be removed from their tables.",
        "The message has the kernel's reason. If it persists, please report it.",
        "SweepFailing",
    ),
    "attachments": Kind(
        "Programs that should no longer be attached, or their pins, cannot be removed.",
        "The message has the kernel's reason; it is tried again every minute.",
    ),
    "cache": Kind(
        "The cache of compiled programs is not used: every start compiles them.",
        "The message says who else could write to the directory; make it root's alone.",
    ),
    "status": Kind(
        "The status file cannot be written: `lbctl status` shows an old one.",
        "Make room in /run, or mount it writable.",
    ),
    "settings": Kind(
        "The file given to --config cannot be used, or a part of it needs a restart.",
        "Correct it, or restart the agent.",
    ),
    "events": Kind(
        "Events cannot be written.",
        "Give the agent permission (deploy/components/events), or turn `events` off.",
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
        "Restart the agents with a larger value of the option that the note names.",
    ),
    PARTLY_SERVED: Kind(
        "A part of the object cannot be used: an address that no service may have, a node port "
        "that is missing, two ports with one name, an invalid value.",
        "Correct what the note names.",
    ),
    FIELD_UNREADABLE: Kind(
        "A field has an invalid value; the rest of the object is used, or the object as it was "
        "before.",
        "Correct the field that the note names.",
    ),
}


# On the Node, beside those of KINDS.
DOCTOR: Final = "DoctorAdvises"
NODE_REASONS: Final = {
    **{kind.event: kind for kind in KINDS.values() if kind.event},
    DOCTOR: Kind(
        "`lbctl doctor` finds that something is missing or not as advised.",
        "The note says how to fix it; `lbctl doctor` on the node shows everything.",
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
