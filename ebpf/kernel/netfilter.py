"""Which of netfilter's hooks have rules: nftables over netlink, and the tables of old iptables.

Only hooks that a forwarded packet passes count here; chains of `input` and `output` do not.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ebpf.errors import KernelError
from ebpf.kernel import dump

NFTABLES_GROUP: Final = 7  # NFNLGRP_NFTABLES: any change of a ruleset
_GET_CHAIN = 10 << 8 | 4  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
_GENERIC = struct.Struct("=BBH")  # struct nfgenmsg: family, version, and 0 here
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE = 1, 3, 4, 5, 6
_HOOK_NUMBER = 1
_ACCEPT = 1
# By nftables' number of the family: its name, and the hooks on a forwarded packet's way.
_HOOKS: Final = {"prerouting": 0, "forward": 2, "postrouting": 4}
_INET: Final = {number: name for name, number in _HOOKS.items()}
_FAMILIES: Final = {
    1: ("inet", {**_INET, 5: "ingress"}),
    2: ("ip", _INET),
    5: ("netdev", {0: "ingress", 1: "egress"}),
    10: ("ip6", _INET),
}

# Old iptables, asked by getsockopt: struct ipt_getinfo, and struct ipt_get_entries.
_NAME_BYTES = 32
_INFO = struct.Struct(f"={_NAME_BYTES}sI5I5III")
_GET_INFO, _GET_ENTRIES = 64, 65
_ENTRIES_HEAD = 40
# Name, socket family, level of the socket option, list of tables, where an entry says where its
# target is (after struct ipt_ip or ip6t_ip6, and nfcache).
_LISTS = Path("/proc/thread-self/net")
_LEGACY: Final = (
    ("iptables", socket.AF_INET, socket.IPPROTO_IP, "ip_tables_names", 88),
    ("ip6tables", socket.AF_INET6, socket.IPPROTO_IPV6, "ip6_tables_names", 140),
)
_VERDICT_AT = 32  # of struct xt_standard_target
_ACCEPTED = -2  # -NF_ACCEPT - 1
# What the kernel answers where iptables or the table is not there.
_NO_TABLE = frozenset({errno.ENOENT, errno.ENOPROTOOPT, errno.EAFNOSUPPORT})


class Hooked(msgspec.Struct, frozen=True):
    """A chain that forwarded packets pass. `drops`: so does its policy, with rules or without."""

    tool: str
    table: str  # with its family, for nftables
    chain: str
    hook: str
    rules: bool
    drops: bool

    @property
    def matters(self) -> bool:
        """Whether it may do anything to a packet."""
        return self.rules or self.drops


def hooked() -> list[Hooked]:
    """All of the calling thread's network namespace. Raises KernelError."""
    return [*_nftables(), *(found for old in _LEGACY for found in _legacy(*old))]


def _nftables() -> Iterator[Hooked]:
    try:
        chains = dump.ask(dump.NETLINK_NETFILTER, _GET_CHAIN, _GENERIC.pack(0, 0, 0))
    except KernelError as error:
        if error.errno in dump.ABSENT:
            return
        raise
    for payload in chains:
        family, hooks = _FAMILIES.get(payload[0], ("", {}))
        chain = dump.attributes(payload, _GENERIC.size)
        if _CHAIN_HOOK not in chain:
            continue
        number = _number(dump.attributes(chain[_CHAIN_HOOK])[_HOOK_NUMBER])
        if number in hooks:
            yield Hooked(
                "nftables",
                f"{family} {dump.text(chain[_CHAIN_TABLE])}",
                dump.text(chain[_CHAIN_NAME]),
                hooks[number],
                # Nothing jumps to a chain with a hook: what uses it are its rules.
                rules=_number(chain.get(_CHAIN_USE, b"\0\0\0\0")) > 0,
                drops=_number(chain.get(_CHAIN_POLICY, b"\0\0\0\1")) != _ACCEPT,
            )


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _legacy(tool: str, family: int, level: int, names: str, target_at: int) -> Iterator[Hooked]:
    try:
        tables = (_LISTS / names).read_text().split()
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return
        raise KernelError(f"cannot ask for the tables of {tool}", error.errno or 0) from error
    with sock:
        for table in tables:
            yield from _legacy_table(sock, tool, level, table, target_at)


def _legacy_table(
    sock: socket.socket, tool: str, level: int, table: str, target_at: int
) -> Iterator[Hooked]:
    name = table.encode().ljust(_NAME_BYTES, b"\0")
    raw = _getsockopt(sock, level, _GET_INFO, name.ljust(_INFO.size, b"\0"), tool)
    if raw is None:
        return
    _, valid, *places, _, size = _INFO.unpack(raw)
    asked = (name + struct.pack("=I", size)).ljust(_ENTRIES_HEAD + size, b"\0")
    entries = _getsockopt(sock, level, _GET_ENTRIES, asked, tool)
    for hook, number in _HOOKS.items():
        if valid & 1 << number:
            first, policy = places[number], places[5 + number]
            yield Hooked(
                tool,
                table,
                hook.upper(),
                hook,
                rules=first != policy,
                # Changed between the two questions: then it is not known.
                drops=entries is None or _verdict(entries, policy, target_at) != _ACCEPTED,
            )


def _verdict(entries: bytes, at: int, target_at: int) -> int:
    start = _ENTRIES_HEAD + at
    (target,) = struct.unpack_from("=H", entries, start + target_at)
    found: tuple[int] = struct.unpack_from("=i", entries, start + target + _VERDICT_AT)
    return found[0]


def _getsockopt(
    sock: socket.socket, level: int, option: int, asked: bytes, tool: str
) -> bytes | None:
    """What Python's own cannot do: the buffer says what is asked for. None if it is not there, or
    another by now."""
    library = ctypes.CDLL(None, use_errno=True)
    buffer, length = ctypes.create_string_buffer(asked, len(asked)), ctypes.c_uint32(len(asked))
    if library.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(length)) < 0:
        number = ctypes.get_errno()
        if number in _NO_TABLE or number in (errno.EAGAIN, errno.EINVAL):
            return None
        raise KernelError(f"cannot ask for the tables of {tool}", number)
    return buffer.raw[: length.value]
