"""``manage.py pgclean``: end this fleet's idle connections."""

from __future__ import annotations

import dataclasses
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from serverless_pg_kit import Engine, ServerlessPgError
from serverless_pg_kit.decisions.cleaning import CleanReport
from serverless_pg_kit_django.engines import engine_for


class Command(BaseCommand):
    """Makes room at once, whether it is short or not: for a deployment, or an incident."""

    help = "Ends the idle connections of this fleet, the longest idle first; never one that serves a request."
    requires_system_checks: Any = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options."""
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections), help='which one (default: "default")'
        )
        parser.add_argument("--min-idle", type=float, metavar="SECONDS", help="only those idle for as long as that")
        parser.add_argument("--max-kills", type=int, metavar="N", help="that many at most")

    def handle(self, *args: Any, **options: Any) -> None:
        """End idle connections and print how many. Raises ``CommandError`` if the server cannot be asked."""
        wanted = {name: options[key] for name, key in OPTIONS.items() if options[key] is not None}
        try:
            report = clean(options["database"], wanted)
        except (ServerlessPgError, ValueError) as error:
            raise CommandError(str(error)) from error
        if report.census is None:
            raise CommandError("nobody was ended: a pooler stands between, or the server refused the count")
        self.stdout.write(f"{len(report.killed)} idle connections ended; {report.census.used} were open before")


OPTIONS = {"min_idle_time": "min_idle", "max_kills": "max_kills"}


def clean(alias: str, wanted: dict[str, Any]) -> CleanReport:
    """End idle connections to the database `alias`, however much room there is. Raises what `Engine.connect` raises."""
    settings = dataclasses.replace(
        engine_for(alias).settings, strategy="minimum_idle_time", conn_utilization=0.0, census_ttl=0.0, **wanted
    )
    engine = Engine(settings)
    try:
        engine.connect()
        return engine.clean()
    finally:
        engine.close()
