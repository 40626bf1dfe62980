"""The display: pictures on a terminal, lines without one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from serverless_pg_kit.simulator.acts import BURST, Scale
from serverless_pg_kit.simulator.contestants import KIT, PLAIN
from serverless_pg_kit.simulator.demo import Result
from serverless_pg_kit.simulator.display import Display, table, verdict
from serverless_pg_kit.simulator.fleet import Fleet
from serverless_pg_kit.simulator.measure import Tally

SCALE = Scale(containers=200, slots=17, seconds=1.0)


def show(*, terminal: bool, width: int = 100) -> str:
    """What one run with one failure looks like."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    tally = Tally()
    tally.served(0.25)
    tally.failed_because("sorry, too many clients already")
    tally.connected(5)
    fleet = Fleet(lambda _: pytest.fail("nothing arrives"), {}, tally)
    with Display(console, SCALE) as display:
        display.begin(Result(BURST, PLAIN, tally), fleet)
        display.say("something happens")
        display.refresh()
        display.end()
    fleet.close()
    console.print(table([Result(BURST, PLAIN, tally), Result(BURST, KIT, Tally())]))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_terminal() -> None:
    """A terminal sees the act, what happens, and the meters."""
    text = show(terminal=True)

    assert "Act 1 of 3, burst: ten times the traffic" in text
    assert "plain: something happens" in text
    assert "■■■■■············" in text
    assert "1 served, 1 failed" in text


def test_no_terminal() -> None:
    """A file or a pipe gets a line for each run, and no control characters."""
    text = show(terminal=False)

    assert text.startswith("burst, plain: 2 requests, 1 failed\n")
    assert "\x1b" not in text
    assert "■" not in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_table(width: int) -> None:
    """The table has every number whole at any usual width, and a dash where nothing was measured."""
    lines = show(terminal=False, width=width).splitlines()
    plain, kit = (next(line for line in lines if name in line.split()[1:2]) for name in ("plain", "kit"))

    assert plain.split()[:9] == ["burst", "plain", "2", "1", "250", "250", "250", "5", "5"]
    assert kit.split() == ["burst", "kit", "0", "0", "-", "-", "-", "0", "0"]
    assert "1 x sorry, too" in plain


def test_verdict() -> None:
    """The outcome is a sentence for each contestant."""
    tally = Tally()
    tally.failed_because("x")

    text = verdict([Result(BURST, PLAIN, tally), Result(BURST, KIT, Tally())]).plain

    assert text.startswith("plain: 1 of 1 requests failed\nkit: 0 of 0 requests failed\n")
