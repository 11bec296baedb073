"""Clearing the filters' bits: which ones are still needed, found in steps so that no change waits.

Setting a bit is part of a change; nobody knows whose else a bit is, so clearing means finding all
that are needed. What changes meanwhile is added at the end.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from lbctl.datapath import consts, filters
from lbctl.datapath.tables import Tables
from lbctl.plan.changes import Plan
from lbctl.plan.claims import Claims
from lbctl.reconcile.sweep import Swept

_KEYS: Final = 2048
_RECORDS: Final = 16384


class Clearing:
    """One pass over everything. `found` is of the sweep before: what flows need; it is used up."""

    def __init__(self, tables: Tables, claims: Claims, found: Swept, gone: list[bytes]) -> None:
        """`gone`: keys of frontends that packets under way may still look for."""
        self._tables = tables
        self._claims = claims
        self._services = found.addresses
        self._backends = found.endpoints
        self._gone = gone
        self._meanwhile: list[Plan] = []
        self._node_addresses: set[bytes] = set()

    def note(self, plan: Plan) -> None:
        """A plan was carried out since this began."""
        self._meanwhile.append(plan)

    def note_addresses(self, node_addresses: Iterable[bytes]) -> None:
        """The node has these since this began."""
        self._node_addresses.update(node_addresses)

    def run(self, node_addresses: Iterable[bytes]) -> Iterator[None]:
        """Yields after every step of about a millisecond; the stores come with the last one."""
        self.note_addresses(node_addresses)
        keys, owners = self._claims.columns()
        for start in range(0, len(keys), _KEYS):
            self._frontends(keys[start : start + _KEYS], owners[start : start + _KEYS])
            yield
        for kind in (0, consts.FRONTEND_CLUSTER_IP):  # what they were, nobody remembers
            self._frontends(self._gone, [kind] * len(self._gone))
        records = self._tables.backends.records
        for start in range(0, len(records), _RECORDS):
            part = records[start : start + _RECORDS]
            self._backends[filters.backend_record_bits(part)] = True
            yield
        for plan in self._meanwhile:
            self._frontends([k for k, _, _ in plan.frontends], [f for _, _, f in plan.frontends])
            self._backends[filters.backend_bits(plan.backend_identities)] = True
        own = sorted(self._node_addresses)
        self._services[filters.service_bits(own)] = True
        served = filters.served_by_node(filters.identities(records), own)
        self._backends[served] = True
        filters.replace_bits(self._tables.service_filter, self._services)
        filters.replace_bits(self._tables.backend_filter, self._backends)

    def _frontends(self, keys: list[bytes], flags: list[int]) -> None:
        services, endpoints = filters.frontend_bits(keys, flags)
        self._services[services] = True
        self._backends[endpoints] = True
