"""Reading what kind of checksum a packet has: on this kernel, and on one that does not tell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf.compile import compiler
from ebpf.kernel import btf, features
from ebpf.kernel import fields as kernel_fields

pytestmark = pytest.mark.kernel

# The two instructions that bpf_src/checksum.h leaves open, and the shift behind the read.
CALL = bytes([0x85, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF])
READ = bytes([0x71, 0x31, 0xFE, 0x7F, 0, 0, 0, 0])  # r1 = *(u8 *)(r3 + 32766)
SHIFT = bytes([0x77, 0x01, 0, 0, 0, 0, 0, 0])  # r1 >>= 0


@pytest.fixture
def uncached() -> Iterator[None]:
    kernel_fields.checksum_place.cache_clear()
    yield
    kernel_fields.checksum_place.cache_clear()


def test_members_and_functions_by_name() -> None:
    """`len` is older than BTF and lies outside of any anonymous member; ip_summed is two bits."""
    with btf.KernelTypes() as types:
        buffer = types.find("sk_buff", btf.STRUCT)
        assert buffer
        place = types.member(buffer, "len")
        assert place
        assert place[0] % 32 == 0
        assert place[1] == 0
        summed = types.member(buffer, "ip_summed")
        assert summed
        assert summed[1] == 2
        assert types.member(buffer, "no_such_member") is None
        assert types.find("no_such_function", btf.FUNC) == 0


@pytest.mark.usefixtures("uncached")
def test_what_is_left_open_becomes_a_cast_and_a_read() -> None:
    place = kernel_fields.checksum_place()
    assert place, "this kernel is newer than 6.2 and has BTF"
    code = bytearray(CALL + READ + SHIFT)
    kernel_fields.complete(code, 0)
    kernel_fields.complete(code, 1)
    assert code[:2] == bytes([0x85, 0x20])
    assert int.from_bytes(code[4:8], "little") == place.cast
    assert code[8:12] == bytes([0x71, 0x31]) + place.byte.to_bytes(2, "little")
    assert code[16:] == bytes([0x77, 0x01, 0, 0, place.shift, 0, 0, 0])


@pytest.mark.usefixtures("uncached")
def test_a_kernel_that_does_not_tell_gets_the_answer_that_asks_the_helper(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LBCTL_MASK", features.CHECKSUM_KIND)
    assert kernel_fields.checksum_place() is None
    code = bytearray(CALL + READ + SHIFT)
    kernel_fields.complete(code, 0)
    kernel_fields.complete(code, 1)
    assert code == bytes(
        [0xB7, 0, 0, 0, 2, 0, 0, 0, 0xBF, 0x31, 0, 0, 0, 0, 0, 0, 0x77, 0x01, 0, 0, 0, 0, 0, 0]
    )


def test_every_program_that_rewrites_has_such_places() -> None:
    programs = compiler.bundle("live").programs
    for name in ("from_pod4", "to_pod6", "from_net6", "to_net4", "follow4", "track6", "open4"):
        assert programs[name].kernel_reads, name


def test_packets_come_out_the_same_on_a_kernel_that_does_not_tell() -> None:
    """The kernel tests of checksums and of established flows, once more, by the helper alone."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("tests/kernel/test_datapath_checksums.py", "tests/kernel/test_datapath_uplink.py"),
            *("tests/kernel/test_datapath_established.py", "tests/kernel/test_datapath_udp.py"),
        ],
        env={**os.environ, "LBCTL_MASK": features.CHECKSUM_KIND},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
