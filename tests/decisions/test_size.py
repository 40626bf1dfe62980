"""How many processes share a container, and when that is too much."""

from __future__ import annotations

import pytest

from serverless_pg_kit.decisions.size import is_oversized, known_processes


@pytest.mark.parametrize(
    ("environ", "processes"),
    [
        ({}, None),
        ({"AWS_LAMBDA_MAX_CONCURRENCY": "16"}, 16),
        ({"WEB_CONCURRENCY": " 4 "}, 4),
        ({"AWS_LAMBDA_MAX_CONCURRENCY": "16", "WEB_CONCURRENCY": "4"}, 16),
        ({"WORKERS": "3"}, None),
        ({"WORKERS": "3", "FUNCTION_TARGET": "handler"}, 3),
        ({"WEB_CONCURRENCY": ""}, None),
        ({"WEB_CONCURRENCY": "auto"}, None),
        ({"WEB_CONCURRENCY": "0"}, None),
        ({"WEB_CONCURRENCY": "-1"}, None),
    ],
)
def test_number_of_processes(environ: dict[str, str], processes: int | None) -> None:
    """Whoever starts several processes says so in a variable; a word without sense says nothing."""
    assert known_processes(environ) == processes


def test_exactly_full_is_not_too_much() -> None:
    """Connections may use every slot there is."""
    assert not is_oversized(10, 10, 100)
    assert is_oversized(10, 10, 99)
