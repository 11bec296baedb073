"""What is not as it should be: one record per object and fault, the same for all that looks."""

from __future__ import annotations

import msgspec


class Difference(msgspec.Struct, frozen=True, order=True):
    """`kind` is service, endpoint, interface, socket hook, pin, program, flow or node; `object`
    names the one that is meant."""

    kind: str
    object: str
    what: str
