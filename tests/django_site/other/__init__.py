"""A database backend made of Django's own."""

from __future__ import annotations
