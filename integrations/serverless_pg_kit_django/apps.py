"""The app: system checks, and the commands ``pgstatus`` and ``pgclean``."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.db import connections


class ServerlessPgKitConfig(AppConfig):
    """Put ``"serverless_pg_kit_django"`` into ``INSTALLED_APPS``. Bad settings of the kit stop the start-up."""

    name = "serverless_pg_kit_django"
    label = "serverless_pg_kit"
    verbose_name: Any = "serverless-pg-kit"

    def ready(self) -> None:
        """Check the settings of every database, and register the checks. Raises ``ImproperlyConfigured``."""
        from serverless_pg_kit_django.checks import TAG, check_databases, check_middleware

        for alias, settings in connections.settings.items():
            if settings["ENGINE"] == self.name:
                connections[alias]  # makes a wrapper, which checks its settings; nothing is connected
        checks.register(check_databases, TAG)
        checks.register(check_middleware, TAG)
