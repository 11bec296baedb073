"""`lbctl verify` asks the API itself: what a watch that went silent has missed is found, named, and
listed anew when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from lbctl.lab import objects
from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from tests.lab.support.api_agent import ApiAgent, Watches, fill
from tests.lab.support.faults import service
from tests.lab.support.labs import endpoint, inside
from tests.support.hostile_api import KINDS, HostileApi

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("va", nodes=1, pods=3, agent=False)


@pytest.fixture(scope="module")
def api(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileApi]:
    """Its watches stay open and say nothing."""
    with inside(lab, "outside", partial(HostileApi, lab.outside.addresses[0])) as made:
        fill(made, objects.nodes(lab.state.topology))
        fill(made, service(lab, "known", ["pod1"]))
        fill(made, service(lab, "moved", ["pod1"]))
        made.watches = dict.fromkeys(KINDS, Watches().hold())
        agent = ApiAgent(lab, made, tmp_path_factory.mktemp("api"))
        agent.start()
        try:
            agent.wait_ready()
            yield made
        finally:
            agent.end()


def lbctl(lab: Lab, *words: str) -> tuple[int, dict[str, Any]]:
    command = lbctl_command(*words, "-o", "json", "--pin-dir", str(lab.pin_dir("node1")))
    done = lab.exec("node1", command)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_what_a_watch_has_missed(lab: Lab, api: HostileApi) -> None:
    code, found = lbctl(lab, "verify")
    assert (code, found["differences"]) == (0, [])
    api.version += 1
    fill(api, service(lab, "missed", ["pod2"]))
    fill(api, service(lab, "moved", ["pod3"]))
    code, found = lbctl(lab, "verify")
    named = {(one["object"].partition(":")[0], one["what"].partition(":")[0])
             for one in found["differences"]}  # fmt: skip
    assert code == 5
    assert named == {
        ("default/missed", "it is not programmed"),
        ("default/moved", "an endpoint is missing"),
        ("default/moved", "an endpoint is there that should not be so"),
    }
    code, found = lbctl(lab, "verify", "--repair")
    assert (code, found["differences"]) == (0, [])
    assert found["repaired"]
    lab.wait_programmed("default/missed", [endpoint(lab, "pod2")], ["node1"])
    lab.wait_programmed("default/moved", [endpoint(lab, "pod3")], ["node1"])


def test_explain_asks_where_the_agent_asks(lab: Lab, api: HostileApi) -> None:
    code, found = lbctl(lab, "explain", "default/known")
    assert (code, found["node"]) == (0, "node1")
    for port in found["ports"]:
        for group in port["groups"]:
            assert group["programmed"] is True
            assert [e["used"] for e in group["endpoints"]] == [True]


def test_drain_counts_what_would_go(lab: Lab, api: HostileApi) -> None:
    code, found = lbctl(lab, "drain", "node1", "--simulate")
    assert (code, found["asked"]) == (5, "programs")
    assert {port["name"]["service"] for port in found["ports"] if port["last"]} >= {"known"}
    for port in found["ports"]:
        assert port["verdicts"]["pod"] == ["forward", "reject"]
