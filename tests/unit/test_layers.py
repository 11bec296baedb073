"""The rule of imports, read from the sources: downward only, no circle, and each thing in its room.

Every import counts, also those inside functions and those for types alone: a layer that needs an
upper one only now and then needs it. docs/design.md draws the packages.
"""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for top in ("ebpf", "lbctl") for path in sorted((ROOT / top).rglob("*.py"))]

# What lies directly below each package; it may use that, and what is below that. So only the
# command line, bench and demo can have to do with lab, and nothing with bench or demo but it.
BELOW = {
    "lbctl.cli": "lbctl.bundle lbctl.ui lbctl.demo lbctl.bench",
    "lbctl.ui": "lbctl.verify",
    "lbctl.bundle": "lbctl.verify",
    "lbctl.verify": "lbctl.agent lbctl.trace lbctl.inspect lbctl.sources",
    "lbctl.demo": "lbctl.lab",
    "lbctl.bench": "lbctl.lab",
    "lbctl.lab": "lbctl.inspect lbctl.sources",
    "lbctl.agent": "lbctl.reconcile lbctl.metrics lbctl.host lbctl.observe",
    "lbctl.observe": "lbctl.inspect lbctl.sources lbctl.config",
    "lbctl.trace": "lbctl.reconcile lbctl.config",
    "lbctl.metrics": "lbctl.inspect lbctl.health",
    "lbctl.inspect": "lbctl.resolve lbctl.datapath",
    "lbctl.health": "lbctl.config",
    "lbctl.config": "lbctl.resolve",
    "lbctl.reconcile": "lbctl.program",
    "lbctl.program": "lbctl.plan",
    "lbctl.plan": "lbctl.resolve lbctl.datapath",
    "lbctl.resolve": "lbctl.model",
    "lbctl.sources": "lbctl.model",
    "lbctl.model": "words",
    "lbctl.datapath": "words",
    "lbctl.host": "words",
    "lbctl.kubectl": "",  # runs where lbctl is not: of the standard library alone
    "words": "ebpf",
    "ebpf": "ebpf.hooks ebpf.maps ebpf.compile",
    "ebpf.maps": "ebpf.kernel",
    "ebpf.hooks": "ebpf.kernel",
    "ebpf.kernel": "basics",
    "ebpf.compile": "basics",
    "basics": "",  # of ebpf: what all its packages share
}
BASICS = {"ebpf.errors", "ebpf.layouts", "ebpf.trust"}
# `model` and `resolve` are functions of what they are given: no file, clock, thread or chance.
PURE = {"__future__", "collections", "dataclasses", "datetime", "difflib", "enum", "functools"}
PURE |= {"hashlib", "itertools", "json", "math", "operator", "re", "sys", "types", "typing"}
PURE |= {"bisect", "msgspec", "lbctl", "uuid"}
FOREIGN = re.compile(
    r"(?<![a-z])(kube|k8s|pods?(?![a-z])|endpoint[ _-]?slice|cluster[ _-]?ips?(?![a-z]))", re.I
)
OPTION = re.compile(r"(?<![\w-])--[a-z]")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): ast.parse(path.read_text()) for path in FILES}


def imports(name: str) -> Iterator[str]:
    """The modules that a module imports; of what is not ours, as it is written."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are written with full names"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


def room(module: str) -> str:
    if module in BASICS:
        return "basics"
    package = ".".join(module.split(".")[:2])
    if package in BELOW:
        return package
    if module in ("lbctl.__main__", "lbctl.cli"):
        return "lbctl.cli"
    assert module.count(".") < 2, f"{module}: where does its package belong? Say so in BELOW"
    return "words" if package.startswith("lbctl") else "ebpf"


def below(package: str) -> set[str]:
    direct = BELOW[package].split()
    return {package, *direct}.union(*map(below, direct))


def test_packages_use_only_what_is_below_them() -> None:
    upward = [
        f"{module} imports {used}"
        for module in MODULES
        for used in imports(module)
        if used.split(".")[0] in ("ebpf", "lbctl") and room(used) not in below(room(module))
    ]
    assert upward == []


def test_no_circle() -> None:
    graph = {name: [used for used in imports(name) if used in MODULES] for name in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"each of these is imported by the next: {' '.join(error.args[1])}")


@pytest.mark.parametrize("package", ["lbctl.model", "lbctl.resolve"])
def test_what_kubernetes_says_and_what_it_means_do_no_io(package: str) -> None:
    inside = [name for name in MODULES if room(name) == package]
    assert inside
    impure = {f"{n} imports {u}" for n in inside for u in imports(n) if u.split(".")[0] not in PURE}
    impure |= {f"{n} opens a file" for n in inside for c in ast.walk(MODULES[n]) if opens(c)}
    assert impure == set()


def opens(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"


def test_bcc_is_the_childs_alone() -> None:
    users = {name for name in MODULES for used in imports(name) if used.split(".")[0] == "bcc"}
    assert users == {"ebpf.compile.child"}


def test_ebpf_knows_nothing_of_who_uses_it() -> None:
    foreign = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in FILES
        if name_of(path).startswith("ebpf")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert foreign == []


def test_ebpf_names_no_command_line_option() -> None:
    named = [
        f"{name}:{node.lineno}: {node.value!r}"
        for name, tree in MODULES.items()
        if name.startswith("ebpf")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if OPTION.search(node.value)
    ]
    assert named == []
