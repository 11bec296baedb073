"""Which sockets are to be closed: UDP of what serves no more, TCP of what is dead."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import pytest

from ebpf.errors import LbError, MissingFeature
from ebpf.kernel import sockdiag
from ebpf.kernel.sockdiag import TCP, UDP, Target
from ebpf.layouts import Field, Record
from lbctl.addresses import parse_address
from lbctl.agent.stalesockets import DELAY_SECONDS, StaleSockets
from lbctl.model.records import EndpointSlice, ServiceObjects
from lbctl.reconcile.reconciler import Reconciler
from tests.support.fake_tables import ADDR, FakeHash, FakeTables
from tests.support.reconciling import NODE, objects, update

KEY = Record(
    "socket_key",
    32,
    (
        Field("cookie", 0, 8, 0, "u64"),
        Field("addr", 8, 16, 0, "struct", ADDR.fields),
        Field("port", 24, 2, 0, "u16"),
        Field("pad", 26, 6, 3, "u16"),
    ),
)
PEER = Record(
    "socket_peer",
    24,
    (
        Field("addr", 0, 16, 0, "struct", ADDR.fields),
        Field("port", 16, 2, 0, "u16"),
        Field("proto", 18, 1, 0, "u8"),
        Field("flags", 19, 1, 0, "u8"),
        Field("service", 20, 4, 0, "u32"),
    ),
)
CHOICE = Record("", 4, (Field("", 0, 4, 0, "u32"),))
PORT = (8080).to_bytes(2, "big")
SERVICE = "10.96.0.1"
NOWHERE = bytes(16)


class Tables(FakeTables):
    def __init__(self) -> None:
        super().__init__()
        self.add(FakeHash("socket_peers", KEY, PEER, 64))
        self.add(FakeHash("socket_choices", KEY, CHOICE, 64))

    def connect(
        self, cookie: int, backend: str, service: int, proto: int = 0, direct: bool = False
    ) -> Target:
        """What the programs leave of a socket that was connected through a service; `proto` 0 as an
        earlier version left it, `direct` if it asked the backend by its own address since."""
        return self._remember(cookie, parse_address(backend), service, bytes([proto, direct]))

    def call_last(self, cookie: int, backend: str, service: int) -> None:
        value = parse_address(backend) + PORT + bytes(2) + struct.pack("=I", service)
        self.socket_peers.put(key(cookie, NOWHERE, bytes(2)), value)

    def _remember(self, cookie: int, address: bytes, service: int, kind: bytes) -> Target:
        called = parse_address(SERVICE)
        value = called + (80).to_bytes(2, "big") + kind + struct.pack("=I", service)
        self.socket_peers.put(key(cookie, address, PORT), value)
        self.socket_choices.put(key(cookie, called, (80).to_bytes(2, "big")), bytes(4))
        return Target(cookie, address, PORT)


def key(cookie: int, address: bytes, port: bytes) -> bytes:
    return struct.pack("=Q16s2s6x", cookie, address, port)


class Rig:
    """A reconciler on fake tables, and what would have been closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mode: str = "host") -> None:
        self.tables = Tables()
        self.reconciler = Reconciler(self.tables, NODE)
        self.stale = StaleSockets(self.tables, self.reconciler, mode)
        self.asked: dict[int, set[Target]] = {}
        self.errors: list[LbError] = []
        monkeypatch.setattr(sockdiag, "close_everywhere", self._close)

    def _close(
        self, stale: Mapping[int, Collection[Target]], places: Collection[Path]
    ) -> tuple[dict[int, list[Target]], list[LbError]]:
        self.asked = {protocol: set(targets) for protocol, targets in stale.items()}
        return {p: [] if p == TCP else list(t) for p, t in stale.items()}, self.errors

    def apply(self, *found: ServiceObjects, gone: Collection[str] = ()) -> None:
        self.reconciler.take(update(*found, gone=gone))
        self.reconciler.apply(True)
        self.stale.changed(*self.reconciler.take_touched(), 100.0)

    def look(self) -> tuple[set[Target], set[Target]]:
        """What was closed of UDP and TCP, if it was time to look at all."""
        self.asked = {}
        self.stale.step(100.0 + DELAY_SECONDS)
        self.stale.stop()
        return self.asked.get(UDP, set()), self.asked.get(TCP, set())

    @property
    def service(self) -> int:
        (state,) = self.reconciler.planner.services.values()
        return state.id


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    made = Rig(monkeypatch)
    made.apply(objects("web", SERVICE, ["10.0.0.1", "10.0.0.2"]))
    assert made.stale.due() == 100.0 + DELAY_SECONDS, "an earlier agent may have missed some"
    assert made.look() == (set(), set())
    return made


def terminating(found: ServiceObjects, address: str) -> ServiceObjects:
    """The same with one endpoint, not ready any more, in place of its first."""
    part: EndpointSlice = found.slices[0]
    leaving = msgspec.structs.replace(
        part.endpoints[0], address=parse_address(address), ready=False, terminating=True
    )
    slices = (msgspec.structs.replace(part, endpoints=(leaving, *part.endpoints)),)
    return msgspec.structs.replace(found, slices=slices)


def named(found: ServiceObjects, name: str) -> ServiceObjects:
    """The same with a name for its port."""
    assert found.service is not None
    replace = msgspec.structs.replace
    ports = (replace(found.service.ports[0], name=name),)
    part = found.slices[0]
    slices = (replace(part, ports=(replace(part.ports[0], name=name),)),)
    return ServiceObjects(replace(found.service, ports=ports), slices)


