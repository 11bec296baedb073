"""Any value in any place of an object, and any bytes: a record or a named error, nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbctl.errors import ObjectError
from lbctl.model.decode import NODES, SERVICES, SLICES, Kind
from tests.support.k8s_objects import Json, endpoint, endpoint_slice, node, service

_TEXTS = st.text(max_size=12) | st.sampled_from(["None", "", "10.0.0.1", "fd00::1", "TCP", "Local"])
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=12,
)
_GOOD: dict[str, tuple[Kind[Any], Json]] = {
    "Service": (
        SERVICES,
        service(
            type="LoadBalancer",
            externalIPs=["1.1.1.1"],
            ingress=[{"ip": "2.2.2.2", "ipMode": "VIP"}],
            loadBalancerSourceRanges=["10.0.0.0/8"],
            sessionAffinity="ClientIP",
            sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
            labels={"a": "b"},
        ),
    ),
    "EndpointSlice": (
        SLICES,
        endpoint_slice(endpoints=[endpoint("10.0.0.1", zones=["a"], nodes=["n"], ready=True)] * 2),
    ),
    "Node": (NODES, {**node(zone="a"), "spec": {"podCIDRs": ["10.0.0.0/24"], "taints": [{}]}}),
}


def _places(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [at] if at else []
    entries: Any = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    for key, inner in entries:
        found += _places(inner, (*at, key))
    return found


def _replaced(value: Json, at: tuple[str | int, ...], new: object) -> Json:
    changed: Any = copy.deepcopy(value)
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = new
    result: Json = changed
    return result


def _record_or_error(read: Callable[[], object]) -> None:
    try:
        assert read() is not None
    except ObjectError as error:
        said = error.message
    else:
        return
    assert said
    assert len(said) < 1500


@pytest.mark.parametrize("name", _GOOD)
@given(data=st.data())
@settings(max_examples=200)
def test_any_value_in_any_place_is_a_record_or_a_named_error(
    name: str, data: st.DataObject
) -> None:
    kind, good = _GOOD[name]
    at = data.draw(st.sampled_from(_places(good)))
    value = _replaced(good, at, data.draw(_ANYTHING))
    _record_or_error(lambda: kind.convert(value))
    encoded = msgspec.json.encode(value)
    _record_or_error(lambda: kind.decode(encoded))
    _record_or_error(lambda: kind.decode_event(b'{"type":"ADDED","object":' + encoded + b"}"))
    untouched = at[0] not in ("metadata", "spec", "addressType", "kind", "apiVersion")
    named = at[:2] in (("metadata", "name"), ("metadata", "namespace"))
    if (untouched or len(at) > 2) and not named:
        kind.convert(value)  # it costs a part: the object is there


@pytest.mark.parametrize("name", _GOOD)
@given(data=st.data())
@settings(max_examples=200)
def test_any_bytes_in_any_place_are_a_record_or_a_named_error(
    name: str, data: st.DataObject
) -> None:
    kind, good = _GOOD[name]
    meta = {"resourceVersion": "1"}
    page = {
        "kind": f"{name}List",
        "apiVersion": kind.api_version,
        "metadata": meta,
        "items": [good],
    }
    for whole, read in (
        (good, kind.decode),
        ({"type": "MODIFIED", "object": good}, kind.decode_event),
        (page, kind.decode_list),
    ):
        encoded = bytearray(msgspec.json.encode(whole))
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(encoded)))
            end = data.draw(st.integers(start, min(len(encoded), start + 4)))
            encoded[start:end] = data.draw(st.binary(max_size=4))
        _record_or_error(lambda read=read, text=bytes(encoded): read(text))  # type: ignore[misc]


@given(st.binary(max_size=200))
def test_any_bytes_are_no_exception(data: bytes) -> None:
    for kind in (SERVICES, SLICES, NODES):
        _record_or_error(lambda kind=kind: kind.decode(data))  # type: ignore[misc]
        _record_or_error(lambda kind=kind: kind.decode_list(data))  # type: ignore[misc]
        _record_or_error(lambda kind=kind: kind.decode_event(data))  # type: ignore[misc]
