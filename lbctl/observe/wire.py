"""What passes between the agent and those who listen to its events, over a socket of the machine.

The listener says in one line what of the past it wants, and the agent in one line how records are
laid out; then come frames: so many records, and how many this listener has lost so far. Who shuts
its side down gets all that was told until then, and a last frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from ebpf.flowevents import EVENT
from ebpf.maps.base import Records
from lbctl import status
from lbctl.errors import LbError

MOST_LINE: Final = 65536
_HEAD: Final = struct.Struct("=IIQ")


class Wanted(msgspec.Struct, frozen=True):
    """Of what was told before: at most so many events, none older (ns of the monotonic clock)."""

    last: int = 0
    since: int = 0


class Hello(msgspec.Struct, frozen=True):
    """`layout`: name, type and shape of each field of a record. `listening`: since when events are
    told without a gap (ns of the monotonic clock)."""

    layout: tuple[tuple[str, str, tuple[int, ...]], ...]
    listening: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of records."""
        return np.dtype([(name, kind, shape) for name, kind, shape in self.layout])


class Told(IntEnum):
    """What the records of a frame are."""

    PAST = 0
    NOW = 1
    LAST = 2  # ... and nothing comes after them


class Frame(msgspec.Struct, frozen=True):
    """Some events. `lost`: how many this listener did not get, since it began to listen."""

    told: Told
    lost: int
    records: Any


def path_of(pin_dir: Path) -> Path:
    """Where the agent of this instance listens for those who want to listen."""
    return status.path_of(pin_dir).with_suffix(".events")


def hello(listening: int) -> bytes:
    """The agent's line."""
    fields = [(name, EVENT[name]) for name in EVENT.names or ()]
    layout = tuple((name, field.base.str, field.shape) for name, field in fields)
    return msgspec.json.encode(Hello(layout, listening)) + b"\n"


def frame(told: Told, records: Records, lost: int) -> bytes:
    """One frame."""
    return _HEAD.pack(len(records), told, lost) + records.tobytes()


class Frames:
    """Puts frames together from pieces of the stream behind the agent's line."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._received = bytearray()

    def take(self, piece: bytes) -> Iterator[Frame]:
        """The frames that are complete with it. Raises LbError for what is none."""
        self._received += piece
        while len(self._received) >= _HEAD.size:
            count, told, lost = _HEAD.unpack_from(self._received)
            end = _HEAD.size + count * self._dtype.itemsize
            if told not in [*Told]:
                raise LbError("the agent's stream of events cannot be read", "It may be another's.")
            if len(self._received) < end:
                return
            records = np.frombuffer(bytes(self._received[_HEAD.size : end]), self._dtype)
            del self._received[:end]
            yield Frame(Told(told), lost, records)
