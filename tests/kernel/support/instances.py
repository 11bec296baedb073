"""Small instances, and flows in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ebpf import instance
from ebpf.instance import Instance, Sizes
from ebpf.kernel import bpffs
from ebpf.layouts import Bundle, Field, Record
from tests.kernel.support.programs import MACHINE_BPFFS, flows4, small_bundle, unique

SMALL = Sizes(16, 16, 64)
WORD = Record("", 4, (Field("", 0, 4, 0, "u32"),))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return small_bundle()


@pytest.fixture(scope="module")
def wide() -> Bundle:
    """The same programs with a field more in struct flow."""
    return small_bundle(WIDE="1")


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    bpffs.mount()
    path = MACHINE_BPFFS / unique("instance")
    yield path
    if path.exists():
        instance.remove(path)


def add_flows(made: Instance, first: int, count: int) -> None:
    keys = np.zeros(count, flows4(made).spec.key.dtype)
    values = np.zeros(count, flows4(made).spec.value.dtype)
    keys["src"] = np.arange(first, first + count)
    values["addr"] = keys["src"]
    values["mac"] = [1, 2, 3, 4, 5, 6]
    flows4(made).put_many(keys, values)


def flows(made: Instance) -> list[int]:
    keys, values = flows4(made).read_all()
    assert (keys["src"] == values["addr"]).all()
    assert (values["mac"] == [1, 2, 3, 4, 5, 6]).all()
    return sorted(int(number) for number in keys["src"])
