"""``flask pg status`` and ``flask pg clean``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
import psycopg
from flask.cli import AppGroup

from serverless_pg_kit import Census, CleanReport, Engine
from serverless_pg_kit.stats import Stats

if TYPE_CHECKING:
    from serverless_pg_kit_flask.extension import ServerlessPg

LIMITS = ("server", "role", "database")
"""Who limits the number of connections."""


def command_group(pg: ServerlessPg, name: str) -> AppGroup:
    """Return the command `name` with its subcommands, which act on the engine of the current app."""
    group = AppGroup(name, help="Connections of this app to PostgreSQL.")

    @group.command()
    def status() -> None:
        """Count the sessions of the server, and show what room there is."""
        with told():
            for line in (*describe_census(pg.engine, take_census(pg.engine)), *describe_stats(pg.engine.stats)):
                click.echo(line)

    @group.command()
    def clean() -> None:
        """End idle sessions of the fleet if room is short, as a request does at its end."""
        with told():
            for line in describe_clean(clean_once(pg.engine)):
                click.echo(line)

    return group


@contextmanager
def told() -> Iterator[None]:
    """Turn an error of the database into a message and exit status 1."""
    try:
        yield
    except psycopg.Error as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from None


def take_census(engine: Engine) -> Census | None:
    """Return a census, or ``None`` where there is none. Raises what `Engine.request` raises."""
    try:
        return engine.census()
    except RuntimeError:  # a pooler stands between, or the server refused it
        return None


def clean_once(engine: Engine) -> CleanReport:
    """Return what the end of a request did about room."""
    engine.close()  # a new connection counts in any case
    scope = engine.scope(join=False)
    scope.connection  # noqa: B018 - the touch connects
    return scope.end()


def describe_census(engine: Engine, census: Census | None) -> Iterator[str]:
    """Yield what `census` tells, line by line."""
    settings = engine.settings
    yield line("fleet", f"{settings.application_name}, strategy {settings.strategy!r}, max_size {settings.max_size}")
    if census is None:
        yield line("sessions", "unknown: a pooler stands between, or the server refused the census (see the log)")
        return
    yield line("sessions", f"{census.fleet_used} of the fleet, {census.fleet_idle} of them idle")
    for name, (used, limit) in zip(LIMITS, limits(census), strict=True):
        if limit is not None:
            yield line(name, f"{used} of {limit} in use")
    verdict = "room is made" if census.utilization > settings.conn_utilization else "enough"
    yield line("room", f"{census.room} more; {census.utilization:.0%} in use, {verdict}")


def limits(census: Census) -> list[tuple[int, int | None]]:
    """Return what is used of each of `LIMITS`, and that; ``None``: it has not been set."""
    return [
        (census.used, census.limit),
        (census.role_used, census.role_limit),
        (census.database_used, census.database_limit),
    ]


def describe_stats(stats: Stats) -> Iterator[str]:
    """Yield what happened in this process, as far as anything did."""
    counts = {name: value for name, value in stats._asdict().items() if value}
    yield line("process", ", ".join(f"{name} {round(value, 3)}" for name, value in counts.items()) or "nothing yet")


def describe_clean(report: CleanReport) -> Iterator[str]:
    """Yield what was done about room."""
    ended = ", ".join(map(str, report.killed)) or "nobody"
    yield line("ended", ended)
    yield line("own", f"{report.decision}: {report.reason}")
    if report.census is not None:
        yield line("room", f"{report.census.room} more before that; {report.census.utilization:.0%} in use")


def line(name: str, text: str) -> str:
    """Return a line whose texts begin in one column."""
    return f"{name:<10}{text}"
