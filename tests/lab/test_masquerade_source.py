"""The node's address that a backend on another node sees: the one of the way there."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from lbctl.datapath import consts
from lbctl.inspect.opened import open_instance
from lbctl.lab import namespace
from lbctl.lab.cluster import Lab
from lbctl.lab.state import AgentOptions
from tests.lab.support.external import Exposed
from tests.lab.support.labs import TCP, UDP, Responder, ask, client, inside
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab
KINDS = {"tcp": TCP, "udp": UDP}
SERVICE = Exposed("far", 1)
# A second network between the nodes, over which pods are reached.
BACKBONE = (("10.77.0.1", "fd00:77::1"), ("10.77.0.2", "fd00:77::2"))


@pytest.fixture(scope="module", params=["", "route_source"], ids=["by-route", "by-device"])
def lab(make_lab: Callable[..., Lab], request: pytest.FixtureRequest) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch, Responder() as responder:
        patch.setenv("LBCTL_MASK", request.param)
        options = AgentOptions(extra=("--uplink", "eth0", "--uplink", "back0"))
        made = make_lab(f"ms{len(request.param)}", nodes=2, pods=1, options=options)
        build_backbone(made)
        responder.serve(made, ["pod2"])
        SERVICE.publish(made, ["pod2"])
        yield made
        made.down()


def build_backbone(lab: Lab) -> None:
    """Whose nodes take nothing that came by another way than its sender is reached by."""
    first, second = lab.nodes
    link = f"link add back0 type veth peer name back0 netns {second.namespace}"
    inside(lab, first.name, lambda: namespace.ip_batch([link]))
    for node, other, own, peer in (
        (first, second, BACKBONE[0], BACKBONE[1]),
        (second, first, BACKBONE[1], BACKBONE[0]),
    ):
        commands = [
            f"address add {own[0]}/24 dev back0",
            f"address add {own[1]}/64 dev back0 nodad",
            "link set back0 up",
            *(
                f"route replace {cidr} via {via} dev back0"
                for cidr, via in zip(other.pod_cidrs, peer, strict=True)
            ),
        ]
        inside(lab, node.name, partial(namespace.ip_batch, commands))
        for device in ("all", "eth0", "back0"):
            strict = ["sysctl", "-q", f"net.ipv4.conf.{device}.rp_filter=1"]
            lab.exec(node.name, strict, check=True)


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["node1", "ingress", "external"])
def test_the_address_of_the_way_to_the_backend(lab: Lab, way: str, kind: str, family: int) -> None:
    address, port = SERVICE.where(lab, way, family)

    def seen() -> str:
        with client(lab, "outside", family, KINDS[kind]) as sock:
            sock.settimeout(1)
            try:
                sock.connect((address, port))
                return ask(sock, "whom do you see?").client
            except TimeoutError:
                return ""

    # The agent hears of an address and of a device within a second or so.
    wait_until(lambda: seen() == BACKBONE[0][family], 15, seen)
    for _ in range(5):
        assert seen() == BACKBONE[0][family]


def test_the_way_is_found_as_this_kernel_is_made_to_look(
    lab: Lab, request: pytest.FixtureRequest
) -> None:
    expected = [inside(lab, "node1", lambda: socket.if_nametoindex("back0"))]
    with open_instance(lab.pin_dir("node1")) as instance:
        flags = int(instance.config.records["flags"][0])

        def devices() -> list[int]:
            found: list[int] = instance.devices.read_all()[0].tolist()
            return found

        wait_until(lambda: devices() == expected, 15, lambda: str(devices()))
    by_device = "by-device" in request.node.name
    assert bool(flags & consts.CONFIG_MASQUERADE_BY_DEVICE) == by_device
