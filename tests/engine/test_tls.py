"""TLS: nothing goes in plain text unless the user says so, and a refused certificate is told at once, and why."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import version
from support import debian_15, whole_chain
from tls import Authority, Terminator

from serverless_pg_kit import AcquireTimeout, ConnectRejected, CredentialsRejected, TooManyConnections, connect
from serverless_pg_kit.events import Event, Refused
from serverless_pg_kit.testing import PostgresServer

HOSTS = "DNS:db.example,IP:127.0.0.1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that is trusted."""
    return Authority(tmp_path_factory.mktemp("authority"), "right")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that signs nothing here."""
    return Authority(tmp_path_factory.mktemp("stranger"), "wrong")


@pytest.fixture(scope="module")
def secure_server(authority: Authority) -> Iterator[PostgresServer]:
    """A server with a certificate for db.example and 127.0.0.1."""
    certificate = authority.issue("server", HOSTS)
    with PostgresServer(bin_dir=debian_15(), tls=(certificate.file, certificate.key)) as running:
        yield running


@pytest.fixture(scope="module")
def expired_server(authority: Authority) -> Iterator[PostgresServer]:
    """A server whose certificate has expired."""
    certificate = authority.issue("expired", HOSTS, days=-1)
    with PostgresServer(bin_dir=debian_15(), tls=(certificate.file, certificate.key)) as running:
        yield running


@pytest.fixture
def name_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name service that knows this machine by any name, so that a host can look remote."""
    monkeypatch.setattr(connect, "look_up", lambda host: [host.hostaddr or "127.0.0.1"])


def verified(server: PostgresServer, roots: Path, **changes: str) -> str:
    """Return a connection string that insists on the server's identity."""
    return make_conninfo(server.dsn, sslmode="verify-full", sslrootcert=str(roots), **changes)


def is_encrypted(engine: Any) -> Any:
    """Tell, by the server's word, whether the connection of a request uses TLS."""
    with engine.request() as conn:
        return conn.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()").fetchone()[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "db.example"])
def test_right_certificate_is_accepted(
    engines: Any, secure_server: PostgresServer, authority: Authority, host: str
) -> None:
    """By address and by name."""
    engine = engines(conninfo=verified(secure_server, authority.own.file, host=host, hostaddr="127.0.0.1"))
    assert is_encrypted(engine)
    assert (engine.stats.connects, engine.stats.refusals) == (1, 0)


