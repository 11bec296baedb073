"""The store between a source and the agent: gates, coalescing, what counts as touched."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest

from lbctl.model.records import EndpointSlice, Node, ObjectKey, Service
from lbctl.model.updates import Update
from lbctl.sources.store import Store
from tests.support.k8s_objects import (
    as_node,
    as_service,
    as_slice,
    endpoint,
    endpoint_slice,
    node,
    service,
)

KEY = ObjectKey("ns1", "svc1")


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store("worker-1", parts=1)
    yield made
    made.close()


def _readable(store: Store) -> bool:
    poll = select.poll()
    poll.register(store.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _sync(store: Store) -> Update:
    for kind in (Service, EndpointSlice, Node):
        store.replace(kind, [])
    update = store.take()
    assert update is not None
    assert update.synced
    return update


def test_nothing_before_every_kind_is_listed(store: Store) -> None:
    store.replace(Service, [as_service(service())])
    assert store.take() is None
    store.replace(Node, [as_node(node()), as_node(node("worker-2"))])
    store.put(as_slice(endpoint_slice()))
    assert not _readable(store)
    store.replace(EndpointSlice, [as_slice(endpoint_slice())])
    assert _readable(store)
    update = store.take()
    assert update is not None
    assert update.synced
    assert update.complete
    assert update.node_changed
    assert update.node is not None
    assert update.node.name == "worker-1"
    assert list(update.services) == [KEY]
    assert [s.key.name for s in update.services[KEY].slices] == ["svc1-1"]
    assert not _readable(store)
    assert store.take() is None


def test_touched_services_only_and_coalesced(store: Store) -> None:
    store.put(as_service(service()))
    store.put(as_service(service("svc2")))
    _sync(store)
    store.put(as_service(service()))
    store.take()
    for number in range(5):
        store.put(as_slice(endpoint_slice(endpoints=[endpoint(f"10.0.0.{number}")])))
    update = store.take()
    assert update is not None
    assert list(update.services) == [KEY]
    assert update.services[KEY].slices[0].endpoints[0].address[-1] == 4
    assert not update.node_changed


def test_what_is_equal_touches_nothing(store: Store) -> None:
    _sync(store)
    store.put(as_service(service()))
    store.put(as_slice(endpoint_slice()))
    store.put(as_node(node()))
    assert store.take() is not None
    store.put(as_service(service()))
    store.put(as_slice(endpoint_slice()))
    store.put(as_node(node()))
    store.put(as_node(node("worker-2")))
    store.remove(Service, ObjectKey("ns1", "unknown"))
    store.replace(Service, [as_service(service())])
    assert not _readable(store)
    assert store.take() is None


def test_gone_and_back_within_one_update(store: Store) -> None:
    _sync(store)
    store.put(as_service(service()))
    store.take()
    store.remove(Service, KEY)
    update = store.take()
    assert update is not None
    assert update.services[KEY].service is None
    store.put(as_service(service()))
    store.remove(Service, KEY)
    store.put(as_service(service(cluster_ips=["172.30.0.9"])))
    update = store.take()
    assert update is not None
    assert update.services[KEY].service == as_service(service(cluster_ips=["172.30.0.9"]))


def test_moving_slice_touches_both_services(store: Store) -> None:
    _sync(store)
    store.put(as_slice(endpoint_slice(of="svc1")))
    store.take()
    store.put(as_slice(endpoint_slice(of="svc2")))
    update = store.take()
    assert update is not None
    assert set(update.services) == {KEY, ObjectKey("ns1", "svc2")}
    assert update.services[KEY].slices == ()
    assert len(update.services[ObjectKey("ns1", "svc2")].slices) == 1


def test_slice_without_a_service_label_leaves_its_service(store: Store) -> None:
    _sync(store)
    store.put(as_slice(endpoint_slice()))
    store.take()
    unlabelled = endpoint_slice()
    unlabelled["metadata"]["labels"] = {}
    store.put(as_slice(unlabelled))
    update = store.take()
    assert update is not None
    assert update.services[KEY].slices == ()
    store.remove(EndpointSlice, ObjectKey("ns1", "svc1-1"))
    assert store.take() is None


def test_slices_are_sorted_by_name(store: Store) -> None:
    _sync(store)
    for name in ("c", "a", "b"):
        store.put(as_slice(endpoint_slice(name)))
    update = store.take()
    assert update is not None
    assert [s.key.name for s in update.services[KEY].slices] == ["a", "b", "c"]


def test_malformed_objects_stay_and_hold_completeness(store: Store) -> None:
    _sync(store)
    store.put(as_service(service()))
    store.take()
    known = {KEY: "Service ns1/svc1: bad"}
    store.replace(Service, [], known)
    assert store.status().problems == ("Service ns1/svc1: bad",)
    assert store.status().complete  # what is programmed for it is known
    update = store.take()
    assert update is not None
    assert update.services == {}
    unknown = {ObjectKey("ns1", "never"): "Service ns1/never: bad"}
    store.replace(Service, [], {**known, **unknown})
    assert not store.status().complete
    store.replace(Service, [])
    assert store.status().complete
    assert store.status().problems == ()
    update = store.take()
    assert update is not None
    assert update.services[KEY].service is None


def test_status_changes_are_updates_too(store: Store) -> None:
    _sync(store)
    store.connected("x")
    update = store.take()
    assert update is not None
    assert update.status.connected
    store.disconnected("x", "API server: gone")
    assert _readable(store)
    update = store.take()
    assert update is not None
    assert (update.status.connected, update.status.last_error) == (False, "API server: gone")
    store.disconnected("x", "API server: gone")
    assert store.take() is None


def test_waiting_is_bounded(store: Store) -> None:
    assert store.wait(0.01) is None


def test_something_without_a_name_may_be_any(store: Store) -> None:
    """A list that holds it takes nothing away."""
    _sync(store)
    store.put(as_service(service()))
    store.take()
    store.replace(Service, [as_service(service("svc2"))], {ObjectKey("", ""): "Service: no name"})
    update = store.take()
    assert update is not None
    assert list(update.services) == [ObjectKey("ns1", "svc2")]
    assert not update.complete
    store.replace(Service, [as_service(service("svc2"))])
    update = store.take()
    assert update is not None
    assert list(update.services) == [KEY]


def test_remarks_stay_as_long_as_they_are_true(store: Store) -> None:
    _sync(store)
    assert store.put(as_service(service()), "a port is wrong")
    assert not store.put(as_service(service()), "a port is wrong")  # said before
    assert store.status().problems == ("a port is wrong",)
    assert store.status().complete
    assert not store.put(as_service(service()))
    assert store.status().problems == ()
    store.replace(Service, [as_service(service())], remarks={KEY: "again"})
    assert store.status().problems == ("again",)
    store.remove(Service, KEY)
    assert store.status().problems == ()


def test_problems_are_not_told_without_end(store: Store) -> None:
    keys = [ObjectKey("ns1", f"svc{i}") for i in range(1000)]
    store.replace(Service, [], {key: f"Service {key}: wrong" for key in keys})
    problems = store.status().problems
    assert len(problems) == 101
    assert problems[-1] == "... and 900 more"
