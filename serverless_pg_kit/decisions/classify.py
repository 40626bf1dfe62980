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

    `max_retries` limits the retries for this row alone; ``None`` leaves them to the settings. A user's row with
    `codes` has every attempt to connect traced (Linux only), which leaks about 5 kB each; `texts` cost nothing.
    """

    kind: FailureKind
    codes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    max_retries: int | None = None


class Failure(NamedTuple):
    """A failed connect, understood: its class, the message without secrets, and the SQLSTATE if one could be had."""

    kind: FailureKind
    message: str
    code: str | None = None
    max_retries: int | None = None


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
        ),
    ),
    Rule(
        FailureKind.PERMANENT,
        codes=("3D000", "42501", "42704", "55000", "22023", "0A000"),
        texts=(
            "is not permitted to log in",
            "no such database",  # PgBouncer
            "permission denied for database",
            "is not currently accepting connections",
            "unrecognized configuration parameter",
            "unsupported startup parameter",  # PgBouncer
            "unsupported frontend protocol",
            "certificate verify failed",
            "server certificate for",  # "... does not match host name"
            "root certificate file",
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
            "endpoint id is not specified",  # Neon, from its source
            "enotfound",  # Supavisor, from its source, like the next three
            "ebanned",
            "esslrequired",
            "einvaliduserinfo",
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
        FailureKind.POOLER_FULL,
        texts=(
            "no more connections allowed",  # PgBouncer, like the next three
            "client connections exceeded",
            "query_wait_timeout",
            "client_login_timeout",
            "emaxconn",  # Supavisor, from its source, like the next two
            "echeckouttimeout",
            "max client connections reached",
            "maxclientsinsessionmode",
        ),
    ),
    Rule(
        FailureKind.STARTING_UP,
        codes=("57P03", "57P01", "57P02"),
        texts=(
            "the database system is",  # starting up, shutting down, in recovery mode, not (yet) accepting connections
            "pooler is shutting down",  # PgBouncer, like the next
            "server login has been failing",
            "terminating connection due to administrator command",
            "couldn't connect to compute node",  # Neon, from its source, like the next
            "control plane request failed",
            "edbhandlerexited",  # Supavisor, from its source, like the next
            "epoolterminating",
        ),
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
        texts=("no pg_hba.conf entry", "does not exist", "does not support ssl", "authentication failed"),
    ),
)

AMBIGUOUS = frozenset({"08P01", "XX000", "28000"})
"""SQLSTATEs that say less than the words beside them: poolers send the first two for everything, and 28000 stands for
a refused token as well as for a role that may not log in."""


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
    return Failure(rule.kind, message, code, rule.max_retries)


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
