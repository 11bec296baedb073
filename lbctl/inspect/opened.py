"""Opening an instance to look at it, with errors that say what to type instead."""

from __future__ import annotations

from pathlib import Path

from ebpf.errors import MissingFeature
from ebpf.instance import Instance
from lbctl.errors import LbError


class NotFound(LbError):
    """The named instance, service or backend does not exist."""

    exit_code = 3


def open_instance(pin_dir: Path, *, readonly: bool = True) -> Instance:
    """The instance pinned at `pin_dir`. Raises NotFound, MissingFeature (no permission), LbError."""
    try:
        present = (pin_dir / "meta").exists()
    except PermissionError as error:
        raise MissingFeature(
            f"{pin_dir} may not be read by this user", "Run the command as root."
        ) from error
    if not present:
        raise NotFound(f"there is no instance at {pin_dir}", _elsewhere(pin_dir))
    return Instance.open(pin_dir, readonly)


def _elsewhere(pin_dir: Path) -> str:
    """What to do, with the instances that do exist beside the one that does not."""
    found = instances_beside(pin_dir)
    if found:
        return "Use --pin-dir: there is " + ", ".join(str(path) for path in found) + "."
    return "`lbctl agent` makes one; --pin-dir or $LBCTL_PIN_DIR names another."


def instances_beside(pin_dir: Path) -> list[Path]:
    """Instances up to two directories below the parent of `pin_dir`, sorted."""
    parent = pin_dir.parent
    try:
        found = [*parent.glob("*/meta"), *parent.glob("*/*/meta")]
    except OSError:
        return []
    return sorted(path.parent for path in found)
