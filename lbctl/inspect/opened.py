"""Opening an instance to look at it, with errors that say what to type instead."""

from __future__ import annotations

from pathlib import Path

from ebpf.errors import MissingFeature
from ebpf.instance import Instance
from lbctl.errors import NotFound
from lbctl.pins import DEFAULT_PIN_DIR


def open_instance(pin_dir: Path, *, readonly: bool = True) -> Instance:
    """The instance pinned at `pin_dir`. Raises NotFound, MissingFeature (not root), LbError."""
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
    found = [path for path in instances() if path != pin_dir]
    if found:
        return "Choose one with --pin-dir: " + ", ".join(str(path) for path in found) + "."
    return "`lbctl agent` creates one; --pin-dir or $LBCTL_PIN_DIR names another directory."


def instances() -> list[Path]:
    """Every instance in the BPF file system's first levels, sorted; none if it may not be read."""
    root = DEFAULT_PIN_DIR.parent
    try:
        found = [*root.glob("*/meta"), *root.glob("*/*/meta"), *root.glob("*/*/*/meta")]
    except OSError:
        return []
    return sorted(path.parent for path in found)
