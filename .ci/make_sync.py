"""Write the sync shell from the async one, or check that it is what would be written.

    python .ci/make_sync.py            write
    python .ci/make_sync.py --check    fail if a file differs

The modules below stand in `serverless_pg_kit/aio` and, line for line alike, in `serverless_pg_kit`. Whatever the two
shells wait with is named alike in `waiting` and `line` of each, and is written by hand.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "serverless_pg_kit"
MODULES = ("scope", "ahead", "watch", "acquire", "clean", "warm", "engine")
ASYNC_ONLY = "# async only"
HEADER = "# Written by .ci/make_sync.py from aio/{name}.py: edit that, and run it.\n"

SUBSTITUTIONS = {
    r"\bawait uninterrupted\((.*)\)$": r"\1",
    r"\bawait ": "",
    r"\basync (def|with) ": r"\1 ",
    r"\ban ``async with``": "a ``with``",
    r"``async with``": "``with``",
    r"\bAwaitable\[R\]": "R",
    r"\b__a(enter|exit)__": r"__\1__",
    r"\bAsync(Connection|Engine)\b": r"\1",
    r"\bserverless_pg_kit\.aio\b": "serverless_pg_kit",
    r"\btasks that share": "threads that share",
}


def main() -> int:
    """Write or check all modules; return the exit code."""
    sources = {name: (PACKAGE / "aio" / f"{name}.py").read_text() for name in MODULES}
    unused = [pattern for pattern in SUBSTITUTIONS if not any(uses(pattern, text) for text in sources.values())]
    if unused:
        sys.exit(f"substitutions that nothing needs any more: {unused}")
    stale = [name for name, text in sources.items() if not settle(name, text)]
    if stale:
        print(f"not what aio/ says: {', '.join(stale)}. Run python .ci/make_sync.py", file=sys.stderr)
    return int(bool(stale))


def uses(pattern: str, text: str) -> bool:
    """Tell whether `pattern` occurs in `text`."""
    return re.search(pattern, text, flags=re.MULTILINE) is not None


def settle(name: str, source: str) -> bool:
    """Write the sync module `name`, or with ``--check`` tell whether it is already what would be written."""
    target, wanted = PACKAGE / f"{name}.py", formatted(HEADER.format(name=name) + to_sync(source))
    if "--check" in sys.argv:
        return target.read_text() == wanted
    target.write_text(wanted)
    return True


def to_sync(source: str) -> str:
    """Return the sync form of `source`."""
    text = "".join(line for line in source.splitlines(keepends=True) if ASYNC_ONLY not in line)
    for pattern, replacement in SUBSTITUTIONS.items():
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def formatted(text: str) -> str:
    """Return `text` as ruff wants it: names that only the async shell imports are dropped, imports sorted."""
    for command in (["check", "--quiet", "--fix", "--select", "I,F401"], ["format", "--quiet"]):
        call = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(PACKAGE / "engine.py"), "-"]
        text = subprocess.run(call, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    sys.exit(main())
