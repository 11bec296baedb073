"""Sockets that are connected to an endpoint that is gone are closed, so that their owners connect
anew.

UDP as soon as the endpoint stopped serving; TCP only once its address is in none of the service's
slices any more, so that a terminating pod can finish what it does.
"""

import sys
import threading
from collections.abc import Collection, Iterator
from typing import Protocol

import numpy as np
import structlog

from ebpf.errors import LbError
from ebpf.kernel import sockdiag
from ebpf.kernel.sockdiag import Target
from lbctl.agent.sockets import ALL, OFF
from lbctl.datapath import consts
from lbctl.datapath.records import ADDRESS_BYTES, IDENTITY_BYTES, address_columns, rows_as_bytes
from lbctl.datapath.regions import ArrayContents
from lbctl.datapath.tables import HashTable, Records, Tables
from lbctl.model.names import PortName
from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.plan.planner import Planner
from lbctl.plan.sets import HeldSets

# From a change to the look at sockets: several changes are one, and connects under way are done.
DELAY_SECONDS = 0.25


class Objects(Protocol):
    """What the reconciler knows."""

    planner: Planner

    def objects(self, key: ObjectKey) -> ServiceObjects | None: ...


class StaleSockets:
    """Decides in the agent's thread, closes in another."""

    def __init__(self, tables: Tables, known: Objects, mode: str) -> None:
        """`mode` as in `SocketHooks`: with "all", every network namespace is searched."""
        self._tables = tables
        self._known = known
        self._mode = mode
        self._due: float | None = None
        self._waiting: frozenset[ObjectKey] = frozenset()
        self._thread: threading.Thread | None = None
        self._log = structlog.get_logger()
        self.closed = 0  # since the start of the agent
        self.problem = ""

    def changed(self, keys: Collection[ObjectKey], left: bool, now: float) -> None:
        """Services were written; `left`: some endpoint stopped serving."""
        if self._mode == OFF or self._due is not None:
            return
        if left or not self._waiting.isdisjoint(keys):
            self._due = now + DELAY_SECONDS

    def due(self) -> float | None:
        """When `step` has something to do, on the monotonic clock."""
        return self._due

    def step(self, now: float) -> None:
        """Look for sockets to close, if it is time."""
        if self._due is None or now < self._due:
            return
        if self._thread and self._thread.is_alive():
            self._due = now + DELAY_SECONDS
            return
        self._due = None
        stale = self._find()
        if any(stale.values()):
            # A thread of its own each time: one that has entered another namespace is never reused.
            self._thread = threading.Thread(target=self._close, args=(stale,), name="sockets")
            self._thread.start()

    def stop(self) -> None:
        """Wait for what is under way; that is bounded by the kernel's answers."""
        if self._thread:
            self._thread.join()

    def _find(self) -> dict[int, list[Target]]:
        """By protocol, what must not stay connected. (Which of the two a socket is, is seen when
        it is found.)"""
        keys, values = self._tables.socket_peers.read_all()
        places = rows_as_bytes(keys)[:, address_columns(keys.dtype, "addr", "port")]
        services = values["service"]
        judge = _Judge(self._tables, self._known, set(np.unique(services).tolist()))
        # Many sockets have the same peer: each is judged once.
        named = np.column_stack([places, rows_as_bytes(np.ascontiguousarray(services))])
        peers, which = np.unique(named.view(f"V{named.shape[1]}").ravel(), return_inverse=True)
        stale: dict[int, list[Target]] = {sockdiag.UDP: [], sockdiag.TCP: []}
        for index, (service, row) in enumerate(_peers(peers)):
            if not any(row) or judge.is_serving(service, row):
                continue  # no row: what an unconnected socket called last
            address, port = row[:ADDRESS_BYTES], row[ADDRESS_BYTES:]
            cookies = keys["cookie"][which == index].tolist()
            targets = [Target(cookie, address, port) for cookie in cookies]
            stale[sockdiag.UDP] += targets
            if not judge.exists(service, address):
                stale[sockdiag.TCP] += targets
        self._waiting = frozenset(judge.waiting)
        return stale

    def _close(self, stale: dict[int, list[Target]]) -> None:
        others = sockdiag.other_namespaces() if self._mode == ALL else []
        closed, errors = sockdiag.close_everywhere(stale, others)
        for protocol, targets in closed.items():
            if targets:
                self._log.info(
                    "closed sockets of endpoints that are gone",
                    kind=sockdiag.NAMES[protocol],
                    sockets=len(targets),
                )
            self.closed += len(targets)
            self._forget(targets)
        problem = "; ".join(f"{error.message}. {error.hint}".strip() for error in errors)
        if problem and problem != self.problem:
            self._log.warning("sockets of endpoints that are gone stay open", why=problem)
        self.problem = problem

    def _forget(self, closed: Collection[Target]) -> None:
        """Closed like this, a UDP socket does not know at its end whom it was connected to."""
        peers, choices = self._tables.socket_peers, self._tables.socket_choices
        for target in closed:
            key = _key(peers, target.cookie, target.address, target.port)
            try:
                value = peers.get(key)
                if value is None:
                    continue
                known = np.frombuffer(value, peers.spec.value.dtype)[0]
                address, port = known["addr"]["w"].tobytes(), known["port"].tobytes()
                choices.delete(_key(choices, target.cookie, address, port))
                peers.delete(key)
            except LbError as error:
                self._log.warning("an entry of a closed socket stays", error=error.message)


