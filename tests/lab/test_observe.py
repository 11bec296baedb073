"""`lbctl observe` beside real connections: each of thousands is told, none is lost, who calls what
is named, and nothing is written once nobody listens."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lbctl.bench import generator
from lbctl.datapath import clock
from lbctl.inspect.opened import open_instance
from lbctl.lab import namespace
from lbctl.lab.agents import environment, lbctl_command
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from lbctl.observe.hub import LISTENING_SECONDS
from lbctl.observe.listener import Listener
from lbctl.observe.wire import Told, Wanted
from tests.lab.support.answering import answering_lab
from tests.lab.support.faults import answers, service
from tests.lab.support.labs import PORT, TARGET, TCP, UDP, addresses, client, endpoint
from tests.lab.support.moments import pause, since
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

PER_SECOND = 10_000  # connections, times --soak: 100,000 with 10
WARM_UP = 20  # that connect.c makes besides
BOUND = 30.0
MANY = Port(PORT, TARGET + 1, "tcp")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    with answering_lab(make_lab, "ob") as made:
        yield made


class Observing:
    """`lbctl observe`, and what it has said so far."""

    def __init__(self, lab: Lab, output: Path, *words: str) -> None:
        self._output = output
        command = lbctl_command(
            *("observe", "-o", "json", "--pin-dir", str(lab.pin_dir("node1"))), *words
        )
        with output.open("wb") as stream:
            self.process = subprocess.Popen(
                lab.command("node1", command),
                stdout=stream,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            )

    def events(self) -> list[dict[str, Any]]:
        lines = self._output.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def state(self) -> str:
        """For who waits in vain."""
        if self.process.poll() is None:
            return "it runs"
        return f"it has ended: {self.process.communicate()[1]}"

    def end(self) -> str:
        """All that was told before; returns what was said beside the events."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, errors
        return errors


@contextlib.contextmanager
def observing(lab: Lab, output: Path, *words: str) -> Iterator[Observing]:
    wait_until(lambda: not is_listened_to(lab), BOUND)  # by who came before
    made = Observing(lab, output, *words)
    try:
        wait_until(lambda: is_listened_to(lab), BOUND, made.state)
        yield made
    finally:
        made.process.kill()
        made.process.communicate(timeout=10)


def is_listened_to(lab: Lab) -> bool:
    with open_instance(lab.pin_dir("node1")) as instance:
        return bool(instance.config.records["events_until"][0])


def connect(lab: Lab, kind: socket.SocketKind = TCP, name: str = "web") -> None:
    assert answers(lab, "pod1", addresses(name)[0], kinds=[kind], times=1) == {"pod2"}


@pytest.mark.alone
def test_each_of_many_connections_is_told(
    lab: Lab, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    times = int(PER_SECOND * pytestconfig.getoption("soak"))
    program = generator.compiled(tmp_path)
    if program is None:
        pytest.skip("no C compiler here")
    pods = [str(namespace.path_of(lab.find(name).namespace)) for name in ("pod1", "pod2")]
    argv = [str(program), "cycle", *pods, "-1", str(MANY.target)]
    lab.apply("many", service(lab, "many", ["pod2"], [MANY]))
    lab.wait_programmed("default/many", [endpoint(lab, "pod2")])
    with observing(lab, tmp_path / "events", "--service", "many") as seen:
        # One that is told: from now on all are.
        target = f"{addresses('many')[0]} {PORT}\n"
        wait_until(lambda: once(argv, target) and seen.events() != [], BOUND)
        moment = pause()
        done = subprocess.run(
            [*argv, str(times)],
            input=target,
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
        errors = seen.end()
        found = Counter(event["verdict"] for event in since(moment, seen.events()))
    assert "-1" not in done.stdout.split(), "every connection worked"
    assert "0 lost" in errors
    made = times + WARM_UP
    assert found == {"opened": made, "ended": made}


def once(argv: list[str], target: str) -> bool:
    done = subprocess.run([*argv, "1"], input=target, capture_output=True, text=True, timeout=30)
    return done.returncode == 0


def by_verdict(seen: Observing) -> dict[tuple[str, str], dict[str, Any]]:
    """The last event of each verdict and protocol."""
    return {(e["verdict"], e["protocol"]): e for e in seen.events()}


def test_who_calls_what_and_what_became_of_it(lab: Lab, tmp_path: Path) -> None:
    web, empty = addresses("web")[0], addresses("empty")[0]
    with observing(lab, tmp_path / "events") as seen:
        connect(lab, TCP)
        connect(lab, UDP)
        with client(lab, "pod1", 0, TCP) as sock, contextlib.suppress(ConnectionRefusedError):
            sock.connect((empty, PORT))
        wait_until(lambda: {("refused", "TCP"), ("ended", "TCP")} <= by_verdict(seen).keys(), BOUND)
        assert "0 lost" in seen.end()
    found = by_verdict(seen)
    opened, ended = found["opened", "TCP"], found["ended", "TCP"]
    pod1, pod2 = lab.find("pod1"), lab.find("pod2")
    assert opened["client"]["address"] == pod1.addresses[0]
    assert opened["address"] == f"{web}:{PORT}"
    assert opened["service"]["service"] == "web"
    assert opened["backend"]["name"] == "default/pod2"
    assert opened["backend"]["node"] == "node1"
    assert opened["backend"]["address"] == pod2.addresses[0]
    assert (ended["reason"], ended["client"]) == ("closed", opened["client"])
    assert ended["packets_in"] >= 3
    assert ended["bytes_out"] > 0
    assert found["opened", "UDP"]["service"]["service"] == "web"
    refused = found["refused", "TCP"]
    assert refused["reason"] == "no_endpoint"
    assert refused["service"]["service"] == "empty"
    assert refused["backend"] is None


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--pod", "pod2"], {("opened", "web")}),
        (["--pod", "elsewhere/pod2"], set()),
        (["--node", "node1"], {("opened", "web"), ("refused", "empty")}),  # who calls is there
        (["--node", "node2"], set()),
        (["--reason", "no_endpoint"], {("refused", "empty")}),
        (["--verdict", "refused", "--protocol", "tcp"], {("refused", "empty")}),
        (["--service", "empty", "--port", "80"], {("refused", "empty")}),
        (["--port", "81"], set()),
    ],
)
def test_filters(lab: Lab, tmp_path: Path, words: list[str], wanted: set[tuple[str, str]]) -> None:
    empty = addresses("empty")[0]
    with observing(lab, tmp_path / "events", *words) as seen:
        connect(lab, UDP)
        with client(lab, "pod1", 0, TCP) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect((empty, PORT))
        seen.end()
    assert {(e["verdict"], e["service"]["service"]) for e in seen.events()} == wanted


