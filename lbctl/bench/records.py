"""What a run produces: a record per peer, number of services and measure; and what is missing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from lbctl.errors import ConfigError

PEERS = (
    "none",
    "hooks",
    "iptables-nft",
    "iptables-legacy",
    "nftables",
    "ipvs",
    "lbctl-tc",
    "lbctl-fast",
    "lbctl-socket",
    "lbctl-xdp",
)
FLOOR = "none"
HOOKS = "hooks"  # programs that do nothing
WITHOUT_SERVICES = frozenset({FLOOR, HOOKS})  # they route, and know no services
NODE = "node"  # whoever translates on a real node
ORDER = (*PEERS, NODE)  # of tables

# Measure to its unit.
UNITS = {
    "connect_latency": "us",
    "connection_rate": "1/s",
    "request_rate": "1/s",
    "throughput": "Gbit/s",
    "roundtrip_added": "us",
    "roundtrip_64k": "us",
    "packet_ns": "ns",
    "packet_instructions": "instructions",
    "packet_rate": "1/s",
    "cpu_per_packet": "s/1M packets",
    "load_time": "s",
    "change_time": "ms",
    "agent_memory": "MB",
    "kernel_memory": "MB",
}
# Of these, more is better.
RATES = frozenset({"connection_rate", "request_rate", "throughput", "packet_rate"})
ADDED = frozenset({"roundtrip_added", "roundtrip_64k"})  # differences to the floor
MANY_FLOWS = 65536
ALL = "all"  # a Missing's measure when the peer did not run at all


class Record(msgspec.Struct, frozen=True):
    """One line of the raw data. p50, p90 and p99 are in `unit`, p90 and p99 the unfavourable side
    (of a rate: what 90 and 99 % of the samples exceed); `n` samples. `ratio_to_floor` is to the
    node without rules, None where there is no such thing."""

    peer: str
    services: int
    measure: str
    unit: str
    p50: float
    p90: float
    p99: float
    n: int
    ratio_to_floor: float | None = None

    @property
    def key(self) -> tuple[str, int, str]:
        return self.peer, self.services, self.measure


class Missing(msgspec.Struct, frozen=True):
    """What was not measured, and why. `services` is 0 if no number of them would help."""

    peer: str
    services: int
    measure: str
    reason: str


class Distribution(msgspec.Struct, frozen=True):
    """Connect latency of one peer and number of services: its percentiles 0 to 100, in us."""

    peer: str
    services: int
    percentiles: tuple[float, ...]


class PacketCost(msgspec.Struct, frozen=True):
    """One kind of packet through our programs, in ns above an empty program."""

    name: str
    minimum: float
    median: float


class About(msgspec.Struct):
    """Everything of a run that is no record: kept beside the records, as FILE.about.json."""

    machine: dict[str, str] = {}
    method: list[str] = []
    missing: list[Missing] = []
    failures: list[str] = []  # connections that failed, in sentences
    distributions: list[Distribution] = []
    packets: list[PacketCost] = []
    packet_rates: dict[str, float] = {}  # of what is no peer, beside packet_rate
    instructions: dict[str, tuple[int, int]] = {}  # program to static and verified


class Results:
    """Records and what goes with them, written to a file as they come if there is one."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.records: list[Record] = []
        self.about = About()

    @classmethod
    def resume(cls, path: Path) -> Results:
        """Results that go on where the file ends; an absent file is an empty one. ConfigError."""
        results = cls(path)
        if path.exists():
            results.records = read_records(path)
        about = about_path(path)
        if about.exists():
            try:
                results.about = msgspec.json.decode(about.read_bytes(), type=About)
            except msgspec.DecodeError as error:
                raise ConfigError(f"{about} is not from a run of this version: {error}") from error
        return results

    def forget_reasons(self, peers: Collection[str], sizes: Collection[int]) -> None:
        """Before measuring those again: what was missing may be there now."""
        self.about.missing = [
            missing
            for missing in self.about.missing
            if missing.peer not in peers or missing.services not in (0, *sizes)
        ]

    def has(self, peer: str, services: int, measure: str) -> bool:
        return any(record.key == (peer, services, measure) for record in self.records)

    def add(self, records: Iterable[Record]) -> None:
        """Keep records and append them to the file; those that are there already stay."""
        fresh = [record for record in records if not self.has(*record.key)]
        self.records += fresh
        if self.path is not None and fresh:
            with self.path.open("ab") as out:
                out.writelines(msgspec.json.encode(record) + b"\n" for record in fresh)

    def miss(self, peer: str, services: int, measure: str, reason: str) -> None:
        found = Missing(peer, services, measure, reason)
        if found not in self.about.missing:
            self.about.missing.append(found)

    def save_about(self) -> None:
        if self.path is not None:
            encoded = msgspec.json.format(msgspec.json.encode(self.about), indent=1)
            about_path(self.path).write_bytes(encoded + b"\n")


def about_path(path: Path) -> Path:
    return path.with_name(path.name + ".about.json")


def read_records(path: Path) -> list[Record]:
    """The records of a file of JSON lines. ConfigError names the line that is none."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found.append(msgspec.json.decode(line, type=Record))
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"{path}, line {number}: {error}",
                "--resume takes the --json file of an earlier run.",
            ) from error
    return found


def summary(
    peer: str,
    services: int,
    measure: str,
    samples: Sequence[float] | np.ndarray,
    ratio: float | None = None,
) -> Record:
    """The record of `samples` (in the measure's unit, at least one); `ratio` is to the floor."""
    values = np.asarray(samples, dtype=float)
    wanted = (50, 10, 1) if measure in RATES else (50, 90, 99)
    p50, p90, p99 = (float(value) for value in np.percentile(values, wanted))
    return Record(
        peer,
        services,
        measure,
        UNITS[measure],
        _short(p50),
        _short(p90),
        _short(p99),
        len(values),
        None if ratio is None else round(ratio, 4),
    )


def _short(value: float) -> float:
    """Five significant digits: the rest is noise."""
    return float(f"{value:.5g}")
