"""What kube-proxy left in this network namespace: found by its own names, and removed on request.

Others use the prefix KUBE- as well (the kubelet, kube-router, network policies), so chains count
only by the names kube-proxy gives. Everything else in the packet filter stays as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from ebpf.errors import LbError

TIMEOUT_SECONDS = 60  # a table may have a hundred thousand rules
_SHORT_SECONDS = 20  # chains alone, many thousand

# Chains that lead to a backend. While there are some, connections may be kube-proxy's.
_TRANSLATING = (
    r"SERVICES|EXTERNAL-SERVICES|NODEPORTS|NODE-PORT|LOAD-BALANCER|(?:SVC|SVL|SEP|EXT|XLB|FW)-\w+"
)
# The rest of it, in its iptables and IPVS modes.
_AROUND = (
    r"POSTROUTING|FORWARD|MARK-MASQ|PROXY-FIREWALL|PROXY-CANARY|SOURCE-RANGES-FIREWALL"
    r"|IPVS-FILTER|IPVS-OUT-FILTER"
)
_CHAIN = re.compile(rf"KUBE-(?:{_TRANSLATING}|{_AROUND})")
_MENTIONED = re.compile(rf"\bKUBE-(?:{_TRANSLATING})(?![\w-])")
_TABLE = re.compile(r"^table ((?:ip|ip6|inet) kube-proxy)(?![\w-])", re.M)
_TARGET = re.compile(r".* -[jg] (\S+)")  # the last: a comment may say anything
_BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})

# Where the kernel names the tables of a legacy iptables.
_LEGACY = {"iptables-legacy": "ip_tables_names", "ip6tables-legacy": "ip6_tables_names"}
_IPVS_DEVICE = "kube-ipvs0"

# Values kube-proxy writes, and the kernel's own.
_SETTINGS = {
    "net/ipv4/conf/all/route_localnet": ("1", "0"),
    "net/ipv4/conf/all/arp_ignore": ("1", "0"),
    "net/ipv4/conf/all/arp_announce": ("2", "0"),
    "net/ipv4/vs/conntrack": ("1", "0"),
    "net/ipv4/vs/conn_reuse_mode": ("0", "1"),
    "net/ipv4/vs/expire_nodest_conn": ("1", "0"),
    "net/ipv4/vs/expire_quiescent_template": ("1", "0"),
    "net/netfilter/nf_conntrack_tcp_timeout_established": ("86400", "432000"),
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait": ("3600", "60"),
    "net/netfilter/nf_conntrack_tcp_be_liberal": ("1", "0"),
}
_CONNTRACK_MAX = "net/netfilter/nf_conntrack_max"


class Rules(msgspec.Struct, frozen=True):
    """kube-proxy's part of one iptables table. `jumps` are rules of built-in chains, as `-save`
    prints them; `kept` are chains that rules of others lead to, which therefore stay."""

    command: str  # iptables-nft, ip6tables-legacy, …
    table: str
    chains: tuple[str, ...]
    jumps: tuple[str, ...]
    kept: tuple[str, ...] = ()

    def commands(self) -> Iterator[str]:
        """What removing them comes to, one command per rule and chain."""
        for jump in self.jumps:
            yield f"{self.command} -t {self.table} -D {jump.removeprefix('-A ')}"
        for chain in self.chains:
            yield f"{self.command} -t {self.table} -F {chain}, -X {chain}"

    def transaction(self) -> str:
        """The same as input of `-restore --noflush`: all of it or nothing."""
        lines = [f"*{self.table}"]
        lines += (f":{chain} - [0:0]" for chain in self.chains)  # flushes it
        lines += (f"-D {jump.removeprefix('-A ')}" for jump in self.jumps)
        lines += (f"-X {chain}" for chain in self.chains)
        return "\n".join([*lines, "COMMIT", ""])


class Found(msgspec.Struct, frozen=True):
    """All that can be removed. `asked` are the commands that could be run to find it."""

    rules: tuple[Rules, ...]
    tables: tuple[str, ...]  # of nftables: family and name
    asked: tuple[str, ...]

    def commands(self) -> Iterator[str]:
        for rules in self.rules:
            yield from rules.commands()
        for table in self.tables:
            yield f"nft delete table {table}"

    def kept(self) -> Iterator[str]:
        """Chains that stay because others' rules lead there, as sentences."""
        for rules in self.rules:
            for chain in rules.kept:
                yield f"{chain} ({rules.command}, table {rules.table}) stays: others' rules use it"

    def __bool__(self) -> bool:
        return bool(self.tables) or any(rules.chains or rules.jumps for rules in self.rules)


def _ignored(_: Exception) -> None:
    """A command that cannot be run is as good as one that is not installed."""


def output(
    *command: str, seconds: float = TIMEOUT_SECONDS, failed: Callable[[Exception], None] = _ignored
) -> str | None:
    """What a command prints; None if it is not installed, ends with an error, or cannot be run for
    so long (which `failed` is told)."""
    if not shutil.which(command[0]):
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        failed(error)
        return None
    return done.stdout if done.returncode == 0 else None


def saved() -> dict[str, str | None]:
    """Packet filter rules of this namespace by the command that deals with them."""
    shown: dict[str, str | None] = {}
    for name in ("iptables", "ip6tables"):
        if shutil.which(f"{name}-nft-save"):
            shown[f"{name}-nft"] = output(f"{name}-nft-save")
        else:
            shown[name] = output(f"{name}-save")
    for name in _LEGACY:
        if legacy_tables(name):
            shown[name] = output(f"{name}-save")
    shown["nft"] = output("nft", "list", "ruleset")
    return shown


