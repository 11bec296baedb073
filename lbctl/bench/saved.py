"""Rules that an operator saved: which tool they are for, and which services are in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from lbctl.errors import UsageError

_PORTAL = re.compile(r"^-A KUBE-SERVICES(?= ).* -j (?P<chain>KUBE-SVC-\w+)", re.MULTILINE)
_JUMP = re.compile(r"^-A (KUBE-SVC-\w+) .*-j (KUBE-SEP-\w+)", re.MULTILINE)
_TRANSLATION = re.compile(r"^-A (KUBE-SEP-\w+) .*--to-destination ([\d.]+):(\d+)\s*$", re.MULTILINE)
_ELEMENT = re.compile(r"([\d.]+) \. tcp \. (\d+)[^:,}]* : goto (service-[^\s,}]+)")
_CHAIN = re.compile(r"^\s*chain (service-\S+) \{(.*?)^\s*\}", re.MULTILINE | re.DOTALL)
_GOTO = re.compile(r"goto endpoint-\S+__([\d.]+)/(\d+)")

Address = tuple[str, int]


class Saved(msgspec.Struct, frozen=True):
    """A saved rule set. `services` are its TCP services, in the order of the rules, as far as their
    endpoints have the port that most have; `endpoints` are the addresses of those."""

    path: Path
    kind: Literal["iptables", "nftables"]
    services: tuple[Address, ...]
    endpoints: tuple[str, ...]
    port: int


def read(path: Path) -> Saved:
    """UsageError if the file cannot be read, or translates no TCP service in kube-proxy's way."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--rules: {path}: {error}") from error
    kind: Literal["iptables", "nftables"] = (
        "iptables" if re.search(r"^\*nat\b", text, re.MULTILINE) else "nftables"
    )
    pairs = list(_iptables(text) if kind == "iptables" else _nftables(text))
    ports = Counter(port for _, backends in pairs for _, port in backends)
    if not ports:
        raise UsageError(
            f"--rules: {path} translates no TCP service over IPv4 in kube-proxy's way",
            "Save them on a node with `iptables-save`, or with `nft list table ip kube-proxy`.",
        )
    port = ports.most_common(1)[0][0]
    chosen = [(at, backends) for at, backends in pairs if {p for _, p in backends} == {port}]
    if not chosen:
        raise UsageError(f"--rules: no service of {path} has all its endpoints on one port")
    endpoints = sorted({address for _, backends in chosen for address, _ in backends})
    return Saved(path, kind, tuple(at for at, _ in chosen), tuple(endpoints), port)


def _iptables(text: str) -> Iterator[tuple[Address, list[Address]]]:
    """Services and their endpoints, by following the chains."""
    translations = {m[1]: (m[2], int(m[3])) for m in _TRANSLATION.finditer(text)}
    backends: dict[str, list[Address]] = {}
    for jump in _JUMP.finditer(text):
        if jump[2] in translations:
            backends.setdefault(jump[1], []).append(translations[jump[2]])
    for portal in _PORTAL.finditer(text):
        rule = portal[0]
        address = re.search(r" -d ([\d.]+)(/32)? ", rule)
        port = re.search(r" --dport (\d+) ", rule)
        found = backends.get(portal["chain"])
        if address and port and found and " -p tcp " in rule:
            yield (address[1], int(port[1])), found


def _nftables(text: str) -> Iterator[tuple[Address, list[Address]]]:
    """The elements of the map of services, and the endpoints that their chains name."""
    chains = {
        found[1]: [(address, int(port)) for address, port in _GOTO.findall(found[2])]
        for found in _CHAIN.finditer(text)
    }
    for element in _ELEMENT.finditer(text):
        if backends := chains.get(element[3]):
            yield (element[1], int(element[2])), backends
