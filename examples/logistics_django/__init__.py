"""The logistics example as a Django site. See README.md."""

from __future__ import annotations
