"""What the sweep asks of flow entries, for whole arrays of them: age, partner, references.

The formulas are those of bpf_src/flow.h (`make_pair_key`, `is_pair`, `timeout_of`).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from lbctl.datapath import consts
from lbctl.datapath.records import rows_as_bytes
from lbctl.datapath.tables import Records

Mask = npt.NDArray[np.bool_]

# Entries looked at more closely in one step; each costs some system calls of a few microseconds.
STEP_ENTRIES = 1024
_STATES = 256  # of a u8


def timeouts(config: Records) -> npt.NDArray[np.int64]:
    """Ticks by (replied, state), from the one element of `config`."""
    table = np.empty((2, _STATES), np.int64)
    table[0] = int(config["datagram_timeout"])
    table[1] = int(config["datagram_stream_timeout"])
    for state, name in (
        (consts.FLOW_SYN, "syn_timeout"),
        (consts.FLOW_ESTABLISHED, "established_timeout"),
        (consts.FLOW_CLOSING, "closing_timeout"),
        (consts.FLOW_RESET, "reset_timeout"),
        (consts.FLOW_TIME_WAIT, "time_wait_timeout"),
        # A side entry is ended with its flow, or by the sweep when its flow is gone. Its port is
        # wanted by others, so it waits only so long as a flow may need to be opened.
        (consts.FLOW_SIDE, "reset_timeout"),
    ):
        table[:, state] = int(config[name])
    table[:, consts.FLOW_FIN_WAIT] = consts.FIN_WAIT_TICKS
    return table


def expired(values: Records, limits: npt.NDArray[np.int64], tick: int) -> Mask:
    """Which were not seen for longer than their state allows."""
    # Both are 32 bits wide and may wrap; an entry seen after `tick` was read has a negative age.
    age = (np.uint32(tick & 0xFFFFFFFF) - values["seen"]).astype(np.int32)
    replied = (values["flags"] & consts.FLOW_REPLIED != 0).astype(np.intp)
    over: Mask = age > limits[replied, values["state"]]
    return over


def take(records: Records, which: npt.NDArray[Any]) -> Records:
    """The records at these places, byte for byte: numpy's own indexing copies field by field, and
    leaves what happens to be there in the gaps between fields (an IPv6 flow has one)."""
    rows = rows_as_bytes(np.ascontiguousarray(records))[which]
    taken: Records = rows.reshape(-1).view(records.dtype)
    return taken


def is_reply(values: Records) -> Mask:
    """Entries for packets to the client."""
    reply: Mask = values["flags"] & consts.FLOW_REPLY != 0
    return reply


def pair_keys(keys: Records, values: Records) -> Records:
    """Keys of the other direction's entries."""
    reply, forward = is_reply(values), ~is_reply(values)
    pairs = np.zeros(len(keys), keys.dtype)
    pairs["proto"] = keys["proto"]
    pairs["src"][reply] = keys["dst"][reply]
    pairs["sport"][reply] = values["client_port"][reply]
    pairs["dst"][reply] = values["addr"][reply]
    pairs["dport"][reply] = values["port"][reply]
    pairs["src"][forward] = values["addr"][forward]
    pairs["sport"][forward] = values["port"][forward]
    pairs["dst"][forward] = keys["src"][forward]
    pairs["dport"][forward] = values["client_port"][forward]
    return pairs


def are_pairs(pairs: Records, keys: Records, values: Records) -> Mask:
    """Whether entries `pairs`, found under the pair keys, belong to the flows of `keys`."""
    reply = is_reply(values)
    place = np.where(reply, keys["sport"], keys["dport"])
    other = np.where(reply, keys["dport"], keys["sport"])
    addresses = np.where(reply[:, None], _address_bytes(keys["src"]), _address_bytes(keys["dst"]))
    same: Mask = (
        (is_reply(pairs) != reply)
        & (pairs["port"] == place)
        & (pairs["client_port"] == other)
        & (_address_bytes(pairs["addr"]) == addresses).all(axis=1)
    )
    return same


def side_owners(keys: Records, values: Records) -> Records:
    """Keys of the reply entries of the flows that hairpin side entries serve (masquerade.h)."""
    owners = np.zeros(len(keys), keys.dtype)
    owners["proto"] = keys["proto"]
    reply, forward = is_reply(values), ~is_reply(values)
    # pod:np -> pod:bp, as it goes to the pod: the flow's replies are pod:bp -> pod:np.
    for ours, theirs in (("src", "dst"), ("dst", "src"), ("sport", "dport"), ("dport", "sport")):
        owners[ours][reply] = keys[theirs][reply]
    # pod:bp -> node:np, as it comes from the pod.
    owners["src"][forward] = keys["src"][forward]
    owners["sport"][forward] = keys["sport"][forward]
    owners["dst"][forward] = values["addr"][forward]
    owners["dport"][forward] = values["port"][forward]
    return owners


def wide_addresses(addresses: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """(n, 16) address bytes of a column of IPv4 numbers or IPv6 addresses."""
    narrow = _address_bytes(addresses)
    if narrow.shape[1] == 16:
        return narrow
    wide = np.zeros((len(narrow), 16), np.uint8)
    wide[:, 10:12] = 0xFF
    wide[:, 12:] = narrow
    return wide


def _address_bytes(column: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    packed = np.ascontiguousarray(column)
    return packed.view(np.uint8).reshape(len(packed), packed.dtype.itemsize)
