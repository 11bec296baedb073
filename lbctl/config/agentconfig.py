"""AgentConfiguration: our own settings, as a document beside kube-proxy's in the same file.

Its fields are the options (lbctl/config/settings.py) that have a `field`; docs/configuration.md
describes them, and examples/agent-config.yaml has them all.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lbctl.config.options import Declared
from lbctl.config.settings import OPTIONS
from lbctl.errors import ConfigError
from lbctl.fieldnames import explain, near, path_of, unknown_field

API_VERSION = "lbctl/v1alpha1"
KIND = "AgentConfiguration"

FIELDS = {option.option.field: option for option in OPTIONS.values() if option.option.field}


def _field(declared: Declared) -> tuple[str, Any, Any]:
    name = declared.option.field
    if declared.many:
        return declared.name, declared.written, msgspec.field(default=(), name=name)
    return declared.name, declared.written | None, msgspec.field(default=None, name=name)


_Document = msgspec.defstruct(
    "_Document",
    [
        ("api_version", str, msgspec.field(default=API_VERSION, name="apiVersion")),
        ("kind", str, KIND),
        *map(_field, FIELDS.values()),
    ],
    frozen=True,
    forbid_unknown_fields=True,
)


def parse(value: object) -> dict[str, Any]:
    """What the document says, by the names in Settings, from parsed YAML. Raises ConfigError naming
    the field, with what it might have meant."""
    try:
        found = msgspec.structs.asdict(msgspec.convert(_words(value), _Document))
    except msgspec.ValidationError as error:
        raise _fault(error) from error
    if found["api_version"] != API_VERSION:
        raise ConfigError(
            f"apiVersion: {found['api_version']!r} is unknown", f"A {KIND} has {API_VERSION}."
        )
    return {
        declared.name: _value(declared, found[declared.name])
        for declared in FIELDS.values()
        if found[declared.name] not in (None, (), "")
    }


def _value(declared: Declared, written: Any) -> Any:
    field = declared.option.field
    try:
        return declared.value(written, lambda i: f"{field}[{i}]" if declared.many else field)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _words(value: object) -> object:
    """YAML 1.1 reads the words on and off as truth values."""
    if not isinstance(value, dict):
        return value
    switched = {
        name: "on" if value[name] else "off"
        for name, declared in FIELDS.items()
        if declared.words and isinstance(value.get(name), bool)
    }
    return value | switched


def _fault(error: msgspec.ValidationError) -> ConfigError:
    name = unknown_field(error)
    if name:
        known = ("apiVersion", "kind", *FIELDS)
        return ConfigError(f"{name}: no such field of {KIND}", near(name, known))
    declared = FIELDS.get(path_of(error))
    hint = f"Known: {', '.join(declared.words)}." if declared and declared.words else ""
    return ConfigError(explain(error), hint)
