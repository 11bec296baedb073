"""Putting right what is wrong while no agent lives, as the start of one would: the instance is held
meanwhile, so that none begins."""

from __future__ import annotations

import os
from pathlib import Path

from ebpf.hooks import cgroup
from ebpf.hooks.tc import Attacher
from ebpf.instance import Instance
from ebpf.kernel import bpffs, libbpf
from ebpf.layouts import PROGRAM_ARRAYS
from lbctl.errors import LbError
from lbctl.model.updates import SourceStatus, Update
from lbctl.reconcile.reconciler import Reconciler
from lbctl.verify import attached
from lbctl.verify.objects import Known


def repair(pin_dir: Path, known: Known) -> None:
    """Make maps and interfaces say what `known` means. Raises InUseError if an agent begins,
    LbError for what only an agent can do."""
    missing = list(attached.pins(pin_dir))
    if missing:
        raise LbError(
            f"{missing[0].object}: {missing[0].what}; nobody but an agent can make it anew",
            "Start the agent.",
        )
    lock = bpffs.Lock(pin_dir)
    try:
        with Instance.open(pin_dir, readonly=False) as instance:
            reconciler = Reconciler(instance, known.node)
            reconciler.take(
                Update(
                    dict(known.services), known.object, True, True, True, SourceStatus(synced=True)
                )
            )
            reconciler.apply(complete=True)
            if reconciler.refused:
                raise LbError(" ".join(reconciler.warnings()))
        _attach(pin_dir, known)
    finally:
        lock.close()


def _attach(pin_dir: Path, known: Known) -> None:
    if known.standing is None:
        return
    wants = attached.wanted(known.standing)
    attacher = Attacher(pin_dir)
    fds = _newest(pin_dir)
    try:
        for index, (ifname, hooks) in wants.items():
            for direction, program in hooks.items():
                attacher.attach(ifname, index, direction, fds[program])
        for item in attacher.attachments():
            if item.ifindex and item.ifindex not in wants:
                attacher.detach(item.ifname, item.direction)
        attacher.prune()
        sockets = cgroup.SocketAttacher(pin_dir)
        if known.standing.socket_lb == "off":
            sockets.detach()
        else:
            cgroup_dir = Path(known.standing.cgroup) if known.standing.cgroup else cgroup.root()
            sockets.attach(fds, cgroup_dir)
    finally:
        for fd in fds.values():
            os.close(fd)


def _newest(pin_dir: Path) -> dict[str, int]:
    """The entry programs of the generation that was made last, opened."""
    whole = [p for p in (pin_dir / "programs").iterdir() if attached.is_whole(p)]
    if not whole:
        raise LbError("no programs are pinned", "Start the agent.")
    newest = max(whole, key=lambda path: path.stat().st_mtime)
    names = [path for path in newest.iterdir() if path.name not in PROGRAM_ARRAYS]
    return {path.name: libbpf.obj_get(str(path)) for path in names}
