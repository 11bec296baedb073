"""What is counted as live is what is open: after connections that ended in every way, with clients,
servers and agents killed and the algorithm changed meanwhile."""

from __future__ import annotations

import itertools
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from lbctl.inspect.backends import list_backends
from lbctl.inspect.flowfilter import FlowFilter
from lbctl.inspect.flows import list_flows
from lbctl.inspect.opened import open_instance
from lbctl.inspect.services import show
from lbctl.lab.cluster import Lab
from lbctl.lab.state import AgentOptions
from tests.lab.support.external import Exposed
from tests.lab.support.labs import TARGET, addresses, endpoint
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

SERVICE = Exposed("churn", 1)
CLIENTS = {"pod1": "node1", "pod2": "node2", "outside": "node1"}  # and by whom each is served
BACKENDS = ("pod3", "pod4", "pod5", "pod6")
ALGORITHMS = ("least-connections", "random", "round-robin", "maglev", "source-hash")
# Connections, times --soak: 1500 unless told, 100,500 with 134.
PER_SECOND = 750
# Seconds. A close that a killed process never acknowledges is remembered for three minutes.
PATIENCE = 240
KEPT = 60  # by each client
CONFIGURATION = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
conntrack: {udpTimeout: 2s, udpStreamTimeout: 3s}
"""
CHURN = (sys.executable, "-m", "tests.lab.support.churn")
Counts = Counter[tuple[str, str]]  # by node and endpoint


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(CONFIGURATION)
    made = make_lab("c", nodes=2, pods=3, options=AgentOptions(extra=("--config", str(file))))
    for client in CLIENTS:  # ports of closed connections are used again at once
        made.exec(client, ["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1"], check=True)
        ports = "net.ipv4.ip_local_port_range=1024 65535"
        made.exec(client, ["sysctl", "-qw", ports], check=True)
    choose(made, ALGORITHMS[0])
    made.wait_programmed("default/churn", [endpoint(made, member) for member in BACKENDS])
    yield made
    made.down()


def choose(lab: Lab, name: str) -> None:
    objects = SERVICE.objects(lab, [endpoint(lab, member) for member in BACKENDS])
    objects[0]["metadata"]["annotations"] = {"lbctl/algorithm": name}
    lab.apply("churn", objects)


class Processes:
    """A server in each backend, and clients."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._all: list[subprocess.Popen[str]] = []
        self._servers = {member: self.serve(member) for member in BACKENDS}

    def serve(self, member: str) -> subprocess.Popen[str]:
        started = self._start(member, "serve", str(TARGET))
        assert started.stdout
        assert started.stdout.readline() == "serving\n"
        return started

    def call(self, client: str, count: int) -> subprocess.Popen[str]:
        """Towards both families."""
        if client == "outside":
            ends = [SERVICE.where(self._lab, "ingress", family) for family in (0, 1)]
        else:
            ends = [(address, 80) for address in addresses("churn")]
        words = [str(word) for end in ends for word in end]
        return self._start(client, "call", str(count), str(KEPT), *words)

    def _start(self, member: str, *words: str) -> subprocess.Popen[str]:
        started = self._lab.popen(member, [*CHURN, *words], stdout=subprocess.PIPE)
        self._all.append(started)
        return started

    def kill_server(self, member: str) -> None:
        """And start another."""
        end(self._servers[member])
        self._servers[member] = self.serve(member)

    def end_clients(self) -> None:
        for process in self._all:
            if process not in self._servers.values():
                end(process)

    def close(self) -> None:
        for process in self._all:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)
    assert process.stdout
    process.stdout.close()


def served(client: subprocess.Popen[str]) -> int:
    """Waits for its last connection but those that it keeps."""
    assert client.stdout
    return int(client.stdout.readline())


@pytest.fixture
def processes(lab: Lab) -> Iterator[Processes]:
    made = Processes(lab)
    yield made
    made.close()


