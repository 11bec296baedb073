"""What `lbctl doctor` says of XDP: how each uplink's test came out, and whether a rule would mind
that conntrack does not see what drivers send on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lbctl import status
from lbctl.host import leftovers
from lbctl.host.settings import Answer
from lbctl.status import DriverState

_LIBERAL = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
# A rule of iptables-save, or of nft, that drops what conntrack calls invalid.
_DROPS_INVALID = re.compile(
    r"^-A .*(?:--ctstate|--state) \S*INVALID.* -j DROP\b"
    r"|\bct state (?:\{[^}]*)?invalid\b.*\bdrop\b",
    re.M,
)
_OFF = ("", "off")


def xdp(pin_dir: Path) -> Answer:
    """Of the agent that said something last."""
    said = status.read(pin_dir)
    if said is None or said.xdp in _OFF:
        return Answer(True, "not used (--xdp off)")
    drivers = judge(said.drivers, leftovers.saved(), _text(_LIBERAL))
    return judge_others(said.xdp, said.xdp_others, drivers)


def judge_others(mode: str, others: tuple[str, ...], drivers: Answer) -> Answer:
    """Who would have a say about what drivers send on comes before what those lack."""
    if not others:
        return drivers
    if mode == "on":
        return Answer(
            False,
            f"packets of established flows bypass: {'; '.join(others)}",
            "--xdp auto leaves them to TC while there are rules for them.",
        )
    return Answer(
        False,
        f"left to TC because of: {'; '.join(others)}",
        "Remove what is not needed any more; with --xdp on, drivers forward regardless of it.",
    )


def judge(
    drivers: tuple[DriverState, ...], rules: Mapping[str, str | None], liberal: str
) -> Answer:
    """`liberal` is the setting's text, empty where there is no conntrack."""
    used = [state for state in drivers if state.state != "tc"]
    dropping = [name for name, text in rules.items() if text and _DROPS_INVALID.search(text)]
    if used and dropping and liberal == "0":
        return Answer(
            False,
            f"a rule ({', '.join(dropping)}) drops what conntrack calls invalid, such as a FIN "
            "after data that conntrack has not seen",
            "sysctl net.netfilter.nf_conntrack_tcp_be_liberal=1, or --xdp off.",
        )
    lacking = [f"{state.name}: {state.why}" for state in drivers if state.why]
    if lacking:
        return Answer(
            False, "; ".join(lacking), "There TC does the work; --xdp-device can exclude devices."
        )
    return Answer(True, ", ".join(state.name for state in used) or "no uplink is up")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
