"""Hears SIGTERM even if the main thread does not.

A handler alone does not do. Python runs it in the main thread between two steps of Python code, and the main thread of
an idle Lambda function on Python 3.10 or 3.11 hangs in a C call for as long as nobody invokes it. But the signal's
number is written to Python's wake-up descriptor at once, by the C code that takes the signal. There a thread listens.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from serverless_pg_kit.crowd import Crowd
from serverless_pg_kit.hangup import CANCEL_SECONDS, hang_up

if TYPE_CHECKING:
    from serverless_pg_kit.base import EngineBase

HANDLER_CALLED = 0
"""What the handler writes where the C code writes signals' numbers."""


class Guard:
    """Closes the connections of `engines` at SIGTERM. It is the signal's handler, and reads the wake-up descriptor."""

    def __init__(self) -> None:
        self.engines: Crowd[EngineBase] = Crowd()
        self._earlier: Any = signal.SIG_DFL
        self._hands_on_to: int | None = None
        self._closed = threading.Event()
        self._is_handing_on = False
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)

    def stand(self) -> None:
        """Take up the post, or make sure that it is still held; what stood there goes on to be served."""
        own = self._mouth.fileno()
        descriptor = signal.set_wakeup_fd(own, warn_on_full_buffer=False)
        if descriptor not in (-1, own):
            self._hands_on_to = os.dup(descriptor)  # its number may be given to another file, once it is closed
        earlier = signal.signal(signal.SIGTERM, self)
        if earlier is not self:
            self._earlier = earlier

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal in the main thread, if that comes to it. Raises what the earlier handler raises."""
        if self._is_handing_on:  # to a handler that hands on to this one
            return
        self._closed.clear()
        with suppress(OSError):
            self._mouth.send(bytes([HANDLER_CALLED]))
        if callable(self._earlier):
            self._hand_on(number, frame)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        # The thread may need a lock that the main thread holds just now, so the wait is bounded.
        self._closed.wait(CANCEL_SECONDS + 0.1)
        self._is_handing_on = True
        try:
            self._earlier(number, frame)
        finally:
            self._is_handing_on = False

    def listen(self) -> None:
        """Read the numbers of signals for ever. Run by a thread of its own: the main one may hold any lock."""
        while True:
            for number in self._ear.recv(64):
                self._hear(number)

    def _hear(self, number: int) -> None:
        # A handler that was set later and does not call this one has taken SIGTERM over.
        if number == HANDLER_CALLED or (number == signal.SIGTERM and self._is_handler):
            self._close()
        if number != HANDLER_CALLED and self._hands_on_to is not None:
            with suppress(OSError):
                os.write(self._hands_on_to, bytes([number]))

    def _close(self) -> None:
        try:
            hang_up(self.engines, "SIGTERM")
        finally:
            if self._earlier in (signal.SIG_DFL, None):
                end_process()
            self._closed.set()

    @property
    def _is_handler(self) -> bool:
        handler: object = signal.getsignal(signal.SIGTERM)
        return handler is self

    def leave(self) -> None:
        """Give the post up in a forked child: what it hears there is its parent's, and so are the engines."""
        own = self._mouth.fileno()
        descriptor = signal.set_wakeup_fd(-1)
        if descriptor not in (-1, own):
            signal.set_wakeup_fd(descriptor)
        if self._is_handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._earlier is None else self._earlier)
        self._ear.close()
        self._mouth.close()


def end_process() -> None:
    """End this process with status 0, from any thread.

    Without the interpreter's own way to the end: it waits for threads, and the runtime's would never come back.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(0)
