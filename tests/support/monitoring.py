"""deploy/monitoring as tests look at it: the queries of rules and panels, and what they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DIRECTORY = Path(__file__).parents[2] / "deploy" / "monitoring"
RULES = DIRECTORY / "rules.yaml"
DASHBOARD = DIRECTORY / "grafana-dashboard.json"
_NAME = re.compile(r"\b((?:lbctl|kubeproxy|rest_client|process)_\w+)(\{[^}]*\})?")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')


class Query(NamedTuple):
    """One of a panel's or rule's, and where it stands."""

    where: str
    text: str


class Selected(NamedTuple):
    """A metric that a query names, with the matchers of its labels."""

    name: str
    matchers: dict[str, str]


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def of_rules() -> list[Query]:
    return [Query(rule["alert"], rule["expr"]) for rule in rules()]


def panels() -> list[dict[str, Any]]:
    board = json.loads(DASHBOARD.read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def of_panels() -> list[Query]:
    return [
        Query(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]
    ]


def selected(query: str) -> Iterator[Selected]:
    for name, labels in _NAME.findall(query):
        yield Selected(name, dict(_LABEL.findall(labels)))
