"""Helpers that a kernel may lack: the programs load without them as well."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ebpf.kernel import optional

pytestmark = pytest.mark.kernel
LOAD = """
from ebpf import maps
from ebpf.compile import compiler
from ebpf.kernel import optional
from ebpf.programs import load
assert not optional.has_mptcp()
bundle = compiler.bundle()
made = {n: maps.create(s, 4096) for n, s in bundle.maps.items() if n != "programs"}
fds = {name: one.fd for name, one in made.items()}
for name in bundle.programs:
    if name.startswith("sock_"):
        load(bundle.programs[name], fds)
"""


def test_programs_load_where_the_helper_is_missing() -> None:
    environment = os.environ | {"LBCTL_MASK": "mptcp"}
    subprocess.run([sys.executable, "-c", LOAD], env=environment, check=True, timeout=120)


def test_only_calls_of_what_is_missing_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    call = bytes([0x85, 0, 0, 0]) + optional.SKC_TO_MPTCP_SOCK.to_bytes(4, "little")
    other = bytes([0x85, 0, 0, 0, 1, 0, 0, 0])
    monkeypatch.setattr(optional, "has_mptcp", lambda: False)
    code = bytearray(other + call + other)
    optional.without_missing(code)
    assert bytes(code) == other + bytes([0xB7] + [0] * 7) + other
    monkeypatch.setattr(optional, "has_mptcp", lambda: True)
    code = bytearray(call)
    optional.without_missing(code)
    assert bytes(code) == call
