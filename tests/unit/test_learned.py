"""Maps that programs fill double before their oldest entries go."""

from types import SimpleNamespace
from typing import Any

from ebpf.maps import HashMap
from lbctl.agent import learned
from lbctl.agent.learned import Learned


class Table(HashMap):
    """One with so many entries."""

    def __init__(self, entries: int, most: int) -> None:
        self.entries, self.max_entries = entries, most

    def batches(self, most: int = 0) -> Any:
        yield range(self.entries // 2), ()
        yield range(self.entries - self.entries // 2), ()


def test_they_double_when_half_full() -> None:
    tables = {
        "affinity": Table(2049, 4096),
        "socket_choices": Table(2048, 4096),
        "socket_peers": Table(1, 1),  # --socket-lb off
    }
    instance: Any = SimpleNamespace(map=tables.__getitem__)
    errand: Any = SimpleNamespace(send=lambda work: work())
    found = Learned(instance, errand, most_flows=6000)
    looks = [found.wanted() for _ in range(learned._COUNT_EACH + 1)]
    assert not any(looks[:-1])  # nothing is known before they are counted
    assert looks[-1] == {"affinity": 6000}  # no more than flows
    tables["affinity"] = Table(6000, 6000)
    tables["socket_choices"].entries = 4096
    looks = [found.wanted() for _ in range(learned._COUNT_EACH)]
    assert looks[-1] == {"socket_choices": 8192}
