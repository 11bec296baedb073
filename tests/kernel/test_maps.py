"""Maps of every kind: single entries, batches, memory, and what errors say."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest

from ebpf import maps
from ebpf.errors import LayoutError, MapFull
from ebpf.kernel import libbpf
from ebpf.layouts import Bundle
from ebpf.maps import ArrayMap, HashMap, PerCpuArray, hashes, of_kind
from tests.kernel.support.programs import small_bundle

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return small_bundle()


@pytest.fixture(params=["flows4", "flows4_lru"])
def flows(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[HashMap]:
    made = of_kind(HashMap, maps.create(bundle.maps[request.param], 70000))
    yield made
    made.close()


@pytest.fixture
def few(bundle: Bundle) -> Iterator[HashMap]:
    made = of_kind(HashMap, maps.create(bundle.maps["flows4"], 4))
    yield made
    made.close()


@pytest.fixture
def ranges(bundle: Bundle) -> Iterator[HashMap]:
    made = of_kind(HashMap, maps.create(bundle.maps["source_ranges"], 100))
    yield made
    made.close()


def entries(table: HashMap, count: int) -> tuple[maps.Records, maps.Records]:
    keys = np.zeros(count, table.spec.key.dtype)
    values = np.zeros(count, table.spec.value.dtype)
    keys["src"] = np.arange(count)
    values["bytes"] = np.arange(count) * 3
    return keys, values


def test_a_map_of_another_kind_is_named(few: HashMap) -> None:
    with pytest.raises(LayoutError, match="map flows4 is no ArrayMap, but of type hash"):
        of_kind(ArrayMap, few)


def test_single_entries(flows: HashMap) -> None:
    key = flows.spec.key.pack(src=5, port=80)
    value = flows.spec.value.pack(bytes=9, mac=b"abcdef")
    assert flows.get(key) is None
    assert flows.put(key, value)
    assert flows.get(key) == value
    assert not flows.put(key, flows.spec.value.pack(bytes=1), create_only=True)
    assert flows.get(key) == value
    assert list(flows.items()) == [(key, value)]
    assert flows.delete(key)
    assert not flows.delete(key)


def test_keys_of_another_size_are_refused(flows: HashMap) -> None:
    with pytest.raises(LayoutError, match="a key has 8 bytes, not 3"):
        flows.get(b"abc")


@pytest.mark.parametrize("batches", [True, False])
def test_many_entries(flows: HashMap, monkeypatch: pytest.MonkeyPatch, batches: bool) -> None:
    """More than one batch; and one by one, as where the kernel has no batches."""
    count = 40000 if batches else 300
    if not batches:
        for call in ("lookup", "update", "delete"):
            monkeypatch.setattr(
                libbpf.library(), f"bpf_map_{call}_batch", lambda *_: -errno.EOPNOTSUPP
            )
    keys, values = entries(flows, count)
    assert flows.put_many(keys, values) == count
    found_keys, found_values = flows.read_all()
    order = np.argsort(found_keys["src"])
    assert (found_keys["src"][order] == np.arange(count)).all()
    assert (found_values["bytes"][order] == np.arange(count) * 3).all()
    assert flows.delete_many(keys[::3]) == len(keys[::3])
    assert flows.delete_many(keys) == count - len(keys[::3])
    assert len(flows.read_all()[0]) == 0


def test_creating_many_keeps_what_is_there(flows: HashMap) -> None:
    keys, values = entries(flows, 100)
    flows.put_many(keys[::2], values[::2])
    values["bytes"] = 7
    assert flows.put_many(keys, values, create_only=True) == 50
    found_keys, found_values = flows.read_all()
    even = found_keys["src"] % 2 == 0
    assert (found_values["bytes"][~even] == 7).all()
    assert (found_values["bytes"][even] == found_keys["src"][even] * 3).all()


def test_lists_of_bytes_are_taken_too(flows: HashMap) -> None:
    keys, values = entries(flows, 3)
    as_bytes = [key.tobytes() for key in keys]
    assert flows.put_many(as_bytes, [value.tobytes() for value in values]) == 3
    assert flows.delete_many(as_bytes) == 3


def test_an_empty_table_reads_as_empty_arrays(flows: HashMap) -> None:
    keys, values = flows.read_all()
    assert (len(keys), keys.dtype) == (0, flows.spec.key.dtype)
    assert (len(values), values.dtype) == (0, flows.spec.value.dtype)
    assert flows.put_many(keys, values) == 0


@pytest.mark.parametrize("many", [True, False])
def test_a_full_map_is_named_with_its_remedy(few: HashMap, many: bool) -> None:
    keys, values = entries(few, 9)
    if not many:
        for key, value in zip(keys[:4], values[:4], strict=True):
            few.put(key.tobytes(), value.tobytes())
    with pytest.raises(MapFull, match="map flows4 is full: it has 4 entries") as caught:
        few.put_many(keys, values) if many else few.put(keys[8].tobytes(), values[8].tobytes())
    assert caught.value.errno == errno.E2BIG
    assert (caught.value.map_name, caught.value.limit) == ("flows4", "flows")
    assert "flows" in caught.value.hint
    assert len(few.read_all()[0]) == 4


def test_a_bucket_larger_than_the_batch(few: HashMap, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives whole buckets: with one entry of room it may refuse, and more is offered."""
    monkeypatch.setattr(hashes, "_BATCH", 1)
    keys, values = entries(few, 4)
    few.put_many(keys, values)
    assert sorted(few.read_all()[0]["src"].tolist()) == [0, 1, 2, 3]


