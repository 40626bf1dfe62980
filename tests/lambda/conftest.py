from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serverless_pg_kit.testing import LambdaContainer

FUNCTION = """
import os, sys, time
from psycopg.errors import QueryCanceled
from serverless_pg_kit import Engine, close_on_sigterm, with_db

engine = Engine()

@with_db(engine)
def handler(event, context, conn):
    pid = conn.info.backend_pid
    if "entry" in event:
        conn.execute("insert into ledger values (%s)", [event["entry"]])
    if "act" in event:
        exec(event["act"])
    return pid

@with_db(engine)
def slow_handler(event, context, conn):
    try:
        conn.execute("select pg_sleep(60)")
    except QueryCanceled:
        return {"statusCode": 503, "body": "the report takes too long"}

@with_db(engine, deadline=float("inf"))
def careless_handler(event, context, conn):
    conn.execute("select pg_sleep(60)")
"""

MakeContainer = Callable[..., LambdaContainer]


@pytest.fixture
def make(tmp_path: Path, variables: Mapping[str, str]) -> Iterator[MakeContainer]:
    """Makes containers of the function above, on ``server``; they are closed at the end of the test.

    `code` goes to the end of the module, or `module` takes its place.
    """
    with ExitStack() as stack:

        def make_container(
            handler: str = "handler", *, code: str = "", module: str = FUNCTION, **options: Any
        ) -> LambdaContainer:
            (tmp_path / "app.py").write_text(module + code)
            environment = {**variables, **options.pop("environment", {})}
            options = {"timeout": 60.0, **options}
            container = LambdaContainer(f"app.{handler}", folder=tmp_path, environment=environment, **options)
            return stack.enter_context(container)

        yield make_container
