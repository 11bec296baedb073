"""Rules of routing: those that every kernel has stand in no way past the stack."""

from __future__ import annotations

import struct

import pytest

from lbctl.host import obstacles


def rule(priority: int, table: int, *more: tuple[int, int], **head: int) -> bytes:
    fields = {"to": 0, "source": 0, "tos": 0, "action": 1, "flags": 0} | head
    raw = struct.pack(
        "=BBBBBBBBI", 2, fields["to"], fields["source"], fields["tos"], table, 0, 0,
        fields["action"], fields["flags"],
    )  # fmt: skip
    for kind, value in ((6, priority), (15, table), *more):
        raw += struct.pack("=HHI", 8, kind, value)
    return raw


@pytest.mark.parametrize(
    ("raw", "usual"),
    [
        (rule(0, 255, flags=1), True),
        (rule(32766, 254, (14, 0xFFFFFFFF)), True),
        (rule(32767, 253), True),
        (rule(100, 254), False),
        (rule(32766, 100), False),
        (rule(32766, 254, (14, 0)), False),  # suppresses default routes
        (rule(32766, 254, (10, 7)), False),  # by mark
        (rule(32766, 254, source=24), False),
        (rule(32766, 254, to=24), False),
        (rule(32766, 254, tos=8), False),
        (rule(32766, 254, action=8), False),  # prohibit
        (rule(32766, 254, flags=2), False),  # not
    ],
)
def test_which_rules_of_routing_every_kernel_has(raw: bytes, usual: bool) -> None:
    assert obstacles.is_usual(raw) == usual
