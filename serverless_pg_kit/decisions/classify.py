"""What a failed connect means: a table, read from the top; the first rule that fits any line of the message wins.

psycopg gives no SQLSTATE for a failed connect, poolers hide the cause behind 08P01 or XX000, and a server may speak
another language than English. So a rule names both the SQLSTATEs that settle a case by themselves and the words by
which it is known without one. Rules stand in order of certainty: an answer about the login itself comes before a
passing shortage, and "no pg_hba.conf entry" comes late, because libpq adds it when it tries again without TLS after
the real refusal. Users put rules of their own in front (setting ``connect_rules``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple


class FailureKind(Enum):
    """Classes of failed connects. Only `PERMANENT` and `CREDENTIALS` are not worth another attempt."""

    CREDENTIALS = "credentials"
    PERMANENT = "permanent"
    CAPACITY = "capacity"
    POOLER_FULL = "pooler full"
    STARTING_UP = "starting up"
    NETWORK = "network"
    UNKNOWN = "unknown"

    @property
    def retryable(self) -> bool:
        """Whether waiting may cure it."""
        return self not in (FailureKind.CREDENTIALS, FailureKind.PERMANENT)


class Rule(NamedTuple):
    """One row: `kind` applies if the SQLSTATE is among `codes` or a line holds one of `texts` (lower case).

    `max_retries` limits the retries for this row alone; ``None`` leaves them to the settings. `advice` is what the
    error tells its reader to do, empty for that of the `kind`. A user's row with `codes` has every attempt to connect
    traced (Linux only), which leaks about 5 kB each; `texts` cost nothing.
    """

    kind: FailureKind
    codes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    max_retries: int | None = None
    advice: str = ""


class Failure(NamedTuple):
    """A failed connect, understood: its class, the message without secrets, the SQLSTATE if one could be had, and what
    to do about it, where that is more than the class says."""

    kind: FailureKind
    message: str
    code: str | None = None
    max_retries: int | None = None
    advice: str = ""


NAME_RETRIES = 2
"""Retries of a host name that does not resolve: enough for a failover's DNS change, not for a typing error."""

RULES: tuple[Rule, ...] = (
    Rule(
        FailureKind.CREDENTIALS,
        codes=("28P01",),
        texts=(
            "password authentication failed",
            "pam authentication failed",
            "no password supplied",
            "no such user",  # PgBouncer
            "sasl authentication failed",  # PgBouncer
            "password that was provided for the role",  # RDS Proxy, from its documentation, like the next two
            "iam authentication failed for",
            "has no credentials for the role",
        ),
    ),
    Rule(
        FailureKind.PERMANENT,
        texts=("certificate has expired", "certificate is not yet valid"),
        advice="renew the server's certificate; if it is valid, set the clock of this machine",
    ),
    Rule(
        FailureKind.PERMANENT,
        texts=(
            "self-signed certificate",  # these are OpenSSL's words for what `certificate` finds out
            "self signed certificate",
            "unable to get local issuer",
            "unable to get issuer",
            "unable to verify the first certificate",
            "certificate signature failure",
        ),
        advice="no authority in sslrootcert has signed the server's certificate: give the file of the one that has",
    ),
    Rule(
        FailureKind.PERMANENT,
        texts=("root certificate file",),
        advice="say sslrootcert=<file> with the certificate of the authority that has signed the server's, or"
        " sslrootcert=system for the authorities that this system trusts",
    ),
    Rule(
        FailureKind.PERMANENT,
        texts=("does not match host name", "could not get server's host name"),
        advice="the certificate is another host's: connect by a name that it is for, or get one for this name",
    ),
    Rule(
        FailureKind.PERMANENT,
        texts=("does not support ssl",),
        advice="the server offers no TLS, and nothing was sent in plain text: turn TLS on there, or say"
        " sslmode=disable if nobody can listen on the way",
    ),
    Rule(
        FailureKind.PERMANENT,
        texts=(
            "ssl required",  # PgBouncer, like the next; its certificate may also be asked for
            "tls connection required",
            "requires tls connections",  # RDS Proxy, from its documentation, like the next
            "only with ssl connections",
            "esslrequired",  # Supavisor, from its source
        ),
        advice="the pooler takes only connections with TLS: say sslmode=require, or better verify-full",
    ),
    Rule(
        FailureKind.PERMANENT,
        texts=("not allowed in statement pooling mode",),  # PgBouncer
        advice="a pooler in statement mode has no transactions: set autocommit=True, or let it share out whole"
        " transactions (pool_mode = transaction)",
    ),
    Rule(
        FailureKind.PERMANENT,
        texts=(
            "unsupported startup parameter",  # PgBouncer
            "currently doesn't support the option",  # RDS Proxy, from its documentation
        ),
        advice="take the parameter out of the connection string (settings in `options` can be made the role's by ALTER"
        " ROLE ... SET), or let the pooler ignore it (PgBouncer: ignore_startup_parameters)",
    ),
    Rule(
        FailureKind.PERMANENT,
        codes=("3D000", "42501", "42704", "55000", "22023", "0A000"),
        texts=(
            "is not permitted to log in",
            "no such database",  # PgBouncer
            "permission denied for database",
            "is not currently accepting connections",
            "bouncer config error",  # PgBouncer, like the next
            "no username supplied",
            "unrecognized configuration parameter",
            "unsupported frontend protocol",
            "certificate verify failed",
            "certificate authentication failed",
            "channel binding required",
            "weak sslmode",
            "could not load private key",
            "could not read certificate",
            "private key file",
            "has group or world access",
            "invalid port number",
            "invalid sslmode value",
            "invalid target_session_attrs value",
            "invalid integer value",
            "definition of service",
            "authentication method requirement",  # require_auth
            "endpoint id is not specified",  # Neon, from its source, like the next three
            "is not allowed to connect to this endpoint",
            "exceeded the compute time quota",
            "exceeded the data transfer quota",
            "enotfound",  # Supavisor, from its source, like the next two
            "ebanned",
            "einvaliduserinfo",
            "user name is missing from the connection startup packet",  # RDS Proxy, from its documentation
        ),
    ),
    Rule(
        FailureKind.CAPACITY,
        codes=("53300",),
        texts=(
            "too many clients already",
            "remaining connection slots are reserved",
            "too many connections",  # for role, for database
        ),
    ),
    Rule(
        FailureKind.STARTING_UP,
        codes=("57P03", "57P01", "57P02"),
        texts=(
            "the database system is",  # starting up, shutting down, in recovery mode, not (yet) accepting connections
            "pooler is shutting down",  # PgBouncer, like the next seven
            "server login has been failing",
            "pgbouncer cannot connect to server",
            "server conn crashed",
            "server dns lookup failed",
            "client_login_timeout (server down)",
            "pause mode",
            "database removed",
            "terminating connection due to administrator command",
            "couldn't connect to compute node",  # Neon, from its source, like the next
            "control plane request failed",
            "edbhandlerexited",  # Supavisor, from its source, like the next
            "epoolterminating",
        ),
    ),
    Rule(
        FailureKind.POOLER_FULL,
        texts=(
            "no more connections allowed",  # PgBouncer, like the next four
            "client connections exceeded",
            "query_wait_timeout",
            "client_login_timeout",
            "bouncer resources exhaustion",
            "emaxconn",  # Supavisor, from its source, like the next three
            "echeckouttimeout",
            "max client connections reached",
            "maxclientsinsessionmode",
            "waiting to acquire database connection",  # RDS Proxy, from its documentation, like the next three
            "client connections to the proxy exceeded",
            "rate of connection to proxy exceeded",
            "too many competing requests",
        ),
    ),
    Rule(
        FailureKind.UNKNOWN,  # so that it is asked once a second at most
        texts=("ecircuitbreaker",),  # Supavisor, from its source
        advice="refused logins have opened the pooler's circuit breaker: check user and password, then wait",
    ),
    Rule(
        FailureKind.NETWORK,
        texts=("could not translate host name", "name or service not known"),
        max_retries=NAME_RETRIES,
    ),
    Rule(
        FailureKind.NETWORK,
        codes=("08000", "08001", "08003", "08004", "08006"),
        texts=(
            "connection refused",
            "connection reset",
            "connection timed out",
            "no route to host",
            "network is unreachable",
            "host is down",
            "server closed the connection unexpectedly",
            "connection timeout expired",
            "could not receive data from server",
            "could not send",
            "ssl error: unexpected eof",
            "eauthtimeout",  # Supavisor, from its source
            "ssl syscall error",
            "no such file or directory",  # the Unix socket of a server that is not up
            "temporary failure in name resolution",
            "session is read-only",  # target_session_attrs during a failover, like the next three
            "session is not read-only",
            "server is in hot standby mode",
            "server is not in hot standby mode",
        ),
    ),
    Rule(
        FailureKind.PERMANENT,
        codes=("28000", "53400"),
        texts=("no pg_hba.conf entry", "does not exist", "authentication failed"),
    ),
)