def test_a_service_that_is_not_there_is_said(lab: Lab, tmp_path: Path) -> None:
    """It may come, so that is no error; but it may be a slip."""
    made = Observing(lab, tmp_path / "events", "--service", "wbe", "--duration", "1s")
    _, errors = made.process.communicate(timeout=60)
    assert made.process.returncode == 0
    assert "there is no service 'wbe' here now. Did you mean default/web?" in errors


def test_the_past_is_what_is_open(lab: Lab, tmp_path: Path) -> None:
    """Nobody listened; the connection is there."""
    with client(lab, "pod1", 0, TCP) as sock:
        sock.connect((addresses("web")[0], PORT))
        own = sock.getsockname()[1]
        made = Observing(lab, tmp_path / "events", "--since", "1m")
        _, errors = made.process.communicate(timeout=60)
    assert "nobody listened before" in errors
    ports = [event["client"]["port"] for event in made.events()]
    assert own in ports


def test_listeners_get_the_same_and_count_their_own_losses(lab: Lab) -> None:
    """Who comes later hears what comes later."""
    pin_dir = lab.pin_dir("node1")
    with Listener(pin_dir, Wanted()) as first:
        connect(lab)
        with Listener(pin_dir, Wanted()) as second:
            connect(lab)
            second.finish()
            assert heard(second) == (1, 0)
        first.finish()
        assert heard(first) == (2, 0)


def heard(listener: Listener) -> tuple[int, int]:
    """New flows until the end, and how many events were lost."""
    new, lost = 0, 0
    until = time.monotonic() + BOUND
    while not listener.ended and time.monotonic() < until:
        for frame in listener.frames(1.0):
            if frame.told is not Told.PAST:
                new += int((frame.records["what"] == 0).sum())
                lost = frame.lost
    return new, lost


def test_a_listener_that_is_killed_costs_nothing_soon(lab: Lab, tmp_path: Path) -> None:
    with observing(lab, tmp_path / "events") as seen:
        seen.process.kill()
        seen.process.wait(10)
        wait_until(lambda: not is_listened_to(lab), BOUND)


def test_an_agent_that_is_killed_leaves_nobody_listening_for_long(lab: Lab, tmp_path: Path) -> None:
    """What its programs tell until then is the last; the stream goes on with the next agent."""
    with observing(lab, tmp_path / "events", "--follow") as seen:
        lab.stop_agent("node1", signal.SIGKILL)
        wait_until(lambda: not is_listened_anew(lab), LISTENING_SECONDS + BOUND)
        lab.start_agent("node1")
        lab.wait_ready()
        wait_until(lambda: is_listened_anew(lab), BOUND, seen.state)
        connect(lab)
        wait_until(lambda: seen.events() != [], BOUND)
        assert "the agent has ended" in seen.end()


def is_listened_anew(lab: Lab) -> bool:
    with open_instance(lab.pin_dir("node1")) as instance:
        return int(instance.config.records["events_until"][0]) > clock.current_beat()


def test_a_socket_of_the_nodes_own(lab: Lab, tmp_path: Path) -> None:
    """It is told an endpoint when it connects: by whom, and that nobody is there at another."""
    call = "import socket,sys; socket.create_connection((sys.argv[1], 80), 5)"
    with observing(lab, tmp_path / "events") as seen:
        codes = [
            lab.exec("node1", [sys.executable, "-c", call, addresses(name)[0]]).returncode
            for name in ("web", "empty")
        ]
        wait_until(lambda: "refused" in {e["verdict"] for e in seen.events()}, BOUND)
        assert "0 lost" in seen.end()
    assert codes[0] == 0
    assert codes[1] != 0
    opened, refused = (e for e in seen.events() if e["process"])
    assert (opened["verdict"], opened["kind"]) == ("opened", "socket")
    assert opened["service"]["service"] == "web"
    assert opened["backend"]["name"] == "default/pod2"
    assert (refused["verdict"], refused["reason"]) == ("refused", "no_endpoint")
    assert refused["service"]["service"] == "empty"
    assert opened["process"] != refused["process"]
