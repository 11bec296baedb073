"""Which endpoints are known to be dead: their pods were last seen terminating, and no slice of any
service names them any more.

That an address left a service says nothing by itself: its selector may have changed, or its slice
been made anew, while the pod lives.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from lbctl.model.records import ObjectKey, ServiceObjects

# Addresses remembered as terminating; beyond that the oldest are forgotten, and their connections
# end as they do without us.
_MOST: Final = 4096

Known = Iterable[tuple[ObjectKey, ServiceObjects]]


class Departed:
    """Follows the endpoints of services as they change."""

    def __init__(self) -> None:
        # Terminating when last seen, and in which service that was.
        self._leaving: dict[bytes, ObjectKey] = {}

    def take(self, changed: Iterable[tuple[ObjectKey, ServiceObjects | None]]) -> bool:
        """Services as they are now, None for one that is gone. Returns whether an endpoint began to
        terminate."""
        began = False
        for key, objects in changed:
            if objects is None:
                self._lose(key)
                continue
            for address, terminating in _endpoints(objects):
                if not terminating:
                    self._leaving.pop(address, None)
                else:
                    began |= address not in self._leaving
                    self._leaving[address] = key
        while len(self._leaving) > _MOST:
            del self._leaving[next(iter(self._leaving))]
        return began

    def leaving(self, addresses: Iterable[bytes]) -> set[bytes]:
        """Those that were terminating when last seen."""
        return {address for address in addresses if address in self._leaving}

    def _lose(self, key: ObjectKey) -> None:
        """Nobody will say any more when the pods of this service have ended."""
        for address in [a for a, where in self._leaving.items() if where == key]:
            del self._leaving[address]


def services_naming(addresses: Collection[bytes], known: Known) -> dict[bytes, set[ObjectKey]]:
    """By address, the services whose slices have it, in whatever state."""
    found: dict[bytes, set[ObjectKey]] = {}
    if addresses:
        for key, objects in known:
            for address, _ in _endpoints(objects):
                if address in addresses:
                    found.setdefault(address, set()).add(key)
    return found


def _endpoints(objects: ServiceObjects) -> Iterator[tuple[bytes, bool]]:
    for part in objects.slices:
        for endpoint in part.endpoints:
            yield endpoint.address, endpoint.terminating
