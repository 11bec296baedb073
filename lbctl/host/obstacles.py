"""Who else on this node would have a say about forwarded packets, for which none go past the stack,
be it by TC or by a driver.

What cannot be found out stands in the way too: a packet that takes the stack is slower, one that
passes a rule by is wrong.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ebpf.errors import KernelError
from ebpf.kernel import dump, netfilter

_GET_RULE = 34  # RTM_GETRULE
_RULE_HEAD = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr
_PRIORITY, _TABLE = 6, 15
_SUPPRESSING = (13, 14)  # FRA_SUPPRESS_IFGROUP, FRA_SUPPRESS_PREFIXLEN
_PROTOCOL = 21  # who made it
_UNLIMITED = b"\xff\xff\xff\xff"
_NAMES_NO_PACKET: Final = {_PRIORITY, _TABLE, *_SUPPRESSING, _PROTOCOL}
_TO_TABLE = 1
# By priority, the tables that every kernel looks into (include/uapi/linux/rtnetlink.h).
_USUAL: Final = {0: 255, 32766: 254, 32767: 253}

_GET_POLICIES = 0x25  # XFRM_MSG_GETSPDINFO
_POLICY_COUNTS = 1
_VIRTUAL_SERVERS = Path("/proc/thread-self/net/ip_vs")
_HEADING_LINES = 3
_MOST_NAMED = 3


def find() -> list[str]:
    """A sentence for each kind of them in the calling thread's network namespace; empty: nobody."""
    return _found(_filters, _rules, _policies, _servers)


def find_routing() -> list[str]:
    """Of them, those for which two packets to one destination may take different ways."""
    return _found(_rules, _policies)


def _found(*looks: Callable[[], list[str]]) -> list[str]:
    found: list[str] = []
    for look in looks:
        try:
            found += look()
        except (KernelError, OSError) as error:
            found.append(f"cannot be found out: {getattr(error, 'message', error)}")
    return found


def _filters() -> list[str]:
    """Rules of netfilter."""
    by_tool: dict[str, list[str]] = {}
    for chain in netfilter.hooked():
        if chain.matters:
            what = "has rules" if chain.rules else "drops by its policy"
            by_tool.setdefault(chain.tool, []).append(
                f"chain {chain.chain} of {chain.table} {what}"
            )
    return [f"{tool}: {_listed(texts)}" for tool, texts in by_tool.items()]


def _rules() -> list[str]:
    """Routing that goes by more than a destination."""
    others = [
        f"{_priority(raw)} (IPv{version})"
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6))
        for raw in _asked(family)
        if not is_usual(raw)
    ]
    return [f"policy routing: ip rule {_listed(others)}"] if others else []


def _asked(family: int) -> Iterator[bytes]:
    head = _RULE_HEAD.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    try:
        yield from dump.ask(dump.NETLINK_ROUTE, _GET_RULE, head)
    except KernelError as error:
        if error.errno not in dump.ABSENT:
            raise


def is_usual(raw: bytes) -> bool:
    """Whether a rule, as the kernel lists it, is one of those that are there by default."""
    _, to_length, from_length, tos, table, _, _, action, flags = _RULE_HEAD.unpack_from(raw)
    found = dump.attributes(raw, _RULE_HEAD.size)
    if to_length or from_length or tos or flags & ~1 or action != _TO_TABLE:
        return False  # 1 is FIB_RULE_PERMANENT
    if found.keys() - _NAMES_NO_PACKET:
        return False
    if any(found.get(kind, _UNLIMITED) != _UNLIMITED for kind in _SUPPRESSING):
        return False
    return _USUAL.get(_priority(raw)) == (_word(found[_TABLE]) if _TABLE in found else table)


def _priority(raw: bytes) -> int:
    return _word(dump.attributes(raw, _RULE_HEAD.size).get(_PRIORITY, bytes(4)))


def _word(raw: bytes) -> int:
    found: tuple[int] = struct.unpack_from("=I", raw)
    return found[0]


def _policies() -> list[str]:
    """IPsec."""
    try:
        answer = dump.ask(dump.NETLINK_XFRM, _GET_POLICIES, bytes(4), dump=False)
    except KernelError as error:
        if error.errno in dump.ABSENT:
            return []
        raise
    counts = dump.attributes(answer[0], 4).get(_POLICY_COUNTS, bytes(12)) if answer else bytes(12)
    number = sum(struct.unpack_from("=III", counts))
    return [f"IPsec: {number} policies"] if number else []


def _servers() -> list[str]:
    """IPVS, which takes packets where they are forwarded."""
    try:
        lines = _VIRTUAL_SERVERS.read_text().splitlines()[_HEADING_LINES:]
    except FileNotFoundError:
        return []
    return [f"IPVS: {len(lines)} virtual and real servers"] if lines else []


def _listed(texts: list[str]) -> str:
    more = len(texts) - _MOST_NAMED
    return ", ".join(texts[:_MOST_NAMED]) + (f", and {more} more" if more > 0 else "")
