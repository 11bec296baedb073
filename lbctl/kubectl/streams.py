"""`observe` on several nodes at once: their lines by time, each with its node, and what was lost.

Each node's stream is ended by a line on its standard input, since `kubectl exec` hands on no
signal: so all that was told before still comes, with how many events were lost.
"""

from __future__ import annotations

import contextlib
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import IO, NamedTuple

from lbctl.kubectl import commands
from lbctl.kubectl.interleaving import Interleaver
from lbctl.kubectl.podnames import PodNames

HOLD_SECONDS = 0.5
START_SECONDS = 3.0  # until all have told their past
BESIDE_SECONDS = 0.5
USED_WRONGLY = 2  # lbctl returns
REST_SECONDS = 15.0  # they have for what is left
_LOOK_SECONDS = 0.25
_QUEUED = 10_000  # lines; who is read no faster is told so, by the agent
_AT_ONCE = 1000
_LOST = re.compile(r"(?:note: )?(\d+) events have been lost so far")
_LAST = re.compile(r"\d+ events? (?:was|were) shown, (\d+) lost")
_TIME = re.compile(r'"time":"([^"]+)"')
_CLOCK = re.compile(r"(\d\d):(\d\d):(\d\d\.\d{3}) ")
_DAY = 86_400
_PAST = ("--last", "--since")


class Told(NamedTuple):
    """Something from a node: a line of its output ("out"), or beside that ("err"), or its end
    ("end") with what kubectl returned."""

    node: str
    kind: str
    text: str


class Beside:
    """What a node said that is no event; it waits until then whether the node goes."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.lines: list[str] = []


class Following:
    """All that is known of the streams while they run."""

    def __init__(
        self, nodes: Sequence[str], command: Sequence[str], names: PodNames | None
    ) -> None:
        self._output = commands.value_of(command, "-o", "--output") or "compact"
        self._names = names
        self._width = max(map(len, (*nodes, "NODE")))
        self._last, self._live = _past(command)
        self._lines = Interleaver(nodes)
        self._began = time.monotonic() if commands.value_of(command, *_PAST) else float("-inf")
        self._moment = 0.0
        self._titled = False
        self._shown = dict.fromkeys(nodes, 0)
        self._lost: dict[str, int] = dict.fromkeys(nodes, 0)
        self._unknown = {*nodes}  # whose last figure has not come
        self._beside: dict[str, Beside] = {}
        self._misuse: list[str] = []
        self.codes: dict[str, int] = {}
        self.ending = False

    @property
    def running(self) -> set[str]:
        """Nodes whose streams have not ended."""
        return {*self._shown} - {*self.codes}

    def take(self, told: Told, now: float) -> Iterable[str]:
        """What is to be said of it at once, on stderr."""
        node = told.node
        if told.kind == "out":
            self._out(node, told.text, now)
        elif told.kind == "end":
            return self._ended(node, int(told.text))
        elif found := _LAST.fullmatch(told.text):
            self._lost[node] = int(found[1])
            self._unknown.discard(node)
        else:
            if found := _LOST.fullmatch(told.text):
                self._lost[node] = int(found[1])
            self._beside.setdefault(node, Beside(now + BESIDE_SECONDS)).lines.append(told.text)
        return ()

    def beside(self, now: float) -> Iterator[str]:
        """What nodes said beside their events, once it is not the end of a wrong use."""
        for node in [node for node, said in self._beside.items() if said.until <= now]:
            yield from (f"{node}: {text}" for text in self._beside.pop(node).lines)

    def given_up(self) -> Iterator[str]:
        """What is to be said of those that do not end."""
        for node in sorted(self.running):
            self.codes[node] = 1
            self._lines.gone(node)
            yield f"{node}: its stream has not ended in {REST_SECONDS:g} s"

    def lines(self, now: float) -> Iterator[str]:
        """Those whose turn it is. Of the past alone, all at the end: it is told at once, and of
        several nodes' last events the last are meant."""
        if not self._live and self.running:
            return
        found = [*self._lines.ready(now)]
        for line in found[-self._last :] if self._last else found:
            if line.text.startswith('{"lost":'):
                yield _with_node(line.source, line.text)
                continue
            self._shown[line.source] += 1
            yield self._told(line.source, line.text)

    def wait(self, now: float) -> float:
        """How long there is nothing to do, whatever comes."""
        due = self._lines.due()
        return _LOOK_SECONDS if due is None else min(_LOOK_SECONDS, max(0.0, due - now))

    def sums(self) -> Iterator[str]:
        """What is said last: one figure."""
        if {*self.codes.values()} == {USED_WRONGLY}:
            return
        if len(self._shown) > 1:
            for node, shown in self._shown.items():
                unknown = [node] if node in self._unknown else []
                yield f"{node}: {_sum(shown, self._lost[node], unknown)}"
        yield _sum(sum(self._shown.values()), sum(self._lost.values()), sorted(self._unknown))

    def _out(self, node: str, text: str, now: float) -> None:
        if self._output == "table" and text.startswith("TIME "):
            if not self._titled:
                self._titled = True
                print(f"{'NODE':<{self._width}}  {text}")
            return
        until = max(now + HOLD_SECONDS, self._began + START_SECONDS)
        self._lines.add(node, self._time_of(text), text, until)

    def _ended(self, node: str, code: int) -> Iterator[str]:
        self._lines.gone(node)
        self.codes[node] = code
        said = self._beside.pop(node, Beside(0.0)).lines
        if code == USED_WRONGLY:  # all nodes say the same, and it is about no node
            if said != self._misuse:
                yield from said
            self._misuse = said
            return
        yield from (f"{node}: {text}" for text in said)
        if node in self._unknown and not self.ending:
            others = ", the others go on" if self.running else ""
            yield f"{node}: gone (exit code {code}){others}"

    def _time_of(self, text: str) -> float:
        """-inf of what has none: it stays where it is."""
        if self._output == "json":
            found = _TIME.search(text)
            return datetime.fromisoformat(found[1]).timestamp() if found else float("-inf")
        clock = _CLOCK.match(text)
        if clock is None:
            return float("-inf")
        moment = int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
        if self._moment:  # midnight may have come
            moment += round((self._moment - moment) / _DAY) * _DAY
        self._moment = moment
        return moment

    def _told(self, node: str, text: str) -> str:
        if self._output != "json":
            named = self._names.in_text(text) if self._names else text
            return f"{node:<{self._width}}  {named}"
        return _with_node(node, self._names.in_json(text) if self._names else text)


