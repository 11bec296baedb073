"""docs/observability.md: made anew from the declarations, complete, and about what is served."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from lbctl.datapath.reasons import SENTENCES
from lbctl.metrics import document
from lbctl.troubles import KINDS, NODE_REASONS, REASONS
from tests.support import monitoring
from tests.unit.test_metrics_pages import Rig

TEXT = document.DOCUMENT.read_text()


def test_what_is_made_of_declarations_is_fresh() -> None:
    assert document.document(TEXT) == TEXT, "run python -m lbctl.metrics.document"


def test_every_part_has_its_place() -> None:
    assert re.findall(r"document: (\w+) -->", TEXT) == [*document._PARTS]


def rows() -> set[str]:
    return set(re.findall(r"^\| `?(\w[\w-]*)`? \|", TEXT, re.MULTILINE))


def test_every_name_has_a_row() -> None:
    assert {item.name for item in document.described()} <= rows()
    for names in (KINDS, SENTENCES, REASONS, NODE_REASONS):
        assert {*names} <= rows()
    assert {rule["alert"] for rule in monitoring.rules()} <= rows()


def test_every_series_that_is_served_is_described() -> None:
    text = Rig().pages.metrics().body.decode()
    served = {
        f.name if f.type != "counter" else f"{f.name}_total"
        for f in text_string_to_metric_families(text)
    }
    assert len(served) > 40
    assert {name for name in served if not name.startswith("process_")} <= rows()
