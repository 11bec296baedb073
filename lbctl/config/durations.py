"""Durations as Kubernetes writes them in files: 24h0m0s, 1h30m, 250ms."""

from __future__ import annotations

import re

_SECONDS = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0,
}  # fmt: skip
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST = 2**31  # seconds; the data path counts 31 bits of beats


def parse_duration(text: str) -> float:
    """Seconds. Raises ValueError."""
    text = text.strip()
    parts = _PART.findall(text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration, like 24h0m0s or 90s")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds >= _LONGEST:
        raise ValueError(f"{text!r} is longer than {_LONGEST // 31_557_600} years")
    return seconds
