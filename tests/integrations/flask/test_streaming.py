"""Responses whose body is made while it is sent, and those that only look like it."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import flask
import psycopg
import pytest
from flask_support import MakeSite, Site
from support import entries, kill

Wrap = Any

WITH_CONTEXT = pytest.mark.parametrize(
    "wrap", [lambda body: body, flask.stream_with_context], ids=["plain", "stream_with_context"]
)


def add_numbers(site: Site, wrap: Wrap, upto: int = 5) -> None:
    """Add a view that writes 1 and streams numbers, each of which it writes, too, on the connection of its request."""

    @site.app.get("/")
    def view() -> flask.Response:
        site.insert(1)
        before = site.conn

        def body() -> Iterator[str]:
            for number in range(2, upto):
                assert site.conn is before is site.engine.connection
                site.insert(number)
                yield f"{number} "

        return flask.Response(wrap(body()))


@WITH_CONTEXT
def test_stream_keeps_its_connection(site: Site, superuser: Any, ledger: str, wrap: Wrap) -> None:
    """A body works in the transaction of its view, which is committed when the body ends."""
    add_numbers(site, wrap)
    response = site.client.get("/")

    assert site.engine.stats.in_use == 1
    assert entries(superuser) == []
    assert response.text == "2 3 4 "
    assert entries(superuser) == [1, 2, 3, 4]
    assert (site.engine.stats.in_use, site.engine.stats.connects) == (0, 1)
    response.close()
    assert site.engine.stats.commits == 1


@WITH_CONTEXT
def test_abandoned_stream_rolls_back(site: Site, superuser: Any, ledger: str, wrap: Wrap) -> None:
    """A body that the server closes before its end, as when the client is gone, is rolled back; all comes back."""
    add_numbers(site, wrap)
    response = site.client.get("/")
    response.close()

    assert site.engine.stats.in_use == 0
    assert entries(superuser) == []


@WITH_CONTEXT
def test_requests_after_an_abandoned_stream(site: Site, superuser: Any, ledger: str, wrap: Wrap) -> None:
    """A body that nobody closes keeps no later request from its end, and the next one reclaims its connection."""
    add_numbers(site, wrap)

    @site.app.get("/10")
    def write() -> str:
        site.insert(10)
        return "written"

    response = site.client.get("/")

    assert site.client.get("/10").data == b"written"
    assert entries(superuser) == [10]
    del response
    gc.collect()
    superuser.execute("delete from ledger")
    assert site.client.get("/10").data == b"written"
    assert entries(superuser) == [10]
    assert site.engine.stats.in_use == 0


@WITH_CONTEXT
def test_stream_that_fails(site: Site, superuser: Any, ledger: str, wrap: Wrap) -> None:
    """An exception in a body cuts it short, and rolls back."""

    @site.app.get("/")
    def view() -> flask.Response:
        def body() -> Iterator[str]:
            site.insert(1)
            yield "begun"
            raise ValueError("mine")

        return flask.Response(wrap(body()))

    with pytest.raises(ValueError, match="mine"):
        _ = site.client.get("/").data
    assert site.engine.stats.in_use == 0
    assert entries(superuser) == []


@WITH_CONTEXT
def test_commit_that_is_refused_cuts_the_body(site: Site, superuser: Any, ledger: str, wrap: Wrap) -> None:
    """The status is out; but the server learns of the failure before it says that the body is complete."""

    @site.app.get("/")
    def view() -> flask.Response:
        def body() -> Iterator[str]:
            site.insert(1)
            yield "one"
            site.insert(1)
            yield "two"

        return flask.Response(wrap(body()))

    chunks = site.client.get("/").response
    assert isinstance(chunks, Iterable)
    with pytest.raises(psycopg.errors.UniqueViolation):
        list(chunks)
    assert entries(superuser) == []


@WITH_CONTEXT
def test_first_touch_in_the_body(site: Site, superuser: Any, ledger: str, wrap: Wrap) -> None:
    """A body may be the first to need the connection; until then there is none."""

    @site.app.get("/")
    def view() -> flask.Response:
        def body() -> Iterator[str]:
            yield "begun"
            site.insert(1)
            yield "written"

        return flask.Response(wrap(body()))

    response = site.client.get("/")
    assert site.engine.stats.connects == 0
    assert response.text == "begunwritten"
    assert entries(superuser) == [1]


@WITH_CONTEXT
def test_end_in_a_body(site: Site, superuser: Any, ledger: str, wrap: Wrap) -> None:
    """An endless body can give its connection back between two chunks."""

    @site.app.get("/")
    def view() -> flask.Response:
        def body() -> Iterator[str]:
            for number in range(1, 1000):
                site.insert(number)
                site.pg.end()
                yield str(number)

        return flask.Response(wrap(body()))

    response = site.client.get("/")
    assert isinstance(response.response, Iterator)
    assert [next(response.response) for _ in range(3)] == [b"1", b"2", b"3"]
    assert site.engine.stats.in_use == 0
    response.close()
    assert entries(superuser) == [1, 2, 3]


@WITH_CONTEXT
def test_clean_up_of_an_abandoned_body_has_the_connection(site: Site, superuser: Any, ledger: str, wrap: Wrap) -> None:
    """What a body does when it is closed still belongs to its request, and so is rolled back."""
    seen: list[bool] = []

    @site.app.get("/")
    def view() -> flask.Response:
        conn = site.conn

        def body() -> Iterator[str]:
            try:
                yield "begun"
                yield "more"
            finally:
                site.insert(1)
                seen.append(site.conn is conn)

        return flask.Response(wrap(body()))

    site.client.get("/").close()
    assert seen == [True]
    assert entries(superuser) == []


@WITH_CONTEXT
@pytest.mark.parametrize("is_read", [True, False])
def test_server_side_cursor_is_streamed(site: Site, wrap: Wrap, is_read: bool) -> None:
    """Rows are fetched while they are sent, through a named cursor of the view's transaction, which is closed."""

    @site.app.get("/")
    def view() -> flask.Response:
        conn = site.conn

        def body() -> Iterator[str]:
            with conn.cursor("rows") as cursor:
                cursor.itersize = 10
                cursor.execute("select generate_series(1, 1000)")
                yield from (f"{number}\n" for (number,) in cursor)

        return flask.Response(wrap(body()))

    response = site.client.get("/")
    assert site.engine.stats.in_use == 1
    if is_read:
        assert sum(map(int, response.text.split())) == 500_500
    response.close()
    assert site.engine.stats.commits == int(is_read)


