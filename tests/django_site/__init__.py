"""A small Django site that the tests of the adapter drive, in their own process and in others."""

from __future__ import annotations
