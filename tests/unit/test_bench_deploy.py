"""deploy/bench: the job asks for what its servers are, and needs no privileges."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from lbctl.bench import inplace
from lbctl.bench.records import Results
from lbctl.cli.bench import command as bench
from lbctl.cli.main import command
from lbctl.errors import LbError, UsageError
from tests.support.waiting import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy" / "bench"


def documents() -> list[dict[str, Any]]:
    listed = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in DEPLOY.iterdir()} == {*listed, "kustomization.yaml"}
    return [found for name in listed for found in yaml.safe_load_all((DEPLOY / name).read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [found for found in documents() if found["kind"] == kind]


def test_the_job_asks_for_the_services_there_are() -> None:
    (job,) = of_kind("Job")
    name, *args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert name == "bench"
    given = bench.make_context("bench", list(args)).params
    services = {found["metadata"]["name"]: found["spec"] for found in of_kind("Service")}
    for option, headless in (("service", False), ("pods", True)):
        host, _, port = given[option].partition(":")
        assert ("clusterIP" in services[host]) is headless
        assert services[host]["ports"][0]["port"] == int(port)
    (servers,) = of_kind("Deployment")
    template = servers["spec"]["template"]
    assert all(s["selector"] == template["metadata"]["labels"] for s in services.values())
    container = template["spec"]["containers"][0]
    port = container["ports"][0]["containerPort"]
    # A headless service does not translate ports: its pods must have the one it names.
    assert services["bench-pods"]["ports"][0]["port"] == port
    assert container["args"] == [f"--port={port}"]


@pytest.mark.parametrize("kind", ["Job", "Deployment"])
def test_nothing_has_privileges(kind: str) -> None:
    (found,) = of_kind(kind)
    pod = found["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert not {"hostNetwork", "hostPID", "volumes"} & pod.keys()
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.fixture
def server() -> Iterator[int]:
    """The port of something that accepts connections on loopback."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:

        def accept() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_service_is_compared_with_its_pods(server: int) -> None:
    results = Results()
    place = f"127.0.0.1:{server}"
    inplace.measure(inplace.plan(place, place, 3, 5, 0), results, lambda _what, _detail: None)
    assert [(r.peer, r.services, r.measure, r.n) for r in results.records] == [
        ("none", 0, "connect_latency", 15),
        ("node", 0, "connect_latency", 15),
    ]
    assert results.records[0].ratio_to_floor == 1


def test_it_is_a_command_that_prints_a_table(server: int) -> None:
    place = f"127.0.0.1:{server}"
    done = CliRunner().invoke(command, ["bench", "--quick", "--service", place, "--pods", place])
    assert done.exit_code == 0, done.output
    assert "node " in done.stdout
    assert "here" in done.stdout


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="'web' is not HOST:PORT"):
        inplace.plan("web", "web:1", 1, 1, 0)
    closed = ("127.0.0.1", 1)
    with pytest.raises(LbError, match=r"no connection to 127\.0\.0\.1:1"):
        inplace.connect(closed)


@pytest.fixture
def full() -> Iterator[socket.socket]:
    """A listener on loopback whose queue has no room for another connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        inplace.connect(listener.getsockname())
        yield listener


def test_a_server_that_is_too_slow_is_waited_for(full: socket.socket) -> None:
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(inplace.connect, full.getsockname())
        wait_until(lambda: _opening(full) or waits.done())
        assert not waits.done()
        for _ in range(2):
            full.accept()[0].close()
        assert waits.result() > 0


def test_a_server_that_does_not_answer_is_said_to(
    full: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inplace, "WAIT_SECONDS", 1.0)
    with pytest.raises(LbError, match=r"no connection to 127\.0\.0\.1:\d+: no answer for 1 s"):
        inplace.connect(full.getsockname())


def _opening(listener: socket.socket) -> bool:
    """Whether somebody's SYN to it has no answer yet."""
    port = f":{listener.getsockname()[1]:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(row[2].endswith(port) and row[3] == "02" for row in rows)


def test_one_without_the_other_is_wrong_use() -> None:
    done = CliRunner().invoke(command, ["bench", "--service", "a:1"])
    assert done.exit_code == 2
