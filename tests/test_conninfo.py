from __future__ import annotations

import hashlib

import pytest

from serverless_pg_kit.connect import Address, Refusal, resolve
from serverless_pg_kit.conninfo import (
    complete,
    fingerprint,
    identity,
    overlaid,
    parse_conninfo,
    raised_sslmode,
    read_conninfo,
    scrub,
    secrets_in,
    split_hosts,
)


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


def over(base: str, answer: str, **environ: str) -> dict[str, str]:
    """Return the parameters of `base` under those of `answer`."""
    return overlaid(parse_conninfo(base), parse_conninfo(answer), environ)


def test_what_is_named_comes_first() -> None:
    """The rest stays, and so does a password for the same user at the same place."""
    assert over("host=a port=5433 user=u password=p dbname=d", "dbname=e") == {
        **{"host": "a", "port": "5433", "user": "u", "password": "p"},
        "dbname": "e",
    }
    assert over("host=a user=u password=p", "host=a port=5432 user=u")["password"] == "p"
    assert over("user=u password=p", "host=a user=u", PGHOST="a")["password"] == "p"


@pytest.mark.parametrize(
    "answer", ["host=b", "host=a port=6543", "port=6543", "hostaddr=10.0.0.9", "user=v", "service=s"]
)
def test_password_is_for_one_user_at_one_place(answer: str) -> None:
    """Who logs in elsewhere, or as somebody else, takes no secret along, not even the environment's."""
    params = over("host=a user=u password=p sslpassword=s", answer)
    assert params["password"] == ""
    assert "sslpassword" not in params
    assert over("host=a user=u password=p", f"{answer} password=q")["password"] == "q"


def test_password_goes_by_no_laxer_sslmode() -> None:
    """Who takes a password along protects it no less; who brings one decides."""
    base = "host=a user=u password=p sslmode=verify-full"
    assert over(base, "dbname=d sslmode=disable")["sslmode"] == "verify-full"
    assert over(base, "password=q sslmode=disable")["sslmode"] == "disable"
    assert over(base, "host=b sslmode=disable")["sslmode"] == "disable"


def test_address_is_replaced_as_a_whole() -> None:
    """A host does not keep the port, the address or the service of another one."""
    params = over("host=a,b hostaddr=10.0.0.1,10.0.0.2 port=1,2 dbname=d", "host=c")
    assert params == {"host": "c", "dbname": "d", "password": ""}
    assert "host" not in over("host=a", "service=s")
    assert over("host=a port=1", "port=2") == {"host": "a", "port": "2", "password": ""}


@pytest.mark.parametrize(
    ("own", "answered", "environ", "expected"),
    [
        ("sslmode=verify-full", "sslmode=require", {}, "verify-full"),
        ("sslmode=disable", "sslmode=require", {}, "require"),
        ("", "sslmode=require", {"PGSSLMODE": "verify-ca"}, "verify-ca"),
        ("sslrootcert=system", "sslmode=require", {}, "verify-full"),
        ("", "sslmode=require", {"PGSSLROOTCERT": "system"}, "verify-full"),
        ("sslmode=require", "sslmode=disable", {}, "require"),
        ("sslmode=nonsense", "sslmode=require", {}, "require"),
    ],
)
def test_stricter_sslmode_holds(own: str, answered: str, environ: dict[str, str], expected: str) -> None:
    """Credentials can ask for more than the settings do, but not for less."""
    assert raised_sslmode(parse_conninfo(own), parse_conninfo(answered), environ)["sslmode"] == expected
    assert "sslmode" not in raised_sslmode(parse_conninfo(own), parse_conninfo("user=u"), environ)


def test_fingerprints_tell_apart_and_tell_nothing() -> None:
    """The identity leaves secrets out, a key does not; neither is the hash that anybody else would get."""
    one, other = parse_conninfo("user=u password=p"), parse_conninfo("password=q user=u")
    assert identity(one) == identity(other) != identity(parse_conninfo("user=v password=p"))
    assert fingerprint("user=u password=p") != fingerprint("user=u password=q")
    plain = {hashlib.blake2b(text.encode(), digest_size=32).digest() for text in ("a", "'a'")}
    assert fingerprint("a") not in plain
    assert fingerprint("[('a', 'b')]") != fingerprint([("a", "b")])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("host=a port=1", {"host": "a", "port": "1"}),
        ({"host": "a", "port": 1, "user": None}, {"host": "a", "port": "1"}),
        ({"password": "a 'b\\ c://d@@"}, {"password": "a 'b\\ c://d@@"}),
        ({}, {}),
    ],
)
def test_strings_and_mappings_are_read(value: object, expected: dict[str, str]) -> None:
    """In a mapping nothing has to be escaped; what is ``None`` is left out."""
    assert read_conninfo(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        ["host=a"],
        {"hots": "a"},
        {"host": True},
        {"host": b"a"},
        {"password": "a\0b"},
        {7: "a"},
        {"port": "x"},
        {"host": "a@b"},
    ],
)
def test_other_values_are_refused(value: object) -> None:
    """Anything else is an error that quotes no value."""
    with pytest.raises(ValueError, match=r"^(is|has) a") as caught:
        read_conninfo(value)
    assert caught.value.__context__ is None
