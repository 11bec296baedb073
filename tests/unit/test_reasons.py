"""Every reason of the C code has its sentence, and no sentence is about nothing."""

from __future__ import annotations

from ebpf.compile import constants, source
from lbctl.datapath.reasons import SENTENCES, VERDICTS, reason_names, sentence, verdict


def test_complete() -> None:
    """`bundle.enums` is made from this file, and checked against it by the compiler."""
    enums = constants.constants((source.source_dir() / "consts.h").read_text())
    assert set(SENTENCES) == set(reason_names(enums).values())


def test_every_reason_has_one_verdict() -> None:
    judged = [reason for reasons in VERDICTS.values() for reason in reasons]
    assert sorted(judged) == sorted(SENTENCES)
    assert verdict("of_the_future") == "unknown"


def test_sentences_are_sentences() -> None:
    for text in SENTENCES.values():
        assert text[0].isupper()
        assert text.endswith(".")
    assert len(set(SENTENCES.values())) == len(SENTENCES)


def test_an_unknown_reason_has_none() -> None:
    assert sentence("of_the_future") == ""
    assert sentence("forwarded")