def test_only_sockets_of_what_left_are_closed(rig: Rig) -> None:
    gone = {rig.tables.connect(n, "10.0.0.1", rig.service) for n in (1, 2)}
    rig.tables.connect(3, "10.0.0.2", rig.service)
    rig.tables.call_last(4, "10.0.0.1", rig.service)
    rig.apply(objects("web", SERVICE, ["10.0.0.2"]))
    assert rig.look() == (gone, set())
    assert rig.stale.closed == 2
    left = {struct.unpack_from("=Q", k)[0] for k in rig.tables.socket_peers.entries}
    assert left == {3, 4}
    assert len(rig.tables.socket_choices.entries) == 1


def test_a_change_without_loss_is_no_reason_to_look(rig: Rig) -> None:
    rig.tables.connect(1, "10.0.0.1", rig.service)
    rig.apply(objects("web", SERVICE, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]))
    assert rig.stale.due() is None


def test_each_socket_is_looked_for_as_what_it_is(rig: Rig) -> None:
    datagrams = rig.tables.connect(1, "10.0.0.1", rig.service, UDP)
    stream = rig.tables.connect(2, "10.0.0.1", rig.service, TCP)
    remaining = objects("web", SERVICE, ["10.0.0.2"])
    rig.apply(terminating(remaining, "10.0.0.1"))
    assert rig.look() == ({datagrams}, set())
    rig.apply(remaining)
    assert rig.look() == (set(), {stream})


def test_what_asked_the_endpoint_by_its_own_address_is_left_alone(rig: Rig) -> None:
    rig.tables.connect(1, "10.0.0.1", rig.service, UDP, direct=True)
    rig.apply(objects("web", SERVICE, ["10.0.0.2"]))
    assert rig.look() == (set(), set())


def test_tcp_waits_until_the_endpoint_is_known_to_be_dead(rig: Rig) -> None:
    stream = rig.tables.connect(1, "10.0.0.1", rig.service, TCP)
    remaining = objects("web", SERVICE, ["10.0.0.2"])
    rig.apply(terminating(remaining, "10.0.0.1"))
    assert rig.look() == (set(), set()), "it finishes what it does"
    rig.apply(remaining)  # nothing stops serving by this change
    assert rig.look() == (set(), {stream})


def test_an_endpoint_that_only_left_a_list_lives(rig: Rig) -> None:
    """Another selector, or another slice a moment later."""
    stream = rig.tables.connect(1, "10.0.0.1", rig.service, TCP)
    remaining = objects("web", SERVICE, ["10.0.0.2"])
    rig.apply(remaining)
    assert rig.look() == (set(), set())
    rig.apply(objects("blue", "10.96.0.2", ["10.0.0.1"]))
    # It ends later, as another service's endpoint.
    rig.apply(terminating(objects("blue", "10.96.0.2", ["10.0.0.9"]), "10.0.0.1"))
    assert rig.look() == (set(), set())
    rig.apply(objects("blue", "10.96.0.2", ["10.0.0.9"]))
    assert rig.look() == (set(), {stream})


def test_an_endpoint_that_another_service_has_is_alive(rig: Rig) -> None:
    stream = rig.tables.connect(1, "10.0.0.1", rig.service, TCP)
    other = objects("other", "10.96.0.2", ["10.0.0.1"])
    rig.apply(other)
    remaining = objects("web", SERVICE, ["10.0.0.2"])
    rig.apply(terminating(remaining, "10.0.0.1"))
    rig.apply(remaining)
    assert rig.look() == (set(), set())
    rig.apply(gone=["other"])
    assert rig.look() == (set(), {stream})


def test_one_that_came_back_is_alive(rig: Rig) -> None:
    rig.tables.connect(1, "10.0.0.1", rig.service, TCP)
    remaining = objects("web", SERVICE, ["10.0.0.2"])
    rig.apply(terminating(remaining, "10.0.0.1"))
    rig.apply(objects("web", SERVICE, ["10.0.0.1", "10.0.0.2"]))
    rig.apply(remaining)
    assert rig.look() == (set(), set())


def test_a_service_that_is_gone_keeps_its_tcp_connections(rig: Rig) -> None:
    leaving = rig.tables.connect(1, "10.0.0.1", rig.service)
    rig.apply(terminating(objects("web", SERVICE, ["10.0.0.2"]), "10.0.0.1"))
    assert rig.look() == ({leaving}, set())
    rig.tables.connect(1, "10.0.0.1", rig.service)
    rig.apply(gone=["web"])
    assert rig.look() == ({leaving}, set()), "whether its pod has ended, nobody says"


@pytest.mark.parametrize("port", ["", "http"])
def test_the_owner_is_found_by_the_name_of_its_port(
    monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    rig = Rig(monkeypatch)
    rig.apply(named(objects("web", SERVICE, ["10.0.0.1"]), port))
    leaving = rig.tables.connect(1, "10.0.0.1", rig.service)
    rig.apply(named(terminating(objects("web", SERVICE, ["10.0.0.2"]), "10.0.0.1"), port))
    rig.apply(named(objects("web", SERVICE, ["10.0.0.2"]), port))
    assert rig.look() == ({leaving}, {leaving})


def test_nothing_is_looked_at_with_the_hooks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, "off")
    rig.apply(objects("web", SERVICE, ["10.0.0.1"]))
    rig.apply(objects("web", SERVICE, []))
    assert rig.stale.due() is None


def test_what_the_kernel_cannot_do_is_told(rig: Rig) -> None:
    rig.errors = [MissingFeature("this kernel does not close UDP sockets", "They time out.")]
    rig.tables.connect(1, "10.0.0.1", rig.service)
    rig.apply(objects("web", SERVICE, ["10.0.0.2"]))
    rig.look()
    assert rig.stale.problem == "this kernel does not close UDP sockets. They time out."
