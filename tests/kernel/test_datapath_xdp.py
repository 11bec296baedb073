"""At the driver: what XDP does is what TC would have done; all else goes up as it came."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernel.support import checks, dsr, model, packets
from tests.kernel.support.driver import (
    BACKENDS,
    CLIENTS,
    HOPS,
    INGRESS,
    KEEPS,
    LINK,
    MACS,
    MTU,
    UNKNOWN_HOP,
    UNROUTED,
    XDP_DROP,
    XDP_PASS,
    XDP_REDIRECT,
    DriverNode,
    Tables,
    both_ways,
    driver_node,
    patched,
    unfinished,
)
from tests.kernel.support.packets import PLAIN, Shape
from tests.kernel.support.uplink import NODE_PORT, OUTSIDE, REMOTE, Passage, node_port
from tests.kernel.support.world import NODE, beat

pytestmark = pytest.mark.kernel
__all__ = ["driver_node"]
EACH = pytest.mark.parametrize("shape", [*PLAIN, Shape(4, "udp", zero=True)], ids=str)


def opened(node: DriverNode, shape: Shape, address: str = "") -> Passage:
    """A conversation in its middle."""
    node_port(node.world, shape)
    made = node.passage(shape, address)
    made.open()
    return made


def both(passage: Passage, size: int = 20) -> list[bytes]:
    """A packet each way."""
    return [passage.request("A", b"q" * size), passage.reply("PA", b"a" * size)]


def assert_equal_to_tc(node: DriverNode, frame: bytes, sums: bool = True) -> bytes:
    """The driver's program sends it on, as TC would have: the same packet, the same tables after
    it. Returns what leaves; its sums are right."""
    got, expected, differing = both_ways(node, frame)
    assert got.verdict == expected.verdict == XDP_REDIRECT
    end = model.parse(got.frame).end
    assert got.frame[LINK:end] == expected.frame[LINK:]
    assert got.reasons == expected.reasons
    assert differing == []
    if sums:
        checks.assert_sums(got.frame)
    return got.frame


def assert_handed_up(node: DriverNode, frame: bytes) -> None:
    """As it came, and nothing was written anywhere."""
    before = Tables(node.world)
    got = node.by_driver(frame)
    assert got.verdict == XDP_PASS
    assert got.frame == frame
    assert got.reasons == {}
    assert before.differing() == []


@EACH
def test_both_directions_of_a_flow_are_sent_on_by_the_driver(
    driver_node: DriverNode, shape: Shape
) -> None:
    passage = opened(driver_node, shape)
    for size in (0, 1, 2, 3, 1000):
        request, reply = both(passage, size)
        for frame, device in ((request, BACKENDS), (reply, CLIENTS)):
            out = checks.parsed(assert_equal_to_tc(driver_node, frame))
            assert (out.src, out.dst) == (MACS[device], HOPS[device])


@EACH
def test_padding_is_counted_as_tc_counts_it(driver_node: DriverNode, shape: Shape) -> None:
    passage = opened(driver_node, shape)
    for frame in both(passage, 0):
        assert_equal_to_tc(driver_node, frame.ljust(100, b"\0"))


@EACH
def test_what_is_not_certain_goes_up(driver_node: DriverNode, shape: Shape) -> None:
    """Each in both directions."""
    passage = opened(driver_node, shape)
    node_mac, other = b"\0" * 6, b"\2\0\0\0\0\x77"
    for frame in both(passage):
        at = model.parse(frame)
        lifetime = at.network + (8 if at.family == 4 else 7)
        for changed in (
            other + frame[6:],  # for another machine
            b"\xff" * 6 + frame[6:],
            frame[:12] + b"\x81\x00\x00\x05" + frame[12:],  # of a VLAN
            patched(frame, lifetime, b"\1"),
            patched(frame, lifetime, b"\0"),
            frame[:-1],  # says that it is longer
            unfinished(frame),
        ):
            if changed != frame:
                assert_handed_up(driver_node, changed)
        if shape.family == 4:
            assert_handed_up(driver_node, patched(frame, at.network + 10, b"\x12\x34", False))
            assert_handed_up(driver_node, patched(frame, at.network + 6, b"\x20\x00"))
            assert_handed_up(driver_node, patched(frame, at.network + 6, b"\x00\x10"))
        assert frame[:6] == node_mac


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("flags", ["S", "SA", "FA", "R", "RA", "F"])
def test_tcp_that_changes_a_flow_goes_up(driver_node: DriverNode, family: int, flags: str) -> None:
    passage = opened(driver_node, Shape(family, "tcp"))
    for frame in (passage.request(flags), passage.reply(flags)):
        assert_handed_up(driver_node, frame)


@pytest.mark.parametrize("family", [4, 6])
def test_tcp_out_of_its_middle_goes_up(driver_node: DriverNode, family: int) -> None:
    node_port(driver_node.world, Shape(family, "tcp"))
    passage = driver_node.passage(Shape(family, "tcp"))
    passage.up("S")
    for frame in both(passage):
        assert_handed_up(driver_node, frame)
    passage.down("SA")
    passage.up("A")
    passage.close("client")
    for frame in both(passage):
        assert_handed_up(driver_node, frame)


@EACH
def test_what_does_not_fit_goes_up(driver_node: DriverNode, shape: Shape) -> None:
    passage = opened(driver_node, shape)
    for more, handle in ((0, assert_equal_to_tc), (1, assert_handed_up)):
        frame = passage.request("A", b"q" * 1000)
        room = MTU - (len(frame) - LINK) + more
        handle(driver_node, passage.request("A", b"q" * (1000 + room)))


@EACH
@pytest.mark.parametrize("client", [UNKNOWN_HOP, UNROUTED], ids=["no neighbour", "no route"])
def test_what_has_no_known_next_hop_goes_up(
    driver_node: DriverNode, shape: Shape, client: dict[int, str]
) -> None:
    passage = opened(driver_node, shape, address=client[shape.family])
    request, reply = both(passage)
    assert_equal_to_tc(driver_node, request)
    assert_handed_up(driver_node, reply)


@EACH
def test_devices_that_cannot_transmit_are_left_to_the_stack(
    driver_node: DriverNode, shape: Shape
) -> None:
    passage = opened(driver_node, shape)
    request, reply = both(passage)
    driver_node.know(driver_node.devices[BACKENDS], MACS[BACKENDS], sends=False)
    assert_handed_up(driver_node, request)
    assert_equal_to_tc(driver_node, reply)
    driver_node.forget(driver_node.devices[CLIENTS])
    assert_handed_up(driver_node, reply)
    driver_node.know(driver_node.devices[BACKENDS], MACS[BACKENDS], sends=True)
    driver_node.forget(INGRESS)
    assert_handed_up(driver_node, request)


@EACH
def test_datagrams_leave_a_backend_that_serves_no_more(
    driver_node: DriverNode, shape: Shape
) -> None:
    service = node_port(driver_node.world, shape)
    passage = driver_node.passage(shape)
    passage.open()
    request, reply = both(passage)
    driver_node.world.stop_serving(service, passage.backend)
    if shape.protocol == "udp":
        assert_handed_up(driver_node, request)
    else:
        assert_equal_to_tc(driver_node, request)
    assert_equal_to_tc(driver_node, reply)


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_new_flows_go_up(driver_node: DriverNode, shape: Shape) -> None:
    node_port(driver_node.world, shape)
    assert_handed_up(driver_node, driver_node.passage(shape).request("S"))


@pytest.mark.parametrize("shape", PLAIN, ids=str)
@pytest.mark.parametrize("flags", ["S", "A"])
def test_unallocated_addresses_are_dropped(
    driver_node: DriverNode, shape: Shape, flags: str
) -> None:
    address = {4: "10.96.3.4", 6: "fd00:96::34"}[shape.family]
    place = (OUTSIDE[shape.family], 40000, address, 80)
    frame = packets.frame(shape, *place, b"x", flags=flags)
    expected, got = driver_node.by_tc(frame), driver_node.by_driver(frame)
    assert got == expected
    assert got.verdict == XDP_DROP
    assert got.reasons == {"unallocated": 1}
    assert driver_node.by_driver(b"\2" * 6 + frame[6:]).verdict == XDP_PASS  # another machine's
    driver_node.world.configure(events_until=beat() + 1000)  # somebody wants to hear of it
    assert_handed_up(driver_node, frame)
    driver_node.world.configure(events_until=0)
    driver_node.world.configure(flags=driver_node.world.flag("CONFIG_PASS_MIDSTREAM"))
    assert_handed_up(driver_node, frame)


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_clients_outside_the_source_ranges_are_dropped(
    driver_node: DriverNode, shape: Shape
) -> None:
    world, address = driver_node.world, NODE[shape.family]
    service = node_port(world, shape)
    flags = world.flag("FRONTEND_EXTERNAL_IP") | world.flag("FRONTEND_SOURCE_RANGES")
    world._put_frontend(address, NODE_PORT, service.protocol, service.id, flags)
    frame = driver_node.passage(shape).request("S")
    expected, got = driver_node.by_tc(frame), driver_node.by_driver(frame)
    assert got == expected
    assert got.verdict == XDP_DROP
    assert got.reasons == {"source_range": 1}
    if shape.protocol == "tcp":
        assert_handed_up(driver_node, driver_node.passage(shape).request("A"))


# Flows that go to their endpoints whole


class Whole:
    """A client's side of such a conversation, which TC has opened."""

    def __init__(
        self, node: DriverNode, shape: Shape, called: dsr.Called = dsr.balancer, form: str = "udp"
    ) -> None:
        dsr.serve_whole(node.world, shape, form)
        self._node, self._shape, self._to = node, shape, called(shape)
        for flags in ("S", "A"):
            frame = self.packet(0, flags)
            assert node.by_tc(frame).verdict == XDP_REDIRECT

    def packet(self, size: int = 20, flags: str = "PA") -> bytes:
        seq = 1000 + ("S" not in flags)
        return dsr.call(self._shape, flags, b"q" * size, to=self._to, seq=seq)

    def is_sent_on(self, frame: bytes) -> bytes:
        """As TC does it. IPv6's outer header has no sum (RFC 6936)."""
        out = assert_equal_to_tc(self._node, frame, sums=self._shape.family == 4)
        outer, _, inner = dsr.outer_of(out, self._shape.family)
        assert (outer.src, outer.dst) == (NODE[self._shape.family], REMOTE[self._shape.family][0])
        assert inner == frame[LINK:]
        return out


