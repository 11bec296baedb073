"""The texts by which service ports are known: never one for two, and read back as they were."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lbctl.model.names import PortName, port_text, shortened
from lbctl.model.records import ObjectKey

# Far more than any API server lets through, with what separates and escapes in every second one.
# Halves of surrogate pairs alone do not come this far: lbctl/model/lenient.py replaces them.
labels = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("/:%~ \0aA3"),
    min_size=1,
    max_size=12,
)
Port = tuple[ObjectKey, str, str, int]
ports = st.tuples(
    st.builds(ObjectKey, labels, labels),
    labels | st.just(""),
    st.sampled_from(("TCP", "UDP", "SCTP")),
    st.sampled_from((4, 6)),
)


def test_usual_names_stay_as_they_are() -> None:
    assert port_text(ObjectKey("a-b", "web.1"), "x_2", "TCP", 4) == "a-b/web.1:x_2/TCP/v4"
    assert port_text(ObjectKey("default", "web"), "", "UDP", 6) == "default/web/UDP/v6"


@given(ports, ports)
@example(
    (ObjectKey("default", "web:http"), "", "TCP", 4),
    (ObjectKey("default", "web"), "http", "TCP", 4),
)
@example((ObjectKey("a/b", "c"), "", "TCP", 4), (ObjectKey("a", "b/c"), "", "TCP", 4))
@example((ObjectKey("a", "b%3Ac"), "", "TCP", 4), (ObjectKey("a", "b:c"), "", "TCP", 4))
def test_two_ports_never_have_one_text(one: Port, other: Port) -> None:
    assert (port_text(*one) == port_text(*other)) == (one == other)


@given(ports)
def test_a_text_is_read_back(given: Port) -> None:
    key, port, protocol, family = given
    text = port_text(*given)
    found = PortName.parse(text)
    assert found == PortName(key.namespace, key.name, port, protocol, f"v{family}", text)
    assert found.owner == key
    assert text.isascii()
    assert text.isprintable()


@given(ports)
def test_a_port_is_found_by_what_is_shown_of_it(given: Port) -> None:
    found = PortName.parse(port_text(*given))
    assert all(map(found.matches, (found.text, found.label, found.service_label)))


@pytest.mark.parametrize("query", ["web:http", "default/web:http"])
def test_a_service_with_a_colon_in_its_name_is_not_the_port_of_another(query: str) -> None:
    assert PortName.parse("default/web:http/TCP/v4").matches(query)
    odd = PortName.parse(port_text(ObjectKey("default", "web:http"), "", "TCP", 4))
    assert not odd.matches(query)
    assert odd.matches("web%3Ahttp")


def test_a_shortened_text_still_says_whose_it_is() -> None:
    text = port_text(ObjectKey("n" * 63, "s" * 63), "p" * 63, "TCP", 4)
    short = shortened(text, 160)
    assert len(short.encode()) == 160
    assert PortName.parse(short).owner == ObjectKey("n" * 63, "s" * 63)
    assert PortName.parse(short).label == short


@given(ports)
def test_a_shortened_text_is_never_another_ports_own(
    given: Port,
) -> None:
    text = port_text(*given)
    short = shortened(text, len(text) - 1) if len(text) > 20 else text
    assert "~" not in text
    assert short == text or "~" in short


@pytest.mark.parametrize(
    "text", ["", "web", "service id 5", "a/b/c/d/e/f", "a/b:c:d/TCP/v4", "%z/%"]
)
def test_every_text_can_be_read(text: str) -> None:
    found = PortName.parse(text)
    assert found.text == text
    assert found.matches(text)
