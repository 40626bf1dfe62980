"""An app with the extension, and a server for it, for the tests of Flask."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from programs import roots
from psycopg import Connection
from support import eventually

from serverless_pg_kit import Engine
from serverless_pg_kit_flask import ServerlessPg

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass
class Site:
    """An app with the extension attached."""

    app: Flask
    pg: ServerlessPg

    @property
    def client(self) -> FlaskClient:
        """A new client of the app."""
        return self.app.test_client()

    @property
    def engine(self) -> Engine:
        """The engine of the app."""
        engine: Engine = self.app.extensions["serverless_pg"].engine
        return engine

    @property
    def conn(self) -> Connection[Any]:
        """The connection of the code that asks."""
        return self.pg.connection

    def insert(self, entry: int) -> None:
        """Write into the ledger."""
        self.conn.execute("insert into ledger values (%s)", [entry])


MakeSite = Callable[..., Site]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def is_up(url: str) -> bool:
    """Tell whether a server answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url}/nowhere", timeout=60):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


@contextmanager
def serving(application: str, variables: Mapping[str, str], folder: Path = EXAMPLES) -> Iterator[str]:
    """Run `application` of a module in `folder` on gunicorn, with 20 threads; yield its URL. Warnings are in its log,
    which goes to the file ``log`` of `folder`, if that is not the examples'."""
    address = f"127.0.0.1:{free_port()}"
    options = ["--threads", "20", "--bind", address, "--worker-tmp-dir", "/tmp"]
    command = [sys.executable, "-W", "always::ResourceWarning", "-m", "gunicorn", *options, application]
    environ = {**os.environ, **variables, "PYTHONPATH": roots(EXAMPLES, folder)}
    log = os.devnull if folder == EXAMPLES else folder / "log"
    with open(log, "wb") as errors, subprocess.Popen(command, env=environ, cwd=folder, stderr=errors) as process:
        try:
            assert eventually(lambda: is_up(f"http://{address}"))
            yield f"http://{address}"
        finally:
            process.terminate()
