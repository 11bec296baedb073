"""What programs tell of flows and packets (struct flow_event of bpf_src/types.h).

They do while config.events_until is a later beat than the current one. What the ring had no room
for is counted in `cpus`, field `unheard`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ebpf.maps.base import Records
from ebpf.maps.ring import Ring

# Addresses are 16 bytes, IPv4 mapped; ports in network order; `time` is ns of the monotonic clock,
# the other times are beats; `what` is an enum event, `why` an enum end_reason or reason, `kind` an
# enum cell_kind. A test reads back what a program wrote.
EVENT: Final = np.dtype(
    [
        ("src", "u1", 16),
        ("dst", "u1", 16),
        ("addr", "u1", 16),
        *((name, "u8") for name in ("packets_in", "bytes_in", "packets_out", "bytes_out", "time")),
        *((name, "u4") for name in ("service", "backend", "opened", "seen", "process")),
        *((name, "u2") for name in ("sport", "dport", "port", "client_port")),
        *((name, "u1") for name in ("proto", "what", "why", "kind")),
    ]
)


def read_events(ring: Ring) -> Records:
    """The events since the last call, in order."""
    return ring.read_records(EVENT)
