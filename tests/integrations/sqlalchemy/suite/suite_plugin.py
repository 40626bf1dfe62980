"""Makes SQLAlchemy's plugin for pytest know our dialects, and create nothing that a server for tests does not have."""

from __future__ import annotations

import importlib

import pytest
import suite_dialect  # noqa: F401 - it registers them


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart() -> None:
    """Create no extension."""
    provision = importlib.import_module("sqlalchemy.dialects.postgresql.provision")
    if hasattr(provision, "post_configure_engine"):
        provision.post_configure_engine.fns["postgresql"] = lambda *args: None
