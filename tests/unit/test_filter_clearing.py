"""Bits of both filters while those nobody needs are being found: a change in between keeps its."""

import numpy as np

from lbctl.addresses import parse_address
from lbctl.datapath import consts, filters
from lbctl.datapath.records import frontend_key, marker_key
from lbctl.plan.changes import Plan
from lbctl.plan.claims import Claims
from lbctl.reconcile.clearing import Clearing
from lbctl.reconcile.sweep import Swept
from lbctl.resolve.ports import FrontendKind
from tests.support.fake_tables import FakeTables

TCP = 6


def found(*flows_to: str) -> Swept:
    services = np.zeros(1 << consts.SERVICE_FILTER_BITS, bool)
    backends = np.zeros(1 << consts.BACKEND_FILTER_BITS, bool)
    services[service_bits(*flows_to)] = True
    return Swept(0.0, np.zeros(1, bool), np.zeros(1, bool), services, backends)


def service_bits(*addresses: str, kind: int = 0) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    raw = b"".join(map(parse_address, addresses))
    return filters.address_bits(np.frombuffer(raw, np.uint8).reshape(-1, 16), kind)


def set_in(table_records: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> set[int]:
    flags = np.unpackbits(table_records.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(flags).tolist())


def everything_set(tables: FakeTables) -> None:
    tables.service_filter.records[:] = np.uint64(2**64 - 1)
    tables.backend_filter.records[:] = np.uint64(2**64 - 1)


def test_what_is_needed_stays_and_all_else_goes() -> None:
    tables, claims = FakeTables(), Claims(lambda _: None)
    everything_set(tables)
    web, outside = parse_address("10.96.0.1"), parse_address("203.0.113.1")
    claims.add(1, [(frontend_key(web, 80, TCP), consts.FRONTEND_CLUSTER_IP)])
    claims.add(1, [(frontend_key(outside, 80, TCP), int(FrontendKind.EXTERNAL_IP))])
    gone = [frontend_key(parse_address("10.96.0.9"), 80, TCP)]
    for _ in Clearing(tables, claims, found("10.96.0.7"), gone).run([parse_address("192.0.2.1")]):
        pass
    plain = service_bits("10.96.0.1", "203.0.113.1", "10.96.0.9", "10.96.0.7", "192.0.2.1")
    cluster_ips = service_bits("10.96.0.1", "10.96.0.9", kind=1)
    wanted = {*plain.tolist(), *cluster_ips.tolist()}
    assert set_in(tables.service_filter.records) == wanted
    called = filters.identity_bits([frontend_key(outside, 80, TCP)[:18], gone[0][:18]])
    assert set_in(tables.backend_filter.records) == set(called.tolist())


def test_a_change_in_between_keeps_its_bits() -> None:
    tables, claims = FakeTables(), Claims(lambda _: None)
    everything_set(tables)
    claims.add(1, [(frontend_key(parse_address("10.96.0.1"), 80, TCP), consts.FRONTEND_CLUSTER_IP)])
    clearing = Clearing(tables, claims, found(), [])
    steps = clearing.run([])
    next(steps)
    new = parse_address("10.96.0.5")
    backend = parse_address("10.0.0.1") + b"\x1f\x90"
    entries = [
        (frontend_key(new, 80, TCP), 2, consts.FRONTEND_CLUSTER_IP),
        (marker_key(new), 0, consts.FRONTEND_ADDRESS),
    ]
    clearing.note(Plan(frontends=entries, backend_identities=[backend]))
    for _ in steps:
        pass
    assert set_in(tables.service_filter.records) >= set(service_bits("10.96.0.5").tolist())
    assert set_in(tables.service_filter.records) >= set(service_bits("10.96.0.5", kind=1).tolist())
    bits = filters.backend_bits([backend]).tolist()
    assert set_in(tables.backend_filter.records) == set(bits)
