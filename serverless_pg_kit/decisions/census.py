"""What one look at the server says about room, and when to look again."""

from __future__ import annotations

from typing import NamedTuple

FLEET_SHARE = 10
"""Connections for which one census per `census_ttl` is asked. A larger fleet asks less often by the same factor, so
that the server answers about as many per second whatever the size of the fleet."""


class Census(NamedTuple):
    """Sessions and limits as one statement saw them; all counts include the connection that asked.

    `limit` is what this role may use of the server, reserves deducted. `role_limit` and `database_limit` are the
    limits set by ALTER ROLE and ALTER DATABASE, or ``None``. `used` counts all clients' sessions of the server,
    `role_used` and `database_used` those that count towards the two limits, `fleet_used` and `fleet_idle` those of
    this role, database and application name. Sessions that are still logging in are not seen: an estimate.
    """

    limit: int
    role_limit: int | None
    database_limit: int | None
    used: int
    role_used: int
    database_used: int
    fleet_used: int
    fleet_idle: int

    @property
    def room(self) -> int:
        """How many more connections this role could open now; negative if others hold the reserves."""
        return min(limit - used for limit, used in self.limits)

    @property
    def utilization(self) -> float:
        """The share in use of the scarcest limit; 1.0 is full, infinity a limit of 0."""
        return max(used / limit if limit > 0 else float("inf") for limit, used in self.limits)

    @property
    def limits(self) -> list[tuple[int, int]]:
        """The limits that are set, each with what is used of it."""
        pairs = [
            (self.limit, self.used),
            (self.role_limit, self.role_used),
            (self.database_limit, self.database_used),
        ]
        return [(limit, used) for limit, used in pairs if limit is not None]


def read_census(row: list[int], max_connections: int | None) -> Census:
    """Return the census in `row` (the columns of `Statements.census`); `max_connections` replaces the server's."""
    server, superuser_reserve, reserve, role_limit, database_limit, *counts = row
    return Census(
        max_connections if max_connections is not None else server - superuser_reserve - reserve,
        None if role_limit < 0 else role_limit,
        None if database_limit < 0 else database_limit,
        *counts,
    )


def census_interval(census_ttl: float, fleet_size: int, dice: float) -> float:
    """Return the seconds until this connection's next census.

    Grows with the fleet and is spread by a quarter either way (`dice` in [0, 1)), so that containers which started
    together do not ask together.
    """
    return census_ttl * max(1.0, fleet_size / FLEET_SHARE) * (0.75 + dice / 2)
