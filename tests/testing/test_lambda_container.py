"""The container harness: AWS's own runtime client, without a database."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from programs import roots
from support import eventually

from serverless_pg_kit.testing import (
    HandlerFailed,
    InitFailed,
    InvocationError,
    InvocationTimedOut,
    LambdaContainer,
    RuntimeExited,
)

FUNCTION = """
import os, subprocess, sys, tempfile, threading, time

ticks = []

def tick():
    while True:
        ticks.append(1)
        time.sleep(0.001)

def handler(event, context):
    print("called with", event)
    if "act" in event:
        exec(event["act"])
    return [os.getpid(), context.get_remaining_time_in_millis(), event]
"""

MakeContainer = Callable[..., LambdaContainer]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeContainer]:
    """Makes containers of the function above; they are closed at the end of the test."""
    (tmp_path / "app.py").write_text(FUNCTION)
    with ExitStack() as stack:

        def make_container(handler: str = "app.handler", **options: Any) -> LambdaContainer:
            environment = {"PYTHONPATH": roots(), **options.pop("environment", {})}
            options = {"timeout": 60.0, **options}
            return stack.enter_context(LambdaContainer(handler, folder=tmp_path, environment=environment, **options))

        yield make_container


def is_gone(pid: int) -> bool:
    """Tell whether there is no process `pid`, or only what is left until its parent asks for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_handler_is_served_by_one_process(make: MakeContainer) -> None:
    """One process takes all events, in turn; its results arrive as they are, with the time that is left."""
    container = make()
    one, two = container.invoke({"n": 1}), container.invoke({"text": "ü"}, timeout=20)

    assert (one[0], one[2], two[2]) == (container.pid, {"n": 1}, {"text": "ü"})
    assert two[0] == one[0]
    assert 50_000 < one[1] <= 60_000
    assert 10_000 < two[1] <= 20_000
    assert container.starts == 1
    assert "called with {'n': 1}\n" in container.log


def test_handler_that_raises(make: MakeContainer) -> None:
    """The error that the runtime reported is told, and the process lives on."""
    container = make()
    with pytest.raises(HandlerFailed, match="LookupError: nothing there") as caught:
        container.invoke({"act": "raise LookupError('nothing there')"})

    assert (caught.value.error_type, caught.value.message) == ("LookupError", "nothing there")
    assert "app.py" in "".join(caught.value.trace)
    container.invoke({})
    assert container.starts == 1


def test_time_out_resets_the_environment(make: MakeContainer) -> None:
    """At the deadline the process is killed; the next invocation has a new one, and finds its temporary files."""
    container = make()
    first, *_ = container.invoke({"act": "tempfile.NamedTemporaryFile(prefix='kept', delete=False)"})
    with pytest.raises(InvocationTimedOut, match=r"after 0\.3 s"):
        container.invoke({"act": "time.sleep(60)"}, timeout=0.3)

    assert is_gone(first)
    assert container.invoke({})[0] != first
    assert container.starts == 2
    assert [path.name[:4] for path in container.tmp.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("act", "status"), [("sys.exit(5)", 5), ("os._exit(3)", 3), ("os.kill(os.getpid(), 9)", -signal.SIGKILL)]
)
def test_process_that_ends(make: MakeContainer, act: str, status: int) -> None:
    """A handler that ends its process is told from one that raises, and the next invocation starts anew."""
    container = make()
    with pytest.raises(
        RuntimeExited, match=rf"with status {status} during the invocation\n(.*\n)*called with"
    ) as caught:
        container.invoke({"act": act})

    assert caught.value.status == status
    assert container.invoke({"n": 1})[2] == {"n": 1}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('not so')", "ValueError: not so"),
        ("import sys; sys.exit(4)", "Runtime.ExitError: the process ended with status 4"),
        ("import no_such_module", "Runtime.ImportModuleError: Unable to import module"),
        ("", "Runtime.HandlerNotFound"),
        ("import time; time.sleep(60)", "Sandbox.Timedout: not ready after 0.5 s"),
    ],
)
def test_initialisation_that_fails(make: MakeContainer, tmp_path: Path, code: str, message: str) -> None:
    """What went wrong in it is told, and the next invocation tries again."""
    (tmp_path / "bad.py").write_text(code)
    container = make("bad.handler", init_timeout=0.5 if "sleep" in code else 30.0)
    for attempt in (1, 2):
        with pytest.raises(InitFailed, match=message):
            container.invoke({})
        assert container.starts == attempt
        assert container.pid is None


@pytest.fixture(params=["as this machine allows", "by signals"])
def freezer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets containers be frozen by control groups, where that is allowed, and by signals."""
    if request.param == "by signals":
        monkeypatch.setattr("serverless_pg_kit.testing.awslambda.process.make_cgroup", lambda: None)


@pytest.mark.usefixtures("freezer")
def test_frozen_between_invocations(make: MakeContainer) -> None:
    """A frozen container's threads stand still until the next event; it can be removed all the same."""
    container = make(frozen=True)
    container.invoke({"act": "threading.Thread(target=tick, daemon=True).start()"})

    assert Path(f"/proc/{container.pid}/stat").read_text().rpartition(")")[2].split()[0] in ("D", "T")
    assert container.invoke({})[2] == {}
    assert container.shut_down() == -signal.SIGKILL


@pytest.mark.usefixtures("freezer")
def test_frozen_in_the_middle(make: MakeContainer) -> None:
    """A test may freeze a container in the middle of an invocation, and look around."""
    container = make()
    invocation = container.start_invocation({"act": "print('begun'); time.sleep(0.2)"})
    assert eventually(lambda: "begun" in container.log)
    container.freeze()
    with pytest.raises(TimeoutError):
        invocation.result(timeout=0.4)
    container.thaw()

    assert invocation.result()[0] == container.pid


