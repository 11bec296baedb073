"""What an operator can do about errors of `ebpf`, which knows no options and no commands."""

from typing import Final

from ebpf.errors import Damaged, LbError, Locked, MapFull
from ebpf.maps import declared
from ebpf.maps.declared import Limit

# Options of `lbctl agent` by the limit they choose.
FLAGS: Final[dict[Limit, str]] = {
    "services": "--services",
    "endpoints": "--endpoints",
    "flows": "--flows",
}


def flag_of(map_name: str) -> str:
    """The option that a map's size follows, empty if it follows none."""
    limit = declared.limit_of(map_name)
    return FLAGS[limit] if limit else ""


def on(error: LbError) -> str:
    """What helps against `error`: its own hint, or what that leaves to those who know options."""
    match error:
        case MapFull() if flag := flag_of(error.map_name):
            return f"Start the agent with a larger {flag}."
        case Locked():
            return "One agent serves one pin directory: stop it, or choose another --pin-dir."
        case Damaged():
            return "`lbctl cleanup` removes the instance, with its flows; the next start makes one."
    return error.hint
