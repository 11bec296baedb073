"""Loading programs: map fds into the instructions, program arrays per generation."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

import msgspec

from ebpf import maps
from ebpf.errors import Abandoned, CompileError, LbError
from ebpf.hooks.cgroup import SocketAttacher
from ebpf.hooks.tc import Attacher
from ebpf.hooks.xdp import DriverAttacher
from ebpf.instance import Instance
from ebpf.kernel import bpffs, functions, libbpf, optional
from ebpf.kernel import fields as kernel_fields
from ebpf.layouts import PROGRAM_ARRAYS, Bundle, Field, MapSpec, Program, Record, Slots
from ebpf.maps import ProgramArray, of_kind

_LOADERS = 4  # threads, where there are so many CPUs: more would be in the way of who plans


class Stopping(Protocol):
    """A threading.Event, say."""

    def is_set(self) -> bool: ...


_GOES_ON: Final = threading.Event()  # never set


def load(program: Program, map_fds: Mapping[str, int]) -> int:
    """Loads one program with `map_fds` (by map name) in place of its references, and what it reads
    of the kernel's own; returns its fd.

    Raises CompileError for a map that is not given, KernelError with the verifier's words.
    """
    code = bytearray(program.insns)
    for index, name in program.relocations:
        if name not in map_fds:
            raise CompileError(f"program {program.name} needs map {name}, which was not created")
        struct.pack_into("=i", code, index * 8 + 4, map_fds[name])
    for index in program.kernel_reads:
        kernel_fields.complete(code, index)
    optional.without_missing(code)
    load = functools.partial(
        libbpf.prog_load, program.prog_type, program.name, bytes(code), program.attach_type
    )
    if not program.functions:
        return load()
    types, infos = functions.load_types(program.name, program.functions)
    try:
        return load(types=types, infos=infos)
    finally:
        os.close(types)


def _load_all(
    programs: Mapping[str, Program], map_fds: Mapping[str, int], stopping: Stopping
) -> Iterator[tuple[str, int]]:
    """Loads them on several CPUs, since verifying is what a start waits for; name and fd of each.
    After an error no further one begins. Raises Abandoned if it is to stop."""
    longest_first = sorted(programs.values(), key=lambda program: -len(program.insns))
    if not longest_first:
        return
    first = longest_first.pop(0)
    yield first.name, load(first, map_fds)  # alone: it finds out what the kernel can do
    workers = min(len(os.sched_getaffinity(0)), _LOADERS)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(load, program, map_fds): program for program in longest_first}
        try:
            for done in concurrent.futures.as_completed(waiting):
                if stopping.is_set():
                    raise Abandoned("loading of programs was given up")
                yield waiting[done].name, done.result()
        finally:
            pool.shutdown(cancel_futures=True)


class Generation:
    """All programs of a bundle, with program arrays of their own.

    `fds` are the entry programs by name (those that are in no array), `tails` the others, by
    which the arrays are set right. A program array forgets its programs when the last descriptor
    and pin of it go, so a generation in use keeps `arrays` open or pinned.
    """

    def __init__(
        self, fds: dict[str, int], tails: dict[str, int], arrays: dict[str, ProgramArray]
    ) -> None:
        self.fds = fds
        self.tails = tails
        self.arrays = arrays

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        map_fds: Mapping[str, int],
        partial: bool = False,
        stopping: Stopping = _GOES_ON,
    ) -> Generation:
        """Loads every program of `bundle` on the given maps, which need not have the arrays.

        A slot of enum program without a program is an error unless `partial`, or that program was
        left out. Raises Abandoned soon after `stopping` is set.
        """
        slots = bundle.tail_programs()
        places = {name: (array, at) for array, named in slots.items() for name, at in named.items()}
        missing = places.keys() - bundle.programs.keys() - bundle.left_out
        if missing and not partial:
            raise CompileError(
                f"enum program names {', '.join(sorted(missing))}, which no unit defines"
            )
        made = cls({}, {}, {})
        try:
            for name, named in slots.items():
                made.arrays[name] = _create_array(bundle, name, max(named.values(), default=0) + 1)
            fds = {**map_fds, **{name: array.fd for name, array in made.arrays.items()}}
            for name, fd in _load_all(bundle.programs, fds, stopping):
                if name in places:
                    made.tails[name] = fd
                    array, at = places[name]
                    made.arrays[array].store(at, fd)
                else:
                    made.fds[name] = fd
        except LbError:
            made.close()
            raise
        return made

    def restore_arrays(self, slots: Slots) -> list[str]:
        """Put programs back into slots of the arrays that somebody emptied or filled otherwise;
        returns which. `slots` is `Bundle.tail_programs`."""
        lost = []
        for name, named in slots.items():
            array = self.arrays[name]
            for program in self.tails.keys() & named.keys():
                if array.program(named[program]) != _id(self.tails[program]):
                    array.store(named[program], self.tails[program])
                    lost.append(program)
        return sorted(lost)

    def close_tails(self) -> None:
        """Without them the arrays cannot be set right."""
        for fd in self.tails.values():
            os.close(fd)
        self.tails.clear()

    def close(self) -> None:
        """Lets go of everything; what is pinned or linked lives on."""
        self.close_tails()
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
        for array in self.arrays.values():
            array.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_generation(
    bundle: Bundle, instance: Instance, *, lists: bool = True, stopping: Stopping = _GOES_ON
) -> Generation:
    """The programs of `bundle` on the maps of `instance`, pinned; what is pinned already is reused.

    A generation is known by the bundle's hash and the ids of the maps it works on, so a start with
    the same code on the same maps loads nothing. Without `lists` those that no packet gets to are
    left to `load_lists`. Raises Abandoned soon after `stopping` is set.
    """
    directory = instance.pin_dir / "programs" / generation_key(bundle, instance)
    slots = bundle.tail_programs()
    first = {name: one for name, one in bundle.programs.items() if not one.on_lists}
    if all((directory / name).exists() for name in (*first, *slots)):
        found = _open_generation(directory, bundle)
    else:
        part = bundle if lists else msgspec.structs.replace(bundle, programs=first)
        found = _load_pinned(part, instance, directory, stopping)
    if lists:
        load_lists(found, bundle, instance, stopping)
    return found


def load_lists(
    generation: Generation, bundle: Bundle, instance: Instance, stopping: Stopping = _GOES_ON
) -> None:
    """Completes a generation of `load_generation` by what it lacks."""
    directory = instance.pin_dir / "programs" / generation_key(bundle, instance)
    lacking = {
        name: one
        for name, one in bundle.programs.items()
        if one.on_lists and name not in generation.fds
    }
    for name, fd in _load_all(lacking, instance.map_fds(), stopping):
        generation.fds = {**generation.fds, name: fd}  # other threads may go through them
        bpffs.pin(fd, directory / name)


def _open_generation(directory: Path, bundle: Bundle) -> Generation:
    """What is pinned of it."""
    slots = bundle.tail_programs()
    arrays = {name: open_array(directory / name) for name in slots}
    there = [name for name in sorted(bundle.programs) if (directory / name).exists()]
    fds = {name: libbpf.obj_get(str(directory / name)) for name in there}
    named = {name for array in slots.values() for name in array}
    tails = {name: fds.pop(name) for name in named if name in fds}
    found = Generation(fds, tails, arrays)
    found.restore_arrays(slots)
    return found


def _load_pinned(
    bundle: Bundle, instance: Instance, directory: Path, stopping: Stopping
) -> Generation:
    made = Generation.load(bundle, instance.map_fds(), stopping=stopping)
    # Renamed when complete: a generation is all there or not at all.
    fresh = directory.with_name(f"{directory.name}~new")
    bpffs.remove_tree(fresh)
    bpffs.remove_tree(directory)
    bpffs.make_directory(fresh)
    for name, array in made.arrays.items():
        bpffs.pin(array.fd, fresh / name)
    for name, fd in {**made.fds, **made.tails}.items():
        bpffs.pin(fd, fresh / name)
    fresh.rename(directory)
    return made


def restore_pins(generation: Generation, key: str, instance: Instance) -> list[str]:
    """Pins the programs of a generation, known by `key`, again where somebody removed or replaced
    their pins; returns where that was so. Without its arrays a generation ends with its agent."""
    directory = instance.pin_dir / "programs" / key
    bpffs.make_directory(directory)
    found = [(name, array.fd, libbpf.map_id) for name, array in generation.arrays.items()]
    opened = {**generation.fds, **generation.tails}
    found += [(name, fd, libbpf.prog_id) for name, fd in opened.items()]
    return [
        f"programs/{key}/{name}"
        for name, fd, id_of in found
        if bpffs.restore(fd, directory / name, id_of)
    ]


def generation_key(bundle: Bundle, instance: Instance) -> str:
    """The name of the directory of this bundle's programs on these maps."""
    return instance.generation_key(bundle.hash)


