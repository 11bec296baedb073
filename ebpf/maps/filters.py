"""The Python twin of `filter_hash` in bpf_src/address.h: which bit stands for an address."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf.compile import constants, source

_WORDS = np.array([0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x9E3779B1], np.uint32)
_PORT = np.uint32(0x165667B1)
_LAST = np.uint32(0x2C1B3C6D)

_CONSTANTS = constants.constants((source.source_dir() / "consts.h").read_text())
SERVICE_FILTER_BITS = _CONSTANTS["SERVICE_FILTER_BITS"]
BACKEND_FILTER_BITS = _CONSTANTS["BACKEND_FILTER_BITS"]


def address_bits(addresses: npt.NDArray[np.uint8], kind: int = 0) -> npt.NDArray[np.uint32]:
    """Bit numbers in `service_filter`, one per row of an (n, 16) array of address bytes.

    `kind` 0 stands for any address of a service, 1 for a ClusterIP; see maybe_service() in C.
    """
    return _hash(addresses, np.full(len(addresses), kind, np.uint32)) >> np.uint32(
        32 - SERVICE_FILTER_BITS
    )


def endpoint_bits(
    addresses: npt.NDArray[np.uint8], ports: npt.NDArray[Any]
) -> npt.NDArray[np.uint32]:
    """Bit numbers in `backend_filter` for (n, 16) address bytes and n ports: of backends, and of
    frontends that are no ClusterIP.

    Ports are as the records hold them: 16 bits loaded from network byte order.
    """
    return _hash(addresses, ports.astype(np.uint32)) >> np.uint32(32 - BACKEND_FILTER_BITS)


def _hash(
    addresses: npt.NDArray[np.uint8], ports: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]:
    """32-bit hashes; numpy's unsigned arrays wrap as C's do."""
    words = np.ascontiguousarray(addresses).view(np.uint32).reshape(-1, 4)
    mixed: npt.NDArray[np.uint32] = (words * _WORDS).sum(axis=1, dtype=np.uint32) + ports * _PORT
    mixed ^= mixed >> np.uint32(15)
    mixed *= _LAST
    return mixed
