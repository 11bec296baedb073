"""Keeping the source ports that the programs use from being given to the node's own sockets."""

from pathlib import Path

RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
# In a container that is not privileged /proc/sys cannot be written: deploy/ mounts this one here.
MOUNTED = Path(f"/host{RESERVED}")


def place() -> Path:
    """Where the node's setting can be read, and written if anywhere."""
    return MOUNTED if MOUNTED.exists() else RESERVED


def reserve(first: int, last: int, path: Path) -> bool:
    """Add `first`-`last` to the reserved ports of this network namespace, keeping what is there.

    Returns whether anything was written. Raises OSError (a read-only /proc/sys, for one).
    """
    current = path.read_text().strip()
    if _covers(current, first, last):
        return False
    path.write_text(f"{current},{first}-{last}" if current else f"{first}-{last}")
    return True


def _covers(listed: str, first: int, last: int) -> bool:
    """Whether every port is in a list such as "8080,61000-61999"."""
    missing = set(range(first, last + 1))
    for part in filter(None, listed.split(",")):
        low, _, high = part.partition("-")
        missing.difference_update(range(int(low), int(high or low) + 1))
    return not missing
