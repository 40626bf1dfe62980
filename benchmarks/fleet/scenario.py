"""Who asks: classes of users, and their text form on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random
from typing import NamedTuple


class Users(NamedTuple):
    """A class of `size` users who each think for `think` seconds on average between two requests."""

    size: int
    think: float

    def __str__(self) -> str:
        return f"{self.size} x {self.think:g} s"

    def pauses(self, rng: Random) -> Iterator[float]:
        """Yield the seconds of one user's thinking, exponentially distributed, without end."""
        while True:
            yield rng.expovariate(1 / self.think) if self.think else 0.0


def parse_users(text: str) -> list[Users]:
    """Return the classes in a text such as ``"500x1.0,200x0"``. Raises ``ValueError`` for any other."""
    return [_parse_class(part.strip()) for part in text.split(",")]


def _parse_class(text: str) -> Users:
    match = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)", text)
    if match is None or not int(match[1]):
        raise ValueError(f"{text!r} is no class of users: it takes COUNTxSECONDS, as in 500x1.0 or 200x0")
    return Users(int(match[1]), float(match[2]))
