"""Whom connections are for: the settings' own server, database and role, and those that single requests name."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping

from serverless_pg_kit.conninfo import Conninfo, ConnParams, address, fingerprint, overlaid, read_conninfo
from serverless_pg_kit.errors import SettingsError
from serverless_pg_kit.history import History
from serverless_pg_kit.settings import DEFAULT_FLEET, check_fleet_name

MOST = 1000
"""How many of the targets that requests name are remembered without a connection or a request, the latest."""


class Target:
    """One server, database, role and secret, for which connections are kept; none ever serves another one.

    It is told from others by identity, and holds no secret. `history` is what was seen of its server, and shared by
    all targets there; `address` says where that is, ``None`` until the first connection is opened.
    """

    __slots__ = ("__weakref__", "address", "history")

    def __init__(self, history: History) -> None:
        self.history: History = history
        self.address: tuple[str, ...] | None = None


class Tenant:
    """The target that one request names, with its connection string. It lives as long as the request."""

    __slots__ = ("conninfo", "target")

    def __init__(self, target: Target, conninfo: Conninfo) -> None:
        self.target: Target = target
        self.conninfo: Conninfo = conninfo

    def parameters(self) -> ConnParams:
        """Return what the request names. Raises `SettingsError`."""
        return conninfo_of_request(self.conninfo)


class Targets:
    """The targets of one engine in one process. All methods are safe to call from several threads."""

    def __init__(self, make_history: Callable[[], History]) -> None:
        self._make_history = make_history
        self._lock = threading.Lock()
        self._servers: weakref.WeakValueDictionary[tuple[str, ...], History] = weakref.WeakValueDictionary()
        self._named: weakref.WeakValueDictionary[bytes, Target] = weakref.WeakValueDictionary()
        self._latest: OrderedDict[bytes, Target] = OrderedDict()  # keeps them from being forgotten

    def tenant(self, conninfo: Conninfo, base: Callable[[Mapping[str, str]], ConnParams]) -> Tenant | None:
        """Return whom a request with this `conninfo` is for: ``None`` for the settings' own, whose parameters are
        `base`. Raises `SettingsError` for a bad one, without showing it."""
        if isinstance(conninfo, Mapping):
            conninfo = dict(conninfo)  # the caller's may change before the request connects
        if not conninfo and isinstance(conninfo, (str, dict)):
            return None
        key = fingerprint(sorted(conninfo.items(), key=str) if isinstance(conninfo, dict) else conninfo)
        target = self._named.get(key)
        if target is None:
            where = overlaid(base(os.environ), conninfo_of_request(conninfo), os.environ)
            self.settle(target := self._remember(key, Target(self._make_history())), where)
        else:
            self._remember(key, target)
        return Tenant(target, conninfo)

    def _remember(self, key: bytes, target: Target) -> Target:
        """Keep `target` for `key`, unless there is one; return that which is kept."""
        with self._lock:
            kept = self._named.setdefault(key, target)
            self._latest[key] = kept
            self._latest.move_to_end(key)
            while len(self._latest) > MOST:
                self._latest.popitem(last=False)
            return kept

    def settle(self, target: Target, params: ConnParams) -> bool:
        """Note that `target` is where `params` lead: from now on it shares what was seen of that server. Tell whether
        that is news."""
        where = address(params, os.environ)
        if target.address == where:
            return False
        with self._lock:
            is_first = target.address is None
            seen = self._servers.get(where)
            if seen is None:
                seen = target.history if is_first else self._make_history()
                self._servers[where] = seen
            target.history, target.address = seen, where
            return True


def conninfo_of_request(conninfo: Conninfo) -> ConnParams:
    """Return the parameters that a request names. Raises `SettingsError`, which shows nothing of them."""
    try:
        params = read_conninfo(conninfo)
    except ValueError as error:
        problem = str(error)
    else:
        check_fleet_name(params.get("application_name", DEFAULT_FLEET))
        return params
    raise SettingsError(f"conninfo of a request {problem}")
