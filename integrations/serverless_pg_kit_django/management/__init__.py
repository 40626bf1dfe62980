"""What Django looks into for the commands of ``manage.py``."""

from __future__ import annotations
