"""SnapStart: no connection survives into a snapshot, and every copy of it begins anew."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from programs import heard, program, roots
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import eventually, sessions

from serverless_pg_kit.clock import Clock
from serverless_pg_kit.testing import LambdaContainer, PostgresServer

SNAPSTART = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}

FUNCTION = """
import os
from snapshot_restore_py import register_after_restore, register_before_snapshot
from serverless_pg_kit import Engine, with_db

def serve(engine):
    with engine.request() as conn:
        return conn.execute("select pg_backend_pid()").fetchone()[0]

register_before_snapshot(lambda: serve(engine))
register_after_restore(lambda: restored.append(serve(engine)))
engine, restored = Engine(), []
serve(engine)
other = Engine()
forgotten = other.connect()

@with_db(engine)
def handler(event, context, conn):
    other.connect().execute("select 1")
    other.clean()
    return [conn.info.backend_pid, *restored, engine.stats.connects, other.stats.connects]
"""


def test_snapshot_of_a_function(superuser: Any, fleet: str, tmp_path: Path, variables: Mapping[str, str]) -> None:
    """When the snapshot is taken no session is left, idle or in use; after it, every engine connects anew.

    Hooks of the user's that use an engine run before the kit closes it, and after it began anew.
    """
    (tmp_path / "function.py").write_text(FUNCTION)
    with LambdaContainer("function.handler", folder=tmp_path, environment=variables, snap_start=True) as container:
        container.take_snapshot()
        assert eventually(lambda: sessions(superuser, fleet) == [])

        served, at_restore, *connects = container.invoke({}, timeout=60)
        assert served == at_restore
        assert connects == [1, 1]  # of this copy


COPIES = """
import snapshot_restore_py as hooks

def run(registered):
    for hook, args, kwargs in registered:
        hook(*args, **kwargs)

"""

OPENED_LATE = (
    COPIES
    + """
engine = Engine()
run(hooks.get_before_snapshot())
conn = engine.connect()
pid = conn.info.backend_pid
with engine.request(join=False):
    pass
say(engine.stats.open)
run(hooks.get_after_restore())
say(engine.stats.open)
with engine.request() as own:
    say(own.info.backend_pid != pid, conn.info.backend_pid == pid, conn.execute("select 1").fetchone())
engine.close()
say(conn.closed, engine.stats)
"""
)


def test_connection_opened_too_late_is_left_alone(variables: Mapping[str, str]) -> None:
    """What was opened after the hook is used by no copy, and closed by none: it is the same session in all."""
    with program(OPENED_LATE, {**variables, **SNAPSTART}) as process:
        assert [heard(process), heard(process)] == ["2", "0"]
        assert heard(process) == "True True (1,)"
        assert heard(process).startswith("False Stats(open=0, in_use=0,")


FORGETS = (
    COPIES
    + """
from serverless_pg_kit import AcquireTimeout

engine = Engine(conninfo="host=127.0.0.1 port=1", max_wait=0.3, down_ttl=3600)

def attempts():
    try:
        engine.connect()
    except AcquireTimeout as error:
        return error.attempts

say(attempts() > 1, attempts())
run(hooks.get_after_restore())
say(attempts() > 1, attempts())
"""
)


def test_history_is_not_copied(variables: Mapping[str, str]) -> None:
    """What the initialisation saw of its server, a copy does not take for its own experience."""
    with program(FORGETS, {**variables, **SNAPSTART}) as process:
        assert [heard(process), heard(process)] == ["True 1", "True 1"]


SECRETS = (
    COPIES
    + """
import gc
from serverless_pg_kit.credentials import Cached

class Vault:
    asked = 0
    def __call__(self):
        self.asked += 1
        return {"password": os.environ["PASSWORD"]}

class Broken:
    def __call__(self):
        return {}
    def invalidate(self):
        raise RuntimeError("hunter2")

import os
vault = Vault()
cached = Cached(vault, 3600.0)
engine, broken = Engine(credentials=cached), Engine(credentials=Broken())
with engine.request(), engine.request(join=False, conninfo={"user": "app", "password": os.environ["PASSWORD"]}):
    pass
say(vault.asked, cached._kept is not None)
run(hooks.get_before_snapshot())
del os.environ["PASSWORD"]
say(cached._kept is None)
os.environ["PASSWORD"] = "wrong"
run(hooks.get_after_restore())
try:
    engine.connect()
except Exception as error:
    say(type(error).__name__, vault.asked > 1)
"""
)


def test_no_secret_gets_into_a_snapshot(variables: Mapping[str, str], server: PostgresServer) -> None:
    """What the credentials cached is forgotten before it, and every copy asks anew, even if others fail to forget."""
    params = conninfo_to_dict(server.dsn)
    url = make_conninfo("", **{name: value for name, value in params.items() if name != "password"})
    environ = {**variables, **SNAPSTART, "DATABASE_URL": url, "PASSWORD": str(params["password"])}
    with program(SECRETS, environ) as process:
        assert [heard(process), heard(process), heard(process)] == ["1 True", "True", "CredentialsRejected True"]


def test_without_snapstart_nothing_is_loaded() -> None:
    """Elsewhere the module with the hooks is not even imported."""
    with program("say('snapshot_restore_py' in sys.modules)", {"PYTHONPATH": roots()}) as process:
        assert heard(process) == "False"


def test_missing_module_is_told() -> None:
    """A platform that takes snapshots and has no hooks for them is warned of in the log; importing succeeds."""
    code = "import sys; sys.modules['snapshot_restore_py'] = None; import serverless_pg_kit"
    environ = {**SNAPSTART, "PYTHONPATH": roots()}
    run = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)

    assert "no module snapshot_restore_py" in run.stderr


def test_copies_roll_different_dice() -> None:
    """Jitter does not come from a generator whose state a snapshot would copy."""
    state = random.getstate()
    one = Clock().dice()
    random.setstate(state)

    assert Clock().dice() != one
