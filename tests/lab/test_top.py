"""`lbctl top` while connections are made: each is counted, by service, endpoint and client."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lbctl.lab.agents import environment, lbctl_command
from lbctl.lab.cluster import Lab
from tests.lab.support.faults import answers, service
from tests.lab.support.labs import TCP, Responder, addresses, ask, connected, endpoint
from tests.lab.support.terminals import terminal

pytestmark = pytest.mark.lab

MOST = 1000


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("tp", nodes=1, pods=2)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        made.apply("web", service(made, "web", ["pod2"]))
        made.wait_programmed("default/web", [endpoint(made, "pod2")])
        yield made
    made.down()


def start(lab: Lab, *words: str) -> subprocess.Popen[str]:
    command = lbctl_command("top", *words, "--pin-dir", str(lab.pin_dir("node1")))
    return lab.popen("node1", command, stdout=subprocess.PIPE)


def test_connections_made_meanwhile(lab: Lab) -> None:
    seconds = 2.0
    looking = start(lab, "--once", "-o", "json", "--interval", str(seconds))
    address = addresses("web")[0]
    made = 0
    while looking.poll() is None and made < MOST:
        assert answers(lab, "pod1", address, kinds=[TCP], times=1) == {"pod2"}
        made += 1
        time.sleep(0.05)
    out, _ = looking.communicate(timeout=60)
    found: dict[str, Any] = json.loads(out)
    (row,) = (r for r in found["rows"] if r["name"] == "default/web:tcp/TCP/v4")
    # Those that were made before its first look are not in it.
    assert 0 < round(row["connections"] * found["seconds"]) <= made
    assert row["bytes"] > 0
    assert found["reasons"]["forwarded"] > 0


@pytest.mark.parametrize("view", ["--clients", "--backends"])
def test_who_and_whom(lab: Lab, view: str) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            sock = stack.enter_context(connected(lab, "pod1", addresses("web")[0], TCP))
            assert ask(sock, "hello").server == "pod2"
        looking = start(lab, view, "--once", "-o", "json", "--interval", "0.1")
        out, _ = looking.communicate(timeout=60)
    names = {row["name"]: row["active"] for row in json.loads(out)["rows"]}
    known = {pod.name: pod.ipv4 for pod in lab.pods}
    wanted = known["pod1"] if view == "--clients" else f"{known['pod2']}:7000 of default/web:tcp"
    assert names[wanted] >= 3


def test_on_a_terminal_until_a_key_ends_it(lab: Lab) -> None:
    command = lbctl_command("top", "--interval", "0.2", "--pin-dir", str(lab.pin_dir("node1")))
    with terminal(lab.command("node1", command), environment()) as shown:
        shown.wait_for(b"default/web:tcp/TCP/v4")
        shown.press(b"C")
        shown.wait_for(b"clients by bytes")
        shown.press(b"q")
        assert shown.wait_end() == 0
