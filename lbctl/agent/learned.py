"""Maps that programs fill, of which nobody can say how large they have to be: of sockets, and of
clients of services with affinity. When one is full the least recently used entry goes: it doubles
before."""

from typing import Final

from ebpf.instance import Instance
from ebpf.maps import HashMap, declared
from lbctl.errands import Errand
from lbctl.reconcile.growing import FULL

COUNTING_SECONDS: Final = 60.0
_COUNT_EACH: Final = 10  # looks: counting is a walk


class Learned:
    """Counts their entries in a thread, now and then."""

    def __init__(self, instance: Instance, errand: Errand, most_flows: int) -> None:
        """`errand` counts, in COUNTING_SECONDS at most."""
        self._instance = instance
        self._errand = errand
        self._looks = 0
        self._most = {
            name: use.size.most if use.size.part else min(use.size.most, most_flows)
            for name, use in declared.USES.items()
            if isinstance(use.size, declared.Learned)
        }
        self._found: dict[str, int] = {}

    def wanted(self) -> dict[str, int]:
        """Entries by name of those that are to be larger. Asked about once a second."""
        wanted = {}
        for name, used in self._found.items():
            there = self._instance.map(name).max_entries
            if used > FULL * there and there < self._most[name]:
                wanted[name] = min(2 * there, self._most[name])
        self._looks += 1
        if self._looks % _COUNT_EACH == 0:
            self._errand.send(self._count)
        return wanted

    def _count(self) -> None:
        found = {}
        for name in self._most:
            table = self._instance.map(name)
            if isinstance(table, HashMap) and table.max_entries > 1:
                found[name] = sum(len(keys) for keys, _ in table.batches())
        self._found = found