@dsr.FORMS
@pytest.mark.parametrize("called", [dsr.balancer, dsr.node_port])
@EACH
def test_what_goes_whole_gets_its_outer_header_at_the_driver(
    driver_node: DriverNode, shape: Shape, called: dsr.Called, form: str
) -> None:
    whole = Whole(driver_node, shape, called, form)
    for size in (0, 1, 2, 3, 1000):
        out = whole.is_sent_on(whole.packet(size))
        seen = checks.parsed(out)
        assert (seen.src, seen.dst) == (MACS[BACKENDS], HOPS[BACKENDS])
        assert (dsr.outer_of(out, shape.family)[1] is not None) == (form == "udp")
    whole.is_sent_on(whole.packet(0).ljust(100, b"\0"))


@dsr.FORMS
@EACH
def test_what_is_too_big_with_its_outer_header_goes_up(
    driver_node: DriverNode, shape: Shape, form: str
) -> None:
    whole = Whole(driver_node, shape, form=form)
    room = MTU - (len(whole.packet(0)) - LINK) - dsr.OVERHEAD[form, shape.family]
    for _ in range(2):
        whole.is_sent_on(whole.packet(room))
        assert_handed_up(driver_node, whole.packet(room + 1))


@EACH
def test_what_goes_whole_goes_up_where_it_is_not_certain(
    driver_node: DriverNode, shape: Shape
) -> None:
    node, whole = driver_node, Whole(driver_node, shape)
    frame = whole.packet()
    if unfinished(frame) != frame:
        assert_handed_up(node, unfinished(frame))
    assert_handed_up(node, b"\2" * 6 + frame[6:])  # another machine's
    for flags in ("S", "FA", "R") if shape.protocol == "tcp" else ():
        assert_handed_up(node, whole.packet(0, flags))
    node.world.configure(flags=node.world.flag("CONFIG_MASQUERADE_BY_DEVICE"))
    assert_handed_up(node, frame)
    node.world.configure(flags=0)
    whole.is_sent_on(frame)
    node.know(node.devices[BACKENDS], MACS[BACKENDS], sends=False)
    assert_handed_up(node, frame)


