"""An option of the agent: what its declaration says, and what can be read from that.

All of them are declared in lbctl/config/settings.py. From there come the command line
(lbctl/cli/options.py), the fields of AgentConfiguration (agentconfig.py), what a running agent
takes over (settle.py), and the tables and the example for people (document.py).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """The annotation of a field of Settings. What is left empty does not exist: without `flag` the
    command line cannot say it, without `field` and `kube_proxy` no file can.

    `default` puts in words what holds if nobody says anything, where the value itself does not.
    """

    help: str
    flag: str = ""  # --so, or for what a file may say too and both ways, --so/--no-so
    short: str = ""  # of the flag, like -v
    metavar: str = ""
    env: str = ""  # a variable that speaks where the flag is silent
    field: str = ""  # of AgentConfiguration
    kube_proxy: str = ""  # of KubeProxyConfiguration; kubeproxyconfig.py reads it
    live: bool = False  # a running agent takes over what a changed file says
    default: str = ""
    example: Any = None  # of `field`, in examples/agent-config.yaml
    # The value (or each one of several) from its text. Raises ValueError.
    parse: Callable[[str], Any] | None = None
    commas: bool = False  # several values may stand in one on the command line


class Declared(msgspec.Struct, frozen=True):
    """An option with its `name` in Settings, and the type of what a person writes for it."""

    name: str
    option: Option
    written: Any
    otherwise: Any  # what holds if nobody says anything

    @property
    def in_file(self) -> str:
        """The field's name for people; of ours, if both documents have one. Empty: none."""
        return self.option.field or self.option.kube_proxy

    @property
    def many(self) -> bool:
        """It is a list, and its flag can be repeated."""
        return typing.get_origin(self.written) is tuple

    @property
    def words(self) -> tuple[str, ...]:
        """Those that it can be, if it is one of a few."""
        literal = typing.get_origin(self.written) is Literal
        return typing.get_args(self.written) if literal else ()

    @property
    def bounds(self) -> tuple[int | None, int | None]:
        """The lowest and the highest number it can be, where it is one with such bounds."""
        found = msgspec.inspect.type_info(self.written)
        return (found.ge, found.le) if isinstance(found, msgspec.inspect.IntType) else (None, None)

    @property
    def default(self) -> str:
        """What holds if nobody says anything, in words; empty: nothing."""
        if self.option.default or self.otherwise in (None, False, ()):
            return self.option.default
        return "true" if self.otherwise is True else str(self.otherwise)

    def value(self, said: Any, place: Callable[[int], str]) -> Any:
        """From what a person wrote. `place` names an item of it (0 where there is only one) in the
        message of the ValueError."""
        if self.option.parse is None:
            return said
        texts = said if self.many else (said,)
        found = tuple(self._parse(text, place(index)) for index, text in enumerate(texts))
        return found if self.many else found[0]

    def _parse(self, text: str, place: str) -> Any:
        assert self.option.parse is not None
        try:
            return self.option.parse(text)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error


def declared(settings: type[msgspec.Struct]) -> dict[str, Declared]:
    """The options that the fields of `settings` are, by their names, in order."""
    found = {}
    for field in msgspec.structs.fields(settings):
        annotation, *notes = typing.get_args(field.type)
        (option,) = (note for note in notes if isinstance(note, Option))
        checks = tuple(note for note in notes if isinstance(note, msgspec.Meta))
        written = _written(annotation, option)
        for check in checks:
            written = Annotated[written, check]
        found[field.name] = Declared(field.name, option, written, field.default)
    return found


def _written(annotation: Any, option: Option) -> Any:
    """What a person writes for a value of this type."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = (part for part in typing.get_args(annotation) if part is not type(None))
    if option.parse is None:
        return annotation
    return tuple[str, ...] if typing.get_origin(annotation) is tuple else str
