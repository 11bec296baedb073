"""Another user of the node was there first: directories for pins, the lock, the cache, /run."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf import instance
from ebpf.compile import children, compiler
from ebpf.compile.headers import Headers
from ebpf.compile.source import Unit
from ebpf.errors import InUseError, KernelError, Untrusted
from ebpf.instance import Instance, Sizes
from ebpf.kernel import bpffs
from ebpf.layouts import Bundle
from lbctl import status
from lbctl.host import removal
from tests.kernel.support.programs import SOURCES, UNITS, small_bundle
from tests.support.waiting import wait_until

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).resolve().parents[2]
SMALL = Sizes(16, 16, 64)
NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AS_NOBODY, *command], capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return small_bundle()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that everybody may look into; pytest's own nobody else may."""
    with tempfile.TemporaryDirectory(prefix="lbctl-trust-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def root(shared: Path) -> Iterator[Path]:
    """A BPF file system as `mount -t bpf` makes it: everybody may make directories in it."""
    path = shared / "bpf"
    path.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(path)], check=True)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o1777
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_sees_pins_or_takes_the_lock(root: Path, bundle: Bundle) -> None:
    pin_dir = root / "ours"
    Instance.create_or_open(pin_dir, bundle, SMALL).close()
    assert {mode(pin_dir), *(mode(path) for path in pin_dir.iterdir() if path.is_dir())} == {0o700}
    assert as_nobody("flock", "--nonblock", str(pin_dir), "true").returncode not in (0, 1)
    assert "Permission denied" in as_nobody("ls", str(pin_dir)).stderr


def test_an_instance_of_before_is_closed_to_others(root: Path, bundle: Bundle) -> None:
    pin_dir = root / "ours"
    Instance.create_or_open(pin_dir, bundle, SMALL).close()
    pin_dir.chmod(0o755)
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        assert made.map_names()
    assert mode(pin_dir) == 0o700


@pytest.mark.parametrize("depth", ["theirs", "theirs/deeper"])
def test_a_directory_that_somebody_made_first_is_refused(
    root: Path, bundle: Bundle, depth: str
) -> None:
    pin_dir = root / depth
    assert as_nobody("mkdir", "-p", "-m", "755", str(pin_dir)).returncode == 0
    for attempt in (
        lambda: Instance.create_or_open(pin_dir, bundle, SMALL),
        lambda: Instance.open(pin_dir),
        lambda: removal.survey(pin_dir),
        lambda: instance.remove(pin_dir),
    ):
        with pytest.raises(Untrusted, match=f"belongs to user {NOBODY}") as caught:
            attempt()
        assert "chown" in caught.value.hint
    assert pin_dir.is_dir()


def test_a_directory_that_others_can_write_to_is_refused(root: Path, bundle: Bundle) -> None:
    pin_dir = root / "open"
    pin_dir.mkdir()
    pin_dir.chmod(0o777)
    with pytest.raises(Untrusted, match="mode 0777"):
        Instance.create_or_open(pin_dir, bundle, SMALL)
    assert list(pin_dir.iterdir()) == []


def test_a_link_in_place_of_the_directory_is_refused(root: Path, bundle: Bundle) -> None:
    victim, link = root / "victim", root / "link"
    Instance.create_or_open(victim, bundle, SMALL).close()
    before = sorted(victim.rglob("*"))
    assert as_nobody("ln", "-s", str(victim), str(link)).returncode == 0
    own = root / "own"
    own.symlink_to(victim)
    for path in (link, own):
        with pytest.raises(Untrusted):
            Instance.create_or_open(path, bundle, SMALL)
        with pytest.raises(Untrusted):
            instance.remove(path)
        with pytest.raises(KernelError):
            bpffs.Lock(path)
    assert sorted(victim.rglob("*")) == before


def test_removing_does_not_follow_links(root: Path, bundle: Bundle) -> None:
    victim, ours = root / "victim", root / "ours"
    Instance.create_or_open(victim, bundle, SMALL).close()
    Instance.create_or_open(ours, bundle, SMALL).close()
    (ours / "maps" / "link").symlink_to(victim)
    instance.remove(ours)
    assert not ours.exists()
    assert (victim / "maps" / "flows4").exists()


def test_a_lock_that_was_taken_before_is_named(root: Path, bundle: Bundle) -> None:
    """While 0.1.0 ran, whoever could look at the directory could hold it."""
    pin_dir = root / "ours"
    pin_dir.mkdir(0o755)
    holder = subprocess.Popen(
        [*AS_NOBODY, "flock", "--no-fork", str(pin_dir), "sleep", "60"],
    )
    try:
        wait_until(lambda: bpffs.holder(pin_dir) == holder.pid, 10)
        with pytest.raises(InUseError, match=f"process {holder.pid} .*sleep 60"):
            Instance.create_or_open(pin_dir, bundle, SMALL)
        assert mode(pin_dir) == 0o700
    finally:
        holder.kill()
        holder.wait()
    Instance.create_or_open(pin_dir, bundle, SMALL).close()


