"""All of it in order: every act, first with plain psycopg, then with the kit, on the same server."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from random import Random
from typing import Protocol

from serverless_pg_kit.simulator.acts import ACTS, Act, Run, Scale
from serverless_pg_kit.simulator.contestants import BOTH, KIT, Contestant
from serverless_pg_kit.simulator.database import Database
from serverless_pg_kit.simulator.fleet import Fleet
from serverless_pg_kit.simulator.measure import Tally
from serverless_pg_kit.simulator.zygote import Zygote


@dataclass(frozen=True, slots=True)
class Result:
    """One act with one contestant: what came of it so far."""

    act: Act
    contestant: Contestant
    tally: Tally


class Audience(Protocol):
    """Whoever watches. Called from the loop that measures, so it has to be quick."""

    def begin(self, result: Result, fleet: Fleet) -> None:
        """A run begins; `result` and `fleet` change while it lasts."""

    def say(self, text: str) -> None:
        """Something else happens from here on."""

    def refresh(self) -> None:
        """Time has passed."""

    def end(self) -> None:
        """The run is over."""


def perform(
    database: Database, zygote: Zygote, containers: int, seconds: float, seed: int, audience: Audience
) -> list[Result]:
    """Play all acts with both contestants and return the results in that order.

    Raises `DemoError` or `psycopg.Error` if containers cannot be started or the server cannot be prepared or watched.
    """
    scale = Scale(containers, database.slots, seconds)
    results = [Result(act, contestant, Tally()) for act in ACTS for contestant in BOTH]
    for result in results:
        zygote.reap()
        database.prepare()
        _play(result, database, zygote, scale, seed, audience)
    return results


def kit_served_everything(results: list[Result]) -> bool:
    """Tell whether no request failed with the kit."""
    return not any(result.tally.failed for result in results if result.contestant is KIT)


def _play(result: Result, database: Database, zygote: Zygote, scale: Scale, seed: int, audience: Audience) -> None:
    act, contestant = result.act, result.contestant

    def observe() -> None:
        result.tally.connected(database.connections())
        audience.refresh()

    fleet = Fleet(
        lambda function: zygote.spawn(contestant.module, contestant.environment(function, database.dsn)),
        act.limits(scale),
        result.tally,
        observe,
    )
    with closing(fleet):
        audience.begin(result, fleet)
        # Seeded by the act alone: both contestants meet the same arrivals.
        act.play(Run(fleet, database, scale, Random(f"{seed} {act.name}"), audience.say))
        observe()
        audience.end()