def _with_node(node: str, line: str) -> str:
    """An object on a line, with the node in front."""
    return f'{{"node":"{node}",{line[1:]}'


def _past(command: Sequence[str]) -> tuple[int, bool]:
    """How many events of the past at most (0: all), and whether it goes on after them."""
    live = not commands.value_of(command, *_PAST) or bool({"-f", "--follow"} & {*command})
    last = commands.value_of(command, "--last")
    return (0 if live or not last.isdigit() else int(last)), live


def _sum(shown: int, lost: int, unknown: Sequence[str]) -> str:
    said = "1 event was" if shown == 1 else f"{shown} events were"
    if not unknown:
        return f"{said} shown, {lost} lost"
    return f"{said} shown, at least {lost} lost: not all is known of {', '.join(unknown)}"


def follow(
    processes: Mapping[str, Sequence[str]], command: Sequence[str], names: PodNames | None
) -> int:
    """Run what shows each node's stream until all have ended; returns the largest exit code."""
    following = Following([*processes], command, names)
    told: queue.Queue[Told] = queue.Queue(_QUEUED)
    with _running(processes) as running, _interrupts() as interrupted:
        for node, process in running.items():
            threading.Thread(target=_read, args=(node, process, told), daemon=True).start()
        until = float("inf")
        while following.running and time.monotonic() < until:
            if interrupted.is_set() and not following.ending:
                following.ending = True
                until = time.monotonic() + REST_SECONDS
                for process in running.values():
                    _end(process)
            _step(following, told)
        _say(following.beside(float("inf")))
        _say(following.given_up())
        _print(following.lines(float("inf")))
    _say(following.sums())
    return max(following.codes.values(), default=0)


def _say(texts: Iterable[str]) -> None:
    for text in texts:
        print(text, file=sys.stderr)


def _step(following: Following, told: queue.Queue[Told]) -> None:
    """Take what has come, wait a little if it is nothing, and print what can be."""
    with contextlib.suppress(queue.Empty):
        item = told.get(timeout=following.wait(time.monotonic()))
        for _ in range(_AT_ONCE):
            _say(following.take(item, time.monotonic()))
            item = told.get_nowait()
    _say(following.beside(time.monotonic()))
    _print(following.lines(time.monotonic()))


def _print(lines: Iterator[str]) -> None:
    if text := "".join(f"{line}\n" for line in lines):
        sys.stdout.write(text)
        sys.stdout.flush()


Process = subprocess.Popen[str]


@contextlib.contextmanager
def _running(processes: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Process]]:
    """Those of another process group: a Ctrl-C is for this process alone."""
    running: dict[str, Process] = {}
    try:
        for node, argv in processes.items():
            running[node] = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        yield running
    finally:
        for process in running.values():
            _end(process)
            if process.poll() is None:
                process.kill()
            process.wait()


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Set by Ctrl-C and SIGTERM; a second one ends at once."""
    interrupted = threading.Event()

    def note(number: int, _: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        interrupted.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: Process) -> None:
    """The other side ends at a line, wherever closing alone is not handed on."""
    assert process.stdin is not None
    if process.stdin.closed:
        return
    with contextlib.suppress(OSError):  # it has ended already
        process.stdin.write("\n")
        process.stdin.close()


def _read(node: str, process: Process, told: queue.Queue[Told]) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    beside = threading.Thread(
        target=_pass_on, args=(node, "err", process.stderr, told), daemon=True
    )
    beside.start()
    _pass_on(node, "out", process.stdout, told)
    beside.join()
    code = process.wait()
    told.put(Told(node, "end", str(code if code >= 0 else 128 - code)))  # as shells say it


def _pass_on(node: str, kind: str, stream: IO[str], told: queue.Queue[Told]) -> None:
    with stream:
        for line in stream:
            told.put(Told(node, kind, line.rstrip("\n")))
