"""SIGTERM: connections are closed when a container is removed. Only on request, by `close_on_sigterm`."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from serverless_pg_kit import extension
from serverless_pg_kit.base import EngineBase
from serverless_pg_kit.guard import Guard

if TYPE_CHECKING:
    from serverless_pg_kit.aio.engine import AsyncEngine
    from serverless_pg_kit.engine import Engine

_guard: Guard | None = None


def close_on_sigterm(*engines: Engine | AsyncEngine) -> None:
    """Close the connections of `engines` when this process gets SIGTERM, also those in use, and let the process end.

    Statements that are running are cancelled. Then the process ends with status 0, unless there was another handler
    before: that is called, and what becomes of the process is its business. All takes a quarter of a second at most;
    an idle function takes milliseconds. May be called again, for more engines. A forked child has to call it anew.

    On AWS Lambda it also registers the function as an extension of its own, because Lambda sends SIGTERM to no other:
    so call it during initialisation, at module level. If that fails, the event `MaintenanceFailed` says so.

    It starts one thread, which sleeps. Raises ``RuntimeError`` outside of the main thread.
    """
    global _guard
    if not engines or not all(isinstance(engine, EngineBase) for engine in engines):
        raise TypeError("close_on_sigterm takes engines; that of bare @with_db is default_engine()")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("call close_on_sigterm in the main thread: Python takes signal handlers from no other")
    if _guard is None:
        _guard = Guard()
        threading.Thread(target=_guard.listen, name="serverless_pg_kit SIGTERM", daemon=True).start()
    for engine in engines:
        _guard.engines.add(engine)
    _guard.stand()
    _call_lambda(engines[0])


def _call_lambda(engine: EngineBase) -> None:
    """Ask Lambda for SIGTERM; `engine` announces it if that fails."""
    if extension.is_wanted(os.environ):
        try:
            extension.register(os.environ[extension.ADDRESS])
        except Exception as error:
            engine._maintenance_failed("extension", error)


def _leave_in_child() -> None:
    global _guard
    guard, _guard = _guard, None
    if guard is not None:
        guard.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_in_child)
