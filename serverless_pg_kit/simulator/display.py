"""What the audience sees: the stage while an act plays, and one table. The only module here that needs rich."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serverless_pg_kit.simulator.acts import ACTS, Scale
from serverless_pg_kit.simulator.contestants import KIT
from serverless_pg_kit.simulator.demo import Result
from serverless_pg_kit.simulator.fleet import Fleet
from serverless_pg_kit.simulator.measure import Tally

FRAME = 0.1  # seconds between two pictures: drawing takes CPU from the containers
MARKS = 60  # columns of a bar at most
BESIDES = 40  # columns of what stands beside it
HEADINGS = ("requests", "failed", "p50\n   ms", "p95\n   ms", "max\n   ms", "peak\nconns", "final\nconns")
PIPE_WIDTH = 120  # columns where there is no terminal that would have some


class Display:
    """Shows a demo on `console` while it is performed; without a terminal it prints one line for each finished run.

    A context manager: entered before the performance, left after it.
    """

    def __init__(self, console: Console, scale: Scale) -> None:
        self._console = console
        self._scale = scale
        self._results: list[Result] = []
        self._fleet: Fleet | None = None
        self._caption = ""
        self._next_frame = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, result: Result, fleet: Fleet) -> None:
        """Put a run on the stage."""
        self._results.append(result)
        self._fleet = fleet

    def say(self, text: str) -> None:
        """Show what happens from here on."""
        self._caption = text
        self._draw()

    def refresh(self) -> None:
        """Draw the next picture, if it is time."""
        if time.monotonic() >= self._next_frame:
            self._draw()

    def end(self) -> None:
        """Without a terminal: report the run that is over."""
        if not self._console.is_terminal:
            self._console.print(_line(self._results[-1]))

    def _draw(self) -> None:
        if self._live.is_started:
            self._live.update(Group(*self._stage(), table(self._results, brief=True)), refresh=True)
        self._next_frame = time.monotonic() + FRAME

    def _stage(self) -> list[RenderableType]:
        if not self._fleet:
            return []
        result = self._results[-1]
        number = ACTS.index(result.act) + 1
        return [
            Text.assemble((f"Act {number} of {len(ACTS)}, {result.act.name}: ", "bold"), result.act.story),
            Text.assemble(_contestant(result), ": ", (self._caption, "italic")),
            Text(),
            _meters(self._fleet, result.tally, self._scale, min(MARKS, self._console.width - BESIDES)),
        ]


def _meters(fleet: Fleet, tally: Tally, scale: Scale, width: int) -> Table:
    awake, total, taken = len(fleet.busy()), len(fleet.containers), tally.connections
    full = "red" if taken >= scale.slots else "green"
    served = Text.assemble(f"{tally.requests - tally.failed} served, ", _failed(tally, " failed"))
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        "containers",
        _bar(width, scale.containers, "●", (awake, "yellow"), (total - awake, "blue")),
        f"{awake} awake, {total - awake} frozen",
    )
    grid.add_row("connections", _bar(width, scale.slots, "■", (taken, full)), f"{taken} of {scale.slots}")
    grid.add_row("requests", served, f"{fleet.waiting} waiting" if fleet.waiting else "")
    return grid


def _bar(width: int, whole: int, mark: str, *parts: tuple[int, str]) -> Text:
    """A mark for each, or for every few if there are many, in the colours of `parts`; dots for the rest."""
    scale = min(1.0, width / whole)
    shares = [(round(count * scale), style) for count, style in parts]
    rest = round(whole * scale) - sum(count for count, _ in shares)
    return Text.assemble(*((mark * count, style) for count, style in shares), ("·" * rest, "dim"))


def _failed(tally: Tally, unit: str = "") -> Text:
    return Text(f"{tally.failed}{unit}", "bold red" if tally.failed else "green")


def _contestant(result: Result) -> Text:
    return Text(result.contestant.name, "bold cyan" if result.contestant is KIT else "bold magenta")


def _line(result: Result) -> str:
    tally = result.tally
    return f"{result.act.name}, {result.contestant.name}: {tally.requests} requests, {tally.failed} failed"


def table(results: Sequence[Result], *, brief: bool = False) -> Table:
    """Return the results as a table; a `brief` one keeps each to one line."""
    grid = Table(box=box.SIMPLE_HEAD, padding=0)
    grid.add_column("act", no_wrap=True, min_width=7)
    grid.add_column("with", no_wrap=True, min_width=5)
    for heading in HEADINGS:
        grid.add_column(heading, justify="right", no_wrap=True, min_width=max(map(len, heading.split("\n"))))
    grid.add_column("     why requests failed", no_wrap=brief, overflow="ellipsis" if brief else "fold")
    for result in results:
        grid.add_row(*_cells(result, brief), end_section=result.contestant is KIT)
    return grid


def _cells(result: Result, brief: bool) -> list[RenderableType]:
    tally = result.tally
    return [
        result.act.name,
        _contestant(result),
        str(tally.requests),
        _failed(tally),
        *(_milliseconds(tally.percentile(share)) for share in (0.5, 0.95, 1.0)),
        str(tally.peak),
        str(tally.connections),
        _reasons(tally, 1 if brief else None),
    ]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}"


def _reasons(tally: Tally, most: int | None) -> str:
    return "\n".join(f"{count:4} x {why}" for why, count in tally.reasons.most_common(most))


def verdict(results: Sequence[Result]) -> Text:
    """Return the outcome in a sentence for each contestant, and what the numbers are."""
    text = Text()
    for name in dict.fromkeys(result.contestant.name for result in results):
        tallies = [result.tally for result in results if result.contestant.name == name]
        failed, requests = sum(tally.failed for tally in tallies), sum(tally.requests for tally in tallies)
        text.append(f"{name}: {failed} of {requests} requests failed\n", "bold red" if failed else "bold green")
    text.append("Latency is from arrival to answer, of served requests, on this machine: not a number of AWS.", "dim")
    return text
