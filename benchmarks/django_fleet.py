"""Sixty containers of a Django site in front of twenty slots: the kit's backend beside Django's own.

    python benchmarks/django_fleet.py
    python benchmarks/django_fleet.py --containers 30 --slots 10 --requests 20 --contestants kit,pool

Every container is a Lambda function of its own, AWS's runtime client (``awslambdaric``) with the example's site behind
apig-wsgi, frozen between invocations. All begin at once. Each is invoked again and again, with a pause of up to
``--think`` seconds in between: two reads and an order, taken in turns. An invocation fails if it answers 500 or more,
runs into its time limit (10 s) or ends its process. Starting Django is not measured, the first connect is.

Contestants: ``kit`` (``ENGINE = "serverless_pg_kit_django"``, its defaults), ``keep`` (Django's own backend with
``CONN_MAX_AGE=None``), ``close`` (with ``CONN_MAX_AGE=0``) and ``pool`` (with ``OPTIONS["pool"] = True``; needs
psycopg-pool). Client and server share this machine's cores, and the network is its own: compare the rows.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psycopg

import serverless_pg_kit
import serverless_pg_kit_django
from serverless_pg_kit.testing import LambdaContainer, PostgresServer
from serverless_pg_kit.testing.awslambda.errors import InvocationError

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
RESERVED = 3  # slots that PostgreSQL keeps for superusers
TIME_LIMIT = 10.0  # seconds of an invocation
STOCK = "django.db.backends.postgresql"
CONTESTANTS: dict[str, dict[str, Any]] = {
    "kit": {},
    "keep": {"ENGINE": STOCK, "CONN_MAX_AGE": None},
    "close": {"ENGINE": STOCK},
    "pool": {"ENGINE": STOCK, "OPTIONS": {"pool": True}},
}


@dataclass
class Tally:
    """What came of the invocations of one contestant."""

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, seconds: float, failure: str | None) -> None:
        """Take note of one invocation."""
        with self.lock:
            self.seconds.append(seconds)
            if failure is not None:
                self.failures[failure] += 1


def event(number: int, dice: random.Random) -> dict[str, Any]:
    """Return an event of API Gateway, payload 2.0."""
    items = [{"product_id": dice.randint(1, 50), "quantity": 1}]
    requests: list[tuple[str, str, str]] = [
        ("GET", "/inventory", ""),
        ("POST", "/fulfilments", json.dumps({"warehouse_id": dice.randint(1, 2), "items": items})),
        ("GET", "/sales", ""),
    ]
    method, path, body = requests[number % 3]
    return {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "limit=5" if method == "GET" else "",
        "headers": {"host": "shop.example", "content-length": str(len(body))},
        "requestContext": {"http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1"}},
        "body": body,
        "isBase64Encoded": False,
    }


def environment(conninfo: str, contestant: str) -> dict[str, str]:
    """Return the variables of a container."""
    packages = [Path(module.__file__ or "").parents[1] for module in (serverless_pg_kit, serverless_pg_kit_django)]
    return {
        "DATABASE_URL": conninfo,
        "DJANGO_SETTINGS_MODULE": "django_settings",
        "CONTESTANT": json.dumps(CONTESTANTS[contestant]),
        "PYTHONPATH": ":".join(map(str, (HERE, EXAMPLES, *packages))),
    }


def invoke(container: LambdaContainer, wanted: dict[str, Any]) -> str | None:
    """Invoke `container`; return how it failed, if it did."""
    try:
        status = container.invoke(wanted)["statusCode"]
    except InvocationError as error:
        return type(error).__name__
    return f"status {status}" if status >= 500 else None


def visit(container: LambdaContainer, tally: Tally, seed: int, requests: int, think: float) -> None:
    """Invoke `container` again and again."""
    dice = random.Random(seed)
    for number in range(requests):
        wanted, started = event(seed + number, dice), time.monotonic()
        failure = invoke(container, wanted)
        tally.note(time.monotonic() - started, failure)
        time.sleep(dice.random() * think)


def play(contestant: str, containers: int, slots: int, requests: int, think: float) -> str:
    """Let one contestant serve; return its row."""
    tally = Tally()
    with PostgresServer(max_connections=slots + RESERVED) as server, ExitStack() as stack:
        variables = environment(server.dsn, contestant)
        fill = "from logistics_django.__main__ import fill; fill()"
        subprocess.run([sys.executable, "-c", fill], env={**variables, "PATH": ""}, check=True)
        fleet = [
            stack.enter_context(
                LambdaContainer(
                    "logistics_django.hosts.by_wsgi",
                    folder=EXAMPLES,
                    environment=variables,
                    timeout=TIME_LIMIT,
                    init_timeout=300.0,
                    frozen=True,
                )
            )
            for _ in range(containers)
        ]
        with ThreadPoolExecutor(4) as few:
            list(few.map(LambdaContainer.start, fleet))
        with ThreadPoolExecutor(containers) as users:
            list(users.map(lambda each: visit(each[1], tally, each[0], requests, think), enumerate(fleet)))
        held = sessions(server)
    return row(contestant, tally, held)


def sessions(server: PostgresServer) -> int:
    """Return how many sessions are open when everybody is frozen."""
    with psycopg.connect(server.superuser_dsn) as conn:
        found = conn.execute("select count(*) from pg_stat_activity where usename = 'app'").fetchone()
    return 0 if found is None else int(found[0])


def row(contestant: str, tally: Tally, held: int) -> str:
    """Return the figures of a contestant in one line."""
    failed = sum(tally.failures.values())
    cuts = statistics.quantiles(tally.seconds, n=100)
    told = ", ".join(f"{count} {kind}" for kind, count in tally.failures.most_common())
    return (
        f"{contestant:10} {len(tally.seconds):8} {failed:8} {failed / len(tally.seconds):7.1%}"
        f" {cuts[49]:8.3f} {cuts[94]:8.3f} {max(tally.seconds):8.3f} {held:8}   {told}"
    )


@click.command()
@click.option("--containers", default=60, show_default=True, type=click.IntRange(1, 500))
@click.option("--slots", default=20, show_default=True, type=click.IntRange(1, 500), help="For an ordinary role.")
@click.option("--requests", default=15, show_default=True, type=click.IntRange(1, 10_000), help="Of each container.")
@click.option("--think", default=1.0, show_default=True, type=click.FloatRange(0, 60), help="Longest pause, seconds.")
@click.option("--contestants", default="kit,keep,pool", show_default=True)
def main(containers: int, slots: int, requests: int, think: float, contestants: str) -> None:
    """Print a row for each contestant."""
    click.echo(f"{containers} containers, {slots} slots, {requests} requests each")
    click.echo("contestant requests   failed   share   median      95%  longest sessions   failures")
    for contestant in contestants.split(","):
        if contestant not in CONTESTANTS:
            raise click.BadParameter(f"{contestant!r}; there are {', '.join(CONTESTANTS)}")
        click.echo(play(contestant, containers, slots, requests, think))


if __name__ == "__main__":
    main()
