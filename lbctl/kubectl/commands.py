"""Which commands of lbctl are run in pods: read-only ones, with the names they are given."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

OBSERVE = ("observe",)
TOP = ("top",)
TABLES = {("service", "list"), ("backend", "list"), ("flow", "list"), ("doctor",), ("verify",), TOP}
# Command, and what follows its name that is a service's name.
WITH_SERVICE = {("service", "show"): 2, ("backend", "list"): 2, ("explain",): 1}
READING = {*TABLES, *WITH_SERVICE, ("status",), ("trace",), ("drain",), OBSERVE}
# What these commands do beside reading.
_CHANGING = {"--repair": "it changes things; run it in one agent's pod with `kubectl exec`"}
_NEEDED = {("drain",): "--simulate"}
_QUALIFIED = {"--service", "--pod"}  # options whose values may have a namespace


def known(command: Sequence[str]) -> tuple[str, ...] | None:
    """Which it is."""
    for length in (2, 1):
        if tuple(command[:length]) in READING:
            return tuple(command[:length])
    return None


def problem(command: Sequence[str]) -> str:
    """Why it is not run; empty if it is."""
    found = known(command)
    if found is None:
        listed = sorted(" ".join(words) for words in READING)
        near = difflib.get_close_matches(
            " ".join(command[:2]), listed
        ) or difflib.get_close_matches(command[0], listed)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Those are: {', '.join(listed)}"
        return f"{' '.join(command[:2])!r} is not a read-only command. {hint}"
    for word, why in _CHANGING.items():
        if word in command:
            return f"{word} is refused here: {why}"
    if found in _NEEDED and _NEEDED[found] not in command:
        return f"{' '.join(found)} only runs with {_NEEDED[found]} here"
    return ""


def is_screen(command: Sequence[str]) -> bool:
    """Whether it wants a terminal, and so one node."""
    return known(command) == TOP and "--once" not in command


def with_namespace(command: Sequence[str], namespace: str) -> list[str]:
    """The command with the namespace in the names of services and pods, where they have none."""
    words, found = list(command), known(command)
    if not namespace or found is None:
        return words
    if found == ("service", "list"):
        return [*words, "--namespace", namespace]
    place = WITH_SERVICE.get(found)
    if place is not None and place < len(words) and not words[place].startswith("-"):
        words[place] = _qualified(words[place], namespace)
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in _QUALIFIED and equals:
            words[place] = f"{name}={_qualified(value, namespace)}"
        elif name in _QUALIFIED and place + 1 < len(words):
            words[place + 1] = _qualified(words[place + 1], namespace)
    return words


def _qualified(name: str, namespace: str) -> str:
    return name if "/" in name else f"{namespace}/{name}"


def value_of(command: Sequence[str], *options: str) -> str:
    """What an option of the command was given, the last time; empty if it was not."""
    return next((value for _, value in reversed([*_values(command, options)])), "")


def replaced(command: Sequence[str], option: str, value: str) -> list[str]:
    """The command with another value of that option."""
    words = list(command)
    for place, _ in _values(command, (option,)):
        inside = words[place].startswith("-")
        words[place] = f"{option}={value}" if inside else value
    return words


def _values(command: Sequence[str], options: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Places of words with values of these options, and the values."""
    for place, word in enumerate(command):
        if word in options and place + 1 < len(command):
            yield place + 1, command[place + 1]
        for option in options:
            if word.startswith(f"{option}="):
                yield place, word.removeprefix(f"{option}=")
            elif re.fullmatch(rf"{option}[a-z0-9]+", word) and len(option) == 2:
                yield place, word[2:]