def drop_other_generations(bundle: Bundle, instance: Instance) -> int:
    """Unpins the generations that `bundle` replaced; returns how many.

    One that an interface or a cgroup still runs (its replacement failed there) is kept: its program
    arrays would lose their programs with the pin.
    """
    kept = generation_key(bundle, instance)
    running = {item.prog_id for item in Attacher(instance.pin_dir, "tcx").attachments()}
    running |= {hook.prog_id for hook in SocketAttacher(instance.pin_dir).hooks()}
    running |= {item.prog_id for item in DriverAttacher(instance.pin_dir).attachments()}
    dropped = 0
    for path in (instance.pin_dir / "programs").iterdir():
        if path.name != kept and not running & _pinned_programs(path):
            bpffs.remove_tree(path)
            dropped += 1
    return dropped


def count_generations(instance: Instance) -> int:
    """How many are pinned."""
    return sum(1 for _ in (instance.pin_dir / "programs").iterdir())


def _pinned_programs(directory: Path) -> set[int]:
    """Ids of the programs of one generation."""
    found = set()
    for path in directory.iterdir():
        if path.name.partition("~")[0] not in PROGRAM_ARRAYS:
            fd = libbpf.obj_get(str(path))
            found.add(_id(fd))
            os.close(fd)
    return found


def _id(fd: int) -> int:
    return libbpf.prog_id(fd)


def open_array(path: Path) -> ProgramArray:
    """The program array that is pinned there. Raises KernelError."""
    return ProgramArray(_array_spec(path.name), libbpf.obj_get(str(path)))


_WORD = Record("", 4, (Field("", 0, 4, 0, "u32"),))


def _array_spec(name: str) -> MapSpec:
    return MapSpec(name, maps.PROG_ARRAY, 0, _WORD, _WORD)


def _create_array(bundle: Bundle, name: str, size: int) -> ProgramArray:
    return of_kind(ProgramArray, maps.create(bundle.maps.get(name) or _array_spec(name), size))
