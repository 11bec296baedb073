"""Taking secrets out of text, whatever it is from. Rather too much than too little."""

from __future__ import annotations

import re
from typing import Final

GONE: Final = "[removed]"

_NAMES = (
    r"[\w.-]*(?:token|passw(?:or)?d|secret|credential|authorization|api-?key|private-?key"
    r"|key-data|certificate[\w-]*data|cookie-?value)[\w.-]*"
)
_PATTERNS: Final = (
    # Certificates and keys, whole; also in a JSON string, where lines end in \n.
    (re.compile(r"-----BEGIN [^-]+-----.*?(?:-----END [^-]+-----|\Z)", re.DOTALL), GONE),
    # JSON web tokens, which is what service accounts have.
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), GONE),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {GONE}"),
    # Base64 of a PEM block, as kubeconfigs have certificates.
    (re.compile(r"\bLS0tLS1CRUdJTi[\w+/=]+"), GONE),
    # Who logs in by an URL.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@\"']+@"), rf"\1{GONE}@"),
    # NAME: value, NAME=value, "NAME": "value", --NAME value.
    (
        re.compile(
            rf"(?i)((?<![\w.-])[\"']?{_NAMES}[\"']?\s*[:=]\s*)(\"[^\"]*\"|'[^']*'|[^\s,}}]+)"
        ),
        rf"\1{GONE}",
    ),
    (re.compile(rf"(?i)(--{_NAMES}[ \0])(\S+)"), rf"\1{GONE}"),
)


def redacted(text: str) -> str:
    """The text without what looks like a secret."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text
