"""The soak: what it reads from the command line, what it counts, whom it compares with whom, and one short run."""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from random import Random

import pytest
from click.testing import CliRunner

from fleet import cpu
from fleet.container import Warnings
from fleet.contestants import CONTESTANTS, parse_contestants, parse_variants
from fleet.figures import Figures, Request, Window, figures
from fleet.report import aligned, choose_reference, final_text, run_text
from fleet.run import Run, deal
from fleet.scenario import Users, parse_users
from serverless_pg_kit.events import MaintenanceFailed
from soak import main, turns


def run_of(
    name: str, served: int, times: list[float], starved: int = 0, failed: int = 0, server_cpu: float | None = 1.0
) -> Run:
    """Return a run of ten seconds."""
    overall = Figures("all", 10.0, served, starved, times, Counter({"OperationalError: full": failed}))
    return Run(name, [], overall, {"connects": 7, "refusals": 0}, 2.0, server_cpu, 0.1, Counter({"lost": 2}))


def squeezed(line: str) -> str:
    """Return a line of a table with single blanks."""
    return " ".join(line.split())


def test_users() -> None:
    """Classes of users are counts and seconds of thinking."""
    assert parse_users("500x1.0, 200x0") == [Users(500, 1.0), Users(200, 0.0)]


@pytest.mark.parametrize("text", ["", "500", "0x1", "5x", "5x-1", "x1", "5x1,,2x0"])
def test_users_that_cannot_be_read(text: str) -> None:
    """What is no class of users is refused with an example."""
    with pytest.raises(ValueError, match=r"500x1\.0"):
        parse_users(text)


def test_thinking_is_that_of_the_seed() -> None:
    """The same seed gives the same pauses, and they have the mean that was asked for."""
    first, second = (list(itertools.islice(Users(1, 0.5).pauses(Random("7")), 5000)) for _ in range(2))

    assert first == second
    assert sum(first) / len(first) == pytest.approx(0.5, rel=0.1)


def test_no_thinking() -> None:
    """Users without think time never pause."""
    assert list(itertools.islice(Users(1, 0.0).pauses(Random("7")), 3)) == [0.0, 0.0, 0.0]


def test_contestants() -> None:
    """Contestants play in the order in which they are named, each once."""
    assert [found.name for found in parse_contestants("per-request,kit,kit")] == ["per-request", "kit"]


def test_contestant_that_does_not_exist() -> None:
    """A contestant that does not exist is refused with the names of those that do."""
    with pytest.raises(ValueError, match="'pool' is no contestant: there are kit, module-level, per-request"):
        parse_contestants("kit,pool")


def test_variants() -> None:
    """A variant of the kit bears its settings as its name and is not one of the plain contestants."""
    (variant,) = parse_variants(["strategy=ranked,max_kills=none"])

    assert (variant.name, variant.plain) == ("kit strategy=ranked,max_kills=none", False)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ranked", "NAME=VALUE"),
        ("stratgy=ranked", "did you mean strategy"),
        ("census_ttl=soon", "census_ttl='soon' is not allowed"),
        ("conninfo=host=elsewhere", "the soak's own server"),
    ],
)
def test_variant_that_is_none(text: str, problem: str) -> None:
    """Settings that do not exist or are not allowed are refused before anything starts."""
    with pytest.raises(ValueError, match=problem):
        parse_variants([text])


def test_turns_rotate() -> None:
    """All play in every round, and each round is begun by the next one."""
    players = list(CONTESTANTS.values())

    order = [(number, player.name[0]) for number, player in turns(players, 4)]

    assert [number for number, _ in order] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert "".join(initial for _, initial in order) == "kmpmpkpkmkmp"


@pytest.mark.parametrize("processes", [1, 3, 50])
def test_every_user_is_in_one_process(processes: int) -> None:
    """Users are dealt out evenly, in an order that is the seed's; no process is left without one."""
    users = [Users(7, 1.0), Users(3, 0.0)]
    hands = deal(users, processes, "7")
    sizes = [len(hand) for hand in hands]

    assert sorted(itertools.chain(*hands)) == [(0, number) for number in range(7)] + [
        (1, number) for number in range(3)
    ]
    assert max(sizes) - min(sizes) <= 1
    assert 0 not in sizes
    assert deal(users, processes, "7") == hands != deal(users, processes, "8")


def test_figures() -> None:
    """Requests count in the window that they end in; one that outlasts the window counts as far as it has got."""
    requests = [
        Request(0.0, 9.9),  # before the window
        Request(9.0, 10.0),
        Request(12.0, 14.0),
        Request(11.0, 19.0, "OperationalError: full"),
        Request(15.0, 20.0),  # after it, but begun in it
        Request(4.0, 31.0),  # starved
    ]

    found = figures("all", requests, Window(10.0, 20.0))

    assert (found.served, found.failed, found.starved, found.lost) == (2, 1, 1, 2)
    assert sorted(found.times) == [1.0, 2.0, 8.0, 16.0]
    assert (found.throughput, found.percentile(0.5), found.percentile(1.0)) == (0.2, 2.0, 16.0)
    assert found.reasons == {"OperationalError: full": 1}


