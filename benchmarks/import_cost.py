"""What `import serverless_pg_kit` costs over `import psycopg`, which every function pays anyway.

Run it with an interpreter that has both installed: ``python benchmarks/import_cost.py [rounds]``. Each round starts
one fresh interpreter per statement, in alternation, so that a change in the machine's load meets both alike. An
interpreter measures its import itself, which leaves its own start out. The exit status is 1 above the bound of 10 %.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

MODULES = ("psycopg", "serverless_pg_kit")
BOUND = 1.10
WARM_UP = 2

TIMED_IMPORT = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def import_seconds(module: str) -> float:
    """Return the seconds that a fresh interpreter takes to import `module`."""
    command = [sys.executable, "-I", "-c", TIMED_IMPORT.format(module)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each module's imports, `rounds` of them, taken in alternation."""
    taken = [{module: import_seconds(module) for module in MODULES} for _ in range(WARM_UP + rounds)]
    return {module: [turn[module] for turn in taken[WARM_UP:]] for module in MODULES}


def main(rounds: int = 25) -> int:
    """Print the table; return 0 if the kit keeps to its bound."""
    times = measure(rounds)
    medians = {module: statistics.median(seconds) for module, seconds in times.items()}
    base = medians[MODULES[0]]
    print(f"{'import':<20}{'median ms':>10}{'min ms':>10}{'ratio':>8}   ({rounds} rounds)")
    for module, seconds in times.items():
        milliseconds, least = medians[module] * 1000, min(seconds) * 1000
        print(f"{module:<20}{milliseconds:>10.1f}{least:>10.1f}{medians[module] / base:>8.3f}")
    return 0 if medians[MODULES[1]] <= base * BOUND else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2])))
