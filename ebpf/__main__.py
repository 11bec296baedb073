"""`python -m ebpf [VARIANT]`: compiles bpf_src, loads every program, and says how large each is.

For those who write the C. The maps are small, unpinned, and gone at the end.
"""

from __future__ import annotations

import sys

from ebpf import maps
from ebpf.compile import compiler
from ebpf.errors import LbError
from ebpf.kernel import libbpf
from ebpf.maps.sizes import Sizes
from ebpf.programs import Generation


def main() -> int:
    variant = sys.argv[1] if len(sys.argv) > 1 else "live"
    try:
        bundle = compiler.bundle(variant)
        entries = Sizes(1024, 1024, 1024).max_entries(bundle)
        opened = {name: maps.create(bundle.maps[name], n) for name, n in entries.items()}
        fds = {name: found.fd for name, found in opened.items()}
        with Generation.load(bundle, fds) as generation:
            for name, fd in sorted({**generation.fds, **generation.tails}.items()):
                size = len(bundle.programs[name].insns) // 8
                print(f"{name:24} {size:6} instructions, {libbpf.verified(fd):8} verified")
    except LbError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
