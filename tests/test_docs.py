"""The documentation names what the code has, and its examples are Python."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

import pytest

from serverless_pg_kit import Settings, Statements, errors, events

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \|(.*)\|$", re.MULTILINE)


def read(page: str) -> str:
    """Return the text of a page of docs/."""
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """Return the other cells of each table row in `text` whose first cell is one name in code."""
    return {name: [cell.strip("` ") for cell in rest.split(" |")] for name, rest in ROW.findall(text)}


def family(base: type) -> set[str]:
    """Return the names of `base` and of all classes derived from it."""
    return {base.__name__}.union(*map(family, base.__subclasses__()))


def test_settings_are_documented() -> None:
    """The settings page has every setting, no other, and the right defaults."""
    table = rows(read("settings.md").partition("## From serverless-postgres")[0])
    settings = Settings()
    actual = {field.name: repr(getattr(settings, field.name)) for field in dataclasses.fields(Settings)}
    actual |= {"connection_class": "psycopg.Connection", "statements": f"{Statements.__name__}()"}

    assert {name: cells[0].replace('"', "'") for name, cells in table.items()} == actual


def test_events_are_documented() -> None:
    """The events page has every event, no other, with its log level and counter."""
    actual = {
        kind.__name__: [logging.getLevelName(kind.level).lower(), kind.counter]
        for kind in events.Event.__subclasses__()
        if kind.__module__ == events.__name__
    }

    assert {name: cells[1:3] for name, cells in rows(read("events.md")).items()} == actual


def test_errors_are_documented() -> None:
    """The errors page has every error of the kit."""
    tree = read("errors.md").partition("```text")[2].partition("```")[0]

    assert set(re.findall(r"^ +(\w+)", tree, re.MULTILINE)) == family(errors.ServerlessPgError)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_are_python(page: Path) -> None:
    """Every Python block in the documentation compiles."""
    for number, code in enumerate(CODE_BLOCK.findall(page.read_text(encoding="utf-8"))):
        compile(code, f"{page.name}, block {number}", "exec")
