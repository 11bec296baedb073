"""The C files of bpf_src include what they use, and nothing else.

By name: a file uses a header when it uses a name that the header defines. What the compiler says of
each header by itself is tests/kernel/test_headers.py's part; it cannot see an include that another
include makes up for.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ebpf.compile import source

FILES = sorted(source.source_dir().glob("*.[ch]"))
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_TEXT = re.compile(r'"[^"\n]*"')
_INCLUDE = re.compile(r'^#include "(\w+\.h)"$', re.MULTILINE)
_DIRECTIVE_INCLUDE = re.compile(r"^#include .*$", re.MULTILINE)


def _code(path: Path) -> str:
    return _COMMENT.sub(" ", path.read_text())


def _names(code: str) -> set[str]:
    """What the file defines, each in the form in which others use it; see `_uses`."""
    named = set(re.findall(r"^#define (\w+)", code, re.MULTILINE))
    named |= set(re.findall(r"^typedef .*?(\w+);$", code, re.MULTILINE))
    for body in re.findall(r"\benum \w* ?\{([^}]*)\}", code):
        named |= set(re.findall(r"(\w+)\s*(?:=[^,]*)?(?:,|$)", body.strip()))
    named |= {f"{kind} {name}" for kind, name in re.findall(r"^(struct|enum) (\w+) \{", code, re.M)}
    named |= {f"{name}(" for name in re.findall(r"^INLINE [^;{]*?(\w+)\(", code, re.MULTILINE)}
    named |= {f"{name}(" for name in re.findall(r"^static \w+ \(\*(\w+)\)\(", code, re.MULTILINE)}
    tables = re.findall(r"^BPF_F_TABLE\((.*?)\);", code, re.MULTILINE | re.DOTALL)
    named |= {f"{name}." for name in re.findall(r"^BPF_RINGBUF_OUTPUT\((\w+)", code, re.M)}
    return named | {f"{table.split(',')[3].strip()}." for table in tables}


def _uses(code: str) -> set[str]:
    code = _TEXT.sub('""', _DIRECTIVE_INCLUDE.sub("", code))
    used = set(re.findall(r"\b[A-Za-z_]\w*", code))
    used |= {f"{kind} {name}" for kind, name in re.findall(r"\b(struct|enum) (\w+)", code)}
    used |= {f"{name}(" for name in re.findall(r"(?<![\w.>])(\w+)\(", code)}
    return used | {f"{name}." for name in re.findall(r"(?<![\w.>])(\w+)\.", code)}


DEFINES = {path.name: _names(_code(path)) for path in FILES if path.suffix == ".h"}


def test_every_name_has_one_header() -> None:
    seen: dict[str, str] = {}
    for file, names in DEFINES.items():
        assert names, file
        for name in names:
            assert seen.setdefault(name, file) == file, f"{name} is in {seen[name]} and {file}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_includes_what_it_uses(path: Path) -> None:
    code = _code(path)
    used = _uses(code)
    wanted = {
        file: sorted(names & used)[0]
        for file, names in DEFINES.items()
        if file != path.name and names & used
    }
    included = _INCLUDE.findall(path.read_text())
    assert len(included) == len(set(included))
    missing = {file: name for file, name in wanted.items() if file not in included}
    assert not missing, f"{path.name} uses these and does not include their headers: {missing}"
    assert set(included) <= set(wanted), (
        f"{path.name} includes {sorted(set(included) - set(wanted))} and uses nothing of them"
    )
