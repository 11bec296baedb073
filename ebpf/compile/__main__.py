"""`python -m ebpf.compile`: compiles bpf_src into the package, for the image that is made of it."""

from __future__ import annotations

import sys

from ebpf.compile import compiler
from ebpf.errors import LbError


def main() -> int:
    try:
        for path in compiler.ship():
            print(path)
    except LbError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
