"""What there is to say of services: warnings about objects, who lost an address or its place, hints
used or not. One sentence per object, however large it is."""

from collections.abc import Iterable, Mapping

import structlog

from ebpf.errors import LbError
from lbctl import advice
from lbctl.addresses import format_endpoint
from lbctl.datapath.records import ADDRESS_BYTES
from lbctl.model.names import PortName
from lbctl.model.records import ObjectKey
from lbctl.plan.changes import PortState
from lbctl.resolve.hints import NO_HINTS, UNUSED
from lbctl.resolve.ports import ResolvedPort
from lbctl.troubles import ADDRESS_TAKEN, NO_ROOM, PARTLY_SERVED, Said

_MOST_TEXTS = 3  # in a sentence about one object
_MOST_OBJECTS = 100  # of a kind of sentence
_MOST_NAMES = 5  # in a sentence about many objects
_NOT_SERVED = "a service is not served as its object says"


class Notes:
    """Sentences by service and by port; those of a service are one line."""

    def __init__(self) -> None:
        self._warnings: dict[ObjectKey, str] = {}
        self._without_room: dict[ObjectKey, str] = {}
        self._contested: dict[ObjectKey, str] = {}  # by who has to wait
        self._without_table: dict[ObjectKey, str] = {}
        # Every sentence begins with its object.
        self._kinds = (
            self._without_room,
            self._without_table,
            self._contested,
            self._warnings,
        )
        self._news: dict[ObjectKey, None] = {}  # of whom something is to be logged
        self._hints: dict[str, str] = {}  # by stored name
        self._unused: str | None = ""  # a sentence about them; None: to be made anew
        self.changed = True  # since `take_hints`
        self.told = 0  # grows whenever something that is said of a service changes
        self._refused = ""
        self._log = structlog.get_logger()

    @property
    def refused(self) -> bool:
        """Whether a map refused an update since `begin`."""
        return bool(self._refused)

    def said(self) -> list[Said]:
        """What could not be written, who lost what, what is wrong with objects, hints unused."""
        if self._unused is None:
            self._unused = self._unused_hints()
        found = [Said("maps", self._refused)]
        said: set[ObjectKey] = set()
        for kind in self._kinds:
            lines = _bounded([self._line(key) for key in kind if key not in said])
            found += (Said("services", line) for line in lines)
            said.update(kind)
        found.append(Said("hints", self._unused))
        return [*dict.fromkeys(one for one in found if one.text)]

    def complaints(self) -> dict[ObjectKey, tuple[tuple[str, str], ...]]:
        """The same of services, for those who own them: reason (lbctl/troubles.py) and sentence."""
        kinds = {
            NO_ROOM: {**self._without_table, **self._without_room},
            ADDRESS_TAKEN: self._contested,
            PARTLY_SERVED: self._warnings,
        }
        keys = dict.fromkeys(key for kind in kinds.values() for key in kind)
        return {
            key: tuple((why, kind[key]) for why, kind in kinds.items() if key in kind)
            for key in keys
        }

    def take_hints(self) -> dict[str, str] | None:
        """By stored name, what is to say of the ports whose endpoints have topology hints; None if
        neither this nor `troubles` has changed since the last call."""
        if not self.changed:
            return None
        self.changed = False
        return self._hints

    def troubles(self) -> dict[str, tuple[str, ...]]:
        """By service, what keeps it from being served as its object says."""
        keys = dict.fromkeys(key for kind in self._kinds for key in kind)
        return {str(key): (self._line(key),) for key in keys}

    def log_news(self) -> None:
        """Say of each object what became true of it since the last call."""
        for key in self._news:
            if line := self._line(key):
                self._log.warning(_NOT_SERVED, service=str(key), why=line)
        self._news.clear()

    def _line(self, key: ObjectKey) -> str:
        """All that there is to say of an object."""
        first, *more = [kind[key] for kind in self._kinds if key in kind] or [""]
        return "; besides, ".join(
            [first, *(text.removeprefix(str(key)).lstrip(": ") for text in more)]
        )

    def begin(self) -> None:
        """Writing is tried again."""
        self._refused = ""

    def resolved(self, key: ObjectKey, ports: Iterable[ResolvedPort]) -> None:
        """What all the ports of a service say is wrong with it."""
        said = {text: None for port in ports for text in port.warnings}
        self._note(self._warnings, key, f"{key}: {_listed([*said], '; ')}" if said else "")

    def without_room(self, sentences: Mapping[ObjectKey, str]) -> None:
        """All services that lost their place or a part of it."""
        self._replace(self._without_room, sentences)

    def without_table(self, services: Iterable[ObjectKey], grows: bool) -> None:
        """All services that choose by chance because there is no room for their tables, for good
        or until the map `grows`."""
        flag = advice.flag_of("hash_tables")
        until = "until it has grown" if grows else f"start the agent with a larger {flag}"
        said = "chooses endpoints at random, since map hash_tables has no room for its table"
        self._replace(
            self._without_table,
            {key: f"{key} {said}; {until}" for key in services},
        )

    def contested(self, found: Iterable[tuple[bytes, PortState, list[PortState]]]) -> None:
        """All addresses that more than one asks for, who has them, and who waits."""
        lost: dict[ObjectKey, dict[ObjectKey, list[bytes]]] = {}
        for key, owner, waiting in found:
            for loser in waiting:
                by_owner = lost.setdefault(_key(loser), {})
                by_owner.setdefault(_key(owner), []).append(key)
        self._replace(
            self._contested,
            {loser: _conflict(loser, by_owner) for loser, by_owner in lost.items()},
        )

    def hinted(self, changes: Mapping[str, ResolvedPort | None]) -> None:
        """What became of the hints of these ports, by stored name."""
        for name, port in changes.items():
            said = port.hints if port and port.hints != NO_HINTS else ""
            if said == self._hints.get(name, ""):
                continue
            self.changed, self._unused = True, None
            if said:
                self._hints[name] = said
            else:
                del self._hints[name]

    def map_refused(self, error: LbError) -> None:
        """Nothing can be said of what is written: all of it is planned anew."""
        hint = advice.on(error)
        self._log.error("cannot write", error=error.message, hint=hint)
        self._refused = f"{error.message} {hint}"

    def _note(self, kind: dict[ObjectKey, str], key: ObjectKey, text: str) -> None:
        """News when it becomes true of the object, not for every number in it that changes."""
        if text == kind.get(key, ""):
            return
        self.changed = True
        self.told += 1
        if not text:
            del kind[key]
            return
        if key not in kind:
            self._news[key] = None
        kind[key] = text

    def _replace(self, kind: dict[ObjectKey, str], sentences: Mapping[ObjectKey, str]) -> None:
        for key in [key for key in kind if key not in sentences]:
            self._note(kind, key, "")
        for key, text in sentences.items():
            self._note(kind, key, text)

    def _unused_hints(self) -> str:
        """One sentence about all services whose hints this node does not go by, and why."""
        reasons: dict[str, dict[str, None]] = {}
        for name, said in self._hints.items():
            if said.startswith(UNUSED):
                why = said.removeprefix(UNUSED)
                reasons.setdefault(why, {})[PortName.parse(name).service_label] = None
        if not reasons:
            return ""
        ordered = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
        parts = [f"{_listed(sorted(names), ', ', _MOST_NAMES)} ({why})" for why, names in ordered]
        return f"topology hints that are not used: {_listed(parts, '; ')}"


