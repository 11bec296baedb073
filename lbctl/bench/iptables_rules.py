"""Rules in the shape kube-proxy's iptables mode keeps them in, as input of iptables-restore.

A packet for a service walks KUBE-SERVICES, one rule per service, to the chain of its service; there
rules with probabilities choose the chain of an endpoint, which translates.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence

from lbctl.bench.dataset import CLIENT_CIDR, NAMESPACE, PORT, TARGET_PORT, Dataset

MASQUERADE_MARK = "0x4000"

_TOP = ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ")
_FILTER = (
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
)
_PORTALS = '-m comment --comment "kubernetes service portals"'
_NEW = "-m conntrack --ctstate NEW"


def full(data: Dataset) -> str:
    """Everything, as kube-proxy's first sync writes it."""
    (text,) = parts(data, data.services)
    return text


def parts(data: Dataset, size: int) -> list[str]:
    """The same in files of up to `size` services each, to be loaded in order."""
    starts = range(0, data.services, size)
    return [_part(data, range(first, min(first + size, data.services))) for first in starts]


def _part(data: Dataset, services: range) -> str:
    lines, rules = ["*nat"], list[str]()
    if services.start == 0:
        lines = [*_filter_table(), *lines, *(f":{chain} - [0:0]" for chain in _TOP)]
        rules += [
            f"-A PREROUTING {_PORTALS} -j KUBE-SERVICES",
            f"-A OUTPUT {_PORTALS} -j KUBE-SERVICES",
            '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" '
            "-j KUBE-POSTROUTING",
            *_nat_basics(),
        ]
    for number in services:
        chains, found = _service(data, number, data.backends(number))
        lines += (f":{chain} - [0:0]" for chain in chains)
        rules += found
    lines += [*rules, *_portal_rules(data, services), "COMMIT"]
    return "\n".join(lines) + "\n"


def change(data: Dataset, old: Sequence[str], new: Sequence[str]) -> str:
    """The endpoints of the changing service replaced, as a partial sync writes it: the chains of
    other services are left out, but KUBE-SERVICES is written whole."""
    chains, rules = _service(data, data.changing, new)
    gone = [endpoint_chain(data, data.changing, address) for address in old if address not in new]
    lines = [
        "*nat",
        *(f":{chain} - [0:0]" for chain in (*_TOP, *chains, *gone)),
        *_nat_basics(),
        *_portal_rules(data, range(data.services)),
        *rules,
        *(f"-X {chain}" for chain in gone),
        "COMMIT",
    ]
    return "\n".join(lines) + "\n"


def port_name(data: Dataset, service: int) -> str:
    return f"{NAMESPACE}/{data.name(service)}:http"


def service_chain(data: Dataset, service: int) -> str:
    return f"KUBE-SVC-{_digest(port_name(data, service), 'tcp')}"


def endpoint_chain(data: Dataset, service: int, address: str) -> str:
    target = f"{address}:{TARGET_PORT}"
    return f"KUBE-SEP-{_digest(port_name(data, service), 'tcp', target)}"


def _digest(*parts: str) -> str:
    """16 letters and digits: a chain's name may have 28 characters."""
    return base64.b32encode(hashlib.sha256("".join(parts).encode()).digest()).decode()[:16]


def _nat_basics() -> Iterator[str]:
    mark = MASQUERADE_MARK
    yield f"-A KUBE-MARK-MASQ -j MARK --or-mark {mark}"
    yield f"-A KUBE-POSTROUTING -m mark ! --mark {mark}/{mark} -j RETURN"
    yield f"-A KUBE-POSTROUTING -j MARK --xor-mark {mark}"
    yield (
        '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" '
        "-j MASQUERADE --random-fully"
    )


def _portal_rules(data: Dataset, services: range) -> Iterator[str]:
    """Those of some services; behind the last one's, that for node ports."""
    for number in services:
        yield (
            f'-A KUBE-SERVICES -m comment --comment "{port_name(data, number)} cluster IP" '
            f"-m tcp -p tcp -d {data.address(number)} --dport {PORT} "
            f"-j {service_chain(data, number)}"
        )
    if services.stop == data.services:
        yield (
            '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must '
            'be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS'
        )


def _service(
    data: Dataset, number: int, backends: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """The chains of one service, and the rules in them."""
    name, chain = port_name(data, number), service_chain(data, number)
    rules = [
        f'-A {chain} -m comment --comment "{name} cluster IP" -m tcp -p tcp '
        f"-d {data.address(number)} --dport {PORT} ! -s {CLIENT_CIDR} -j KUBE-MARK-MASQ"
    ]
    chains = [chain]
    for index, address in enumerate(backends):
        target = f"{address}:{TARGET_PORT}"
        endpoint = endpoint_chain(data, number, address)
        chains.append(endpoint)
        left = len(backends) - index
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        rules += [
            f'-A {chain} -m comment --comment "{name} -> {target}" {chance}-j {endpoint}',
            f'-A {endpoint} -m comment --comment "{name}" -s {address} -j KUBE-MARK-MASQ',
            f'-A {endpoint} -m comment --comment "{name}" -m tcp -p tcp '
            f"-j DNAT --to-destination {target}",
        ]
    return tuple(chains), rules


def _filter_table() -> list[str]:
    """What every forwarded packet passes besides; nothing in it depends on the services here, which
    all have endpoints."""
    firewall = '-m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'
    external = '-m comment --comment "kubernetes externally-visible service portals"'
    rules = '-m comment --comment "kubernetes forwarding rules"'
    mark = MASQUERADE_MARK
    return [
        "*filter",
        *(f":{chain} - [0:0]" for chain in _FILTER),
        f"-A INPUT {_NEW} {firewall}",
        '-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS',
        f"-A INPUT {_NEW} {external} -j KUBE-EXTERNAL-SERVICES",
        f"-A FORWARD {_NEW} {firewall}",
        f"-A FORWARD {rules} -j KUBE-FORWARD",
        f"-A FORWARD {_NEW} {_PORTALS} -j KUBE-SERVICES",
        f"-A FORWARD {_NEW} {external} -j KUBE-EXTERNAL-SERVICES",
        f"-A OUTPUT {_NEW} {firewall}",
        f"-A OUTPUT {_NEW} {_PORTALS} -j KUBE-SERVICES",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        f"-A KUBE-FORWARD {rules} -m mark --mark {mark}/{mark} -j ACCEPT",
        '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" '
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "COMMIT",
    ]
