"""What importing the adapter loads, and what it says where Powertools is not installed."""

from __future__ import annotations

import operator
import subprocess
import sys

import pytest

import serverless_pg_kit_powertools as kit


def run(code: str) -> str:
    """Return what `code` prints in a fresh interpreter, together with its errors."""
    command = [sys.executable, "-c", f"import sys\n{code}"]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout


def loaded(code: str) -> set[str]:
    """Return the modules that `code` loads."""
    return set(run(f"{code}\nprint(*sys.modules)").split())


def test_package_loads_nothing() -> None:
    """The names are imported when they are touched, not before."""
    assert not any(name.startswith("aws_lambda_powertools") for name in loaded("import serverless_pg_kit_powertools"))


@pytest.mark.parametrize("name", ["postgres_middleware", "MetricsListener", "LoggerListener", "trace_engine"])
def test_event_handler_is_for_routes_only(name: str) -> None:
    """Who has no routes does not wait for the event handler's import, nor for the async shell's."""
    modules = loaded(f"from serverless_pg_kit_powertools import {name}")
    assert "aws_lambda_powertools.event_handler" not in modules
    assert "serverless_pg_kit.aio" not in modules


def test_names() -> None:
    """Every public name is there, and no other is made up."""
    assert set(kit.__all__) == set(kit.MODULES)
    assert set(kit.__all__) <= set(dir(kit))
    with pytest.raises(AttributeError, match="no attribute 'PostgresMiddle'"):
        operator.attrgetter("PostgresMiddle")(kit)


def test_without_powertools_it_says_what_to_install() -> None:
    """The error names the extra."""
    said = run(
        "sys.modules['aws_lambda_powertools'] = None\nfrom serverless_pg_kit_powertools import PostgresMiddleware"
    )
    assert 'pip install "serverless-pg-kit[powertools]"' in said
