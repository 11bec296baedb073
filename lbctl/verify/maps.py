"""What the maps say against what the objects mean: the plan that an agent would have to carry out,
if it started now. Where nothing is wrong, it is empty."""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from lbctl.addresses import format_address, format_endpoint
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.records import ADDRESS_BYTES
from lbctl.datapath.regions import region_of
from lbctl.datapath.tables import Tables
from lbctl.model.names import PortName
from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.plan.changes import CLUSTER, LOCAL, TABLES, Plan, PortState
from lbctl.plan.planner import Planner
from lbctl.program import readback
from lbctl.reconcile.places import trimmed
from lbctl.reconcile.reconciler import MOST_WARMING_SECONDS
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import ResolvedPort
from lbctl.resolve.service import foreign_addresses, own_addresses_in_range, resolve
from lbctl.verify.difference import Difference

_SHOWN: Final = 3  # of what is wrong with one port in one way
_PROTOCOLS: Final = {6: "TCP", 17: "UDP", 132: "SCTP"}
Services = Mapping[ObjectKey, ServiceObjects]


def compare(
    tables: Tables, services: Services, node: NodeFacts, waiting: Mapping[str, str]
) -> Iterator[Difference]:
    """Differences by service port. `waiting`: services that have no room, which the agent knows and
    says: they are not compared."""
    # As of then, whoever got some more of its share since is one whose share has yet to grow.
    now = time.monotonic() - MOST_WARMING_SECONDS
    planner, leftovers = readback.read(tables, now)
    had = _Had(planner)
    yield from _endpoints(tables)
    for name in leftovers.unknown:
        yield Difference("service", name, "its endpoint sets do not add up")
    wanted = dict(_wanted(planner, services, node, waiting))
    gone = _gone(planner, wanted, waiting)
    _share(planner, services, node)
    plan = planner.plan({**dict.fromkeys(gone), **wanted}, now)
    found = _Faults(tables, plan, had, planner)
    for name in gone:
        yield Difference("service", name, "it is served, and no object asks for it")
    for name, faults in found.by_port(set(gone)):
        for what in faults:
            yield Difference("service", name, what)
    yield from found.nobodys()


def _wanted(
    planner: Planner, services: Services, node: NodeFacts, waiting: Mapping[str, str]
) -> Iterator[tuple[str, ResolvedPort]]:
    for key, objects in services.items():
        if objects.service is None or str(key) in waiting:
            continue
        for port in resolve(objects.service, objects.slices, node):
            yield port.name, trimmed(port, planner.room.endpoints_of_a_port)


def _gone(
    planner: Planner, wanted: Mapping[str, ResolvedPort], waiting: Mapping[str, str]
) -> list[str]:
    """Ports that are served and should not be. One that was removed keeps its name while flows may
    have it, but has no address."""
    known = {planner.stored_name(name) for name in wanted}
    return [
        name
        for name, state in planner.services.items()
        if name not in known
        and (state.frontends or state.cluster or state.local)
        and str(PortName.parse(name).owner) not in waiting
    ]


def _share(planner: Planner, services: Services, node: NodeFacts) -> None:
    """Addresses that are marked as not ours alone, as the reconciler has them marked."""
    foreign = {*own_addresses_in_range(node)}
    for objects in services.values():
        if objects.service is not None:
            foreign.update(foreign_addresses(objects.service, node))
    most = planner.room.spare.frontends
    if len(foreign) > most:
        foreign = set(sorted(foreign)[:most])
    planner.claims.share(frozenset(node.addresses), frozenset(foreign))


class _Had:
    """Whose ids and addresses there are before a plan is made, which changes them."""

    def __init__(self, planner: Planner) -> None:
        self.names = {state.id: name for name, state in planner.services.items()}
        self.owners = {
            key: name for name, state in planner.services.items() for key, _ in state.frontends
        }


