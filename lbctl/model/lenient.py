"""Reading what is good of an object whose parts have wrong types, and JSON that decoders refuse.

The fast way decodes an object as a whole. Where that fails, the object is taken apart here: a
value of the wrong type costs the field it stands in, or the element of the list where the field is
needed, and so on outwards to the object itself.
"""

from __future__ import annotations

import json
import re
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin

import msgspec

from lbctl.errors import ObjectError
from lbctl.model.fields import InvalidField, Remarks, fault_of, shortened

T = TypeVar("T")

# What decoders raise for bytes that are hostile or damaged.
UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
# Nothing that we read is nested deeper; decoders give up at about a thousand levels.
DEEPEST = 24
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_LONGEST_NUMBER = 20  # digits; the text of a larger one is not worth converting

# A string that never ends is one token to the end: looking on from each of its quotes would take
# time by the square of its length.
_TOKEN = re.compile(rb'"(?:[^"\\]+|\\.|\\\Z)*(?:"|\Z)|[\[{]|[\]}]', re.DOTALL)


def repaired(value: object, kind: type[T], remarks: Remarks) -> T:
    """`value`, parsed JSON or YAML, as `kind`, without the parts that are wrong. Raises
    InvalidField if it cannot be had at all."""
    return cast("T", _repaired(value, kind, "", remarks))


def loose(data: bytes | msgspec.Raw) -> object:
    """JSON without any expectation of its types; what stands too deep is null, bytes that are no
    UTF-8 and halves of surrogate pairs become U+FFFD. Raises ObjectError, without a key, if it is
    no JSON."""
    try:
        text = shallow(bytes(data)).decode(errors="replace")
        value = json.loads(text, parse_int=_integer)
        if _HALF_PAIR.search(text):
            whole = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
            value = json.loads(whole.decode("utf-16", "replace"))
        return value
    except (ValueError, RecursionError) as error:
        raise ObjectError(shortened(f"not JSON: {error}"), ("", "")) from error


def shallow(data: bytes) -> bytes:
    """The same JSON with null for all that is nested deeper than `DEEPEST`. Not recursive: fields
    we never read (metadata.managedFields) nest as deep as whoever wrote the object likes."""
    kept: list[bytes] = []
    depth = start = 0
    for token in _TOKEN.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
            if depth == DEEPEST:
                kept += data[start : token.start()], b"null"
        elif first in b"]}":
            if depth == DEEPEST:
                start = token.end()
            depth -= 1
    if depth >= DEEPEST:  # it ends inside: no JSON, which the decoder says
        return b"".join(kept)
    return b"".join([*kept, data[start:]]) if kept else data


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _LONGEST_NUMBER else float("inf")


def _repaired(value: object, kind: Any, path: str, remarks: Remarks) -> object:
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeError, RecursionError) as error:
        inner = _without_none(kind)
        origin = get_origin(inner)
        if (
            isinstance(value, dict)
            and isinstance(inner, type)
            and issubclass(inner, msgspec.Struct)
        ):
            return _struct(value, inner, path, remarks)
        if isinstance(value, list) and origin is list:
            return _elements(value, get_args(inner)[0], path, remarks)
        if isinstance(value, dict) and origin is dict:
            return _entries(value, path, remarks)
        if isinstance(error, msgspec.ValidationError):
            raise fault_of(path, error) from error
        raise InvalidField(path, str(error)) from error


def _struct(
    value: dict[object, object], kind: type[msgspec.Struct], path: str, remarks: Remarks
) -> msgspec.Struct:
    """Field by field: one that is wrong has its default, unless the whole means nothing then."""
    found: dict[str, object] = {}
    needed: frozenset[str] = getattr(kind, "needed", frozenset())
    for field in msgspec.structs.fields(kind):
        here = f"{path}.{field.encode_name}" if path else field.encode_name
        if field.encode_name not in value:
            if field.required:
                raise InvalidField(path, f"object missing required field {field.encode_name}")
            continue
        try:
            found[field.name] = _repaired(value[field.encode_name], field.type, here, remarks)
        except InvalidField as fault:
            if field.required or field.name in needed:
                raise
            remarks.add(fault)
    return kind(**found)


def _elements(value: list[object], kind: Any, path: str, remarks: Remarks) -> list[object]:
    """Those that can be had."""
    found = []
    for i, element in enumerate(value):
        try:
            found.append(_repaired(element, kind, f"{path}[{i}]", remarks))
        except InvalidField as fault:
            remarks.add(fault)
    return found


def _entries(value: dict[object, object], path: str, remarks: Remarks) -> dict[str, str]:
    """A map of texts (labels). One whose value is no text is there still, and empty: that it is
    there may mean that the object is another proxy's."""
    found: dict[str, str] = {}
    for key, text in value.items():
        if isinstance(key, str) and isinstance(text, str):
            found[key] = text
            continue
        remarks.add(InvalidField(path, f"{key!r} has no text as its value"))
        if isinstance(key, str):
            found[key] = ""
    return found


def _without_none(kind: Any) -> Any:
    """T of `T | None`, without what else is annotated."""
    choices = [c for c in get_args(kind) if c is not NoneType] if NoneType in get_args(kind) else []
    return choices[0] if len(choices) == 1 else kind
