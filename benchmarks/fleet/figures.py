"""What came of it: requests, those of them that count, and their percentiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from serverless_pg_kit.simulator.measure import percentile


class Request(NamedTuple):
    """One request: when the user wanted it, when it ended, and what failed, if it did. Times are monotonic."""

    began: float
    ended: float
    problem: str = ""


class Window(NamedTuple):
    """The time that is measured, from `start` to `end`."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Figures:
    """The requests of a class of users in a window.

    `served` and `failed` ended in the window. `starved` were wanted before it and had no answer at its end. `times`
    has the seconds of all of them, of the starved as far as they had got, so that who serves few does not look fast.
    """

    label: str
    seconds: float
    served: int = 0
    starved: int = 0
    times: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        return self.reasons.total()

    @property
    def lost(self) -> int:
        return self.failed + self.starved

    @property
    def throughput(self) -> float:
        """Requests served per second."""
        return self.served / self.seconds

    def percentile(self, share: float) -> float | None:
        """Return the seconds that `share` (0 to 1) of the requests did not exceed; ``None`` if there were none."""
        return percentile(self.times, share)


def figures(label: str, requests: Iterable[Request], window: Window) -> Figures:
    """Return the figures of those `requests` that count in `window`."""
    requests = list(requests)
    ended = [request for request in requests if window.start <= request.ended < window.end]
    starved = [request for request in requests if request.began < window.start and request.ended >= window.end]
    reasons = Counter(request.problem for request in ended if request.problem)
    return Figures(
        label,
        window.seconds,
        served=len(ended) - reasons.total(),
        starved=len(starved),
        times=[request.ended - request.began for request in ended]
        + [window.end - request.began for request in starved],
        reasons=reasons,
    )
