"""The node's own addresses: node ports among ports of the node's own processes, which stay theirs,
and addresses and interfaces that come and go."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from lbctl.lab import namespace
from lbctl.lab.cluster import Lab
from lbctl.lab.state import AgentOptions
from tests.lab.support.external import SHORT, Exposed
from tests.lab.support.labs import FAMILIES, TCP, UDP, Responder, ask, client, inside
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

KINDS = {"tcp": TCP, "udp": UDP}
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
SSH = 22
CLOSED = 24
SERVICE = Exposed("beside-ssh", 1)
CONFIG = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
nodePortAddresses: ["0.0.0.0/0", "::/0"]
"""
SECOND = ("172.18.0.77/24", "fd00:18::77/64")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    config.write_text(CONFIG)
    made = make_lab("eo", nodes=2, pods=1, options=AgentOptions(extra=("--config", str(config))))
    # A node limits the errors it sends to one a second and client: not what is tested here.
    for limit in ("ipv4.icmp_ratelimit", "ipv6.icmp.ratelimit"):
        made.exec("node1", ["sysctl", "-q", f"net.{limit}=0"], check=True)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        responder.serve(made, ["node1"], SSH)
        SERVICE.publish(made, ["pod2"])
        yield made
    made.down()


def answered(lab: Lab, member: str, address: str, port: int, kind: str = "tcp") -> str:
    """Who answers there, or why nobody does."""
    with client(lab, member, int(":" in address), KINDS[kind]) as sock:
        sock.settimeout(SHORT)
        try:
            sock.connect((address, port))
            return ask(sock, "who is it?").server
        except TimeoutError:
            return "nobody"
        except ConnectionRefusedError:
            return "refused"


@FAMILY
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("member", ["outside", "pod1", "pod2"])
def test_the_nodes_own_ports_stay_its_own(lab: Lab, member: str, family: int, kind: str) -> None:
    address = lab.find("node1").addresses[family]
    got = {
        port: answered(lab, member, address, port, kind)
        for port in (SSH, CLOSED, SERVICE.node_port, SERVICE.node_port + 1)
    }
    assert got == {
        SSH: "node1",
        CLOSED: "refused",
        SERVICE.node_port: "pod2",
        SERVICE.node_port + 1: "refused",
    }


@FAMILY
def test_a_closed_port_is_refused_by_the_kernel_itself(lab: Lab, family: int) -> None:
    """Its own counter moves, which no answer of ours does."""
    address = lab.find("node1").addresses[family]
    before = resets_sent(lab)
    assert answered(lab, "outside", address, CLOSED) == "refused"
    assert answered(lab, "outside", address, 62000) == "refused"  # one of those we masquerade with
    assert resets_sent(lab) == before + 2


def resets_sent(lab: Lab) -> int:
    names, values = (
        line.split()
        for line in lab.exec("node1", ["cat", "/proc/net/snmp"], check=True).stdout.splitlines()
        if line.startswith("Tcp:")
    )
    return int(values[names.index("OutRsts")])


@FAMILY
def test_the_node_can_be_pinged(lab: Lab, family: int) -> None:
    address = lab.find("node1").addresses[family]
    protocol = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)[family]
    # Type, code, checksum (the kernel fills in ICMPv6's), identifier, number.
    echo = (bytes.fromhex("0800f7fd00010001"), bytes.fromhex("8000000000010001"))[family]
    for member in ("outside", "pod1", "pod2"):
        sock = inside(
            lab, member, lambda: socket.socket(FAMILIES[family], socket.SOCK_RAW, protocol)
        )
        with sock:
            sock.settimeout(5)
            sock.sendto(echo, (address, 0))
            while True:  # neighbour discovery is heard as well
                data, sender = sock.recvfrom(100)
                if sender[0] == address and data[(20, 0)[family]] == (0, 129)[family]:
                    break


@FAMILY
def test_fragments_for_the_node_itself_arrive(lab: Lab, family: int) -> None:
    address = lab.find("node1").addresses[family]
    with client(lab, "outside", family, UDP) as sock:
        sock.connect((address, SSH))
        assert ask(sock, "x" * 5000).server == "node1"


@FAMILY
def test_the_nodes_own_calls_go_out_and_are_answered(lab: Lab, family: int) -> None:
    for kind in KINDS:
        where = lab.find("pod2").addresses[family]
        assert answered(lab, "node1", where, 7000, kind) == "pod2"


@contextlib.contextmanager
def added(lab: Lab, member: str, link: str, address: str) -> Iterator[None]:
    nodad = ["nodad"] if ":" in address else []
    lab.exec(member, ["ip", "address", "add", address, "dev", link, *nodad], check=True)
    try:
        yield
    finally:
        lab.exec(member, ["ip", "address", "del", address, "dev", link], check=True)


@FAMILY
def test_node_ports_follow_the_nodes_addresses(lab: Lab, family: int) -> None:
    address = SECOND[family].split("/")[0]
    port = SERVICE.node_port
    with added(lab, "node1", "eth0", SECOND[family]):
        wait_until(lambda: answered(lab, "outside", address, port) == "pod2")
        assert answered(lab, "pod1", address, port, "udp") == "pod2"
        assert answered(lab, "outside", address, CLOSED) == "refused"
        with client(lab, "outside", family, TCP) as sock:
            sock.connect((address, port))
            # Of several on a device the kernel takes IPv4's first and IPv6's newest.
            taken = (lab.find("node1").addresses[0], address)[family]
            assert ask(sock, "whom do you see?").client == taken
    wait_until(lambda: answered(lab, "pod1", address, port) != "pod2")


@FAMILY
def test_an_uplink_that_appears_is_served(lab: Lab, family: int) -> None:
    """A second network card with a default route."""
    network = ("203.0.113.{}", "2001:db8:113::{}")[family]
    here, there = network.format(1), network.format(2)
    length = (24, 64)[family]
    nodad = ["nodad"] if family else []
    inside(
        lab,
        "node1",
        lambda: namespace.ip_batch(
            [f"link add second type veth peer name second netns {lab.outside.namespace}"]
        ),
    )
    try:
        for member, address in (("node1", here), ("outside", there)):
            add = ["ip", "address", "add", f"{address}/{length}", "dev", "second", *nodad]
            lab.exec(member, add, check=True)
            lab.exec(member, ["ip", "link", "set", "second", "up"], check=True)
        via = ["ip", "route", "add", "default", "via", there, "dev", "second", "metric", "5000"]
        lab.exec("node1", via, check=True)
        port = SERVICE.node_port
        wait_until(lambda: answered(lab, "outside", here, port) == "pod2")
        assert answered(lab, "outside", here, port, "udp") == "pod2"
        assert answered(lab, "outside", here, SSH) == "refused"  # bound to the other address
    finally:
        lab.exec("node1", ["ip", "link", "delete", "second"], check=True)
