"""Children that Ctrl-C reaches, however the tests were started."""

from __future__ import annotations

import signal


def interruptible() -> None:
    """A `preexec_fn`: what a shell runs in the background ignores SIGINT, and so does all that it
    starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
