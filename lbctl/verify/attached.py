"""Whether programs run where they should, and only ours where ours are pinned. Looks at the network
namespace it is called in."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

from ebpf.errors import KernelError
from ebpf.hooks import cgroup
from ebpf.hooks.tc import Attacher, Attachment
from ebpf.hooks.xdp import DriverAttacher
from ebpf.kernel import libbpf, netlink, syscall
from ebpf.layouts import PROGRAM_ARRAYS, Slots
from ebpf.maps import declared
from ebpf.programs import open_array
from lbctl.addresses import IPV4, family_of
from lbctl.agent.attaching import hooks_of
from lbctl.agent.uplinks import uplinks
from lbctl.config.standing import Standing
from lbctl.verify.difference import Difference

# By interface index: its name, and the programs that it should run by direction.
Wanted = Mapping[int, tuple[str, Mapping[str, str]]]


def wanted(standing: Standing) -> Wanted:
    """What every interface should run, by what the agent goes by."""
    network = netlink.read_network()
    own = standing.object.internal_ips if standing.object else ()
    indices = uplinks(
        network.links,
        network.default_routes,
        network.addresses,
        frozenset(ip_address(a[12:] if family_of(a) == IPV4 else a) for a in own),
        standing.uplinks,
    )
    found = ((link, hooks_of(link, indices, standing.pod_interfaces)) for link in network.links)
    return {link.ifindex: (link.ifname, hooks) for link, hooks in found if hooks}


def interfaces(pin_dir: Path, wants: Wanted) -> Iterator[Difference]:
    """Interfaces that do not run what they should, or run what they should not."""
    ours = programs(pin_dir)
    found = {(a.ifindex, a.direction): a for a in Attacher(pin_dir).attachments()}
    for index, (ifname, hooks) in wants.items():
        for direction, program in hooks.items():
            what = _fault(found.pop((index, direction), None), ours.get(program, {}))
            if what:
                yield Difference("interface", f"{ifname} {direction}", what)
    for item in found.values():
        what = "programs on what is neither a pod's interface nor an uplink"
        if not item.ifindex:
            what = "its link is detached, or the interface is gone"
        yield Difference("interface", f"{item.ifname} {item.direction}", what)


def _fault(item: Attachment | None, ours: Mapping[int, Path]) -> str:
    if item is None:
        return "none of our programs is attached"
    if item.prog_id not in ours:
        return f"it runs program {item.prog_id}, which is not of this instance"
    if item.mode == "tcx":
        running = syscall.tcx_programs(item.ifindex, item.direction)
        if running.count(item.prog_id) > 1:
            return "our program is attached more than once"
        if item.prog_id not in running:
            return "its link is detached"
    return ""


def drivers(pin_dir: Path) -> Iterator[Difference]:
    """What runs at drivers that is not ours, though our link says so. Which devices have XDP is not
    asked: one that fails its test has none."""
    ours = programs(pin_dir).get("xdp_uplink", {})
    for item in DriverAttacher(pin_dir).attachments():
        what = ""
        if not item.ifindex:
            what = "its link is detached, or the interface is gone"
        elif item.prog_id not in ours:
            what = f"it runs program {item.prog_id}, which is not of this instance"
        if what:
            yield Difference("interface", f"{item.ifname} XDP", what)


def sockets(pin_dir: Path, mode: str) -> Iterator[Difference]:
    """Socket hooks that are not there, or lead elsewhere; `mode` as in --socket-lb."""
    ours = programs(pin_dir)
    found = {hook.name: hook for hook in cgroup.SocketAttacher(pin_dir).hooks()}
    for name in cgroup.HOOKS if mode != "off" else ():
        hook = found.pop(name, None)
        if hook is None:
            yield Difference("socket hook", name, "it is not attached")
        elif not hook.cgroup_id:
            yield Difference("socket hook", name, "its link is detached, or its cgroup gone")
        elif hook.prog_id not in ours.get(f"sock_{name}", {}):
            what = f"it runs program {hook.prog_id}, which is not of this instance"
            yield Difference("socket hook", name, what)
    for name in found:
        yield Difference("socket hook", name, "it is attached, though --socket-lb is off")


def programs(pin_dir: Path) -> dict[str, dict[int, Path]]:
    """By name of a program, the kernel's numbers of those that are pinned, of all generations."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((pin_dir / "programs").glob("*/*")):
        if path.name.partition("~")[0] not in PROGRAM_ARRAYS:
            found.setdefault(path.name, {})[_id_of(path)] = path
    return found


def is_whole(generation: Path) -> bool:
    """Whether it would outlive its agent: its arrays are pinned."""
    return all((generation / array).exists() for array in PROGRAM_ARRAYS)


def calls(pin_dir: Path, slots: Slots) -> Iterator[Difference]:
    """Tail calls that lead nowhere, or not to what is pinned. `slots`: of the constants."""
    directories = [p for p in sorted((pin_dir / "programs").glob("*")) if "~" not in p.name]
    for directory, (array_name, named) in itertools.product(directories, slots.items()):
        path = directory / array_name
        if not path.exists():
            continue
        array = open_array(path)
        try:
            for name, slot in named.items():
                pinned = directory / name
                if pinned.exists() and array.program(slot) != _id_of(pinned):
                    what = "the tail call to it leads elsewhere, or nowhere"
                    yield Difference("program", name, what)
        finally:
            array.close()


def _id_of(path: Path) -> int:
    fd = libbpf.obj_get(str(path))
    try:
        return libbpf.prog_id(fd)
    finally:
        os.close(fd)


def pins(pin_dir: Path) -> Iterator[Difference]:
    """Pins that are missing, or are of something else."""
    if not (pin_dir / "meta").exists():
        yield Difference("pin", "meta", "it is missing")
    for name in declared.USES:
        path = pin_dir / "maps" / name
        if not path.exists():
            yield Difference("pin", f"maps/{name}", "it is missing")
            continue
        try:
            fd = libbpf.obj_get(str(path), readonly=True)
        except KernelError as error:
            yield Difference("pin", f"maps/{name}", error.message)
            continue
        os.close(fd)
    generations = [p for p in (pin_dir / "programs").glob("*") if "~" not in p.name]
    if not any(is_whole(path) for path in generations):
        what = "no generation of programs is whole: when the agent ends, services end with it"
        yield Difference("pin", "programs", what)
