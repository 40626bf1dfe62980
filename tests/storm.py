"""A storm: busy engines that write a ledger, while a reaper ends whatever idles and leases run out.

Importable by itself, so that processes of their own can take part.
"""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from serverless_pg_kit import Engine, Statements
from serverless_pg_kit.stats import Stats

REAPER_AGE = 0.01
"""Seconds of idleness after which the reaper strikes."""

AIM = 0.001
"""Seconds between the moment in which the reaper chooses a victim and the one in which it strikes. Without that, it
would meet a request that begins meanwhile only now and then."""

PAUSES = 0.15
"""Share of the requests that pause before they begin. The others follow at once."""

PATIENCE = 10
"""An engine goes on for so many times its requests until it was struck as often as it has to be. How often that happens
in a number of requests is a question of the machine's speed."""


class Aiming(Statements):
    """The kit's statements, with a reaper that aims for long."""

    def reap(self, fleet: str, min_idle_seconds: float, limit: int | None, interval: float) -> str:
        reap = super().reap(fleet, min_idle_seconds, limit, interval)
        aiming = f"LEFT JOIN (SELECT pid, pg_catalog.pg_sleep({AIM}) FROM victim OFFSET 0) v"
        assert reap.count("LEFT JOIN victim v") == 1
        return reap.replace("LEFT JOIN victim v", aiming)


class Unguarded(Statements):
    """The kit's statements as they would be without the guard."""

    def lock(self, pid: int) -> str:
        return "NULL"


class Part(NamedTuple):
    """One engine's part in a storm: with these settings, at least so many `requests`, until its connection was ended
    `strokes` times in the way that counts as `stroke` in its stats. Its entries are `first` and then every `step`."""

    names: dict[str, Any]
    first: int
    step: int
    requests: int
    stroke: str = "losses"
    strokes: int = 0


class Record(NamedTuple):
    """What one engine's callers were told: the entries that were written, and the errors."""

    written: list[int]
    errors: list[str]
    stats: Stats


def weather(part: Part) -> Record:
    """Serve the requests of `part` on an engine of their own. Pauses straddle the reaper's age."""
    engine, dice = Engine(**part.names), random.Random(part.first)
    written: list[int] = []
    errors: list[str] = []
    for number in range(PATIENCE * part.requests):
        if number >= part.requests and getattr(engine.stats, part.stroke) >= part.strokes:
            break
        entry = part.first + number * part.step
        if dice.random() < PAUSES:
            time.sleep(REAPER_AGE * (0.5 + 4 * dice.random()))
        try:
            with engine.request() as conn:
                conn.execute("insert into ledger values (%s)", [entry])
            written.append(entry)
        except psycopg.Error as error:
            errors.append(f"{type(error).__name__}: {error}")
    engine.close()
    return Record(written, errors, engine.stats)


def weather_by_threads(parts: Sequence[Part]) -> list[Record]:
    """Serve all `parts` at once, each in a thread."""
    records: list[Record] = []
    threads = [threading.Thread(target=lambda part=part: records.append(weather(part))) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return records


def weather_by_processes(parts: Sequence[Part]) -> list[Record]:
    """Serve all `parts` at once, each in a process that was started afresh."""
    with multiprocessing.get_context("spawn").Pool(len(parts)) as pool:
        return pool.map(weather, parts, chunksize=1)


class Reaper(threading.Thread):
    """Makes room all the time, as an engine that finds every server crowded, inside its ``with`` block."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._over = threading.Event()

    @property
    def fleet(self) -> str:
        """The fleet whose sessions it ends."""
        return self._engine.settings.application_name

    @property
    def kills(self) -> int:
        """How many sessions it has ended."""
        return self._engine.stats.killed

    def run(self) -> None:
        """Serve one empty request after the other."""
        while not self._over.wait(0.001):
            self._engine.connect()
            self._engine.clean()

    def __enter__(self) -> Reaper:
        self.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._over.set()
        self.join()
