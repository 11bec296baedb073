"""`lbctl`, and `python -m lbctl`, which is the same: where the process begins."""

from lbctl import interrupts


def main() -> None:
    """Entry point of the installed `lbctl`. What it takes is imported within."""
    interrupts.begin()
    from lbctl.cli.main import main

    main()


if __name__ == "__main__":
    main()
