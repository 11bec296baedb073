"""What the page asks for, by path."""

from __future__ import annotations

from pathlib import Path

from lbctl.errors import UsageError
from lbctl.observe.places import Places
from lbctl.resolve.why import Origin
from lbctl.ui.overview import Looks
from lbctl.ui.recent import Events
from lbctl.ui.server import Answers, Query
from lbctl.verify import answers, origins
from lbctl.verify.explain import Explanation
from lbctl.verify.objects import Question, find, know


class Asked:
    """Of one instance."""

    def __init__(self, pin_dir: Path) -> None:
        self._pin_dir = pin_dir
        self._looks = Looks(pin_dir, Places.of_agent(pin_dir))
        self._events = Events(pin_dir)

    @property
    def answers(self) -> Answers:
        """For the server."""
        return {
            "/api/overview": lambda query: self._looks.latest(),
            "/api/events": self._recent,
            "/api/explain": self._explain,
        }

    def close(self) -> None:
        """Listen no more."""
        self._events.close()

    def _recent(self, query: Query) -> object:
        number = query.get("after", "0")
        if not (number.isascii() and number.isdigit()):
            raise UsageError(f"{number!r} is not the number of an event")
        return self._events.after(int(number))

    def _explain(self, query: Query) -> Explanation:
        """The objects as they are now: this asks the API server. `from` as of `lbctl explain`."""
        known = know(Question(pin_dir=self._pin_dir), lambda text: None)
        found, port = find(known.services, query.get("service", ""))
        origin, note = origins.origin(query.get("from", Origin.POD.value), known)
        notes = [note] if note else []
        return answers.explained(found, known, origin, port, self._pin_dir, notes)
