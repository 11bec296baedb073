"""What kube-proxy and others left on this node, and settings that forwarding depends on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from lbctl.host import leftovers

_PROC = Path("/proc/sys/net")

# Interfaces of networks whose programs redirect packets past the hooks of a pod's veth.
_REDIRECTING = {
    "cilium_host": "Cilium",
    "cilium_net": "Cilium",
    "bpfin.cali": "Calico's eBPF data path",
    "ovn-k8s-mp0": "OVN-Kubernetes",
    "antrea-gw0": "Antrea",
}


class Answer(msgspec.Struct, frozen=True):
    """`ok` is None when it cannot be found out."""

    ok: bool | None
    detail: str
    remedy: str = ""


def kube_proxy_rules(shown: dict[str, str | None]) -> Answer:
    """From the rules, whether kube-proxy's are there."""
    found = leftovers.find(shown)
    if not found.asked:
        return Answer(None, f"none of {', '.join(shown)} is installed or may be run here")
    if not found:
        return Answer(True, f"none ({', '.join(found.asked)})")
    parts = [
        f"{len(rules.chains)} chains, {len(rules.jumps)} rules ({rules.command}, {rules.table})"
        for rules in found.rules
        if rules.chains or rules.jumps
    ]
    parts += (f"table {table} (nft)" for table in found.tables)
    return Answer(
        False,
        ", ".join(parts),
        "Traffic for services is translated before these rules see it, so they only cost time. "
        "Stop kube-proxy, and when its old connections have ended: lbctl cleanup --kube-proxy.",
    )


def ipvs_device() -> Answer:
    """Whether kube-proxy's IPVS mode left the device with every service's address."""
    if not leftovers.ipvs_device():
        return Answer(True, "no kube-ipvs0")
    return Answer(
        False,
        "kube-ipvs0 makes service addresses the node's own, and lbctl leaves those to the node",
        "Stop kube-proxy, then: ip link delete kube-ipvs0; ipvsadm --clear",
    )


def kube_proxy_settings(root: Path = Path("/proc/sys")) -> Answer:
    """Which sysctls have the values that kube-proxy writes and never takes back."""
    found = leftovers.settings(root)
    if not found:
        return Answer(True, "none has kube-proxy's value")
    values = ", ".join(f"{name}={value}" for name, (value, _) in found.items())
    defaults = " ".join(f"{name}={default}" for name, (_, default) in found.items() if default)
    remedy = "lbctl needs none of them; other software on this node may."
    if defaults:
        remedy += f" To restore the kernel's defaults: sysctl {defaults}"
    return Answer(False, f"as kube-proxy sets them: {values}", remedy)


def forward_policy(shown: dict[str, str | None]) -> Answer:
    """From the rules, whether forwarded packets are dropped unless a rule lets them pass."""
    known = {name: text for name, text in shown.items() if text is not None}
    if not known:
        return Answer(None, "no command to list packet filter rules can be run here")
    for name, text in known.items():
        dropping = re.search(r"^:FORWARD DROP\b", text, re.M) or re.search(
            r"hook forward priority [^;]+; policy drop;", text
        )
        if dropping:
            return Answer(
                False,
                f"policy of FORWARD is DROP ({name})",
                "kube-proxy's rules let service traffic through. Without them, run iptables -P "
                "FORWARD ACCEPT, or add rules for the pod ranges.",
            )
    return Answer(True, f"forwarded packets are not dropped by policy ({', '.join(known)})")


def forwarding(root: Path = _PROC) -> Answer:
    """Whether the kernel routes between interfaces, for both families."""
    off = []
    for family, path in (
        ("IPv4", "ipv4/ip_forward"),
        ("IPv6", "ipv6/conf/all/forwarding"),
    ):
        # A kernel without IPv6 has nothing to forward.
        if (root / path).exists() and (root / path).read_text().strip() != "1":
            off.append((family, f"net.{path.replace('/', '.')}=1"))
    if not off:
        return Answer(True, "IPv4 and IPv6 are forwarded")
    return Answer(
        False,
        f"{' and '.join(family for family, _ in off)} not forwarded",
        "sysctl " + " ".join(setting for _, setting in off) + " (kube-proxy set the IPv4 one).",
    )


def reverse_path_filter(root: Path = _PROC) -> Answer:
    """Strict reverse-path filtering: the larger of "all" and the interface's own value counts."""
    directory = root / "ipv4" / "conf"
    values = {p.parent.name: int(p.read_text()) for p in directory.glob("*/rp_filter")}
    general = values.pop("all", 0)
    values.pop("default", None)
    strict = sorted(n for n, value in values.items() if max(value, general) == 1 and n != "lo")
    if not strict:
        return Answer(True, "not strict")
    shown = ", ".join(strict[:5]) + (f" and {len(strict) - 5} more" if len(strict) > 5 else "")
    return Answer(
        False,
        f"strict on {shown}",
        "Replies that arrive at another interface than their route's are dropped. If pods are "
        "reached through several: sysctl net.ipv4.conf.all.rp_filter=2",
    )


def redirecting_network(names: list[str]) -> Answer:
    """From the interfaces' names, whether another data path takes packets past our hooks."""
    for name in names:
        for known, owner in _REDIRECTING.items():
            if name == known:
                return Answer(
                    False,
                    f"interface {name} belongs to {owner}",
                    "Its programs redirect packets past the hooks of pods' veths. lbctl works with "
                    "networks that give each pod a veth and let the kernel route.",
                )
    return Answer(True, "no network that redirects packets past pods' veths")


def _interfaces() -> list[str]:
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


CHECKS: dict[str, Callable[[], Answer]] = {
    "pod network": lambda: redirecting_network(_interfaces()),
    "forwarding": forwarding,
    "forward policy": lambda: forward_policy(leftovers.saved()),
    "rp_filter": reverse_path_filter,
    "kube-proxy rules": lambda: kube_proxy_rules(leftovers.saved()),
    "kube-proxy device": ipvs_device,
    "kube-proxy settings": kube_proxy_settings,
}
