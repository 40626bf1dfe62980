"""One web request: what is committed, what is rolled back, and what the client hears."""

from __future__ import annotations

import math
import threading
from typing import Any

import flask
import psycopg
import pytest
from flask.sessions import SecureCookieSessionInterface
from flask_support import MakeSite, Site
from proxy import Cut, Proxy
from support import entries

from serverless_pg_kit import AcquireTimeout, CommitUnknown, TransactionFailed


def test_response_commits_before_it_goes_out(site: Site, superuser: Any, ledger: str) -> None:
    """What a view wrote is there when the client has its answer, and one backend serves one request after another."""

    @site.app.post("/<int:entry>")
    def write(entry: int) -> str:
        site.insert(entry)
        return str(site.conn.info.backend_pid)

    assert site.client.post("/1").data == site.client.post("/2").data
    assert entries(superuser) == [1, 2]
    assert (site.engine.stats.connects, site.engine.stats.commits) == (1, 2)


def test_untouched_connection_is_not_acquired(site: Site) -> None:
    """A request without the database costs no connection."""
    site.app.add_url_rule("/", view_func=lambda: "hello")

    assert site.client.get("/").data == b"hello"
    assert site.engine.stats.connects == 0


@pytest.mark.parametrize(
    ("status", "kept"), [(200, True), (302, True), (404, True), (499, True), (500, False), (503, False), (599, False)]
)
def test_status_decides(site: Site, superuser: Any, ledger: str, status: int, kept: bool) -> None:
    """A handled error of the server rolls back, anything else commits."""

    @site.app.get("/")
    def view() -> tuple[str, int]:
        site.insert(1)
        return "answer", status

    assert site.client.get("/").status_code == status
    assert entries(superuser) == [1] * kept