AMBIGUOUS = frozenset({"08P01", "XX000", "08000", "08006", "28000"})
"""SQLSTATEs that say less than the words beside them: poolers send those of class 08 and XX000 for nearly everything,
and 28000 stands for a refused token as well as for a role that may not log in."""


def classify(message: str, codes: Sequence[str] = (), extra_rules: Sequence[Rule] = ()) -> Failure:
    """Return what the failed connect with this (already scrubbed) `message` means.

    `codes` are the SQLSTATEs the server sent, in order; libpq may try twice in one connect, with TLS and without.
    A user's `extra_rules` come first, each by its codes and then its words. After them SQLSTATEs that are not
    `AMBIGUOUS` decide, because words are localised and may occur in the names of databases and roles.
    """
    certain = [code for code in codes if code not in AMBIGUOUS]
    lines = [plain_words(line) for line in message.splitlines()]
    rule = (
        first_rule(extra_rules, codes, lines)
        or first_rule(RULES, certain, [])
        or first_rule(RULES, (), lines)
        or first_rule(RULES, codes, [])
    )
    code = codes[0] if codes else None
    if rule is None:
        return Failure(FailureKind.UNKNOWN, message, code)
    return Failure(rule.kind, message, code, rule.max_retries, rule.advice)


def most_telling(failures: Iterable[Failure]) -> Failure:
    """Return the last of several hosts' failures, but an answer from a server before one of the network."""
    return sorted(failures, key=lambda failure: failure.kind is not FailureKind.NETWORK)[-1]


def first_rule(rules: Sequence[Rule], codes: Sequence[str], lines: Sequence[str]) -> Rule | None:
    """Return the first of `rules` that one of `codes` or one of the lower-case `lines` fits."""
    return next((rule for rule in rules if fits(rule, codes, lines)), None)


def fits(rule: Rule, codes: Sequence[str], lines: Sequence[str]) -> bool:
    """Tell whether `rule` names one of `codes` or a text that stands in one of `lines`."""
    return not set(rule.codes).isdisjoint(codes) or any(text.lower() in line for text in rule.texts for line in lines)


def plain_words(line: str) -> str:
    """Return `line` in lower case, without what stands in double quotes: names that users chose."""
    return re.sub(r'"[^"]*"', '""', line).lower()
