"""The krew manifest: what krew documents of its fields, and an archive that is what it says."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from lbctl.kubectl import release
from lbctl.kubectl import run as kubectl

URL = "https://lbctl.example/releases"
NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
VERSION = re.compile(r"v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
SYSTEMS = {"darwin", "linux", "windows"}


class Metadata(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class Requirement(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    operator: str
    values: list[str] = []


class Selector(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    match_labels: dict[str, str] = {}
    match_expressions: list[Requirement] = []


class Copied(msgspec.Struct, forbid_unknown_fields=True):
    source: str = msgspec.field(name="from")
    to: str


class Platform(msgspec.Struct, forbid_unknown_fields=True):
    uri: str
    sha256: str
    bin: str
    selector: Selector | None = None
    files: list[Copied] = []


class Spec(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    version: str
    short_description: str
    platforms: list[Platform]
    description: str = ""
    caveats: str = ""
    homepage: str = ""


class Manifest(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    api_version: str
    kind: str
    metadata: Metadata
    spec: Spec


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return release.release(tmp_path_factory.mktemp("release"), URL)


@pytest.fixture(scope="module")
def manifest(made: tuple[Path, Path, Path]) -> Manifest:
    found: Any = yaml.safe_load(made[2].read_text())
    return msgspec.convert(found, Manifest)


def test_the_fields(manifest: Manifest, made: tuple[Path, Path, Path]) -> None:
    assert manifest.api_version == "krew.googlecontainertools.github.com/v1alpha2"
    assert manifest.kind == "Plugin"
    assert NAME.fullmatch(manifest.metadata.name)
    assert made[2].name == f"{manifest.metadata.name}.yaml"
    spec = manifest.spec
    assert VERSION.fullmatch(spec.version)
    assert spec.version == f"v{metadata.version('lbctl')}"
    assert 0 < len(spec.short_description) <= 80
    assert not spec.short_description.endswith(".")
    assert spec.homepage == URL
    for platform in spec.platforms:
        assert platform.uri.startswith("https://")
        assert platform.selector is not None
        for requirement in platform.selector.match_expressions:
            assert (requirement.key, requirement.operator) == ("os", "In")
            assert {*requirement.values} <= SYSTEMS


def test_the_archive_is_the_one_that_it_names(
    manifest: Manifest, made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """What krew would install from it runs."""
    (platform,) = manifest.spec.platforms
    archive = made[1]
    assert platform.uri == f"{URL}/{archive.name}"
    assert platform.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    with tarfile.open(archive) as packed:
        assert {"LICENSE", platform.bin} == {*packed.getnames()}
        assert {copied.source for copied in platform.files} == {*packed.getnames()}
        assert {copied.to for copied in platform.files} == {"."}
        assert packed.getmember(platform.bin).mode & 0o111
        packed.extract(platform.bin, tmp_path)
    plugin = tmp_path / platform.bin
    done = subprocess.run(
        [sys.executable, "-I", str(plugin)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (kubectl.USED_WRONGLY, kubectl.USAGE)


def test_the_same_sources_give_the_same_bytes(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    again = release.release(tmp_path, URL)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in made]
