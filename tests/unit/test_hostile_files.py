"""Files that hold anything: what each document costs, what is said, and that nothing is raised."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lbctl.model.records import Service
from lbctl.sources.documents import parse
from tests.support.k8s_objects import endpoint, endpoint_slice, node, service

FILE = Path("test.yaml")

ODD_YAML = {
    "no number": "a: !!int x",
    "no time": "a: !!timestamp soon",
    "no such time": "a: !!timestamp 2025-99-99",
    "no truth": "a: !!bool maybe",
    "too many digits": f"a: {'9' * 5000}",
    "an object of Python": "a: !!python/object/apply:os.system [ls]",
    "a tag of its own": "a: !mine x",
    "a list as a key": "? [a, b]\n: c",
    "a reference to itself": "&a [*a]",
    "a reference to nothing": "a: *b",
    "a bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "a merge of nothing": "<<: 5",
    "no object": "just words",
    "no kind": "metadata: {}",
    "a number": "5",
    "no name": "kind: Service\nmetadata: {}\nspec: {}",
}


@pytest.mark.parametrize("name", ODD_YAML)
def test_an_odd_document_costs_itself(name: str) -> None:
    good = yaml.safe_dump(service("before")), yaml.safe_dump(service("after"))
    text = f"{good[0]}---\n{ODD_YAML[name]}\n---\n{good[1]}"
    found = parse(FILE, text.encode())
    names = [str(getattr(o, "key", "")) for o in found.objects]
    assert names[0] == "ns1/before"
    # A reference to nothing is a fault of the text, after which documents cannot be told apart.
    assert names[1:] == ([] if name == "a reference to nothing" else ["ns1/after"])
    assert len(found.errors) == 1
    assert str(FILE) in found.errors[0]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe\x00",
        b"\x00",
        b"%YAML 9.9\n---\n",
        b"a: b: c",
        b"[" * 100_000,
        b"\t",
        b"- " * 5000,
        b'{"a":1} {"b":2}',
        "a: \ud800".encode("utf-16", "surrogatepass"),
        b'"\\ud800"',
    ],
)
def test_text_that_is_no_yaml_is_said_in_a_sentence(data: bytes) -> None:
    for file in (FILE, FILE.with_suffix(".json")):
        found = parse(file, data)
        assert found.objects == []
        assert len(found.errors) <= 2


@pytest.mark.parametrize("text", [".inf", ".nan", "1e999", "0x50", "1:30", "-0", "0o7", "1_0"])
def test_odd_numbers_in_yaml(text: str) -> None:
    head = "kind: Service\nmetadata: {name: a}\n"
    found = parse(FILE, f"{head}spec: {{ports: [{{port: {text}}}, {{port: 81}}]}}".encode())
    (one,) = found.objects
    assert isinstance(one, Service)
    assert one.ports[-1].port == 81


def test_an_object_that_cannot_be_read_is_named() -> None:
    broken = {**service("bad"), "spec": 5}
    found = parse(FILE, yaml.safe_dump_all([service(), broken, service("c")]).encode())
    assert len(found.objects) == 2
    ((kind, key),) = found.malformed
    assert (kind, str(key)) == (Service, "ns1/bad")


def test_a_file_of_nothing_but_faults_is_told_in_bounds() -> None:
    found = parse(FILE.with_suffix(".json"), msgspec.json.encode({"items": [5] * 20_000}))
    assert len(found.errors) == 1000


def test_services_of_others_are_not_ours() -> None:
    knative = {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {}, "spec": 5}
    assert parse(FILE, yaml.safe_dump(knative).encode()) == parse(FILE, b"")


@given(st.binary(max_size=300))
def test_any_file_is_no_exception(data: bytes) -> None:
    for file in (FILE, FILE.with_suffix(".json")):
        parse(file, data)


@given(data=st.data())
@settings(max_examples=200)
def test_a_damaged_file_is_no_exception(data: st.DataObject) -> None:
    values = [
        service(type="LoadBalancer"),
        endpoint_slice(endpoints=[endpoint("10.0.0.1")]),
        node(),
    ]
    text = bytearray(yaml.safe_dump_all(values).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        text[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    parse(FILE, bytes(text))
