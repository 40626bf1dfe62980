"""SIGTERM closes the connections: whatever the process is doing, and without a change for anybody else's signals."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from blocking import naked
from programs import heard, program
from proxy import Proxy
from support import eventually, is_working, sessions

from serverless_pg_kit import close_on_sigterm
from serverless_pg_kit.testing import LambdaContainer, PostgresServer
from serverless_pg_kit.testing.awslambda.api import RuntimeApi

PATIENCE = 30.0
"""Seconds to wait for a process before something is wrong."""

FUNCTION = """
import os
from programs import hide_from_server
from serverless_pg_kit import Engine, close_on_sigterm, with_db

engine = Engine(on_event=lambda event: print(event, flush=True))
close_on_sigterm(engine)

@with_db(engine, deadline=float("inf"))
def handler(event, context, conn):
    hide_from_server(conn)
    conn.execute("select pg_sleep(%s)", [event["seconds"]])
    return os.getpid()
"""


@pytest.fixture
def function(tmp_path: Path, variables: Mapping[str, str]) -> Iterator[Callable[..., LambdaContainer]]:
    """Makes containers of the function above, which are closed at the end of the test."""
    (tmp_path / "function.py").write_text(FUNCTION)
    with ExitStack() as stack:

        def make(polls: bool = False, **options: Any) -> LambdaContainer:
            """With `polls` it waits for events in a thread, as from Python 3.12 on; otherwise in the main thread."""
            runtime = {"AWS_EXECUTION_ENV": f"AWS_Lambda_python{'3.13' if polls else '3.11'}"}
            container = LambdaContainer(
                "function.handler", folder=tmp_path, environment={**variables, **runtime}, timeout=60.0, **options
            )
            return stack.enter_context(container)

        yield make


def is_gone(superuser: psycopg.Connection[Any], fleet: str) -> bool:
    """Tell whether the server ends all sessions of `fleet`, soon: ``benchmarks/shutdown.py`` says how soon."""
    return eventually(lambda: sessions(superuser, fleet) == [])


def closings(lines: Iterable[str]) -> list[str]:
    """Return the reasons that the rest of what a process says gives for closing connections."""
    return [line.split("reason='")[1].partition("'")[0] for line in lines if line.startswith("Closed(")]


@pytest.mark.parametrize("polls", [False, True])
def test_idle_function(superuser: Any, fleet: str, function: Any, polls: bool) -> None:
    """An idle function closes its connections and ends, even if its main thread hangs in the runtime's C code."""
    container = function(polls)
    container.invoke({"seconds": 0})
    container.wait_until_idle()
    assert len(sessions(superuser, fleet)) == 1

    assert container.shut_down(grace=PATIENCE) == 0
    assert is_gone(superuser, fleet)
    assert closings(container.log.splitlines()) == ["SIGTERM"]


@pytest.mark.parametrize("polls", [False, True])
def test_busy_function(superuser: Any, fleet: str, function: Any, polls: bool) -> None:
    """A statement that is running is cancelled, and its session ends, although the server does not look for us."""
    container = function(polls)
    container.start_invocation({"seconds": 60})
    assert eventually(lambda: is_working(superuser, fleet))

    assert container.shut_down(grace=PATIENCE) == 0
    assert is_gone(superuser, fleet)


def test_function_is_an_extension(function: Any) -> None:
    """The function registers as an extension without events and reports as ready, before it asks for an event."""
    container = function()
    container.start()

    assert container.extensions == [{"name": "serverless-pg-kit", "events": []}]
    assert eventually(lambda: "/2020-01-01/extension/event/next" in container.calls)
    assert container.calls[0] == "/2020-01-01/extension/register"


def test_refused_extension_is_told(function: Any) -> None:
    """A function that Lambda does not accept as an extension works all the same, and says what was said."""
    container = function(refuses_extensions=True)
    container.invoke({"seconds": 0})

    refusal = 'status 403: {"errorType": "Extension.AlreadyRegistered"}'
    assert f"MaintenanceFailed(stage='extension', error='{refusal}')\n" in container.log


REGISTERS_TWICE = """
engines = [Engine(on_event=lambda event: say(type(event).__name__, event.stage)) for _ in range(2)]
for engine in engines:
    close_on_sigterm(engine)
say("done")
"""


