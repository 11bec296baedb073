"""`lbctl service show` beside an agent and without one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from lbctl import status
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from tests.lab.support.labs import endpoint
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab


def show(lab: Lab, service: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [
            sys.executable, "-m", "lbctl", "service", "show", service, "-o", "json",
            "--pin-dir", str(lab.pin_dir("node1")),
        ],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def said(lab: Lab, service: str) -> set[str | None]:
    """About topology hints, by the agent, for all ports of a service."""
    return {row["hints"] for row in show(lab, service)}


def publish(lab: Lab, name: str, hints: dict[str, Any] | None) -> None:
    objects = lab.service(name, [Port(80)], [endpoint(lab, "pod1")])
    for found in objects[1:]:
        for item in found["endpoints"]:
            if hints is not None:
                item["hints"] = hints
    lab.apply(name, objects)
    lab.wait_programmed(f"default/{name}", [endpoint(lab, "pod1")])


def test_what_became_of_hints(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("show", nodes=1, pods=1)
    publish(lab, "plain", None)
    publish(lab, "here", {"forNodes": [{"name": "node1"}]})
    publish(lab, "there", {"forNodes": [{"name": "node9"}]})
    used = "node hints used: 1 of 1 for node node1"
    unused = "not used: no ready endpoint is meant for node node1"
    wait_until(lambda: said(lab, "there") == {unused}, 30, lambda: str(said(lab, "there")))
    assert said(lab, "plain") == {"no hints"}
    assert said(lab, "here") == {used}

    publish(lab, "there", {"forNodes": [{"name": "node1"}]})
    wait_until(lambda: said(lab, "there") == {used}, 30)

    lab.stop_agent("node1")
    assert said(lab, "here") == {None}
    lab.start_agent("node1")
    wait_until(lambda: said(lab, "here") == {used}, 30)
    assert status.read_hints(lab.pin_dir("node1")) is not None
