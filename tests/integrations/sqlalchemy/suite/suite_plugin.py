"""Makes pytest run SQLAlchemy's suite, over our dialects, too."""

from __future__ import annotations

from typing import Any

import suite_dialect  # noqa: F401
from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: F403


def pytest_configure(config: Any) -> None:
    """Create no extension: the servers of the tests come without any."""
    from sqlalchemy.dialects.postgresql import provision
    from sqlalchemy.testing.plugin import pytestplugin

    getattr(provision, "post_configure_engine").fns["postgresql"] = lambda *args: None  # noqa: B009
    pytestplugin.pytest_configure(config)
