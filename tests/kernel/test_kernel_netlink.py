"""Reading a namespace's interfaces and following their changes."""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from ebpf.kernel import netlink
from ebpf.kernel.netlink import Changes, Watch
from lbctl.agent.uplinks import pod_interfaces, uplinks
from tests.kernel.support.programs import Space, ip, unique

pytestmark = pytest.mark.kernel


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space(unique("netlink"))
    yield made
    made.close()


@pytest.fixture
def pod() -> Iterator[str]:
    name = unique("pod")
    ip("netns", "add", name)
    yield name
    ip("netns", "delete", name)


@pytest.fixture
def watch(space: Space) -> Iterator[Watch]:
    made = space.run(Watch)
    yield made
    made.close()


def until(watch: Watch, wanted: Callable[[Changes], bool]) -> Changes:
    """The first batch that has what is wanted; fails if none comes within 10 s."""
    for _ in range(100):
        readable, _, _ = select.select([watch], [], [], 10)
        assert readable, "no change was reported"
        changes = watch.read()
        if wanted(changes):
            return changes
    raise AssertionError("the change never came")


def test_what_a_namespace_looks_like(space: Space, pod: str) -> None:
    space.ip("link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", pod)
    space.ip("link", "add", "cni0", "type", "bridge")
    space.ip("link", "set", "pod0", "master", "cni0", "up")
    space.ip("address", "add", "192.0.2.7/24", "dev", "left")
    space.ip("address", "add", "2001:db8::7/64", "dev", "left", "nodad")
    space.ip("route", "add", "default", "via", "192.0.2.1")
    space.ip("route", "add", "default", "via", "2001:db8::1")
    # Neither a table of its own nor a blackhole is a way out.
    space.ip("route", "add", "default", "dev", "right", "table", "77")
    space.ip("route", "add", "blackhole", "default", "metric", "9000")
    found = space.run(netlink.read_network)
    by_name = {link.ifname: link for link in found.links}
    left, pod0 = by_name["left"], by_name["pod0"]
    assert by_name["lo"].loopback
    assert (left.kind, left.up, left.operstate) == ("veth", True, "up")
    assert left.peer == by_name["right"].ifindex
    assert left.peer_netns is None
    assert pod0.peer_netns is not None
    assert pod0.master == by_name["cni0"].ifindex
    theirs = [address for address in found.addresses if address.ifindex == left.ifindex]
    assert {(one.address, one.prefixlen, one.scope) for one in theirs} == {
        (ipaddress.ip_address("192.0.2.7"), 24, 0),
        (ipaddress.ip_address("2001:db8::7"), 64, 0),
    }
    assert {(r.ifindex, r.family) for r in found.default_routes} == {
        (left.ifindex, 4),
        (left.ifindex, 6),
    }
    outward = uplinks(found.links, found.default_routes, found.addresses)
    assert outward == {left.ifindex}
    assert pod_interfaces(found.links, outward) == [pod0]


def test_several_default_routes_in_one(space: Space) -> None:
    space.ip("address", "add", "192.0.2.7/24", "dev", "left")
    space.ip("address", "add", "198.51.100.7/24", "dev", "right")
    hops = ["nexthop", "via", "192.0.2.1", "nexthop", "via", "198.51.100.1"]
    space.ip("route", "add", "default", *hops)
    found = space.run(netlink.read_network)
    assert {route.ifindex for route in found.default_routes} == {
        space.index("left"),
        space.index("right"),
    }


def test_nothing_new_is_an_empty_batch(watch: Watch) -> None:
    assert watch.read() == Changes((), frozenset(), False, False, False)


def test_an_interface_that_comes_is_described(space: Space, pod: str, watch: Watch) -> None:
    space.ip("link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", pod)
    changes = until(watch, lambda c: any(link.ifname == "pod0" for link in c.links))
    (link,) = (link for link in changes.links if link.ifname == "pod0")
    assert (link.kind, link.ifindex) == ("veth", space.index("pod0"))
    assert link.peer_netns is not None
    assert pod_interfaces(changes.links, ()) == [link]


def test_an_interface_that_goes_is_gone(space: Space, watch: Watch) -> None:
    index = space.index("left")
    space.ip("link", "delete", "left")
    changes = until(watch, lambda c: index in c.gone)
    assert index not in {link.ifindex for link in changes.links}


def test_a_port_that_joins_a_bridge_is_reported_whole(space: Space, watch: Watch) -> None:
    space.ip("link", "add", "cni0", "type", "bridge")
    space.ip("link", "set", "left", "master", "cni0")
    master = space.index("cni0")
    changes = until(watch, lambda c: any(link.master == master for link in c.links))
    assert [link.kind for link in changes.links if link.master == master] == ["veth"]


def test_leaving_a_bridge_is_not_leaving_the_node(space: Space, watch: Watch) -> None:
    """The kernel reports it as a deletion, in the bridge's own family."""
    space.ip("link", "add", "cni0", "type", "bridge")
    space.ip("link", "set", "left", "master", "cni0")
    space.ip("link", "set", "left", "nomaster")
    index = space.index("left")
    seen: list[Changes] = []

    def last(changes: Changes) -> bool:
        seen.append(changes)
        return any(link.ifindex == index and not link.master for link in changes.links)

    until(watch, last)
    assert not any(index in changes.gone for changes in seen)


def test_addresses_and_default_routes_are_told_apart(space: Space, watch: Watch) -> None:
    space.ip("address", "add", "192.0.2.7/24", "dev", "left")
    changes = until(watch, lambda c: c.addresses)
    assert not changes.routes
    space.ip("route", "add", "default", "via", "192.0.2.1")
    assert until(watch, lambda c: c.routes).routes


def test_dropped_messages_are_noticed(space: Space, watch: Watch) -> None:
    with socket.socket(fileno=os.dup(watch.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    commands = "\n".join(
        f"address {verb} 192.0.2.7/24 dev left" for _ in range(200) for verb in ("add", "del")
    )
    subprocess.run(
        ["ip", "-n", space.name, "-batch", "-"], input=commands, text=True, check=True, timeout=60
    )
    assert until(watch, lambda c: c.lost).lost
    assert not watch.read().lost
