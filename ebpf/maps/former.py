"""Maps of earlier versions in another shape, read in that of today."""

from __future__ import annotations

import numpy as np

from ebpf.compile import constants, source
from ebpf.maps.buckets import KEY_WORDS, Words
from ebpf.maps.hashes import HashMap


def frontends(old: HashMap) -> tuple[Words, Words]:
    """Keys and payloads of `frontends` while it was a hash of struct frontend_key to struct
    frontend. An element that was being reused, and names another key than its own, is left out."""
    numbers = constants.constants((source.source_dir() / "consts.h").read_text())
    keys, values = old.read_all()
    whole = keys == values["self"]
    keys, values = keys[whole], values[whole]
    raw = np.zeros((len(keys), 8 * KEY_WORDS), np.uint8)
    size = keys.dtype.itemsize
    raw[:, :size] = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, size)
    flags = values["flags"].astype(np.uint64) << np.uint64(numbers["FRONTEND_FLAGS_SHIFT"])
    return raw.view(np.uint64), flags | values["service"]
