"""`python -m lbctl` is the same as `lbctl`."""

from lbctl.cli.main import main

main()
