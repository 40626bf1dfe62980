"""Let a postmaster live no longer than the process that asked for it.

A script (the kit imports nothing but its constants): ``python -I -S supervisor.py ORDER``, where ORDER is the JSON
form of `Order`. It starts the postmaster, prints its process id, forwards SIGTERM, SIGINT and SIGQUIT to it, kills the
whole family on SIGUSR1, and ends, with the postmaster's exit status, when the last process of the family has ended. If
the process that started it goes away, by whatever means, it shuts the server down and deletes the folder.

Why a process of its own, and not ``preexec_fn`` with a parent-death signal in the test run itself: that signal fires
when the *thread* that forked ends, running Python code between fork and exec can deadlock where there are threads,
and nobody would be left to delete the folder. This process has one thread and may fork as it likes. It stays with the
user of the test run: the server's user may not even be able to read the Python interpreter. Only the standard library
is used, for the start must take milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import time
from typing import TypedDict

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
IPC_RMID = 0

FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
KILL_ALL = signal.SIGUSR1
AWAITED = {*FORWARDED, KILL_ALL, signal.SIGCHLD}

POLL = 0.25
"""Seconds between two looks at the process that started us."""

PATIENCE = 10.0
"""Seconds that the server gets for its immediate shutdown before it is killed."""


class User(TypedDict):
    """The user to become."""

    uid: int
    gid: int
    groups: list[int]


class Order(TypedDict):
    """What to run: for which process, as which user (``None``: as oneself), and what to delete after that process."""

    parent: int
    command: list[str]
    environ: dict[str, str]
    user: User | None
    data: str
    folder: str


libc: ctypes.CDLL = ctypes.CDLL(None, use_errno=True)


def main(order: Order) -> int:
    """Run the postmaster to its end and return its exit status."""
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    # Orphans of a postmaster that was killed become our children, so that we can end them and know when they ended.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    postmaster = start(order)
    print(postmaster, flush=True)
    status = watch(postmaster, order["parent"])
    orphaned = status is None
    if status is None:
        status = end(postmaster)
    sweep()
    segment = abandoned_segment(order["data"], postmaster)
    if orphaned:
        shutil.rmtree(order["folder"], ignore_errors=True)
    become(order["user"])
    if segment is not None:
        libc.shmctl(segment, IPC_RMID, None)
    return status


def start(order: Order) -> int:
    """Fork the postmaster and return its process id."""
    supervisor = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(2, 1)
        become(order["user"])
        # After the change of user, which clears it. SIGQUIT makes the postmaster end its children, SIGKILL would not.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)
        if os.getppid() == supervisor:
            os.umask(0o077)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execve(order["command"][0], order["command"], order["environ"])
    except OSError as error:
        os.write(2, f"{order['command'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


def become(user: User | None) -> None:
    """Give up the rights of root for good."""
    if user is not None:
        os.setgroups(user["groups"])
        os.setgid(user["gid"])
        os.setuid(user["uid"])


def watch(postmaster: int, parent: int) -> int | None:
    """Serve signals until the postmaster ends, and return its status; ``None`` if `parent` was gone first."""
    # No pipe and no parent-death signal here: children forked by the parent keep the pipe open, and the thread that
    # started us may have ended long ago. The parent's process id changes exactly when the process is gone.
    while os.getppid() == parent:
        received = signal.sigtimedwait(AWAITED, POLL)
        status = reaped(postmaster)
        if status is not None:
            return status
        if received is not None and received.si_signo == KILL_ALL:
            os.kill(postmaster, signal.SIGKILL)
        elif received is not None and received.si_signo in FORWARDED:
            os.kill(postmaster, received.si_signo)
    return None


def end(postmaster: int) -> int:
    """Shut the postmaster down at once, by force if need be, and return its status."""
    os.kill(postmaster, signal.SIGQUIT)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        signal.sigtimedwait({signal.SIGCHLD}, POLL)
        status = reaped(postmaster)
        if status is not None:
            return status
    os.kill(postmaster, signal.SIGKILL)
    return exit_status(os.waitpid(postmaster, 0)[1])


def reaped(postmaster: int) -> int | None:
    """Return the status of the postmaster if it has ended."""
    pid, status = os.waitpid(postmaster, os.WNOHANG)
    return exit_status(status) if pid else None


def exit_status(wait_status: int) -> int:
    """Return an exit status as a shell would show it: 128 and the number for a signal."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def sweep() -> None:
    """Kill what is left of the family and wait until the last one is gone."""
    while True:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        for child in children():
            os.kill(child, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, 0.01)


def children() -> list[int]:
    """Return the process ids of our children; none of them is reaped meanwhile, so each is still its own."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            if parent == os.getpid():
                found.append(int(entry))
    return found


def abandoned_segment(data: str, postmaster: int) -> int | None:
    """Return the System V shared memory that a killed postmaster left: only a reboot would remove it."""
    try:
        with open(os.path.join(data, "postmaster.pid"), encoding="ascii") as lock:
            lines = lock.read().splitlines()
        return int(lines[6].split()[1]) if int(lines[0]) == postmaster else None
    except (OSError, ValueError, IndexError):
        return None


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
