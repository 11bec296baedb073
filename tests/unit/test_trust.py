"""What can be believed by its path: owners, modes, links, and the directories above."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf import trust
from ebpf.errors import Untrusted

NOBODY = 65534


@pytest.fixture
def owned_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Gives files to others, as far as `lstat` and `fstat` tell: chown needs root."""
    owners: dict[int, int] = {}
    lstat, fstat = Path.lstat, os.fstat

    def changed(found: os.stat_result) -> os.stat_result:
        fields = list(found)
        fields[stat.ST_UID] = owners.get(found.st_ino, found.st_uid)
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "lstat", lambda path: changed(lstat(path)))
    monkeypatch.setattr(os, "fstat", lambda fd: changed(fstat(fd)))
    return lambda path, uid: owners.__setitem__(lstat(path).st_ino, uid)


def test_what_only_we_can_write_is_believed(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    trust.make_directory(directory, 0o700)
    assert trust.flaw(directory) == ""
    trust.replace(directory / "f", b"x", 0o640)
    assert trust.read(directory / "f") == b"x"
    assert stat.S_IMODE((directory / "f").stat().st_mode) & ~0o640 == 0


@given(mode=st.integers(0, 0o777))
def test_any_right_of_others_to_write_is_a_flaw(
    tmp_path_factory: pytest.TempPathFactory, mode: int
) -> None:
    directory = tmp_path_factory.mktemp("mode")
    directory.chmod(mode)
    try:
        assert bool(trust.flaw(directory)) == bool(mode & 0o022)
    finally:
        directory.chmod(0o700)
        directory.rmdir()


def test_the_directories_above_count(tmp_path: Path) -> None:
    directory = tmp_path / "above" / "below"
    directory.mkdir(parents=True)
    directory.parent.chmod(0o777)
    assert "above can be written by others (mode 0777)" in trust.flaw(directory)
    # Names in there are those of who made them, as in /tmp.
    directory.parent.chmod(0o1777)
    assert trust.flaw(directory) == ""
    # But what is in such a directory can be anybody's.
    assert trust.flaw(directory.parent)


def test_a_strangers_is_not_believed_wherever_it_is(
    tmp_path: Path, owned_by: Callable[[Path, int], None]
) -> None:
    directory = tmp_path / "theirs" / "ours"
    directory.mkdir(parents=True)
    owned_by(directory.parent, NOBODY)
    with pytest.raises(Untrusted, match=f"theirs belongs to user {NOBODY}") as caught:
        trust.make_directory(directory, 0o700)
    assert "chown" in caught.value.hint
    with pytest.raises(Untrusted):
        trust.make_directory(directory.parent / "new", 0o700)
    assert not (directory.parent / "new").exists()


def test_links(tmp_path: Path, owned_by: Callable[[Path, int], None]) -> None:
    real = tmp_path / "real"
    (real / "deep").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(real)
    assert "symbolic link" in trust.flaw(link)
    assert trust.flaw(link / "deep") == ""
    real.chmod(0o777)
    assert "real can be written" in trust.flaw(link / "deep")
    real.chmod(0o1777)
    assert trust.flaw(link / "deep") == ""
    real.chmod(0o700)
    owned_by(link, NOBODY)
    assert "link belongs to user" in trust.flaw(link / "deep")
    for attempt in (trust.check, lambda path: trust.make_directory(path, 0o700)):
        with pytest.raises(Untrusted, match="goes up"):
            attempt(link / ".." / "real")


def test_a_file_is_believed_only_as_a_file_of_ours(
    tmp_path: Path, owned_by: Callable[[Path, int], None]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    path.chmod(0o600)
    assert trust.read(path) == b"x"
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        trust.read(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(Untrusted):
        trust.read(tmp_path / "fifo")
    path.chmod(0o606)
    with pytest.raises(Untrusted):
        trust.read(path)
    path.chmod(0o600)
    owned_by(path, NOBODY)
    with pytest.raises(Untrusted):
        trust.read(path)


def test_a_directory_of_ours_is_tightened_never_widened(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir(0o755)
    trust.make_directory(directory, 0o750)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    trust.make_directory(directory, 0o755)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750


def test_the_mask_of_the_process_opens_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        trust.make_directory(tmp_path / "a" / "b", 0o755)
        trust.replace(tmp_path / "a" / "b" / "f", b"", 0o640)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "a" / "b" / "f").stat().st_mode) == 0o640


def test_a_name_that_is_taken_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    place = tmp_path / "place"
    place.symlink_to(victim)
    (tmp_path / f".place.{os.getpid()}").symlink_to(victim)
    trust.replace(place, b"new", 0o640)
    assert place.read_bytes() == b"new"
    assert not place.is_symlink()
    assert victim.read_bytes() == b"kept"
