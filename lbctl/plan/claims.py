"""Who owns which address, port and protocol, when more than one service asks for it.

Rank decides, so that every node comes to the same, whatever it heard of first and however often it
was started: a ClusterIP goes before all other kinds of address, then the older object before the
younger. The others wait. Each address also has a marker, which says whether it is a ClusterIP, to
whose unknown ports nobody else answers, or has only frontends of other kinds; what is no service's
at all is told from it by one look. An address that is somebody else's has a marker that says that.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from lbctl.datapath import consts
from lbctl.datapath.records import ADDRESS_BYTES, marker_key
from lbctl.plan.changes import Age

# What a marker may say; it is of service 0, which is nobody's id.
MARKER_FLAGS = consts.FRONTEND_ADDRESS | consts.FRONTEND_OUTER | consts.FRONTEND_SHARED


class Claims:
    """Owners of frontend keys, as programmed once the changes taken are written.

    An owner is service id and frontend flags in one integer, which at 100,000 frontends saves
    several MB; `pack` and `unpack` are the two ways.
    """

    __slots__ = (
        "_age",
        "_changed",
        "_foreign",
        "_markers",
        "_outer",
        "_own",
        "_owner",
        "_waiting",
        "entries",
        "version",
    )

    def __init__(self, age: Callable[[int], Age]) -> None:
        """`age` of a service port by id: the smaller, the older."""
        self._age = age
        self.entries = 0  # of the map, as things are before `changes` is carried out
        self.version = 0  # grows whenever who has to wait for whom may have changed
        self._owner: dict[bytes, int] = {}
        self._waiting: dict[bytes, list[int]] = {}
        self._markers: dict[bytes, int] = {}  # address -> services with it as ClusterIP
        self._outer: dict[bytes, int] = {}  # ... and as another kind of address
        self._changed: dict[bytes, int | None] = {}  # key -> what the kernel has
        self._own: frozenset[bytes] = frozenset()  # the node's, see `share`
        self._foreign: frozenset[bytes] = frozenset()

    def __len__(self) -> int:
        return len(self._owner)

    @staticmethod
    def pack(service: int, flags: int) -> int:
        """One integer of both."""
        return service << 16 | flags

    @staticmethod
    def unpack(owner: int) -> tuple[int, int]:
        """Service id and flags."""
        return owner >> 16, owner & 0xFFFF

    def owner(self, key: bytes) -> int | None:
        """The service id that has the key."""
        owner = self._owner.get(key)
        return None if owner is None else owner >> 16

    def owner_and_flags(self, key: bytes) -> tuple[int, int] | None:
        """What the map is to say of the key; of a marker, service 0."""
        owner = self._owner.get(key)
        return None if owner is None else self.unpack(owner)

    def keys(self) -> list[bytes]:
        """Every key that is owned, markers too."""
        return list(self._owner)

    def columns(self) -> tuple[list[bytes], list[int]]:
        """Every key that is owned, markers too, and the packed owner of each: its low bits are the
        flags."""
        return list(self._owner), list(self._owner.values())

    def adopt(self, key: bytes, service: int, flags: int) -> None:
        """A frontend that is programmed already, with a service that is known."""
        self._owner[key] = self.pack(service, flags)
        self.entries += 1
        counts, address = self._kind(flags), key[:ADDRESS_BYTES]
        counts[address] = counts.get(address, 0) + 1

    def adopt_markers(self, programmed: Mapping[bytes, int], strays: Iterable[bytes]) -> None:
        """After all `adopt`: the flags of each address with a marker, and keys of nobody.

        What is missing or too much is set right with the next changes.
        """
        self.entries += len(programmed)
        shared = {a for a, flags in programmed.items() if flags & consts.FRONTEND_SHARED}
        self._own = frozenset(shared & self._markers.keys())
        self._foreign = frozenset(shared - self._markers.keys())
        for address in self._markers.keys() | self._outer.keys() | programmed.keys():
            key, wanted, found = marker_key(address), self._marker(address), programmed.get(address)
            if wanted is not None:
                self._owner[key] = wanted
            if wanted != found:
                self._changed[key] = found
        for key in strays:
            self.entries += 1
            self._changed[key] = -1

    def take_unmarked(self) -> list[tuple[bytes, int]]:
        """Markers of the adopted frontends that are missing or wrong, and their flags. They are
        programmed from now on."""
        found = []
        for key, programmed in list(self._changed.items()):
            wanted = self._owner.get(key)
            if wanted is not None:
                self.entries += programmed is None
                found.append((key, wanted))
                del self._changed[key]
        return found

    def share(self, own: frozenset[bytes], foreign: frozenset[bytes]) -> bool:
        """Addresses whose unknown ports are not ours to refuse: the node's own, which matters where
        they are ClusterIPs, and those that somebody else serves, which are marked in any case.
        Returns whether that is news."""
        changed = (own ^ self._own) | (foreign ^ self._foreign)
        self._own, self._foreign = own, foreign
        for address in changed:
            self._remark(address)
        return bool(changed)

    def missing(self, frontends: Iterable[tuple[bytes, int]]) -> set[bytes]:
        """Keys, markers too, that these would add to the map."""
        found: set[bytes] = set()
        for key, _ in frontends:
            # One by one: a set less the keys of a dict would go through all of the dict.
            for each in (key, marker_key(key[:ADDRESS_BYTES])):
                if each not in self._owner:
                    found.add(each)
        return found

    def drop(self, service: int, frontends: Iterable[tuple[bytes, int]]) -> None:
        """The service no longer asks for these; of those who wait the first in rank gets them."""
        for key, flags in frontends:
            owner = self._owner.get(key)
            waiting = self._waiting.get(key, [])
            heir = None
            if owner is not None and owner >> 16 == service:
                heir = min(waiting, key=self._rank, default=None)
                self._set(key, heir)
            if waiting:
                self.version += 1
                waiting[:] = [w for w in waiting if w != heir and w >> 16 != service]
                if not waiting:
                    del self._waiting[key]
            self._unmark(self._kind(flags), key[:ADDRESS_BYTES])

    def add(self, service: int, frontends: Iterable[tuple[bytes, int]]) -> None:
        """The service asks for these, and gets those that nobody before it in rank asks for."""
        for key, flags in frontends:
            owner = self._owner.get(key)
            if owner is None:
                self._set(key, self.pack(service, flags))
            elif owner >> 16 != service:
                self._waiting.setdefault(key, []).append(self.pack(service, flags))
                self._elect(key)
            self._mark(self._kind(flags), key[:ADDRESS_BYTES])

    def change(self, service: int, key: bytes, old: int, new: int) -> None:
        """The flags of what the service already asks for differ now."""
        if self._owner[key] >> 16 == service:
            self._set(key, self.pack(service, new))
        else:
            waiting = self._waiting[key]
            waiting[waiting.index(self.pack(service, old))] = self.pack(service, new)
        if (old ^ new) & consts.FRONTEND_CLUSTER_IP:
            self._mark(self._kind(new), key[:ADDRESS_BYTES])
            self._unmark(self._kind(old), key[:ADDRESS_BYTES])
            self._elect(key)

    def aged(self, frontends: Iterable[tuple[bytes, int]]) -> None:
        """The age of a service that asks for these is another now."""
        for key, _ in frontends:
            self._elect(key)

    def contested(self) -> Iterator[tuple[bytes, int, list[int]]]:
        """Keys that more than one asks for: the owner's id, and the ids of those who wait."""
        for key, waiting in self._waiting.items():
            yield key, self._owner[key] >> 16, [other >> 16 for other in waiting]

    def changes(self) -> Iterator[tuple[bytes, int | None]]:
        """Keys whose entry in the kernel must change, with the new owner or None; each once."""
        changed, self._changed = self._changed, {}
        for key, programmed in changed.items():
            owner = self._owner.get(key)
            if owner != programmed:
                self.entries += (owner is not None) - (programmed is not None)
                yield key, owner

    def _rank(self, claim: int) -> tuple[bool, bool, Age]:
        """Smaller goes first. Flags are the low bits."""
        age = self._age(claim >> 16)
        return not claim & consts.FRONTEND_CLUSTER_IP, age is not None, age

    def _elect(self, key: bytes) -> None:
        """If one who waits goes before the owner, they change places."""
        waiting = self._waiting.get(key)
        if not waiting:
            return
        self.version += 1
        owner = self._owner[key]
        first = min((owner, *waiting), key=self._rank)
        if first != owner:
            waiting[waiting.index(first)] = owner
            self._set(key, first)

    def _set(self, key: bytes, owner: int | None) -> None:
        self._changed.setdefault(key, self._owner.get(key))
        if owner is None:
            self._owner.pop(key, None)
        else:
            self._owner[key] = owner

    def _kind(self, flags: int) -> dict[bytes, int]:
        """The counts by address that a frontend with these flags belongs to."""
        return self._markers if flags & consts.FRONTEND_CLUSTER_IP else self._outer

    def _mark(self, counts: dict[bytes, int], address: bytes) -> None:
        count = counts.get(address, 0)
        counts[address] = count + 1
        if not count:
            self._remark(address)

    def _unmark(self, counts: dict[bytes, int], address: bytes) -> None:
        count = counts[address] - 1
        if count:
            counts[address] = count
        else:
            del counts[address]
            self._remark(address)

    def _remark(self, address: bytes) -> None:
        self._set(marker_key(address), self._marker(address))

    def _marker(self, address: bytes) -> int | None:
        """The flags of an address's marker; None if it needs none."""
        cluster = address in self._markers
        shared = address in self._foreign or (cluster and address in self._own)
        flags = (
            consts.FRONTEND_ADDRESS * cluster
            | consts.FRONTEND_OUTER * (address in self._outer)
            | consts.FRONTEND_SHARED * shared
        )
        return flags or None
