"""The command `serverless-pg-kit`. What it needs beyond the core comes with the extras ``cli`` and ``demo``."""

from __future__ import annotations

import sys

EXTRAS = ("click", "rich")


def main() -> None:
    """Run the command with the arguments of the process; always ends in `SystemExit`."""
    try:
        from serverless_pg_kit.cli.app import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        sys.exit(f'{missing} is missing: pip install "serverless-pg-kit[demo]"')
    app()