def test_backend_killed_during_a_stream(site: Site, superuser: Any, ledger: str) -> None:
    """A body whose connection dies is cut short; nothing is kept, and the next request is served."""
    add_numbers(site, lambda body: body)
    response = site.client.get("/")
    [(pid,)] = superuser.execute("select pid from pg_stat_activity where state = 'idle in transaction'").fetchall()
    kill(superuser, pid)

    with pytest.raises(psycopg.OperationalError):
        _ = response.data
    assert entries(superuser) == []
    assert site.client.get("/").text == "2 3 4 "


def test_handled_error_with_a_streamed_page(site: Site, superuser: Any, ledger: str) -> None:
    """The status of a streamed answer decides as any other does."""

    @site.app.get("/")
    def view() -> tuple[flask.Response, int]:
        site.insert(1)
        return flask.Response(str(number) for number in range(3)), 500

    assert site.client.get("/").text == "012"
    assert entries(superuser) == []


def test_teardown_of_others_that_raises_before_a_stream(site: Site, superuser: Any, ledger: str) -> None:
    """If the body is never sent, because a teardown failed, nothing is kept."""
    add_numbers(site, lambda body: body)

    @site.app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        raise ValueError("theirs")

    with pytest.raises(ValueError, match="theirs"):
        site.client.get("/")
    assert site.engine.stats.in_use == 0
    assert entries(superuser) == []


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_response_without_a_body_commits_at_once(
    site: Site, superuser: Any, ledger: str, method: str, status: int
) -> None:
    """A stream that will never be read is no reason to wait: COMMIT still decides about the answer."""

    @site.app.route("/<int:entry>")
    def view(entry: int) -> tuple[flask.Response, int]:
        site.insert(1)
        site.insert(entry)
        return flask.Response(str(number) for number in range(3)), status

    assert site.client.open("/2", method=method).status_code == status
    assert site.engine.stats.in_use == 0
    assert entries(superuser) == [1, 2]
    superuser.execute("delete from ledger")
    assert site.client.open("/1", method=method).status_code == 500
    assert entries(superuser) == []


@pytest.mark.parametrize("status", [404, 409, 500])
def test_abort_ends_at_once(site: Site, superuser: Any, ledger: str, status: int) -> None:
    """The pages that Flask makes of ``abort`` look like streams and are finished all the same."""

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        flask.abort(status)

    response = site.client.get("/")
    assert site.engine.stats.in_use == 0
    assert entries(superuser) == [1] * (status < 500)
    assert response.status_code == status
    assert f"<title>{status} ".encode() in response.data
    assert response.content_length == len(response.data)


def test_file_is_passed_through(site: Site, tmp_path: Path) -> None:
    """A file that is sent without a connection reaches the server unwrapped, for its fast way to send it."""
    (tmp_path / "file").write_bytes(b"content")
    site.app.add_url_rule("/", view_func=lambda: flask.send_file(tmp_path / "file"))

    class FileWrapper(io.BytesIO):
        def __init__(self, file: io.BufferedReader, size: int = 0) -> None:
            with file:
                super().__init__(file.read())

    environ = site.client._request_from_builder_args(("/",), {}).environ
    body = site.app(environ | {"wsgi.file_wrapper": FileWrapper}, lambda *_: bytes.__len__)
    assert isinstance(body, FileWrapper)
    assert body.read() == b"content"


def test_file_of_a_view_that_writes(site: Site, superuser: Any, ledger: str) -> None:
    """A file that is sent while the connection is held is sent whole, and its end commits."""

    @site.app.get("/")
    def view() -> flask.Response:
        site.insert(1)
        return flask.send_file(io.BytesIO(b"content"), mimetype="text/plain")

    response = site.client.get("/")
    assert response.data == b"content"
    response.close()
    assert entries(superuser) == [1]


def test_streams_of_two_requests_in_one_thread(make_site: MakeSite, superuser: Any, ledger: str) -> None:
    """Two bodies that are read in turn, as an adapter may do, keep to their own transactions."""
    site = make_site()

    @site.app.get("/<int:first>")
    def view(first: int) -> flask.Response:
        def body() -> Iterator[str]:
            for number in range(first, first + 3):
                site.insert(number)
                yield f"{site.conn.info.backend_pid} "

        return flask.Response(body())

    one, other = (iter(site.client.get(path).response) for path in ("/10", "/20"))
    pids = [(next(one), next(other)) for _ in range(3)]
    assert len({pid for pid, _ in pids}) == len({pid for _, pid in pids}) == 1
    assert pids[0][0] != pids[0][1]
    assert next(one, None) is None
    assert entries(superuser) == [10, 11, 12]
    other.close()  # type: ignore[attr-defined]
    assert entries(superuser) == [10, 11, 12]
