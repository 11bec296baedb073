"""Flows in an instance of a test: opened by the programs that open listed ones."""

from __future__ import annotations

import os

import numpy as np

from ebpf import programs
from ebpf.instance import Instance
from ebpf.kernel import bpffs
from ebpf.layouts import Bundle
from ebpf.maps.base import Records

_LISTED = ("reserve_listed", "publish_listed", "end_listed")


def pin(instance: Instance, bundle: Bundle) -> None:
    """Load the programs of lists alone, as a generation of their own."""
    directory = instance.pin_dir / "programs" / "listed"
    bpffs.make_directory(directory)
    fds = instance.map_fds()
    for name in _LISTED:
        for family in "46":
            fd = programs.load(bundle.programs[name + family], fds)
            bpffs.pin(fd, directory / (name + family))
            os.close(fd)


def open_flows(instance: Instance, family: str, *flows: Records) -> None:
    """Each is the cells of one, as `FakeFlowTable` has them."""
    (table,) = (table for table in instance.flow_tables if table.family == family)
    assert table.open(np.stack(flows)) == len(flows)
