"""Who else has a say about forwarded packets, asked of a real kernel; and hearing of changes."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from ebpf.hooks import clsact, others
from ebpf.kernel import libbpf, netfilter, paths, syscall
from ebpf.layouts import SCHED_CLS
from lbctl.host import obstacles
from tests.kernel.support.programs import Space, unique
from tests.support.waiting import wait_until

pytestmark = pytest.mark.kernel
FAMILIES = pytest.mark.parametrize("family", ["-4", "-6"])
_RETURN_MINUS_ONE = bytes.fromhex("b7000000ffffffff9500000000000000")


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space(unique("obst"))
    yield made
    made.close()


def tell(space: Space, *words: str) -> None:
    command = [shutil.which(words[0]) or words[0], *words[1:]]
    space.run(lambda: subprocess.run(command, check=True, capture_output=True, timeout=20))


def found(space: Space) -> Sequence[str]:
    return space.run(obstacles.find)


def test_nothing_stands_in_the_way_of_a_bare_node(space: Space) -> None:
    assert found(space) == []


@pytest.mark.parametrize(
    ("family", "hook"),
    [
        *itertools.product(("inet", "ip", "ip6"), ("prerouting", "forward", "postrouting")),
        ("netdev", "ingress"),
    ],
)
def test_a_chain_with_rules_stands_in_the_way(space: Space, family: str, hook: str) -> None:
    device = "device left " if family == "netdev" else ""
    tell(space, "nft", f"add table {family} t")
    tell(space, "nft", f"add chain {family} t c {{ type filter hook {hook} {device}priority 0; }}")
    assert found(space) == []
    tell(space, "nft", f"add rule {family} t c counter")
    assert found(space) == [f"nftables: chain c of {family} t has rules"]
    tell(space, "nft", f"flush table {family} t")
    assert found(space) == []


def test_a_policy_stands_in_the_way_without_rules(space: Space) -> None:
    tell(space, "nft", "add table inet t")
    tell(space, "nft", "add chain inet t c { type filter hook forward priority 0; policy drop; }")
    assert found(space) == ["nftables: chain c of inet t drops by its policy"]


@pytest.mark.parametrize("hook", ["input", "output"])
def test_rules_for_the_node_itself_do_not(space: Space, hook: str) -> None:
    tell(space, "nft", "add table inet t")
    tell(space, "nft", f"add chain inet t c {{ type filter hook {hook} priority 0; policy drop; }}")
    tell(space, "nft", "add rule inet t c tcp dport 22 accept")
    tell(space, "nft", "add chain inet t called")
    tell(space, "nft", "add rule inet t called accept")
    assert found(space) == []


@pytest.mark.parametrize("tool", ["iptables", "ip6tables"])
@pytest.mark.parametrize("table", ["filter", "nat", "mangle", "raw"])
def test_so_do_rules_of_the_old_iptables(space: Space, tool: str, table: str) -> None:
    chain = "PREROUTING" if table in ("nat", "raw") else "FORWARD"
    command = (f"{tool}-legacy", "-t", table)
    tell(space, *command, "-L", "-n")
    assert found(space) == []
    tell(space, *command, "-A", chain, "-j", "RETURN")
    assert found(space) == [f"{tool}: chain {chain} of {table} has rules"]
    tell(space, *command, "-F", chain)
    assert found(space) == []
    if table != "nat":  # which takes no policy
        tell(space, *command, "-P", chain, "DROP")
        assert found(space) == [f"{tool}: chain {chain} of {table} drops by its policy"]


@FAMILIES
@pytest.mark.parametrize(
    "selector",
    [("fwmark", "7"), ("from", "2001:db8::/32"), ("iif", "left"), ("priority", "5")],
    ids=lambda words: words[0],
)
def test_a_rule_of_routing_stands_in_the_way(
    space: Space, family: str, selector: tuple[str, str]
) -> None:
    if family == "-4" and selector[0] == "from":
        selector = ("from", "192.0.2.0/24")
    tell(space, "ip", family, "rule", "add", *selector, "table", "main")
    (text,) = found(space)
    assert text.startswith("policy routing: ip rule ")


def test_what_cannot_be_asked_stands_in_the_way(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> list[netfilter.Hooked]:
        raise PermissionError("no")

    monkeypatch.setattr(netfilter, "hooked", refuse)
    assert found(space) == ["cannot be found out: no"]


def look(space: Space, ours: Sequence[int] = ()) -> others.Others:
    index = space.index()
    return space.run(lambda: others.on_interface(index, ours, others.queues()))


def test_what_others_run_on_an_interface_is_seen(space: Space) -> None:
    assert look(space) == others.Others(ingress=False, egress=False, queue=False)
    tell(space, "tc", "qdisc", "add", "dev", "left", "root", "pfifo")
    assert look(space) == others.Others(ingress=False, egress=False, queue=True)
    tell(space, "tc", "qdisc", "add", "dev", "left", "clsact")
    assert not look(space).ingress


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_filters_count_unless_they_are_ours(
    space: Space, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = libbpf.prog_load(SCHED_CLS, "other", _RETURN_MINUS_ONE)
    number, index, slot = libbpf.prog_id(program), space.index(), clsact.Slot()
    space.run(lambda: clsact.attach(index, direction, program, number, slot))
    assert look(space) == others.Others(ingress=False, egress=False, queue=False)
    monkeypatch.setattr(clsact, "NAME", "somebody")
    seen = look(space)
    assert (seen.ingress, seen.egress) == (direction == "ingress", direction == "egress")


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_tcx_programs_count_unless_they_are_ours(space: Space, direction: str) -> None:
    program = libbpf.prog_load(SCHED_CLS, "other", _RETURN_MINUS_ONE)
    number, index = libbpf.prog_id(program), space.index()
    link = space.run(lambda: syscall.tcx_link(program, index, direction, "first"))
    assert link
    assert not look(space, [number]).ingress
    assert not look(space, [number]).egress
    seen = look(space)
    assert (seen.ingress, seen.egress) == (direction == "ingress", direction == "egress")


# Hearing of it


@pytest.fixture
def watch(space: Space) -> Iterator[paths.Watch]:
    made = space.run(paths.Watch)
    yield made
    made.close()


def heard(watch: paths.Watch, what: Callable[[paths.Seen], object]) -> bool:
    """Whether it comes within a second."""
    end = time.monotonic() + 1
    while time.monotonic() < end:
        if what(watch.read()):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    "words",
    [
        ("nft", "add table inet t"),
        ("ip", "rule", "add", "fwmark", "7", "table", "100"),
        ("ip", "-6", "rule", "add", "fwmark", "7", "table", "100"),
        ("tc", "qdisc", "add", "dev", "left", "clsact"),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_who_may_have_a_say_is_heard_of_at_once(
    space: Space, watch: paths.Watch, words: tuple[str, ...]
) -> None:
    watch.read()
    assert not watch.read().rules
    tell(space, *words)
    assert heard(watch, lambda seen: seen.rules)


@pytest.mark.parametrize(
    "words",
    [
        ("link", "set", "left", "down"),
        ("address", "add", "192.0.2.1/24", "dev", "left"),
        ("-6", "address", "add", "2001:db8::1/64", "dev", "left"),
        ("route", "add", "198.51.100.0/24", "dev", "left"),
        ("-6", "route", "add", "2001:db8:1::/64", "dev", "left"),
        ("neigh", "add", "192.0.2.9", "lladdr", "02:00:00:00:00:09", "dev", "left"),
        ("-6", "neigh", "add", "fe80::9", "lladdr", "02:00:00:00:00:09", "dev", "left"),
        ("nexthop", "add", "id", "7", "dev", "left"),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_what_sends_packets_another_way_is_heard_of_at_once(
    space: Space, watch: paths.Watch, words: tuple[str, ...]
) -> None:
    watch.read()
    time.sleep(0.05)
    watch.read()
    tell(space, "ip", *words)
    assert heard(watch, lambda seen: seen.hops)


def test_a_neighbour_that_was_only_asked_again_is_no_change(
    space: Space, watch: paths.Watch
) -> None:
    neighbour = ("192.0.2.9", "lladdr", "02:00:00:00:00:09", "dev", "left", "nud")
    tell(space, "ip", "neigh", "replace", *neighbour, "reachable")
    assert heard(watch, lambda seen: seen.hops)
    tell(space, "ip", "neigh", "replace", *neighbour, "stale")
    tell(space, "ip", "neigh", "replace", *neighbour, "permanent")
    assert not heard(watch, lambda seen: seen.hops)
    tell(space, "ip", "neigh", "replace", "192.0.2.9", "lladdr", "02:00:00:00:00:08", "dev", "left")
    assert heard(watch, lambda seen: seen.hops)


@FAMILIES
def test_the_least_mtu_of_a_route_is_known_and_heard_of(
    space: Space, watch: paths.Watch, family: str
) -> None:
    route = {"-4": "198.51.100.0/24", "-6": "2001:db8:1::/64"}[family]
    assert space.run(paths.least_mtu) == paths.NO_MTU
    watch.read()
    tell(space, "ip", family, "route", "add", route, "dev", "left", "mtu", "1400")
    assert heard(watch, lambda seen: seen.mtu == 1400)
    assert space.run(paths.least_mtu) == 1400
    tell(space, "ip", family, "route", "del", route)
    wait_until(lambda: space.run(paths.least_mtu) == paths.NO_MTU)
