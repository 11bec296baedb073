"""The test of the stress test: without any one of the protocol's safeguards, it fails.

Each is taken out of the source by replacing its text. What a safeguard is against happens in a
window of nanoseconds: here every barrier takes as long as two calls, so that windows are wider.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.support import stress
from tests.kernel.support.flow_tables import PrivateTable, bundle_with
from tests.kernel.support.stress import SLOWLY

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.alone,  # two CPUs, each for itself
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]
PATIENCE = 90.0  # seconds; each is noticed within one or two, on a loaded machine later
KEYS, BUCKETS = 16, 3

MUTATIONS = {
    "no look after the claim": (
        "claim.h",
        "if (is_taken(t, hash, &claim->key, claim->generation, place)) {",
        "if (0) {",
    ),
    "a claim by a plain store": (
        "claim.h",
        "if (bucket == one ? __sync_val_compare_and_swap(first, old, taken) == old",
        "if (bucket == one ? (*(volatile u64 *)first = taken, 1)",
    ),
    "a cell whose tuple is not there yet is passed by": (
        "claim.h",
        "if (HEAD_STATE(head) < STATE_BUSY)",
        "if (0)",
    ),
    "a tuple that is reserved is passed by": (
        "claim.h",
        "if (has_key(cell, head, key) && !(head & HEAD_MOVED) &&",
        "if (HEAD_STATE(head) >= STATE_LIVE && has_key(cell, head, key) &&",
    ),
    "the reader looks once": (
        "cells.h",
        "	return same_generation(LOAD(&found->cell->head), found->head);",
        "	return true;",
    ),
    "the next cell of whatever flow": (
        "cells.h",
        "		if (!get_cell(next_place(forward->state), forward) ||\n"
        "		    !same_generation(forward->head, any->head) ||",
        "		if (!get_cell(next_place(forward->state), forward) ||",
    ),
    "an end by a plain store": (
        "ending.h",
        "was = __sync_val_compare_and_swap(&forward->cell->head, head,\n"
        "						  IN_STATE(head, STATE_DEAD));",
        "was = head; forward->cell->head = IN_STATE(head, STATE_DEAD);",
    ),
    "a tag taken off by a plain store": (
        "ending.h",
        "__sync_fetch_and_add(control, -((u64)tag << place % CELLS_PER_BUCKET * 8));",
        "*(volatile u64 *)control -= (u64)tag << place % CELLS_PER_BUCKET * 8;",
    ),
    "the tag first, then the cell": (
        "ending.h",
        "	cell->head = IN_STATE(head, STATE_FREE);\n"
        "	ORDERED;\n	release(own, place, HEAD_TAG(head));",
        "	release(own, place, HEAD_TAG(head));\n"
        "	LINGER;\n	cell->head = IN_STATE(head, STATE_FREE);",
    ),
    "a state by a plain store": (
        "ending.h",
        "	if (__sync_val_compare_and_swap(&forward->cell->head, old, new) != old)\n"
        "		return false;",
        "	if (LOAD(&forward->cell->head) != old)\n		return false;\n"
        "	ORDERED;\n	forward->cell->head = new;",
    ),
    "a hint by a plain store": (
        "ending.h",
        "__sync_val_compare_and_swap(&at.cell->head, at.head,\n"
        "					    at.head - HEAD_STATE(at.head) + state);",
        "LINGER; at.cell->head = at.head - HEAD_STATE(at.head) + state;",
    ),
    "whose connection it was, asked too late": (
        "ending.h",
        "add_live(backend, service, is_over(to) ? -1 : 1);",
        "LINGER; add_live(LOAD(&forward->state->backend), LOAD(&forward->state->service), "
        "is_over(to) ? -1 : 1);",
    ),
    "the forward cell first": (
        "stress.c",
        "	publish_cell(t->places[1], STATE_SYN);\n	publish_cell(t->places[0], STATE_SYN);",
        "	publish_cell(t->places[0], STATE_SYN);\n	LINGER;\n	LINGER;\n	LINGER;\n"
        "	publish_cell(t->places[1], STATE_SYN);",
    ),
}


# Where two CPUs have to meet in a few nanoseconds even so.
WIDER = {
    "a cell whose tuple is not there yet is passed by": (
        "claim.h",
        "	cell->head = IN_STATE(head, STATE_CLAIMED);\n	ORDERED;",
        "	LINGER;\n	cell->head = IN_STATE(head, STATE_CLAIMED);\n	LINGER;",
    ),
}


def private_table(tmp_path: Path, replaced: list[tuple[str, str, str]]) -> PrivateTable:
    bundle = bundle_with("stress.c", "4", tmp_path, replaced, (("KEYS", str(KEYS)),))
    made = PrivateTable(bundle, "4", BUCKETS)
    stress.write_wanted(made, KEYS)
    stress.seed(made)
    return made


@pytest.mark.parametrize("name", MUTATIONS)
def test_without_a_safeguard_it_is_noticed(tmp_path: Path, name: str) -> None:
    replaced = [("hash.h", *SLOWLY), MUTATIONS[name]]
    if name in WIDER:
        replaced.append(WIDER[name])
    private = private_table(tmp_path, replaced)
    try:
        found = stress.noticed(private, PATIENCE)
        print(f"{name}: {found}")
        assert found
    finally:
        private.close()


def test_with_all_of_them_nothing_is(tmp_path: Path, soak: float) -> None:
    private = private_table(tmp_path, [("hash.h", *SLOWLY)])
    try:
        assert not stress.noticed(private, soak)
    finally:
        private.close()
