"""A node's own maps, asked as they are."""

from __future__ import annotations

import contextlib

from ebpf.instance import Instance
from ebpf.layouts import Bundle
from lbctl.trace import programs
from lbctl.trace.world import World


class LiveWorld(World):
    """A node's own maps. Takes `instance` over; nothing in it changes.

    Raises LayoutError if its maps are of another version of lbctl.
    """

    def __init__(self, instance: Instance, bundle: Bundle) -> None:
        self._instance = instance
        with contextlib.ExitStack() as undo:
            undo.callback(instance.close)
            instance.require(bundle)
            fds = {name: instance.map(name).fd for name in programs.maps_of(bundle)}
            super().__init__(programs.load(bundle, fds), instance.names, bundle)
            undo.pop_all()

    def close(self) -> None:
        super().close()
        self._instance.close()