def _key(state: PortState) -> ObjectKey:
    return state.service or PortName.parse(state.name).owner


def _conflict(loser: ObjectKey, by_owner: Mapping[ObjectKey, list[bytes]]) -> str:
    parts = [
        f"{_place(places[0])}{f' and {len(places) - 1:,} more' if len(places) > 1 else ''}, "
        f"which {'another port of it' if owner == loser else owner} has"
        for owner, places in sorted(by_owner.items())
    ]
    return (
        f"{loser} asks for {_listed(parts, '; for ')}: ClusterIPs go before other addresses, then "
        "the older service"
    )


def _place(key: bytes) -> str:
    port = int.from_bytes(key[ADDRESS_BYTES : ADDRESS_BYTES + 2], "big")
    return format_endpoint(key[:ADDRESS_BYTES], port)


def _listed(texts: list[str], between: str, most: int = _MOST_TEXTS) -> str:
    shown = between.join(texts[:most])
    return f"{shown} and {len(texts) - most:,} more" if len(texts) > most else shown


def _bounded(texts: Iterable[str]) -> list[str]:
    found = list(texts)
    if len(found) > _MOST_OBJECTS:
        found[_MOST_OBJECTS:] = [f"... and {len(found) - _MOST_OBJECTS:,} more services"]
    return found
