"""Processes of the node ask with their sockets: connect() of UDP as a question, a service and its
endpoint from one socket, node ports on localhost."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebpf.kernel import optional
from lbctl import status
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from lbctl.lab.state import AgentOptions
from tests.lab.support.labs import PORT, TARGET, TCP, UDP, Responder, addresses, endpoint, publish
from tests.lab.support.remote_sockets import RemoteProcess, process_in
from tests.lab.support.socket_entries import both_families, entries, error_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

NODE_PORT = 30090
LOOPBACK = ("127.0.0.1", "::1")
KINDS = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
# An IPv4 socket, an IPv6 one, and an IPv6 one that speaks IPv4.
SPEECH = pytest.mark.parametrize(
    ("family", "mapped"), [(0, False), (1, False), (0, True)], ids=["ipv4", "ipv6", "mapped"]
)
FILE = """
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
nodePortAddresses: [primary, localhost]
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    config = tmp_path_factory.mktemp("localhost") / "config.yaml"
    config.write_text(FILE)
    made = make_lab("q", nodes=1, pods=2, options=options(config))
    with Responder() as responder:
        responder.serve(made, ["node1", "pod1", "pod2"])
        publish(made, {"one": ["pod1"], "other": ["pod1"], "none": []})
        ports = [
            Port(PORT, TARGET, "tcp", "TCP", NODE_PORT),
            Port(PORT, TARGET, "udp", "UDP", NODE_PORT),
        ]
        made.apply("ports", made.service("ports", ports, [endpoint(made, "pod2")]))
        made.wait_programmed("default/ports", [endpoint(made, "pod2")])
        yield made


def options(config: Path, *extra: str) -> AgentOptions:
    return AgentOptions(extra=("--config", str(config), *extra))


@pytest.fixture
def node(lab: Lab) -> Iterator[RemoteProcess]:
    with process_in(lab, "node1") as process:
        yield process


def called(address: str, mapped: bool) -> str:
    return ("::ffff:" if mapped else "") + address


@SPEECH
@pytest.mark.parametrize(("name", "port"), [("none", PORT), ("one", PORT + 1), ("one", 0)])
def test_connect_of_udp_only_asks(
    lab: Lab, node: RemoteProcess, name: str, port: int, family: int, mapped: bool
) -> None:
    """Which address of its own it would use: the answer is the same with and without us."""
    address = called(addresses(name)[family], mapped)
    sock = node.open(UDP, int(mapped or family))
    sock.connect([address, port])
    assert sock.getsockname()[0] == called(lab.find("node1").addresses[family], mapped)
    if port:
        assert sock.getpeername()[:2] == [address, port]


@SPEECH
def test_each_answer_comes_from_whom_was_asked(
    lab: Lab, node: RemoteProcess, family: int, mapped: bool
) -> None:
    service = [called(addresses("one")[family], mapped), PORT]
    pod = [called(lab.find("pod1").addresses[family], mapped), TARGET]
    sock = node.open(UDP, int(mapped or family))
    for target in (pod, service, pod, service, service, pod, pod):
        sock.sendto("whom did I ask?", target)
        assert sock.recvfrom(1000)[1][:2] == target
    sock.close()
    assert entries(lab, "socket_peers") == entries(lab, "socket_choices") == 0


@SPEECH
def test_two_services_with_one_endpoint_each_answer_by_their_own_name(
    node: RemoteProcess, family: int, mapped: bool
) -> None:
    """Whichever was asked last, also if another was asked in between."""
    one, other = ([called(addresses(n)[family], mapped), PORT] for n in ("one", "other"))
    sock = node.open(UDP, int(mapped or family))
    for target in (one, other, one, one, other, other, one):
        sock.sendto("whom did I ask?", target)
        assert sock.recvfrom(1000)[1][:2] == target


@both_families
def test_a_socket_that_connects_anew_sees_whom_it_called(
    lab: Lab, node: RemoteProcess, family: int
) -> None:
    service = [addresses("one")[family], PORT]
    pod = [lab.find("pod1").addresses[family], TARGET]
    sock = node.open(UDP, family)
    for target in (service, pod, service):
        sock.connect(target)
        assert (sock.ask("hello"), sock.getpeername()[:2]) == ("pod1", target)


@SPEECH
def test_an_mptcp_socket_sees_whom_it_called(
    lab: Lab, node: RemoteProcess, family: int, mapped: bool
) -> None:
    if not optional.has_mptcp():
        pytest.skip("this kernel has no MPTCP, or does not tell programs of it")
    address = called(addresses("one")[family], mapped)
    before = entries(lab, "socket_peers")
    sock = node.open(TCP, int(mapped or family), socket.IPPROTO_MPTCP)
    sock.connect([address, PORT])
    assert (sock.ask("hello"), sock.getpeername()[:2]) == ("pod1", [address, PORT])
    sock.close()
    wait_until(lambda: entries(lab, "socket_peers") == before)


@KINDS
@SPEECH
def test_node_ports_on_localhost(
    node: RemoteProcess, family: int, mapped: bool, kind: socket.SocketKind
) -> None:
    address = called(LOOPBACK[family], mapped)
    sock = node.connect(kind, address, NODE_PORT, int(mapped or family))
    assert (sock.ask("hello"), sock.getpeername()[:2]) == ("pod2", [address, NODE_PORT])


def test_an_unconnected_socket_on_localhost(node: RemoteProcess) -> None:
    for family, address in enumerate(LOOPBACK):
        sock = node.open(UDP, family)
        sock.sendto("hello", [address, NODE_PORT])
        text, sender = sock.recvfrom(1000)
        assert (text.split()[0], sender[:2]) == ("pod2", [address, NODE_PORT])


@both_families
def test_a_client_that_is_bound_to_loopback_is_refused(node: RemoteProcess, family: int) -> None:
    """With that source nothing leaves the machine: the call is left alone, and nobody listens."""
    sock = node.open(TCP, family)
    sock.bind([LOOPBACK[family], 0])
    assert error_of(lambda: sock.connect([LOOPBACK[family], NODE_PORT])) == errno.ECONNREFUSED


@both_families
def test_a_pods_loopback_is_its_own(lab: Lab, family: int) -> None:
    with process_in(lab, "pod1") as pod:
        sock = pod.open(TCP, family)
        assert error_of(lambda: sock.connect([LOOPBACK[family], NODE_PORT])) == errno.ECONNREFUSED


def test_without_the_hooks_a_warning_says_that_localhost_is_not_served(
    lab: Lab, tmp_path: Path
) -> None:
    """Last: the agent is another afterwards."""
    (tmp_path / "config.yaml").write_text(FILE)
    lab.stop_agent("node1")
    lab.start_agent("node1", options(tmp_path / "config.yaml", "--socket-lb", "off"))
    lab.wait_ready(["node1"])

    def warned() -> bool:
        said = status.read(lab.pin_dir("node1"))
        return said is not None and any("localhost" in text for text in said.warnings)

    wait_until(warned)
