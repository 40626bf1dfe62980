"""What stands where Django expects a pool: it lends a connection of the engine for the length of a request."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from psycopg import Connection, Error

from serverless_pg_kit.scope import Scope
from serverless_pg_kit_django.engines import engine_of, engines_on
from serverless_pg_kit_django.time_left import time_left

if TYPE_CHECKING:
    from serverless_pg_kit_django.wrapper import EngineConnections


class Borrowings:
    """What a thread has borrowed. When the thread is over, so is this, and gives all of it back.

    A wrapper whose thread is gone would otherwise hold its connection until the garbage collector comes. One that is
    shared between threads is left alone: others may still use it.
    """

    def __init__(self) -> None:
        self.wrappers: weakref.WeakSet[EngineConnections] = weakref.WeakSet()
        self._process = os.getpid()  # a fork ends all other threads, before anybody is told that this is a child

    def __del__(self) -> None:
        if not sys.is_finalizing() and self._process == os.getpid():
            for wrapper in list(self.wrappers):
                if not wrapper.allow_thread_sharing:
                    with suppress(Exception):  # nobody is there any more to hear of it
                        wrapper._close()


class OfThread(threading.local):
    """The present thread's `Borrowings`."""

    def __init__(self) -> None:
        self.borrowings: Borrowings = Borrowings()


_of_thread = OfThread()


class Lender:
    """Lends one connection at a time to one of Django's wrappers. Its public methods are those of psycopg's pool that
    Django calls."""

    def __init__(self, wrapper: EngineConnections) -> None:
        self._wrapper = weakref.ref(wrapper)
        self._scope: Scope | None = None
        self.params: dict[str, Any] = {}
        self.cursors: weakref.WeakSet[Any] = weakref.WeakSet()

    def open(self) -> None:
        """Do nothing: engines need no opening."""

    def getconn(self) -> Connection[Any]:
        """Return a live connection: idle, its session as Django wants it. Raises what `Engine.request` raises."""
        wrapper = self._of()
        scope = engine_of(wrapper, self.params).scope(deadline=time_left(), join=False, transaction=False)
        conn = scope.connection
        self._scope = scope
        _of_thread.borrowings.wrappers.add(wrapper)
        return conn

    def give_back(self) -> bool:
        """Roll back what is left open and give the connection back, if there is one; tell whether there was.

        Cursors are closed: whoever still holds one, as an iterator does that was not read to its end, must not reach
        the next request's session by it.
        """
        scope, self._scope = self._scope, None
        if scope is None:
            return False
        for cursor in list(self.cursors) if scope.is_open else ():
            with suppress(Error):  # the session is lost, or its transaction has failed
                cursor.close()
        scope.fail()
        scope.end()
        return True

    def close(self) -> None:
        """Close this process's connections to the database that no request uses; others when they are given back."""
        for engine in engines_on(self._of().get_connection_params().get("dbname")):
            engine.close()

    def _of(self) -> EngineConnections:
        wrapper = self._wrapper()
        assert wrapper is not None, "a lender is used by its wrapper only"
        return wrapper

    @property
    def is_inherited(self) -> bool:
        """Whether the connection was borrowed by the process that this one was forked from."""
        return self._scope is not None and not self._scope.is_open

    @property
    def is_direct(self) -> bool:
        """Whether the session is the connection's own, so that the engine has seen to it."""
        return self._scope is not None and self._scope.is_direct is True
