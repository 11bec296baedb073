"""`lbctl drain --simulate`: what is said to be lost is what resolving without the node gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lbctl.cli.main import command as lbctl
from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.service import resolve
from lbctl.verify import drain
from lbctl.verify.drain import DrainedPort, View
from tests.support.drawn_slices import slices
from tests.support.k8s_objects import (
    Json,
    as_service,
    as_slice,
    endpoint,
    node,
    service,
    slice_of,
    slice_weighing,
    without_node,
)

HERE = NodeFacts("worker-1", zone="zone-a")
GONE = "worker-2"


def services(parts: list[Json], **spec: Any) -> dict[ObjectKey, ServiceObjects]:
    made = as_service(service(type="LoadBalancer", externalIPs=["192.0.2.80"], **spec))
    return {made.key: ServiceObjects(made, tuple(map(as_slice, parts)))}


def drained(
    known: dict[ObjectKey, ServiceObjects], *views: View, flows: Any = None
) -> list[DrainedPort]:
    changes = drain.affected(known, GONE)
    here = View("here", HERE)
    verdicts = drain.resolvers_verdicts(changes, here)
    return list(drain.simulate(changes, GONE, [here, *views], verdicts, flows))


@given(slices, st.sampled_from(["Cluster", "Local"]))
def test_what_is_left_is_what_is_resolved(parts: list[Json], policy: str) -> None:
    known = services(parts, internalTrafficPolicy=policy)
    without = [without_node(part, GONE) for part in parts]
    (objects,) = services(without, internalTrafficPolicy=policy).values()
    assert objects.service
    (after,) = resolve(objects.service, objects.slices, HERE)
    (before_objects,) = known.values()
    assert before_objects.service
    (before,) = resolve(before_objects.service, before_objects.slices, HERE)
    for found in drained(known):
        assert found.left == len(after.cluster)
        assert found.last == (bool(before.cluster) and not after.cluster)
        assert found.verdicts["pod"][1] == (
            "forward"
            if (after.local if policy == "Local" else after.cluster)
            else "drop"
            if policy == "Local" and after.local_drop
            else "reject"
        )


def test_the_last_endpoint() -> None:
    (found,) = drained(services(slice_of(endpoint("10.0.0.2", GONE))))
    assert found.last
    assert found.effects == ("no endpoint would be left anywhere: connections would be refused",)
    assert found.verdicts["pod"] == ("forward", "reject")


def test_one_that_is_not_used_is_no_loss() -> None:
    parts = slice_of(endpoint("10.0.0.2", GONE, ready=False), endpoint("10.0.0.1"))
    assert drained(services(parts)) == []


def test_weight_0_takes_no_connections() -> None:
    """Here, where it has only flows to lose, and among those that are left."""
    closed = slice_weighing("0", endpoint("10.0.0.2", GONE))
    parts = [closed, *slice_of(endpoint("10.0.0.1"))]
    flows = {("ns1/svc1:http/TCP/v4", "10.0.0.2:8080"): 7}
    (found,) = drained(services(parts, externalTrafficPolicy="Local"), flows=flows)
    assert (found.endpoints, found.left, found.last, found.flows) == (0, 1, False, 7)
    assert found.effects == ()

    parts = [slice_weighing("0", endpoint("10.0.0.1")), *slice_of(endpoint("10.0.0.2", GONE))]
    (found,) = drained(services(parts))
    assert (found.endpoints, found.left, found.last) == (1, 0, True)
    assert found.effects == (
        "no endpoint would be left but of weight 0: connections would be refused",
    )
    assert found.verdicts["pod"] == ("forward", "reject")

    # Nothing came here before, so nothing is lost.
    (found,) = drained(services([closed, slice_weighing("0", endpoint("10.0.0.1"))]))
    assert (found.endpoints, found.left, found.last) == (0, 0, False)


def test_policy_local_on_the_node() -> None:
    parts = slice_of(endpoint("10.0.0.2", GONE), endpoint("10.0.0.1"))
    (found,) = drained(services(parts, externalTrafficPolicy="Local"))
    assert not found.last
    assert found.effects == (
        f"policy Local: what comes to {GONE} from outside would be dropped there",
    )
    assert found.verdicts["outside"] == ("forward", "forward")


def test_a_zone_that_loses_what_is_near() -> None:
    parts = slice_of(
        endpoint("10.0.0.1", zones=["zone-a"]), endpoint("10.0.0.2", GONE, zones=["zone-b"])
    )
    views = drain.zones([("worker-1", "zone-a"), ("worker-3", "zone-b"), (GONE, "zone-c")], GONE)
    assert [view.label for view in views] == ["zone zone-a", "zone zone-b"]
    (found,) = drained(services(parts), *views)
    (said,) = found.effects
    assert said.startswith("zone zone-b would lose what is near: topology hints would not be used")


def test_flows_of_its_endpoints_are_counted() -> None:
    parts = slice_of(endpoint("10.0.0.2", GONE), endpoint("10.0.0.1"))
    name = "ns1/svc1:http/TCP/v4"
    flows = {(name, "10.0.0.2:8080"): 7, (name, "10.0.0.1:8080"): 5, ("other", "x"): 3}
    (found,) = drained(services(parts), flows=flows)
    assert found.flows == 7


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    items = [
        service(),
        *slice_of(endpoint("10.0.0.2", GONE)),
        node(),
        node(GONE, ("192.168.0.3",)),
    ]
    path = tmp_path / "objects.json"
    path.write_text(json.dumps({"kind": "List", "items": items}))
    return path


def run(*arguments: str, as_root: bool = False) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        if not as_root:
            patch.setattr("os.geteuid", lambda: 1000)
        done = CliRunner().invoke(lbctl, ["drain", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_command(manifests: Path, tmp_path: Path) -> None:
    asked = ["--manifests", str(manifests), "--node-name", "worker-1", "--pin-dir", str(tmp_path)]
    code, out, err = run(GONE, "--simulate", *asked)
    assert code == 5
    assert "ns1/svc1:http" in out
    assert "pod forward→reject" in out
    assert "1 of them only there (according to the resolver)" in err
    code, out, _ = run("worker-1", "--simulate", *asked, "-o", "json")
    assert (code, json.loads(out)["ports"]) == (0, [])


def test_what_is_asked_wrongly(manifests: Path, tmp_path: Path) -> None:
    asked = ["--manifests", str(manifests), "--node-name", "worker-1", "--pin-dir", str(tmp_path)]
    code, _, err = run(GONE, *asked)
    assert code == 2
    assert "--simulate" in err
    code, _, err = run("worker-9", "--simulate", *asked)
    assert code == 3
    assert GONE in err
