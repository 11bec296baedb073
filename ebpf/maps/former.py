"""Maps of earlier versions in another shape, read in that of today."""

from __future__ import annotations

import numpy as np

from ebpf.maps.buckets import KEY_WORDS, Words
from ebpf.maps.hashes import HashMap

_FLAGS_SHIFT = np.uint64(24)  # FRONTEND_FLAGS_SHIFT of bpf_src/consts.h


def frontends(old: HashMap) -> tuple[Words, Words]:
    """Keys and payloads of `frontends` while it was a hash of struct frontend_key to struct
    frontend. An element that was being reused, and names another key than its own, is left out."""
    keys, values = old.read_all()
    whole = keys == values["self"]
    keys, values = keys[whole], values[whole]
    raw = np.zeros((len(keys), 8 * KEY_WORDS), np.uint8)
    size = keys.dtype.itemsize
    raw[:, :size] = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, size)
    flags = values["flags"].astype(np.uint64) << _FLAGS_SHIFT
    return raw.view(np.uint64), flags | values["service"]
