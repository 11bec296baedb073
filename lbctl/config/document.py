"""The options, written down for people: the tables of docs/configuration.md and the example.

`python -m lbctl.config.document` rewrites what stands between the marks of both, in a checkout of
the repository; a unit test says when that was forgotten.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from lbctl.config.agentconfig import API_VERSION, FIELDS, KIND
from lbctl.config.options import Declared
from lbctl.config.settings import OPTIONS
from lbctl.generated import fill, table

_ROOT = Path(__file__).parents[2]
DOCUMENT = _ROOT / "docs" / "configuration.md"
EXAMPLE = _ROOT / "examples" / "agent-config.yaml"

_COLUMNS = 100
_COMMAND = "made by python -m lbctl.config.document"
_EXAMPLE = f"# From here on {_COMMAND}.\n"


def document(text: str) -> str:
    """docs/configuration.md, with what is between its marks made anew."""
    return fill(text, _COMMAND, _PARTS)


def example(text: str) -> str:
    """examples/agent-config.yaml, with our own document in it made anew."""
    head, mark, _ = text.partition(_EXAMPLE)
    return head + mark + "".join(_example()) if mark else text


def _fields() -> str:
    rows = (
        (f"`{field}`", _flag(declared), _values(declared), _what(declared))
        for field, declared in FIELDS.items()
    )
    return table(("field", "option", "value", "what"), rows)


def _flags() -> str:
    """The options that are no fields of ours."""
    rows = (
        (_flag(declared), f"`{option.kube_proxy}`" if option.kube_proxy else "", _what(declared))
        for declared in OPTIONS.values()
        if (option := declared.option).flag and not option.field
    )
    return table(("option", "field of KubeProxyConfiguration", "what"), rows)


def _changes() -> str:
    live, restart = (
        _listed([f"`{d.in_file}`" for d in OPTIONS.values() if d.in_file and d.option.live is live])
        for live in (True, False)
    )
    taken = f"Taken over by the running agent, without losing a packet: {live}."
    waiting = f"Until the next start nothing comes of changes to {restart}."
    return f"{_wrapped(taken)}\n\n{_wrapped(waiting)}"


_PARTS: dict[str, Callable[[], str]] = {"fields": _fields, "flags": _flags, "changes": _changes}


def _flag(declared: Declared) -> str:
    return ", ".join(f"`{name}`" for name in declared.option.flag.split("/"))


def _values(declared: Declared) -> str:
    if declared.words:
        return _listed([f"`{word}`" for word in declared.words], "or")
    if declared.written is bool:
        return "`true` or `false`"
    one = f"`{declared.option.metavar}`"
    least, most = declared.bounds
    if least is not None:
        return f"{one}, {least} to {most}" if most is not None else f"{one}, at least {least}"
    return f"list of {one}" if declared.many else one


def _what(declared: Declared) -> str:
    default = f" Default: {declared.default}" if declared.default else ""
    variable = f" Or `${declared.option.env}`." if declared.option.env else ""
    return f"{declared.option.help}{variable}{default}"


def _listed(names: list[str], last: str = "and") -> str:
    *others, final = names
    return f"{', '.join(others)} {last} {final}"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, _COLUMNS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _example() -> Iterator[str]:
    yield f"apiVersion: {API_VERSION}\nkind: {KIND}\n"
    for field, declared in FIELDS.items():
        words = f" One of {', '.join(declared.words)}." if declared.words else ""
        default = f" Default: {declared.default}." if declared.default else ""
        yield _wrapped(f"{declared.option.help}{words}{default}", "# ") + "\n"
        value = yaml.safe_dump(declared.option.example, default_flow_style=True)
        yield f"{field}: " + value.removesuffix("...\n")


def main() -> None:
    """Writes both files anew."""
    for path, made in ((DOCUMENT, document), (EXAMPLE, example)):
        path.write_text(made(path.read_text()))


if __name__ == "__main__":
    main()
