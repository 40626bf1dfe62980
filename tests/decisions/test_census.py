from __future__ import annotations

import pytest

from serverless_pg_kit.decisions.census import FLEET_SHARE, TIGHT_INTERVAL, Census, census_interval, read_census

#        max_connections, reserves, role and database limit, used, role, database, fleet, idle, new
ROW = [100, 3, 2, -1, -1, 60, 40, 50, 30, 20, 5]


def test_reserves_are_deducted() -> None:
    """The ceiling is what this role can use, not what the server was configured for."""
    census = read_census(ROW, None)
    assert (census.limit, census.room) == (95, 35)
    assert (census.fleet_used, census.fleet_idle, census.fleet_new) == (30, 20, 5)


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


def counted(used: int, limit: int = 10_000) -> Census:
    """Return a census of a server on which only the fleet is."""
    return Census(limit, None, None, used, used, used, used, 0)


def interval(census: Census, census_ttl: float = 6.0, calm: int = 9, dice: float = 0.5) -> float:
    """Return the interval after `calm` censuses that saw room."""
    return census_interval(census_ttl, census, 0.8, calm, dice)


def test_fleet_of_any_size_asks_equally_often() -> None:
    """The interval grows with the number of connections, so the server's work does not."""
    sizes = (FLEET_SHARE, 10 * FLEET_SHARE, 100 * FLEET_SHARE)
    assert [size / interval(counted(size)) for size in sizes] == pytest.approx([FLEET_SHARE / 6.0] * 3)
    full = [size / interval(counted(size, limit=size)) for size in sizes]
    assert full == pytest.approx([FLEET_SHARE / TIGHT_INTERVAL] * 3)


def test_peace_has_to_last_before_it_is_believed() -> None:
    """The first census on a connection is soon checked; after some that saw room the next may wait."""
    assert [interval(counted(1), calm=calm) for calm in range(5)] == pytest.approx([1.0, 2.0, 4.0, 6.0, 6.0])
    assert interval(counted(1), calm=10**6) == pytest.approx(6.0)


def test_short_room_is_watched_closely() -> None:
    """Whoever has a connection learns from the census alone that others have none."""
    assert interval(counted(9, limit=10)) == pytest.approx(TIGHT_INTERVAL)
    assert interval(counted(9, limit=10), census_ttl=0.2) == pytest.approx(0.2)


@pytest.mark.parametrize("dice", [0.0, 0.999])
def test_containers_that_started_together_do_not_ask_together(dice: float) -> None:
    """The interval is spread by a quarter either way."""
    assert interval(counted(1), dice=dice) == pytest.approx(6.0 * (0.75 + dice / 2))


def test_ttl_of_zero_asks_every_time() -> None:
    """0 means 0."""
    assert interval(counted(500), census_ttl=0.0, dice=0.9) == 0.0
