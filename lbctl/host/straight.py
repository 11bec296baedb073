"""What answers that go straight back (DSR) need of this machine and its network's way here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lbctl.host import leftovers
from lbctl.host.settings import Answer

_NETWORK = Path("/sys/class/net")
_CONF = Path("/proc/sys/net/ipv4/conf")
_ROUTES = {"IPv4": Path("/proc/net/route"), "IPv6": Path("/proc/net/ipv6_route")}
_OVERLAYS = ("vxlan", "geneve", "wireguard")
# ARPHRD_TUNNEL, TUNNEL6, SIT, IPGRE, NONE of linux/if_arp.h.
_TUNNELS = (["768"], ["769"], ["776"], ["778"], ["65534"])
_INVALID = (
    r"^-A \S+ .*--ctstate \S*INVALID\S* .*-j DROP\b",
    r"ct state (?:\{[^}]*)?invalid\b[^\n]*\bdrop\b",
)
NOT_KNOWN = "no command to list packet filter rules can be run here"


def invalid_dropped(shown: dict[str, str | None]) -> Answer:
    """From the rules, whether packets go that conntrack does not know."""
    known = {name: text for name, text in shown.items() if text is not None}
    if not known:
        return Answer(None, NOT_KNOWN)
    found = [
        name
        for name, text in known.items()
        if any(re.search(rule, text, re.MULTILINE) for rule in _INVALID)
    ]
    if not found:
        return Answer(True, f"no rule drops what conntrack calls invalid ({', '.join(known)})")
    return Answer(
        False,
        f"rules drop what conntrack calls invalid ({', '.join(found)})",
        "If this node routes answers of endpoints on other nodes, they look invalid to it, since "
        "it has not seen the requests. Accept packets whose source is a service's address, or "
        "use lbctl/forwarding: snat.",
    )


def strict_overlays(conf: Path = _CONF, network: Path = _NETWORK) -> Answer:
    """Whether clients' packets that come by an overlay would be dropped once the outer header is
    off: the way back to the client is the uplink."""
    general = _number(conf / "all" / "rp_filter")
    strict = [
        path.name
        for path in sorted(network.iterdir())
        if _is_overlay(path) and max(general, _number(conf / path.name / "rp_filter")) == 1
    ]
    if not strict:
        return Answer(True, "not strict on overlays")
    settings = " ".join(f"net.ipv4.conf.{name}.rp_filter=2" for name in strict)
    remedy = f"Clients' packets would be dropped, as their way back is another: sysctl {settings}"
    if general == 1:
        remedy += " (all=1 may stay: the larger of the two counts)"
    return Answer(False, f"strict on {', '.join(strict)}", remedy)


def way_back(routes: dict[str, Path] | None = None) -> Answer:
    """Whether there is a route to clients, of each family."""
    found = [name for name, path in (routes or _ROUTES).items() if _has_default(name, path)]
    if found:
        return Answer(True, f"a default route of {' and '.join(found)}")
    return Answer(
        False,
        "no default route",
        "The node of an endpoint answers clients directly, and needs a route to them.",
    )


CHECKS: dict[str, Callable[[], Answer]] = {
    "DSR: invalid packets": lambda: invalid_dropped(leftovers.saved()),
    "DSR: rp_filter": strict_overlays,
    "DSR: way back": way_back,
}


def _number(path: Path) -> int:
    return int(path.read_text()) if path.exists() else 0


def _is_overlay(device: Path) -> bool:
    said = _lines(device / "uevent")
    kinds = (f"DEVTYPE={kind}" for kind in _OVERLAYS)
    return any(kind in said for kind in kinds) or _lines(device / "type")[:1] in _TUNNELS


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def _has_default(family: str, path: Path) -> bool:
    """Of IPv4 the second column is the destination; of IPv6 the first two are, with its length."""
    if not path.exists():
        return False
    for line in path.read_text().splitlines():
        columns = line.split()
        if family == "IPv4" and columns[1:2] == ["00000000"]:
            return True
        # The kernel's own entry of that kind leads to lo, which refuses.
        if family == "IPv6" and columns[:2] == ["0" * 32, "00"] and columns[-1:] != ["lo"]:
            return True
    return False