@pytest.mark.parametrize(("rollback_on", "kept"), [((), [404, 500]), (range(400, 600), []), ({404}, [500])])
def test_statuses_that_roll_back_can_be_chosen(
    make_site: MakeSite, superuser: Any, ledger: str, rollback_on: Any, kept: list[int]
) -> None:
    """`rollback_on` holds the statuses that roll back, and no other does."""
    site = make_site(rollback_on=rollback_on)

    @site.app.get("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        site.insert(status)
        return "answer", status

    assert [site.client.get(f"/{status}").status_code for status in (404, 500)] == [404, 500]
    assert entries(superuser) == kept


def test_exception_rolls_back(site: Site, superuser: Any, ledger: str) -> None:
    """An unhandled exception is Flask's 500, and nothing is kept."""

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        raise ValueError("mine")

    assert site.client.get("/").status_code == 500
    assert entries(superuser) == []


def test_propagated_exception_rolls_back(make_site: MakeSite, superuser: Any, ledger: str) -> None:
    """In testing mode the exception reaches the test unchanged, and nothing is kept."""
    site = make_site({"TESTING": True})

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        site.client.get("/")
    assert entries(superuser) == []


@pytest.mark.parametrize(("status", "answered"), [(409, 409), (200, 500)])
def test_handled_database_error(site: Site, superuser: Any, ledger: str, status: int, answered: int) -> None:
    """A violation that is answered with 409 rolls back silently; with 200 the client must not believe it."""

    @site.app.get("/")
    def view() -> tuple[str, int]:
        site.insert(1)
        try:
            site.conn.execute("select 1 / 0")
        except psycopg.errors.DivisionByZero:
            return "handled", status
        raise AssertionError("unreachable")

    assert site.client.get("/").status_code == answered
    assert entries(superuser) == []


def test_unique_violation_in_an_error_handler(site: Site, superuser: Any, ledger: str) -> None:
    """The usual form: an error handler for the violation answers 409, and the next request is served."""
    superuser.execute("create unique index on ledger (entry)")

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        return "written"

    @site.app.errorhandler(psycopg.errors.UniqueViolation)
    def conflict(error: Exception) -> tuple[str, int]:
        return "conflict", 409

    assert [site.client.get("/").status_code for _ in range(3)] == [200, 409, 409]
    assert entries(superuser) == [1]
    assert site.engine.stats.commit_failures == 0


def test_refused_commit_is_an_error_of_the_response(site: Site, superuser: Any, ledger: str) -> None:
    """A COMMIT that the server refuses turns the answer into a 500, which the app's own handler may write."""
    heard: list[Any] = []

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        site.insert(1)  # deferred: the server finds out at COMMIT
        return "written"

    @site.app.errorhandler(500)
    def failed(error: Any) -> tuple[str, int]:
        heard.append(error.original_exception)
        return "sorry", 500

    response = site.client.get("/")

    assert (response.status_code, response.data) == (500, b"sorry")
    assert isinstance(heard[0], psycopg.errors.UniqueViolation)
    assert entries(superuser) == []


def test_unknown_commit_is_an_error_of_the_response(make_site: MakeSite, proxy: Proxy, server: Any) -> None:
    """A line that breaks during COMMIT is a 500: nobody may believe in what nobody knows."""
    site = make_site({"SERVERLESS_PG_CONNINFO": proxy.reroute(server.dsn), "TESTING": True})

    @site.app.get("/")
    def view() -> str:
        site.conn.execute("select 1")
        proxy.arm(Cut(0, "client", b"COMMIT"))
        return "written"

    with pytest.raises(CommitUnknown):
        site.client.get("/")


def test_error_handler_works_on_a_new_transaction(site: Site, superuser: Any, ledger: str) -> None:
    """Once COMMIT has failed, the page for the error may read from the database; what it writes is rolled back."""

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        site.insert(1)
        return "written"

    @site.app.errorhandler(500)
    def failed(error: Any) -> tuple[str, int]:
        site.insert(2)
        [(count,)] = site.conn.execute("select count(*) from ledger").fetchall()
        return str(count), 500

    assert site.client.get("/").data == b"1"
    assert entries(superuser) == []


def test_fail_rolls_back_whatever_the_answer(site: Site, superuser: Any, ledger: str) -> None:
    """A view may answer well and still keep nothing."""

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        site.pg.fail()
        return "dry run"

    assert site.client.get("/").status_code == 200
    assert entries(superuser) == []


def test_end_in_mid_request(site: Site, superuser: Any, ledger: str) -> None:
    """After `end` the connection is free for others, what was done stays, and the next touch begins anew."""
    seen: list[bool] = []

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        assert site.pg.end().decision == "kept"
        assert site.engine.stats.in_use == 0
        site.insert(2)
        seen.append(site.engine.connection is site.conn)
        raise ValueError("mine")

    assert site.client.get("/").status_code == 500
    assert seen == [True]
    assert entries(superuser) == [1]


def test_end_shows_the_errors_of_commit_to_the_view(site: Site, ledger: str) -> None:
    """A view that ends its transaction itself can answer for a COMMIT that is refused."""

    @site.app.get("/")
    def view() -> tuple[str, int]:
        site.insert(1)
        site.insert(1)
        try:
            site.pg.end()
        except psycopg.errors.UniqueViolation:
            return "conflict", 409
        raise AssertionError("unreachable")

    assert site.client.get("/").status_code == 409


def test_request_inside_joins(site: Site, superuser: Any, ledger: str) -> None:
    """Code that knows only the engine works in the same transaction, as inside any other request."""

    @site.app.get("/")
    def view() -> tuple[str, int]:
        site.insert(1)
        with site.engine.request() as conn:
            assert conn is site.conn is site.engine.connection
            conn.execute("insert into ledger values (2)")
        return "handled", 500

    assert site.client.get("/").status_code == 500
    assert entries(superuser) == []
    assert site.engine.stats.connects == 1


def test_failure_of_a_joined_request_is_told(make_site: MakeSite, ledger: str) -> None:
    """A view that swallowed the failure of a part must not commit the rest."""
    site = make_site({"TESTING": True})

    @site.app.get("/")
    def view() -> str:
        try:
            with site.engine.request() as conn:
                conn.execute("insert into ledger values (1)")
                raise ValueError("mine")
        except ValueError:
            return "written"

    with pytest.raises(TransactionFailed):
        site.client.get("/")


def test_request_is_not_part_of_what_surrounds_the_client(site: Site, superuser: Any, ledger: str) -> None:
    """A web request commits by itself, also if a test calls it inside a request of its own."""

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        return "written"

    with site.engine.request() as conn:
        assert site.client.get("/").status_code == 200
        assert entries(superuser) == [1]
        assert site.engine.connection is conn


def test_app_calls_itself(site: Site, superuser: Any, ledger: str) -> None:
    """A view that calls another one through a client sees that one's end, and keeps its own transaction."""

    @site.app.get("/inner")
    def inner() -> str:
        site.insert(1)
        return "written"

    @site.app.get("/")
    def view() -> tuple[str, int]:
        site.insert(2)
        before = site.conn
        assert site.client.get("/inner").status_code == 200
        assert site.conn is before
        return "handled", 500

    assert site.client.get("/").status_code == 500
    assert entries(superuser) == [1]


def test_hooks_around_the_view_are_part_of_it(site: Site, superuser: Any, ledger: str) -> None:
    """Functions before and after the view, and the saving of the session, belong to the same transaction."""

    class Sessions(SecureCookieSessionInterface):
        def save_session(self, app: Any, session: Any, response: Any) -> None:
            site.insert(4)

    site.app.session_interface, site.app.secret_key = Sessions(), "secret"

    @site.app.before_request
    def before() -> None:
        site.insert(1)

    @site.app.get("/")
    def view() -> str:
        site.insert(2)
        return "written"

    @site.app.after_request
    def after(response: flask.Response) -> flask.Response:
        site.insert(3)
        return response

    assert site.client.get("/").status_code == 200
    assert entries(superuser) == [1, 2, 3, 4]
    assert site.engine.stats.commits == 1


def test_after_request_that_raises_rolls_back(site: Site, superuser: Any, ledger: str) -> None:
    """Whatever spoils the answer spoils the transaction."""

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        return "written"

    @site.app.after_request
    def after(response: flask.Response) -> flask.Response:
        raise ValueError("mine")

    assert site.client.get("/").status_code == 500
    assert entries(superuser) == []


@pytest.mark.parametrize("hook", ["teardown_request", "teardown_appcontext"])
@pytest.mark.parametrize("comes", ["before", "after"])
def test_teardown_of_others_that_raises(
    make_site: MakeSite, server: Any, superuser: Any, ledger: str, hook: str, comes: str
) -> None:
    """Another extension's teardown that fails neither leaks the connection nor undoes what was answered for."""

    def fail(error: BaseException | None) -> None:
        raise ValueError("theirs")

    class App(flask.Flask):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            if comes == "before":
                getattr(self, hook)(fail)

    site = make_site(kind=App)
    if comes == "after":
        getattr(site.app, hook)(fail)

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        return "written"

    with pytest.raises(ValueError, match="theirs"):
        site.client.get("/")
    with pytest.raises(RuntimeError, match="no request is open"):
        _ = site.engine.connection
    assert entries(superuser) == [1]


def test_touch_in_a_teardown(site: Site, superuser: Any, ledger: str) -> None:
    """A teardown function that writes has a transaction of its own, which is committed, too."""

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        return "written"

    @site.app.teardown_request
    def tear_down(error: BaseException | None) -> None:
        site.insert(2)

    assert site.client.get("/").status_code == 200
    assert entries(superuser) == [1, 2]


def test_receiver_that_raises_before_the_answer_was_judged(site: Site, superuser: Any, ledger: str) -> None:
    """If the signal of a finished response never reaches the extension, nothing is committed."""

    def spoil(app: flask.Flask, **_: Any) -> None:
        raise ValueError("theirs")

    attached = site.app.extensions["serverless_pg"]
    flask.request_finished.disconnect(attached._finished, site.app)
    flask.request_finished.connect(spoil, site.app)

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        return "written"

    assert site.client.get("/").status_code == 500
    assert entries(superuser) == []


def test_interrupt_in_a_view(site: Site, superuser: Any, ledger: str) -> None:
    """What ends a worker in the middle of a view leaves no connection behind."""

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        site.client.get("/")
    assert site.engine.stats.in_use == 0
    assert entries(superuser) == []


def test_async_view(site: Site, superuser: Any, ledger: str) -> None:
    """An async view runs in another thread and finds the connection of its request."""

    @site.app.before_request
    def before() -> None:
        site.insert(1)

    @site.app.get("/")
    async def view() -> str:
        site.insert(2)
        assert site.engine.connection is site.conn
        return "written"

    assert site.client.get("/").status_code == 200
    assert entries(superuser) == [1, 2]
    assert (site.engine.stats.connects, site.engine.stats.commits) == (1, 1)


def test_first_touch_in_an_async_view(site: Site, superuser: Any, ledger: str) -> None:
    """What an async view acquires is ended with the request, also if the view fails."""

    @site.app.get("/<int:status>")
    async def view(status: int) -> tuple[str, int]:
        site.insert(status)
        return "answer", status

    assert [site.client.get(f"/{status}").status_code for status in (200, 500)] == [200, 500]
    assert entries(superuser) == [200]


def test_threads_do_not_share(make_site: MakeSite, superuser: Any, ledger: str) -> None:
    """Requests of several threads have connections of their own, `max_size` of them."""
    site = make_site({"SERVERLESS_PG_MAX_SIZE": 3})

    @site.app.get("/<int:entry>")
    def view(entry: int) -> str:
        conn = site.conn
        site.insert(entry)
        [(mine,)] = conn.execute("select array_agg(entry) from ledger where xmin::text = txid_current()::text")
        assert mine == [entry]
        assert site.conn is conn
        return "written"

    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: statuses.append(site.client.get(f"/{n}").status_code)) for n in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == [200] * 24
    assert entries(superuser) == list(range(24))
    assert site.engine.stats.connects <= 3


