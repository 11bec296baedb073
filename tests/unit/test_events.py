"""Events as an API server gets them, which node writes them, and what happens if it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from lbctl import threads
from lbctl.agent import events, telling
from lbctl.agent.events import Complaints, Teller, listed, of_conditions, of_node
from lbctl.agent.parts import Parts
from lbctl.agent.report import Report
from lbctl.agent.telling import Complaint, Regarding
from lbctl.host.requirements import Requirement
from lbctl.instruments import Instruments
from lbctl.model.records import ObjectKey, Service, ServiceObjects
from lbctl.sources.client import ApiClient
from lbctl.sources.eventapi import EventApi
from lbctl.troubles import DOCTOR, KINDS, NODE_REASONS, REASONS, Said
from tests.support.apiserver import ApiServer, Json
from tests.support.k8s_objects import node

UID = "01234567-89ab-cdef-0123-456789abcdef"
WEB = Regarding("Service", "ns1", "web", UID)
TAKEN = Complaint(WEB, "AddressTaken")
NOTE = "ns1/web asks for 10.0.0.1:80, which ns1/api has"
PROBLEM = "Service ns1/gone: spec.ports[0]: is no port"
PATIENCE = 10.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(events, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(events, "_LAST_WAIT", 0.01)
    monkeypatch.setattr(events, "_FORBIDDEN_WAIT", 0.05)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as made:
        yield made


def put_node(server: ApiServer, name: str, *, ready: bool = True, system: str = "linux") -> None:
    value = node(name)
    value["metadata"]["labels"] = {"kubernetes.io/os": system}
    status = "True" if ready else "False"
    value.setdefault("status", {})["conditions"] = [{"type": "Ready", "status": status}]
    server.put(value)


class Rig:
    """A teller of `worker-1`, on a server."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        self.instruments = Instruments()
        self.findings: list[Requirement] = []
        client = ApiClient(server.kubeconfig(directory), None, self.instruments)
        self.api = EventApi(client, "worker-1")
        self.teller = Teller(
            self.api, self.instruments, lambda: self.findings, of_node("worker-1"), lambda: None
        )

    def __enter__(self) -> Rig:
        self.teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.teller.stop()
        assert not self.teller.watched.alive

    def written(self, result: str) -> float:
        found = self.instruments.registry.get_sample_value(
            "lbctl_kubernetes_events_total", {"result": result}
        )
        assert found is not None
        return found


@pytest.fixture
def rig(server: ApiServer, tmp_path: Path) -> Iterator[Rig]:
    put_node(server, "worker-1")
    with Rig(server, tmp_path) as made:
        yield made


def eventually(what: Callable[[], object]) -> None:
    limit = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.005)


def only(server: ApiServer) -> Json:
    (found,) = server.events_written.values()
    return found


def test_an_event_is_what_describe_looks_for(rig: Rig, server: ApiServer) -> None:
    rig.teller.hold({TAKEN: NOTE})
    eventually(lambda: server.events_written)
    found = only(server)
    assert found["regarding"] == {
        "apiVersion": "v1",
        "kind": "Service",
        "namespace": "ns1",
        "name": "web",
        "uid": UID,
    }
    assert found["metadata"]["namespace"] == "ns1"
    assert (found["reason"], found["note"], found["type"]) == ("AddressTaken", NOTE, "Warning")
    assert (found["reportingController"], found["reportingInstance"]) == ("lbctl", "worker-1")
    assert found["action"]
    assert found["eventTime"].endswith("Z")
    assert len(found["eventTime"]) == len("2026-01-01T00:00:00.000000Z")
    eventually(lambda: rig.written("written") == 1)


def test_a_long_note_is_cut_where_the_api_wants_it(rig: Rig, server: ApiServer) -> None:
    rig.teller.hold({TAKEN: "ü" * 2000})
    eventually(lambda: server.events_written)
    assert 900 < len(only(server)["note"].encode()) <= 1024


def test_what_goes_on_is_a_series(
    rig: Rig, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "REPEAT_SECONDS", 0.05)
    rig.teller.hold({TAKEN: NOTE})
    eventually(lambda: server.events_written and only(server).get("series", {}).get("count") == 3)
    assert only(server)["series"]["lastObservedTime"].endswith("Z")
    # The server forgets events after an hour or so: it is written anew.
    server.events_written.clear()
    eventually(lambda: server.events_written)
    assert only(server)["note"] == NOTE


