"""Ends of flows, as programs tell them (struct flow_event of bpf_src/types.h).

They do while CONFIG_EVENTS is set in config.flags. What the ring had no room for is counted in
`cpus`, field `unheard`.
"""

from __future__ import annotations

import numpy as np

from ebpf.maps.base import Records
from ebpf.maps.ring import Ring

# Addresses are 16 bytes, IPv4 mapped; ports in network order; times in beats; `why` an enum
# end_reason. A test reads back what a program wrote.
EVENT = np.dtype(
    [
        ("src", "u1", 16),
        ("dst", "u1", 16),
        ("addr", "u1", 16),
        *((name, "u8") for name in ("packets_in", "bytes_in", "packets_out", "bytes_out")),
        *((name, "u4") for name in ("service", "backend", "opened", "seen")),
        *((name, "u2") for name in ("sport", "dport", "port")),
        ("proto", "u1"),
        ("why", "u1"),
    ]
)


def read_events(ring: Ring) -> Records:
    """The ends since the last call, in order."""
    return np.frombuffer(b"".join(ring.read()), EVENT)
