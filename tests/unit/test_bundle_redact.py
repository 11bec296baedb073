"""No secret of any shape that occurs on a node gets through."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbctl.bundle.redact import GONE, redacted

PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow0123456789abcdef\nqwertz\n-----END RSA PRIVATE KEY-----"
)
JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJzdWIiOiJhZ2VudCJ9.c2lnbmF0dXJlLW9mLWl0"
SECRET = "hunter2-Zm9vYmFy"

SHAPES = [
    f"Authorization: Bearer {SECRET}",
    f"authorization: Basic {SECRET}",
    f"token: {SECRET}",
    f'    "token": "{SECRET}",',
    f"password={SECRET}",
    f"--token {SECRET} --node-name n",
    f"--bearer-token={SECRET}",
    f"BOOTSTRAP_TOKEN={SECRET}",
    f"client-key-data: {SECRET}",
    f"certificate-authority-data: {SECRET}",
    f"https://user:{SECRET}@api.example:6443/path",
    f'{{"api_server":"https://{SECRET}@api.example"}}',
    f"aws_secret_access_key = '{SECRET}'",
    f"apiKey: {SECRET}",
    PEM.replace("MIIEow0123456789abcdef", SECRET),
    json.dumps({"error": PEM.replace("MIIEow0123456789abcdef", SECRET)}),
    PEM.replace("MIIEow0123456789abcdef", SECRET).rpartition("-----END")[0],  # cut short
]


@pytest.mark.parametrize("text", SHAPES)
def test_it_is_gone(text: str) -> None:
    found = redacted(f"before\n{text}\nafter\n")
    assert SECRET not in found
    assert GONE in found
    assert "before" in found


def test_tokens_and_certificates_are_known_without_a_name() -> None:
    kubeconfig = base64.b64encode(PEM.encode()).decode()
    found = redacted(f"level=info said {JWT} and {kubeconfig} to nobody")
    assert JWT.split(".")[1] not in found
    assert kubeconfig[20:40] not in found
    assert found.endswith("to nobody")


@given(st.text(st.characters(codec="ascii", exclude_characters="\n\"'@,} \t\r"), min_size=8))
def test_any_value_of_such_a_name(value: str) -> None:
    marked = f"S3{value}"
    for text in (f"token: {marked}", f"password={marked}", f'"secret": "{marked}"'):
        assert marked not in redacted(text)


def test_the_rest_stays() -> None:
    text = (
        'node "worker-1" 10.96.0.1:443 https://10.0.0.1:6443/api default/web:http\n'
        "reasons: no_endpoint 3, flows_full 0; keys: 17, tokens\n"
    )
    assert redacted(text).startswith(text.partition(", tokens")[0])
