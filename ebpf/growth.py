"""How a table of flows grows while programs use it.

The steps, each of which may be the last one that a process makes; the phase, kept in the table,
tells the next process where to go on:

    begin   a larger bank is made. Programs loaded now look in both, and open where they did
    leave   once those are in place everywhere: programs loaded now open in the larger bank
    move    once those are: the flows, some at a time
    finish  once all have moved: the bank they left is let go. Programs loaded now look in one again

`begin`, `leave` and `finish` are followed by loading a generation of programs, putting it in place
of the former one, and waiting until nobody runs that one (ebpf.kernel.grace). Of two generations
that run at once, each looks where the other one opens; that is all that the protocol asks for.
"""

from __future__ import annotations

from typing import Protocol

from ebpf import flowtable
from ebpf.errors import LbError
from ebpf.flowtable import FlowTable
from ebpf.kernel import grace
from ebpf.maps import ArrayMap, Map, of_kind

_PARTS = (("control", 1), ("cells", 8), ("states", 8))


class Holder(Protocol):
    """Who has the maps: an Instance."""

    @property
    def enums(self) -> dict[str, int]: ...

    def map(self, name: str) -> Map: ...

    def map_names(self) -> list[str]: ...

    def resize(self, name: str, entries: int) -> None: ...


class Growth:
    """One family's table. `programs` for `move` are those of the generation in place."""

    def __init__(self, instance: Holder, family: str) -> None:
        self._instance = instance
        self._family = family
        self._enums = instance.enums
        self._alone = False  # only programs run that were there when this was made

    @property
    def phase(self) -> int:
        """enum table_phase."""
        return int(self._table("a").records["phase"][0])

    @property
    def step(self) -> str:
        """What comes next: "begin", "leave", or "move" and then "finish"."""
        return ("begin", "leave", "move")[self.phase % 3]

    def begin(self, buckets: int) -> None:
        """Makes the larger bank."""
        own, other = self._letters()
        self._resize(other, buckets)
        ours, theirs = self._table(own).records, self._table(other).records
        theirs["secret"][0] = ours["secret"][0]
        theirs["bank"][0] = self._enums["PLACE_BANK"] if other == "b" else 0
        flowtable.set_size(theirs, buckets)
        theirs["other_buckets"][0] = ours["buckets"][0]
        ours["other_buckets"][0] = buckets
        self._enter("begin")

    def leave(self) -> None:
        """From now on programs are loaded that open in the larger bank."""
        self._enter("leave")

    def move(self, programs: dict[str, int], most: int = 1 << 16) -> int:
        """Moves up to so many flows; 0 once the old bank is empty. Takes some tens of
        milliseconds, most of them waiting."""
        table = self._flow_table(programs)
        left = table.abandoned()
        if len(left) or not self._alone:
            # Nobody may be at those cells, nor open flows in the old bank.
            grace.wait()
            self._alone = True
            table.carry(left)
        rings = table.move(most)
        if len(rings):
            grace.wait()
            table.carry(rings)
        return len(rings) + len(left)

    def left(self) -> int:
        """Cells that the old bank still has."""
        return self._flow_table({}).banks[1].used()

    def finish(self) -> None:
        """Lets the old bank go."""
        own = self._letters()[0]
        if self.left():
            raise LbError(f"{self.left()} cells of table {self._family} have not moved yet")
        self._table(own).records["other_buckets"][0] = 0
        self._enter("move")
        self.tidy()

    def tidy(self) -> None:
        """What `finish` had to do when its process ended: the memory of the bank that is left."""
        if self.step == "begin":
            self._resize(self._letters()[1], 1)

    def _enter(self, step: str) -> None:
        assert self.step == step, self.step
        phases = self._enums["PHASE_MAX"]
        self._table("a").records["phase"][0] = (self.phase + 1) % phases

    def _letters(self) -> tuple[str, str]:
        """The bank that flows are opened in, and the other one."""
        return ("b", "a") if flowtable.own_is_b(self.phase, self._enums) else ("a", "b")

    def _resize(self, letter: str, buckets: int) -> None:
        for part, each in _PARTS:
            name = f"{part}{self._family}{letter}"
            if part != "states" or self._family == "6":
                self._instance.resize(name, each * buckets)

    def _table(self, letter: str) -> ArrayMap:
        return of_kind(ArrayMap, self._instance.map(f"table{self._family}{letter}"))

    def _flow_table(self, programs: dict[str, int]) -> FlowTable:
        maps = {name: self._instance.map(name) for name in self._instance.map_names()}
        return FlowTable(self._family, maps, self._enums, programs)
