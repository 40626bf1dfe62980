"""Which `Work` belongs to the code that asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import ref

from flask import g, has_app_context

from serverless_pg_kit import Engine
from serverless_pg_kit_flask.unwinding import handled
from serverless_pg_kit_flask.work import Work


class Places:
    """The places of one extension where a `Work` is kept: a context variable while a web request is served, `flask.g`
    (under `key`) for any other app context, those inside a web request and those of threads and commands.

    Of an app context that others may leave without a word (before Flask 3.2) nothing but its `flask.g` holds the work:
    when that goes, the engine finds the connection.
    """

    def __init__(self, key: str) -> None:
        self._key = f"_{key}"
        self._serving: ContextVar[Work | None] = ContextVar(key, default=None)
        self._around: ContextVar[ref[Work] | None] = ContextVar(f"{key}.around", default=None)

    @contextmanager
    def serving(self, work: Work) -> Iterator[None]:
        """Let the code inside the block find `work`, the engine's current request."""
        outer, around = self._serving.get(), self._around.get()
        self._serving.set(work)
        self._around.set(None)
        try:
            with inside(around):
                work.resume()
                yield
        finally:
            work.suspend()
            self._around.set(around)
            self._serving.set(outer)

    def find(self) -> Work | None:
        """Return the work of the code that asks, ``None`` if there is none yet."""
        work = self._serving.get()
        if work is not None and is_at_home(work):
            return work
        kept: Work | None = g.get(self._key) if has_app_context() else None
        return kept

    def begin(self, engine: Engine) -> Work:
        """Return new work for the app context that is on top."""
        work = Work(engine)
        work.handled = handled()
        work.around = self._around.get()
        with inside(work.around):
            work.resume()  # now it knows what it is inside of
            work.suspend()
        self._around.set(ref(work))
        setattr(g, self._key, work)
        return work

    def leave(self) -> Work | None:
        """Return the work of the app context that is popped, and forget it."""
        work: Work | None = g.pop(self._key, None)
        if work is not None:
            self._around.set(work.around)
        return work


class inside:
    """Let what begins in the block be inside of the app context's work `around`, as `testing.rolled_back` wants it."""

    def __init__(self, around: ref[Work] | None) -> None:
        self._work = None if around is None else around()

    def __enter__(self) -> None:
        if self._work is not None:
            self._work.resume()

    def __exit__(self, *error: object) -> None:
        if self._work is not None:
            self._work.suspend()


def is_at_home(work: Work) -> bool:
    """Tell whether the code that asks belongs to the web request of `work`, and not to an app context inside it.

    Its home is the app context in which that was asked first. A generator that is streamed may have none.
    """
    if not has_app_context():
        return True
    here: object = g._get_current_object()
    if work.home is None:
        work.home = here
    return work.home is here
