"""What an installation holds, and what importing it costs."""

from __future__ import annotations

import importlib.metadata
import operator
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import serverless_pg_kit

CHECKOUT = Path(__file__).parents[1]

FRAMEWORKS = {
    "aws_lambda_powertools",
    "boto3",
    "botocore",
    "django",
    "fastapi",
    "flask",
    "opentelemetry",
    "pytest",
    "sqlalchemy",
    "starlette",
}

TOOLS = {
    "serverless_pg_kit.aio",
    "serverless_pg_kit.cli",
    "serverless_pg_kit.otel",
    "serverless_pg_kit.simulator",
    "serverless_pg_kit.testing",
}


@cache
def loaded_by(statement: str) -> frozenset[str]:
    """Return the modules a fresh interpreter holds after `statement`; -I keeps the checkout off its path."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return frozenset(run.stdout.split())


def top_level(modules: frozenset[str]) -> set[str]:
    """Return the names of the packages that `modules` belong to."""
    return {name.partition(".")[0] for name in modules}


@pytest.mark.skipif(not os.environ.get("EXPECT_BUILT_WHEEL"), reason="only under tox, which installs the wheel")
def test_installed_package_is_tested() -> None:
    """Under tox the package comes from the built wheel, not from the checkout."""
    package = Path(serverless_pg_kit.__file__).parent

    assert package.parent.name == "site-packages"
    assert package != CHECKOUT / "serverless_pg_kit"


def test_typed_marker() -> None:
    """The package tells type checkers that it is typed."""
    assert Path(serverless_pg_kit.__file__).with_name("py.typed").is_file()


def test_version_is_that_of_the_distribution() -> None:
    """`__version__` and the distribution's metadata agree."""
    assert serverless_pg_kit.__version__ == importlib.metadata.version("serverless-pg-kit")


def test_public_names_resolve() -> None:
    """Every name in `__all__` exists, and the list is free of doubles."""
    names = serverless_pg_kit.__all__

    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(serverless_pg_kit, name)] == []


def test_async_engine_is_seen_before_it_is_loaded() -> None:
    """Whoever looks at the package finds the name that is loaded at its first use, and no other is made up."""
    listing = "import serverless_pg_kit; names = dir(serverless_pg_kit); assert 'AsyncEngine' in names, names"
    use = "serverless_pg_kit.AsyncEngine; assert 'serverless_pg_kit.aio.engine' in sys.modules"

    assert "serverless_pg_kit.aio" not in loaded_by(listing)
    assert "serverless_pg_kit.aio.engine" in loaded_by(f"{listing}; {use}")
    with pytest.raises(AttributeError, match="no attribute 'AsyncMotor'"):
        operator.attrgetter("AsyncMotor")(serverless_pg_kit)


def test_core_requires_psycopg_only() -> None:
    """Without extras, psycopg is the only distribution that is required."""
    required = importlib.metadata.requires("serverless-pg-kit") or []

    assert [line for line in required if "extra ==" not in line] == ["psycopg>=3.2"]


@pytest.mark.parametrize("unwanted", sorted(FRAMEWORKS))
def test_import_loads_no_framework(unwanted: str) -> None:
    """Importing the kit loads no framework and no cloud library, installed or not."""
    assert unwanted not in top_level(loaded_by("import serverless_pg_kit"))


@pytest.mark.parametrize("unwanted", sorted(TOOLS))
def test_import_loads_no_tool(unwanted: str) -> None:
    """Importing the kit loads none of its own tools and not the async shell."""
    assert unwanted not in loaded_by("import serverless_pg_kit")


def test_import_loads_nothing_foreign() -> None:
    """Importing the kit loads the kit, the standard library and what `import psycopg` loads by itself."""
    allowed = top_level(loaded_by("import psycopg")) | set(sys.stdlib_module_names)
    allowed |= {"serverless_pg_kit", "typing_extensions"}

    assert set() == top_level(loaded_by("import serverless_pg_kit")) - allowed


def test_import_starts_nothing() -> None:
    """Importing the kit starts no thread and reads no setting, not even a wrong one."""
    code = "import threading, serverless_pg_kit; print(threading.active_count())"
    environment = {**os.environ, "SERVERLESS_PG_MAX_SIZE": "many", "DATABASE_URL": "nonsense"}
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, env=environment
    )

    assert run.stdout.strip() == "1"
