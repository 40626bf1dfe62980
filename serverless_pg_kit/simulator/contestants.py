"""Who answers: the same four handlers, written without the kit and with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serverless_pg_kit.simulator.errors import DemoError

FLEET = "serverless_pg_kit_demo"  # application_name of everything the demo opens


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to write the handlers. `module` is what its containers import."""

    name: str
    module: str

    def environment(self, function: str, dsn: str) -> dict[str, str]:
        """Return what the platform sets for the containers of `function`."""
        return {
            "AWS_LAMBDA_FUNCTION_NAME": function,
            "DATABASE_URL": dsn,
            "SERVERLESS_PG_APPLICATION_NAME": FLEET,
        }


PLAIN = Contestant("plain", "logistics.plain_handlers")
KIT = Contestant("kit", "logistics.handlers")
BOTH = (PLAIN, KIT)


def examples_folder() -> Path:
    """Return the folder that holds the package `logistics`: our own copy in a wheel, `examples/` in a checkout.

    Raises `DemoError` if there is neither.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "_examples", here.parents[2] / "examples"):
        if (folder / "logistics" / "handlers.py").is_file():
            return folder
    raise DemoError("the logistics example is missing from this installation of serverless-pg-kit")
