"""A small real run of the benchmark: records of every peer, reasons of the absent, nothing left."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ebpf.hooks.cgroup import root as cgroup_root
from lbctl.bench import (
    apiserver,
    forwarding,
    generator,
    run,
    saved,
    testbed,  # not its class, which pytest would collect
)
from lbctl.bench.dataset import Dataset
from lbctl.bench.iptables_rules import full
from lbctl.bench.measures import CONNECTION_MEASURES, Effort
from lbctl.bench.options import Options
from lbctl.bench.records import RATES, Record, Results, read_records
from lbctl.errors import LbError
from lbctl.lab import namespace

pytestmark = [pytest.mark.lab]

NAME = f"t{os.getpid()}"
RAN = ("none", "hooks", "nftables", "lbctl-tc")
TINY = Effort(
    turns=2,
    connections=20,
    roundtrips=20,
    many=300,
    many_turns=2,
    many_roundtrips=400,
    load_turns=1,
    changes=2,
    change_seconds=5,
)

OPTIONS = Options(
    services=(1, 10),
    peers=(*RAN, "iptables-legacy", "ipvs"),
    measures=(*CONNECTION_MEASURES, "roundtrip_64k", "load_time", "change_time", "kernel_memory"),
    effort=TINY,
    timeout=60.0,
    name=NAME,
)


def options(**changes: Any) -> Options:
    return msgspec.structs.replace(OPTIONS, **changes)


def quiet(_what: str, _detail: str) -> None:
    pass


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    left = [name for name in namespace.existing() if NAME in name]
    pins, files = testbed.PINS / NAME, testbed.RUN / NAME
    group = cgroup_root() / f"lbctl-bench-{NAME}"
    found = [*left, *(path for path in (pins, files, group) if path.exists())]
    testbed.Testbed(NAME, []).remove()
    assert not found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A run on a machine without iptables-legacy."""
    patch = pytest.MonkeyPatch()
    which = shutil.which
    patch.setattr(shutil, "which", lambda name: None if "legacy" in name else which(name))
    results = Results(tmp_path_factory.mktemp("bench") / "run.jsonl")
    try:
        run.run(options(), results, quiet)
    finally:
        patch.undo()
    return results


def record(results: Results, peer: str, services: int, measure: str) -> Record:
    (found,) = (r for r in results.records if r.key == (peer, services, measure))
    return found


@pytest.mark.parametrize("services", [1, 10])
@pytest.mark.parametrize("peer", RAN)
def test_connections_are_measured_through_every_peer(
    finished: Results, peer: str, services: int
) -> None:
    latency = record(finished, peer, services, "connect_latency")
    assert latency.n == TINY.turns * TINY.connections
    assert 0 < latency.p50 <= latency.p90 <= latency.p99
    for measure in CONNECTION_MEASURES:
        found = record(finished, peer, services, measure)
        assert found.ratio_to_floor is not None
        assert math.isfinite(found.ratio_to_floor)
        if peer == "none":
            assert found.ratio_to_floor == 1
        if measure in RATES:
            assert found.p50 >= found.p99


@pytest.mark.parametrize("peer", RAN)
def test_round_trips_on_many_connections_are_measured_once(finished: Results, peer: str) -> None:
    found = [r for r in finished.records if (r.peer, r.measure) == (peer, "roundtrip_64k")]
    assert [(r.services, r.n) for r in found] == [(10, TINY.many_turns)]
    assert found[0].ratio_to_floor


@pytest.mark.parametrize("peer", ["nftables", "lbctl-tc"])
def test_loading_changes_and_memory_are_measured(finished: Results, peer: str) -> None:
    assert record(finished, peer, 10, "load_time").p50 > 0
    changes = record(finished, peer, 10, "change_time")
    assert changes.n >= 1
    assert changes.p50 > 0


def test_the_memory_of_maps_is_counted(finished: Results) -> None:
    assert record(finished, "lbctl-tc", 10, "kernel_memory").p50 > 1


