"""What the source said of services, and what of it is still to be written."""

from collections.abc import Iterable

from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.model.updates import Update
from lbctl.plan.rooms import NOTHING, Need, sum_of
from lbctl.resolve.endpoints import targets_of
from lbctl.resolve.ports import Target


class Known:
    """The objects of each service as they are now; those that changed are dirty until taken."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, ServiceObjects] = {}
        self.dirty: dict[ObjectKey, set[Target] | None] = {}  # which ports; None: all

    def take(self, update: Update) -> None:
        """Note what an update says."""
        for key, objects in update.services.items():
            self.mark(key, _affected(self.objects.get(key), objects))
            if objects.service is None:
                self.objects.pop(key, None)
            else:
                self.objects[key] = objects

    def mark(self, key: ObjectKey, targets: set[Target] | None = None) -> None:
        """These ports are to be looked at; None: all of the service."""
        noted = self.dirty.get(key, set())
        self.dirty[key] = None if noted is None or targets is None else noted | targets

    def mark_all(self, keys: Iterable[ObjectKey] | None = None) -> None:
        """All ports of these services; of every one if none are named."""
        self.dirty.update(dict.fromkeys(self.objects if keys is None else keys))

    def expected(self) -> Need:
        """About what all of them ask for, before any is resolved; rather more."""
        return sum_of(_about(objects) for objects in self.objects.values())

    def seniority(self, key: ObjectKey) -> bytes:
        """By which services are ordered where not all have room."""
        objects = self.objects.get(key)
        return objects.service.seniority if objects and objects.service else b""


def _about(objects: ServiceObjects) -> Need:
    """What a service may ask for: each of its ports at each of its addresses."""
    service = objects.service
    if service is None or service.left_alone:
        return NOTHING
    endpoints = sum(len(part.ports) * len(part.endpoints) for part in objects.slices)
    addresses = len(service.cluster_ips) + len(service.external_ips) + len(service.ingress_ips)
    ports = len(service.ports) * max(1, len(service.cluster_ips))
    frontends = len(service.ports) * (addresses + 2) + addresses
    return Need(ports, frontends, 2 * endpoints, endpoints, 0)


def _affected(before: ServiceObjects | None, after: ServiceObjects) -> set[Target] | None:
    """Ports that a change concerns; None if that may be all."""
    if before is None or before.service is not after.service:
        return None
    known, now = set(map(id, before.slices)), set(map(id, after.slices))
    return targets_of(
        [part for part in before.slices if id(part) not in now]
        + [part for part in after.slices if id(part) not in known]
    )
