"""A lab with a service that answers and one that has nobody to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lbctl.lab.cluster import Lab
from tests.lab.support.faults import service
from tests.lab.support.labs import Responder, endpoint


@contextmanager
def answering_lab(make_lab: Callable[..., Lab], name: str) -> Iterator[Lab]:
    """One node: service `web` is pod2, `empty` has no endpoint."""
    made = make_lab(name, nodes=1, pods=2)
    with Responder() as responder:
        responder.serve(made, ["pod2"])
        for called, members in {"web": ["pod2"], "empty": []}.items():
            made.apply(called, service(made, called, members))
            made.wait_programmed(f"default/{called}", [endpoint(made, m) for m in members])
        yield made
    made.down()