def test_figures_of_nothing() -> None:
    """Without a request there is no latency, rather than a latency of zero."""
    assert figures("all", [], Window(0.0, 1.0)).percentile(0.99) is None


def test_usage_of_a_process() -> None:
    """The name of a program may hold what separates the fields elsewhere."""
    numbers = " ".join(str(number) for number in range(5, 53))

    assert cpu.parse_stat(f"17 (a) b (c) S 4 {numbers}") == cpu.Usage(parent=4, ticks=14 + 15 + 16 + 17)


def test_usage_of_nobody() -> None:
    """A process that does not exist has no CPU time, rather than one of zero."""
    assert cpu.server_seconds(2**22 + 1) is None


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="this system has no /proc")
def test_usage_of_this_process() -> None:
    """What /proc says of a process agrees with what the process says of itself."""
    usage = cpu.read_usage(os.getpid())
    own = sum(os.times()[:4])

    assert usage is not None
    assert usage.parent == os.getppid()
    assert usage.ticks / os.sysconf("SC_CLK_TCK") == pytest.approx(own, abs=0.2)


def test_reference() -> None:
    """The reference is the fastest of those that lost nothing in any round."""
    runs = {
        "fast": [run_of("fast", 900, [0.1]), run_of("fast", 900, [0.1], starved=1)],
        "slow": [run_of("slow", 100, [0.1])],
        "middle": [run_of("middle", 300, [0.1])],
        "failing": [run_of("failing", 400, [0.1], failed=2)],
    }

    assert choose_reference(runs) == "middle"
    assert choose_reference({"failing": runs["failing"]}) is None


def test_columns() -> None:
    """The first column stands to the left, the others to the right."""
    assert aligned([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"


def test_warnings() -> None:
    """Warnings are counted by their first line, of which the kit's events have one, escaped."""
    heard = Warnings()
    for pid in (1, 1, 2):
        heard.handle(logging.makeLogRecord({"msg": "%s", "args": (MaintenanceFailed("reap", f"lost {pid}\nagain"),)}))

    assert heard.texts == {
        "MaintenanceFailed(stage='reap', error='lost 1": 2,
        "MaintenanceFailed(stage='reap', error='lost 2": 1,
    }


def test_report_of_a_run() -> None:
    """A run tells what happened, and leaves out the counts that are zero."""
    text = run_text(run_of("plain", 100, [0.05, 0.25], failed=3, server_cpu=None))

    assert squeezed(text.splitlines()[1]) == "all 100 3 0 10 50.0 250 250 250"
    assert text.splitlines()[2].startswith("CPU: client 2.0 s (20% of a core), server n/a;")
    assert text.splitlines()[3:] == ["connects 7", "3 x OperationalError: full", "2 x lost"]


def test_final_report() -> None:
    """The last table has medians over the rounds, and ratios to the reference."""
    plain = [run_of("plain", 100, [0.1]), run_of("plain", 300, [0.3]), run_of("plain", 200, [0.2])]
    kit = [run_of("kit", 600, [0.1], starved=1)] * 3

    lines = final_text({"kit": kit, "plain": plain}, ["plain"]).splitlines()

    assert lines[0] == "medians of 3 rounds; ratios to plain"
    assert squeezed(lines[2]) == "kit 60 3.00 100 0.50 3 3.33 1.67"
    assert squeezed(lines[3]) == "plain 20 1.00 200 1.00 0 10.00 5.00"


def test_final_report_without_reference() -> None:
    """If every plain contestant lost requests, there are no ratios, and that is said."""
    lines = final_text({"plain": [run_of("plain", 0, [], starved=9, server_cpu=None)]}, ["plain"]).splitlines()

    assert lines[0].endswith("no plain contestant served everybody, hence no ratios")
    assert squeezed(lines[2]) == "plain 0 - - - 9 - -"


def test_soak() -> None:
    """A short soak lets every contestant serve and compares them in the end."""
    small = "--users 4x0.05,2x0 --slots 4 --work 0.005 --seconds 0.5 --warmup 0.2 --rounds 1 --processes 2"

    result = CliRunner().invoke(main, [*small.split(), "--kit", "census_ttl=0"], catch_exceptions=False)

    assert result.exit_code == 0
    _, _, *rows = result.output.rpartition("medians of 1 rounds")[2].splitlines()
    assert [row.split("  ")[0] for row in rows] == ["kit", "module-level", "per-request", "kit census_ttl=0"]
    assert all(float(row[20:].split()[0]) > 0 for row in rows)
