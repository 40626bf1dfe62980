"""The three stories, each of which is told twice: once to each contestant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from serverless_pg_kit.simulator.database import Database
from serverless_pg_kit.simulator.fleet import Fleet
from serverless_pg_kit.simulator.traffic import volleys


@dataclass(frozen=True, slots=True)
class Scale:
    """How big the demo is: containers at most, slots that their role may use, seconds of traffic for each run."""

    containers: int
    slots: int
    seconds: float


class Run:
    """One act for one contestant, under way. `say` tells the audience what happens."""

    def __init__(self, fleet: Fleet, database: Database, scale: Scale, rng: Random, say: Callable[[str], None]) -> None:
        self.fleet = fleet
        self.database = database
        self.scale = scale
        self.say = say
        self._rng = rng

    def volleys(self, function: str, size: int, count: int, share: float) -> None:
        """Send `count` volleys of `size` requests over `share` of the run's time, and wait for the answers."""
        beat = self.scale.seconds * share / count
        self.fleet.play(volleys(self._rng, function, size, count, beat))

    def rest(self, share: float) -> None:
        """Let every container sleep for `share` of the run's time."""
        self.fleet.rest(self.scale.seconds * share)


@dataclass(frozen=True, slots=True)
class Act:
    """A story: its name, what it is about, how many containers each function may have, and how it goes."""

    name: str
    story: str
    limits: Callable[[Scale], Mapping[str, int]]
    play: Callable[[Run], None]


def _burst(run: Run) -> None:
    few = max(1, run.scale.containers // 5)
    run.say(f"quiet: {few} containers are warm")
    run.volleys("shop", few, 3, 0.3)
    run.say(f"burst: ten times the traffic, on up to {run.scale.containers} containers")
    run.volleys("shop", 10 * few, 3, 0.7)


def _zombies(run: Run) -> None:
    orders, reports = _halves(run.scale).values()
    run.say(f"{orders} containers of 'orders' take what connections they can get")
    run.volleys("orders", orders, 2, 0.2)
    run.say("'orders' is no longer called: its containers are frozen, with their connections")
    run.rest(0.2)
    run.say(f"'reports' wakes up: {reports} containers need connections")
    run.volleys("reports", reports, 4, 0.6)


def _halves(scale: Scale) -> dict[str, int]:
    return {"orders": scale.containers - scale.containers // 2, "reports": scale.containers // 2}


def _thaw(run: Run) -> None:
    sleepers = _sleepers(run.scale)["shop"]
    run.say(f"{sleepers} containers get a connection each, and fall asleep")
    run.volleys("shop", sleepers, 2, 0.2)
    run.say("their connections are killed")
    run.database.kill_connections()
    run.rest(0.1)
    if run.database.can_restart:
        run.say("the server restarts")
        run.database.restart()
    run.rest(0.1)
    run.say("requests arrive, and the containers thaw")
    run.volleys("shop", sleepers, 4, 0.6)


def _sleepers(scale: Scale) -> dict[str, int]:
    """Few enough for all to have a connection, so that this act shows what it is about and not a full server."""
    return {"shop": min(scale.containers, scale.slots - 1)}


BURST = Act(
    "burst",
    "ten times the traffic arrives at once, on several times more containers than slots",
    lambda scale: {"shop": scale.containers},
    _burst,
)
ZOMBIES = Act(
    "zombies",
    "one function's containers hold connections while frozen; another function needs some",
    _halves,
    _zombies,
)
THAW = Act(
    "thaw",
    "connections die while their containers sleep; then requests arrive",
    _sleepers,
    _thaw,
)
ACTS = (BURST, ZOMBIES, THAW)
