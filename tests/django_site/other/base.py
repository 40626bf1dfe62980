"""The backend."""

from __future__ import annotations

from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's, with another name."""

    display_name = "PostgreSQL and more"
