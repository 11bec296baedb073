"""The programs: loaded while something else is done, since the kernel takes a second to check them
and needs no interpreter for that; then put in place, for which nothing waits either. And again,
when maps got another size. Of a first start's programs those come last that no packet gets to."""

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from ebpf import programs
from ebpf.errors import LbError
from ebpf.instance import Instance
from ebpf.kernel import grace
from ebpf.layouts import Bundle
from ebpf.programs import Generation
from lbctl.agent.carrying import Carrying
from lbctl.agent.interfaces import Interfaces
from lbctl.agent.keeper import Keeper
from lbctl.agent.sockets import SocketHooks

LOADING_SECONDS = 120.0  # a second or two where nothing else is done
_LEAVES = 5.0


class LaterGeneration:
    """`programs.load_generation` in a thread of its own. `close` once.

    Once they are `wanted`, steps follow from each other: loaded, on all interfaces, and then
    whatever was there before is let go.
    """

    def __init__(
        self,
        bundle: Bundle,
        instance: Instance,
        interfaces: Interfaces,
        sockets: SocketHooks,
        keeper: Keeper,
        carrying: Carrying,
    ) -> None:
        """Every map of `instance` must have been opened when it is begun."""
        # Called when larger maps took the place of others, and when those are gone.
        self.maps_changed: Callable[[], None] = lambda: None
        self._bundle = bundle
        self._instance = instance
        self._interfaces = interfaces
        self._sockets = sockets
        self._carrying = carrying
        self._wanted: float | None = None  # since when
        self._coming: Generation | None = None  # loaded, not everywhere yet
        self._given = False  # ... but on its way there
        self._placed: Generation | None = None
        self._coming_key = self._placed_key = ""
        self._before: Generation | None = None  # what that took the place of
        self._reloading = False
        self._finishing = False
        self.began: float | None = None
        self.failure: BaseException | None = None  # then there is nothing to go on for
        self._stopping = threading.Event()
        self._errand = keeper.errand("loading programs", LOADING_SECONDS)

    def begin(self) -> None:
        """Have the kernel take them; once, and not before maps are as large as they have to be."""
        if self.began is None:
            self.began = time.monotonic()
            self._errand.send(self._load)

    @property
    def loaded(self) -> bool:
        """Whether the kernel has taken them."""
        return self._coming is not None or self._placed is not None

    @property
    def placed(self) -> bool:
        """Whether programs are on interfaces and sockets, where that was possible."""
        return self._placed is not None

    @property
    def in_place(self) -> Mapping[str, int]:
        """The entry programs that are in their places, by name."""
        return self._placed.fds if self._placed is not None else {}

    @property
    def descriptors(self) -> list[int]:
        """Of every entry program that an interface may run, also while others take their place."""
        known = (self._before, self._placed, self._coming)
        return [fd for one in known if one is not None for fd in tuple(one.fds.values())]

    @property
    def fit(self) -> bool:
        """Whether those in place are for the maps as they are."""
        return self._placed_key == programs.generation_key(self._bundle, self._instance)

    def alone(self) -> bool:
        """Whether no others run anywhere, on an interface that did not take these, say."""
        programs.drop_other_generations(self._bundle, self._instance)
        return programs.count_generations(self._instance) == 1

    @property
    def settled(self) -> bool:
        """Whether those in place are on the maps as they are, and none are on their way."""
        return self._placed is not None and not self._reloading and not self._finishing

    def attach(self) -> None:
        """From now on they are wanted in their places; `placed` says when they are."""
        self._wanted = self._wanted or time.monotonic()

    def reload(self) -> bool:
        """Load them on the maps as they are now, and put those in place of the others; `settled`
        says when they are. False, and nothing is done, while that would be too much at once."""
        if not self.settled or not self._errand.send(self._load):
            return False
        self._reloading, self._wanted = True, time.monotonic()
        return True

    def due(self) -> float | None:
        """At once, if there is a next step."""
        if self._wanted is None:
            return None
        if self._coming is None:
            # What its thread did, or could not do, it has told.
            waits = self._reloading or self._finishing
            return 0.0 if waits and not self._errand.busy else None
        if not self._given:
            return 0.0
        return 0.0 if self._interfaces.placed is self._coming else None

    def step(self, now: float) -> None:
        """Hand them on, or let go of those before."""
        busy = self._errand.busy  # asked first: what it loads is there when it is not
        coming = self._coming
        if self._wanted is None:
            return
        if coming is None:
            if self._finishing and not busy:
                self._finish()
            self._reloading = self._reloading and busy
        elif not self._given:
            self._given = True
            self._instance.switch()
            self.maps_changed()
            self._sockets.attach(coming)
            self._interfaces.attach_all(coming)
        elif self._interfaces.placed is coming:
            self._before, self._placed = self._placed, coming
            self._placed_key = self._coming_key
            self._coming, self._given, self._reloading = None, False, False
            self._finishing = True
            self._errand.send(self._carry)
            structlog.get_logger().info(
                "programs in place",
                interfaces=self._interfaces.attached,
                milliseconds=round((time.monotonic() - self._wanted) * 1000, 1),
            )

    def restore_pins(self) -> list[str]:
        """Pin what somebody unpinned of the programs; returns where. Raises LbError."""
        if not self.placed or self._placed is None:
            return []
        return programs.restore_pins(self._placed, self._placed_key, self._instance)

    def restore_calls(self) -> list[str]:
        """Put back what somebody took out of the program arrays; returns which programs."""
        if not self.placed or self._placed is None:
            return []
        return self._placed.restore_arrays(self._bundle.tail_programs())

    def _finish(self) -> None:
        """Nothing runs any more but what is in place."""
        self._finishing = False
        self._instance.finish()
        self._instance.forget_flow_tables()
        self.maps_changed()
        programs.drop_other_generations(self._bundle, self._instance)
        if self._before is not None:
            self._before.close()
            self._before = None

    def close(self) -> None:
        """Let go of the programs; what is pinned or linked lives on. Waits for those that the
        kernel checks at this moment."""
        self._stopping.set()
        if self._errand.join(_LEAVES):
            for generation in (self._coming, self._placed, self._before):
                if generation is not None:
                    generation.close()

    def _load(self) -> None:
        try:
            key = programs.generation_key(self._bundle, self._instance)
            loaded = programs.load_generation(
                self._bundle, self._instance, lists=self._may_have_flows(), stopping=self._stopping
            )
            self._coming_key = key
            self._carrying.carry()
            self._coming = loaded
        except BaseException as error:
            if self._placed is not None:
                raise  # what is in place goes on; the errand says what happened
            self.failure = error

    def _may_have_flows(self) -> bool:
        """Else nobody has a list of them to run programs over, and they can come later."""
        return programs.count_generations(self._instance) > 0 or self._carrying.expected

    def _carry(self) -> None:
        assert self._placed is not None
        try:
            programs.load_lists(self._placed, self._bundle, self._instance, self._stopping)
        except LbError as error:
            self.failure = error
            raise
        grace.wait()  # until nobody runs those before
        self._carrying.carry()
