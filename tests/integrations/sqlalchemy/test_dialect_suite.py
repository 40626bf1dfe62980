"""SQLAlchemy's own suite for dialects ends over the kit as it does over SQLAlchemy's engine: a part of it, here.

``python tests/integrations/sqlalchemy/dialect_suite.py`` runs all of it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PART = """
IsolationLevelTest or AutocommitIsolationTest or ServerSideCursorsTest or ExceptionTest or ReturningTest
or RowCountTest or InsertBehaviorTest or DifficultParametersTest or ExecutemanyReturning or ArgSignatureTest
"""
"""What has most to do with connections, transactions and cursors."""


@pytest.mark.timeout(600)
def test_part_of_the_suite() -> None:
    """No test of the part ends otherwise over the kit, blocking or async."""
    script = Path(__file__).with_name("dialect_suite.py")
    run = subprocess.run(
        [sys.executable, str(script), "-k", " ".join(PART.split())], capture_output=True, text=True, timeout=590
    )
    assert run.stdout.count("no test ends otherwise") == 2, run.stdout + run.stderr
    assert run.stdout.count("'passed'") == 4, run.stdout
    assert "failure" not in run.stdout
    assert "error" not in run.stdout
    assert run.returncode == 0
