"""A real PgBouncer in front of a server, in any mode. Debian's package brings it; without it tests are skipped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

import pytest
from psycopg.conninfo import conninfo_to_dict
from support import eventually

from serverless_pg_kit.testing import PostgresServer

CONFIGURATION = """
[databases]
app = host=127.0.0.1 port={port} dbname=app user=app password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
"""


class PgBouncer:
    """A PgBouncer in front of `server` between its ``with`` and the end of the block, with `options` of its own.

    ::

        with PgBouncer(server, pool_mode="transaction", default_pool_size=1) as pooler:
            psycopg.connect(pooler.dsn)
    """

    def __init__(self, server: PostgresServer, **options: str | int) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            reason = "PgBouncer is not installed (apt-get install pgbouncer)"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
        self._program = program
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        password = conninfo_to_dict(server.dsn)["password"]
        self._text = CONFIGURATION.format(port=server.port, password=password, listen=self.port) + "".join(
            f"{name} = {value}\n" for name, value in options.items()
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """Its connection string."""
        return f"host=127.0.0.1 port={self.port} dbname=app user=app"

    def start(self) -> None:
        """Start it and return when it listens."""
        user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
        file = Path(self._folder.name) / "pgbouncer.ini"
        self._process = subprocess.Popen(
            [self._program, "-q", str(file)], user=user, cwd="/", stderr=subprocess.DEVNULL
        )
        assert eventually(self._accepts)

    def stop(self) -> None:
        """End it, and with it all its connections."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> PgBouncer:
        self._folder = tempfile.TemporaryDirectory()
        Path(self._folder.name).chmod(0o755)
        (Path(self._folder.name) / "pgbouncer.ini").write_text(self._text, encoding="ascii")
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.cleanup()

    def _accepts(self) -> bool:
        with socket.socket() as line:
            return line.connect_ex(("127.0.0.1", self.port)) == 0
