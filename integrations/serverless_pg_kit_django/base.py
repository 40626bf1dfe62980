"""The database backend: ``ENGINE = "serverless_pg_kit_django"``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.db.utils import load_backend

from serverless_pg_kit_django.wrapper import EngineConnections

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import DatabaseWrapper as Underlying
else:
    Underlying = load_backend(
        getattr(settings, "SERVERLESS_PG_BACKEND", "django.db.backends.postgresql")
    ).DatabaseWrapper


class DatabaseWrapper(EngineConnections, Underlying):
    """The PostgreSQL backend that the setting ``SERVERLESS_PG_BACKEND`` names (default: Django's own), on an engine."""
