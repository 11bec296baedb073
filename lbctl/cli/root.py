"""What only root can do: said at once, before the kernel says it less clearly."""

from __future__ import annotations

import os

from lbctl.errors import LbError


def require_root(who: str, does: str, more: str = "") -> None:
    """LbError unless this process is root's: "`who` needs root: it `does`"."""
    if os.geteuid() != 0:
        raise LbError(f"{who} needs root: it {does}", f"Run it with sudo. {more}".strip())
