"""Ends what a test run has started, should that be killed before it can do so itself.

A script: ``python -I -S warden.py PARENT``, where PARENT is the pid of the test run. Each line that it reads is an
order: ``+group 123``, ``+cgroup /sys/...`` and ``+folder /tmp/...`` to remember a process group, a control group and a
folder, the same with ``-`` to forget it. When the test run is gone, it kills the groups and deletes the folders.

One for all that a test run starts. It is not their parent: who starts a process wants to know how it ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable

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
    """Kill the groups, then remove the control groups, then delete the folders."""
    for kind in ("group", "cgroup", "folder"):
        for name in [each.split(" ", 1)[1] for each in kept if each.startswith(f"{kind} ")]:
            ENDS[kind](name)


def kill_group(name: str) -> None:
    """Kill the processes of a group."""
    with contextlib.suppress(OSError):
        os.killpg(int(name), signal.SIGKILL)


def remove_cgroup(folder: str) -> None:
    """Kill the processes of a control group, frozen or not, and remove it."""
    for switch, thawed in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        for _ in range(20):
            with contextlib.suppress(OSError):
                with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as processes:
                    for pid in processes:
                        os.kill(int(pid), signal.SIGKILL)
                if os.path.exists(os.path.join(folder, switch)):
                    with open(os.path.join(folder, switch), "w", encoding="ascii") as file:
                        file.write(thawed)
                time.sleep(0.02)
                os.rmdir(folder)
            if not os.path.exists(folder):
                return


def delete_folder(folder: str) -> None:
    """Delete a folder with all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)


ENDS: dict[str, Callable[[str], None]] = {"group": kill_group, "cgroup": remove_cgroup, "folder": delete_folder}


if __name__ == "__main__":
    main(int(sys.argv[1]))
