"""serverless_pg_kit in Django: a database backend, a middleware, and `with_db` for code outside HTTP.

``ENGINE = "serverless_pg_kit_django"`` is the backend, ``serverless_pg_kit_django.middleware.ServerlessPgMiddleware``
the middleware; ``"serverless_pg_kit_django"`` in ``INSTALLED_APPS`` adds system checks and commands.
"""

from __future__ import annotations

from serverless_pg_kit_django.engines import engine_for
from serverless_pg_kit_django.handlers import db_request, with_db

__all__ = ["db_request", "engine_for", "with_db"]
