"""Which operating-system user runs the server, and what that user can reach.

PostgreSQL refuses to run as root. A test run that is root (a container, mostly) borrows a user that exists already;
everybody else runs the server as themselves. No user is ever created.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from serverless_pg_kit.testing.errors import ServerError

PREFERRED = ("postgres", "nobody")


class PopenUser(TypedDict, total=False):
    """The arguments of `subprocess.Popen` that change the user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged user: its name and numeric ids."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def server_account() -> Account | None:
    """Return the user that root shall run the server as, or ``None`` to run it as oneself.

    Raises `ServerError` on a machine that has no user but root.
    """
    if os.geteuid() != 0:
        return None
    entries = {entry.pw_name: entry for entry in pwd.getpwall() if entry.pw_uid != 0}
    for name in (*PREFERRED, *entries):
        if name in entries:
            gid = entries[name].pw_gid
            return Account(name, entries[name].pw_uid, gid, tuple(os.getgrouplist(name, gid)))
    raise ServerError("PostgreSQL refuses to run as root, and this machine has no other user to run it as")


def popen_user(account: Account | None) -> PopenUser:
    """Return the arguments that make `subprocess` run a program as `account`."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": list(account.groups)}


def open_to_all(folder: Path) -> bool:
    """Tell whether every user may enter and read `folder`.

    Cautious on purpose: a folder that is open to just the right user counts as closed, which costs one copy.
    """
    resolved = folder.resolve()
    above = all(parent.stat().st_mode & stat.S_IXOTH for parent in resolved.parents)
    needed = stat.S_IXOTH | stat.S_IROTH
    return above and resolved.stat().st_mode & needed == needed
