"""A crowd in front of few slots, for long enough to settle: the kit beside what a good engineer writes by hand.

    python benchmarks/soak.py
    python benchmarks/soak.py --users 500x1.0,200x0 --slots 57 --contestants kit,module-level,per-request
    python benchmarks/soak.py --contestants per-request --kit strategy=ranked --kit backoff_cap=1.0,census_ttl=2

Every user has a container, and every container a client of its own. A user thinks, asks, waits for the answer and
thinks again; a request is ``pg_sleep`` in a transaction that is committed. Its latency runs from the moment the user
wants it, all waiting for a connection included. A user whose request was wanted before the measured time and has no
answer at its end is starved; such a request counts in the percentiles with the time it has waited so far.

Contestants: ``kit`` (an `Engine` for each container, ``max_wait=30``, otherwise defaults), ``module-level`` (psycopg,
one connection for each container, kept until it breaks) and ``per-request`` (psycopg, connect and close each time).
The latter two connect in a loop with jitter, exponential back-off and the kit's patience: 5 seconds for an attempt, 30
in all. ``--kit`` adds the kit with other settings. What the kit warns of is counted below the table, from beginning to
end of the run; other counts are those of the measured time.

Containers are threads of some processes here, nothing is frozen, and client and server share this machine's cores. In
one process hundreds of threads wait for one interpreter, and what they wait for is not the server; ``--processes`` are
16, because 32 gave much the same and take longer to start. Each is a session of
its own for Linux, which shares the CPU between sessions first (``sched_autogroup_enabled``): otherwise a client that
has its answer waits for the server's processes, with a slot in its hands, as no container does that has a CPU of its
own. The server asks for one iteration of SCRAM instead of 4096: they are work of the client alone, which in a fleet
every container does for itself (``--scram-iterations`` changes it; PostgreSQL 16 or newer). A server that cannot fork
fast enough overflows its listen queue, and TCP asks again after seconds: ``nstat TcpExtListenDrops`` counts that. The
figures are of this machine and no figures of AWS or of any network; compare the rows of one run.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable
from typing import Any, TypeVar

import click

from fleet.contestants import Contestant, parse_contestants, parse_variants
from fleet.report import final_text, run_text
from fleet.run import Run, Scenario, run
from fleet.scenario import parse_users
from serverless_pg_kit.testing import PostgresServer

RESERVED = 3  # slots that PostgreSQL keeps for superusers
Value = TypeVar("Value")


def parsed_by(parse: Callable[[Value], object]) -> Callable[[click.Context, click.Parameter, Value], object]:
    """Return a callback for click that takes a ``ValueError`` of `parse` for the user's mistake."""

    def callback(context: click.Context, parameter: click.Parameter, value: Value) -> object:
        try:
            return parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


def turns(contestants: list[Contestant], rounds: int) -> list[tuple[int, Contestant]]:
    """Return who plays when: all in each round, and each round begun by the next one."""
    starts = [number % len(contestants) for number in range(rounds)]
    return [
        (number, contestant)
        for number, start in enumerate(starts, start=1)
        for contestant in contestants[start:] + contestants[:start]
    ]


def allow_open_files() -> None:
    """Raise the limit of open files as far as we may: the usual 1024 are too few for hundreds of sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@click.command()
@click.option(
    "--users", default="500x1.0,200x0", show_default=True, callback=parsed_by(parse_users), help="COUNTxTHINK_SECONDS."
)
@click.option("--slots", default=57, show_default=True, type=click.IntRange(1, 1000), help="For an ordinary role.")
@click.option("--work", default=0.01, show_default=True, type=click.FloatRange(0, 60), help="Seconds of a request.")
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Of each run.")
@click.option("--warmup", default=5.0, show_default=True, type=click.FloatRange(0, 600), help="Seconds before them.")
@click.option("--processes", default=16, show_default=True, type=click.IntRange(1, 1000), help="Of the clients.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="Runs of each contestant.")
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same thinking.")
@click.option(
    "--contestants",
    default="kit,module-level,per-request",
    show_default=True,
    callback=parsed_by(parse_contestants),
    help="Who plays.",
)
@click.option(
    "--kit",
    "variants",
    multiple=True,
    metavar="NAME=VALUE,...",
    callback=parsed_by(parse_variants),
    help="The kit with these settings plays as well; may be repeated.",
)
@click.option("--scram-iterations", default=1, show_default=True, type=click.IntRange(1), help="PostgreSQL's: 4096.")
def main(
    slots: int, rounds: int, seed: int, contestants: Any, variants: Any, scram_iterations: int, **names: Any
) -> None:
    """Put a crowd of users in front of few slots, let the contestants serve it in turns, and say what came of it."""
    scenario = Scenario(**names)
    players: list[Contestant] = contestants + variants
    runs: dict[str, list[Run]] = {player.name: [] for player in players}
    settings = {"scram_iterations": scram_iterations}
    with PostgresServer(max_connections=slots + RESERVED, settings=settings) as server:
        click.echo(introduction(scenario, slots, server.version, seed))
        for number, player in turns(players, rounds):
            runs[player.name].append(run(server, player, scenario, f"{seed} {number}"))
            click.echo(f"\n{player.name}, round {number} of {rounds}\n{run_text(runs[player.name][-1])}")
    click.echo("\n" + final_text(runs, [player.name for player in players if player.plain]))


def introduction(scenario: Scenario, slots: int, version: int, seed: int) -> str:
    """Return the line that says what is measured, and on what."""
    return (
        f"users {', '.join(map(str, scenario.users))}; {slots} slots, {scenario.work * 1000:g} ms of work, "
        f"{scenario.seconds:g} s after {scenario.warmup:g} s, seed {seed}; {scenario.processes} client processes; "
        f"PostgreSQL {version}, Python {platform.python_version()}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    allow_open_files()
    main()
