"""Events for people and scripts: names in place of numbers, and why."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import numpy as np

from lbctl.addresses import format_address, format_endpoint, parse_address
from lbctl.datapath import clock, consts
from lbctl.datapath.reasons import ENDINGS, ending_names, reason_names, sentence, verdict
from lbctl.datapath.tables import Records
from lbctl.inspect.flows import PROTOCOLS
from lbctl.model.names import PortName
from lbctl.observe.places import Place, Places

OPENED: Final = "opened"
ENDED: Final = "ended"
REFUSED: Final = "refused"
DROPPED: Final = "dropped"
VERDICTS: Final = (OPENED, ENDED, REFUSED, DROPPED)

_NAMES_SECONDS: Final = 5.0  # ids get other owners, but rest before
_TRAFFIC: Final = ("packets_in", "bytes_in", "packets_out", "bytes_out")


class End(msgspec.Struct, frozen=True):
    """One side: `name` is of the pod or node that has the address, empty if that is not known;
    `node` where it runs; `kind` is pod, node, process or empty; `interface` leads to a pod of this
    node that has no name."""

    address: str
    port: int
    name: str = ""
    node: str = ""
    kind: str = ""
    interface: str = ""

    @property
    def text(self) -> str:
        """For a line."""
        if not self.address:
            return self.name
        if self.name:
            return f"{self.name}:{self.port}" if self.port else self.name
        return self.endpoint

    @property
    def hint(self) -> str:
        """What is known of a pod without a name, for people."""
        return Place(self.name, self.node, self.kind, self.interface).hint

    @property
    def endpoint(self) -> str:
        """Address and port."""
        if not self.address:
            return ""
        return format_endpoint(parse_address(self.address), self.port)


class EventRow(msgspec.Struct, frozen=True):
    """One event. "in" is to the endpoint. `reason` is empty for new flows; `explanation` says what
    it means. `seconds` is how long a flow that ended lasted, from its first packet to its last, to
    about a second. `process` is that of a socket of the node's own which was told where to connect,
    and 0 for what packets did."""

    time: str
    verdict: str
    service: PortName | None
    protocol: str
    client: End
    address: str  # what was asked
    backend: End | None
    reason: str
    explanation: str
    kind: str
    seconds: float
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    process: int


class Names:
    """Names of service ports by id, read anew when they may be others."""

    def __init__(
        self, read: Callable[[], dict[int, PortName]], now: Callable[[], float] = time.monotonic
    ) -> None:
        """`read` opens the map anew: it may have been replaced by a larger one."""
        self._read_all = read
        self._now = now
        self._known: dict[int, PortName] = {}
        self._read = float("-inf")

    def of(self, service: int) -> PortName | None:
        """None for 0, which is nobody's."""
        if not service:
            return None
        age = self._now() - self._read
        if age > _NAMES_SECONDS or (service not in self._known and age > 1.0):
            self._known = self._read_all()
            self._read = self._now()
        return self._known.get(service) or PortName.parse(f"service id {service}")


class Reader:
    """Makes rows of records."""

    def __init__(self, enums: Mapping[str, int], known: Names, places: Places) -> None:
        """`enums` are those that the programs were compiled with."""
        self._names = known
        self._places = places
        self._reasons = reason_names(enums)
        self._endings = ending_names(enums)
        # The monotonic clock stands still while the machine sleeps: both are read now.
        self._epoch = time.time_ns() - time.monotonic_ns()

    def rows(self, records: Records) -> Iterator[EventRow]:
        """In order."""
        columns = [name for name in records.dtype.names or () if records[name].ndim == 1]
        values = zip(*(records[name].tolist() for name in columns), strict=True)
        addresses = (_texts(records[name]) for name in ("src", "dst", "addr"))
        for value, src, dst, addr in zip(values, *addresses, strict=True):
            yield self._row(dict(zip(columns, value, strict=True)), src, dst, addr)

    def _row(self, value: dict[str, int], src: bytes, dst: bytes, addr: bytes) -> EventRow:
        what = value["what"]
        said, reason, text = self._verdict(what, value["why"])
        opened = what != consts.EVENT_TURNED_AWAY
        client = self._end(src, value["sport"])
        if value["process"]:
            client = End("", 0, f"process {value['process']}", self._places.node, "process")
        proto = value["proto"]
        return EventRow(
            time=self.moment(value["time"]),
            verdict=said,
            service=self._names.of(value["service"]),
            protocol=PROTOCOLS.get(proto, str(proto) if proto else ""),
            client=client,
            address=format_endpoint(dst, socket.ntohs(value["dport"])),
            backend=self._end(addr, value["port"]) if opened else None,
            reason=reason,
            explanation=text,
            kind=_kind(value, src == addr) if opened else "",
            seconds=_lasted(value) if said == ENDED else 0.0,
            process=value["process"],
            **{name: value[name] for name in _TRAFFIC},
        )

    def moment(self, nanoseconds: int) -> str:
        """A reading of the monotonic clock, as people write it."""
        seconds = (self._epoch + nanoseconds) / 1e9
        text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
        return text.replace("+00:00", "Z")

    def _verdict(self, what: int, why: int) -> tuple[str, str, str]:
        if what == consts.EVENT_OPENED:
            return OPENED, "", ""
        if what == consts.EVENT_ENDED:
            reason = self._endings.get(why, str(why))
            return ENDED, reason, ENDINGS.get(reason, "")
        reason = self._reasons.get(why, str(why))
        return REFUSED if verdict(reason) == "refused" else DROPPED, reason, sentence(reason)

    def _end(self, address: bytes, port: int) -> End:
        place = self._places.of(address)
        known = (place.name, place.node, place.kind, place.interface)
        return End(format_address(address), socket.ntohs(port), *known)


def _texts(column: Any) -> list[bytes]:
    raw = np.ascontiguousarray(column).tobytes()
    return [raw[at : at + 16] for at in range(0, len(raw), 16)]


def _kind(value: Mapping[str, int], itself: bool) -> str:
    kind = value["kind"]
    if value["process"]:
        return "socket"
    if kind & consts.CELL_NODE:
        return "node"
    if kind & consts.CELL_MASQUERADED:
        return "hairpin" if itself else "masqueraded"
    return "service"


def _lasted(value: Mapping[str, int]) -> float:
    passed = (value["seen"] - value["opened"]) & 0xFFFFFFFF
    return round(clock.seconds(passed), 1) if passed < 1 << 31 else 0.0
