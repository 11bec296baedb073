"""When an Event is written, repeated, or not; by a clock that moves by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbctl.agent.telling import (
    FORGET_SECONDS,
    REPEAT_SECONDS,
    SETTLE_SECONDS,
    Complaint,
    Regarding,
    Telling,
    Tellings,
)

WEB = Regarding("Service", "default", "web", "1-2-3")
TAKEN = Complaint(WEB, "AddressTaken")


class Rig:
    def __init__(self) -> None:
        self.now = 1000.0
        self.tellings = Tellings()
        self.sent: list[Telling] = []

    def hold(self, *notes: tuple[Complaint, str]) -> None:
        self.tellings.take(dict(notes), self.now)

    def after(self, seconds: float) -> list[Telling]:
        """What is sent at the times that `due` names, until then."""
        end, sent = self.now + seconds, []
        while (due := self.tellings.due(self.now)) is not None and due <= end:
            self.now = max(self.now, due)
            telling = self.tellings.next(self.now)
            assert telling, "it was due"
            self.tellings.sent(telling, self.now)
            sent.append(telling)
        self.now = end
        return sent


def test_what_holds_is_said_once_and_then_repeated_as_a_series() -> None:
    rig = Rig()
    rig.hold((TAKEN, "web asks for what api has"))
    assert rig.after(SETTLE_SECONDS - 1) == []
    (told,) = rig.after(1)
    assert (told.complaint, told.note, told.times) == (TAKEN, "web asks for what api has", 0)
    assert rig.after(REPEAT_SECONDS - 1) == []
    (again,) = rig.after(1)
    assert (again.name, again.times) == (told.name, 2)
    (again,) = rig.after(REPEAT_SECONDS)
    assert again.times == 3


def test_what_is_over_soon_is_not_said() -> None:
    rig = Rig()
    rig.hold((TAKEN, "x"))
    rig.after(1)
    rig.hold()
    assert rig.after(1000) == []


def test_what_comes_and_goes_is_one_series() -> None:
    rig = Rig()
    rig.hold((TAKEN, "x"))
    assert len(rig.after(10)) == 1
    for _ in range(100):
        rig.hold()
        rig.after(1)
        rig.hold((TAKEN, "x"))
        assert rig.after(1) == []
    rig.hold()
    rig.after(FORGET_SECONDS)
    rig.hold()  # as an update of anything would
    rig.hold((TAKEN, "x"))
    assert [telling.times for telling in rig.after(10)] == [0]


def test_other_words_are_another_event_of_another_name() -> None:
    rig = Rig()
    rig.hold((TAKEN, "x"))
    (first,) = rig.after(10)
    rig.hold((TAKEN, "y"))
    (second,) = rig.after(10)
    assert (second.note, second.times) == ("y", 0)
    assert second.name != first.name


def test_names_are_the_same_on_every_node_and_after_a_restart() -> None:
    names = set()
    for _ in range(2):
        rig = Rig()
        rig.hold((TAKEN, "x"))
        names.add(rig.after(10)[0].name)
    (name,) = names
    assert name.startswith("web.")
    assert name.replace(".", "").isalnum()


def test_one_object_cannot_use_up_what_others_have() -> None:
    rig = Rig()
    other = Complaint(Regarding("Service", "default", "other"), "AddressTaken")
    for number in range(40):
        rig.hold((TAKEN, f"note {number}"))
        rig.after(SETTLE_SECONDS)
    rig.hold((TAKEN, "the last"), (other, "x"))
    assert other in [telling.complaint for telling in rig.after(60)]


def test_what_had_to_wait_is_said_in_its_last_words() -> None:
    rig = Rig()
    for number in range(40):
        rig.hold((TAKEN, f"note {number}"))
        rig.after(SETTLE_SECONDS)
    assert next(iter(rig.after(3600))).note == "note 39"


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.integers(0, 100)), max_size=60))
def test_however_it_goes_there_is_a_bound(changes: list[tuple[int, int, int]]) -> None:
    """Of all 25 at once and one in six seconds, besides repetitions; of one object 10."""
    rig = Rig()
    sent: list[tuple[float, Telling]] = []
    for seconds, which, note in changes:
        sent += [(rig.now, telling) for telling in rig.after(seconds)]
        keys = [Complaint(Regarding("Service", "default", f"s{n}"), "R") for n in range(which)]
        rig.hold(*((key, f"note {note}") for key in keys))
    sent += [(rig.now, telling) for telling in rig.after(60)]
    passed = rig.now - 1000.0
    new = [telling for _, telling in sent if not telling.times]
    assert len(new) <= 25 + passed / 6
    for name in ("s0", "s1", "s2"):
        about = [telling for telling in new if telling.complaint.regarding.name == name]
        assert len(about) <= 10 + passed / 300
