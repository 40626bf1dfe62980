"""Why an invocation has no result. All are `InvocationError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class InvocationError(RuntimeError):
    """An invocation has no result. `log` is what the function has printed and logged, the last lines of it."""

    def __init__(self, message: str, *, log: str = "") -> None:
        super().__init__(f"{message}\n{log}".rstrip())
        self.log: str = log

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (type(self), self.args, vars(self))


def restored(kind: type[InvocationError], args: tuple[Any, ...], state: Mapping[str, Any]) -> InvocationError:
    """Return a pickled error: the classes take other arguments than they keep."""
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(state)
    return error


class Reported(InvocationError):
    """The runtime client reported an error: its type's name, its message, and the lines of its trace."""

    def __init__(self, what: str, report: Mapping[str, Any], *, log: str = "") -> None:
        self.error_type: str = str(report.get("errorType", ""))
        self.message: str = str(report.get("errorMessage", ""))
        self.trace: Sequence[str] = tuple(map(str, report.get("stackTrace") or ()))
        super().__init__("".join([f"{what}: {self.error_type}: {self.message}\n", *self.trace]), log=log)


class HandlerFailed(Reported):
    """The handler raised. The process lives on."""


class InitFailed(Reported):
    """The function could not be started: its module raised, exited or took too long, or a hook of SnapStart did. The
    next invocation tries again, in a new process."""


class InvocationTimedOut(InvocationError):
    """The handler was not done at its deadline. Its process was killed, and the next invocation starts a new one; on
    Managed Instances it goes on."""


class RuntimeExited(InvocationError):
    """The process ended during the invocation, with `status`: negative for a signal, as in `subprocess`; ``None`` if it
    was one worker of several, whose status nobody knows."""

    def __init__(self, status: int | None, *, log: str = "") -> None:
        how = "" if status is None else f" with status {status}"
        super().__init__(f"the function's process ended{how} during the invocation", log=log)
        self.status: int | None = status
