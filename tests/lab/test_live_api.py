"""An agent that watches a Kubernetes API from inside a node: everything works, also without it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from lbctl import status
from lbctl.lab import agents, objects
from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Endpoint
from lbctl.lab.state import AgentOptions
from lbctl.status import StatusRecord
from tests.lab.support.labs import (
    PORT,
    PORTS,
    TCP,
    UDP,
    Responder,
    addresses,
    ask,
    client,
    connected,
    endpoint,
    inside,
)
from tests.support.apiserver import ApiServer

pytestmark = pytest.mark.lab

START = 120.0  # seconds; the first start on a machine compiles the programs
NAMESPACE = "default"


class Cluster:
    """A lab, an API server inside node1's namespace, and the agent there that follows it."""

    def __init__(
        self, lab: Lab, api: ApiServer, directory: Path, options: Sequence[str] = ("-v",)
    ) -> None:
        self._options = AgentOptions(extra=tuple(options))
        self.lab = lab
        self.api = api
        self._config = api.kubeconfig(directory)
        self._log = directory / "agent.log"
        self._agent: subprocess.Popen[str] | None = None

    def start_agent(self) -> None:
        node = self.lab.node("node1")
        arguments = agents.arguments(self.lab.paths, node, self._options)
        place = arguments.index("--manifests")
        source = ["--kubeconfig", str(self._config)]
        command = lbctl_command(*arguments[:place], *source, *arguments[place + 2 :])
        with self._log.open("a") as log:
            self._agent = self.lab.popen("node1", command, stdout=log, stderr=log)

    def stop_agent(self, number: int = signal.SIGTERM) -> None:
        if self._agent:
            self._agent.send_signal(number)
            self._agent.wait(10)
            self._agent = None

    def said(self) -> StatusRecord | None:
        """What the running agent says of itself."""
        found = status.read(self.lab.pin_dir("node1"))
        return found if found and self._agent and found.pid == self._agent.pid else None

    def wait_for(self, what: Callable[[StatusRecord], bool], timeout: float = 20.0) -> None:
        limit = time.monotonic() + timeout
        while not ((said := self.said()) and what(said)):
            assert time.monotonic() < limit, f"{said}\n{self._log.read_text()[-2000:]}"
            time.sleep(0.02)

    def put(self, services: Mapping[str, Sequence[str | Endpoint]]) -> None:
        """Create or change services with these endpoints."""
        for name, members in services.items():
            found = [m if isinstance(m, Endpoint) else endpoint(self.lab, m) for m in members]
            self.api.put(*self.lab.service(name, PORTS, found))

    def wait_programmed(self, services: Mapping[str, Sequence[str]]) -> None:
        for name, members in services.items():
            pods = [endpoint(self.lab, member) for member in members]
            self.lab.wait_programmed(f"{NAMESPACE}/{name}", pods, ["node1"])

    def answers(self, name: str, number: int = 20) -> set[str]:
        """Who answers new connections and datagrams to a service, in both families."""
        found = set()
        for turn in range(number):
            for family in (0, 1):
                for kind in (TCP, UDP):
                    with connected(self.lab, "pod1", addresses(name)[family], kind) as sock:
                        found.add(ask(sock, f"turn {turn}").server)
        return found


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("api", nodes=2, pods=2, agent=False)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        yield made
    made.down()


@pytest.fixture
def cluster(lab: Lab, tmp_path: Path) -> Iterator[Cluster]:
    """With the nodes and the service "web" of pod2 and pod3; the instance is new each time."""
    with inside(lab, "node1", ApiServer) as api:
        api.put(*objects.nodes(lab.state.topology))
        made = Cluster(lab, api, tmp_path)
        made.put({"web": ["pod2", "pod3"]})
        made.start_agent()
        try:
            made.wait_for(lambda said: said.ready, START)
            yield made
        finally:
            made.stop_agent()
            cleanup = lbctl_command("cleanup", "--yes", "--pin-dir", str(lab.pin_dir("node1")))
            lab.exec("node1", cleanup, check=True)


