"""What came of it: answers, failures and their reasons, latencies, connections."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """The measurements of one contestant in one act.

    `latencies` are seconds from arrival to answer of the requests that were served: a failure that comes fast is no
    merit. Connections are those of the containers alone.
    """

    latencies: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    peak: int = 0

    def served(self, latency: float) -> None:
        """Count a request that was answered, after `latency` seconds."""
        self.latencies.append(latency)

    def failed_because(self, error: str) -> None:
        """Count a request that failed, by the reason in the text of its error."""
        self.reasons[reason(error)] += 1

    def connected(self, connections: int) -> None:
        """Note how many connections are open now."""
        self.connections = connections
        self.peak = max(self.peak, connections)

    @property
    def failed(self) -> int:
        return self.reasons.total()

    @property
    def requests(self) -> int:
        return len(self.latencies) + self.failed

    def percentile(self, share: float) -> float | None:
        """Return the latency in seconds that `share` (0 to 1) of the served requests did not exceed."""
        return percentile(self.latencies, share)


def percentile(values: Iterable[float], share: float) -> float | None:
    """Return the smallest of `values` that at least `share` of them do not exceed; ``None`` if there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def reason(error: str) -> str:
    """Return what an error says, short and without what differs from one failure to the next.

    Of a refused connection that is what the server said, not where it was asked. "... for role x" ends before "for".
    """
    said = re.findall(r"FATAL:\s*(.+)", error) or error.splitlines() or ["no reason given"]
    without_class = re.sub(r"^\w+: ", "", said[-1].strip())
    return without_class.partition(" for ")[0]
