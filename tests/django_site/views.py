"""The views of the site: one for each thing that a request may do with the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse

from django_site.models import Entry

PID = "select pg_backend_pid()"


def backend() -> bytes:
    """Return the pid of the ORM's session."""
    with connection.cursor() as cursor:
        cursor.execute(PID)
        return str(cursor.fetchone()[0]).encode()


def pid(request: HttpRequest) -> HttpResponse:
    """Answer with the pid of the ORM's session."""
    return HttpResponse(backend())


async def apid(request: HttpRequest) -> HttpResponse:
    """Answer with the pid, after a query by the async ORM."""
    await Entry.objects.filter(number=-1).afirst()
    return HttpResponse(await sync_to_async(backend)())


def add(request: HttpRequest, number: int) -> HttpResponse:
    """Add an entry, in autocommit mode."""
    Entry.objects.create(number=number)
    return HttpResponse(b"added")


@transaction.atomic
def atomically(request: HttpRequest, number: int) -> HttpResponse:
    """Add an entry in a transaction, and wait in it."""
    Entry.objects.create(number=number)
    with connection.cursor() as cursor:
        cursor.execute("select pg_sleep(%s)", [float(request.GET.get("seconds", "0"))])
    Entry.objects.create(number=number + 1)
    return HttpResponse(b"added")


@transaction.atomic
def fail(request: HttpRequest, number: int) -> HttpResponse:
    """Add an entry and fail."""
    Entry.objects.create(number=number)
    raise ZeroDivisionError


def raw(request: Any, number: int, status: int) -> HttpResponse:
    """Add an entry by ``request.db``, and answer with `status`."""
    request.db.execute("insert into django_entry (number) values (%s)", [number])
    return HttpResponse(str(request.db.info.backend_pid), status=status)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Send the pid before and after a read in the body."""

    def parts() -> Iterator[bytes]:
        for _ in range(3):
            yield backend() + b" "

    return StreamingHttpResponse(parts())


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    """Do what `stream` does, asynchronously."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield await sync_to_async(backend)() + b" "

    return StreamingHttpResponse(parts())


def rawstream(request: Any) -> StreamingHttpResponse:
    """Add an entry by ``request.db`` in each part of the body."""

    def parts() -> Iterator[bytes]:
        for number in range(3):
            request.db.execute("insert into django_entry (number) values (%s)", [number])
            yield b"."
        if "fails" in request.GET:
            raise ZeroDivisionError

    return StreamingHttpResponse(parts())


async def rawastream(request: Any) -> StreamingHttpResponse:
    """Do what `rawstream` does, asynchronously."""

    def insert(number: int) -> None:
        request.db.execute("insert into django_entry (number) values (%s)", [number])

    async def parts() -> AsyncIterator[bytes]:
        for number in range(3):
            await sync_to_async(insert)(number)
            yield b"."

    return StreamingHttpResponse(parts())


def sleep(request: HttpRequest, seconds: str) -> HttpResponse:
    """Let the server sleep."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_sleep(%s)", [float(seconds)])
    return HttpResponse(b"slept")


async def asyncdb(request: Any) -> HttpResponse:
    """Touch ``request.db`` where it would block the event loop."""
    return HttpResponse(str(request.db.info.backend_pid))
