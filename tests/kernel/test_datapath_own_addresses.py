"""ClusterIPs that the node has itself, and addresses that another proxy serves."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.kernel.support import checks, model, packets
from tests.kernel.support.conversation import BACKENDS, CLIENT, SERVICE, serve
from tests.kernel.support.packets import PLAIN, SCTP_SHAPES, TCP_SHAPES, Shape
from tests.kernel.support.programs import Space, unique
from tests.kernel.support.world import Outcome, World

pytestmark = pytest.mark.kernel
EACH = pytest.mark.parametrize("shape", PLAIN, ids=str)
CACHED, ELSE = 53, 9153  # ports of the service: one that the node's cache has too, one it has not
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
UNUSED = {4: "10.96.0.99", 6: "fd00:96::99"}


class OwnNode:
    """A namespace with the service's addresses on its loopback, in which packets are tried."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.space = Space(unique("own"))
        self._sockets = ExitStack()
        self.space.ip("addr", "add", f"{SERVICE[4]}/32", "dev", "lo")
        self.space.ip("addr", "add", f"{SERVICE[6]}/128", "dev", "lo", "nodad")

    def listen(self, shape: Shape, address: str, port: int, mapped: bool = False) -> None:
        """A server's socket; `mapped` as one of IPv6 that speaks IPv4."""
        family = socket.AF_INET6 if mapped else FAMILIES[shape.family]

        def work() -> socket.socket:
            made = self._sockets.enter_context(socket.socket(family, KINDS[shape.protocol]))
            made.bind((address, port))
            if shape.protocol == "tcp":
                made.listen()
            return made

        self.space.run(work)

    def hang_up(self) -> None:
        self._sockets.close()

    def call(self, shape: Shape, port: int, flags: str = "S", hook: str = "from_pod") -> Outcome:
        frame = self.frame(shape, port, flags)
        run: Callable[[bytes], Outcome] = getattr(self.world, hook)
        return self.space.run(lambda: run(frame))

    def frame(self, shape: Shape, port: int, flags: str = "S") -> bytes:
        ends = (CLIENT[shape.family], 40000, SERVICE[shape.family], port)
        return packets.frame(shape, *ends, b"question", flags=flags)

    def close(self) -> None:
        self.hang_up()
        self.space.close()


@pytest.fixture
def node(world: World) -> Iterator[OwnNode]:
    made = OwnNode(world)
    yield made
    made.close()


def share(world: World, shape: Shape) -> None:
    for port in (CACHED, ELSE):
        world.add_service(
            SERVICE[shape.family], port, shape.protocol, BACKENDS[shape.family][:1], shared=True
        )


@pytest.mark.parametrize("hook", ["from_pod", "from_net"])
@EACH
def test_what_the_nodes_own_socket_waits_for_is_its_own(
    node: OwnNode, shape: Shape, hook: str
) -> None:
    share(node.world, shape)
    node.listen(shape, SERVICE[shape.family], CACHED)
    for flags in ("S", "A", "PA", "FA", "R"):
        outcome = node.call(shape, CACHED, flags, hook)
        assert (outcome.verdict, outcome.frame) == (model.PASS, node.frame(shape, CACHED, flags))
        assert outcome.reasons == {"left_to_stack": 1}
    assert node.world.flows() == []
    assert node.call(shape, ELSE, "S", hook).reasons == {"forwarded": 1}


@EACH
def test_without_a_socket_the_service_answers(node: OwnNode, shape: Shape) -> None:
    """And goes on to do so for who has begun, when the cache comes back."""
    share(node.world, shape)
    assert node.call(shape, CACHED).reasons == {"forwarded": 1}
    node.listen(shape, SERVICE[shape.family], CACHED)
    again = node.call(shape, CACHED, "A")
    assert model.tuple_of(again.frame).dst == model.packed(BACKENDS[shape.family][0][0])
    other = packets.frame(shape, CLIENT[shape.family], 40001, SERVICE[shape.family], CACHED)
    assert node.space.run(lambda: node.world.from_pod(other)).reasons == {"left_to_stack": 1}
    node.hang_up()
    other = packets.frame(
        shape, CLIENT[shape.family], 40002, SERVICE[shape.family], CACHED, flags="S"
    )
    assert node.space.run(lambda: node.world.from_pod(other)).reasons == {"forwarded": 1}


@EACH
def test_a_socket_bound_to_all_addresses_is_not_meant(node: OwnNode, shape: Shape) -> None:
    share(node.world, shape)
    node.listen(shape, {4: "0.0.0.0", 6: "::"}[shape.family], CACHED)
    assert node.call(shape, CACHED).reasons == {"forwarded": 1}


@pytest.mark.parametrize("shape", [s for s in PLAIN if s.family == 4], ids=str)
def test_a_socket_of_ipv6_that_speaks_ipv4(node: OwnNode, shape: Shape) -> None:
    share(node.world, shape)
    node.listen(shape, f"::ffff:{SERVICE[4]}", CACHED, mapped=True)
    assert node.call(shape, CACHED).reasons == {"left_to_stack": 1}


@pytest.mark.parametrize("shape", [*PLAIN, *SCTP_SHAPES], ids=str)
def test_ports_that_no_service_has_are_the_nodes(node: OwnNode, shape: Shape) -> None:
    """Health checks and metrics of a cache, and pings: nothing is refused in its name."""
    share(node.world, shape)
    outcome = node.call(shape, 8080)
    assert (outcome.verdict, outcome.frame) == (model.PASS, node.frame(shape, 8080))
    assert outcome.reasons == {"left_to_stack": 1}


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_an_address_that_is_nobodys_but_ours_still_refuses(node: OwnNode, shape: Shape) -> None:
    """A socket there changes nothing: the node does not have the address."""
    serve(node.world, shape, port=ELSE)
    node.listen(shape, SERVICE[shape.family], CACHED)
    outcome = node.call(shape, CACHED)
    assert outcome.reasons == {"unknown_port": 1}
    checks.assert_reset(node.frame(shape, CACHED), outcome.frame)


@pytest.mark.parametrize("hook", ["from_pod", "from_net"])
@pytest.mark.parametrize("flags", ["", "CONFIG_MASQUERADE_ALL", "CONFIG_PASS_MIDSTREAM"])
@pytest.mark.parametrize("shape", [*PLAIN, *SCTP_SHAPES], ids=str)
def test_somebody_elses_address_in_the_service_range(
    world: World, shape: Shape, flags: str, hook: str
) -> None:
    """Whole or broken, mid-stream: untouched, also where a service has it by another name."""
    address = UNUSED[shape.family]
    if flags:
        world.configure(flags=world.flag(flags))
    world.give_away(address)
    later = Shape(shape.family, shape.protocol)
    frames = [
        packets.frame(later, CLIENT[shape.family], 40000, address, port, b"x", flags=kind)
        for port in (80, 61000)
        for kind in ("S", "A", "R")
    ]
    broken = bytearray(frames[0])
    at = model.parse(frames[0]).transport
    broken[at + 12 : at + 13] = b"\x10"  # TCP's data offset
    frames.append(bytes(broken))
    for outer in (False, True):
        if outer:
            world.mark_address(address)
        for frame in frames:
            outcome = getattr(world, hook)(frame)
            assert (outcome.verdict, outcome.frame) == (model.PASS, frame)
    assert world.flows() == []
