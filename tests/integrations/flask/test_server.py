"""A real server, gunicorn with threads: streams, clients that go away, and what is left behind."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from flask_support import serving
from support import entries, eventually

APPLICATION = """
import gc, json
from flask import Flask, Response, stream_with_context
from serverless_pg_kit_flask import ServerlessPg

app = Flask(__name__)
app.config["SERVERLESS_PG_MAX_SIZE"] = 2
pg = ServerlessPg(app)

def rows(count, size):
    pg.connection.execute("insert into ledger values (1)")
    for number in range(count):
        pg.connection.execute("select 1")
        yield "x" * size

@app.get("/plain/<int:count>/<int:size>")
def plain(count, size):
    return Response(rows(count, size))

@app.get("/with_context/<int:count>/<int:size>")
def with_context(count, size):
    return Response(stream_with_context(rows(count, size)))

@app.get("/refused")
def refused():
    def body():
        yield "begun"
        for _ in range(2):
            pg.connection.execute("insert into ledger values (2)")
        yield "ended"
    return Response(body())

@app.get("/stats")
def stats():
    gc.collect()
    return pg.engine.stats._asdict()
"""


@pytest.fixture
def url(tmp_path: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """The URL of that application."""
    (tmp_path / "streams.py").write_text(APPLICATION)
    with serving("streams:app", variables, tmp_path) as address:
        yield address
    assert "psycopg.Connection" not in (tmp_path / "log").read_text()  # in a ResourceWarning


def stats(url: str) -> dict[str, Any]:
    """Return what the application's engine counts."""
    with urllib.request.urlopen(f"{url}/stats", timeout=60) as response:
        counts: dict[str, Any] = json.load(response)
        return counts


@pytest.mark.parametrize("kind", ["plain", "with_context"])
def test_stream(url: str, superuser: Any, ledger: str, kind: str) -> None:
    """A streamed body arrives whole, and its transaction is committed by then."""
    with urllib.request.urlopen(f"{url}/{kind}/10/1000", timeout=60) as response:
        assert len(response.read()) == 10_000
    assert entries(superuser) == [1]
    assert stats(url)["in_use"] == 0


@pytest.mark.parametrize("kind", ["plain", "with_context"])
def test_client_goes_away(url: str, superuser: Any, ledger: str, kind: str) -> None:
    """Clients that leave in mid-stream give all connections back, and what was written for them is undone."""
    host, _, port = url.removeprefix("http://").partition(":")
    for _ in range(3):  # more often than there are connections
        with socket.create_connection((host, int(port))) as line:
            line.sendall(f"GET /{kind}/1000/100000 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert line.recv(1000).startswith(b"HTTP/1.1 200")

    assert eventually(lambda: stats(url)["in_use"] == 0)
    assert entries(superuser) == []
    assert stats(url)["rollbacks"] == 3
    with urllib.request.urlopen(f"{url}/{kind}/1/1", timeout=60) as response:
        assert response.read() == b"x"
    assert entries(superuser) == [1]


def test_refused_commit_cuts_the_body(url: str, superuser: Any, ledger: str) -> None:
    """A client can tell that a body whose COMMIT failed is not complete: the last chunk never comes."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(f"GET /refused HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        received = b"".join(iter(lambda: line.recv(1000), b""))

    assert b"ended" in received
    assert not received.endswith(b"0\r\n\r\n")
    assert entries(superuser) == []
    assert stats(url)["in_use"] == 0
