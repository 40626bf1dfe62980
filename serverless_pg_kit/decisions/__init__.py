"""Pure decisions: functions and tables on plain values. Nothing here does I/O, reads a clock or rolls dice."""

from __future__ import annotations
