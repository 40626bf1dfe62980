"""Containers: frozen between requests, one request at a time, ended at the time limit, gone with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support import eventually

from serverless_pg_kit.simulator import zygote as zygote_module
from serverless_pg_kit.simulator.contestants import examples_folder
from serverless_pg_kit.simulator.errors import DemoError
from serverless_pg_kit.simulator.fleet import Container, Fleet
from serverless_pg_kit.simulator.measure import Tally
from serverless_pg_kit.simulator.traffic import Arrival
from serverless_pg_kit.simulator.zygote import Zygote

HANDLERS = """
import os, sys, time

print("module code")
number = 0

def fine(event, context): return {"statusCode": 200}
def refuse(event, context): return {"statusCode": 404}
def break_(event, context): return {"statusCode": 503}
def crash(event, context): raise ValueError("no good")
def leave(event, context): os._exit(3)
def hang(event, context): time.sleep(60)
def slow(event, context): time.sleep(0.2); return {"statusCode": 200}
def environment(event, context): return {"statusCode": 200 if os.environ["COLOUR"] == context.function_name else 500}
def remaining(event, context): return {"statusCode": 200 if 0 < context.get_remaining_time_in_millis() <= 1000 else 500}

def count(event, context):
    global number
    number += 1
    if number != event["expected"]: raise ValueError(f"call {number}")
    return {"statusCode": 200}
"""

MakeFleet = Callable[..., Fleet]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A zygote that knows the module ``probe`` with the handlers above."""
    folder = tmp_path_factory.mktemp("handlers")
    (folder / "probe.py").write_text(HANDLERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        with closing(Zygote(str(examples_folder()))) as process:
            process.reap()
            yield process


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def make_fleet(zygote: Zygote, tally: Tally) -> Iterator[MakeFleet]:
    """Make fleets whose containers have the handlers above; they are closed at the end of the test."""
    made: list[Fleet] = []

    def make(time_limit: float = 1.0, **limits: int) -> Fleet:
        environment = {"COLOUR": "green", "AWS_LAMBDA_FUNCTION_NAME": "green"}
        made.append(Fleet(lambda _: zygote.spawn("probe", environment), limits, tally, time_limit=time_limit))
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()
    zygote.reap()


def requests(*handlers: str, function: str = "f", **event: object) -> list[Arrival]:
    """Requests that arrive at once."""
    return [Arrival(0.0, function, handler, event) for handler in handlers]


def pid_of(container: Container) -> int:
    assert container.pid is not None
    return container.pid


def state(pid: int) -> str:
    """The state letter of a process as the kernel shows it; Z if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_outcomes(make_fleet: MakeFleet, tally: Tally) -> None:
    """An answer below 500 is served, everything else fails for a reason."""
    make_fleet(f=6).play(requests("fine", "refuse", "break_", "crash", "nowhere", "leave"))

    assert len(tally.latencies) == 2
    assert tally.reasons == {
        "status 503": 1,
        "no good": 1,
        "module 'probe' has no attribute 'nowhere'": 1,
        "the container exited": 1,
    }


def test_environment_and_context(make_fleet: MakeFleet, tally: Tally) -> None:
    """A container has its function's environment, and its handlers are told how much time they have."""
    make_fleet(f=2).play(requests("environment", "remaining"))

    assert (len(tally.latencies), tally.reasons) == (2, {})


def test_containers_are_frozen_between_requests(make_fleet: MakeFleet) -> None:
    """Once everything is answered, every container is stopped."""
    fleet = make_fleet(f=3)
    fleet.play(requests("slow", "slow", "slow"))

    pids = [pid_of(container) for container in fleet.containers]
    assert len(pids) == 3
    assert eventually(lambda: [state(pid) for pid in pids] == ["T"] * 3)


def test_container_keeps_its_module(make_fleet: MakeFleet, tally: Tally) -> None:
    """A thawed container goes on with what its module holds, and is used before another is started."""
    fleet = make_fleet(f=5)
    for expected in (1, 2, 3):
        fleet.play(requests("count", expected=expected))

    assert (len(fleet.containers), tally.failed) == (1, 0)


def test_limit_of_containers(make_fleet: MakeFleet, tally: Tally) -> None:
    """Requests beyond a function's limit wait for its containers, and do not hold up another function's."""
    fleet = make_fleet(f=2, g=1)
    fleet.play(requests(*["slow"] * 6) + requests("fine", function="g"))

    assert sorted(container.function for container in fleet.containers) == ["f", "f", "g"]
    assert tally.failed == 0
    assert min(tally.latencies) < 0.2
    assert max(tally.latencies) >= 0.6


def test_time_limit(make_fleet: MakeFleet, tally: Tally) -> None:
    """A request that takes too long fails, its container is ended, and the next request gets a new one."""
    fleet = make_fleet(time_limit=0.5, f=1)
    fleet.play(requests("hang"))
    assert fleet.containers == []

    fleet.play(requests("fine"))

    assert (tally.reasons, len(tally.latencies)) == ({"timed out after 0.5 s": 1}, 1)


def test_rest(make_fleet: MakeFleet) -> None:
    """A container that dies in its sleep is noticed and replaced."""
    fleet = make_fleet(f=1)
    fleet.play(requests("fine"))
    os.kill(pid_of(fleet.containers[0]), signal.SIGKILL)
    fleet.rest(0.2)
    assert fleet.containers == []

    fleet.play(requests("fine"))

    assert len(fleet.containers) == 1


def test_close_ends_frozen_containers(make_fleet: MakeFleet, zygote: Zygote) -> None:
    """After `close` and `reap` no container is left."""
    fleet = make_fleet(f=3)
    fleet.play(requests("slow", "slow", "slow"))
    pids = [pid_of(container) for container in fleet.containers]

    fleet.close()
    zygote.reap()

    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_dead_zygote_is_told() -> None:
    """A zygote that cannot start is an error with words, not a failed request."""
    with closing(Zygote(str(examples_folder()))) as process:
        os.kill(process.pid, signal.SIGKILL)

        with pytest.raises(DemoError, match="has ended"):
            process.reap()


ORPHANING = """
import sys, time
from {module} import Zygote
from serverless_pg_kit.simulator.fleet import Fleet
from serverless_pg_kit.simulator.measure import Tally
from serverless_pg_kit.simulator.traffic import Arrival
zygote = Zygote({examples!r})
fleet = Fleet(lambda _: zygote.spawn("probe", {{}}), {{"f": 3}}, Tally(), time_limit=30)
fleet.play([Arrival(0, "f", "slow", {{}})] * 3)
print(zygote.pid, *(container.pid for container in fleet.containers), flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["time.sleep(60)", 'fleet.play([Arrival(0, "f", "hang", {})] * 3)'])
def test_nothing_survives_a_killed_parent(tmp_path: Path, then: str) -> None:
    """When the parent is killed, zygote and containers go with it, frozen or busy."""
    (tmp_path / "probe.py").write_text(HANDLERS)
    code = ORPHANING.format(module=zygote_module.__name__, examples=str(examples_folder()), then=then)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()

    assert len(pids) == 4
    assert eventually(lambda: all(state(pid) == "Z" for pid in pids))
