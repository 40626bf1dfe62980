from __future__ import annotations

import pytest

from serverless_pg_kit.connect import Address, Refusal, resolve
from serverless_pg_kit.conninfo import complete, parse_conninfo, scrub, secrets_in, split_hosts


def completed(conninfo: str, **environ: str) -> dict[str, str]:
    """Return the parameters the kit connects with."""
    return complete(parse_conninfo(conninfo), "fleet", environ)


@pytest.mark.parametrize(
    "conninfo",
    [
        "",
        "host=localhost",
        "host=LocalHost",
        "host=127.0.0.1",
        "host=127.0.0.2",
        "host=::1",
        "postgresql://[::1]:5432/db",
        "host=/run/pg",
        "host=@abstract",
        "host=/run/pg,localhost",
        "host=db hostaddr=127.0.0.1",
    ],
)
def test_local_server_needs_no_tls(conninfo: str) -> None:
    """A loopback address or Unix socket is left to libpq's default."""
    assert "sslmode" not in completed(conninfo)


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=db.example",
        "host=10.0.0.1",
        "host=localhost,db.example",
        "host=/run/pg,10.0.0.1",
        "host=localhost.example",
        "host=localhost hostaddr=10.0.0.1",
        "postgresql://[fd00::1]/db",
    ],
)
def test_remote_server_requires_tls(conninfo: str) -> None:
    """Nothing falls back to plain text in silence."""
    assert completed(conninfo)["sslmode"] == "require"


def test_user_has_the_last_word() -> None:
    """Parameters, libpq's variables and service files come before the kit's defaults."""
    assert completed("host=db sslmode=disable")["sslmode"] == "disable"
    assert "sslmode" not in completed("host=db", PGSSLMODE="verify-full")
    assert "sslmode" not in completed("service=prod")
    assert "sslmode" not in completed("host=db sslrootcert=system")
    assert completed("host=db tcp_user_timeout=9")["tcp_user_timeout"] == "9"
    assert completed("", PGHOST="db.example")["sslmode"] == "require"


def test_defaults_guard_against_half_open_sockets() -> None:
    """The parameter that ends a silent connection is set without asking."""
    params = completed("host=db")
    assert (params["tcp_user_timeout"], params["gssencmode"]) == ("5000", "disable")


def test_hosts_are_spread_as_libpq_does() -> None:
    """One port stands for all hosts; several go one by one."""
    one = split_hosts({"host": "a,b", "port": "6000"}, {})
    assert [(host.name, host.port) for host in one] == [("a", "6000"), ("b", "6000")]
    two = split_hosts({"host": "a,b", "port": "1,2", "hostaddr": ",10.0.0.1"}, {})
    assert [(host.name, host.hostaddr, host.port) for host in two] == [("a", "", "1"), ("b", "10.0.0.1", "2")]


@pytest.mark.parametrize("conninfo", ["host=a,b,c port=1,2", "connect_timeout=soon", "host=a port=x"])
def test_what_libpq_would_refuse_is_refused_early(conninfo: str) -> None:
    """A connection string that can never work fails when the settings are made."""
    with pytest.raises(ValueError, match=r"^has "):
        parse_conninfo(conninfo)


def test_prefer_standby_looks_for_a_standby_first() -> None:
    """Addresses are tried one at a time, so the preference needs two rounds."""
    addresses = resolve(parse_conninfo("host=/a,/b target_session_attrs=prefer-standby"), {}, lambda: 0.0)
    assert isinstance(addresses, list)
    wanted = [(address.params["host"], address.params["target_session_attrs"]) for address in addresses]
    assert wanted == [("/a", "standby"), ("/b", "standby"), ("/a", "any"), ("/b", "any")]
    assert len({address.host for address in addresses}) == 4


def test_each_address_goes_to_libpq_alone() -> None:
    """Every attempt has one host and one numeric address, so libpq can neither resolve nor wait twice."""
    addresses = resolve(parse_conninfo("host=127.0.0.1,10.9.8.7 port=1,2 user=u"), {}, lambda: 0.0)
    assert isinstance(addresses, list)
    assert [(a.host, a.params["hostaddr"], a.params["port"]) for a in addresses] == [
        (0, "127.0.0.1", "1"),
        (1, "10.9.8.7", "2"),
    ]


def test_name_that_does_not_resolve_is_a_refusal() -> None:
    """An unknown host is an answer like any other, not an exception from the resolver."""
    answer = resolve(parse_conninfo("host=does-not-exist.invalid"), {}, lambda: 0.0)
    assert isinstance(answer, Refusal)
    assert 'could not translate host name "does-not-exist.invalid"' in answer.message


def test_parameters_do_not_show_their_secrets() -> None:
    """What ends up in a traceback's locals is masked."""
    params = parse_conninfo("user=app password=hunter2")
    assert "hunter2" not in repr(params) + str(params) + repr(Address(params, 0)) + f"{params}"
    assert "password=hunter2" in params.conninfo()


def test_scrub_masks_whole_words_only() -> None:
    """A secret is masked in every spelling, and a short one does not blacken half of the sentence."""
    assert scrub("bad p@ss and p%40ss", ["p@ss"]) == "bad *** and ***"
    assert scrub("password authentication failed for a", ["a"]) == "password authentication failed for ***"
    assert secrets_in({"password": "x"}, {"PGPASSWORD": "y"}) == ("x", "y")
