"""Tries the Dockerfile without a container engine: its instructions, in root file systems made by
debootstrap, and then what an image must be able to do. Needs root, minutes, and about 1 GB.

Usage: ./dev image [--keep]. Started again inside a mount namespace, so that no mount is left.

Packages' scripts run as root in there. Nothing of this machine's files may be writable to them (a
bind mount of /etc/ssl/certs once let one rewrite the machine's own certificates), so a stage gets
copies, read-only mounts, and file systems of its own; `assert_apart` looks before anything runs.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSIDE = "LBCTL_IMAGE_TRIAL"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STEP_SECONDS = 1200
DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}
LOCAL_CERTIFICATES = Path("/usr/local/share/ca-certificates")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
BUNDLE_INSIDE = "/var/tmp/trial-ca.crt"


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def run(*command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command within the bound; what it said is shown only if it failed."""
    done = subprocess.run(
        command,
        env={"PATH": PATH, "LANG": "C.UTF-8", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STEP_SECONDS,
        check=False,
    )
    if check and done.returncode:
        sys.exit(f"{done.stdout}\nfailed ({done.returncode}): {shlex.join(command)}")
    return done


class Stage:
    """One stage of the build: a root file system and the instructions' state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.workdir = "/"
        self.environment: dict[str, str] = {}
        self.entry: list[str] = []

    def mount(self) -> None:
        """What a container engine gives a build, and this machine's way to packages."""
        for kind, name in (("proc", "proc"), ("sysfs", "sys")):
            run("mount", "-t", kind, kind, self.inside(name))
            # Of this mount only: a sysctl or a driver of the machine is none of the image's.
            run("mount", "-o", "remount,bind,ro", self.inside(name))
        run("mount", "-t", "bpf", "bpf", self.inside("sys/fs/bpf"))  # an instance of its own
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", self.inside("dev"))
        for name, minor in DEVICES.items():
            run("mknod", "-m", "666", self.inside(f"dev/{name}"), "c", "1", str(minor))
        Path(self.inside("dev/fd")).symlink_to("/proc/self/fd")
        for name in ("/etc/resolv.conf", "/etc/pip.conf"):
            if Path(name).exists():
                # A link in there would be followed to a file out here.
                Path(self.inside(name)).unlink(missing_ok=True)
                shutil.copyfile(name, self.inside(name))
        if LOCAL_CERTIFICATES.is_dir():
            target = self.inside(str(LOCAL_CERTIFICATES))
            shutil.copytree(LOCAL_CERTIFICATES, target, dirs_exist_ok=True)
        if BUNDLE.exists():
            shutil.copyfile(BUNDLE, self.inside(BUNDLE_INSIDE))
        for name in pip_places():
            Path(self.inside(name)).mkdir(parents=True, exist_ok=True)
            run("mount", "--bind", name, self.inside(name))
            run("mount", "-o", "remount,bind,ro", self.inside(name))
        policy = Path(self.inside("usr/sbin/policy-rc.d"))
        policy.write_text("#!/bin/sh\nexit 101\n")  # no package starts a service
        policy.chmod(0o755)
        self.assert_apart()

    def inside(self, name: str) -> str:
        """Where an absolute path of the stage lies on this machine."""
        return str(self.path / name.lstrip("/"))

    def assert_apart(self) -> None:
        """Exits unless every mount in the stage is its own, or cannot be written."""
        listed = run("findmnt", "-rno", "TARGET,FSTYPE,OPTIONS").stdout.splitlines()
        for target, kind, options in (line.split(" ", 2) for line in listed):
            if target.startswith(f"{self.path}/"):
                own = kind in ("bpf", "tmpfs")
                if not own and "ro" not in options.split(","):
                    sys.exit(f"{target} ({kind}) would be writable from inside: {options}")

    def chroot(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, in the stage's directory."""
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        inside = f"cd {shlex.quote(self.workdir)} && exec {shlex.join(command)}"
        if BUNDLE.exists():
            pip["PIP_CERT"] = BUNDLE_INSIDE
        environment = {"PATH": PATH, "DEBIAN_FRONTEND": "noninteractive"} | pip | self.environment
        settings = [f"{name}={value}" for name, value in environment.items()]
        return run(
            "chroot", str(self.path), "/usr/bin/env", "-i", *settings, "/bin/sh", "-c", inside,
            check=check,
        )  # fmt: skip

    def copy(self, words: list[str], others: dict[str, "Stage"]) -> None:
        """COPY [--from=STAGE] SOURCE... TARGET"""
        context = ROOT
        if words[0].startswith("--from="):
            context = others[words.pop(0).removeprefix("--from=")].path
        *sources, target = words
        into = self.path / os.path.join(self.workdir, target).lstrip("/")
        for name in sources:
            source = context / name.lstrip("/")
            place = into / source.name if len(sources) > 1 or target.endswith("/") else into
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place)


def pip_places() -> list[str]:
    """Local directories that pip is told to look in, by its settings."""
    listed = run("/usr/bin/python3", "-m", "pip", "config", "list", check=False).stdout
    words = re.split(r"[\s'=\\]+", listed + " " + os.environ.get("PIP_FIND_LINKS", ""))
    names = (word.removeprefix("file://").removesuffix("/simple") for word in words)
    return sorted({name for name in names if name.startswith("/opt/")})


def instructions(text: str) -> list[tuple[str, str]]:
    """The Dockerfile's instructions as (name, rest), comments gone and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(name.upper(), rest.strip()) for name, _, rest in pairs]


def mirror() -> str:
    """Where this machine gets Debian from."""
    listed = run(
        "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages",
        "Codename: bookworm", "Component: main",
    ).stdout.split()  # fmt: skip
    if not listed:
        sys.exit("this machine's apt has no source for bookworm")
    return listed[0]


def build(directory: Path) -> Stage:
    """Carries the Dockerfile out; returns its last stage."""
    base = directory / "base"
    say("making a bare Debian 12 with debootstrap")
    run("debootstrap", "--variant=minbase", "bookworm", str(base), mirror(), TMPDIR=str(directory))
    stages: dict[str, Stage] = {}
    stage = Stage(base)
    for name, rest in instructions((ROOT / "Dockerfile").read_text()):
        say(f"{name} {rest[:100]}")
        words = shlex.split(rest)
        if name == "FROM":
            assert words[0] == "debian:bookworm-slim", f"the trial knows no base {words[0]}"
            label = words[2] if len(words) == 3 else "final"
            run("cp", "-a", str(base), str(directory / label))
            stage = stages[label] = Stage(directory / label)
            stage.mount()
        elif name == "RUN":
            stage.chroot("/bin/sh", "-c", rest)
        elif name == "COPY":
            stage.copy(words, stages)
        elif name == "WORKDIR":
            stage.workdir = rest
            (stage.path / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "ENV":
            stage.environment |= dict(word.split("=", 1) for word in words)
        elif name == "ENTRYPOINT":
            stage.entry = json.loads(rest)
        else:
            assert name == "CMD", f"the trial knows no instruction {name}"
    return stage


def check(image: Stage) -> None:
    """What the image must be able to do, and what it must not hold."""
    for command in ("cc", "gcc", "clang", "make", "ld", "pip", "git"):
        found = image.chroot("/bin/sh", "-c", f"command -v {command}", check=False).stdout.strip()
        assert not found, f"the image holds {found}"
    for place in ("usr/src/linux-*", "lib/modules/*/build", "src/*", "var/lib/apt/lists/*"):
        assert not list(image.path.glob(place)), f"the image holds {place}"
    packages = list(image.path.glob("opt/lbctl/lib/python3*/site-packages"))
    assert len(packages) == 1
    assert (packages[0] / "lbctl" / "cli" / "main.py").is_file(), "lbctl is not installed"
    assert (packages[0] / "ebpf" / "bpf_src" / "tc.c").is_file(), "the C sources are missing"

    say("lbctl --version")
    print(image.chroot(*image.entry, "--version").stdout, end="")
    say("lbctl doctor")
    doctor = image.chroot(*image.entry, "doctor", "-o", "json")
    for item in json.loads(doctor.stdout):
        assert item["ok"] is not False or not item["required"], item
    compiled = list((packages[0] / "ebpf" / "compiled").glob("*.bundle"))
    assert len(compiled) == 2, "the programs are not in it compiled"
    cache = image.path / "var" / "cache" / "lbctl"
    assert not cache.exists(), "there is a cache before the first start"

    say("lbctl trace: loads and runs the programs")
    objects = packages[0].relative_to(image.path) / "lbctl" / "examples"
    traced = image.chroot(
        *image.entry, "trace", "--manifests", f"/{objects}", "--node-name", "node1",
        "10.244.1.2", "10.96.0.80:80/tcp", "-o", "json", check=False,
    )  # fmt: skip
    print(traced.stdout, end="")
    assert traced.returncode == 0, "trace failed"
    assert '"verdict": "forward"' in traced.stdout
    assert not cache.exists(), "something was compiled, although it is in the image"
    size = sum(path.lstat().st_size for path in files(image))
    say(f"the image's files take {size >> 20} MB")


def files(image: Stage) -> list[Path]:
    """Every file of the image itself, what is mounted into it aside."""
    pruned = [
        word for name in pip_places() for word in ("-path", image.inside(name), "-prune", "-o")
    ]
    found = run("find", str(image.path), "-xdev", *pruned, "-type", "f", "-print")
    return [Path(line) for line in found.stdout.splitlines()]


def unmount(directory: Path) -> None:
    """Ends every mount below `directory`, or exits: what is mounted must not be removed with it."""
    for _ in range(3):
        mounted = run("findmnt", "-rno", "TARGET").stdout.splitlines()
        inside = [place for place in mounted if place.startswith(f"{directory}/")]
        if not inside:
            return
        for place in sorted(inside, reverse=True):
            run("umount", "--lazy", place, check=False)
    sys.exit(f"still mounted, so nothing was removed: {', '.join(inside)}")


def main() -> None:
    """Builds and checks; removes everything unless --keep."""
    if os.environ.get(INSIDE) != "1":
        os.environ[INSIDE] = "1"
        again = ["unshare", "--mount", "--propagation", "private", sys.executable, __file__]
        os.execvp("unshare", [*again, *sys.argv[1:]])
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="lbctl-image-", dir="/var/tmp"))
    try:
        check(build(directory))
    finally:
        unmount(directory)
        if "--keep" in sys.argv:
            say(f"kept: {directory}")
        else:
            run("rm", "-rf", "--one-file-system", str(directory))
    say(f"the Dockerfile's steps work ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