def test_a_reader_without_root_is_told_so(root: Path, shared: Path, bundle: Bundle) -> None:
    pin_dir = root / "ours"
    Instance.create_or_open(pin_dir, bundle, SMALL).close()
    code = (
        "from pathlib import Path; from lbctl.inspect.opened import open_instance;"
        f"open_instance(Path({str(pin_dir)!r}))"
    )
    # Changes the user when everything is imported: the checkout may be root's alone.
    switch = f"import os, lbctl.inspect.opened; os.setgroups([]); os.setresuid(*[{NOBODY}]*3);"
    done = subprocess.run(
        [sys.executable, "-c", switch + code],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode
    assert f"MissingFeature: {pin_dir} may not be read by this user" in done.stderr
    assert "Run the command as root." in done.stderr


def test_the_command_line_leaves_saying_so_to_those_who_know(root: Path) -> None:
    """It looked whether it may read the directory, and called that a wrong option."""
    pin_dir = root / "ours"
    pin_dir.mkdir(0o700)
    # Changes the user when everything is imported: the checkout may be root's alone.
    code = (
        "import os, lbctl.cli.status, lbctl.inspect.instance, lbctl.inspect.opened;"
        f"from lbctl.cli.main import command; os.setgroups([]); os.setresuid(*[{NOBODY}]*3);"
        f"command(['status', '--pin-dir', {str(pin_dir)!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"{pin_dir} may not be read by this user" in done.stderr


@pytest.fixture
def cache(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = shared / "cache"
    monkeypatch.setenv("LBCTL_CACHE_DIR", str(path))
    return path


def compiled(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many units a call compiles."""
    units: list[str] = []
    original = children.compile_unit

    def counted(unit: Unit, text: str, found: Headers) -> object:
        units.append(unit.name)
        return original(unit, text, found)

    with monkeypatch.context() as patch:
        patch.setattr(children, "compile_unit", counted)
        compiler.bundle(directory=SOURCES, units=UNITS)
    return len(units)


def test_the_cache_is_believed_where_only_root_can_write(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiler.cache_flaw() == ""
    assert compiled(monkeypatch)
    assert not compiled(monkeypatch)
    assert compiler.cache_flaw() == ""
    (kept,) = cache.glob("*.bundle")
    assert mode(kept) == 0o600


@pytest.mark.parametrize("spoil", ["mode", "owner", "parent", "link"])
def test_a_cache_that_others_can_write_is_passed_by(
    cache: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    assert compiled(monkeypatch)
    if spoil == "mode":
        cache.chmod(0o777)
    elif spoil == "owner":
        os.chown(cache, NOBODY, NOBODY)
    elif spoil == "parent":
        cache.parent.chmod(0o777)
    else:
        cache.rename(cache.with_name("real"))
        cache.symlink_to(cache.with_name("real"))
    assert compiler.cache_flaw()
    before = {path: path.stat().st_mtime_ns for path in cache.glob("*")}
    assert compiled(monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*")} == before


@pytest.mark.parametrize("spoil", ["mode", "owner", "link"])
def test_a_program_that_others_can_have_written_is_compiled_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    assert compiled(monkeypatch)
    (kept,) = cache.glob("*.bundle")
    if spoil == "mode":
        kept.chmod(0o666)
    elif spoil == "owner":
        os.chown(kept, NOBODY, NOBODY)
    else:
        kept.rename(cache / "elsewhere")
        kept.symlink_to(cache / "elsewhere")
    assert compiled(monkeypatch)
    assert not compiled(monkeypatch)
    assert kept.is_file()
    assert not kept.is_symlink()


def test_the_status_directory(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shared / "run"
    monkeypatch.setattr(status, "RUN_DIR", run)
    record = status.StatusRecord(1, "1", "node1", "/sys/fs/bpf/x")
    run.mkdir(0o755)  # of 0.1.0
    status.write(record)
    path = status.path_of(Path(record.pin_dir))
    assert (mode(run), mode(path)) == (0o750, 0o640)
    assert as_nobody("cat", str(path)).returncode
    os.chown(run, NOBODY, NOBODY)
    with pytest.raises(Untrusted):
        status.write(record)
    assert status.read(Path(record.pin_dir)) is None
