"""How likely each backend is for a flow, by what the maps hold: beside what the samples show."""

from __future__ import annotations

import socket
from typing import Protocol

from lbctl.addresses import format_endpoint
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.likelihood import ChoiceTables, Kind, odds
from lbctl.datapath.records import frontend_key
from lbctl.datapath.tables import ArrayTable, HashTable
from lbctl.trace.asking import Answer
from lbctl.trace.flows import Flow


class ChanceTables(ChoiceTables, Protocol):
    """The maps this module reads, and the names of services."""

    @property
    def frontends(self) -> ArrayTable: ...
    @property
    def names(self) -> HashTable: ...


def of(flow: Flow, answer: Answer, tables: ChanceTables) -> dict[str, float]:
    """By backend, for what the programs forward. Of a choice by the client's address, who was
    chosen is who always will be."""
    if answer.verdict != "forward":
        return {}
    key = frontend_key(flow.destination, flow.port, int(flow.protocol))
    entry = Frontends(tables.frontends).get(key)
    if entry is None:  # gone in the meantime
        return {}
    service, flags = entry
    record = tables.services.records[service]
    kind = _set_of(flow, flags, int(record["flags"]))
    if record["algorithm"] == consts.ALGORITHM_SOURCE_HASH and len(answer.backends) == 1:
        return {answer.backends[0]: 1.0}
    found = odds(tables, service, kind)
    return dict(sorted((_endpoint(tables, n), chance) for n, chance in found.items() if chance))


def _set_of(flow: Flow, frontend: int, service: int) -> Kind:
    """As uses_local_set() of bpf_src/select.h has it."""
    if frontend & consts.FRONTEND_CLUSTER_IP:
        return "local" if service & consts.SERVICE_INTERNAL_LOCAL else "cluster"
    outside = flow.arrives == "uplink" and service & consts.SERVICE_EXTERNAL_LOCAL
    return "local" if outside else "cluster"


def _endpoint(tables: ChanceTables, number: int) -> str:
    record = tables.backends.records[number]
    return format_endpoint(record["addr"].tobytes(), socket.ntohs(int(record["port"])))
