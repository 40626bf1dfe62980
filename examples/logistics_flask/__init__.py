"""The logistics example as a Flask application. See README.md."""

from __future__ import annotations
