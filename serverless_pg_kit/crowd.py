"""Things that are held only as long as others hold them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Crowd(Generic[T]):
    """A set of weak references that one thread may look through while others add.

    A ``weakref.WeakSet`` would raise there, and both users look when they must not fail: when the process is about to
    end, or to be copied.
    """

    def __init__(self) -> None:
        self._members: weakref.WeakValueDictionary[int, T] = weakref.WeakValueDictionary()

    def add(self, member: T) -> None:
        """Take `member` in; once, however often it is added."""
        self._members[id(member)] = member

    def __iter__(self) -> Iterator[T]:
        for reference in self._members.valuerefs():  # a list, made in one step
            member = reference()
            if member is not None:
                yield member
