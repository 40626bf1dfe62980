"""The events of the real shapes, by name: all fields that AWS documents, with invented values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "events"


def event(name: str) -> dict[str, Any]:
    """Return the event of the file ``events/<name>.json``, such as ``"api_gateway_v2"``."""
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return loaded
