"""Maps without a kernel, for tests of the control plane: the same names, every write counted."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ebpf.layouts import Field, MapSpec, Record
from ebpf.maps.buckets import BucketTable, elements_for
from ebpf.maps.declared import USES, Maps
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.tables import PerCpuTable, Records
from tests.support.fake_cells import FakeFlowTable

HASH, ARRAY = 1, 2

ADDR = Field("addr", 0, 16, 0, "struct", (Field("w", 0, 16, 4, "u32"),))


def fields(*described: tuple[str, str]) -> tuple[tuple[Field, ...], int]:
    """Members aligned as C does it, and the size of them all (the descriptions end aligned)."""
    found, offset = [], 0
    for name, kind in described:
        members = ADDR.fields if kind == "addr" else ()
        size = 16 if members else int(kind[1:]) // 8
        offset = -(-offset // (4 if members else size)) * (4 if members else size)
        found.append(Field(name, offset, size, 0, "struct" if members else kind, members))
        offset += size
    return tuple(found), offset


def record(name: str, *described: tuple[str, str]) -> Record:
    members, size = fields(*described)
    return Record(name, size, members)


def number(kind: str) -> Record:
    return Record("", int(kind[1:]) // 8, (Field("", 0, int(kind[1:]) // 8, 0, kind),))


FRONTEND_KEY = (
    *fields(("addr", "addr"), ("port", "u16"), ("proto", "u8"))[0],
    Field("pad", 19, 5, 5, "u8"),
)
FRONTEND = Record(
    "frontend_cell",
    32,
    (Field("key", 0, 24, 0, "struct", FRONTEND_KEY), Field("word", 24, 8, 0, "u64")),
)
SERVICE = Record(
    "service",
    64,
    (
        *(
            Field(name, 8 * place, 8, 0, "u64")
            for place, name in enumerate(("cluster", "local", "cluster_table", "local_table"))
        ),
        Field("flags", 32, 4, 0, "u32"),
        Field("affinity", 36, 4, 0, "u32"),
        Field("turn", 40, 8, 2, "u32"),
        Field("near", 48, 4, 0, "u32"),
        Field("spill_over", 52, 2, 0, "u16"),
        Field("slow_start", 54, 2, 0, "u16"),
        Field("algorithm", 56, 1, 0, "u8"),
        Field("pad", 57, 3, 3, "u8"),
        Field("flows_leave", 60, 4, 0, "u32"),
    ),
)
SLOT = record("slot", ("backend", "u32"), ("share", "u16"), ("other", "u16"))
HASH_PAIR = Record("hash_pair", 8, (Field("backend", 0, 8, 2, "u32"),))
BACKEND = record(
    "backend",
    ("addr", "addr"),
    ("port", "u16"),
    ("flags", "u8"),
    ("generation", "u8"),
    ("service", "u32"),
    ("since", "u32"),
    ("weight", "u16"),
    ("pad", "u16"),
)
NAME_KEY = record("name_key", ("service", "u32"))
DEVICE = record("device", ("node4", "addr"), ("node6", "addr"))
NAME = Record("name", 160, (Field("text", 0, 160, 160, "char"),))
COUNTERS = record(
    "service_counters",
    *((n, "u64") for n in ("connections", "packets_in", "bytes_in", "packets_out", "bytes_out")),
    ("live", "u64"),
)
CIDR = (
    Field("net", 0, 16, 0, "struct", ADDR.fields),
    Field("mask", 16, 16, 0, "struct", ADDR.fields),
)
RANGE = Record(
    "source_range",
    24,
    (
        Field("prefix_length", 0, 4, 0, "u32"),
        Field("service", 4, 4, 0, "u32"),
        Field("client", 8, 16, 0, "struct", ADDR.fields),
    ),
)
CONFIG_NUMBERS = (
    "flags",
    "syn_timeout",
    "established_timeout",
    "closing_timeout",
    "reset_timeout",
    "time_wait_timeout",
    "datagram_timeout",
    "datagram_stream_timeout",
)
CONFIG = Record(
    "config",
    688,
    (
        *(Field(n, 4 * i, 4, 0, "u32") for i, n in enumerate(CONFIG_NUMBERS)),
        Field("port_min", 32, 2, 0, "u16"),
        Field("port_max", 34, 2, 0, "u16"),
        Field("cidr_count4", 36, 4, 0, "u32"),
        Field("cidr_count6", 40, 4, 0, "u32"),
        Field("node4", 44, 16, 0, "struct", ADDR.fields),
        Field("node6", 60, 16, 0, "struct", ADDR.fields),
        Field("cidr4", 76, 128, 4, "struct", CIDR),
        Field("cidr6", 204, 128, 4, "struct", CIDR),
        Field("host_netns", 336, 8, 0, "u64"),
        Field("pod_cidr_count4", 344, 4, 0, "u32"),
        Field("pod_cidr_count6", 348, 4, 0, "u32"),
        Field("pod_cidr4", 352, 128, 4, "struct", CIDR),
        Field("pod_cidr6", 480, 128, 4, "struct", CIDR),
        Field("agent_beat", 608, 4, 0, "u32"),
        Field("node_port_max", 612, 2, 0, "u16"),
        Field("pad", 614, 2, 0, "u16"),
        Field("fin_wait_timeout", 616, 4, 0, "u32"),
        Field("agent_timeout", 620, 4, 0, "u32"),
        Field("events_until", 624, 4, 0, "u32"),
        *(
            Field(f"fast_{name}", 628 + 4 * i, 4, 0, "u32")
            for i, name in enumerate(("open", "until", "epoch", "mtu"))
        ),
        Field("xdp", 644, 4, 0, "u32"),
        Field("dsr_port", 648, 2, 0, "u16"),
        Field("pad2", 650, 6, 3, "u16"),
        Field("node_port4", 656, 16, 0, "struct", ADDR.fields),
        Field("node_port6", 672, 16, 0, "struct", ADDR.fields),
    ),
)


CPU = record("cpu", ("unheard", "u64"))  # of it, what is read


class FakeHash:
    """A dict in the shape of `ebpf.maps.HashMap`."""

    def __init__(self, name: str, key: Record, value: Record, max_entries: int) -> None:
        self.name = name
        self.spec = MapSpec(name, HASH, 0, key, value)
        self.max_entries = max_entries
        self.entries: dict[bytes, bytes] = {}
        self.writes = 0
        self.batch = 3  # small, so that tests cross batches

    def get(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        assert len(key) == self.spec.key.size
        assert len(value) == self.spec.value.size
        self.entries[key] = value
        self.writes += 1
        assert len(self.entries) <= self.max_entries

    def delete(self, key: bytes) -> bool:
        self.writes += 1
        return self.entries.pop(key, None) is not None

    def put_many(self, keys: Records, values: Records) -> int:
        for key, value in zip(keys, values, strict=True):
            self.put(key.tobytes(), value.tobytes())
        return len(keys)

    def delete_many(self, keys: Records | Sequence[bytes]) -> int:
        return sum(self.delete(k if isinstance(k, bytes) else k.tobytes()) for k in keys)

    def read_all(self) -> tuple[Records, Records]:
        return self._arrays(list(self.entries.items()))

    def batches(self, most: int = 16384) -> Iterator[tuple[Records, Records]]:
        items = list(self.entries.items())
        size = min(most, self.batch)
        for start in range(0, len(items), size):
            yield self._arrays(items[start : start + size])

    def _arrays(self, items: list[tuple[bytes, bytes]]) -> tuple[Records, Records]:
        keys = np.frombuffer(b"".join(k for k, _ in items), self.spec.key.dtype)
        values = np.frombuffer(b"".join(v for _, v in items), self.spec.value.dtype)
        return keys, values


class FakeArray:
    """A numpy array in the shape of `ebpf.maps.ArrayMap`."""

    def __init__(self, name: str, value: Record, max_entries: int) -> None:
        self.name = name
        self.max_entries = max_entries
        self.records: Records = np.zeros(max_entries, value.dtype)
        self.words: Counter[int] = Counter()

    def store_word(self, index: int, field: str, value: int) -> None:
        self.words[index] += 1
        self.records[field][index] = value


class FakeTables(Maps[FakeHash, FakeArray, PerCpuTable]):
    """The maps the control plane writes and reads, empty."""

    def __init__(self, services: int = 64, endpoints: int = 256, slots: int = 1024) -> None:
        self.add(FakeArray("frontends", FRONTEND, elements_for(8 * services + endpoints)))
        self.add(FakeHash("source_ranges", RANGE, number("u32"), services))
        self.add(FakeHash("names", NAME_KEY, NAME, services))
        self.add(FakeArray("services", SERVICE, services))
        self.add(FakeArray("slots", SLOT, slots))
        self.add(FakeArray("backends", BACKEND, endpoints))
        self.add(FakeArray("hash_tables", HASH_PAIR, 1 << 18))
        self.add(FakeArray("service_counters", COUNTERS, services))
        self.add(FakeArray("config", CONFIG, 1))
        self.add(FakeArray("cpus", CPU, 2))
        self.add(FakeArray("backend_live", number("u64"), endpoints))
        self.add(FakeHash("devices", number("u32"), DEVICE, services))
        self.add(FakeHash("fast_devices", number("u32"), number("u32"), services))
        self.flow_tables = (FakeFlowTable("4"), FakeFlowTable("6"))

    def add(self, table: FakeHash | FakeArray) -> None:
        """One of the declared maps, of its declared kind."""
        kind = HASH if isinstance(table, FakeHash) else ARRAY
        assert kind in USES[table.name].kinds
        setattr(self, table.name, table)

    def snapshot(self) -> dict[str, Any]:
        """The bytes of everything; of the table of frontends what it says, wherever that lies."""
        found: dict[str, Any] = {
            name: dict(table.entries) if isinstance(table, FakeHash) else table.records.tobytes()
            for name, table in vars(self).items()
            if isinstance(table, FakeHash | FakeArray)
        }
        keys, words = BucketTable(self.frontends).read()
        found["frontends"] = {k.tobytes(): w for k, w in zip(keys, words.tolist(), strict=True)}
        return found

    def frontend_entries(self) -> dict[bytes, tuple[int, int]]:
        """Service and flags by key, of all but the endpoints."""
        found = Frontends(self.frontends).read_all()
        columns = found.keys, found.services.tolist(), found.flags.tolist()
        return {key.tobytes(): (s, f) for key, s, f in zip(*columns, strict=True)}

    def endpoint_entries(self) -> set[bytes]:
        """Address and port of each; not their addresses by themselves."""
        keys, words = BucketTable(self.frontends).read()
        endpoints = words >> np.uint64(consts.FRONTEND_FLAGS_SHIFT) == consts.FRONTEND_ENDPOINT
        return {key[:18] for key in map(bytes, keys[endpoints]) if not key[18]}

    def hash_writes(self) -> int:
        """Updates and deletions of hash maps so far."""
        return sum(t.writes for t in vars(self).values() if isinstance(t, FakeHash))

    def word_stores(self) -> int:
        """Region words stored so far."""
        return self.services.words.total()
