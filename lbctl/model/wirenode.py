"""Nodes as they are sent, as far as a proxy reads them; the other kinds are in `wire.py`."""

from __future__ import annotations

from sys import intern

import msgspec

from lbctl.addresses import Prefix
from lbctl.model import fields
from lbctl.model.fields import InvalidField, Remarks
from lbctl.model.records import ZONE_LABEL, Node, Taint
from lbctl.model.wire import Whole, Wire


class WireNodeAddress(Wire):
    type: str
    address: str


class WireNodeStatus(Wire):
    addresses: list[WireNodeAddress] | None = None


class WireTaint(Wire):
    key: str
    effect: str = ""


class WireNodeSpec(Wire):
    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")
    taints: list[WireTaint] | None = None


class WireNode(Whole, kw_only=True):
    spec: WireNodeSpec | None = None
    status: WireNodeStatus | None = None

    def is_bare(self) -> bool:
        return self.spec is None and self.status is None

    def to_model(self, namespace: str, remarks: Remarks) -> Node:
        """The record of this object; `namespace` is ignored. Raises InvalidField."""
        spec = self.spec or WireNodeSpec()
        cidrs = spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else None)
        return Node(
            name=fields.identity(self.metadata.name, "").name,
            internal_ips=self._ips("InternalIP", remarks),
            external_ips=self._ips("ExternalIP", remarks),
            zone=intern((self.metadata.labels or {}).get(ZONE_LABEL, "")),
            pod_cidrs=_one_of_each(fields.prefixes("spec.podCIDRs", cidrs, remarks), remarks),
            taints=tuple(Taint(t.key, t.effect) for t in spec.taints or ()),
            deleting=self.metadata.deletion_timestamp is not None,
        )

    def _ips(self, kind: str, remarks: Remarks) -> tuple[bytes, ...]:
        def read(i: int, entry: WireNodeAddress) -> bytes | None:
            path = f"status.addresses[{i}].address"
            return fields.address(path, entry.address) if entry.type == kind else None

        return fields.good(self.status.addresses if self.status else None, read, remarks)


def _one_of_each(prefixes: tuple[Prefix, ...], remarks: Remarks) -> tuple[Prefix, ...]:
    """The first of each family: the API knows no more, and the programs have not room for any
    number."""
    found: dict[int, Prefix] = {}
    for prefix in prefixes:
        if found.setdefault(prefix.family, prefix) is not prefix:
            remarks.add(
                InvalidField("spec.podCIDRs", f"more than one network of IPv{prefix.family}")
            )
    return tuple(found.values())
