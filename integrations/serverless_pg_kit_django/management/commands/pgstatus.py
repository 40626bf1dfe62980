"""``manage.py pgstatus``: how much room there is on the server, and whose the sessions are."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from serverless_pg_kit import ServerlessPgError
from serverless_pg_kit.decisions.census import Census
from serverless_pg_kit_django.engines import engine_for


class Command(BaseCommand):
    """Counts the sessions on the server of a database, over a connection of the kit's engine."""

    help = "Tells how many connections the server of a database has, how many may come, and how many are this fleet's."
    requires_system_checks: Any = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options."""
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections), help='which one (default: "default")'
        )
        parser.add_argument("--json", action="store_true", help="for programs")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the census. Raises ``CommandError`` if there is none to be had."""
        try:
            engine = engine_for(options["database"])
            census = engine.census()
        except (ServerlessPgError, RuntimeError, ValueError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            json.dumps({**census._asdict(), "room": census.room, "utilization": census.utilization})
            if options["json"]
            else told(census, engine.settings.conn_utilization)
        )


def told(census: Census, wanted: float) -> str:
    """Return `census` in words. Above the share `wanted`, room is made."""
    return (
        f"{census.used} of {census.limit} connections in use: {census.utilization:.0%} of the scarcest limit, "
        f"at most {wanted:.0%} wanted\nroom for {census.room} more\n"
        f"{census.fleet_used} are this fleet's, {census.fleet_idle} of them idle"
    )
