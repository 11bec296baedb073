"""Records as bytes and as arrays; carrying them from one layout to another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf.errors import LayoutError
from ebpf.layouts import Bundle, Field, MapSpec, Record
from ebpf.maps import ARRAY, F_MMAPABLE, element_dtype, migrate

ADDR = Field("addr", 0, 16, 0, "struct", (Field("w", 0, 16, 4, "u32"),))
KEY = Record("key", 20, (ADDR, Field("port", 16, 2, 0, "u16"), Field("proto", 18, 1, 0, "u8")))
NAME = Record("name", 12, (Field("id", 0, 4, 0, "i32"), Field("text", 4, 8, 8, "char")))
WORD = Record("", 8, (Field("", 0, 8, 0, "u64"),))


def test_pack_and_numpy_agree() -> None:
    raw = KEY.pack(addr=bytes(range(16)), port=0x1234, proto=6)
    record = np.frombuffer(raw, KEY.dtype)[0]
    assert record["addr"].tobytes() == bytes(range(16))
    assert record["port"] == 0x1234
    assert record["proto"] == 6
    assert KEY.dtype.itemsize == 20


@given(st.binary(min_size=16, max_size=16), st.integers(0, 65535), st.integers(0, 255))
def test_unpack_reverses_pack(address: bytes, port: int, proto: int) -> None:
    values = {"addr": address, "port": port, "proto": proto}
    assert KEY.unpack(KEY.pack(**values)) == values


def test_text_ends_at_its_zero() -> None:
    raw = NAME.pack(id=-3, text=b"abc")
    assert NAME.unpack(raw) == {"id": -3, "text": b"abc"}
    assert np.frombuffer(raw, NAME.dtype)[0]["text"] == b"abc"


def test_bytes_are_taken_for_any_field() -> None:
    assert KEY.pack(port=b"\0\x50") == bytes(16) + b"\0\x50\0\0"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"none": 1}, "no field none"),
        ({"addr": b"x"}, "takes 16 bytes"),
        ({"addr": 1}, "given as 16 bytes"),
    ],
)
def test_wrong_values_are_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        KEY.pack(**values)


def test_array_elements_are_rounded_up_to_eight_bytes() -> None:
    spec = MapSpec("slots", ARRAY, F_MMAPABLE, WORD, KEY)
    assert element_dtype(spec).itemsize == 24
    assert element_dtype(spec).names == KEY.dtype.names
    assert element_dtype(MapSpec("filter", ARRAY, F_MMAPABLE, WORD, WORD)) == np.dtype("u8")


def test_tail_programs_come_from_the_enum() -> None:
    bundle = Bundle("", "live", {}, {}, {"PROGRAM_A4": 0, "PROGRAM_MAX": 1, "REASON_A": 3})
    assert bundle.tail_programs() == {"programs": {"a4": 0}, "xdp_programs": {}}


def test_convert_carries_fields_by_name() -> None:
    old = np.zeros(2, [("a", "u4"), ("gone", "u8"), ("nest", [("x", "u2")]), ("w", "u4", (2,))])
    old["a"], old["nest"]["x"], old["w"] = [1, 2], [3, 4], [[5, 6], [7, 8]]
    nest = [("y", "u1"), ("x", "u4")]
    fields = [("w", "u4", (3,)), ("new", "u1"), ("nest", nest), ("a", "u8")]
    new = migrate.convert(old, np.dtype(fields))
    assert new["a"].tolist() == [1, 2]
    assert new["nest"]["x"].tolist() == [3, 4]
    assert new["w"].tolist() == [[5, 6, 0], [7, 8, 0]]
    assert not new["new"].any()
    assert not new["nest"]["y"].any()


def test_convert_refuses_to_lose_a_number() -> None:
    old = np.zeros(1, [("a", "u4")])
    old["a"] = 300
    with pytest.raises(LayoutError, match="field a"):
        migrate.convert(old, np.dtype([("a", "u1")]))


def test_convert_refuses_another_shape() -> None:
    old = np.zeros(1, [("a", "u4")])
    with pytest.raises(LayoutError, match="field a"):
        migrate.convert(old, np.dtype([("a", [("b", "u4")])]))
