"""The engine, and how it logs in: by ``DATABASE_URL``, by a secret, or by IAM."""

from __future__ import annotations

import os
from collections.abc import Mapping

from serverless_pg_kit import Engine
from serverless_pg_kit.credentials import Cached, rds_iam, secrets_manager

VARIABLES = ("DATABASE_SECRET", "DATABASE_HOST", "DATABASE_PORT", "DATABASE_USER")
"""The variables of this example. The kit's own, ``SERVERLESS_PG_<NAME>`` and ``DATABASE_URL``, go beside them."""


def credentials(environ: Mapping[str, str]) -> Cached | None:
    """Return where the password comes from; ``None`` if it stands in the connection string."""
    if environ.get("DATABASE_SECRET"):
        return secrets_manager(environ["DATABASE_SECRET"])
    if environ.get("DATABASE_HOST"):
        port = int(environ.get("DATABASE_PORT", "5432"))
        return rds_iam(host=environ["DATABASE_HOST"], port=port, user=environ["DATABASE_USER"])
    return None


def make_engine(environ: Mapping[str, str] = os.environ) -> Engine:
    """Return the engine for `environ`. It opens nothing and asks AWS for nothing yet."""
    return Engine(credentials=credentials(environ))
