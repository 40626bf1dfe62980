"""The examples of docs/lambda.md do what the page says of them, under AWS's own runtime client."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import blocks
from lambda_events import event
from support import entries, eventually, is_working, sessions

TIME_TO_ANSWER = {"SERVERLESS_PG_DEADLINE_MARGIN": "1.5"}
"""A test may run on a machine that is busy with others."""


def messages(batch: dict[str, Any], *entries: int) -> dict[str, Any]:
    """Return the answer that tells that the messages about these `entries` failed."""
    failed = [record for record in batch["Records"] if json.loads(record["body"])["entry"] in entries]
    return {"batchItemFailures": [{"itemIdentifier": record["messageId"]} for record in failed]}


def test_time_limit(make: Any, superuser: Any, fleet: str) -> None:
    """The client hears of a query that takes too long before the time limit, and the query is gone."""
    container = make(module=blocks("lambda.md", "Time limits")[0], environment=TIME_TO_ANSWER)
    container.start()
    started = time.monotonic()

    assert container.invoke({}, timeout=3.0)["statusCode"] == 503
    assert time.monotonic() - started < 3.0
    assert eventually(lambda: not is_working(superuser, fleet), 10)
    assert len(sessions(superuser, fleet)) == 1
    assert container.starts == 1


def test_batch(make: Any, superuser: Any, fleet: str, ledger: str) -> None:
    """Of five messages one raises and one fails at its COMMIT: three are committed, by one session, two come again."""
    superuser.execute("insert into ledger values (5)")
    container, batch = make(module=blocks("lambda.md", "Batches")[0]), event("sqs")

    assert container.invoke(batch) == messages(batch, 3, 5)
    assert entries(superuser) == [1, 2, 4, 5]
    assert len(sessions(superuser, fleet)) == 1
    assert "ValueError: nothing was ordered" in container.log


@pytest.mark.parametrize("queue", ["sqs", "sqs_fifo"])
def test_batch_in_order(make: Any, superuser: Any, ledger: str, queue: str) -> None:
    """After the first failure nothing is tried: it comes again with all that follow."""
    superuser.execute("insert into ledger values (2)")
    container, batch = make(module=blocks("lambda.md", "Batches")[1]), event(queue)

    assert container.invoke(batch) == messages(batch, 2, 3, 4, 5)
    assert entries(superuser) == [1, 2]
    assert container.invoke({"Records": batch["Records"][2:]}) == messages(batch)
    assert entries(superuser) == [1, 2, 3, 4, 5]


def test_managed_instances(make: Any) -> None:
    """Each process has the one connection that it needs."""
    container = make(module=blocks("lambda.md", "Managed Instances")[0], workers=2)
    assert container.invoke({}) > 0


APP = """
from serverless_pg_kit import Engine, with_db

@with_db(Engine())
def handler(event, context, conn):
    print("served by", conn.info.backend_pid)
    return event["product"]
"""


def test_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the page about testing says of containers runs as it stands there."""
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "src"):
        folder.mkdir(exist_ok=True)
        (folder / "app.py").write_text(APP)
    for code in blocks("testing.md", "A Lambda container"):
        exec(code, {})

    lamp, again, one, other = capsys.readouterr().out.split("\n")[:4]
    assert (lamp, again) == ("lamp", "lamp")
    assert one == other
    assert one.startswith("served by ")