def test_who_could_not_run_is_reported_with_the_reason(finished: Results) -> None:
    reasons = {missing.peer: missing.reason for missing in finished.about.missing}
    assert "iptables-legacy-restore is not installed" in reasons["iptables-legacy"]
    assert "IPVS" in reasons["ipvs"]
    assert not {r.peer for r in finished.records} & {"iptables-legacy", "ipvs"}


def test_records_are_in_the_file(finished: Results) -> None:
    assert finished.path is not None
    assert read_records(finished.path) == finished.records


def test_a_finished_run_resumed_measures_nothing(finished: Results) -> None:
    assert finished.path is not None
    results = Results.resume(finished.path)
    said: list[str] = []
    run.run(options(peers=RAN), results, lambda what, _: said.append(what))
    assert said == []
    assert results.records == finished.records


def test_an_interrupted_run_leaves_only_its_records(tmp_path: Path) -> None:
    results = Results(tmp_path / "run.jsonl")

    def interrupt(what: str, detail: str) -> None:
        if "connections" in what and "2 of" in detail:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(options(services=(1,), peers=("none", "lbctl-tc")), results, interrupt)
    assert {r.measure for r in results.records} == {"load_time"}


def test_what_takes_too_long_is_said_not_to_have_finished() -> None:
    results = Results()
    chosen = options(services=(2000,), peers=("nftables",), timeout=0.2, measures=("load_time",))
    run.run(chosen, results, quiet)
    (missing,) = results.about.missing
    assert (missing.peer, missing.services) == ("nftables", 2000)
    assert missing.reason == "not finished in 0.2 s"
    assert results.records == []


def test_without_a_compiler_python_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "compiled", lambda _directory: None)
    results = Results()
    run.run(options(services=(1,), peers=("none", "lbctl-tc")), results, quiet)
    assert results.about.machine["generator"].startswith("Python")
    assert record(results, "lbctl-tc", 1, "connect_latency").n == TINY.turns * TINY.connections
    assert record(results, "lbctl-tc", 1, "change_time").p50 > 0


