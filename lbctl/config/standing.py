"""What a running agent goes by, in a file beside its status: the node as it knows it, where its
objects come from, and which interfaces it serves. No secrets: paths and addresses.

With it `lbctl explain` and `lbctl verify` ask the same question of the same source, and need to be
told nothing.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from lbctl import status
from lbctl.model.records import Node
from lbctl.resolve.node import NodeFacts

_KIND = "facts"


class SourcePlace(msgspec.Struct, frozen=True):
    """Where objects come from: paths and an address, empty for none. Without a path it is the
    service account of the agent's pod."""

    manifests: str = ""
    kubeconfig: str = ""
    api_server: str = ""


class Standing(msgspec.Struct, frozen=True):
    """The file's content."""

    pid: int
    node: NodeFacts
    object: Node | None  # the node's own, as the source had it
    source: SourcePlace
    uplinks: tuple[str, ...] = ()  # patterns, as given
    pod_interfaces: tuple[str, ...] = ()
    socket_lb: str = ""
    cgroup: str = ""  # whose sockets; empty: all


def write(pin_dir: Path, standing: Standing) -> None:
    """Replace the file in one step. Raises OSError, Untrusted."""
    status.write_beside(pin_dir, _KIND, msgspec.json.encode(standing))


def read(pin_dir: Path) -> Standing | None:
    """What the last agent of this instance went by; None if nothing readable is there."""
    content = status.read_beside(pin_dir, _KIND)
    try:
        return msgspec.json.decode(content, type=Standing) if content else None
    except msgspec.DecodeError:
        return None
