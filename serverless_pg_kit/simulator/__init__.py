"""The simulator: real handlers in real processes that are frozen and thawed, on a real PostgreSQL.

From the ground up: `errors`, `wire` and `lifeline` (messages, dying with the parent), `container` (the process that
answers), `zygote` (from which containers are forked), `fleet` (freezes, thaws and feeds them), `traffic` and
`contestants` (what is asked of whom), `database` (where), `acts` (the three stories), `measure` (what came of it),
`demo` (all of it in order) and `display`, the only module here that needs rich.
"""

from __future__ import annotations
