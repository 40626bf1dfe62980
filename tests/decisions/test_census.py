from __future__ import annotations

import pytest

from serverless_pg_kit.decisions.census import Census, census_interval, read_census

#        max_connections, reserves, role and database limit, used, role, database, fleet, idle
ROW = [100, 3, 2, -1, -1, 60, 40, 50, 30, 20]


def test_reserves_are_deducted() -> None:
    """The ceiling is what this role can use, not what the server was configured for."""
    census = read_census(ROW, None)
    assert (census.limit, census.room) == (95, 35)
    assert (census.fleet_used, census.fleet_idle) == (30, 20)


def test_setting_replaces_the_servers_ceiling() -> None:
    """`max_connections` is taken as it is."""
    assert read_census(ROW, 80).limit == 80


@pytest.mark.parametrize(
    ("role_limit", "database_limit", "room", "utilization"),
    [(-1, -1, 35, 60 / 95), (42, -1, 2, 40 / 42), (-1, 51, 1, 50 / 51), (42, 50, 0, 1.0)],
)
def test_scarcest_limit_counts(role_limit: int, database_limit: int, room: int, utilization: float) -> None:
    """Limits of role and database cut the room as the server's do; -1 is no limit."""
    census = read_census([100, 3, 2, role_limit, database_limit, *ROW[5:]], None)
    assert census.room == room
    assert census.utilization == pytest.approx(utilization)


def test_limit_of_zero_is_full() -> None:
    """A role that may not connect at all leaves no room, and nothing divides by zero."""
    assert Census(95, 0, None, 1, 1, 1, 1, 0).utilization == float("inf")


def test_fleet_of_any_size_asks_equally_often() -> None:
    """The interval grows with the number of connections, so the server's work does not."""
    per_second = [size / census_interval(6.0, size, dice=0.5) for size in (10, 100, 1000)]
    assert per_second == pytest.approx([10 / 6] * 3)


def test_ttl_of_zero_asks_every_time() -> None:
    """0 means 0."""
    assert census_interval(0.0, 500, dice=0.9) == 0.0
