"""Joins the C sources into one text per unit, since bcc rewrites map calls in no other file."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from ebpf.errors import CompileError

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
_PRAGMA_ONCE = re.compile(r"^\s*#\s*pragma\s+once\b")


class Unit(msgspec.Struct, frozen=True):
    """One translation unit: a C file and the defines, as (name, value), it is compiled with.

    `words` are replaced in the text itself before the compiler sees it: bcc rewrites calls on maps
    (`FLOWS.lookup(&key)`) only where the map's name is spelled out, and not out of a macro.
    """

    name: str
    file: str
    defines: tuple[tuple[str, str], ...] = ()
    words: tuple[tuple[str, str], ...] = ()


def family_unit(family: str, file: str = "tc.c") -> Unit:
    """`file` for one address family, "4" or "6", with the names of that family's maps."""
    words = (
        ("FRAGMENTS", f"fragments{family}"),
        ("HELD", f"held{family}"),
        ("HOPS", f"hops{family}"),
        ("XDP_HOPS", f"xdp_hops{family}"),
        ("TABLE", f"table{family}a"),
        ("CONTROL", f"control{family}a"),
        ("OTHER_CONTROL", f"control{family}b"),
        ("CELLS", f"cells{family}a"),
        ("OTHER_CELLS", f"cells{family}b"),
        ("STATES", f"states{family}a"),
        ("OTHER_STATES", f"states{family}b"),
    )
    return Unit(f"{Path(file).stem}{family}", file, (("FAMILY", family),), words)


# tc.c is compiled per family: one family's path is all that fits a program's stack.
# The socket hooks see both families; their addresses are 16 bytes, as family 6 has them.
UNITS = (
    family_unit("4"),
    family_unit("6"),
    family_unit("4", "table.c"),
    family_unit("6", "table.c"),
    family_unit("4", "xdp.c"),
    family_unit("6", "xdp.c"),
    Unit("entry", "entry.c"),
    Unit("sock", "sock.c", (("FAMILY", "6"),)),
)


def source_dir() -> Path:
    """Where bpf_src lies: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "bpf_src", package.parent / "bpf_src"):
        if candidate.is_dir():
            return candidate
    raise CompileError(
        f"the C sources are missing: neither {package}/bpf_src nor {package.parent}/bpf_src exists",
        "Install the package again, or run from a complete checkout.",
    )


def join(unit: Unit, directory: Path) -> str:
    """The text of the unit's file with its quoted includes expanded once each, in place.

    `#line` markers name each part as `DIRECTORY_NAME/FILE`, so that the compiler's messages lead to
    the real file. Angle includes stay. Raises CompileError for a file that is not there.
    """
    lines: list[str] = []
    _expand(unit.file, directory, lines, set(), "")
    text = "\n".join(lines) + "\n"
    words = dict(unit.words)
    if not words:
        return text
    # Directives match as a whole, and stay.
    pattern = re.compile(rf"^#.*$|\b({'|'.join(words)})\b", re.MULTILINE)
    return pattern.sub(lambda found: words[found[1]] if found[1] else found[0], text)


def _expand(file: str, directory: Path, lines: list[str], seen: set[str], wanted_by: str) -> None:
    label = f"{directory.name}/{file}"
    seen.add(file)
    try:
        text = (directory / file).read_text()
    except OSError as error:
        raise CompileError(
            f"cannot read {directory / file}: {error.strerror}"
            + (f" (included by {wanted_by})" if wanted_by else "")
        ) from error
    lines.append(f'#line 1 "{label}"')
    for number, line in enumerate(text.splitlines(), 1):
        if "#" not in line:  # most lines
            lines.append(line)
        elif _PRAGMA_ONCE.match(line):
            lines.append("")
        elif include := _INCLUDE.match(line):
            if include[1] in seen:
                lines.append("")
            else:
                _expand(include[1], directory, lines, seen, f"{label}:{number}")
                lines.append(f'#line {number + 1} "{label}"')
        else:
            lines.append(line)