def test_unreachable_extensions_api_is_told_once(variables: Mapping[str, str]) -> None:
    """If nobody listens where Lambda's API should be, an event says so; nobody tries again."""
    with program(REGISTERS_TWICE, {**variables, "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:1"}) as process:
        assert [heard(process), heard(process)] == ["MaintenanceFailed extension", "done"]


def test_silent_extensions_api_is_not_waited_for(variables: Mapping[str, str], server: PostgresServer) -> None:
    """An API that accepts and says nothing costs a second, once."""
    with Proxy(server.host, server.port) as deaf:
        deaf.hush(newcomers=True)
        address = deaf.reroute("").replace("host=", "").replace(" port=", ":")
        with program(REGISTERS_TWICE, {**variables, "AWS_LAMBDA_RUNTIME_API": address}) as process:
            assert [heard(process), heard(process)] == ["MaintenanceFailed extension", "done"]


def test_managed_instances_register_nothing(variables: Mapping[str, str]) -> None:
    """Where one environment has several processes, none of them registers."""
    with closing(RuntimeApi("")) as api:
        addresses = {"AWS_LAMBDA_RUNTIME_API": api.address, "AWS_LAMBDA_MAX_CONCURRENCY": "2"}
        with program(REGISTERS_TWICE, {**variables, **addresses}) as process:
            assert heard(process) == "done"
        assert api.calls == []


SEVERAL = """
engines = [Engine(on_event=say) for _ in range(3)]
close_on_sigterm(engines[0])
close_on_sigterm(engines[0], engines[1])
for engine in engines:
    open_connection(engine)
say("ready")
rest()
"""


def test_several_engines(superuser: Any, fleet: str, variables: Mapping[str, str]) -> None:
    """Engines of several calls are closed once each; one that was not named is left to the end of the process."""
    with program(SEVERAL, variables) as process:
        while heard(process) != "ready":
            pass
        assert len(sessions(superuser, fleet)) == 3
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=PATIENCE) == 0
        assert closings(process.stdout or []) == ["SIGTERM"] * 2
        assert is_gone(superuser, fleet)


IN_USE = """
engine = Engine(max_size=3)
close_on_sigterm(engine)

def work(statement):
    with engine.request() as conn:
        hide_from_server(conn)
        conn.execute(statement)
        say("ready")
        rest()

for statement in ("select 1", "select pg_sleep(60)"):
    threading.Thread(target=work, args=[statement]).start()
open_connection(engine)
rest()
"""


def test_connections_in_use_by_threads(superuser: Any, fleet: str, variables: Mapping[str, str]) -> None:
    """Idle, idle in a transaction or executing: all sessions end, although no thread is asked to let go of its own."""
    with program(IN_USE, variables) as process:
        assert heard(process) == "ready"
        assert eventually(lambda: is_working(superuser, fleet) and len(sessions(superuser, fleet)) == 3)
        process.send_signal(signal.SIGTERM)

        assert is_gone(superuser, fleet)
        assert process.wait(timeout=PATIENCE) == 0


HANGS = """
engine = Engine(max_size=2)
close_on_sigterm(engine)

def work():
    with engine.request() as conn:
        say("ready")
        conn.execute("select pg_sleep(60)")

threading.Thread(target=work).start()
work()
"""


def test_silent_server_holds_up_nobody(proxy: Proxy, variables: Mapping[str, str]) -> None:
    """A server that does not answer to cancels is not waited for."""
    silent = {**variables, "DATABASE_URL": proxy.reroute(variables["DATABASE_URL"])}
    with program(HANGS, silent) as process:
        assert [heard(process), heard(process)] == ["ready", "ready"]
        proxy.hush(newcomers=True)
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=PATIENCE) == 0


EARLIER_HANDLER = """
calls = []

def earlier(number, frame):
    calls.append(number)
    say("handler", number, frame is not None, threading.current_thread() is threading.main_thread())

signal.signal(signal.SIGTERM, earlier)
engine = Engine()
close_on_sigterm(engine)
close_on_sigterm(engine)
open_connection(engine)
say("ready")
for count in (1, 2):
    while len(calls) < count:
        time.sleep(0.01)
    say("back")
rest()
"""


def test_earlier_handler_decides(superuser: Any, fleet: str, variables: Mapping[str, str]) -> None:
    """A handler that was set before is called where Python calls handlers, once each time; the process goes on."""
    with program(EARLIER_HANDLER, variables) as process:
        assert heard(process) == "ready"
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            assert heard(process) == "handler 15 True True"
            assert heard(process) == "back"  # a signal that comes before is that of the handler itself, for all we know
            assert is_gone(superuser, fleet)
        assert process.poll() is None


