"""Where a web request begins and ends: around the whole WSGI application, body included.

Flask's own teardown is no such place. It runs before a body is streamed, or after it, or both times, by version and by
``stream_with_context``; not at all while an outer app context is pushed (before 3.2); and another extension's teardown
that raises skips the rest (before 3.2). What this module needs of Flask is that it is a WSGI application.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from serverless_pg_kit_flask.work import Work

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Serving = Callable[[Work], AbstractContextManager[None]]
"""Makes a `Work` the one that the code inside a block finds."""


class Requests:
    """The WSGI application `app`, each request of which has a `Work`, made by `begin` from its environment.

    A response that was answered for in the meantime (by the signal ``request_finished``) has ended it already; a body
    that is streamed ends it later. Whatever else leaves `app` rolls back.
    """

    def __init__(self, app: WSGIApplication, begin: Callable[[WSGIEnvironment], Work], serving: Serving) -> None:
        self._app = app
        self._begin = begin
        self._serving = serving

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        work = self._begin(environ)
        try:
            with self._serving(work):
                body = self._app(environ, start_response)
        except BaseException:
            work.abandon()
            raise
        if work.is_streaming:
            return Body(body, work, self._serving)
        self._settle(work, body)
        return body

    def _settle(self, work: Work, body: Iterable[bytes]) -> None:
        """End what was done after the response was ready, as in a teardown function."""
        if not work.is_answered:
            work.fail()
        try:
            work.end()
        except BaseException:
            close(body)
            raise


class Body:
    """A body that reads from the connection: its end commits, what interrupts it rolls back.

    The end comes before the server is told that there is no more: if COMMIT fails, the client sees a body cut short.
    """

    def __init__(self, body: Iterable[bytes], work: Work, serving: Serving) -> None:
        self._body = body
        self._items = iter(body)
        self._work = work
        self._serving = serving

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            with self._serving(self._work):
                return next(self._items)
        except StopIteration:
            self._work.end()
            raise
        except BaseException:
            self._work.abandon()
            raise

    def close(self) -> None:
        """Close the body, as WSGI servers do in any case; one that was not sent to its end is rolled back."""
        try:
            with self._serving(self._work):
                close(self._body)
        finally:
            self._work.abandon()


def close(body: Iterable[bytes]) -> None:
    """Close `body`, if it is of those that want to be closed."""
    closer = getattr(body, "close", None)
    if closer is not None:
        closer()
