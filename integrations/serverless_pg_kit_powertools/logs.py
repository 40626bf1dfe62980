"""Events as records of a Powertools Logger."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from serverless_pg_kit.events import Event

if TYPE_CHECKING:
    from aws_lambda_powertools import Logger


class LoggerListener:
    """A listener (`on_event`, or `Engine.add_listener`) that writes events of `level` or more with `logger`.

    Each record has the keys ``pg_event`` (the name of the event) and ``pg_<field>``, and whatever `logger` adds to all
    of them, such as the id of the request.
    """

    def __init__(self, logger: Logger, *, level: int = logging.INFO) -> None:
        self._logger = logger
        self._level = level

    def __call__(self, event: Event) -> None:
        """Write `event`."""
        if event.level >= self._level:
            fields = {f"pg_{name}": value for name, value in vars(event).items()}
            write = getattr(self._logger, logging.getLevelName(event.level).lower())  # `log` goes past its buffer
            write(str(event), extra={"pg_event": type(event).__name__, **fields})
