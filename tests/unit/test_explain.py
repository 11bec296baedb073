"""`lbctl explain`: every endpoint has its reason, and the reasons are the resolver's own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lbctl.addresses import format_endpoint, parse_address, parse_prefix
from lbctl.cli.main import command as lbctl
from lbctl.model.records import ServiceObjects
from lbctl.reconcile.reconciler import Reconciler
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.service import resolve
from lbctl.resolve.why import SENTENCES, Origin, Reason
from lbctl.verify import answers
from lbctl.verify.explain import Explanation, Group, explain
from lbctl.verify.objects import Known
from lbctl.verify.origins import origin_of
from tests.support.drawn_slices import slices
from tests.support.fake_tables import FakeTables
from tests.support.k8s_objects import (
    Json,
    as_service,
    as_slice,
    endpoint,
    node,
    port,
    service,
    slice_of,
    slice_weighing,
    without_node,
)
from tests.support.reconciling import update

EXTERNAL = "192.0.2.80"
NODE = NodeFacts(name="worker-1", zone="zone-a")


def objects(parts: list[Json], **spec: Any) -> ServiceObjects:
    made = as_service(service(externalIPs=[EXTERNAL], **spec))
    return ServiceObjects(made, tuple(map(as_slice, parts)))


def groups(found: Explanation) -> dict[str, Group]:
    """By address."""
    return {
        address.endpoint: group
        for port in found.ports
        for group in port.groups
        for address in group.addresses
    }


policies = st.fixed_dictionaries(
    {
        "internalTrafficPolicy": st.sampled_from(["Cluster", "Local"]),
        "externalTrafficPolicy": st.sampled_from(["Cluster", "Local"]),
    }
)


@given(slices, policies, st.sampled_from([*Origin]), st.sampled_from(["zone-a", "zone-b", ""]))
def test_what_is_used_is_what_is_resolved(
    parts: list[Json], policy: dict[str, str], origin: Origin, zone: str
) -> None:
    known = msgspec.structs.replace(NODE, zone=zone)
    found = objects(parts, **policy)
    assert found.service
    (resolved,) = resolve(found.service, found.slices, known)
    explained = explain(found, known, origin)
    assert len(groups(explained)) == len(resolved.frontends)
    for group in groups(explained).values():
        wanted = resolved.local if group.policy == "Local" else resolved.cluster
        used = {e.endpoint for e in group.endpoints if e.used}
        assert used == {format_endpoint(e.address, e.port) for e in wanted}
        assert (group.verdict == "forward") == bool(wanted)
        for item in group.endpoints:
            assert item.used == (item.reason in (Reason.READY, Reason.LAST_RESORT))
            assert item.why.startswith(SENTENCES[Reason(item.reason)])


@given(slices, policies, st.sampled_from([*Origin]))
def test_what_would_be_is_what_comes(
    parts: list[Json], policy: dict[str, str], origin: Origin
) -> None:
    """Each endpoint that is not used is made ready, and each node taken away."""
    found = objects(parts, **policy)
    before = groups(explain(found, NODE, origin))
    for place, group in before.items():
        for item in group.endpoints:
            if item.if_ready:
                changed = [_with(part, item.endpoint, ready) for part in parts]
                after = groups(explain(objects(changed, **policy), NODE, origin))[place]
                (then,) = (e for e in after.endpoints if e.endpoint == item.endpoint)
                assert then.used == ("still not" not in item.if_ready)
                assert ("instead" in item.if_ready) <= then.used
        for loss in group.losses:
            changed = [without_node(part, loss.node) for part in parts]
            after = groups(explain(objects(changed, **policy), NODE, origin))[place]
            assert (loss.left, loss.verdict) == (
                sum(e.used for e in after.endpoints),
                after.verdict,
            )


def ready(value: Json) -> Json:
    return {**value, "conditions": {"ready": True, "serving": True, "terminating": False}}


def _with(part: Json, place: str, change: Callable[[Json], Json]) -> Json:
    address = place.rpartition(":")[0]
    listed = [change(e) if e["addresses"] == [address] else e for e in part["endpoints"]]
    return {**part, "endpoints": listed}


CASES: dict[str, tuple[list[Json], dict[str, str], str]] = {
    "not ready": (slice_of(endpoint("10.0.0.1", ready=False)), {}, "not ready"),
    "others are ready": (
        slice_of(
            endpoint("10.0.0.1", ready=False, serving=True, terminating=True), endpoint("10.0.0.2")
        ),
        {},
        "terminating, and others are ready",
    ),
    "serves no longer": (
        slice_of(endpoint("10.0.0.1", ready=False, serving=False, terminating=True)),
        {},
        "serves no longer",
    ),
    "other zone": (
        slice_of(
            endpoint("10.0.0.1", "worker-2", zones=["zone-b"]),
            endpoint("10.0.0.2", zones=["zone-a"]),
        ),
        {},
        "topology hints mean it for others (zone hints used: 1 of 2 for zone zone-a)",
    ),
    "policy": (
        slice_of(endpoint("10.0.0.1", "worker-2"), endpoint("10.0.0.2")),
        {"internalTrafficPolicy": "Local"},
        "on another node, and the policy is Local",
    ),
    "no node": (
        slice_of(endpoint("10.0.0.1", None), endpoint("10.0.0.2")),
        {"internalTrafficPolicy": "Local"},
        "on no node that is known",
    ),
    "weight": (
        [slice_weighing("0", endpoint("10.0.0.1")), *slice_of(endpoint("10.0.0.2"))],
        {},
        "weight 0: what it has stays, nothing new comes",
    ),
    "weight, and not ready": (
        [slice_weighing("0", endpoint("10.0.0.1", ready=False)), *slice_of(endpoint("10.0.0.2"))],
        {},
        "not ready",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_why_an_endpoint_is_not_used(case: str) -> None:
    parts, policy, why = CASES[case]
    group = groups(explain(objects(parts, **policy), NODE, Origin.POD))["172.30.0.41:80"]
    first = group.endpoints[0]
    assert first.endpoint == "10.0.0.1:8080"
    assert not first.used
    assert why in first.why


def test_weight_0_keeps_what_becomes_ready_from_being_used() -> None:
    parts, policy, _ = CASES["weight, and not ready"]
    group = groups(explain(objects(parts, **policy), NODE, Origin.POD))["172.30.0.41:80"]
    first, second = group.endpoints
    assert first.if_ready.startswith("it would still not be used: weight 0")
    assert (second.used, second.if_ready) == (True, "")


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_with_weight_0_alone_it_is_refused(policy: str) -> None:
    parts = [slice_weighing("0", endpoint("10.0.0.1"), endpoint("10.0.1.1", "worker-2"))]
    found = objects(parts, type="LoadBalancer", externalTrafficPolicy=policy)
    group = groups(explain(found, NODE, Origin.OUTSIDE))[f"{EXTERNAL}:80"]
    assert group.verdict == "reject"
    assert group.losses == ()
    assert not any(e.used for e in group.endpoints)


@pytest.mark.parametrize("origin", [*Origin])
def test_the_kernel_has_those_of_weight_0_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: Origin
) -> None:
    found = objects(CASES["weight"][0])
    assert found.service
    tables = FakeTables()
    monkeypatch.setattr(answers, "open_instance", lambda _: contextlib.nullcontext(tables))
    known = Known({found.service.key: found}, NODE, None, (), "", (), None, agents=True)
    reconciler = Reconciler(tables, NODE)
    for here, same in ((found, True), (objects(slice_of(endpoint("10.0.0.2"))), False)):
        reconciler.take(update(here))
        reconciler.apply(complete=True)
        said = answers.explained(found, known, origin, None, tmp_path, ())
        assert {group.programmed for group in groups(said).values()} == {same}


def test_the_last_of_weight_is_a_loss() -> None:
    parts = [
        slice_weighing("0", endpoint("10.0.0.1")),
        *slice_of(endpoint("10.0.0.2", "worker-2")),
    ]
    group = groups(explain(objects(parts), NODE, Origin.POD))["172.30.0.41:80"]
    (loss,) = group.losses
    assert (loss.node, loss.left, loss.verdict) == ("worker-2", 0, "reject")


def test_in_sets_that_are_too_large_weight_0_is_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbctl.resolve.why.MOST_WEIGHTED", 1)
    parts, policy, _ = CASES["weight"]
    group = groups(explain(objects(parts, **policy), NODE, Origin.POD))["172.30.0.41:80"]
    assert [e.reason for e in group.endpoints] == [Reason.READY, Reason.READY]
    assert group.verdict == "forward"


def test_the_last_resort_would_be_left_for_one_that_is_ready() -> None:
    parts = slice_of(
        endpoint("10.0.0.1", ready=False, serving=True, terminating=True),
        endpoint("10.0.0.2", "worker-2", ready=False),
    )
    group = groups(explain(objects(parts), NODE, Origin.POD))["172.30.0.41:80"]
    assert group.endpoints[0].used
    assert group.endpoints[1].if_ready == "it would be used instead of 10.0.0.1:8080"


def test_a_node_that_has_all_of_them() -> None:
    parts = slice_of(endpoint("10.0.0.1", "worker-2"), endpoint("10.0.0.2", "worker-2"))
    group = groups(explain(objects(parts), NODE, Origin.POD))["172.30.0.41:80"]
    (loss,) = group.losses
    assert (loss.node, loss.endpoints, loss.left, loss.verdict) == ("worker-2", 2, 0, "reject")


def test_outside_under_local_is_dropped_and_pods_are_not() -> None:
    parts = slice_of(endpoint("10.0.0.1", "worker-2"))
    found = objects(parts, externalTrafficPolicy="Local", type="LoadBalancer")
    outside = groups(explain(found, NODE, Origin.OUTSIDE))
    assert outside[f"{EXTERNAL}:80"].verdict == "drop"
    assert outside["172.30.0.41:80"].verdict == "forward"
    assert groups(explain(found, NODE, Origin.POD))[f"{EXTERNAL}:80"].verdict == "forward"


def test_loopback_is_the_nodes_own() -> None:
    known = msgspec.structs.replace(NODE, localhost_node_ports=True)
    made = as_service(service(type="NodePort", ports=[port(nodePort=30080)]))
    found = ServiceObjects(made, tuple(map(as_slice, slice_of(endpoint("10.0.0.1")))))
    assert "127.0.0.1:30080" in groups(explain(found, known, Origin.NODE))
    assert "127.0.0.1:30080" not in groups(explain(found, known, Origin.POD))


def test_where_traffic_with_an_address_comes_from() -> None:
    known = msgspec.structs.replace(
        NODE,
        addresses=(parse_address("192.168.0.2"),),
        cluster_cidrs=(parse_prefix("10.1.0.0/16"),),
    )
    all_ = [objects(slice_of(endpoint("10.0.0.1"), endpoint("10.0.0.2", "worker-2")))]
    for text, origin in (
        ("192.168.0.2", Origin.NODE),
        ("10.0.0.1", Origin.POD),
        ("10.0.0.2", Origin.OUTSIDE),
        ("10.1.2.3", Origin.POD),
        ("198.51.100.7", Origin.OUTSIDE),
    ):
        assert origin_of(parse_address(text), all_, known)[0] is origin, text


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    parts = slice_of(endpoint("10.0.0.1"), endpoint("10.0.0.2", "worker-2", ready=False))
    items = [service(externalIPs=[EXTERNAL]), *parts, node()]
    items.append(service("rival", cluster_ips=("172.30.0.42",), externalIPs=[EXTERNAL]))
    path = tmp_path / "objects.json"
    path.write_text(json.dumps({"kind": "List", "items": items}))
    return path


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(lbctl, ["explain", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_in_sentences(manifests: Path, tmp_path: Path) -> None:
    asked = ("--manifests", str(manifests), "--pin-dir", str(tmp_path))
    code, out, _ = run("ns1/svc1", *asked)
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "1 of 2 endpoints is used:" in lines
    assert "used 10.0.0.1:8080 this node ready" in lines
    assert (
        "not used 10.0.0.2:8080 worker-2 not ready; if it were ready, it would be used too" in lines
    )
    assert any("ns1/rival asks for 192.0.2.80:80 too" in line for line in lines)


def test_as_json(manifests: Path, tmp_path: Path) -> None:
    asked = ("--manifests", str(manifests), "--pin-dir", str(tmp_path), "-o", "json")
    code, out, _ = run("svc1:http", *asked, "--from", "outside")
    found = msgspec.json.decode(out, type=Explanation)
    assert code == 0
    assert found.origin == "outside"
    assert [e.used for e in found.ports[0].groups[0].endpoints] == [True, False]
    assert found.ports[0].groups[0].programmed is None


def test_what_is_wrong_with_other_objects_is_told_beside_the_answer(
    manifests: Path, tmp_path: Path
) -> None:
    content = json.loads(manifests.read_text())
    for number in range(12):
        odd = service(f"odd{number}", cluster_ips=("172.30.0.400",))
        content["items"].append(odd)
    manifests.write_text(json.dumps(content))
    code, out, err = run("ns1/svc1", "--manifests", str(manifests), "--pin-dir", str(tmp_path))
    assert (code, "1 of 2 endpoints is used" in out) == (0, True)
    assert err.count("'172.30.0.400' is not an IP") == 10
    assert "2 more of that kind" in err


def test_what_is_asked_wrongly(manifests: Path, tmp_path: Path) -> None:
    asked = ("--manifests", str(manifests), "--pin-dir", str(tmp_path))
    for query in ("svc2", "ns1/svc"):
        code, _, err = run(query, *asked)
        assert (code, "ns1/svc1" in err) == (3, True)
    code, _, err = run("svc1", *asked, "--from", "pod-7")
    assert code == 2
    assert "A pod is written NAMESPACE/NAME" in err
    code, _, err = run("svc1", "--pin-dir", str(tmp_path))
    assert code == 2
    assert "--manifests" in err
