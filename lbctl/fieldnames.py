"""Words for what is wrong with a field of an object or a file: its path, its type, near names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import msgspec

_AT = re.compile(r"(?P<what>.*) - at `\$\.?(?P<path>.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)


def explain(error: msgspec.ValidationError) -> str:
    """`iptables.masqueradeAll: expected bool, got str`."""
    match = _AT.fullmatch(str(error))
    what, path = (match["what"], match["path"]) if match else (str(error), "")
    what = what.replace("`", "")
    what = what[:1].lower() + what[1:]
    return f"{path}: {what}" if path else what


def path_of(error: msgspec.ValidationError) -> str:
    """The field's path alone, empty for the whole."""
    match = _AT.fullmatch(str(error))
    return match["path"] if match else ""


def unknown_field(error: msgspec.ValidationError) -> str:
    """The name of a field that does not exist, empty for every other fault."""
    match = _AT.fullmatch(str(error))
    found = _UNKNOWN.fullmatch(match["what"] if match else str(error))
    return found["name"] if found else ""


def near(name: str, known: Iterable[str]) -> str:
    """`Did you mean uplinks?`, or what there is."""
    names = {k.lower(): k for k in known}
    same = name.lower()
    close = [same] if same in names else difflib.get_close_matches(same, names, n=2, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(names[c] for c in close)}?"
    return f"Known: {', '.join(names.values())}."
