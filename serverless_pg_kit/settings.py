"""The settings: one frozen object, the same names in every framework."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection, Connection

from serverless_pg_kit.conninfo import Conninfo, ConnParams, parse_conninfo
from serverless_pg_kit.decisions.classify import Rule
from serverless_pg_kit.decisions.cleaning import Strategy
from serverless_pg_kit.decisions.pooler import Pooler
from serverless_pg_kit.errors import SettingsError
from serverless_pg_kit.events import Listener
from serverless_pg_kit.statements import Statements

ENV_PREFIX = "SERVERLESS_PG_"
DEFAULT_FLEET = "serverless_pg_kit"
LONGEST_NAME = 63
"""Bytes of an application name; the server cuts what is longer."""


if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    # Python would write these methods anew at every import, and a cold start would wait for it.
    dataclass = functools.partial(dataclasses.dataclass, init=False)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Settings:
    """All settings of an engine, checked when made. Times are seconds; 0 and ``None`` mean what they say.

    Raises `SettingsError` for an unknown name or a value that is not allowed, naming the setting, the value and what
    is allowed. ``repr`` masks secrets. `from_env` reads ``SERVERLESS_PG_<NAME>``.
    """

    conninfo: str = ""
    """Connection string or URL. Empty: the environment's ``DATABASE_URL``, then libpq's ``PG*`` variables."""

    credentials: Callable[[], Conninfo | Awaitable[Conninfo]] | None = None
    """Called before a connection is opened: what it returns, a connection string or a mapping of libpq's parameters,
    comes over `conninfo`. A method ``invalidate`` of it, if there is one, is called when the server has rejected that,
    and it is asked again, once; and before a snapshot. For an `AsyncEngine` it may be an async function."""

    application_name: str = DEFAULT_FLEET
    """Names the fleet whose idle connections may be ended. Printable ASCII without ``:``, quotes and backslash, at
    most 63 bytes. Sent as ``name:function`` where the platform tells the function's name. At its default, an
    ``application_name`` in `conninfo` is used instead."""

    max_size: int = 10
    """Connections per process, at most; opened as needed."""

    autocommit: bool = False
    """Give connections out in autocommit mode, with no transaction around the request."""

    strategy: Strategy = "lease"
    """How room is made. ``"lease"``: idle connections end by themselves, the sooner the less room there is, and only a
    surplus is ended. ``"minimum_idle_time"``: all sessions of this fleet idle for longer than `min_idle_time` are ended
    when room is short; ``"ranked"``: all that are idle, the longest idle first; ``"none"``: nobody. Servers before 14
    know no leases; there ``"lease"`` works like ``"minimum_idle_time"``."""

    max_connections: int | None = None
    """Ceiling for the sessions of the whole server. ``None``: ask the server, less what it reserves."""

    conn_utilization: float = 0.8
    """Share of the ceiling, 0 to 1, above which room is made."""

    min_idle_time: float = 0.5
    """Seconds a session must have been idle before ``"minimum_idle_time"`` ends it."""

    max_kills: int | None = None
    """Sessions ended at most in one go. ``None``: all that qualify."""

    census_ttl: float = 6.0
    """Seconds between two counts of the server's sessions by one container while there is room; less while it is short,
    more in large fleets. 0 counts after every request."""

    lease: float = 300.0
    """Seconds an idle connection lives at most, with the strategy ``"lease"``: the server ends it then, even if this
    container is frozen. 0 keeps no idle connection."""

    max_wait: float = 10.0
    """Seconds to wait for a connection, all in: every host, attempt and pause. 0: one attempt."""

    max_retries: int | None = None
    """Attempts to connect after the first. ``None``: as many as fit into `max_wait`."""

    backoff_base: float = 0.05
    """Seconds: the longest pause before the first retry. It grows by a factor of three."""

    backoff_cap: float = 2.0
    """Seconds: the longest pause between attempts."""

    deadline_margin: float = 0.5
    """Seconds of an invocation's remaining time that are kept for the answer."""

    check_after: float = 30.0
    """Seconds an autocommit connection may have been idle before a request tries it by a short message. (Others are
    tried by the message with their BEGIN.)"""

    max_lifetime: float | None = 3600.0
    """Seconds after which a connection is replaced, less up to a tenth at random. ``None``: never."""

    configure: Callable[[Any], object] | None = None
    """Called with each new connection before its first request: type adapters, row factory. What it sets on the
    connection object is what every request starts from. If it talks to the server, it is called again after each
    `reset`, because that undoes it. It must leave no transaction open. For an
    `AsyncEngine` it may be an async function."""

    down_ttl: float = 1.0
    """Seconds, give or take half of it, for which a server that was down for a whole `max_wait` is not waited for
    again: requests get one attempt each. 0: every request waits."""

    hold_warning: float | None = None
    """Seconds a request may hold its connection unused before the event `HeldUnused` says so. ``None``: any time."""

    reset: bool = True
    """Whether session state (SET, role, temporary tables, advisory locks, ...) is undone between requests."""

    session: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    """PostgreSQL's own settings that every request starts from in place of the server's defaults, such as
    ``{"timezone": "UTC", "role": "app"}``. They travel with the first message of a connection and with each `reset`: no
    round trip. Behind a pooler, whose sessions are not ours, they are not set."""

    pooler: Pooler = "auto"
    """The pooler between this process and the server: ``"pgbouncer"``, ``"rds-proxy"``, ``"supavisor"``, ``"neon"`` or
    ``"none"``. Through any of them nothing is done to sessions: no lease, guard, reset, census or prepared statement.
    ``"auto"`` knows RDS Proxy, Neon and Supavisor by their host names, and every other by asking the server on each new
    connection; that is done with ``"none"`` too, which only says that the name misleads."""

    connection_class: type[Connection[Any]] | type[AsyncConnection[Any]] = Connection
    """Class of the connections given out: a subclass of ``psycopg.Connection``, or of ``psycopg.AsyncConnection`` for
    an `AsyncEngine`. The default is for both, and gives each psycopg's own."""

    connect_rules: Sequence[Rule] = ()
    """Rules that come before the kit's own when a failed connect is classified."""

    statements: Statements = dataclasses.field(default_factory=Statements)
    """The kit's SQL; a subclass's instance for wire-compatible databases."""

    on_event: Listener | Sequence[Listener] | None = None
    """Called with every event, in the thread of the request: one plain callable or a sequence of them."""

    if not TYPE_CHECKING:

        def __init__(self, **names: object) -> None:
            reject_unknown(names)
            for field in dataclasses.fields(self):
                is_plain = field.default_factory is dataclasses.MISSING
                default = field.default if is_plain else field.default_factory()
                object.__setattr__(self, field.name, names.get(field.name, default))
            self.__post_init__()

    def __post_init__(self) -> None:
        for name, (allowed, check) in CHECKS.items():
            value = getattr(self, name)
            if not check(value):
                raise SettingsError(f"{name}={shown(name, value)} is not allowed: {allowed}")
        self._check_conninfo()

    def __repr__(self) -> str:
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shown["conninfo"] = self.parameters({}) if self.conninfo else ""
        if self.credentials is not None:  # the repr of a partial shows its arguments
            shown["credentials"] = name_of(self.credentials)
        shown["session"] = sorted(self.session)  # not the values: row-level security may hang on them
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, Settings) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.conninfo, self.application_name))  # other values may be mappings

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **names: Any) -> Settings:
        """Return the settings in the variables ``SERVERLESS_PG_<NAME>`` of `environ` (default: the process's).

        `names` are settings that come before the environment. Times are numbers of seconds, switches ``true`` or
        ``false``, and ``none`` is ``None``. Raises `SettingsError`, also for a name that does not exist and for one
        whose value cannot be written as text.
        """
        environ = os.environ if environ is None else environ
        return cls(**named_in(environ) | names)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Return the settings under the keys ``SERVERLESS_PG_<NAME>`` of `config`, a framework's configuration.

        Texts are read as those of the environment are; any other value is taken as it is. What `config` lacks comes
        from the environment. Raises `SettingsError`, also for a name that does not exist.
        """
        return cls.from_env(**named_in(config))

    def parameters(self, environ: Mapping[str, str]) -> ConnParams:
        """Return libpq's parameters: those of `conninfo`, or if it is empty of ``DATABASE_URL`` in `environ`.

        Raises `SettingsError` if libpq cannot parse them.
        """
        name = "conninfo" if self.conninfo else "DATABASE_URL"
        try:
            return parse_conninfo(self.conninfo or environ.get("DATABASE_URL", ""))
        except ValueError as error:
            problem = str(error)
        raise SettingsError(f"{name} {problem}")

    def listeners(self) -> tuple[Listener, ...]:
        """Return `on_event` as a tuple."""
        if self.on_event is None:
            return ()
        return (self.on_event,) if callable(self.on_event) else tuple(self.on_event)

    def _check_conninfo(self) -> None:
        params = self.parameters({})
        check_fleet_name(params.get("application_name", DEFAULT_FLEET))


def named_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings under the keys ``SERVERLESS_PG_<NAME>`` of `config`, by name. Raises `SettingsError`."""
    found = {key[len(ENV_PREFIX) :].lower(): value for key, value in config.items() if key.startswith(ENV_PREFIX)}
    reject_unknown(found, prefix=ENV_PREFIX)
    return {name: read_text(name, value) if isinstance(value, str) else value for name, value in found.items()}


