"""AWS Lambda SnapStart: containers that begin as copies of one process that was frozen after its initialisation.

A connection in the snapshot would be the same session in every copy. So all are closed before it is taken, and every
copy begins anew, as a forked child does. This needs nobody's help: the hooks are registered when the kit is imported
where SnapStart is in use.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from serverless_pg_kit import processes
from serverless_pg_kit.announcer import logger
from serverless_pg_kit.crowd import Crowd

if TYPE_CHECKING:
    from serverless_pg_kit.base import EngineBase

INITIALIZATION_TYPE = "AWS_LAMBDA_INITIALIZATION_TYPE"
HOOKS = "snapshot_restore_py"
"""The module with the registers of hooks, a part of the managed runtimes."""

engines: Crowd[EngineBase] = Crowd()
"""All engines of this process."""


def before_snapshot() -> None:
    """Close the connections of all engines, and have their secrets forgotten. Never raises: that would end the
    initialisation."""
    from serverless_pg_kit.hangup import hang_up  # few functions are ever copied
    from serverless_pg_kit.provider import failure_of, invalidate

    hang_up(engines, "a snapshot is about to be taken")
    for engine in engines:
        try:
            invalidate(engine.settings.credentials)
        except Exception as error:
            logger.warning("the cached secrets get into the snapshot: %s", failure_of("credentials.invalidate", error))


def after_restore() -> None:
    """Let all engines begin anew. What was opened since `before_snapshot` is left alone: other copies have it, too."""
    processes.start_anew()
    for engine in engines:
        engine._check_process()


def register(environ: Mapping[str, str]) -> None:
    """Register the hooks, if `environ` tells that a snapshot will be taken. Without their module it is logged.

    At import, and not with the first engine: hooks that are registered first run last before the snapshot and first
    after the restore, so that the user's own may use the engines in both.
    """
    if environ.get(INITIALIZATION_TYPE) != "snap-start":
        return
    try:
        hooks = importlib.import_module(HOOKS)
    except ImportError:
        logger.warning("no module %s: open no connection before the snapshot, every copy would share it", HOOKS)
    else:
        hooks.register_before_snapshot(before_snapshot)
        hooks.register_after_restore(after_restore)


register(os.environ)
