"""Flask 3.2, which is not released: what it changes, emulated upon the present one, and that nothing depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flask
import pytest
from flask.globals import app_ctx, request_ctx
from flask_support import MakeSite, Site
from support import entries


class ComingFlask(flask.Flask):
    """Gives each request an app context of its own, also inside another one, and calls all teardown functions of it
    even if one raises."""

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        """Push the context that 3.0 and 3.1 push only if there is none."""
        with self.app_context():
            return super().wsgi_app(environ, start_response)

    def do_teardown_appcontext(self, exc: Any = None) -> None:
        """Call one after the other; then raise the first error."""
        errors: list[Exception] = []
        for tear_down in reversed(self.teardown_appcontext_funcs):
            try:
                tear_down(exc)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def coming_stream_with_context(body: Iterable[str]) -> Iterator[str]:
    """Keep the contexts until the end of `body`: they are torn down once, after it, whatever the version."""

    proxies: Any = (app_ctx, request_ctx)

    def generator() -> Iterator[str]:
        with proxies[0]._get_current_object(), proxies[1]._get_current_object():
            yield ""
            yield from body

    kept = generator()
    next(kept)
    return kept


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A site on the coming Flask that counts its teardowns."""
    site = make_site(kind=ComingFlask)
    site.app.config["torn_down"] = 0

    @site.app.teardown_appcontext
    def count(error: BaseException | None) -> None:
        site.app.config["torn_down"] += 1

    return site


def test_request_in_a_tests_context(site: Site, superuser: Any, ledger: str) -> None:
    """A request inside a context has its own teardown, and ends as ever."""

    @site.app.get("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        site.insert(status)
        return "answer", status

    with site.app.app_context():
        site.insert(1)
        assert [site.client.get(f"/{status}").status_code for status in (200, 500)] == [200, 500]
        assert site.app.config["torn_down"] == 2
        assert entries(superuser) == [200]
    assert entries(superuser) == [1, 200]


@pytest.mark.parametrize(("wrap", "before"), [(lambda body: body, 1), (coming_stream_with_context, 0)])
@pytest.mark.parametrize("is_read", [True, False])
def test_stream(site: Site, superuser: Any, ledger: str, wrap: Callable[..., Any], before: int, is_read: bool) -> None:
    """A stream keeps its connection, whether teardown comes before it or once after it."""

    @site.app.get("/")
    def view() -> flask.Response:
        conn = site.conn

        def body() -> Iterator[str]:
            for number in range(1, 4):
                assert site.conn is conn
                site.insert(number)
                yield str(number)

        return flask.Response(wrap(body()))

    response = site.client.get("/")
    assert site.app.config["torn_down"] == before
    assert site.engine.stats.in_use == 1
    if is_read:
        assert response.text == "123"
    response.close()
    assert site.app.config["torn_down"] == 1
    assert site.engine.stats.in_use == 0
    assert entries(superuser) == [1, 2, 3] * is_read


def test_nested_context(site: Site, superuser: Any, ledger: str) -> None:
    """A context inside a request is a transaction of its own."""

    @site.app.get("/")
    def view() -> tuple[str, int]:
        site.insert(1)
        with site.app.app_context():
            site.insert(2)
        return "handled", 500

    assert site.client.get("/").status_code == 500
    assert entries(superuser) == [2]


def test_preserved_context(site: Site, superuser: Any, ledger: str) -> None:
    """Inside ``with client`` a request is over when it has answered."""

    @site.app.get("/")
    def view() -> str:
        site.insert(1)
        return "written"

    with site.client as client:
        client.get("/")
        assert entries(superuser) == [1]
        site.insert(2)
    assert entries(superuser) == [1, 2]


def test_teardown_of_others_that_raises(site: Site, superuser: Any, ledger: str) -> None:
    """Ours is called all the same, so that a bare context commits although another extension failed to clean up."""

    @site.app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        raise ValueError("theirs")

    with pytest.raises(ValueError, match="theirs"), site.app.app_context():
        site.insert(1)
    assert site.engine.stats.in_use == 0
    assert entries(superuser) == [1]