class _Judge:
    """Answers about the endpoints of some services, each looked up once."""

    def __init__(self, tables: Tables, known: Objects, services: Collection[int]) -> None:
        planner = known.planner
        contents = ArrayContents(tables.slots.records, tables.backends.records)
        self._serving: dict[int, set[bytes]] = {}
        self._addresses: dict[int, set[bytes] | None] = {}
        self._owners: dict[int, ObjectKey] = {}
        self.waiting: set[ObjectKey] = set()  # services with sockets that may become stale later
        for name, state in (*planner.retired.items(), *planner.services.items()):
            if state.id not in services:
                continue
            held = HeldSets(contents, state.cluster, state.local).held
            self._serving[state.id] = {
                identity for identity, (_, flags) in held.items() if flags & consts.BACKEND_SERVING
            }
            key = self._owners[state.id] = PortName.parse(name).owner
            self._addresses[state.id] = _addresses(known.objects(key))

    def is_serving(self, service: int, place: bytes) -> bool:
        """May a socket be connected to this address and port for this service?"""
        return place in self._serving.get(service, ())

    def exists(self, service: int, address: bytes) -> bool:
        """Is this still the address of an endpoint of the service, in whatever state? Of a service
        that is gone nobody knows: its connections live on."""
        addresses = self._addresses.get(service)
        if addresses is None:
            return True
        if address in addresses:
            self.waiting.add(self._owners[service])
            return True
        return False


def _addresses(objects: ServiceObjects | None) -> set[bytes] | None:
    if objects is None or objects.service is None:
        return None
    return {endpoint.address for part in objects.slices for endpoint in part.endpoints}


def _peers(rows: Records) -> Iterator[tuple[int, bytes]]:
    """Service id, and address with port, of each row of these bytes and the id."""
    for row in rows.tolist():
        yield int.from_bytes(row[IDENTITY_BYTES:], sys.byteorder), row[:IDENTITY_BYTES]


def _key(table: HashTable, cookie: int, address: bytes, port: bytes) -> bytes:
    key = np.zeros(1, table.spec.key.dtype)
    key["cookie"] = cookie
    key["addr"]["w"] = np.frombuffer(address, np.uint32)
    key["port"] = np.frombuffer(port, np.uint16)
    return key.tobytes()
