"""The extension on one app."""

from __future__ import annotations

from collections.abc import Container
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, appcontext_popped, current_app, request, request_finished

from serverless_pg_kit import Engine
from serverless_pg_kit_flask.deadline import Deadline, seconds_of
from serverless_pg_kit_flask.places import Places
from serverless_pg_kit_flask.streaming import is_streaming
from serverless_pg_kit_flask.unwinding import is_failure, unwinding
from serverless_pg_kit_flask.work import Work
from serverless_pg_kit_flask.wsgi import Requests

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class Attached:
    """An `engine` for one app, and the hooks by which that app's web requests and app contexts begin and end.

    A finished response is answered for by the signal ``request_finished``: it is sent after all ``after_request``
    functions and after the session was saved, and an error of COMMIT still becomes the response.
    """

    def __init__(self, engine: Engine, places: Places, deadline: Deadline, rollback_on: Container[int]) -> None:
        self.engine: Engine = engine
        self.places: Places = places
        self._deadline = deadline
        self._rollback_on = rollback_on
        self._problem: ContextVar[Exception | None] = ContextVar("serverless_pg_kit_flask.problem", default=None)

    def hook_into(self, app: Flask) -> None:
        """Take part in the life of `app`, which has to keep this object: signals do not.

        Raises ``AssertionError`` if the app has served a request already.
        """
        app.teardown_appcontext(self._tear_down)  # first: it refuses an app that has served requests
        app.wsgi_app = Requests(app.wsgi_app, self._begin, self.places.serving)  # type: ignore[method-assign]
        app.url_value_preprocessor(self._started)
        request_finished.connect(self._finished, app)

    def _begin(self, environ: WSGIEnvironment) -> Work:
        return Work(self.engine, seconds_of(self._deadline, environ, self.engine))

    def _started(self, endpoint: str | None, values: dict[str, Any] | None) -> None:
        self.places.find()  # the app context on top is the request's own, whatever is pushed upon it later

    def _finished(self, app: Flask, response: Response, **_: Any) -> None:
        work = self.places.find()
        if work is None:  # a test's request context, without WSGI
            return
        work.respond(response.status_code, self._rollback_on)
        work.is_streaming = is_streaming(response, request.method, work.has_connection)
        if not work.is_streaming:
            work.end()

    def _tear_down(self, error: BaseException | None) -> None:
        """End the work of an app context. Never raises: before Flask 3.2 that would keep others from their teardown."""
        if self._problem.get() is not None:
            self._problem.set(None)  # of a context of which another teardown kept the signal from being sent
        work = self.places.leave()
        if work is None:
            return
        if is_failure(error or unwinding(work.handled)):
            work.fail()
        try:
            work.end()
        except Exception as problem:
            app: Any = current_app
            self._problem.set(problem)
            appcontext_popped.connect(self._popped, app._get_current_object())

    def _popped(self, app: Flask, **_: Any) -> None:
        """Raise what ended the app context badly, now that everything is torn down: nothing else would tell."""
        problem = self._problem.get()
        if problem is not None:
            self._problem.set(None)
            raise problem