class _Faults:
    """A plan, read as what is wrong with each port."""

    def __init__(self, tables: Tables, plan: Plan, had: _Had, planner: Planner) -> None:
        self._had = had
        self._backends = tables.backends.records
        self._plan = plan
        states: dict[str, PortState] = {**planner.retired, **planner.services}
        self._states = list(planner.services.values())
        self._growing = {state.id for state in planner.warming.values()}
        self._names = {state.id: name for name, state in states.items()} | had.names
        self._ids = {name: number for number, name in self._names.items()}
        # Of markers, which are nobody's: those with the address as ClusterIP.
        self._by_address = {key[:ADDRESS_BYTES]: name for key, name in had.owners.items()} | {
            key[:ADDRESS_BYTES]: name
            for name, state in planner.services.items()
            for key, _ in state.frontends
        }
        self._found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self._nobodys: list[tuple[str, str]] = []
        self._read()

    def by_port(self, gone: set[str]) -> Iterator[tuple[str, list[str]]]:
        """Sentences by name."""
        for name, kinds in sorted(self._found.items()):
            if name not in gone:
                yield name, [_sentence(kind, what) for kind, what in kinds.items()]

    def nobodys(self) -> Iterator[Difference]:
        """What is of no port at all."""
        for place, what in self._nobodys:
            yield Difference("service", place, what)

    def _read(self) -> None:
        plan = self._plan
        new = {number for number, _ in plan.names}
        for number in new:
            self._note(number, "it is not programmed")
        for number, _ in (*plan.settings, *plan.new_settings):
            if number not in new:
                self._note(number, "its policies, affinity or algorithm differ")
        for identity, number in zip(plan.backend_identities, plan.backend_services, strict=True):
            if number not in new:
                self._note(number, "an endpoint is missing", _endpoint(identity))
        changed = new | set(plan.backend_services)
        moved = {number for number, field, _ in plan.words if field in (CLUSTER, LOCAL)}
        for number in sorted(moved - changed):
            self._note(number, "an endpoint set differs")
        for backend, _ in (*plan.raised, *plan.lowered):
            self._note_backend(backend, "an endpoint is there that should not be so")
        self._read_choice(changed | moved)
        for number, _ in (*plan.ranges, *plan.ranges_gone):
            if number not in new:
                self._note(number, "its source ranges differ")
        for key, number, _ in plan.frontends:
            if not number:
                number = self._ids.get(self._by_address.get(key[:ADDRESS_BYTES], ""), 0)
            if not number:
                what = "this address is not marked as one that others serve"
                self._nobodys.append((_place(key), what))
            elif number not in new:
                self._note(number, "an address does not lead to it", _place(key))
        self._read_gone()
        for name, error in plan.failed.items():
            self._found[name][error.message].append("")

    def _read_choice(self, changed: set[int]) -> None:
        """How endpoints are chosen. Of services whose sets are `changed` that differs anyway."""
        plan = self._plan
        for backend, _ in plan.reweighted:
            self._note_backend(backend, "the weight of an endpoint differs")
        lopsided = {self._owner(base, CLUSTER, LOCAL) for base, _ in plan.shapes}
        weighed = {int(self._backends["service"][backend]) for backend, _ in plan.reweighted}
        for number in sorted(lopsided - weighed - changed - self._growing):
            self._note(number, "the shares of its endpoints differ")
        hashed = {number for number, field, _ in plan.words if field in TABLES.values()}
        hashed |= {self._owner(int(p.places[0]), *TABLES.values()) for p in plan.tables}
        for number in sorted(hashed - changed):
            self._note(number, "its table of hashes differs")

    def _owner(self, place: int, *fields: str) -> int:
        """The service with a region that has this place."""
        for state in self._states:
            for field in fields:
                base, length = region_of(getattr(state, field))
                if base <= place < base + length:
                    return state.id
        return 0

    def _read_gone(self) -> None:
        """Addresses that lead somewhere, and should not."""
        for key in self._plan.frontends_gone:
            owner = self._had.owners.get(key) or self._by_address.get(key[:ADDRESS_BYTES])
            if owner is None or owner not in self._ids:
                what = "this address is programmed, and nobody asks for it"
                self._nobodys.append((_place(key), what))
            else:
                self._note(self._ids[owner], "an address should not lead to it", _place(key))

    def _note_backend(self, backend: int, kind: str) -> None:
        record = self._backends[backend]
        port = socket.ntohs(int(record["port"]))
        place = format_endpoint(record["addr"].tobytes(), port)
        self._note(int(record["service"]), kind, place)

    def _note(self, number: int, kind: str, what: str = "") -> None:
        self._found[self._names.get(number, f"service id {number}")][kind].append(what)


def _sentence(kind: str, what: list[str]) -> str:
    named = [text for text in what if text]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return f"{kind}: {', '.join(named[:_SHOWN])}{more}" if named else kind


def _endpoint(identity: bytes) -> str:
    """Or an endpoint's address, which is known by itself too."""
    address = identity[:ADDRESS_BYTES]
    port = int.from_bytes(identity[ADDRESS_BYTES : ADDRESS_BYTES + 2], "big")
    return format_endpoint(address, port) if port else format_address(address)


def _place(key: bytes) -> str:
    protocol = key[ADDRESS_BYTES + 2]
    if not protocol:
        return f"{_endpoint(key)} (marker)"
    return f"{_endpoint(key)}/{_PROTOCOLS.get(protocol, protocol)}"


def _endpoints(tables: Tables) -> Iterator[Difference]:
    """Endpoints that are not known by their addresses, or are and should not be."""
    for found in Frontends(tables.frontends).miscounted(tables.backends.records):
        what = f"its entry by address is of {found.says} backends, and {found.has} have it"
        yield Difference("endpoint", _endpoint(found.key), what)