def test_one_that_is_there_already_is_not_written_twice(rig: Rig, server: ApiServer) -> None:
    server.write_failures = [409]
    rig.teller.hold({TAKEN: NOTE})
    eventually(lambda: server.writes)
    rig.teller.hold({TAKEN: NOTE, Complaint(WEB, "NoRoom"): "x"})
    eventually(lambda: server.events_written)
    assert [value["reason"] for _, _, value in server.writes] == ["AddressTaken", "NoRoom"]


@pytest.mark.parametrize(
    ("nodes", "speaks"),
    [
        ([("worker-1", True, "linux"), ("worker-2", True, "linux")], True),
        ([("alpha", True, "linux")], False),
        ([("alpha", False, "linux")], True),
        ([("alpha", True, "windows")], True),
        ([(f"a{n}", n == 35, "linux") for n in range(40)], False),
        ([(f"a{n:02}", False, "linux") for n in range(40)], True),
    ],
)
def test_the_first_ready_node_speaks(
    server: ApiServer, tmp_path: Path, nodes: list[tuple[str, bool, str]], speaks: bool
) -> None:
    for name, ready, system in sorted([*nodes, ("worker-1", True, "linux")]):
        put_node(server, name, ready=ready, system=system)
    rig = Rig(server, tmp_path)
    assert rig.api.is_speaker() is speaks
    asked = [query for path, query in server.requests if path == "/api/v1/nodes"]
    assert {query["limit"] for query in asked} == {"10"}
    rig.api.close()


def test_of_itself_every_node_speaks(server: ApiServer, tmp_path: Path) -> None:
    put_node(server, "alpha")
    about_node = Complaint(of_node("worker-1"), "MapNearlyFull")
    with Rig(server, tmp_path) as rig:
        rig.teller.hold({TAKEN: NOTE, about_node: "map slots is 95 % full"})
        eventually(lambda: server.events_written)
        time.sleep(0.1)
    found = only(server)
    assert found["regarding"] == {
        "apiVersion": "v1",
        "kind": "Node",
        "name": "worker-1",
        "uid": "worker-1",
    }
    assert found["metadata"]["namespace"] == "default"


