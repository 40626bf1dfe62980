"""Where to connect: the user's connection string, completed by safe defaults, its secrets kept out of sight."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from typing import TypeAlias

SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
MASK = "***"
DEFAULTS = {"port": "5432"}
"""What libpq takes where nothing is said."""

_KEY = os.urandom(32)

SAFE_DEFAULTS: Mapping[str, str] = {
    "gssencmode": "disable",
    "keepalives_idle": "30",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
"""libpq parameters that are set unless the user sets them. `tcp_user_timeout` (milliseconds) is the one that ends the
wait on a connection whose peer vanished without a word; keepalives alone left such a query hanging for minutes."""

ENVIRONMENT_NAMES = {
    "gssencmode": "PGGSSENCMODE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "service": "PGSERVICE",
    "password": "PGPASSWORD",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}


ADDRESS = ("host", "hostaddr", "port", "service")
"""libpq parameters that say where the server is: who names another host means another address, not half of it."""

SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""libpq's values of `sslmode`, the stricter the later."""

Conninfo: TypeAlias = str | Mapping[str, str | int | None]
"""A connection string or URL, or libpq's parameters by name; those that are ``None`` are left out."""


class ConnParams(dict[str, str]):
    """libpq's connection parameters by name. Shows its secrets in neither `repr` nor `str`."""

    def __repr__(self) -> str:
        return repr({name: MASK if name in SECRETS else value for name, value in self.items()})

    __str__ = __repr__

    def conninfo(self) -> str:
        """Return the connection string, secrets included."""
        return make_conninfo(**self)


class Host(NamedTuple):
    """One host of a connection string, with what libpq needs to reach it alone."""

    name: str
    hostaddr: str
    port: str

    @property
    def is_local(self) -> bool:
        """Whether no network is crossed: a Unix socket or a loopback address."""
        name = self.hostaddr or self.name
        if not name or name.startswith(("/", "@")) or name.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def parse_conninfo(conninfo: str) -> ConnParams:
    """Return the parameters in `conninfo`.

    Raises ``ValueError`` if libpq cannot parse it, or if a host or port shows that a password was not
    percent-encoded. The message quotes nothing of `conninfo`, which may hold that password.
    """
    try:
        params = ConnParams({name: str(value) for name, value in conninfo_to_dict(conninfo).items()})
    except ProgrammingError:
        params = ConnParams()
        readable = False
    else:
        readable = True
    if not readable:  # raised out here, because the caught error's text and context may hold the password
        raise ValueError("is not a connection string that libpq can parse (not shown: it may hold a password)")
    problem = suspicious(conninfo, params)
    if problem:
        raise ValueError(problem)
    return params


def read_conninfo(value: object) -> ConnParams:
    """Return the parameters that `value` names, a connection string or a mapping.

    Raises ``ValueError`` for anything else, and for parameters that libpq does not know. The message quotes no value.
    """
    if isinstance(value, str):
        return parse_conninfo(value)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"is a {type(value).__name__}: a connection string, or a mapping of libpq's parameters is needed"
        )
    given = {name: each for name, each in value.items() if each is not None}
    for name, each in given.items():
        if not isinstance(name, str) or not isinstance(each, (str, int)) or isinstance(each, bool) or "\0" in str(each):
            raise ValueError("has a parameter that is no text: a mapping of libpq's parameters to texts is needed")
    return check_params(ConnParams({name: str(each) for name, each in given.items()}))


def check_params(params: ConnParams) -> ConnParams:
    """Return `params`. Raises ``ValueError``, quoting no value, if libpq does not take them."""
    try:
        params.conninfo()
        problem = suspicious("", params)
    except ProgrammingError:
        problem = f"has a parameter that libpq does not know, among {', '.join(params)}"
    if problem:  # raised out here, because the caught error's context may hold a password
        raise ValueError(problem)
    return params


def suspicious(conninfo: str, params: Mapping[str, str]) -> str:
    """Return what is wrong with a connection string that libpq can parse, without quoting it; empty if nothing is."""
    hosts, ports = params.get("host", "").split(","), params.get("port", "").split(",")
    encode = "percent-encode '@', ':' and '/' in the password"
    if "://" in conninfo and conninfo.partition("?")[0].count("@") > 1:
        return f"has more than one '@' before its parameters: {encode}"
    if any("@" in host[1:] for host in hosts) or not all(port.isdigit() for port in ports if port):
        return f"has a host or port that looks like part of a password: {encode}"
    if len(ports) not in (1, len(hosts)):
        return f"has {len(hosts)} hosts and {len(ports)} ports: give one port, or one for each host"
    if not re.fullmatch(r"-?\d{0,9}", params.get("connect_timeout", "")):
        return "has a connect_timeout that is no whole number of seconds"
    return ""