def is_number(value: object) -> bool:
    """Tell whether `value` is a finite number (a bool is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_count(value: object, least: int) -> bool:
    """Tell whether `value` is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_duration(value: Any) -> bool:
    """Tell whether `value` is a finite number of at least 0."""
    return is_number(value) and value >= 0


def is_fleet_name(value: object) -> bool:
    """Tell whether `value` comes back from the server as it was sent and can be matched."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= LONGEST_NAME
        and all(" " <= character <= "~" and character not in ":'\"\\" for character in value)
    )


def check_fleet_name(value: str) -> None:
    """Raise `SettingsError` if `value`, from a connection string, does not come back from the server as it was sent."""
    if not is_fleet_name(value):
        raise SettingsError(f"application_name in conninfo is not allowed: it has to be {FLEET_NAME}")


def name_of(value: object) -> str:
    """Return what a callable is called; its own `repr` may show what it holds."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def is_session(value: object) -> bool:
    """Tell whether `value` maps names of PostgreSQL's settings to texts."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and re.fullmatch(r"[a-zA-Z_][\w$]*(\.[a-zA-Z_][\w$]*)*", name, re.ASCII)
        and isinstance(text, str)
        and "\0" not in text
        and "\\" not in text
        for name, text in value.items()
    )


def is_listener(value: object) -> bool:
    """Tell whether `value` can be called with an event, and does its work then: a coroutine function would not."""
    codes = (value, getattr(value, "__call__", None))  # noqa: B004 - its kind matters, not its presence
    return callable(value) and not any(map(inspect.iscoroutinefunction, codes))


LISTENER = "a plain callable, not an async one"
FLEET_NAME = f"1 to {LONGEST_NAME} printable ASCII characters without colon, quotes and backslash"
DURATION = "a number of seconds, 0 or more"
COUNT = "a whole number, {} or more"

CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "conninfo": ("a connection string", lambda value: isinstance(value, str)),
    "credentials": ("a callable, or None", lambda value: value is None or callable(value)),
    "application_name": (FLEET_NAME, is_fleet_name),
    "max_size": (COUNT.format(1), lambda value: is_count(value, 1)),
    "autocommit": ("True or False", lambda value: isinstance(value, bool)),
    "strategy": (
        "'lease', 'minimum_idle_time', 'ranked' or 'none'",
        lambda value: value in ("lease", "minimum_idle_time", "ranked", "none"),
    ),
    "max_connections": (COUNT.format(1) + ", or None", lambda value: value is None or is_count(value, 1)),
    "conn_utilization": ("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1),
    "min_idle_time": (DURATION, is_duration),
    "max_kills": (COUNT.format(0) + ", or None", lambda value: value is None or is_count(value, 0)),
    "census_ttl": (DURATION, is_duration),
    "lease": (DURATION, is_duration),
    "max_wait": (DURATION, is_duration),
    "max_retries": (COUNT.format(0) + ", or None", lambda value: value is None or is_count(value, 0)),
    "backoff_base": ("a number of seconds above 0", lambda value: is_number(value) and value > 0),
    "backoff_cap": ("a number of seconds above 0", lambda value: is_number(value) and value > 0),
    "deadline_margin": (DURATION, is_duration),
    "check_after": (DURATION, is_duration),
    "max_lifetime": (
        "a number of seconds above 0, or None",
        lambda value: value is None or (is_number(value) and value > 0),
    ),
    "configure": ("a callable, or None", lambda value: value is None or callable(value)),
    "down_ttl": (DURATION, is_duration),
    "hold_warning": (DURATION + ", or None", lambda value: value is None or is_duration(value)),
    "reset": ("True or False", lambda value: isinstance(value, bool)),
    "session": ("texts without backslash, by the names of PostgreSQL's settings", is_session),
    "pooler": (
        "'auto', 'none', 'pgbouncer', 'rds-proxy', 'supavisor' or 'neon'",
        lambda value: value in ("auto", "none", "pgbouncer", "rds-proxy", "supavisor", "neon"),
    ),
    "connection_class": (
        "psycopg.Connection, psycopg.AsyncConnection or a subclass of one",
        lambda value: isinstance(value, type) and issubclass(value, (Connection, AsyncConnection)),
    ),
    "connect_rules": (
        "a sequence of Rule",
        lambda value: isinstance(value, Sequence) and all(isinstance(rule, Rule) for rule in value),
    ),
    "statements": ("an instance of Statements", lambda value: isinstance(value, Statements)),
    "on_event": (
        f"{LISTENER}, a sequence of such, or None",
        lambda value: (
            value is None or is_listener(value) or (isinstance(value, Sequence) and all(map(is_listener, value)))
        ),
    ),
}


def shown(name: str, value: object) -> str:
    """Return what an error may show of a bad `value`: not what could be a connection string with its password."""
    if name in ("conninfo", "credentials", "session") or (
        isinstance(value, str) and any(sign in value for sign in ("@", "=", "://"))
    ):
        return f"a {type(value).__name__} that is not shown"
    return repr(value)


def reject_unknown(names: Mapping[str, object], prefix: str = "") -> None:
    """Raise `SettingsError` for the first of `names` that is no setting, with the nearest name that is.

    A text under a name that resembles none is not shown: whoever takes ``password`` or ``dsn`` for a setting gives a
    secret for it.
    """
    for name in names.keys() - CHECKS.keys():
        import difflib  # costs more to load than the rest of this module

        near = difflib.get_close_matches(name, CHECKS, n=1)
        value = names[name] if near or not isinstance(names[name], str) else "not shown"
        hint = f"did you mean {_spelled(near[0], prefix)}?" if near else "allowed are "
        names_allowed = "" if near else ", ".join(_spelled(known, prefix) for known in CHECKS)
        text = shown(near[0] if near else "", value)
        raise SettingsError(f"{_spelled(name, prefix)}={text}: there is no such setting; {hint}{names_allowed}")


def _spelled(name: str, prefix: str) -> str:
    return prefix + name.upper() if prefix else name


SWITCHES = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
TEXTS = ("conninfo", "application_name", "strategy", "pooler")
COUNTS = ("max_size", "max_connections", "max_kills", "max_retries")
NOT_TEXTUAL = ("credentials", "configure", "connection_class", "connect_rules", "session", "statements", "on_event")


def read_text(name: str, text: str) -> object:
    """Return the value that `text`, an environment variable's, means for setting `name`. Raises `SettingsError`."""
    if name in NOT_TEXTUAL:
        raise SettingsError(f"{ENV_PREFIX}{name.upper()}: {name} cannot be set by a variable; pass it in code")
    if name in TEXTS:
        return text
    word = text.strip().lower()
    if name in ("autocommit", "reset"):
        return SWITCHES.get(word, text)  # what is no switch is refused by the checks, by name
    if word == "none":
        return None
    try:
        return int(word) if name in COUNTS else float(word)
    except ValueError:
        return text
