"""AgentConfiguration: our own settings, as a document beside kube-proxy's in the same file.

docs/configuration.md describes every field; examples/agent-config.yaml has them all.
"""

from __future__ import annotations

import typing
from typing import Annotated, Literal

import msgspec

from lbctl.addresses import Prefix, parse_prefix
from lbctl.errors import ConfigError
from lbctl.fieldnames import explain, near, path_of, unknown_field

API_VERSION = "lbctl/v1alpha1"
KIND = "AgentConfiguration"

Takeover = Literal["auto", "on", "off"]
SocketLB = Literal["off", "host", "all"]
LogFormat = Literal["text", "json"]
_Pattern = Annotated[str, msgspec.Meta(min_length=1)]
_Room = Annotated[int, msgspec.Meta(ge=16)]
_Flows = Annotated[int, msgspec.Meta(ge=128)]


class AgentConfig(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What a file says; None and empty: nothing. Each field is the agent's option of that name."""

    api_version: str = API_VERSION
    kind: str = KIND
    service_cidrs: tuple[str, ...] = msgspec.field(default=(), name="serviceCIDRs")
    uplinks: tuple[_Pattern, ...] = ()
    pod_interfaces: tuple[_Pattern, ...] = ()
    services: _Room | None = None
    endpoints: _Room | None = None
    flows: _Flows | None = None
    takeover: Takeover | None = None
    socket_lb: SocketLB | None = msgspec.field(default=None, name="socketLB")
    log_format: LogFormat | None = None
    api_server: str | None = None

    @property
    def service_prefixes(self) -> tuple[Prefix, ...]:
        """`serviceCIDRs`, parsed."""
        return tuple(parse_prefix(text) for text in self.service_cidrs)


_FIELDS = {field.encode_name: field for field in msgspec.structs.fields(AgentConfig)}
# YAML 1.1 reads the words on and off as truth values.
_SWITCHES = ("takeover", "socketLB")


def parse(value: object) -> AgentConfig:
    """From parsed YAML. Raises ConfigError naming the field, with what it might have meant."""
    try:
        found = msgspec.convert(_words(value), AgentConfig)
    except msgspec.ValidationError as error:
        raise _fault(error) from error
    if found.api_version != API_VERSION:
        raise ConfigError(
            f"apiVersion: {found.api_version!r} is unknown", f"A {KIND} has {API_VERSION}."
        )
    for index, text in enumerate(found.service_cidrs):
        try:
            parse_prefix(text)
        except ValueError as error:
            raise ConfigError(f"serviceCIDRs[{index}]: {error}") from error
    if found.api_server and not found.api_server.startswith(("https://", "http://")):
        raise ConfigError(
            f"apiServer: {found.api_server!r} is not a URL", "Like https://api.example:6443."
        )
    return found


def _words(value: object) -> object:
    if not isinstance(value, dict):
        return value
    switched = {
        name: "on" if value[name] else "off"
        for name in _SWITCHES
        if isinstance(value.get(name), bool)
    }
    return value | switched


def _fault(error: msgspec.ValidationError) -> ConfigError:
    name = unknown_field(error)
    if name:
        return ConfigError(f"{name}: no such field of {KIND}", near(name, _FIELDS))
    field = _FIELDS.get(path_of(error))
    choices = _choices(field.type) if field else ()
    hint = f"Known: {', '.join(choices)}." if choices else ""
    return ConfigError(explain(error), hint)


def _choices(annotation: object) -> tuple[str, ...]:
    """The words of `Literal[…] | None`."""
    parts = typing.get_args(annotation)
    words = [word for part in parts for word in typing.get_args(part) if isinstance(word, str)]
    return tuple(words)
