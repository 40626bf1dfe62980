"""A test runner that writes down what became of every test."""

from __future__ import annotations

import json
import os
import unittest
from pathlib import Path
from typing import Any

from django.test.runner import DiscoverRunner

OUTCOMES = {
    "addSuccess": "ok",
    "addError": "error",
    "addFailure": "failure",
    "addSkip": "skipped",
    "addExpectedFailure": "expected failure",
    "addUnexpectedSuccess": "unexpected success",
}
outcomes: dict[str, str] = {}


class Result(unittest.TextTestResult):
    """Keeps the outcome of each test under its name; the worst of its subtests', if it has any."""

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        """Take note of a part of a test."""
        super().addSubTest(test, subtest, err)
        if err is not None:
            outcomes[test.id()] = "failure in a subtest"


def noting(method: str, outcome: str) -> Any:
    """Return `method` of a test result, which also notes the `outcome`."""

    def add(self: Result, test: Any, *details: Any) -> None:
        getattr(unittest.TextTestResult, method)(self, test, *details)
        if outcome != "ok" or test.id() not in outcomes:  # what fails while it is torn down has succeeded before
            outcomes[test.id()] = outcome

    return add


for _method, _outcome in OUTCOMES.items():
    setattr(Result, _method, noting(_method, _outcome))


class Recorder(DiscoverRunner):
    """Writes the outcomes into the file that the environment names."""

    def get_resultclass(self) -> type[unittest.TextTestResult]:
        """Return the class that takes the notes."""
        return Result

    def run_suite(self, suite: Any, **kwargs: Any) -> Any:
        """Run the tests, and write down what became of them."""
        result = super().run_suite(suite, **kwargs)
        Path(os.environ["DJANGO_SUITE_OUTCOMES"]).write_text(json.dumps(outcomes))
        return result
