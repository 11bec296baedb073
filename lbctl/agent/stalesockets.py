"""Sockets that are connected to an endpoint that is gone are closed, so that their owners connect
anew.

UDP as soon as the endpoint stopped serving; TCP only once the endpoint is known to be dead
(lbctl/agent/departed.py): what a pod does it can finish, and one that only left a list goes on.
"""

import sys
from collections.abc import Collection, Iterator
from typing import Protocol

import numpy as np
import structlog

from ebpf.errors import LbError
from ebpf.kernel import sockdiag
from ebpf.kernel.sockdiag import Target
from lbctl.agent.departed import Departed, services_naming
from lbctl.agent.sockets import ALL, OFF
from lbctl.datapath import consts
from lbctl.datapath.flows import take
from lbctl.datapath.records import ADDRESS_BYTES, IDENTITY_BYTES, address_columns, rows_as_bytes
from lbctl.datapath.regions import ArrayContents
from lbctl.datapath.tables import HashTable, Records, Tables
from lbctl.errands import Errand
from lbctl.model.records import ObjectKey
from lbctl.plan.planner import Planner
from lbctl.plan.sets import HeldSets
from lbctl.reconcile.known import Known

# From a change to the look at sockets: several changes are one, and connects under way are done.
DELAY_SECONDS = 0.25
# Of MPTCP sockets is noted what no cookie is (mptcp_owner in bpf_src/socket.h): they are not found.
_NO_COOKIE = np.uint64(1 << 63)
_LEAVES = 5.0
CLOSING_SECONDS = 60.0  # the kernel answers at once; there may be very many namespaces


class Programmed(Protocol):
    """What is asked of the reconciler."""

    planner: Planner
    known: Known


class StaleSockets:
    """Decides in the agent's thread, closes in another."""

    def __init__(
        self, tables: Tables, programmed: Programmed, mode: str, errand: Errand | None = None
    ) -> None:
        """`mode` as in `SocketHooks`. `errand` is who closes, in CLOSING_SECONDS at most."""
        self._tables = tables
        self._programmed = programmed
        self._mode = mode
        self._departed = Departed()
        self._elsewhere = False  # pods' sockets are among those to be closed
        self._open = False  # some sockets are connected to what does not serve any more
        self._due: float | None = None
        self._waiting: frozenset[ObjectKey] = frozenset()
        # A thread of its own each time: one that has entered another namespace is never reused.
        self._errand = errand or Errand("stale sockets", CLOSING_SECONDS)
        self._log = structlog.get_logger()
        self.closed = 0  # since the start of the agent
        self.problem = ""

    def changed(self, keys: Collection[ObjectKey], left: bool, now: float) -> None:
        """Services were written; `left`: some endpoint stopped serving."""
        if self._mode == OFF:
            return
        began = self._departed.take((key, self._programmed.known.objects.get(key)) for key in keys)
        if self._due is not None:
            return
        if left or (began and self._open) or not self._waiting.isdisjoint(keys):
            self._due = now + DELAY_SECONDS

    def due(self) -> float | None:
        """When `step` has something to do, on the monotonic clock."""
        return self._due

    def step(self, now: float) -> None:
        """Look for sockets to close, if it is time."""
        if self._due is None or now < self._due:
            return
        if self._errand.busy:
            self._due = now + DELAY_SECONDS
            return
        self._due = None
        stale = self._find()
        if any(stale.values()):
            self._errand.send(lambda: self._close(stale))

    def stop(self) -> None:
        """Wait a moment for what is under way: the next agent would do it again."""
        self._errand.join(_LEAVES)

    def _find(self) -> dict[int, list[Target]]:
        """By protocol, what must not stay connected."""
        keys, values = self._peers()
        places = rows_as_bytes(keys)[:, address_columns(keys.dtype, "addr", "port")]
        services = values["service"]
        serving = _serving(
            self._tables, self._programmed.planner, set(np.unique(services).tolist())
        )
        # Many sockets have the same peer: each is judged once.
        named = np.column_stack([places, rows_as_bytes(np.ascontiguousarray(services))])
        peers, which = np.unique(named.view(f"V{named.shape[1]}").ravel(), return_inverse=True)
        stale = [
            (index, row)
            for index, (service, row) in enumerate(_rows(peers))
            # No row: what an unconnected socket called last.
            if any(row) and row not in serving.get(service, ())
        ]
        dead = self._dead({row[:ADDRESS_BYTES] for _, row in stale})
        found: dict[int, list[Target]] = {sockdiag.UDP: [], sockdiag.TCP: []}
        for index, row in stale:
            address, port = row[:ADDRESS_BYTES], row[ADDRESS_BYTES:]
            for protocol, other in ((sockdiag.UDP, sockdiag.TCP), (sockdiag.TCP, sockdiag.UDP)):
                if protocol == sockdiag.UDP or address in dead:
                    of_it = (which == index) & (values["proto"] != other)
                    cookies = keys["cookie"][of_it].tolist()
                    found[protocol] += [Target(cookie, address, port) for cookie in cookies]
        self._open = bool(stale)
        indices = [index for index, _ in stale]
        of_pods = values["flags"][np.isin(which, indices)] & consts.PEER_OF_POD
        self._elsewhere = bool(of_pods.any())
        return found

    def _peers(self) -> tuple[Records, Records]:
        """What is noted of sockets that called services. What one asked by the endpoint's own
        address is its own affair."""
        keys, values = self._tables.socket_peers.read_all()
        through = (values["flags"] & consts.PEER_DIRECT == 0) & (keys["cookie"] < _NO_COOKIE)
        return take(keys, through), take(values, through)

    def _dead(self, addresses: Collection[bytes]) -> set[bytes]:
        """Which of these are known to be; notes which services to watch for the others."""
        leaving = self._departed.leaving(addresses)
        named = services_naming(leaving, self._programmed.known.objects.items())
        self._waiting = frozenset(key for keys in named.values() for key in keys)
        return leaving - named.keys()

    def _close(self, stale: dict[int, list[Target]]) -> None:
        # Whatever the mode, pods' sockets may be among them: while there is no agent, the hooks
        # serve them.
        others = sockdiag.other_namespaces() if self._elsewhere or self._mode == ALL else []
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
                self._log.warning("cannot remove the entry of a closed socket", error=error.message)


def _serving(tables: Tables, planner: Planner, services: Collection[int]) -> dict[int, set[bytes]]:
    """By service, the addresses and ports that sockets may be connected to."""
    contents = ArrayContents(
        tables.slots.records, tables.backends.records, tables.hash_tables.records
    )
    every = (*planner.retired.values(), *planner.services.values())
    states = [state for state in every if state.id in services]
    sets = HeldSets.read(contents, [(state.cluster, state.local) for state in states])
    return {
        state.id: {
            identity for identity, (_, flags) in one.held.items() if flags & consts.BACKEND_SERVING
        }
        for state, one in zip(states, sets, strict=True)
    }


def _rows(peers: Records) -> Iterator[tuple[int, bytes]]:
    """Service id, and address with port, of each row of these bytes and the id."""
    for row in peers.tolist():
        yield int.from_bytes(row[IDENTITY_BYTES:], sys.byteorder), row[:IDENTITY_BYTES]


def _key(table: HashTable, cookie: int, address: bytes, port: bytes) -> bytes:
    key = np.zeros(1, table.spec.key.dtype)
    key["cookie"] = cookie
    key["addr"]["w"] = np.frombuffer(address, np.uint32)
    key["port"] = np.frombuffer(port, np.uint16)
    return key.tobytes()
