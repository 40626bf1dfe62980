"""App contexts other than those of web requests: nested ones, tests', threads' and commands'."""

from __future__ import annotations

import contextvars
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
import click.testing
import flask
import flask.cli
import psycopg
import pytest
from flask_support import MakeSite, Site
from support import entries, kill


def test_context_commits(site: Site, superuser: Any, ledger: str) -> None:
    """A bare app context is one transaction, committed at its end."""
    with site.app.app_context():
        site.insert(1)
        assert entries(superuser) == []
    assert entries(superuser) == [1]


def test_context_with_an_exception_rolls_back(site: Site, superuser: Any, ledger: str) -> None:
    """An exception that leaves the context rolls back, and goes through unchanged."""
    with pytest.raises(ValueError, match="mine"), site.app.app_context():
        site.insert(1)
        raise ValueError("mine")
    assert entries(superuser) == []


def test_context_inside_an_exception_handler_commits(site: Site, superuser: Any, ledger: str) -> None:
    """An exception that was there before the context says nothing about it, nor one that was handled in it."""
    try:
        raise ValueError("before")
    except ValueError:
        with site.app.app_context():
            try:
                raise KeyError("inside")
            except KeyError:
                site.insert(1)
    assert entries(superuser) == [1]


def test_fail_in_a_context(site: Site, superuser: Any, ledger: str) -> None:
    """Nothing is kept after `fail`; what comes after an `end` is not concerned."""
    with site.app.app_context():
        site.pg.fail()
        site.insert(1)
        assert site.pg.end().decision == "kept"
        site.insert(2)
    assert entries(superuser) == [2]


def test_commit_that_is_refused_leaves_the_context(site: Site, superuser: Any, ledger: str) -> None:
    """The error of COMMIT is raised where the context ends, once, and the context is gone then."""
    with pytest.raises(psycopg.errors.UniqueViolation), site.app.app_context():
        site.insert(1)
        site.insert(1)
    assert not flask.has_app_context()
    with site.app.app_context():
        site.insert(2)
    assert entries(superuser) == [2]


def test_error_of_commit_does_not_keep_others_from_their_teardown(
    make_site: MakeSite, superuser: Any, ledger: str
) -> None:
    """Teardown functions that come after the extension's are called although its COMMIT failed."""
    torn_down = []

    class App(flask.Flask):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.teardown_appcontext(lambda error: torn_down.append(error))

    site = make_site(kind=App)
    with pytest.raises(psycopg.errors.UniqueViolation), site.app.app_context():
        site.insert(1)
        site.insert(1)
    assert torn_down == [None]


def test_lost_connection_is_told(site: Site, superuser: Any, ledger: str) -> None:
    """A context whose connection died before COMMIT does not end as if nothing had happened."""
    with pytest.raises(psycopg.OperationalError), site.app.app_context():
        site.insert(1)
        kill(superuser, site.conn.info.backend_pid)
    assert entries(superuser) == []


def test_nested_context_has_its_own_transaction(site: Site, superuser: Any, ledger: str) -> None:
    """A context inside a web request commits by itself, and the request goes on as before."""

    @site.app.get("/")
    def view() -> tuple[str, int]:
        with site.app.app_context():
            site.insert(1)
        site.insert(2)
        mine = site.conn
        with site.app.app_context():
            site.insert(3)
            assert site.conn is not mine
        assert site.conn is mine
        assert entries(superuser) == [1, 3]
        return "handled", 500

    assert site.client.get("/").status_code == 500
    assert entries(superuser) == [1, 3]


def test_context_of_another_app(make_site: MakeSite, superuser: Any, ledger: str) -> None:
    """One extension on two apps: inside a request of one, the other's context has that one's engine."""
    site = make_site()
    other = flask.Flask("other")
    other.config.update({key: site.app.config[key] for key in site.app.config if key.startswith("SERVERLESS_PG")})
    site.pg.init_app(other)

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        with other.app_context():
            assert site.pg.engine is not site.engine
            site.insert(2)
        assert site.pg.engine is site.engine
        return "written"

    assert site.client.get("/").status_code == 200
    assert entries(superuser) == [1, 2]
    other.extensions["serverless_pg"].engine.close()


def test_request_in_a_tests_context(site: Site, superuser: Any, ledger: str) -> None:
    """A context that a test pushed around its client is no part of the requests, in any version of Flask."""

    @site.app.get("/")
    def view() -> tuple[str, int]:
        site.insert(2)
        return "handled", 500

    with site.app.app_context():
        site.insert(1)
        mine = site.conn
        assert site.client.get("/").status_code == 500
        assert site.conn is mine
    assert entries(superuser) == [1]


def test_preserved_context(site: Site, superuser: Any, ledger: str) -> None:
    """Inside ``with client`` the request is over; what a test does then is a transaction of its own."""

    @site.app.get("/<int:entry>")
    def view(entry: int) -> str:
        site.insert(entry)
        return "written"

    with site.client as client:
        client.get("/1")
        assert entries(superuser) == [1]
        site.insert(2)
        assert entries(superuser) == [1]
        client.get("/3")  # ends the context that was preserved
        assert entries(superuser) == [1, 2, 3]
    assert site.engine.stats.in_use == 0