def test_tries_are_read_and_written(ranges: HashMap) -> None:
    networks = [(8, b"\x0a\0\0\0"), (16, b"\x0a\x01\0\0"), (0, bytes(4))]
    keys = [ranges.spec.key.pack(length=length, net=net) for length, net in networks]
    assert ranges.put_many(keys, [bytes([i, 0, 0, 0]) for i in range(3)]) == 3
    assert ranges.get(ranges.spec.key.pack(length=32, net=b"\x0a\x01\x02\x03")) == b"\1\0\0\0"
    assert sorted(key for key, _ in ranges.items()) == sorted(keys)
    assert ranges.delete_many(keys) == 3


def test_arrays_are_memory(bundle: Bundle) -> None:
    services = cast(ArrayMap, maps.create(bundle.maps["services"], 1000))
    again = cast(ArrayMap, maps.wrap(services.spec, os.dup(services.fd)))
    services.records[999] = (1, 2, 3)
    services.store_word(999, "local", 1 << 63)
    assert again.records[999].tolist() == (1, 1 << 63, 3)
    assert again.load_word(999, "local") == 1 << 63
    assert services.records.strides == (24,)
    with pytest.raises(LayoutError, match="flags"):
        services.store_word(0, "flags", 1)
    with pytest.raises(IndexError):
        services.store_word(100000, "local", 1)
    services.close()
    again.close()


def test_an_array_that_is_not_mapped_says_so(bundle: Bundle) -> None:
    spec = bundle.maps["services"]
    with pytest.raises(LayoutError, match="services cannot be mapped"):
        maps.create(type(spec)(spec.name, spec.type, 0, spec.key, spec.value), 4)


def test_counters_sum_over_cpus(bundle: Bundle) -> None:
    counters = cast(PerCpuArray, maps.create(bundle.maps["counters"], 2))
    values = np.arange(1, maps.possible_cpus() + 1, dtype=np.uint64)
    libbpf.map_update(counters.fd, b"\1\0\0\0", values.ctypes.data, "counters")
    assert counters.read_sum().tolist() == [0, values.sum()]
    counters.close()


def test_what_a_map_says_of_itself(flows: HashMap) -> None:
    assert flows.max_entries == 70000
    assert flows.type == ("lru_hash" if flows.name.endswith("lru") else "hash")
    assert flows.memory_bytes > 70000 * 32