ENDS = """
engines = [Engine(on_event=lambda event: time.sleep(0.05)), Engine()]
signal.signal(signal.SIGTERM, lambda *_: (say(engines[1].stats.closes), os._exit(3)))
close_on_sigterm(*engines)
for engine in engines:
    open_connection(engine)
say("ready")
rest()
"""


def test_connections_are_closed_before_the_earlier_handler(variables: Mapping[str, str]) -> None:
    """An earlier handler that ends the process finds the work done, even if that takes a while."""
    with program(ENDS, variables) as process:
        assert heard(process) == "ready"
        process.send_signal(signal.SIGTERM)

        assert heard(process) == "1"
        assert process.wait(timeout=PATIENCE) == 3


LATER_HANDLER = """
engine = Engine()
close_on_sigterm(engine)
kits = signal.getsignal(signal.SIGTERM)
signal.signal(signal.SIGTERM, lambda *_: {action})
open_connection(engine)
say("ready")
rest()
"""


def test_later_handler_takes_over(superuser: Any, fleet: str, variables: Mapping[str, str]) -> None:
    """A handler that is set later and does not call the kit's has SIGTERM to itself."""
    with program(LATER_HANDLER.format(action="say('mine')"), variables) as process:
        assert heard(process) == "ready"
        process.send_signal(signal.SIGTERM)

        assert heard(process) == "mine"
        assert process.poll() is None
        assert len(sessions(superuser, fleet)) == 1


def test_later_handler_that_calls_the_kits(superuser: Any, fleet: str, variables: Mapping[str, str]) -> None:
    """A handler that is set later may hand on to the kit's."""
    with program(LATER_HANDLER.format(action="kits(*_)"), variables) as process:
        assert heard(process) == "ready"
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=PATIENCE) == 0
        assert is_gone(superuser, fleet)


RECLAIMED = """
engine = Engine()
close_on_sigterm(engine)
kits = signal.getsignal(signal.SIGTERM)
signal.signal(signal.SIGTERM, lambda *_: (say("mine"), kits(*_), say("done")))
signal.set_wakeup_fd(-1)
close_on_sigterm(engine)
open_connection(engine)
say("ready")
rest()
"""


def test_reclaimed_post(superuser: Any, fleet: str, variables: Mapping[str, str]) -> None:
    """A second call takes SIGTERM back from a handler that calls the kit's; they do not call each other for ever."""
    with program(RECLAIMED, variables) as process:
        assert heard(process) == "ready"
        process.send_signal(signal.SIGTERM)

        assert [heard(process), heard(process)] == ["mine", "done"]
        assert is_gone(superuser, fleet)
        assert process.poll() is None


GOES_ON = """
signal.signal(signal.SIGTERM, lambda *_: say("handler"))
engine = Engine()
close_on_sigterm(engine)
with engine.request() as conn:
    conn.execute("select 1")
    say("ready")
    rest()
"""


def test_connection_in_use_of_a_process_that_goes_on(superuser: Any, fleet: str, variables: Mapping[str, str]) -> None:
    """A session that holds a transaction ends at SIGTERM, and not only with its process."""
    with program(GOES_ON, variables) as process:
        assert heard(process) == "ready"
        process.send_signal(signal.SIGTERM)

        assert heard(process) == "handler"
        assert is_gone(superuser, fleet)
        assert process.poll() is None


IGNORED = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
engine = Engine()
close_on_sigterm(engine)
open_connection(engine)
say("ready")
rest()
"""


def test_ignored_sigterm(superuser: Any, fleet: str, variables: Mapping[str, str]) -> None:
    """A process that ignored SIGTERM closes its connections and goes on."""
    with program(IGNORED, variables) as process:
        assert heard(process) == "ready"
        process.send_signal(signal.SIGTERM)

        assert is_gone(superuser, fleet)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)


ASYNCIO = """
engine = Engine()

async def main():
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, lambda: say("user signal"))
    loop.add_signal_handler(signal.SIGTERM, lambda: (say("term", engine.stats.open), done.set()))
    close_on_sigterm(engine)
    open_connection(engine)
    say("ready")
    await done.wait()

