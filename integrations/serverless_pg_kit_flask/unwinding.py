"""Whether an app context ends well."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from click.exceptions import Exit


def handled() -> BaseException | None:
    """Return the exception that is being handled now."""
    return sys.exc_info()[1]


def unwinding(earlier: BaseException | None) -> BaseException | None:
    """Return the exception that ends a block, although nobody passes it on; `earlier` was `handled` inside the block.

    Before click 8.2 the app context of a command that raises is popped without its exception.
    """
    now = handled()
    return None if any(now is each for each in contexts(earlier)) else now


def contexts(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error`, and those during whose handling it was raised."""
    while error is not None:
        yield error
        error = error.__context__


def is_failure(error: BaseException | None) -> bool:
    """Tell whether `error` says that something failed: ``sys.exit(0)`` does not, nor does how click ends a command."""
    if isinstance(error, SystemExit):
        return error.code not in (None, 0)
    if isinstance(error, Exit):
        return error.exit_code != 0
    return error is not None
