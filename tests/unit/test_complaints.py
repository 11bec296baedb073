"""What is complained of: by service and reason, where Events and metrics read it."""

from __future__ import annotations

import msgspec
import pytest

from lbctl.addresses import parse_address
from lbctl.model.decode import SLICES
from lbctl.model.records import EndpointSlice, ObjectKey, Service, ServiceObjects
from lbctl.reconcile.reconciler import Reconciler
from lbctl.sources.store import Store
from lbctl.troubles import ADDRESS_TAKEN, PARTLY_SERVED, Said, bounded, of_kind
from tests.support.fake_tables import FakeTables
from tests.support.k8s_objects import endpoint_slice
from tests.support.reconciling import NODE, objects, update

WEB, LATE = ObjectKey("default", "web"), ObjectKey("default", "late")
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"


def asking(name: str, cluster_ip: str, external: str) -> ServiceObjects:
    """A service that wants an external address too."""
    found = objects(name, cluster_ip, ["10.0.0.1"])
    assert found.service
    wants = msgspec.structs.replace(found.service, external_ips=(parse_address(external),))
    return msgspec.structs.replace(found, service=wants)


@pytest.fixture
def reconciler() -> Reconciler:
    return Reconciler(FakeTables(), NODE)


def test_who_lost_an_address_is_told_with_both_names(reconciler: Reconciler) -> None:
    reconciler.take(update(objects("web", "10.96.0.1", ["10.0.0.1"])))
    reconciler.apply(True)
    before = reconciler.told
    assert reconciler.complaints() == {}
    reconciler.take(update(asking("late", "10.96.0.2", "10.96.0.1")))
    reconciler.apply(True)
    assert reconciler.told > before
    ((reason, text),) = reconciler.complaints()[LATE]
    assert reason == ADDRESS_TAKEN
    assert "default/late" in text
    assert "default/web has" in text
    assert Said("services", text) in reconciler.said()
    told = reconciler.told
    reconciler.take(update(gone=["late"]))
    reconciler.apply(True)
    assert reconciler.complaints() == {}
    assert reconciler.told > told


def test_a_refused_address_is_a_part_that_is_not_served(reconciler: Reconciler) -> None:
    reconciler.take(update(asking("web", "10.96.0.1", "127.0.0.1")))
    reconciler.apply(True)
    ((reason, text),) = reconciler.complaints()[WEB]
    assert reason == PARTLY_SERVED
    assert "127.0.0.1 is not served" in text
    assert [one.kind for one in reconciler.said()] == ["services"]


def test_what_of_a_service_cannot_be_read_is_told_by_its_name() -> None:
    store = Store("worker-1", parts=1)
    try:
        store.replace(Service, [], remarks={WEB: "spec.ports[0]: is none"})
        store.replace(EndpointSlice, [], remarks={LATE: "ports[0]: is none"})
        store.set_problem(Service, LATE, "spec: is none")
        store.set_problem(Service, ObjectKey("", ""), "who knows")
        assert store.problems_of(Service) == {WEB: "spec.ports[0]: is none", LATE: "spec: is none"}
    finally:
        store.close()


def test_a_uid_is_as_the_api_server_writes_it() -> None:
    uid = "01234567-89ab-cdef-0123-456789abcdef"
    seniority = bytes(8) + bytes.fromhex(uid.replace("-", ""))
    assert Service(WEB, "ClusterIP", seniority=seniority).uid == uid
    assert Service(WEB, "ClusterIP").uid == ""
    assert Service(WEB, "ClusterIP", seniority=bytes(8) + b"abc").uid == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-01T00:00:00Z", 1767225600.0),
        ("2026-01-01T00:00:00.25Z", 1767225600.25),
        ("2026-01-01T01:00:00.123456789+01:00", 1767225600.123456),
        ("soon", 0.0),
        ("", 0.0),
        ("0001-01-01T00:00:00Z", -62135596800.0),
    ],
)
def test_when_a_slice_was_triggered(text: str, seconds: float) -> None:
    value = endpoint_slice()
    value["metadata"]["annotations"] = {TRIGGER: text, "other": "x" * 100}
    assert SLICES.decode(msgspec.json.encode(value)).triggered == seconds


def test_sentences_are_bounded() -> None:
    assert bounded(["a", "b"], most=2) == ["a", "b"]
    assert bounded(map(str, range(5)), most=2) == ["0", "1", "... and 3 more of this kind"]
    assert [*of_kind("room", ["x"])] == [Said("room", "x")]
