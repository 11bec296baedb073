"""Which events are meant: what columns can tell at once, and what only names can."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from lbctl.datapath import consts
from lbctl.datapath.reasons import ENDINGS, VERDICTS, ending_names, reason_names, verdict
from lbctl.datapath.tables import Records
from lbctl.inspect.flowfilter import Target, inside
from lbctl.observe.events import DROPPED, ENDED, OPENED, REFUSED, EventRow

Mask = npt.NDArray[np.bool_]
_SIDES: Final = (("src", "sport"), ("dst", "dport"), ("addr", "port"))


class EventFilter(msgspec.Struct, frozen=True):
    """All that is given must hold; of several values of one kind, any. `address` is the client's,
    the one that was asked, or the endpoint's; so is `port`."""

    services: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    address: Target | None = None
    port: int = 0
    protocol: int = 0
    verdicts: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def chosen(self, records: Records, enums: Mapping[str, int]) -> Records:
        """Those of which columns alone say nothing against."""
        found = np.ones(len(records), bool)
        if self.protocol:
            found &= records["proto"] == self.protocol
        if self.port:
            wanted = socket.htons(self.port)
            found &= np.logical_or.reduce([records[port] == wanted for _, port in _SIDES])
        if self.address is not None:
            found &= _at(records, self.address)
        if self.verdicts or self.reasons:
            found &= self._decided(records, enums)
        return records[found]

    def matches(self, row: EventRow) -> bool:
        """Whether names say the same."""
        if self.services and not (
            row.service and any(row.service.matches(query) for query in self.services)
        ):
            return False
        ends = [row.client, *([row.backend] if row.backend else [])]
        if self.pods and not any(is_pod(end.name, pod) for end in ends for pod in self.pods):
            return False
        return not self.nodes or any(end.node in self.nodes for end in ends)

    def _decided(self, records: Records, enums: Mapping[str, int]) -> Mask:
        """By what was told and why, of which there are few pairs."""
        pairs = records["what"].astype(np.uint16) << 8 | records["why"]
        reasons, endings = reason_names(enums), ending_names(enums)
        meant = []
        for pair in np.unique(pairs).tolist():
            what, why = pair >> 8, pair & 0xFF
            if what == consts.EVENT_OPENED:
                said, reason = OPENED, ""
            elif what == consts.EVENT_ENDED:
                said, reason = ENDED, endings.get(why, "")
            else:
                reason = reasons.get(why, "")
                said = REFUSED if verdict(reason) == "refused" else DROPPED
            if said in (self.verdicts or (said,)) and reason in (self.reasons or (reason,)):
                meant.append(pair)
        return np.isin(pairs, meant)


def known_reasons() -> tuple[str, ...]:
    """What --reason may be: why flows end, and why packets go no further."""
    return (*ENDINGS, *VERDICTS[REFUSED], *VERDICTS[DROPPED])


def is_pod(name: str, query: str) -> bool:
    """Is `query`, NAME or NAMESPACE/NAME, this pod's?"""
    return bool(name) and query in (name, name.partition("/")[2])


def _at(records: Records, target: Target) -> Mask:
    found = np.zeros(len(records), bool)
    for address, port in _SIDES:
        there = inside(records[address], target.prefix)
        if target.port:
            there &= records[port] == socket.htons(target.port)
        found |= there
    return found
