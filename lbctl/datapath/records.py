"""Records of the maps as bytes: what identifies an endpoint or a frontend, and where it lies."""

from typing import Any

import numpy as np
import numpy.typing as npt

ADDRESS_BYTES = 16
# What tells one endpoint from another: address (16 bytes) and port (2, network order).
IDENTITY_BYTES = 18


def frontend_key(address: bytes, port: int, protocol: int) -> bytes:
    """What identifies a frontend: address (16 bytes), port (2, network order), protocol (1)."""
    return address + port.to_bytes(2, "big") + bytes((protocol,))


def marker_key(address: bytes) -> bytes:
    """The key of the marker of a ClusterIP address."""
    return address + b"\0\0\0"


def address_columns(dtype: np.dtype[Any], *fields: str) -> npt.NDArray[np.intp]:
    """The byte positions of `fields` in a record, one after the other."""
    columns: list[int] = []
    for name in fields:
        kind, offset = dtype.fields[name][:2] if dtype.fields else (dtype, 0)
        columns.extend(range(offset, offset + kind.itemsize))
    return np.array(columns, dtype=np.intp)


def rows_as_bytes(records: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The same memory as (n, itemsize) bytes; `records` must be contiguous."""
    return records.view(np.uint8).reshape(len(records), records.dtype.itemsize)
