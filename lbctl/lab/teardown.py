"""Removes a lab: processes, namespaces, pins, cgroups and files, whatever of them there is."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

from ebpf.errors import LbError
from lbctl import status
from lbctl.lab import cgroup, namespace, network
from lbctl.lab.state import PINS, RUN, Paths, load


def remove(name: str) -> bool:
    """Remove every trace of the lab `name`; False if there was none.

    Works from what exists, not from what was recorded, so that it also ends what a killed `up`
    left behind. Each part is tried even if another fails; the first error is raised at the end.
    """
    paths = Paths(name)
    traces = (paths.run, paths.pins, cgroup.root_of(name))
    if not any(trace.exists() for trace in traces):
        # Without one of these, a namespace that bears such a name is not ours.
        return False
    _refuse_if_building(name)
    with ExitStack() as parts:  # in reverse order
        parts.callback(_remove_files, paths)
        parts.callback(_remove_pins, paths)
        parts.callback(network.remove, namespaces_of(name))
        parts.callback(cgroup.remove, cgroup.root_of(name))
    return True


def namespaces_of(name: str) -> list[str]:
    """Existing namespaces whose names are those of a lab called `name`."""
    ours = re.compile(rf"{re.escape(name)}-(fabric|outside|node\d+|pod\d+)")
    return sorted(entry for entry in namespace.existing() if ours.fullmatch(entry))


def _refuse_if_building(name: str) -> None:
    try:
        state = load(name)
    except LbError:
        return  # never written, or not whole: nobody is at work
    if state.phase == "building" and state.builder.running and state.builder.pid != os.getpid():
        raise LbError(
            f"lab {name!r} is being built by process {state.builder.pid}",
            f"Wait for it, or: kill {state.builder.pid}",
        )


def _remove_pins(paths: Paths) -> None:
    for pin_dir in sorted(paths.pins.glob("*")):
        said = status.path_of(pin_dir)
        for file in said.parent.glob(f"{said.stem}.*"):  # a killed agent may leave half of one
            file.unlink(missing_ok=True)
    shutil.rmtree(paths.pins, ignore_errors=True)
    if paths.pins.exists():
        raise LbError(f"{paths.pins} could not be removed", f"rm -r {paths.pins}")
    _remove_if_empty(PINS)


def _remove_files(paths: Paths) -> None:
    shutil.rmtree(paths.run, ignore_errors=True)
    if paths.run.exists():
        raise LbError(f"{paths.run} could not be removed", f"rm -r {paths.run}")
    _remove_if_empty(RUN)
    _remove_if_empty(RUN.parent)


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return  # another lab's or program's things are in it, or it is gone
