"""How it is told: one table for each run, and one of the medians over all rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from fleet.figures import Figures
from fleet.run import Run

NOTHING = "-"
HEAD = ["users", "served", "failed", "starved", "req/s", "p50 ms", "p95 ms", "p99 ms", "max ms"]
FINAL_HEAD = ["contestant", "req/s", "ratio", "p99 ms", "ratio", "lost", "client ms/req", "server ms/req"]
REASONS = 5


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return `rows` as lines of columns, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def run_text(run: Run) -> str:
    """Return all there is to say about one run."""
    share = run.client_cpu / run.overall.seconds
    cpu = f"CPU: client {run.client_cpu:.1f} s ({share:.0%} of a core), server {shown(run.server_cpu)}"
    ending = f"; the last session ended {run.leaving:.1f} s after the end"
    counts = ", ".join(f"{name} {count}" for name, count in run.counts.items() if count) or "no counts"
    reasons = [f"{count} x {reason}" for reason, count in run.overall.reasons.most_common(REASONS)]
    warnings = [f"{count} x {text}" for text, count in run.warnings.most_common(REASONS)]
    return "\n".join(
        [aligned([HEAD, *map(row, [*run.classes, run.overall])]), cpu + ending, counts, *reasons, *warnings]
    )


def row(figures: Figures) -> list[str]:
    """Return the row of a class of users."""
    times = [milliseconds(figures.percentile(share)) for share in (0.5, 0.95, 0.99, 1.0)]
    counts = [str(figures.served), str(figures.failed), str(figures.starved)]
    return [figures.label, *counts, f"{figures.throughput:.0f}", *times]


def final_text(runs: Mapping[str, Sequence[Run]], plain: Iterable[str]) -> str:
    """Return the table of the medians of all contestants' `runs`; ratios are to the best of the `plain` ones."""
    reference = choose_reference({name: runs[name] for name in plain})
    rows = [final_row(name, own, runs[reference] if reference else None) for name, own in runs.items()]
    compared = f"ratios to {reference}" if reference else "no plain contestant served everybody, hence no ratios"
    return f"medians of {min(map(len, runs.values()))} rounds; {compared}\n" + aligned([FINAL_HEAD, *rows])


def choose_reference(plain: Mapping[str, Sequence[Run]]) -> str | None:
    """Return the name of the `plain` contestant with the best throughput among those that lost no request."""
    faultless = {name: throughput(runs) for name, runs in plain.items() if lost(runs) == 0}
    return max(faultless, key=lambda name: faultless[name]) if faultless else None


def final_row(name: str, runs: Sequence[Run], reference: Sequence[Run] | None) -> list[str]:
    """Return the row of a contestant, with its ratios to those of `reference`."""
    p99 = slowest(runs)
    return [
        name,
        f"{throughput(runs):.0f}",
        ratio(throughput(runs), None if reference is None else throughput(reference)),
        milliseconds(p99),
        ratio(p99, None if reference is None else slowest(reference)),
        str(lost(runs)),
        per_request(runs, [run.client_cpu for run in runs]),
        per_request(runs, [run.server_cpu for run in runs]),
    ]


def throughput(runs: Sequence[Run]) -> float:
    """Return the median of the requests served per second."""
    return statistics.median(run.overall.throughput for run in runs)


def slowest(runs: Sequence[Run]) -> float | None:
    """Return the median of the 99th percentiles in seconds, or ``None`` if no request ended in one of the runs."""
    found = [run.overall.percentile(0.99) for run in runs]
    known = [seconds for seconds in found if seconds is not None]
    return statistics.median(known) if len(known) == len(found) else None


def lost(runs: Sequence[Run]) -> int:
    """Return how many requests failed or starved in all `runs`."""
    return sum(run.overall.lost for run in runs)


def per_request(runs: Sequence[Run], cpu: Sequence[float | None]) -> str:
    """Return the milliseconds of `cpu` time that a served request took in all `runs`."""
    served = sum(run.overall.served for run in runs)
    known = [seconds for seconds in cpu if seconds is not None]
    return f"{sum(known) * 1000 / served:.2f}" if served and len(known) == len(cpu) else NOTHING


def ratio(value: float | None, base: float | None) -> str:
    """Return `value` as a multiple of `base`, if there are both."""
    return NOTHING if value is None or not base else f"{value / base:.2f}"


def milliseconds(seconds: float | None) -> str:
    """Return `seconds` in milliseconds, to three digits or so."""
    return NOTHING if seconds is None else f"{seconds * 1000:.{1 if seconds < 0.1 else 0}f}"


def shown(seconds: float | None) -> str:
    """Return `seconds` with their unit, or ``n/a``."""
    return "n/a" if seconds is None else f"{seconds:.1f} s"
