"""The two flow tables of a family: finding an entry, ending one, and counting what it carried."""

import numpy as np

from lbctl.addresses import IPV4
from lbctl.datapath import consts
from lbctl.datapath.records import rows_as_bytes
from lbctl.datapath.tables import HashTable, Records, Tables

Entry = tuple[bytes, bytes]  # key and value


class FlowTables:
    """`plain` holds TCP alone and forgets nothing; `lru` holds everything else, and TCP that did
    not fit."""

    def __init__(self, tables: Tables, family: int) -> None:
        self.family = family
        self.plain: HashTable = tables.flows4 if family == IPV4 else tables.flows6
        self.lru: HashTable = tables.flows4_lru if family == IPV4 else tables.flows6_lru
        self._state = tables.table_state
        self._counters = tables.service_counters

    def state(self, field: str) -> Records:
        """The one element of a field of `table_state`, of this family: it can be stored to."""
        element: Records = self._state.records[f"{field}{self.family}"]
        return element

    def load(self) -> float:
        """How full the plain table is, 0 to 1, by the programs' own count."""
        return int(self.state("tcp_entries")[0]) / self.plain.max_entries

    def find(self, keys: Records) -> tuple[list[HashTable | None], list[bytes]]:
        """The table in which each key is found (None: in neither), and its value (or zeros)."""
        blank = bytes(self.lru.spec.value.size)
        where: list[HashTable | None] = []
        values = []
        for key, proto in zip(pieces(keys), keys["proto"].tolist(), strict=True):
            for table in (self.plain, self.lru) if proto == consts.IPPROTO_TCP else (self.lru,):
                value = table.get(key)
                if value is not None:
                    where.append(table)
                    values.append(value)
                    break
            else:
                where.append(None)
                values.append(blank)
        return where, values

    def end(self, table: HashTable, key: bytes, value: bytes) -> bool:
        """Delete an entry, if it is still what was read: a new connection may have taken it."""
        if table.get(key) != value or not table.delete(key):
            return False
        if table is self.plain:
            entries = self.state("tcp_entries")
            if entries[0]:
                entries[0] -= np.uint64(1)
        return True

    def count(self, ended: list[Entry]) -> None:
        """Add what ended flows had not yet added to their services' counters.

        The programs add to the same numbers with atomic instructions, which Python has not: a
        packet counted in between these loads and stores can be lost, a flow's never.
        """
        values = np.frombuffer(b"".join(value for _, value in ended), self.lru.spec.value.dtype)
        counted = (
            (values["tick_packets"] > 0)
            & (values["state"] != consts.FLOW_SIDE)
            & (values["flags"] & consts.FLOW_DIRECT == 0)
        )
        counters = self._counters.records
        for value in values[counted]:
            service = int(value["service"])
            if service >= len(counters):
                continue
            way = "out" if value["flags"] & consts.FLOW_REPLY else "in"
            counters[f"packets_{way}"][service] += np.uint64(value["tick_packets"])
            counters[f"bytes_{way}"][service] += np.uint64(value["tick_bytes"])

    def correct_entries(self, before: int, ended: int, counted: int) -> None:
        """Set the number of TCP entries right, unless it only moved while they were counted:
        `before` is what it was then, less `ended`."""
        column = self.state("tcp_entries")
        now = int(column[0])
        moved = abs(now - (before - ended))
        if abs(counted - now) > 2 * moved:
            column[0] = counted


def pieces(records: Records) -> list[bytes]:
    """Each record's bytes."""
    raw = rows_as_bytes(np.ascontiguousarray(records)).tobytes()
    size = records.dtype.itemsize
    return [raw[start : start + size] for start in range(0, len(raw), size)]
