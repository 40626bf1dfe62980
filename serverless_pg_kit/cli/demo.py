"""``serverless-pg-kit demo``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import click
import psycopg
from rich.console import Console

from serverless_pg_kit.simulator.acts import Scale
from serverless_pg_kit.simulator.contestants import examples_folder
from serverless_pg_kit.simulator.database import Database, embedded, existing
from serverless_pg_kit.simulator.demo import Result, kit_served_everything, perform
from serverless_pg_kit.simulator.display import PIPE_WIDTH, Display, table, verdict
from serverless_pg_kit.simulator.errors import DemoError
from serverless_pg_kit.simulator.zygote import Zygote
from serverless_pg_kit.testing import ServerError

FAILED, IMPOSSIBLE = 1, 2


@click.command()
@click.option("--containers", default=60, show_default=True, type=click.IntRange(2, 1000), help="Processes at most.")
@click.option("--slots", default=20, show_default=True, type=click.IntRange(5, 1000), help="max_connections.")
@click.option(
    "--seconds", default=6.0, show_default=True, type=click.FloatRange(0.5, 600), help="Traffic in each of 6 runs."
)
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same traffic.")
@click.option("--dsn", help="Use this server instead of a throw-away one; not one that others need: it gets filled.")
@click.pass_context
def demo(context: click.Context, containers: int, slots: int, seconds: float, seed: int, dsn: str | None) -> None:
    """Watch Lambda handlers on a small PostgreSQL, without the kit and with it.

    The handlers of the logistics example run in containers: real processes, one request at a time, frozen in between.
    Three acts (a burst, zombies, a thaw), each first with plain psycopg, then with the kit.

    Exit status: 0 if the kit served every request, 1 if not, 2 if the demo could not be played.
    """
    if dsn and context.get_parameter_source("slots") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--slots is for the throw-away server; with --dsn the server's own limit holds")
    try:
        with _terminable():
            results = _play(existing(dsn) if dsn else embedded(slots), containers, seconds, seed)
    except (DemoError, ServerError, psycopg.Error) as error:
        click.echo(f"The demo could not be played: {error}", err=True)
        context.exit(IMPOSSIBLE)
    context.exit(0 if kit_served_everything(results) else FAILED)


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exit in good order: the kernel would end the processes, but leave folders and tables."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _play(place: AbstractContextManager[Database], containers: int, seconds: float, seed: int) -> list[Result]:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    # The zygote is started first so that it imports while the server starts.
    with closing(Zygote(str(examples_folder()))) as zygote, place as database:
        console.print(_introduction(database, containers, seed), style="dim", highlight=False)
        with Display(console, Scale(containers, database.slots, seconds)) as display:
            results = perform(database, zygote, containers, seconds, seed, display)
        console.print(table(results))
        console.print(verdict(results))
    return results


def _introduction(database: Database, containers: int, seed: int) -> str:
    text = (
        f"PostgreSQL {database.version} with room for {database.slots} connections, up to {containers} containers, "
        f"seed {seed}."
    )
    if containers <= database.slots:
        text += "\nEvery container can have a connection here, so the first two acts show no shortage."
    if not database.can_restart:
        text += "\nThis server is not ours to restart: the third act only kills the connections."
    return text + "\n"
