"""Runs a command as a container engine would run the agent of deploy/: with its capabilities and no
others, no new privileges, and a file system that can be written only where a volume is.

    unshare --mount --propagation slave python confined.py JSON COMMAND...

Takes the place of an engine, which tests cannot have; seccomp, AppArmor and SELinux it is not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TMPFS = ""


def prefix(capabilities: Sequence[str], volumes: Mapping[str, str]) -> list[str]:
    """What to put before a command. `volumes`: what is mounted to be written, by place: a path of
    this machine, or TMPFS for an empty directory."""
    said = {"capabilities": list(capabilities), "volumes": dict(volumes)}
    start = ["unshare", "--mount", "--propagation", "slave", sys.executable]
    return [*start, str(Path(__file__).resolve()), json.dumps(said)]


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _mounts_below(root: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    places = [line.split(" ")[1].encode().decode("unicode_escape") for line in lines]
    return [place for place in dict.fromkeys(places) if place.startswith(f"{root}/")]


def _copy_of_this_machine(root: Path) -> None:
    """Everything as it is here, in a tree whose mounts are its own; nothing of it can be written.

    /proc stays: what is a process's own in it is no volume either. Its sysctls do not.
    """
    _mount("-t", "tmpfs", "tmpfs", str(root))
    for entry in Path("/").iterdir():
        place = root / entry.name
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
        elif entry.is_dir():
            place.mkdir()
            _mount("--rbind", str(entry), str(place))
    _mount("--bind", f"{root}/proc/sys", f"{root}/proc/sys")
    for mounted in _mounts_below(root):
        if mounted != f"{root}/proc" and os.path.exists(mounted):
            _forbid_writing(mounted, root)


def _forbid_writing(mounted: str, root: Path) -> None:
    """Tests beside this one end meanwhile, and their namespaces' mounts with them."""
    try:
        _mount("-o", "remount,bind,ro", mounted)
    except subprocess.CalledProcessError:
        if mounted in _mounts_below(root):
            raise


def _add_volumes(root: Path, volumes: Mapping[str, str]) -> None:
    for name, source in sorted(volumes.items()):
        place = Path(f"{root}{name}")
        if source == TMPFS:
            _mount("-t", "tmpfs", "tmpfs", str(place))
            continue
        if not place.exists():  # below `root` itself: an engine makes such places too
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir() if Path(source).is_dir() else place.touch()
        _mount("--bind", source, str(place))


def main() -> None:
    said = json.loads(sys.argv[1])
    root = Path("/var/tmp")  # covered here, in this mount namespace alone
    _copy_of_this_machine(root)
    _add_volumes(root, said["volumes"])
    _mount("-o", "remount,bind,ro", str(root))
    os.chroot(root)
    os.chdir("/")
    bounding = ",".join(["-all", *(f"+{name.lower()}" for name in said["capabilities"])])
    # A process of root gets what is in the bounding set, and nothing else.
    os.execvp(
        "setpriv",
        ["setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all",
         f"--bounding-set={bounding}", *sys.argv[2:]],
    )  # fmt: skip


if __name__ == "__main__":
    main()
