"""The middleware: the deadline of requests that come from AWS Lambda, and ``request.db``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.signals import request_finished
from django.db import DEFAULT_DB_ALIAS, connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from serverless_pg_kit_django.engines import budget
from serverless_pg_kit_django.raw import RequestDb
from serverless_pg_kit_django.streams import AsyncStream, Stream
from serverless_pg_kit_django.time_left import set_time_left
from serverless_pg_kit_django.wrapper import EngineConnections

GetResponse = Callable[[HttpRequest], "HttpResponseBase | Awaitable[HttpResponseBase]"]


class ServerlessPgMiddleware:
    """Gives every request a lazy ``request.db``, and the deadline of the Lambda invocation that it came with.

    Put it first: what acquires a connection before it knows of no deadline. ``request.db`` belongs to the database
    `using`; a subclass may name another one. It works in both modes, sync and async.
    """

    sync_capable = True
    async_capable = True
    using = DEFAULT_DB_ALIAS

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response: Any = get_response
        self._is_orms = isinstance(connections[self.using], EngineConnections)
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Answer `request`. Raises what the end of its transaction raises, if it has one of its own."""
        if self._is_async:
            return self.__acall__(request)
        db = self._begin(request)
        try:
            response: HttpResponseBase = self.get_response(request)
        except BaseException:
            db.end(500)
            raise
        return response if self._outlasts(response, db) else self._ended(response, db)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer `request` in async mode."""
        db = self._begin(request)
        try:
            response: HttpResponseBase = await self.get_response(request)
        except BaseException:
            await sync_to_async(db.end)(500)
            raise
        if self._outlasts(response, db) or not db.has_work:
            return response
        return await sync_to_async(self._ended)(response, db)

    def _begin(self, request: Any) -> RequestDb:
        context = lambda_context(request)
        set_time_left(None if context is None else budget((context,), self.using))
        db = RequestDb(self.using)
        request.db = db.connection
        return db

    def _ended(self, response: HttpResponseBase, db: RequestDb) -> HttpResponseBase:
        db.end(response.status_code)
        return response

    def _outlasts(self, response: Any, db: RequestDb) -> bool:
        """Tell whether the body of `response` is yet to come; if so, let the request end with it."""
        if self._is_orms or not response.streaming or getattr(response, "file_to_stream", None) is not None:
            return False

        def end(is_complete: bool) -> None:
            db.end(response.status_code if is_complete else 500)

        stream = AsyncStream if response.is_async else Stream
        response.streaming_content = stream(response.streaming_content, end)
        return True


def lambda_context(request: Any) -> object | None:
    """Return the Lambda context that apig-wsgi or Mangum hands on with `request`, ``None`` without one."""
    scope = getattr(request, "scope", None)
    context: object | None = request.META.get("apig_wsgi.context") if scope is None else scope.get("aws.context")
    return context


def _forget_deadline(**kwargs: object) -> None:
    set_time_left(None)  # the thread may do other things between two requests


request_finished.connect(_forget_deadline, dispatch_uid="serverless_pg_kit_django.deadline")