@pytest.mark.parametrize("first", [0, 1], ids=["masqueraded", "whole"])
@EACH
def test_both_kinds_of_flows_to_one_endpoint_share_their_next_hop(
    driver_node: DriverNode, shape: Shape, first: int
) -> None:
    whole = Whole(driver_node, shape)
    request, _ = both(opened(driver_node, shape))
    driver_node.send_on()
    for number in range(4):
        if number % 2 == first:
            assert_equal_to_tc(driver_node, request)
        else:
            whole.is_sent_on(whole.packet())


# What the agent says that drivers may do


@EACH
def test_by_auto_they_send_on_while_the_agent_looks_and_nobody_minds(
    driver_node: DriverNode, shape: Shape
) -> None:
    node, flag = driver_node, driver_node.world.flag
    passage = opened(node, shape)
    request, reply = both(passage)
    auto = flag("XDP_SENDS_ON") | node.flags & flag("XDP_KEEPS_HOPS")
    free = {INGRESS: flag("FAST_FROM")}
    free |= dict.fromkeys(node.devices.values(), flag("FAST_LEAVE"))
    for xdp, beats, devices, handle in (
        (auto, 1000, free, assert_equal_to_tc),
        (auto, -2, free, assert_handed_up),  # the agent looks no more
        (0, 1000, free, assert_handed_up),
        (auto, 1000, free | {INGRESS: flag("FAST_LEAVE")}, assert_handed_up),
        (auto, 1000, {INGRESS: flag("FAST_FROM")}, assert_handed_up),
    ):
        allow(node, devices)
        node.send_on(beats, xdp=xdp)
        for frame in (request, reply):
            handle(node, frame)


