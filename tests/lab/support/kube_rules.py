"""Rules as kube-proxy writes them in its iptables mode, for a node of a lab."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

from lbctl.lab.cluster import Lab
from lbctl.lab.topology import CLUSTER_CIDRS
from tests.lab.support.labs import PORT, TARGET, addresses, endpoint

MASQUERADE = "0x4000/0x4000"
_HOOKS = {
    "PREROUTING": "KUBE-SERVICES",
    "OUTPUT": "KUBE-SERVICES",
    "POSTROUTING": "KUBE-POSTROUTING",
}


def program(family: int, variant: str, name: str = "") -> str:
    """The program of a variant ("nft" or "legacy") for a family: iptables, or with `name` another
    one of the suite."""
    return f"ip{'6' if family else ''}tables-{variant}{name}"


def install(lab: Lab, node: str, variant: str, services: Mapping[str, Iterable[str]]) -> None:
    """Write the rules for services with these backends into a node's namespace."""
    for family in (0, 1):
        rules = "\n".join(_rules(lab, services, family))
        restore = [program(family, variant, "-restore"), "--noflush"]
        lab.exec(node, restore, stdin=rules, check=True)


def remove(lab: Lab, node: str, variant: str) -> None:
    """What `kube-proxy --cleanup` leaves: nothing."""
    for family in (0, 1):
        for command in ("-F", "-X"):
            lab.exec(node, [program(family, variant), "-t", "nat", command], check=True)


def hits(lab: Lab, node: str, variant: str) -> int:
    """New connections that the services' rules have seen."""
    total = 0
    for family in (0, 1):
        saved = [program(family, variant, "-save"), "-c", "-t", "nat"]
        for line in lab.exec(node, saved, check=True).stdout.splitlines():
            if "-A KUBE-SERVICES " in line:
                total += int(line[1:].partition(":")[0])
    return total


def _rules(lab: Lab, services: Mapping[str, Iterable[str]], family: int) -> Iterable[str]:
    yield "*nat"
    yield ":KUBE-SERVICES - [0:0]"
    yield ":KUBE-POSTROUTING - [0:0]"
    yield ":KUBE-MARK-MASQ - [0:0]"
    bodies = [
        rule
        for (name, backends), protocol in product(services.items(), ("tcp", "udp"))
        for rule in _service(lab, name, list(backends), protocol, family)
    ]
    yield from sorted(rule for rule in bodies if rule.startswith(":"))
    for hook, chain in _HOOKS.items():
        yield f'-A {hook} -m comment --comment "kubernetes" -j {chain}'
    yield f"-A KUBE-MARK-MASQ -j MARK --set-xmark {MASQUERADE}"
    yield f"-A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE} -j RETURN"
    yield "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0"
    yield "-A KUBE-POSTROUTING -j MASQUERADE --random-fully"
    yield from (rule for rule in bodies if not rule.startswith(":"))
    yield "COMMIT\n"


def _service(lab: Lab, name: str, backends: list[str], protocol: str, family: int) -> Iterable[str]:
    address, label = addresses(name)[family], f"{name}-{protocol}".upper()
    chain, where = f"KUBE-SVC-{label}", f"-d {address} -p {protocol} -m {protocol} --dport {PORT}"
    yield f":{chain} - [0:0]"
    yield f'-A KUBE-SERVICES {where} -m comment --comment "default/{name}" -j {chain}'
    yield f"-A {chain} ! -s {CLUSTER_CIDRS[family]} {where} -j KUBE-MARK-MASQ"
    for number, backend in enumerate(backends):
        pod = endpoint(lab, backend).addresses[family]
        to = f"[{pod}]:{TARGET}" if family else f"{pod}:{TARGET}"
        share = 1 / (len(backends) - number)
        choice = f"-m statistic --mode random --probability {share:.11f} " if share < 1 else ""
        part = f"KUBE-SEP-{label}-{number}"
        yield f":{part} - [0:0]"
        yield f"-A {chain} {choice}-j {part}"
        yield f"-A {part} -s {pod} -j KUBE-MARK-MASQ"
        yield f"-A {part} -p {protocol} -m {protocol} -j DNAT --to-destination {to}"