def test_saved_rules_are_loaded_and_reached(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text(full(Dataset(5, 2)))
    results = Results()
    chosen = options(
        services=(5,),
        peers=("none", "iptables-legacy"),
        measures=("connect_latency", "change_time"),
        saved=saved.read(path),
    )
    run.run(chosen, results, quiet)
    assert record(results, "iptables-legacy", 5, "connect_latency").n > 0
    (missing,) = (m for m in results.about.missing if m.measure == "change_time")
    assert "the rules are a file's" in missing.reason


@pytest.fixture
def fake_kube_proxy(tmp_path: Path) -> Path:
    script = tmp_path / "kube-proxy"
    script.write_text(f"#!{sys.executable}\n{(Path(__file__).parent / FAKE).read_text()}")
    script.chmod(0o755)
    return script


FAKE = "support/fake_kube_proxy.py"


@pytest.fixture
def wrong_version() -> Iterator[None]:
    """As the harness once was: `apiVersion: v1` for whatever it serves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(apiserver.API_VERSIONS, "EndpointSlice", "v1")
        yield


def test_a_kube_proxy_is_run_in_each_mode(fake_kube_proxy: Path) -> None:
    """It gets its configuration and the API, and iptables is the variant that a peer is about."""
    results = Results()
    peers = ("iptables-legacy", "iptables-nft", "nftables")
    measures = ("connect_latency", "load_time", "change_time", "agent_memory")
    chosen = options(services=(7,), peers=("none", *peers), measures=measures)
    changed = {"kube_proxy": fake_kube_proxy, "min_sync_period": 0.25}
    run.run(msgspec.structs.replace(chosen, **changed), results, quiet)
    named = "Kubernetes v1.36.2-fake, minSyncPeriod 0.25s"
    assert results.about.machine["kube-proxy"] == named
    assert any(f"kube-proxy itself ({named})" in text for text in results.about.method)
    for peer in peers:
        assert record(results, peer, 7, "connect_latency").n > 0
        assert record(results, peer, 7, "load_time").p50 > 0
        assert record(results, peer, 7, "change_time").p50 > 0
        assert record(results, peer, 7, "agent_memory").p50 > 5


def test_a_kube_proxy_that_ends_is_told_with_its_words(tmp_path: Path) -> None:
    script = tmp_path / "kube-proxy"
    script.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && echo Kubernetes v1.36.2 && exit\n'
        'echo "no such flag" >&2; exit 1\n'
    )
    script.chmod(0o755)
    results = Results()
    chosen = options(services=(1,), peers=("none", "nftables"), measures=("load_time",))
    run.run(msgspec.structs.replace(chosen, kube_proxy=script), results, quiet)
    (missing,) = results.about.missing
    assert missing.reason == "the agent ended: no such flag"


@pytest.mark.usefixtures("wrong_version")
def test_a_kube_proxy_that_is_told_wrong_kinds_does_not_run(fake_kube_proxy: Path) -> None:
    """The stand-in is as strict as the real one, which waited for its lists for ever."""
    results = Results()
    chosen = options(services=(1,), peers=("none", "nftables"), measures=("load_time",))
    run.run(msgspec.structs.replace(chosen, kube_proxy=fake_kube_proxy), results, quiet)
    (missing,) = results.about.missing
    assert "no kind EndpointSliceList is registered for v1" in missing.reason


def goes_on(pid: int) -> bool:
    """Whether a process is there still after what the kernel may need to end one."""
    for _ in range(200):
        try:
            state = Path("/proc", str(pid), "stat").read_text().rpartition(") ")[2][0]
        except FileNotFoundError:
            return False
        if state in "ZX":  # nobody has asked for its exit code
            return False
        time.sleep(0.01)
    return True


def test_what_is_not_finished_is_ended_and_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    """With the tools it runs, before others are measured beside it."""
    script = tmp_path / "kube-proxy"
    script.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && echo Kubernetes v1.36.2 && exit\n'
        f"sleep 60 & echo $! >{tmp_path}/tool\n"
        "echo cannot list services >&2; wait\n"
    )
    script.chmod(0o755)
    results = Results()
    chosen = options(
        services=(1,), peers=("none", "nftables", "lbctl-tc"), measures=("load_time",), timeout=5.0
    )
    running: list[bool] = []

    def look(what: str, _detail: str) -> None:
        if "loading lbctl-tc" in what:
            running.append(goes_on(int((tmp_path / "tool").read_text())))

    run.run(msgspec.structs.replace(chosen, kube_proxy=script), results, look)
    missing = next(m for m in results.about.missing if m.peer == "nftables")
    assert missing.reason == "not finished in 5 s; its log ends: cannot list services"
    assert running == [False]


def test_two_runs_of_one_name_do_not_meet() -> None:
    second = testbed.Testbed(NAME, ["none"])
    with testbed.Testbed(NAME, ["none"]), pytest.raises(LbError, match="is running"), second:
        pass


def test_packets_are_forwarded_and_counted_through_every_peer() -> None:
    """Each that arrives: a frame that is lost is an error of the run."""
    peers = ("none", "nftables", "iptables-legacy", "lbctl-tc", "lbctl-fast", "lbctl-xdp")
    results = Results()
    few = msgspec.structs.replace(TINY, packet_rounds=2, packet_repeat=500)
    run.run(options(peers=peers, measures=("packet_rate",), effort=few), results, quiet)
    assert not [one for one in results.about.missing if one.measure == "packet_rate"]
    found = {record.peer: record for record in results.records}
    assert set(found) == set(peers)
    assert all(record.n == 2 and record.p50 > 0 for record in found.values())
    six = {f"{peer}, IPv6" for peer in ("none", "lbctl-tc", "lbctl-fast", "lbctl-xdp")}
    assert set(results.about.packet_rates) == {forwarding.ALONE, forwarding.REWRITTEN, *six}
