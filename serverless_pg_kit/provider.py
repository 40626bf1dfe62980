"""How the callable of the setting ``credentials`` is treated, where nothing has to be waited for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from serverless_pg_kit.conninfo import ConnParams, read_conninfo
from serverless_pg_kit.settings import DEFAULT_FLEET, FLEET_NAME, is_fleet_name

if TYPE_CHECKING:
    from typing import TypeAlias

Answer: TypeAlias = "ConnParams | str | None"
"""What the callable returned: parameters, or what is wrong with it; ``None`` if it came too late."""


def read_answer(answer: tuple[object] | None) -> Answer:
    """Return the parameters in an `answer`. Raises nothing: no frame of an error shall hold a secret."""
    if answer is None:
        return None
    try:
        params = read_conninfo(answer[0])
    except ValueError as error:
        return str(error)
    if not is_fleet_name(params.get("application_name", DEFAULT_FLEET)):
        return f"has an application_name that is not allowed: it has to be {FLEET_NAME}"
    return params


def invalidate(credentials: object) -> None:
    """Let `credentials` forget what they cached, if they have a method for it."""
    forget = getattr(credentials, "invalidate", None)
    if callable(forget):
        forget()


def failure_of(name: str, error: Exception) -> str:
    """Return what may be told of an `error` in the callable that is the setting `name`: its kind and its place. Its
    text may hold a secret."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        place, trace = (
            f" in {code.co_name} ({os.path.basename(code.co_filename)}, line {trace.tb_lineno})",
            trace.tb_next,
        )
    return f"`{name}` raised {type(error).__qualname__}{place}; its text is not shown, it may hold a secret"
