"""What there is to say of services: warnings about objects, hints used or not, what did not fit."""

import itertools
from collections.abc import Iterable, Mapping

import structlog

from ebpf.errors import LbError
from lbctl import advice
from lbctl.model.records import ObjectKey
from lbctl.resolve.hints import NO_HINTS
from lbctl.resolve.ports import ResolvedPort


class Notes:
    """Sentences by service and by port; each is logged when it becomes true."""

    def __init__(self) -> None:
        self._warnings: dict[ObjectKey, tuple[str, ...]] = {}
        self._hints: dict[str, str] = {}  # by stored name
        self.hints_changed = True  # since `take_hints`
        self._unwritten: dict[str, str] = {}  # by full name of the port
        self._refused = ""
        self._log = structlog.get_logger()

    @property
    def refused(self) -> bool:
        """Whether a map refused an update since `begin`."""
        return bool(self._refused)

    def warnings(self) -> list[str]:
        """What did not fit or could not be written, then what is wrong with objects."""
        found = itertools.chain.from_iterable(self._warnings.values())
        refused = filter(None, [self._refused])
        return [*dict.fromkeys(itertools.chain(self._unwritten.values(), refused, found))]

    def take_hints(self) -> dict[str, str] | None:
        """By stored name, what is to say of the ports whose endpoints have topology hints; None if
        nothing has changed since the last call."""
        if not self.hints_changed:
            return None
        self.hints_changed = False
        return self._hints

    def begin(self) -> None:
        """Writing is tried again."""
        self._refused = ""

    def resolved(self, key: ObjectKey, ports: Iterable[ResolvedPort]) -> None:
        """What the ports of a service say is wrong with it."""
        said = tuple(f"{port.name}: {text}" for port in ports for text in port.warnings)
        for sentence in said:
            if sentence not in self._warnings.get(key, ()):
                self._log.warning(sentence)
        if said:
            self._warnings[key] = said
        else:
            self._warnings.pop(key, None)

    def hinted(self, changes: Mapping[str, ResolvedPort | None]) -> None:
        """What became of the hints of these ports, by stored name."""
        for name, port in changes.items():
            said = port.hints if port and port.hints != NO_HINTS else ""
            if said == self._hints.get(name, ""):
                continue
            self.hints_changed = True
            if said:
                self._hints[name] = said
            else:
                del self._hints[name]

    def planned(
        self, names: Iterable[str], warnings: Iterable[str], failed: Mapping[str, LbError]
    ) -> None:
        """Ports by full name were planned and written, but for those that `failed`."""
        for name in names:
            self._unwritten.pop(name, None)
        for text in warnings:
            self._log.warning(text)
        for name, why in failed.items():
            self._unwritten[name] = f"{name} is not programmed: {why.message}; {why.hint}"
            self._log.error("not programmed", port=name, error=why.message, hint=why.hint)

    def map_refused(self, error: LbError) -> None:
        """Nothing can be said of what is written: all of it is planned anew."""
        hint = advice.on(error)
        self._log.error("cannot write", error=error.message, hint=hint)
        self._refused = f"{error.message} {hint}"
