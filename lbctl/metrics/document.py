"""The tables of docs/observability.md, made from what declares metrics, reasons and rules.

`python -m lbctl.metrics.document` rewrites them, in a checkout of the repository; a unit test says
when that was forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import yaml

from lbctl.datapath.reasons import ENDINGS, SENTENCES, verdict
from lbctl.generated import fill, table
from lbctl.instruments import Described, Instruments
from lbctl.metrics import families
from lbctl.troubles import KINDS, NODE_REASONS, REASONS, Kind

_ROOT = Path(__file__).parents[2]
DOCUMENT: Final = _ROOT / "docs" / "observability.md"
RULES: Final = _ROOT / "deploy" / "monitoring" / "rules.yaml"
_COMMAND = "made by python -m lbctl.metrics.document"


def document(text: str) -> str:
    """docs/observability.md, with its tables made anew."""
    return fill(text, _COMMAND, _PARTS)


def described() -> list[Described]:
    """Every metric but those of the process."""
    return [*Instruments().described, *families.described()]


def _metrics(chosen: Callable[[str], bool]) -> str:
    rows = (
        (
            f"`{item.name}`",
            item.kind,
            ", ".join(f"`{label}`" for label in item.labels),
            item.help.replace("|", r"\|").replace("<", r"\<"),
        )
        for item in sorted(described())
        if chosen(item.name)
    )
    return table(("metric", "kind", "labels", "what it says"), rows)


def _is_ours(name: str) -> bool:
    return name.startswith("lbctl_")


def _conditions() -> str:
    rows = ((f"`{name}`", kind.what, kind.remedy) for name, kind in KINDS.items())
    return table(("kind", "what is wrong", "what to do"), rows)


def _decisions() -> str:
    rows = ((f"`{reason}`", verdict(reason), text) for reason, text in SENTENCES.items())
    return table(("reason", "verdict", "what it means"), rows)


def _endings() -> str:
    rows = ((f"`{reason}`", text) for reason, text in ENDINGS.items())
    return table(("reason", "what it means"), rows)


def _events(reasons: Mapping[str, Kind]) -> str:
    rows = ((f"`{reason}`", kind.what, kind.remedy) for reason, kind in reasons.items())
    return table(("reason", "what is wrong", "what to do"), rows)


def _alerts() -> str:
    return table(("alert", "severity", "when", "what to do"), _rules())


def _rules() -> Iterable[tuple[str, ...]]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            expression = " ".join(rule["expr"].split()).replace("|", r"\|")
            for_ = f", for {rule['for']}" if "for" in rule else ""
            description = rule["annotations"]["description"]
            yield rule["alert"], rule["labels"]["severity"], f"`{expression}`{for_}", description


_PARTS: dict[str, Callable[[], str]] = {
    "kubeproxy": lambda: _metrics(lambda name: not _is_ours(name)),
    "ours": lambda: _metrics(_is_ours),
    "conditions": _conditions,
    "decisions": _decisions,
    "services": lambda: _events(REASONS),
    "nodes": lambda: _events(NODE_REASONS),
    "endings": _endings,
    "alerts": _alerts,
}


def main() -> None:
    """Writes the document anew."""
    DOCUMENT.write_text(document(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