def test_counts_equal_the_sockets_that_are_open(
    lab: Lab, processes: Processes, pytestconfig: pytest.Config
) -> None:
    count = int(pytestconfig.getoption("soak") * PER_SECOND)
    callers = {client: processes.call(client, count // len(CLIENTS)) for client in CLIENTS}
    for turn in range(5) if count < 10_000 else itertools.count():
        disturb(lab, processes, turn)
        if turn >= 4 and all(c.stdout and is_readable(c.stdout.fileno()) for c in callers.values()):
            break
    done = {client: served(caller) for client, caller in callers.items()}
    assert min(done.values()) > count // len(CLIENTS) / 2
    choose(lab, ALGORITHMS[0])
    wait_until(lambda: all(algorithm(lab, node.name) == ALGORITHMS[0] for node in lab.nodes), 20)
    for client in CLIENTS:  # those of before may have ended with their servers
        served(processes.call(client, KEPT))
    wait_until(lambda: live(lab) == sockets(lab), PATIENCE, lambda: difference(lab))
    assert of_nodes(sockets(lab)) == of_clients(lab)
    assert len(+sockets(lab)) == 2 * 2 * len(BACKENDS), "all endpoints have some, by both nodes"
    print(f"\n{count} connections, served {done}, open {sockets(lab).total()}, as counted")
    processes.end_clients()
    wait_until(lambda: not +live(lab), PATIENCE, lambda: difference(lab))
    assert not +sockets(lab)


def disturb(lab: Lab, processes: Processes, turn: int) -> None:
    """Another algorithm; a client, a server and an agent are killed."""
    victim = processes.call(("pod1", "pod2", "outside")[turn % 3], KEPT)
    choose(lab, ALGORITHMS[turn % len(ALGORITHMS)])
    served(victim)
    end(victim)
    processes.kill_server(BACKENDS[turn % len(BACKENDS)])
    node = ("node1", "node2")[turn % 2]
    lab.restart_agent(node)
    lab.wait_ready([node])


def is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def algorithm(lab: Lab, node: str) -> str:
    with open_instance(lab.pin_dir(node)) as instance:
        return show(instance, "default/churn")[0].algorithm


def live(lab: Lab) -> Counts:
    """What `lbctl backend list` says on each node."""
    found: Counts = Counter()
    for node in ("node1", "node2"):
        with open_instance(lab.pin_dir(node)) as instance:
            for row in list_backends(instance, "default/churn"):
                found[node, f"{row.service.protocol} {row.endpoint}"] += row.flows
    return found


def sockets(lab: Lab) -> Counts:
    """What each server has open, by the node that serves the client. Not those that its client's
    socket was connected to by a hook, which is so while an agent is away for longer: such a one
    knows the endpoint, and has no flow."""
    nodes = {a: node for member, node in CLIENTS.items() for a in lab.find(member).addresses}
    nodes |= dict.fromkeys(lab.node("node1").addresses, "node1")  # which masquerades
    found: Counts = Counter()
    for member in BACKENDS:
        own = ["ss", "-Htn", "state", "established", "sport", "=", f":{TARGET}"]
        for line in lab.exec(member, own, check=True).stdout.splitlines():
            _, _, here, peer = line.split()
            client = without_mapping(peer).rpartition(":")[0].strip("[]")
            found[nodes[client], f"TCP {without_mapping(here)}"] += 1
    for client, node in CLIENTS.items():
        own = ["ss", "-Htn", "state", "established", "dport", "=", f":{TARGET}"]
        for line in lab.exec(client, own, check=True).stdout.splitlines():
            found[node, f"TCP {line.split()[3]}"] -= 1
    return +found


def of_nodes(counts: Counts) -> Counter[str]:
    found: Counter[str] = Counter()
    for (node, _), count in counts.items():
        found[node] += count
    return found


def of_clients(lab: Lab) -> Counter[str]:
    """How many sockets clients have open, by the node that serves them."""
    found: Counter[str] = Counter()
    for client, node in CLIENTS.items():
        own = ["ss", "-Htn", "state", "established", "dport", "=", ":80"]
        found[node] += len(lab.exec(client, own, check=True).stdout.splitlines())
    return found


def without_mapping(text: str) -> str:
    """Address and port as they are written without a socket of both families in the way."""
    return text.replace("[::ffff:", "").replace("]", "") if "::ffff:" in text else text


def difference(lab: Lab) -> str:
    counted, opened = live(lab), sockets(lab)
    states: Counter[tuple[str, str, str]] = Counter()
    for node in ("node1", "node2"):
        with open_instance(lab.pin_dir(node)) as instance:
            states.update((node, f.backend, f.state) for f in list_flows(instance, FlowFilter()))
    return f"too many {counted - opened}, too few {opened - counted}, flows are {states}"
