"""Running flows through the programs, and reading the answer from what became of the packet."""

from __future__ import annotations

import collections
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from ebpf.errors import LbError
from ebpf.kernel import testrun
from lbctl.addresses import family_of, format_endpoint
from lbctl.datapath import consts
from lbctl.trace.flows import Flow
from lbctl.trace.packets import Ends, frame, read_ends

Verdict = Literal["forward", "reject", "drop", "pass"]
Masquerade = bool | Literal["mixed"]

# What a TC program returns (linux/pkt_cls.h).
_UNSPEC = -1
_SHOT = 2
_REDIRECT = 7

_HANDOFF = struct.Struct("=5I")  # bpf_src/handoff.h

_FIRST_SOURCE_PORT = 32768
_SOURCE_PORTS = 28232  # Linux gives out these by default


class Answer(msgspec.Struct, frozen=True):
    """What happens to a flow, as seen over all samples. `reason`: datapath/reasons.py."""

    name: str
    verdict: Verdict
    backends: tuple[str, ...]  # sorted
    masquerade: Masquerade
    reason: str
    # By backend, how likely it is to be chosen: by what the maps hold, not by the samples. Without
    # those that are not chosen at all.
    probabilities: dict[str, float] = {}


class Traced(msgspec.Struct, frozen=True):
    """An answer, and what is for people only: the service's name if a backend was chosen, whether
    all samples had the same verdict (they may differ while the tables change), and whether some
    would go to their backend's node whole (DSR)."""

    flow: Flow
    answer: Answer
    service: str
    agreed: bool
    dsr: bool = False


class Sample(msgspec.Struct, frozen=True):
    """What became of one packet."""

    verdict: Verdict
    reason: int
    service: int = 0  # id
    backend: str = ""
    masqueraded: bool = False
    dsr: bool = False


def ask(
    flow: Flow,
    entry_fd: int,
    samples: int,
    reasons: Mapping[int, str],
    name_of: Callable[[int], str],
) -> Traced:
    """Sends `samples` packets of `flow`, each from another source port, through the program.

    `reasons` are the names of enum reason, `name_of` gives the name of a service id. Raises
    KernelError, and LbError for a verdict that no program of ours returns.
    """
    seen = [_sample(flow, entry_fd, number) for number in range(samples)]
    verdicts = collections.Counter(s.verdict for s in seen)
    verdict = verdicts.most_common(1)[0][0]
    fitting = [s for s in seen if s.verdict == verdict]
    reason = collections.Counter(s.reason for s in fitting).most_common(1)[0][0]
    service = fitting[-1].service
    answer = Answer(
        name=flow.name,
        verdict=verdict,
        backends=tuple(sorted({s.backend for s in fitting if s.backend})),
        masquerade=_masquerade(s.masqueraded for s in fitting),
        reason=reasons.get(reason, str(reason)),
    )
    name = name_of(service) if service else ""
    return Traced(flow, answer, name, len(verdicts) == 1, any(s.dsr for s in fitting))


def _masquerade(seen: Iterable[bool]) -> Masquerade:
    kinds = set(seen)
    return "mixed" if len(kinds) == 2 else kinds == {True}


def _sample(flow: Flow, entry_fd: int, number: int) -> Sample:
    source_port = _FIRST_SOURCE_PORT + number % _SOURCE_PORTS
    sent = Ends(flow.source, source_port, flow.destination, flow.port)
    result = testrun.run(entry_fd, frame(sent, flow.protocol), ctx=testrun.context())
    handoff = _HANDOFF.unpack_from(result.ctx, consts.HANDOFF_PLACE)
    reason = handoff[consts.HANDOFF_REASON]
    if result.retval == _SHOT:
        return Sample("drop", reason)
    if result.retval == _REDIRECT:
        return Sample("reject", reason)
    if result.retval != _UNSPEC:
        raise LbError(
            f"flow {flow.name}: the program returned {result.retval}, which means nothing here"
        )
    got = read_ends(result.packet, family_of(flow.destination))
    if (got.destination, got.port) == (sent.destination, sent.port):
        return Sample("pass", reason)
    way = handoff[consts.HANDOFF_MASQUERADED]
    return Sample(
        "forward",
        reason,
        handoff[consts.HANDOFF_SERVICE],
        format_endpoint(got.destination, got.port),
        way == consts.TRACED_MASQUERADED or got.source != sent.source,
        way == consts.TRACED_DSR,
    )
