"""The logistics example as a FastAPI application. See README.md."""

from __future__ import annotations