def allow(node: DriverNode, devices: dict[int, int]) -> None:
    """What others leave free, by index."""
    table = node.world.hash("fast_devices")
    table.delete_many(table.read_all()[0])
    keys, values = np.array(list(devices), np.uint32), np.array(list(devices.values()), np.uint32)
    table.put_many(keys, values)


@EACH
def test_the_least_mtu_of_all_routes_holds(driver_node: DriverNode, shape: Shape) -> None:
    passage = opened(driver_node, shape)
    for frame in both(passage, 500):
        length = len(frame) - LINK
        driver_node.send_on(fast_mtu=length)
        assert_equal_to_tc(driver_node, frame)
        driver_node.send_on(fast_mtu=length - 1)
        assert_handed_up(driver_node, frame)


@pytest.mark.parametrize("driver_node", [KEEPS], ids=["keeps"], indirect=True)
@EACH
def test_a_hop_is_kept_for_its_epoch(driver_node: DriverNode, shape: Shape) -> None:
    """The kernel forgets the neighbour, which it would have to ask for."""
    node = driver_node
    passage = opened(node, shape)
    request, _ = both(passage)
    assert_equal_to_tc(node, request)
    node.forget_neighbours(BACKENDS)
    assert_equal_to_tc(node, request)
    node.world.configure(fast_until=beat() - 2)
    assert_handed_up(node, request)
    node.world.configure(fast_until=beat() + 1000)
    assert_equal_to_tc(node, request)
    assert_handed_up(node, b"\2" * 6 + request[6:])  # another machine's
    node.send_on()
    assert_handed_up(node, request)
