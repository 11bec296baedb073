"""Tables of flows of their own for tests: small, private, with the programs of table.c on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ebpf import flowtable, maps
from ebpf.compile import compiler, source
from ebpf.compile.source import Unit, family_unit
from ebpf.flowtable import CELL, FlowTable
from ebpf.layouts import Bundle
from ebpf.maps.arrays import possible_cpus
from ebpf.maps.base import Map, Records
from ebpf.programs import load
from tests.kernel.support.apart import kept_apart

BACKENDS = 128


def table_bundle(family: str) -> Bundle:
    """table.c, for one family."""
    return compiler.bundle(units=[family_unit(family, "table.c")])


def bundle_with(
    file: str,
    family: str,
    directory: Path,
    replaced: Sequence[tuple[str, str, str]] = (),
    defines: tuple[tuple[str, str], ...] = (),
) -> Bundle:
    """A C file beside this one, compiled with the headers of bpf_src; `directory` is for both.
    `replaced`: files, a text that stands there once, and what takes its place."""
    joined = directory / "bpf_src"
    joined.mkdir(parents=True)
    for path in (*source.source_dir().iterdir(), Path(__file__).with_name(file)):
        text = path.read_text()
        for _, old, new in (change for change in replaced if change[0] == path.name):
            assert text.count(old) == 1, f"{path.name} has this {text.count(old)} times: {old}"
            text = text.replace(old, new)
        (joined / path.name).write_text(text)
    own = family_unit(family, file)
    unit = Unit(own.name, file, (*own.defines, *defines), own.words)
    both = family_unit(family, "table.c")
    with kept_apart():
        return compiler.bundle(directory=joined, units=[unit, both])


class PrivateTable:
    """Maps for one family's table of `buckets`, and every program of `bundle` on them."""

    def __init__(self, bundle: Bundle, family: str, buckets: int) -> None:
        self.enums, self.bundle, self.family = bundle.enums, bundle, family
        sizes = {
            f"control{family}a": buckets,
            f"cells{family}a": 8 * buckets,
            f"states{family}a": 8 * buckets,
            f"cells{family}b": 8,
            f"states{family}b": 8,
            f"held{family}": 1 << bundle.enums["HOLDER_BITS"],
            "cpus": possible_cpus(),
            "flow_events": 1 << 16,
            "backend_live": BACKENDS,
            "service_counters": BACKENDS,
            "threads": possible_cpus(),
            "wanted": 4 * BACKENDS,
        }
        self.maps = {
            name: maps.create(spec, sizes.get(name, 1))
            for name, spec in bundle.maps.items()
            if spec.type != maps.PROG_ARRAY
        }
        flowtable.prepare(self.maps, self.enums)
        self.programs: dict[str, int] = {}
        self._loaded: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
        # A client of tests may have the whole table to itself; tests of fairness say otherwise.
        # None: as it was made.
        self.share: int | None = 0
        self.load()

    @property
    def table(self) -> FlowTable:
        return FlowTable(self.family, self.maps, self.enums, self.programs)

    def load(self) -> None:
        """The programs, for the bank that is theirs now; those of before stay open."""
        for letter in "ab" if self.share is not None else "":
            self.records(f"table{self.family}{letter}")["share"] = self.share
        phase = int(self.records(f"table{self.family}a")["phase"][0])
        names = flowtable.program_names(self.maps, {self.family: phase}, self.enums)
        taken = {name: self.maps[other] for name, other in names.items()}
        key = tuple(sorted((name, found.id) for name, found in taken.items()))
        if key not in self._loaded:
            fds = {name: found.fd for name, found in taken.items()}
            self._loaded[key] = {n: load(p, fds) for n, p in self.bundle.programs.items()}
        self.programs = self._loaded[key]

    # What ebpf.growth asks of an instance.

    def map(self, name: str) -> Map:
        return self.maps[name]

    def map_names(self) -> list[str]:
        return list(self.maps)

    def resize(self, name: str, entries: int) -> None:
        old = self.maps[name]
        if old.max_entries == entries:
            return
        self.maps[name] = maps.create(old.spec, entries)
        old.close()

    def records(self, name: str) -> Records:
        return cast(maps.ArrayMap, self.maps[name]).records

    def close(self) -> None:
        for fd in (fd for programs in self._loaded.values() for fd in programs.values()):
            os.close(fd)
        for made in self.maps.values():
            made.close()


def address(number: int, family: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A client's or a backend's, by number."""
    raw = number.to_bytes(4, "big")
    head = b"\xfd" + bytes(11) if family == "6" else bytes(10) + b"\xff\xff"
    return np.frombuffer(head + raw, np.uint8)


def rings(
    enums: Mapping[str, int],
    family: str,
    count: int,
    length: int = 2,
    state: str = "STATE_ESTABLISHED",
    clients: int = 1,
) -> Records:
    """Flows for FlowTable.open, each from a port or an address of its own."""
    made = np.zeros((count, length), CELL)
    kinds = [
        0,
        enums["CELL_REPLY"],
        enums["CELL_SIDE"] | enums["CELL_REPLY"],
        enums["CELL_SIDE"],
    ]
    masqueraded = enums["CELL_MASQUERADED"] if length == 4 else 0
    node, service, backend = (address(n, family) for n in (0x0A010101, 0x0A600001, 0x0AF40001))
    for number in range(count):
        client = address(0x0A000000 + number % clients, family)
        port = 1024 + number // clients
        ends = [
            (client, port, service, 80, backend, 8080),
            (backend, 8080, client, port, service, 80),
            (client, port, backend, 8080, node, port),
            (backend, 8080, node, port, client, port),
        ]
        for cell, kind, (src, sport, dst, dport, addr, to) in zip(
            made[number], kinds, ends, strict=False
        ):
            cell["src"], cell["dst"], cell["sport"], cell["dport"] = src, dst, sport, dport
            cell["addr"], cell["port"], cell["client_port"] = addr, to, port
            cell["kind"] = kind | masqueraded
    made["proto"], made["state"] = 6, enums[state]
    made["backend"], made["service"], made["packets"], made["bytes"] = 5, 7, 3, 300
    return made
