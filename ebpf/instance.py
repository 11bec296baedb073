"""One instance: everything that is pinned in one directory of the BPF file system.

meta                     layouts and constants, see ebpf/maps/meta.py
maps/NAME                the maps
old/NAME-ID              maps that were replaced and may still be in use, see `finish`
programs/KEY/NAME        the programs of one generation, and its program array
links/IFNAME-DIRECTION   what is attached where, see ebpf/hooks/tc.py
links/cgroup-HOOK        the same for sockets, see ebpf/hooks/cgroup.py
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ebpf import flowtable, maps, trust
from ebpf.errors import KernelError, LayoutError, LbError
from ebpf.flowtable import FlowTable
from ebpf.kernel import bpffs, features, libbpf
from ebpf.layouts import PROG_ARRAY, Bundle
from ebpf.maps import ArrayMap, HashMap, Map, PerCpuArray, declared, meta, migrate, of_kind
from ebpf.maps.declared import Maps
from ebpf.maps.meta import Meta
from ebpf.maps.migrate import Replaced
from ebpf.maps.sizes import Sizes

__all__ = ["Instance", "Sizes"]

PARTS = ("maps", "programs", "links")  # directories


class Instance(Maps[HashMap, ArrayMap, PerCpuArray]):
    """The maps of a pin directory, as attributes by name. Opened when first asked for.

    A writer (`create_or_open`) holds the directory's lock; readers need none.
    """

    def __init__(self, pin_dir: Path, notes: Meta, readonly: bool, lock: bpffs.Lock | None) -> None:
        self.pin_dir = pin_dir
        self.meta = notes
        self.readonly = readonly
        self._lock = lock
        self._open: dict[str, Map] = {}
        self._coming: dict[str, Map] = {}  # larger ones, that programs are loaded on
        self._former: dict[str, Map] = {}  # ... and those that they took the place of
        self._wanted: dict[str, int] = {}  # entries by map, of who creates them
        self._flow_tables: tuple[FlowTable, ...] = ()
        self._table_programs: PinnedPrograms | None = None
        self._replaced = Replaced(pin_dir, notes)

    @classmethod
    def open(cls, pin_dir: Path | str, readonly: bool = True) -> Instance:
        """The instance that is there, without compiling and without its lock.

        Raises LbError when there is none, Untrusted when others could have made it, LayoutError
        (when a map is first used) for a pinned map that is not what the instance pinned.
        """
        pin_dir = Path(pin_dir)
        trust.check(pin_dir)
        return cls(pin_dir, Meta.open(pin_dir, readonly), readonly, None)

    @classmethod
    def create_or_open(
        cls, pin_dir: Path | str, bundle: Bundle, sizes: Sizes | None = None
    ) -> Instance:
        """The instance for `bundle`, locked; what is missing is created.

        A map whose layout differs from the bundle's, or that is smaller than `sizes` asks, is
        replaced by a new one with the same contents; the old one stays for the programs that use
        it until `finish`. A larger map than asked for is kept. Without `sizes` existing maps keep
        their size and new ones are sized for the machine. Raises InUseError, LayoutError,
        KernelError, MissingFeature (no BPF file system, or not on such a machine), Untrusted
        (others can write to it).
        """
        features.require_store_order()
        pin_dir = Path(pin_dir)
        bpffs.make_directory(pin_dir)
        with contextlib.ExitStack() as undo:
            lock = bpffs.Lock(pin_dir)
            undo.callback(lock.close)
            for part in PARTS:
                bpffs.make_directory(pin_dir / part)
            made = cls(pin_dir, Meta.create_or_open(pin_dir), False, lock)
            undo.callback(made.close)
            made._prepare(bundle, sizes)
            undo.pop_all()
        return made

    if not TYPE_CHECKING:  # what is not declared in Maps is a mistake that a checker can find

        def __getattr__(self, name: str) -> Map:
            if name.startswith("_"):
                raise AttributeError(name)
            return self.map(name)

    def map(self, name: str) -> Map:
        """A map by name. Raises LayoutError if there is none of that name, or another kind."""
        if name not in self._open:
            self._open[name] = self._open_pinned(name)
        return self._open[name]

    def map_names(self) -> list[str]:
        """Names of the pinned maps, sorted."""
        return sorted(path.name for path in (self.pin_dir / "maps").iterdir())

    def map_fds(self) -> dict[str, int]:
        """Every map's descriptor by the name that programs have for it: to load them with."""
        return {name: found.fd for name, found in self.program_maps().items()}

    def program_maps(self) -> dict[str, Map]:
        """The maps by the names that programs know them by (see `flowtable.program_names`), larger
        ones in the making included."""
        names = self.map_names()
        phases = {
            family: int(of_kind(ArrayMap, self.map(f"table{family}a")).records["phase"][0])
            for family in flowtable.FAMILIES
            if f"table{family}a" in names
        }
        taken = flowtable.program_names(names, phases, self.enums)
        return {name: self._coming.get(other) or self.map(other) for name, other in taken.items()}

    def generation_key(self, bundle_hash: str) -> str:
        """The name of the directory of a bundle's programs on these maps."""
        ids = sorted((name, found.id) for name, found in self.program_maps().items())
        return hashlib.sha256(f"{bundle_hash} {ids}".encode()).hexdigest()[:16]

    def resize(self, name: str, entries: int) -> None:
        """An empty map in place of one that no program of use has anything in. Programs that were
        loaded on the old one keep it."""
        old = self.map(name)
        if old.max_entries == entries:
            return
        path = self.pin_dir / "maps" / name
        self._adopt(maps.create(old.spec, entries), path)
        old.close()
        self.forget_flow_tables()

    def enlarge(self, entries: Mapping[str, int]) -> None:
        """Larger maps for these names alone, empty: programs are loaded on them from now on. When
        that is done, `switch` them in; when those programs are everywhere, `finish`. Raises
        KernelError (no memory), and there are none then."""
        self._let_go(self._coming)
        try:
            for name, number in entries.items():
                self._coming[name] = maps.create(self.map(name).spec, number)
        except LbError:
            self._let_go(self._coming)
            raise

    def switch(self) -> None:
        """The larger maps get what the former ones hold, and their place. Until `finish` the
        programs in place use the former ones: what is written has to be written to both, see
        `former`."""
        for name, new in self._coming.items():
            path, old = self.pin_dir / "maps" / name, self.map(name)
            self._replaced.take_over(old, new, path)
            self._adopt(new, path)
            self._former[name] = old
        self._coming = {}
        self.forget_flow_tables()

    @property
    def flow_tables(self) -> tuple[FlowTable, ...]:
        """Each family's flows, on the maps as they are; another tuple once those are others. Only
        where programs are loaded can flows be ended or opened. Raises LayoutError for an earlier
        version's instance."""
        if not self._flow_tables:
            self._table_programs = PinnedPrograms(self.pin_dir / "programs")
            self._flow_tables = tuple(
                FlowTable(
                    family,
                    {name: self.map(name) for name in flowtable.maps_of(family)},
                    self.enums,
                    self._table_programs,
                )
                for family in flowtable.FAMILIES
            )
        return self._flow_tables

    def forget_flow_tables(self) -> None:
        """Maps or programs are others now: `flow_tables` are made anew."""
        self._flow_tables = ()
        if self._table_programs is not None:
            self._table_programs.close()
            self._table_programs = None

    def former(self) -> Former | None:
        written = [name for name in self._former if not declared.USES[name].filled]
        return Former(self, self._former) if written else None

    @property
    def enums(self) -> dict[str, int]:
        """The constants of consts.h that the running programs were compiled with."""
        return self.meta.enums()

    def require(self, bundle: Bundle) -> None:
        """Raises LayoutError unless the maps are laid out as `bundle` expects."""
        for name, spec in bundle.maps.items():
            # A program array belongs to a generation, not to the instance.
            if spec.type != PROG_ARRAY and self.map(name).spec != spec:
                raise LayoutError(
                    f"map {name} of {self.pin_dir} was made by another version of this program",
                    "Use the version that writes this instance, or start that one anew as this.",
                )

    def finish(self) -> int:
        """Ends a replacement of maps, once every link runs programs on the new ones.

        Flows that the old programs still made are carried over, the old maps are let go. Returns
        how many flows came. Does nothing when nothing was replaced. Counts that the old programs
        added after the copy (counters, service_counters) are lost: those of some seconds.
        """
        self._let_go(self._former)
        for name in set(declared.FORMER) - self._wanted.keys():
            (self.pin_dir / "maps" / name).unlink(missing_ok=True)
        carried = self._replaced.finish({name: self.map(name) for name in self.map_names()})
        self.meta.forget_maps({(name, self.map(name).id) for name in self.map_names()})
        return carried

    def restore_pins(self) -> list[str]:
        """Pins again what is open here and whose pin somebody removed or replaced; returns where
        that was so. Of an instance that is held. Raises KernelError, InUseError."""
        restored = []
        for part in (".", *PARTS):
            if not (self.pin_dir / part).is_dir():
                bpffs.make_directory(self.pin_dir / part)
                restored.append(str(Path(part)))
        if self._lock and not self._lock.holds(self.pin_dir):
            lost, self._lock = self._lock, bpffs.Lock(self.pin_dir)
            lost.close()
        if self.meta.restore_pin(self.pin_dir):
            restored.append("meta")
        for name, opened in self._open.items():
            if bpffs.restore(opened.fd, self.pin_dir / "maps" / name, libbpf.map_id):
                restored.append(f"maps/{name}")
        return restored

    def close(self) -> None:
        """Closes descriptors and lets go of the lock; what is pinned stays."""
        self.forget_flow_tables()
        for opened in (self._open, self._coming, self._former):
            self._let_go(opened)
        self.meta.close()
        if self._lock:
            self._lock.close()

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _let_go(self, opened: dict[str, Map]) -> None:
        for one in opened.values():
            one.close()
        opened.clear()

    def _open_pinned(self, name: str) -> Map:
        path = self.pin_dir / "maps" / name
        if not path.exists():
            raise LayoutError(
                f"the instance at {self.pin_dir} has no map {name}",
                "It was made by another version; the next start of its writer adds what is new.",
            )
        fd = libbpf.obj_get(str(path), self.readonly)
        spec = self.meta.spec_of(name, fd)
        if self.readonly and spec.flags & maps.F_MMAPABLE:
            # The kernel maps no array from a descriptor that may only read (EINVAL, 6.18); it is
            # the mapping that is read-only then.
            os.close(fd)
            fd = libbpf.obj_get(str(path))
            meta.check(spec, fd, path)
        return maps.wrap(spec, fd, self.readonly)

    def _prepare(self, bundle: Bundle, sizes: Sizes | None) -> None:
        """Creates and replaces maps until all are as `bundle` and `sizes` want them."""
        self._wanted = (sizes or Sizes.automatic_here()).max_entries(bundle)
        for name, entries in self._wanted.items():
            spec = bundle.maps[name]
            path = self.pin_dir / "maps" / name
            if not path.exists():
                self._adopt(maps.create(spec, entries), path)
                continue
            old = self._open_pinned(name)
            if migrate.suits(old, spec, entries, chosen=sizes is not None):
                self._open[name] = old
            else:
                self._adopt(self._replaced.replace(old, spec, entries, path), path)
        flowtable.prepare(self._open, bundle.enums)
        self.meta.note_bundle(bundle)

    def _adopt(self, new: Map, path: Path) -> None:
        """The layout first: a pinned map is never without one."""
        self.meta.note_map(new)
        bpffs.pin(new.fd, path)
        self._open[new.name] = new


