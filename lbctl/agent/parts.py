"""What an agent consists of, once everything is open."""

from dataclasses import dataclass

from ebpf.instance import Instance
from lbctl.agent.beat import Beat
from lbctl.agent.facts import Facts
from lbctl.agent.fastpath import FastPath
from lbctl.agent.generation import LaterGeneration
from lbctl.agent.growth import Growth
from lbctl.agent.interfaces import Interfaces
from lbctl.agent.keeper import Keeper
from lbctl.agent.loop import Guard
from lbctl.agent.routine import Routine
from lbctl.agent.sockets import SocketHooks
from lbctl.agent.stalesockets import StaleSockets
from lbctl.agent.syncs import Syncs
from lbctl.config.watch import FollowedFile
from lbctl.health.monitor import Health
from lbctl.host.takeover import Watcher
from lbctl.model.updates import Source
from lbctl.observe.hub import Hub
from lbctl.reconcile.reconciler import Reconciler


@dataclass(frozen=True, slots=True)
class Parts:
    """Each does its own work; `lbctl.agent.control` lets one follow from another."""

    instance: Instance
    programs: LaterGeneration
    growth: Growth
    source: Source
    config: FollowedFile | None  # of the file behind --config, if there is one
    interfaces: Interfaces
    sockets: SocketHooks
    takeover: Watcher
    facts: Facts
    reconciler: Reconciler
    stale: StaleSockets
    beat: Beat
    fast_path: FastPath
    routine: Routine
    health: Health
    keeper: Keeper
    guard: Guard
    syncs: Syncs
    hub: Hub
