"""The command: what it needs, what it prints, and its exit status."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from serverless_pg_kit import __version__
from serverless_pg_kit.cli import demo
from serverless_pg_kit.cli.app import app
from serverless_pg_kit.simulator.acts import THAW
from serverless_pg_kit.simulator.contestants import KIT
from serverless_pg_kit.simulator.demo import Result as RunResult
from serverless_pg_kit.simulator.measure import Tally

Invoke = Callable[..., Result]

UNREACHABLE = "postgresql://nobody:secret-word@127.0.0.1:1/nowhere?connect_timeout=2"


@pytest.fixture
def invoke() -> Invoke:
    """Run the command in this process."""
    return lambda *arguments: CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_missing_extras(missing: str) -> None:
    """Without the extras the command says in one line how to get them."""
    code = f"import sys; sys.modules[{missing!r}] = None; from serverless_pg_kit.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )

    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f'{missing} is missing: pip install "serverless-pg-kit[demo]"\n'


def test_other_missing_modules_are_not_hidden() -> None:
    """A broken installation is not mistaken for missing extras."""
    code = "import sys; sys.modules['socket'] = None; from serverless_pg_kit.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert run.returncode != 0
    assert "Traceback" in run.stderr


def test_version(invoke: Invoke) -> None:
    """The command knows its version."""
    assert __version__ in invoke("--version").output


def test_demo_served_everything(invoke: Invoke) -> None:
    """A small demo ends with the table and status 0, and puts the SIGTERM handler back."""
    before = signal.getsignal(signal.SIGTERM)

    result = invoke("demo", "--containers", "8", "--slots", "6", "--seconds", "1", "--seed", "7")

    assert result.exit_code == 0, result.output
    assert "room for 3 connections, up to 8 containers, seed 7" in result.output
    assert "why requests failed" in result.output
    assert "kit: 0 of " in result.output
    assert signal.getsignal(signal.SIGTERM) is before


def test_demo_with_failed_requests(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the kit failed a request the status is 1."""
    tally = Tally()
    tally.failed_because("ValueError: too bad")
    monkeypatch.setattr(demo, "perform", lambda *_: [RunResult(THAW, KIT, tally)])

    result = invoke("demo", "--containers", "2", "--slots", "6")

    assert result.exit_code == 1
    assert "too bad" in result.output
    assert "kit: 1 of 1 requests failed" in result.output
    assert "show no shortage" in result.output


def test_demo_on_an_unreachable_server(invoke: Invoke) -> None:
    """A demo that cannot be played says why, without the password, and has status 2."""
    result = invoke("demo", "--dsn", UNREACHABLE)

    assert result.exit_code == 2
    assert "could not be played" in result.output
    assert "secret-word" not in result.output


def test_slots_of_somebody_elses_server(invoke: Invoke) -> None:
    """The slots of an existing server are not ours to choose."""
    result = invoke("demo", "--dsn", UNREACHABLE, "--slots", "20")

    assert result.exit_code == 2
    assert "--slots" in result.output