class Invocation:
    """The context of a Lambda invocation with so many milliseconds left."""

    def __init__(self, milliseconds: int) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        """Return them."""
        return self.milliseconds


@pytest.mark.parametrize("key", ["apig_wsgi.context", "awsgi.context", "serverless.context", "lambda.context"])
def test_deadline_of_the_invocation(site: Site, key: str) -> None:
    """Behind a Lambda adapter a statement ends in time for an answer."""

    @site.app.get("/")
    def view() -> tuple[str, int]:
        try:
            site.conn.execute("select pg_sleep(60)")
        except psycopg.errors.QueryCanceled:
            return "too slow", 504
        raise AssertionError("unreachable")

    assert site.client.get("/", environ_overrides={key: Invocation(1500)}).status_code == 504


@pytest.mark.parametrize(
    ("deadline", "left", "seconds"),
    [
        (None, None, None),
        (7.0, None, 7.0),
        (7.0, 60_000, 7.0),
        (7.0, 5_500, 5.0),
        (None, 5_500, 5.0),
        (math.inf, 5_500, None),
        (lambda environ: 3.0, 60_000, 3.0),
        (lambda environ: None, None, None),
    ],
)
def test_deadline_by_setting(make_site: MakeSite, deadline: Any, left: int | None, seconds: float | None) -> None:
    """The shorter of the setting and what the invocation has left counts, also for what follows an `end`."""
    site = make_site(deadline=deadline)

    @site.app.get("/")
    def view() -> str:
        shown = []
        for _ in range(2):
            shown.append(site.conn.execute("select current_setting('statement_timeout')").fetchone())
            site.pg.end()
        return " ".join(text for (text,) in filter(None, shown))

    overrides = {} if left is None else {"apig_wsgi.context": Invocation(left)}
    for text in site.client.get("/", environ_overrides=overrides).text.split():
        if seconds is None:
            assert text == "0"
        else:
            assert seconds - 3 < int(text.removesuffix("ms")) / 1000 <= seconds


def test_deadline_that_is_over(make_site: MakeSite) -> None:
    """A request without time left gets the framework's database error at its first touch, and none without one."""
    site = make_site({"TESTING": True}, deadline=0.02)

    @site.app.get("/<int:touches>")
    def view(touches: int) -> str:
        threading.Event().wait(0.05)
        if touches:
            site.conn.execute("select 1")
        return "hello"

    assert site.client.get("/0").data == b"hello"
    with pytest.raises(AcquireTimeout):
        site.client.get("/1")
