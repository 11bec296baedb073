"""Programs on maps, ready to be asked."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Self

import msgspec

from ebpf.layouts import Bundle
from ebpf.programs import Generation
from lbctl.datapath import reasons
from lbctl.trace import asking, chances, programs
from lbctl.trace.asking import Traced
from lbctl.trace.chances import ChanceTables
from lbctl.trace.flows import Arrival, Flow


class TracedNode(abc.ABC):
    """Takes over the programs, not the maps. Close it, or use it as a context manager."""

    def __init__(self, generation: Generation, tables: ChanceTables, bundle: Bundle) -> None:
        self._generation = generation
        self._tables = tables
        self._names = tables.names
        self._reasons = reasons.reason_names(bundle.enums)

    def ask(self, flows: Iterable[Flow], samples: int) -> list[Traced]:
        """An answer per flow, in their order, from `samples` packets each. Raises KernelError."""
        return [self._ask(flow, samples) for flow in flows]

    @abc.abstractmethod
    def origin(self, flow: Flow) -> Arrival:
        """Where a flow enters that does not say so."""

    def _ask(self, flow: Flow, samples: int) -> Traced:
        arrives = flow.arrives or self.origin(flow)
        entry = self._generation.fds[programs.ENTRIES[arrives]]
        settled = msgspec.structs.replace(flow, arrives=arrives)
        traced = asking.ask(settled, entry, samples, self._reasons, self._name_of)
        found = chances.of(settled, traced.answer, self._tables)
        answer = msgspec.structs.replace(traced.answer, probabilities=found)
        return msgspec.structs.replace(traced, answer=answer)

    def close(self) -> None:
        """Lets go of programs and descriptors; pinned maps stay."""
        self._generation.close()

    def _name_of(self, service: int) -> str:
        spec = self._names.spec
        found = self._names.get(spec.key.pack(service=service))
        text: bytes = spec.value.unpack(found)["text"] if found else b""
        return text.decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
