"""Keys of `source_ranges`, the trie of who may call a load balancer's addresses."""

from collections.abc import Iterator, Sequence

import numpy as np

from lbctl.addresses import Prefix
from lbctl.datapath.tables import HashTable, Records

SERVICE_BITS = 32  # of a source range's key, before the address


def range_keys(ranges: Sequence[tuple[int, Prefix]], table: HashTable) -> Records:
    """Keys of the trie: the service's 32 bits, then the prefix of the client's address."""
    keys = np.zeros(len(ranges), table.spec.key.dtype)
    keys["service"] = [service for service, _ in ranges]
    keys["prefix_length"] = [SERVICE_BITS + prefix.length for _, prefix in ranges]
    raw = b"".join(prefix.address for _, prefix in ranges)
    keys["client"]["w"] = np.frombuffer(raw, np.uint32).reshape(-1, 4)
    return keys


def ranges_of(keys: Records) -> Iterator[tuple[int, Prefix]]:
    """The service and the range that each key stands for."""
    for key in keys:
        length = int(key["prefix_length"]) - SERVICE_BITS
        yield int(key["service"]), Prefix(key["client"]["w"].tobytes(), length)