def complete(params: ConnParams, application_name: str, environ: Mapping[str, str]) -> ConnParams:
    """Return `params` with the safe defaults and the name, without what the user or libpq's variables set already.

    TLS is required unless every host is local, or the user says otherwise by parameter, variable or service file.
    """
    defaults = dict(SAFE_DEFAULTS)
    by_service = "service" in params or "PGSERVICE" in environ
    by_system = "system" in (params.get("sslrootcert"), environ.get("PGSSLROOTCERT"))  # implies verify-full
    if not (by_service or by_system) and not all(host.is_local for host in split_hosts(params, environ)):
        defaults["sslmode"] = "require"
    wanted = {name: value for name, value in defaults.items() if ENVIRONMENT_NAMES.get(name, "") not in environ}
    return ConnParams(wanted | params | {"application_name": application_name})


def overlaid(params: ConnParams, over: ConnParams, environ: Mapping[str, str]) -> ConnParams:
    """Return `params` with those of `over` in their place.

    An address is replaced as a whole: another host does not keep the port of the first. And a secret goes nowhere but
    where it was given for: to another address or user none of those in `params` or `environ` is taken along. Where one
    is, it goes by no laxer `sslmode`.
    """
    is_elsewhere = not over.keys().isdisjoint(("host", "hostaddr", "service"))
    kept = {name: value for name, value in params.items() if not (is_elsewhere and name in ADDRESS)}
    if principal(kept | over, environ) != principal(params, environ):
        kept = {name: value for name, value in kept.items() if name not in SECRETS} | {"password": ""}
    elif "password" not in over:
        over = raised_sslmode(params, over, environ)
    return ConnParams(kept | over)


def principal(params: Mapping[str, str], environ: Mapping[str, str]) -> list[str]:
    """Return who logs in where: what a secret belongs to."""
    return [parameter(params, environ, name) or DEFAULTS.get(name, "") for name in (*ADDRESS, "user")]


def raised_sslmode(params: ConnParams, over: ConnParams, environ: Mapping[str, str]) -> ConnParams:
    """Return `over` with the stricter of both `sslmode`: who asks for a certificate's check keeps it."""
    by_system = "system" in (params.get("sslrootcert"), environ.get("PGSSLROOTCERT"))
    own, other = "verify-full" if by_system else parameter(params, environ, "sslmode"), over.get("sslmode")
    if own in SSLMODES and other in SSLMODES and SSLMODES.index(own) > SSLMODES.index(other):
        return ConnParams(over | {"sslmode": own})
    return over


def address(params: Mapping[str, str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return where the server of `params` is, without anything secret: the same for all its databases and roles."""
    names = (*ADDRESS, "target_session_attrs")
    return tuple(parameter(params, environ, name) or DEFAULTS.get(name, "") for name in names)


def fingerprint(value: object) -> bytes:
    """Return what tells `value`, by its plain `repr`, from others in this process. Nothing in it can be read from the
    result, nor guessed: the key is random, and known to no other process."""
    from hashlib import blake2b  # few functions need it

    return blake2b(repr(value).encode(errors="surrogatepass"), key=_KEY, digest_size=32).digest()


def identity(params: Mapping[str, str]) -> bytes:
    """Return what tells who logs in where, and how, from others: all of `params` but the secrets."""
    return fingerprint(sorted(item for item in params.items() if item[0] not in SECRETS))


def split_hosts(params: Mapping[str, str], environ: Mapping[str, str]) -> list[Host]:
    """Return the hosts of a (possibly multi-host) connection string in order, libpq's variables considered."""
    names, addresses, ports = (parameter(params, environ, name).split(",") for name in ("host", "hostaddr", "port"))
    count = max(len(names), len(addresses))
    return [
        Host(name, address, port)
        for name, address, port in zip(
            _spread(names, count), _spread(addresses, count), _spread(ports, count), strict=True
        )
    ]


def parameter(params: Mapping[str, str], environ: Mapping[str, str], name: str) -> str:
    """Return libpq's parameter `name`, or what its variable says, or an empty string."""
    return params.get(name) or environ.get(ENVIRONMENT_NAMES[name], "")


def _spread(values: list[str], count: int) -> Iterator[str]:
    """Yield `count` values; a single one stands for all hosts, as in libpq."""
    return iter(values * count if len(values) == 1 else [*values, *[""] * count][:count])


def secrets_in(params: Mapping[str, str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the secret values that could show up in a message about a connection made with `params`."""
    found = [params.get(name, "") for name in SECRETS] + [environ.get("PGPASSWORD", "")]
    return tuple(value for value in found if value)


def scrub(message: str, secrets: Iterable[str]) -> str:
    """Return `message` with every one of `secrets` masked, percent-encoded forms too.

    Only whole words are masked: the password "app" must not blacken half of a sentence and so give itself away.
    """
    for secret in secrets:
        for form in {secret, quote(secret, safe="")}:
            message = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", MASK, message)
    return message
