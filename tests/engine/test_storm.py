"""A storm of kills and expiring leases: no request in progress ever dies of them, and each counts exactly once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import psycopg
import pytest
from storm import REAPER_AGE, Aiming, Part, Reaper, Record, Unguarded, weather_by_processes, weather_by_threads
from support import entries

from serverless_pg_kit import Engine
from serverless_pg_kit.stats import Stats
from serverless_pg_kit.testing import PostgresServer

ENGINES = 10

REAPED = 8
"""So many of them have no lease: whenever they lose their connection, it was the reaper."""


@pytest.fixture
def reaper(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> Reaper:
    """A reaper that ends all that idle for a moment: far below the floor that protects new connections."""
    monkeypatch.setattr("serverless_pg_kit.decisions.cleaning.AGE_FLOOR", REAPER_AGE)
    return Reaper(make_engine(strategy="ranked", conn_utilization=0.0, census_ttl=0, statements=Aiming()))


def parts(fleet: str, server: PostgresServer, requests: int, strokes: int = 0, **names: Any) -> list[Part]:
    """Share out `requests` over ten engines of `fleet`; two of them have leases that end all the time. Each goes on
    until the reaper, or its lease, has struck it `strokes` times."""
    common: dict[str, Any] = {"conninfo": server.dsn, "application_name": fleet, "max_connections": 10_000} | names
    share = requests // ENGINES
    return [
        *(Part(common | {"strategy": "none"}, n, ENGINES, share, "losses", strokes) for n in range(REAPED)),
        *(Part(common | {"lease": 0.003}, n, ENGINES, share, "expirations", strokes) for n in range(REAPED, ENGINES)),
    ]


def total(records: Sequence[Record], name: str) -> int:
    """Return the sum of one of the counts."""
    assert name in Stats._fields
    return sum(getattr(record.stats, name) for record in records)


def check(records: Sequence[Record], superuser: psycopg.Connection[Any]) -> list[str]:
    """Check that the ledger has each written entry once and no other; return the errors that callers were told."""
    assert entries(superuser) == sorted(entry for record in records for entry in record.written)
    return [error for record in records for error in record.errors]


@pytest.mark.timeout(900)  # a slow machine takes long for so many requests
@pytest.mark.parametrize("weather", [weather_by_threads, weather_by_processes])
def test_no_request_dies_in_a_storm(
    server: PostgresServer,
    superuser: Any,
    ledger: str,
    reaper: Reaper,
    shell: Any,
    weather: Callable[[Sequence[Part]], list[Record]],
) -> None:
    """Ten engines in a tight loop, a reaper that takes whatever idles for a moment, and leases that end all the time:
    every request is served, and has written exactly once."""
    is_whole = server.version == 18 and shell is Engine and not os.environ.get("TEST_BRIEFLY")
    requests, kills = (20_000, 1_000) if is_whole else (2_000, 100)
    with reaper:
        records = weather(parts(reaper.fleet, server, requests, strokes=ceil(kills / REAPED)))
    assert check(records, superuser) == []
    assert sum(len(record.written) for record in records) >= requests
    assert reaper.kills >= kills
    assert total(records, "expirations") >= kills / 10


def test_without_the_guard_requests_die(server: PostgresServer, superuser: Any, ledger: str, reaper: Reaper) -> None:
    """In the same storm without the guard some request fails: the test above can fail. What callers are told is still
    the truth."""
    errors: list[str] = []
    with reaper:
        for _ in range(10):
            superuser.execute("truncate ledger")
            records = weather_by_threads(parts(reaper.fleet, server, 500, statements=Unguarded()))
            errors += check(records, superuser)
            if errors:
                break
    assert errors