def test_one_event_at_a_time(make: MakeContainer) -> None:
    """A container that is busy takes no other event; the first one is not disturbed."""
    container = make()
    invocation = container.start_invocation({"act": "time.sleep(0.3)"})
    with pytest.raises(RuntimeError, match="handles another event"):
        container.invoke({})
    assert invocation.result()[0] == container.pid


def test_closed_container(make: MakeContainer) -> None:
    """Whoever waits for a result hears that there will be none."""
    container = make()
    invocation = container.start_invocation({"act": "time.sleep(60)"})
    assert eventually(lambda: "called" in container.log)
    container.close()

    with pytest.raises(RuntimeExited):
        invocation.result(timeout=30)
    with pytest.raises(RuntimeError, match="is closed"):
        container.start_invocation({}).result(timeout=30)


def test_errors_pickle(make: MakeContainer) -> None:
    """What went wrong can be sent to another process, with all that is known of it."""
    container = make()
    for act in ("raise LookupError('mine')", "os._exit(3)"):
        with pytest.raises(InvocationError) as caught:
            container.invoke({"act": act})
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (type(copy), str(copy), vars(copy)) == (type(caught.value), str(caught.value), vars(caught.value))


def test_managed_instances_are_processes(make: MakeContainer) -> None:
    """Workers serve one event each, at the same time; a time-out is told and ends nothing, and so is a worker's end."""
    container = make(workers=3)
    many = [container.start_invocation({"act": "time.sleep(0.3)"}) for _ in range(3)]
    workers = {invocation.result()[0] for invocation in many}
    assert len(workers) == 3
    with pytest.raises(InvocationTimedOut):
        container.invoke({"act": "time.sleep(0.4); print('went on')"}, timeout=0.1)
    assert eventually(lambda: "went on" in container.log)
    with pytest.raises(RuntimeExited):
        container.invoke({"act": "os._exit(3)"})
    assert container.invoke({})[0] in workers
    assert container.starts == 1


def test_snapstart_hooks_run(make: MakeContainer, tmp_path: Path) -> None:
    """The hooks of a snapshot run around it, before the first event."""
    hooks = "from snapshot_restore_py import register_after_restore, register_before_snapshot\n"
    register = "register_before_snapshot(print, 'before')\nregister_after_restore(print, 'after')\n"
    (tmp_path / "snap.py").write_text(hooks + register + FUNCTION)
    container = make("snap.handler", snap_start=True)
    container.take_snapshot()
    assert container.log.splitlines() == ["before"]
    container.start()
    assert container.log.splitlines() == ["before", "after"]
    assert container.invoke({})[2] == {}


@pytest.mark.parametrize(("register", "status"), [("before_snapshot", 64), ("after_restore", 65)])
def test_snapstart_hook_that_fails(make: MakeContainer, tmp_path: Path, register: str, status: int) -> None:
    """A hook that raises fails the start."""
    hook = f"import snapshot_restore_py as hooks\nhooks.register_{register}(lambda: 1 / 0)\n"
    (tmp_path / "snap.py").write_text(hook + FUNCTION)
    with pytest.raises(InitFailed, match="ZeroDivisionError"):
        make("snap.handler", snap_start=True).invoke({})


def test_removed_without_extension(make: MakeContainer) -> None:
    """A function without extensions gets no SIGTERM."""
    container = make()
    container.invoke({"act": "import signal; signal.signal(signal.SIGTERM, lambda *_: print(1234))"})

    assert container.shut_down() == -signal.SIGKILL
    assert container.shut_down() is None
    assert "1234\n" not in container.log
    assert container.invoke({})[2] == {}


def test_everything_it_started_ends_with_it(make: MakeContainer) -> None:
    """Processes that the handler started are gone when the container is."""
    container = make()
    container.invoke({"act": "print('child', subprocess.Popen(['sleep', '60']).pid)"})
    child = int(container.log.partition("child ")[2].split()[0])
    folder = container.tmp.parent
    container.close()
    container.close()

    assert eventually(lambda: is_gone(child))
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="is closed"):
        container.invoke({})


TEST_RUN = """
import sys, time
from serverless_pg_kit.testing import LambdaContainer

container = LambdaContainer("app.handler", folder=sys.argv[1], frozen=True)
print(container.invoke({})[0], container.tmp.parent, flush=True)
time.sleep(60)
"""


def test_killed_test_run_leaves_nothing(make: MakeContainer, tmp_path: Path) -> None:
    """A test run that is killed takes its containers with it, even frozen ones."""
    command = [sys.executable, "-c", TEST_RUN, str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": roots()}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        process.kill()

    assert eventually(lambda: is_gone(int(pid)))
    assert eventually(lambda: not Path(folder).exists())


def test_containers_start_side_by_side(make: MakeContainer) -> None:
    """Several containers may be started and used from several threads."""
    containers = [make() for _ in range(4)]
    threads = [threading.Thread(target=container.start) for container in containers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({container.invoke({})[0] for container in containers}) == 4


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": 2, "snap_start": True}, {"workers": 2, "frozen": True}]
)
def test_impossible_containers(make: MakeContainer, options: dict[str, Any]) -> None:
    """What no platform offers is refused when the container is made."""
    with pytest.raises(ValueError, match="workers"):
        make(**options)
    with pytest.raises(ValueError, match=r"module\.name"):
        make("handler")
