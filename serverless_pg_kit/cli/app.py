"""The command and its subcommands."""

from __future__ import annotations

import click

from serverless_pg_kit import __version__
from serverless_pg_kit.cli.demo import demo


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="serverless-pg-kit", message="%(prog)s %(version)s")
def app() -> None:
    """Direct PostgreSQL connections that stay healthy in serverless functions."""


app.add_command(demo)
