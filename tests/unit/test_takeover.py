"""Sharing the machine: ports that are reserved, and whether kube-proxy's rules are there."""

from pathlib import Path

import pytest

from lbctl.host import leftovers, reserve, takeover


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "61000-61999"),
        ("8080,9000-9100", "8080,9000-9100,61000-61999"),
        ("61000-61998", "61000-61998,61000-61999"),
    ],
)
def test_ports_are_reserved_beside_those_that_are(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "reserved"
    path.write_text(before + "\n")
    assert reserve.reserve(61000, 61999, path)
    assert path.read_text() == after
    assert not reserve.reserve(61000, 61999, path)


@pytest.mark.parametrize("before", ["61000-61999", "1,60000-61500,61501-62000"])
def test_reserved_ports_are_not_written_again(tmp_path: Path, before: str) -> None:
    path = tmp_path / "reserved"
    path.write_text(before)
    assert not reserve.reserve(61000, 61999, path)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("outputs", "legacy", "expected"),
    [
        ({}, False, False),
        ({"nft": "table ip nat {\n\tchain KUBE-SERVICES {\n\t}\n}\n"}, False, True),
        ({"nft": "table ip kube-proxy {\n\tchain services {\n\t}\n}\n"}, False, True),
        ({"nft": "table ip nat {\n\tchain PREROUTING {\n\t}\n}\n"}, False, False),
        ({"nft": "table ip nat {\n\tchain KUBE-KUBELET-CANARY {\n\t}\n}\n"}, False, False),
        ({"nft": "table ip nat {\n\tchain KUBE-SVC-ABCDEFGH {\n\t}\n}\n"}, False, True),
        ({"iptables-nft-save": ":KUBE-SERVICES - [0:0]"}, False, True),
        ({"nft": "", "iptables-legacy-save": ":KUBE-SERVICES - [0:0]"}, True, True),
        ({"nft": "", "iptables-legacy-save": ":KUBE-SERVICES - [0:0]"}, False, False),
    ],
)
def test_kube_proxy_is_seen_in_any_of_its_modes(
    monkeypatch: pytest.MonkeyPatch, outputs: dict[str, str], legacy: bool, expected: bool
) -> None:
    monkeypatch.setattr(leftovers, "output", lambda *command, **_: outputs.get(command[0]))
    monkeypatch.setattr(leftovers, "legacy_tables", lambda _: ["nat"] if legacy else [])
    assert takeover.kube_proxy_rules() is expected


def test_the_answer_is_renewed_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [True, True, False]
    monkeypatch.setattr(takeover, "kube_proxy_rules", lambda: answers.pop(0))
    watcher = takeover.Watcher("auto")
    assert watcher.present
    assert not watcher.poll(now=0.0)
    assert watcher.due() == takeover.CHECK_SECONDS
    changed = []
    for i in range(1, 3):
        assert not watcher.poll(now=i * takeover.CHECK_SECONDS)
        assert watcher._errand.join(5)
        assert watcher.due() == 0.0
        changed.append(watcher.poll(now=i * takeover.CHECK_SECONDS + 1))
    assert changed == [False, True]
    assert not watcher.present


@pytest.mark.parametrize(("mode", "expected"), [("on", True), ("off", False)])
def test_a_given_answer_is_not_looked_for(
    monkeypatch: pytest.MonkeyPatch, mode: str, expected: bool
) -> None:
    def never() -> bool:
        raise AssertionError

    monkeypatch.setattr(takeover, "kube_proxy_rules", never)
    watcher = takeover.Watcher(mode)
    assert watcher.due() is None
    assert not watcher.poll(10**6)
    assert watcher.present is expected