class PinnedPrograms(Mapping[str, int]):
    """The newest pinned programs by name, opened when first asked for."""

    def __init__(self, directory: Path) -> None:
        """`directory` has one of each generation."""
        self._directory = directory
        self._fds: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        if name not in self._fds:
            self._fds[name] = self._open(name)
        return self._fds[name]

    def __bool__(self) -> bool:
        return True  # there may be some by the time that they are asked for

    def _open(self, name: str) -> int:
        for generation in self._newest_first():
            with contextlib.suppress(KernelError):  # another process has just let it go
                return libbpf.obj_get(str(generation / name))
        raise LayoutError(
            f"program {name} of this instance is not loaded", "The agent loads it when it starts."
        )

    def _newest_first(self) -> list[Path]:
        found = []
        for path in self._directory.iterdir():
            if "~" not in path.name:
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]

    def __iter__(self) -> Iterator[str]:
        return iter({path.name for path in self._directory.glob("*/*")})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


class Former(Maps[HashMap, ArrayMap, PerCpuArray]):
    """An instance as it was before some of its maps got larger."""

    def __init__(self, instance: Instance, replaced: Mapping[str, Map]) -> None:
        self._instance = instance
        self._replaced = replaced

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Map:
            if name.startswith("_"):
                raise AttributeError(name)
            return self._replaced.get(name) or self._instance.map(name)


def remove(pin_dir: Path) -> None:
    """Unpins everything of an instance; detaching is ebpf.hooks.tc's part and comes first."""
    if not pin_dir.is_dir():
        raise bpffs.absent(pin_dir)
    bpffs.require(pin_dir)
    trust.check(pin_dir)
    lock = bpffs.Lock(pin_dir)
    try:
        bpffs.remove_tree(pin_dir)
    finally:
        lock.close()