REFUSALS = {
    "unknown authority": r"certificate verify failed: .*certificate.*no authority in sslrootcert has signed",
    "expired": r"certificate has expired.*renew the server's certificate",
    "other host": r'"db\.example".* does not match host name "other\.example".*the certificate is another host\'s',
    "no authority": r"root certificate file .* does not exist.*sslrootcert=<file>",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_certificate_that_does_not_fit_is_refused_at_once(
    engines: Any,
    secure_server: PostgresServer,
    expired_server: PostgresServer,
    authority: Authority,
    stranger: Authority,
    case: str,
) -> None:
    """After one attempt, by an error that says what is wrong with it and what to do; nobody logs in."""
    roots = authority.own.file
    conninfo = {
        "unknown authority": verified(secure_server, stranger.own.file),
        "expired": verified(expired_server, roots),
        "other host": verified(secure_server, roots, host="other.example", hostaddr="127.0.0.1"),
        "no authority": verified(secure_server, roots.with_name("nothing.crt")),
    }[case]
    events: list[Event] = []
    engine = engines(conninfo=conninfo, max_wait=30, on_event=events.append)
    with pytest.raises(ConnectRejected) as caught:
        engine.connect()
    assert not isinstance(caught.value, CredentialsRejected)
    assert caught.match(f"(?s){REFUSALS[case]}")
    assert "1 attempt" in str(caught.value)
    assert [event.kind for event in events if isinstance(event, Refused)] == ["permanent"]
    assert (engine.stats.connects, engine.stats.retries) == (0, 0)
    password = conninfo_to_dict(conninfo)["password"]
    assert not [text for text in (*whole_chain(caught.value), repr(events)) if str(password) in text]


def test_reason_that_cannot_be_found_out_is_left_out(
    engines: Any, secure_server: PostgresServer, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal is what counts: it is told even if the second look fails."""
    from serverless_pg_kit import certificate

    def fail(*args: object) -> str:
        raise ConnectionResetError

    monkeypatch.setattr(certificate, "reason_of", fail)
    with pytest.raises(ConnectRejected, match="certificate verify failed"):
        engines(conninfo=verified(secure_server, stranger.own.file)).connect()


def test_reason_is_left_out_for_a_service_file(
    engines: Any, secure_server: PostgresServer, stranger: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says is libpq's alone: the refusal is told as libpq tells it."""
    params = conninfo_to_dict(verified(secure_server, stranger.own.file))
    file = tmp_path / "services"
    file.write_text("[shop]\n" + "".join(f"{name}={value}\n" for name, value in params.items()), encoding="utf-8")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    with pytest.raises(ConnectRejected, match="certificate verify failed"):
        engines(conninfo="service=shop").connect()


def test_remote_server_with_tls_is_reached_by_it(
    engines: Any, secure_server: PostgresServer, name_service: None
) -> None:
    """Without a word about TLS in the connection string."""
    assert is_encrypted(engines(conninfo=make_conninfo(secure_server.dsn, host="db.example")))


@pytest.mark.parametrize("sslmode", [None, "require"])
def test_remote_server_without_tls_is_refused(
    engines: Any, server: PostgresServer, name_service: None, sslmode: str | None
) -> None:
    """At once, and the error says that nothing went out in plain text, and how to allow that."""
    changes = {"sslmode": sslmode} if sslmode else {}
    engine = engines(conninfo=make_conninfo(server.dsn, host="db.example", **changes))
    with pytest.raises(ConnectRejected, match=r"offers no TLS.*sslmode=disable"):
        engine.connect()
    assert (engine.stats.connects, engine.stats.retries) == (0, 0)


@pytest.mark.parametrize("sslmode", ["prefer", "disable"])
def test_plain_text_is_the_users_choice(engines: Any, server: PostgresServer, name_service: None, sslmode: str) -> None:
    """Whoever allows it gets it."""
    engine = engines(conninfo=make_conninfo(server.dsn, host="db.example", sslmode=sslmode))
    assert not is_encrypted(engine)


def test_nothing_is_said_in_plain_text(engines: Any, name_service: None) -> None:
    """Somebody on the way who says that there is no TLS hears neither user nor database, let alone a password."""
    heard: list[bytes] = []

    def deny(ear: socket.socket) -> None:
        line, _ = ear.accept()
        with line:
            heard.append(line.recv(1 << 16))
            line.sendall(b"N")
            while data := line.recv(1 << 16):
                heard.append(data)

    with socket.create_server(("127.0.0.1", 0)) as ear:
        liar = threading.Thread(target=deny, args=(ear,))
        liar.start()
        with pytest.raises(ConnectRejected):
            engines(conninfo=f"host=db.example port={ear.getsockname()[1]} user=app password=hunter2").connect()
        liar.join()
    assert heard == [b"\x00\x00\x00\x08\x04\xd2\x16\x2f"]  # the request for encryption


@pytest.mark.skipif(version() < 170000, reason="libpq knows sslnegotiation from 17 on")
class TestDirectNegotiation:
    """``sslnegotiation=direct`` saves a round trip. The servers of these tests that know it (17 and later) are built
    without TLS, so it is taken off in front of one of them."""

    def test_handshake_is_the_first_that_is_said(
        self, engines: Any, server: PostgresServer, authority: Authority
    ) -> None:
        """The server is asked nothing before."""
        with Terminator((server.host, server.port), authority.issue("direct", HOSTS)) as front:
            conninfo = verified(server, authority.own.file, port=str(front.port), sslnegotiation="direct")
            with engines(conninfo=conninfo).request() as conn:
                assert conn.execute("select 1").fetchone() == (1,)
                assert conn.pgconn.ssl_in_use
            assert front.beginnings == [b"\x16"]

    def test_certificate_is_looked_at(
        self, engines: Any, server: PostgresServer, authority: Authority, stranger: Authority
    ) -> None:
        """And the refusal says what is wrong with it."""
        with Terminator((server.host, server.port), authority.issue("direct", HOSTS)) as front:
            conninfo = verified(server, stranger.own.file, port=str(front.port), sslnegotiation="direct")
            with pytest.raises(ConnectRejected, match="no authority in sslrootcert has signed"):
                engines(conninfo=conninfo).connect()
            assert front.beginnings == [b"\x16", b"\x16"]  # the second one was for the reason

    def test_server_that_does_not_know_it_is_told(
        self, engines: Any, secure_server: PostgresServer, authority: Authority
    ) -> None:
        """An older one hangs up like one that restarts: it is asked again, but the error names the likely reason."""
        conninfo = verified(secure_server, authority.own.file, sslnegotiation="direct")
        with pytest.raises(AcquireTimeout, match="sslnegotiation=direct needs PostgreSQL 17"):
            engines(conninfo=conninfo, max_wait=0.3).connect()

    def test_weak_mode_is_refused(self, engines: Any, server: PostgresServer) -> None:
        """libpq does not do it where plain text would do as well, as on a local server."""
        with pytest.raises(ConnectRejected, match="weak sslmode"):
            engines(conninfo=make_conninfo(server.dsn, sslnegotiation="direct")).connect()


def test_german_server_is_understood_through_tls(engines: Any, authority: Authority) -> None:
    """Its refusals are told apart by SQLSTATEs, which are heard although the line is encrypted."""
    certificate = authority.issue("german", HOSTS)
    with PostgresServer(
        bin_dir=debian_15(), max_connections=8, language="de", tls=(certificate.file, certificate.key)
    ) as server:
        conninfo = verified(server, authority.own.file)
        assert is_encrypted(engines(conninfo=conninfo))
        if version() < 170000:
            pytest.skip("libpq traces the start of a connection from 17 on")
        with pytest.raises(CredentialsRejected, match="Passwort") as rejected:
            engines(conninfo=make_conninfo(conninfo, password="falsch")).connect()
        assert rejected.value.code == "28P01"
        with pytest.raises(ConnectRejected, match="existiert nicht") as unknown:
            engines(conninfo=make_conninfo(conninfo, dbname="nirgends")).connect()
        assert unknown.value.code == "3D000"
        with ExitStack() as stack:
            with pytest.raises(psycopg.OperationalError):
                while True:
                    stack.enter_context(psycopg.connect(conninfo))
            with pytest.raises(TooManyConnections, match="reserviert"):
                engines(conninfo=conninfo, max_wait=0.4).connect()
