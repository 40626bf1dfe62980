"""``python -m serverless_pg_kit.cli``: the same command without the script."""

from __future__ import annotations

from serverless_pg_kit.cli import main

main()
