"""The two bit filters: which bits stand for what is programmed, and storing those that differ."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf.maps.filters import hashed
from lbctl.datapath import consts
from lbctl.datapath.records import ADDRESS_BYTES, IDENTITY_BYTES
from lbctl.datapath.tables import ArrayTable, Records

Bits = npt.NDArray[np.uint32]


# Frontends of these kinds say something about the whole address: every port of it is answered for.
_CLUSTER_IP = consts.FRONTEND_CLUSTER_IP | consts.FRONTEND_ADDRESS


def address_bits(addresses: npt.NDArray[np.uint8], kind: int = 0) -> Bits:
    """Bit numbers in `service_filter`, one per row of an (n, 16) array of address bytes.

    `kind` 0 stands for any address of a service, 1 for a ClusterIP; see maybe_service() in C.
    """
    kinds = np.full(len(addresses), kind, np.uint32)
    return hashed(addresses, kinds, consts.SERVICE_FILTER_BITS)


def endpoint_bits(addresses: npt.NDArray[np.uint8], ports: npt.NDArray[Any]) -> Bits:
    """Bit numbers in `backend_filter` for (n, 16) address bytes and n ports: of backends, and of
    frontends that are no ClusterIP.

    Ports are as the records hold them: 16 bits loaded from network byte order.
    """
    return hashed(addresses, ports, consts.BACKEND_FILTER_BITS)


def service_bits(addresses: Sequence[bytes], cluster_ip: bool = False) -> Bits:
    """Bit numbers of 16-byte addresses in `service_filter`, as any service's or as ClusterIPs."""
    rows = np.frombuffer(b"".join(addresses), np.uint8).reshape(-1, ADDRESS_BYTES)
    return address_bits(rows, int(cluster_ip))


def frontend_bits(keys: Iterable[bytes], flags: Sequence[int]) -> tuple[Bits, Bits]:
    """Bit numbers in `service_filter` and in `backend_filter` for frontends, some perhaps twice."""
    rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, IDENTITY_BYTES + 1)
    whole = np.array(flags, np.int64) & _CLUSTER_IP != 0
    services = [
        address_bits(rows[:, :ADDRESS_BYTES]),
        address_bits(rows[whole, :ADDRESS_BYTES], 1),
    ]
    return np.concatenate(services), _identity_bits(rows[~whole, :IDENTITY_BYTES])


def identity_bits(identities: Sequence[bytes]) -> Bits:
    """Bit numbers of 18-byte identities (address, port) in `backend_filter`."""
    return _identity_bits(_identity_rows(identities))


def backend_bits(identities: Sequence[bytes]) -> Bits:
    """The same for backends, whose addresses have bits with port 0 as well: fragments that are not
    the first of their datagram have no ports."""
    rows = _identity_rows(identities)
    return np.concatenate([_identity_bits(rows), _portless_bits(rows[:, :ADDRESS_BYTES])])


def _identity_rows(identities: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(identities), np.uint8).reshape(-1, IDENTITY_BYTES)


def _portless_bits(addresses: npt.NDArray[np.uint8]) -> Bits:
    return endpoint_bits(addresses, np.zeros(len(addresses), np.uint16))


def _identity_bits(rows: npt.NDArray[np.uint8]) -> Bits:
    ports = np.ascontiguousarray(rows[:, ADDRESS_BYTES:]).view(np.uint16).reshape(-1)
    return endpoint_bits(rows[:, :ADDRESS_BYTES], ports)


def backend_record_bits(records: Records) -> Bits:
    """The same of those elements of `backends` that hold an endpoint, serving or not."""
    used = records[records["port"] != 0]
    addresses = np.ascontiguousarray(used["addr"]).view(np.uint8).reshape(-1, ADDRESS_BYTES)
    return np.concatenate([endpoint_bits(addresses, used["port"]), _portless_bits(addresses)])


def identities(records: Records) -> list[bytes]:
    """Identities of the elements of `backends` that are on this node and hold an endpoint."""
    here = records[(records["port"] != 0) & (records["flags"] & consts.BACKEND_LOCAL != 0)]
    addresses = np.ascontiguousarray(here["addr"]).view(np.uint8).reshape(-1, ADDRESS_BYTES)
    ports = np.ascontiguousarray(here["port"]).view(np.uint8).reshape(-1, 2)
    return [row.tobytes() for row in np.concatenate([addresses, ports], axis=1)]


def served_by_node(identities: Iterable[bytes], addresses: Sequence[bytes]) -> Bits:
    """Bit numbers in `backend_filter` of every one of the node's `addresses` with the ports of
    those `identities` that have one of them: whoever is bound to all of them answers from any."""
    own = set(addresses)
    ports = {i[ADDRESS_BYTES:] for i in identities if i[:ADDRESS_BYTES] in own}
    return identity_bits([address + port for address in addresses for port in ports])


def set_bits(table: ArrayTable, bits: Bits) -> int:
    """Set these bits; returns how many words had to be stored."""
    if not len(bits):
        return 0
    words, masks = _words(bits)
    have = table.records[words]
    missing = np.flatnonzero(masks & ~have)
    table.records[words[missing]] = (have | masks)[missing]
    return len(missing)


def missing_bits(table: ArrayTable, bits: Bits) -> int:
    """In how many words some of these bits are not set."""
    if not len(bits):
        return 0
    words, masks = _words(bits)
    return int(np.count_nonzero(masks & ~table.records[words]))


def replace_bits(table: ArrayTable, flags: npt.NDArray[np.bool_]) -> int:
    """Set exactly these bits, given one by one; returns how many words had to be stored."""
    wanted = np.packbits(flags, bitorder="little").view("<u8")
    different = np.flatnonzero(wanted != table.records)
    table.records[different] = wanted[different]
    return len(different)


def _words(bits: Bits) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Distinct word indices, and the bits wanted in each."""
    words, position = np.unique((bits >> np.uint32(6)).astype(np.int64), return_inverse=True)
    masks = np.zeros(len(words), np.uint64)
    np.bitwise_or.at(masks, position, np.uint64(1) << (bits & np.uint32(63)).astype(np.uint64))
    return words, masks
