"""Durable functions, by AWS's own SDK and test runner: a replay acquires nothing, a step commits on its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from doc_blocks import blocks
from programs import heard, program
from support import entries

RUN = """
import logging
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestRunner

logging.disable()

def run(function, event):
    with DurableFunctionTestRunner(handler=function) as runner:
        result = runner.run(input=event, execution_timeout=60)
    return result.status.value, result.result
"""


def test_example_of_the_documentation(variables: Mapping[str, str], superuser: Any, ledger: str) -> None:
    """Each step commits once, however often the function is replayed."""
    code = blocks("lambda.md", "Durable functions")[0]
    report = "say(*run(handler, '{\"entry\": 1}'), engine.stats.commits, engine.stats.connects)"
    with program(code + RUN + report, variables) as process:
        assert heard(process) == "SUCCEEDED [1, 2] 2 1"
    assert entries(superuser) == [1, 2]


REPLAYS = """
from aws_durable_execution_sdk_python import durable_execution
from aws_durable_execution_sdk_python.config import Duration
from serverless_pg_kit import with_db

engine, calls = Engine(), []

def look():
    return engine.connection.execute("select 5").fetchone()[0]

@durable_execution
@with_db(engine)
def handler(event, context):
    calls.append(engine.stats.connects)
    for _ in range(2):
        context.wait(Duration.from_seconds(1))
    return look()
"""


def test_replays_acquire_nothing(variables: Mapping[str, str]) -> None:
    """A decorated function that waits is run again and again without a connection, until it touches one."""
    with program(REPLAYS + RUN + "say(*run(handler, '{}'), len(calls) > 2, sum(calls))", variables) as process:
        assert heard(process) == "SUCCEEDED 5 True 0"


SUSPENDS = """
from aws_durable_execution_sdk_python import durable_execution
from aws_durable_execution_sdk_python.config import Duration
from serverless_pg_kit import with_db

engine = Engine()

@durable_execution
@with_db(engine)
def handler(event, context):
    engine.connection.execute("insert into ledger values (1)")
    context.wait(Duration.from_seconds(1))
    return engine.stats.in_use

"""


def test_no_transaction_is_open_across_a_wait(variables: Mapping[str, str], superuser: Any, ledger: str) -> None:
    """A function that touched its connection and waits is rolled back, and commits when it comes to its end."""
    with program(SUSPENDS + RUN + "say(*run(handler, '{}'), engine.stats.rollbacks)", variables) as process:
        assert heard(process) == "SUCCEEDED 1 1"
    assert entries(superuser) == [1]