def in_use(failed: Callable[[Exception], None]) -> bool:
    """Whether kube-proxy's chains exist in this network namespace, in any of its modes.

    Asks for less than `saved` does, since it is asked again and again: nft shows the chains of
    nftables and of iptables-nft, and only the nat table leads to backends. Chains of the kubelet,
    which have the same prefix and stay for ever, do not count. `failed` is told of a command that
    cannot be run.
    """
    ask = partial(output, seconds=_SHORT_SECONDS, failed=failed)
    chains = ask("nft", "list", "chains")
    if chains is None:
        chains = ask("iptables-nft-save", "-t", "nat") or ""
    if translates(chains):
        return True
    if "nat" not in legacy_tables("iptables-legacy"):
        return False
    return translates(ask("iptables-legacy-save", "-t", "nat") or "")


def legacy_tables(command: str) -> list[str]:
    """The tables that a legacy iptables has: asking it about another would create that."""
    try:
        return Path("/proc/thread-self/net", _LEGACY[command]).read_text().split()
    except OSError:
        return []


def translates(listing: str) -> bool:
    """Whether a listing names a chain or table by which kube-proxy leads to backends."""
    return bool(_MENTIONED.search(listing) or _TABLE.search(listing))


def find(shown: dict[str, str | None] | None = None) -> Found:
    """kube-proxy's chains, jumps to them, and tables, in `shown` or in this namespace."""
    known = {
        name: text
        for name, text in (saved() if shown is None else shown).items()
        if text is not None
    }
    rules: list[Rules] = []
    tables: tuple[str, ...] = ()
    for name, text in known.items():
        if name.startswith("nft"):
            tables = tuple(dict.fromkeys(_TABLE.findall(text)))
        else:
            rules += _parse(name, text)
    return Found(tuple(rules), tables, tuple(known))


def _parse(command: str, text: str) -> Iterator[Rules]:
    table, chains, appended = "", list[str](), list[str]()
    for line in text.splitlines():
        if line.startswith("*"):
            table, chains, appended = line[1:].strip(), [], []
        elif line.startswith(":"):
            chains.append(line[1:].split(" ", 1)[0])
        elif line.startswith("-A "):
            appended.append(line)
        elif line == "COMMIT" and (found := _of_table(command, table, chains, appended)):
            yield found


def _of_table(
    command: str, table: str, chains: Iterable[str], appended: Iterable[str]
) -> Rules | None:
    ours = {chain: None for chain in chains if _CHAIN.fullmatch(chain)}
    if not ours:
        return None
    jumps: list[str] = []
    leads: dict[str, list[str]] = {}  # from one of kube-proxy's chains to others of them
    kept: set[str] = set()
    for rule in appended:
        chain = rule.split(" ", 2)[1]
        target = _TARGET.match(rule)
        if not target or target[1] not in ours:
            continue
        if chain in ours:
            leads.setdefault(chain, []).append(target[1])
        elif chain in _BUILT_IN:
            jumps.append(rule)
        else:
            kept.add(target[1])
    waiting = list(kept)
    while waiting:
        for chain in leads.get(waiting.pop(), ()):
            if chain not in kept:
                kept.add(chain)
                waiting.append(chain)
    gone = tuple(chain for chain in ours if chain not in kept)
    staying = [jump for jump in jumps if _target(jump) not in kept]
    return Rules(command, table, gone, tuple(staying), tuple(sorted(kept)))


def _target(rule: str) -> str:
    found = _TARGET.match(rule)
    return found[1] if found else ""


def remove(found: Found) -> None:
    """Remove what was found, each table in one step. Raises LbError with the command's words; what
    was removed by then stays removed."""
    for rules in found.rules:
        if rules.chains or rules.jumps:
            command = (f"{rules.command}-restore", "--noflush", "--wait", "10")
            _run(command, rules.transaction())
    for table in found.tables:
        _run(("nft", "delete", "table", *table.split()), "")


def _run(command: tuple[str, ...], text: str) -> None:
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LbError(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        raise LbError(
            f"{' '.join(command)} failed: {done.stderr.strip()}",
            "The rules may have changed meanwhile. Stop kube-proxy, and repeat the command.",
        )


def ipvs_device() -> bool:
    """Whether the device that holds all service addresses in IPVS mode exists."""
    return any(name == _IPVS_DEVICE for _, name in socket.if_nameindex())


def settings(root: Path = Path("/proc/sys"), cpus: int | None = None) -> dict[str, tuple[str, str]]:
    """Sysctls that have the value kube-proxy gives them: that value, and the kernel's default
    (empty where it depends on memory)."""
    wanted = dict(_SETTINGS)
    share = max(131072, 32768 * (cpus or os.cpu_count() or 1))
    wanted[_CONNTRACK_MAX] = (str(share), "")
    found = {}
    for path, (theirs, default) in wanted.items():
        try:
            value = (root / path).read_text().strip()
        except OSError:
            continue
        if value == theirs:
            found[path.replace("/", ".")] = (theirs, default)
    return found


def process() -> int:
    """A running kube-proxy that can be seen from here, 0 if there is none."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == "kube-proxy":
                return int(comm.parent.name)
        except OSError:
            continue
    return 0