asyncio.run(main())
say("ended")
"""


def test_signals_of_asyncio(variables: Mapping[str, str]) -> None:
    """A loop that had the wake-up descriptor before gets its signals, SIGTERM when the connections are closed."""
    with program(ASYNCIO, variables) as process:
        assert heard(process) == "ready"
        process.send_signal(signal.SIGUSR1)
        assert heard(process) == "user signal"
        process.send_signal(signal.SIGTERM)

        assert [heard(process), heard(process)] == ["term 0", "ended"]
        assert process.wait(timeout=PATIENCE) == 0


def test_later_loop(superuser: Any, fleet: str, variables: Mapping[str, str]) -> None:
    """A loop that takes the wake-up descriptor later does not keep SIGTERM from the kit."""
    code = """
engine = Engine()
close_on_sigterm(engine)

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: say("user signal"))
    open_connection(engine)
    say("ready")
    await asyncio.sleep(60)

asyncio.run(main())
"""
    with program(code, variables) as process:
        assert heard(process) == "ready"
        process.send_signal(signal.SIGUSR1)
        assert heard(process) == "user signal"
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=PATIENCE) == 0
        assert is_gone(superuser, fleet)


OTHER_SIGNALS = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background may ignore it
engine = Engine()
close_on_sigterm(engine)
signal.signal(signal.SIGALRM, lambda *_: say("alarm"))
open_connection(engine)
try:
    say("ready")
    rest()
except KeyboardInterrupt:
    say("interrupt", engine.stats.open)
"""


def test_other_signals(variables: Mapping[str, str]) -> None:
    """Ctrl-C raises KeyboardInterrupt and other handlers run as ever; neither closes a connection."""
    with program(OTHER_SIGNALS, variables) as process:
        assert heard(process) == "ready"
        process.send_signal(signal.SIGALRM)
        assert heard(process) == "alarm"
        process.send_signal(signal.SIGINT)

        assert heard(process) == "interrupt 1"
        assert process.wait(timeout=PATIENCE) == 0


FORKS = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork() with threads
engine = Engine()
close_on_sigterm(engine)
with engine.request() as conn:
    parents = conn.info.backend_pid
child = os.fork()
if child == 0:
    {child}
    say("child", os.getpid())
    rest()
_, status = os.waitpid(child, 0)
with engine.request() as conn:
    is_same = conn.info.backend_pid == parents
say("status", os.waitstatus_to_exitcode(status), is_same)
rest()
"""


@pytest.mark.parametrize(
    ("child", "status"),
    [
        ("assert signal.set_wakeup_fd(-1) == -1", -signal.SIGTERM),
        ("open_connection(engine)", -signal.SIGTERM),
        ("close_on_sigterm(engine); open_connection(engine)", 0),
    ],
)
def test_forked_child(superuser: Any, fleet: str, variables: Mapping[str, str], child: str, status: int) -> None:
    """A child that gets SIGTERM ends as it would have, or as it asked to; its parent's connections stay."""
    with program(FORKS.format(child=child), variables) as process:
        pid = int(heard(process).split()[1])
        subprocess.run(["kill", "-TERM", str(pid)], check=True)

        assert heard(process) == f"status {status} True"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0
        assert is_gone(superuser, fleet)


def test_other_threads_are_refused(make_engine: Any) -> None:
    """Outside of the main thread it says what is wrong, and leaves no trace."""
    caught: list[BaseException] = []

    def call() -> None:
        try:
            close_on_sigterm(naked(make_engine()))
        except RuntimeError as error:
            caught.append(error)

    before = signal.getsignal(signal.SIGTERM), threading.active_count()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

    assert "main thread" in str(caught[0])
    assert (signal.getsignal(signal.SIGTERM), threading.active_count()) == before


@pytest.mark.parametrize("wrong", [(), (None,), ("postgresql://",)])
def test_wrong_arguments(wrong: tuple[Any, ...]) -> None:
    """What is no engine is refused, and so is nothing at all."""
    with pytest.raises(TypeError, match="takes engines"):
        close_on_sigterm(*wrong)


def test_collected_engine(superuser: Any, fleet: str, variables: Mapping[str, str]) -> None:
    """An engine that nobody holds any more is not kept alive."""
    code = """
import gc, weakref
engine = Engine()
close_on_sigterm(engine)
reference = weakref.ref(engine)
del engine
gc.collect()
say(reference())
rest()
"""
    with program(code, variables) as process:
        assert heard(process) == "None"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0
