"""The extension, as users hold it."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from flask import Flask, current_app
from psycopg import Connection

from serverless_pg_kit import CleanReport, Engine
from serverless_pg_kit.decisions.ending import SERVER_ERRORS, check_statuses
from serverless_pg_kit_flask import config
from serverless_pg_kit_flask.attached import Attached
from serverless_pg_kit_flask.commands import command_group
from serverless_pg_kit_flask.deadline import Deadline
from serverless_pg_kit_flask.places import Places
from serverless_pg_kit_flask.work import Work


class ServerlessPg:
    """A transaction for each web request, and for each app context outside of one.

    ``ServerlessPg(app)`` attaches it to `app`; so does `init_app`, to any number of apps. Each has an engine of its
    own, made from its keys ``SERVERLESS_PG_*``, unless `engine` is passed. A second extension on the same app needs a
    `name`, such as ``reports``: its keys are ``REPORTS_SERVERLESS_PG_*``, its command is ``flask reports-pg``.

    `deadline` is how many seconds a web request may take, or a callable that returns them for a WSGI environment;
    ``None`` takes the key ``SERVERLESS_PG_DEADLINE``. What a Lambda invocation has left is a limit, too, unless
    `deadline` is ``math.inf``. Responses with a status in `rollback_on` are rolled back.

    Raises what `init_app` raises, ``ValueError`` for a bad `name`, and ``TypeError`` for a bad `rollback_on`.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        name: str = "",
        engine: Engine | None = None,
        deadline: Deadline = None,
        rollback_on: Container[int] = SERVER_ERRORS,
    ) -> None:
        if name and not name.isidentifier():
            raise ValueError(f"name={name!r} is not allowed: it has to be an identifier, such as 'reports'")
        check_statuses(rollback_on)
        self.name: str = name
        self._engine = engine
        self._deadline = deadline
        self._rollback_on = rollback_on
        self._key = f"serverless_pg_{name}" if name else "serverless_pg"
        self._places = Places(self._key)
        if app is not None:
            self.init_app(app)

    def __repr__(self) -> str:
        return f"ServerlessPg(name={self.name!r})"

    def init_app(self, app: Flask, *, engine: Engine | None = None) -> None:
        """Attach this to `app`, which has to be configured by now. Opens no connection.

        `engine` comes before the one given to the constructor and before the app's keys.

        Raises `SettingsError` for a key that is bad or has no effect, ``TypeError`` for an engine of another kind,
        ``RuntimeError`` if this or another extension of the same name is attached already, and Flask's
        ``AssertionError`` if the app has served a request.
        """
        if self._key in app.extensions:
            raise RuntimeError(
                f"{self!r} is attached to the app {app.name!r} already: call init_app once, or name the second one"
            )
        keys, engine = config.own_keys(app.config, self.name), engine or self._engine
        deadline = config.read_deadline(keys, self._deadline)
        if engine is None:
            engine = config.make_engine(keys)
        else:
            config.check_engine(engine, keys)
        attached = Attached(engine, self._places, deadline, self._rollback_on)
        attached.hook_into(app)
        app.extensions[self._key] = attached
        label = f"{self.name}_pg".lstrip("_")
        app.cli.add_command(command_group(self, label.replace("_", "-")))
        app.shell_context_processor(lambda: {label: self})

    @property
    def engine(self) -> Engine:
        """The engine of the current app. Raises ``RuntimeError`` outside of an app context."""
        work = self._places.find()
        return self._attached().engine if work is None else work.engine

    @property
    def connection(self) -> Connection[Any]:
        """The connection of the web request or app context, inside a transaction; acquired at the first touch.

        Raises what `Engine.request` raises, and ``RuntimeError`` outside of an app context. The engine closes it.
        """
        return self._work().connection

    def fail(self) -> None:
        """Let the present transaction end with a rollback, whatever the response."""
        self._work().fail()

    def end(self) -> CleanReport:
        """End the present transaction now and give the connection back; the next touch of it begins another one.

        For what takes long without the database, and to see the errors of COMMIT inside a view. Commits, or rolls back
        after `fail`. Raises what the end of `Engine.request` raises.
        """
        return self._work().end()

    def _work(self) -> Work:
        return self._places.find() or self._places.begin(self._attached().engine)

    def _attached(self) -> Attached:
        attached: Attached | None = current_app.extensions.get(self._key)
        if attached is None or attached.places is not self._places:
            raise RuntimeError(f"{self!r} is not attached to the app {current_app.name!r}: call init_app(app)")
        return attached
