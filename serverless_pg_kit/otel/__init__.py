"""OpenTelemetry: metrics and spans of engines, under the names of its conventions for database clients.

Needs the extra ``otel``, which is the API alone: without an SDK nothing is recorded. The core does not import this.
"""

from __future__ import annotations

import os

try:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider, get_tracer
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(f'{_missing}: pip install "serverless-pg-kit[otel]"', name=_missing.name) from _missing

from serverless_pg_kit import __version__
from serverless_pg_kit.base import EngineBase
from serverless_pg_kit.conninfo import split_hosts
from serverless_pg_kit.otel.instruments import NAME, POOL, instruments_of
from serverless_pg_kit.otel.recorder import Recorder
from serverless_pg_kit.settings import Settings

__all__ = ["instrument"]


def instrument(
    engine: EngineBase,
    *,
    pool_name: str | None = None,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
) -> None:
    """Record what `engine` does from now on. Doing it again changes nothing, and the engine is not kept alive.

    `pool_name` tells engines apart, so it has to differ from one to the next; ``None`` is ``host:port/database``. The
    providers are OpenTelemetry's global ones, unless given.
    """
    instruments = instruments_of(meter_provider)
    pool = {POOL: default_pool_name(engine.settings) if pool_name is None else pool_name}
    if instruments.observe(engine, pool):
        tracer = get_tracer(NAME, __version__, tracer_provider)
        engine.add_listener(Recorder(instruments, tracer, pool))


def default_pool_name(settings: Settings) -> str:
    """Return ``host:port/database``, with what is known of it here: without user, password and options."""
    params = settings.parameters(os.environ)
    host = split_hosts(params, os.environ)[0]
    database = params.get("dbname") or os.environ.get("PGDATABASE", "")
    return f"{host.name or host.hostaddr or 'localhost'}:{host.port or 5432}/{database}"
