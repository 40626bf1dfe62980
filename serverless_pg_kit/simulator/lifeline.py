"""Dying with the parent, however it dies: the kernel sends the signal, also to a process that is stopped."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
libc: ctypes.CDLL = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Ask for SIGKILL when `parent`, the pid of our parent, is gone; exit at once if it already is."""
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died between our birth and the request, and then no signal comes.
    if os.getppid() != parent:
        os._exit(1)
