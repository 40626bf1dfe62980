"""Ends what a test run has started, should that be killed before it can do so itself.

A script: ``python -I -S warden.py PARENT``, where PARENT is the pid of the test run. Each line that it reads is an
order: ``+group 123`` and ``+folder /tmp/name`` to remember a process group and a folder, the same with ``-`` to forget
it. When the test run is gone, it kills the groups and deletes the folders.

One for all that a test run starts. It is not their parent: who starts a process wants to know how it ended.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys

POLL = 0.25
"""Seconds between two looks at the test run. The end of the pipe says little: forked children keep it open."""


def main(parent: int) -> None:
    """Take orders until `parent` is gone, then clean up after it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kept: dict[str, None] = {}
    rest = b""
    while os.getppid() == parent:
        if select.select([0], [], [], POLL)[0]:
            data = os.read(0, 65536)
            if not data:
                break
            *orders, rest = (rest + data).split(b"\n")
            for order in orders:
                obey(order.decode(), kept)
    clean_up(kept)


def obey(order: str, kept: dict[str, None]) -> None:
    """Remember or forget what `order` says."""
    if order.startswith("+"):
        kept[order[1:]] = None
    else:
        kept.pop(order[1:], None)


def clean_up(kept: dict[str, None]) -> None:
    """Kill the groups, then delete the folders."""
    for kind, name in sorted((each.split(" ", 1) for each in kept), reverse=True):
        if kind == "folder":
            shutil.rmtree(name, ignore_errors=True)
            continue
        try:
            os.killpg(int(name), signal.SIGKILL)
        except OSError:
            continue


if __name__ == "__main__":
    main(int(sys.argv[1]))