def test_preserved_stream(site: Site, superuser: Any, ledger: str) -> None:
    """A stream inside ``with client`` ends with its body, too."""

    @site.app.get("/")
    def view() -> flask.Response:
        def body() -> Iterator[str]:
            for number in range(3):
                site.insert(number)
                yield str(number)

        return flask.Response(flask.stream_with_context(body()))

    with site.client as client:
        assert client.get("/").text == "012"
        assert entries(superuser) == [0, 1, 2]


def test_request_context_without_wsgi(site: Site, superuser: Any, ledger: str) -> None:
    """A test that dispatches by hand gets what a client would: the answer's status decides."""

    @site.app.get("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        site.insert(status)
        return "answer", status

    for status in (200, 500):
        with site.app.test_request_context(f"/{status}"):
            site.app.full_dispatch_request()
            assert site.engine.stats.in_use == 0
    assert entries(superuser) == [200]


def test_thread_with_a_context(site: Site, superuser: Any, ledger: str) -> None:
    """A thread that a view starts has its own context and transaction, and may outlive the request."""
    answered = threading.Event()

    def work() -> None:
        with site.app.app_context():
            site.insert(2)
            assert answered.wait(30)

    threads: list[threading.Thread] = []

    @site.app.get("/")
    def view() -> tuple[str, int]:
        site.insert(1)
        threads.append(threading.Thread(target=work))
        threads[0].start()
        return "handled", 500

    assert site.client.get("/").status_code == 500
    answered.set()
    threads[0].join()
    assert entries(superuser) == [2]


def test_thread_with_the_copied_request_context(site: Site, superuser: Any, ledger: str) -> None:
    """``copy_current_request_context`` copies what the request is, not its transaction."""
    threads: list[threading.Thread] = []

    @site.app.get("/")
    def view() -> tuple[str, int]:
        mine = site.conn

        @flask.copy_current_request_context
        def work() -> None:
            assert site.conn is not mine
            site.insert(len(flask.request.path))

        threads.append(threading.Thread(target=work))
        threads[0].start()
        threads[0].join()
        return "handled", 500

    assert site.client.get("/").status_code == 500
    assert entries(superuser) == [1]


def test_thread_in_the_copied_context(site: Site, superuser: Any, ledger: str) -> None:
    """A pool's thread that runs in a copy of the view's context works on the request's connection while that lasts."""
    late = []

    @site.app.get("/<int:entry>")
    def view(entry: int) -> str:
        mine = site.conn
        late.append(contextvars.copy_context())
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(late[0].run, lambda: site.conn).result() is mine
            pool.submit(late[0].run, site.insert, entry).result()
        return "written"

    assert site.client.get("/1").status_code == 200
    assert entries(superuser) == [1]
    late.pop().run(site.insert, 2)  # nobody ends this one: it must not become part of another request
    gc.collect()
    assert site.client.get("/3").status_code == 200
    late.clear()
    assert entries(superuser) == [1, 3]


def test_teardown_of_others_that_raises(site: Site, superuser: Any, ledger: str) -> None:
    """If another teardown fails before ours is called, nothing is kept, and the connection is found again."""

    @site.app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        raise ValueError("theirs")

    def work() -> None:
        with site.app.app_context():
            site.insert(1)

    with pytest.raises(ValueError, match="theirs"):
        work()
    gc.collect()
    with site.engine.request() as conn:
        conn.execute("insert into ledger values (2)")
    assert site.engine.stats.in_use == 0
    assert entries(superuser) == [2]


def test_outside_of_any_context(site: Site) -> None:
    """Without an app context nobody can tell which app is meant: Flask says so."""
    with pytest.raises(RuntimeError, match="Working outside of application context"):
        _ = site.conn


def test_app_without_the_extension(site: Site) -> None:
    """An app that was forgotten is told by name, with the remedy."""
    with flask.Flask("forgotten").app_context(), pytest.raises(RuntimeError, match="the app 'forgotten': call init_"):
        _ = site.conn


@pytest.mark.parametrize(
    ("ending", "kept", "code"),
    [
        (None, True, 0),
        (SystemExit(0), True, 0),
        (SystemExit(), True, 0),
        (SystemExit(3), False, 3),
        (click.exceptions.Exit(0), True, 0),
        (click.exceptions.Exit(4), False, 4),
        (click.ClickException("mine"), False, 1),
        (ValueError("mine"), False, 1),
    ],
    ids=lambda value: repr(value),
)
def test_command(site: Site, superuser: Any, ledger: str, ending: BaseException | None, kept: bool, code: int) -> None:
    """A command commits if it ends well, also by an exit with status 0, and rolls back otherwise, in any click."""

    @site.app.cli.command("work")
    def work() -> None:
        site.insert(1)
        if ending is not None:
            raise ending

    assert run(site, "work").exit_code == code
    assert entries(superuser) == [1] * kept
    assert site.engine.stats.in_use == 0


def test_command_whose_commit_is_refused(site: Site, superuser: Any, ledger: str) -> None:
    """A command that could not commit does not exit as if it had."""

    @site.app.cli.command("work")
    def work() -> None:
        site.insert(1)
        site.insert(1)

    result = run(site, "work")
    assert result.exit_code == 1
    assert isinstance(result.exception, psycopg.errors.UniqueViolation)
    assert entries(superuser) == []


def run(site: Site, *args: str) -> click.testing.Result:
    """Run ``flask`` with `args` as the shell does: without a context that a test has pushed."""
    return click.testing.CliRunner().invoke(
        flask.cli.FlaskGroup(create_app=lambda: site.app, add_default_commands=False), args
    )