def test_services_are_followed(cluster: Cluster) -> None:
    assert cluster.answers("web") == {"pod2", "pod3"}
    cluster.put({"web": ["pod3", "pod4"], "other": ["pod1", "pod2"]})
    cluster.wait_programmed({"web": ["pod3", "pod4"], "other": ["pod1", "pod2"]})
    assert cluster.answers("web") == {"pod3", "pod4"}
    assert cluster.answers("other") == {"pod1", "pod2"}
    leaving = Endpoint(endpoint(cluster.lab, "pod2"), ready=False, terminating=True)
    cluster.put({"web": [leaving, "pod4"]})
    cluster.wait_programmed({"web": ["pod4"]})
    assert cluster.answers("web") == {"pod4"}
    with connected(cluster.lab, "pod1", addresses("web")[0], TCP) as sock:
        first = ask(sock, "open")
        for family in ("ipv4", "ipv6"):
            cluster.api.delete("EndpointSlice", f"web-{family}", NAMESPACE)
        cluster.wait_programmed({"web": []})
        late = client(cluster.lab, "pod1", 0, TCP)
        with late, pytest.raises(ConnectionRefusedError):
            late.connect((addresses("web")[0], PORT))
        cluster.api.delete("Service", "web", NAMESPACE)
        cluster.lab.wait_gone(f"{NAMESPACE}/web", nodes=["node1"])
        assert ask(sock, "still open").connection == first.connection
    cluster.wait_for(lambda said: said.services == 1)
    assert cluster.answers("other") == {"pod1", "pod2"}


def test_without_its_api_the_node_goes_on(cluster: Cluster) -> None:
    cluster.wait_for(lambda said: said.source.connected)
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(connected(cluster.lab, "pod1", addresses("web")[1], TCP))
        first = ask(kept, "open")
        cluster.api.go_away()
        cluster.put({"web": ["pod4"], "new": ["pod2"]})
        cluster.wait_for(lambda said: not said.source.connected and bool(said.source.last_error))
        assert cluster.answers("web") == {"pod2", "pod3"}
        assert ask(kept, "still open").connection == first.connection
        # Nor does an agent that starts now forget what it cannot ask for.
        cluster.stop_agent(signal.SIGKILL)
        cluster.start_agent()
        cluster.wait_for(lambda said: bool(said.source.last_error))
        assert cluster.answers("web") == {"pod2", "pod3"}
        cluster.api.resume()
        cluster.wait_programmed({"web": ["pod4"], "new": ["pod2"]})
        assert cluster.answers("web") == {"pod4"}
        assert cluster.answers("new") == {"pod2"}
        assert ask(kept, "and still").connection == first.connection
        cluster.wait_for(lambda said: said.ready and said.source.connected)


def test_a_history_that_is_gone_is_listed_again(cluster: Cluster) -> None:
    cluster.api.forget("Service", "web", NAMESPACE)
    cluster.put({"new": ["pod2", "pod4"]})
    cluster.api.expire()
    cluster.api.drop()
    cluster.wait_programmed({"new": ["pod2", "pod4"]})
    cluster.lab.wait_gone(f"{NAMESPACE}/web", nodes=["node1"])
    assert cluster.answers("new") == {"pod2", "pod4"}


def test_nothing_goes_before_every_kind_was_listed(cluster: Cluster) -> None:
    """A new agent knows the services but not yet the slices: no service loses its endpoints."""
    cluster.stop_agent()
    slices = "/apis/discovery.k8s.io/v1/endpointslices"
    cluster.api.stall_lists.add(slices)
    cluster.put({"new": ["pod4"]})
    cluster.api.delete("Service", "web", NAMESPACE)
    asked = len(cluster.api.requests)
    cluster.start_agent()
    limit = time.monotonic() + 20
    while {path for path, _ in cluster.api.requests[asked:]} < {slices, "/api/v1/services"}:
        assert time.monotonic() < limit
        time.sleep(0.02)
    time.sleep(0.5)  # it could have done harm by now
    assert cluster.answers("web") == {"pod2", "pod3"}
    cluster.api.stall_lists.clear()
    cluster.wait_programmed({"new": ["pod4"]})
    cluster.lab.wait_gone(f"{NAMESPACE}/web", nodes=["node1"])
    assert cluster.answers("new") == {"pod4"}