def test_what_doctor_finds_is_said_of_the_node(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_DOCTOR_WAITS", 0.0)
    made = Rig(server, tmp_path)
    made.findings = [
        Requirement("forwarding", False, "off", "sysctl …", required=False),
        Requirement("closing sockets", False, "no CAP_SYS_ADMIN", "give it", required=False),
        Requirement("libbpf", True, "libbpf.so.1"),
    ]
    with made:
        eventually(lambda: server.events_written)
    assert only(server)["reason"] == DOCTOR
    assert only(server)["note"] == "forwarding: off. sysctl …"


def test_a_doctor_that_fails_costs_its_advice(
    rig: Rig, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a thread, whose successor does not ask again at once."""
    asked: list[None] = []

    def fail() -> list[Requirement]:
        asked.append(None)
        raise ZeroDivisionError

    monkeypatch.setattr(events, "_DOCTOR_WAITS", 0.0)
    monkeypatch.setattr(threads, "_FIRST_SECONDS", 0.0)
    rig.teller.stop()
    failing = Teller(rig.api, rig.instruments, fail, of_node("worker-1"), lambda: None)
    failing.start()
    failing.hold({TAKEN: NOTE})

    def told() -> object:
        failing.watched.check()
        return server.events_written

    eventually(told)
    failing.stop()
    assert (len(asked), failing.watched.restarts) == (1, 1)


def test_without_the_right_it_is_said_once(
    rig: Rig, server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.write_failures = [403] * 3
    rig.teller.hold({TAKEN: NOTE})
    eventually(lambda: rig.written("refused") == 2)
    assert "deploy/components/events" in rig.teller.problem
    eventually(lambda: rig.written("written") == 1)
    eventually(lambda: not rig.teller.problem)
    assert capsys.readouterr().out.count("events cannot be written") == 1


def test_a_server_that_is_away_is_tried_again(rig: Rig, server: ApiServer) -> None:
    server.go_away()
    rig.teller.hold({TAKEN: NOTE})
    eventually(lambda: rig.written("failed") >= 2)
    assert rig.teller.problem
    server.resume()
    eventually(lambda: server.events_written)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_what_is_never_taken_is_not_sent_for_ever(rig: Rig, server: ApiServer, status: int) -> None:
    server.write_failures = [status]
    rig.teller.hold({TAKEN: NOTE})
    eventually(lambda: server.writes)
    time.sleep(0.1)
    assert len(server.writes) == 1


def test_a_thread_that_ends_is_replaced_and_tells_it_all_again(
    rig: Rig, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, faults = rig.api.create, [ZeroDivisionError()]

    def fail_once(**event: Any) -> None:
        if faults:
            raise faults.pop()
        create(**event)

    monkeypatch.setattr(rig.api, "create", fail_once)
    rig.teller.hold({TAKEN: NOTE})

    def written() -> object:
        rig.teller.watched.check()
        return server.events_written

    eventually(written)
    assert rig.teller.watched.restarts == 1


class Loop:
    """What the loop's part sees."""

    def __init__(self) -> None:
        self.held: list[dict[Complaint, str]] = []
        self.said: tuple[Said, ...] = ()
        self.problems: dict[ObjectKey, str] = {}
        self.told = 0
        self.taken: dict[ObjectKey, tuple[tuple[str, str], ...]] = {}
        key = ObjectKey("ns1", "web")
        age = bytes(8) + UUID(UID).bytes
        found = Service(key, type="ClusterIP", seniority=age)
        self.objects = {key: ServiceObjects(found)}
        parts: Any = SimpleNamespace(
            reconciler=SimpleNamespace(
                complaints=lambda: self.taken,
                known=SimpleNamespace(objects=self.objects),
                told=0,
            ),
            source=SimpleNamespace(service_problems=lambda: self.problems),
            facts=SimpleNamespace(name="worker-1"),
        )
        self.reconciler = parts.reconciler
        latest = SimpleNamespace(source=SimpleNamespace(problems=()))
        self.report: Any = SimpleNamespace(said=(), latest=latest)
        watched = SimpleNamespace(due=lambda: None, check=lambda: None)
        teller: Any = SimpleNamespace(watched=watched, hold=self.held.append)
        self.complaints = Complaints(cast(Parts, parts), cast(Report, self.report), teller)


def test_the_loop_hands_over_what_changed_and_rests() -> None:
    loop = Loop()
    assert loop.complaints.due() == 0.0
    loop.complaints.step(100.0)
    assert loop.held == [{}]
    assert loop.complaints.due() is None
    loop.taken = {ObjectKey("ns1", "web"): (("AddressTaken", NOTE),)}
    loop.problems = {ObjectKey("ns1", "gone"): PROBLEM}
    loop.reconciler.told += 1
    assert loop.complaints.due() == 100.0 + events.LOOK_SECONDS
    loop.complaints.step(101.0)
    assert len(loop.held) == 1
    loop.report.said = (Said("room", "map slots is 95 % full"), Said("hints", "unused"))
    loop.complaints.step(106.0)
    assert loop.held[1] == {
        TAKEN: NOTE,
        Complaint(Regarding("Service", "ns1", "gone"), "FieldUnreadable"): PROBLEM,
        Complaint(of_node("worker-1"), "MapNearlyFull"): "map slots is 95 % full",
    }
    assert loop.complaints.due() is None


def test_many_of_one_reason_are_one_event() -> None:
    said = [Said("interface", f"no programs on veth{n}") for n in range(5)]
    assert of_conditions(said) == {
        "InterfaceWithoutPrograms": "no programs on veth0; no programs on veth1; "
        "no programs on veth2; and 2 more"
    }
    assert listed(["a"]) == "a"


def test_reasons_are_words_that_the_api_takes() -> None:
    for reason in (*REASONS, *NODE_REASONS):
        assert reason.isalpha()
        assert reason[0].isupper()
        assert len(reason) <= 128
    assert not {*REASONS} & {*NODE_REASONS}
    assert len(NODE_REASONS) == 1 + sum(bool(kind.event) for kind in KINDS.values())
