"""The data folder of a server and its configuration files.

A cluster is initialised once per process and copied for each server. Its durability is switched off as far as nobody
can notice without pulling the plug: what was committed survives `kill`, for the kernel has it already.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serverless_pg_kit.testing.accounts import open_to_all, popen_user
from serverless_pg_kit.testing.binaries import Binaries, copy_binaries
from serverless_pg_kit.testing.errors import ServerError
from serverless_pg_kit.testing.workspace import Workspace

SUPERUSER = "postgres"
HOST = "127.0.0.1"

# full_page_writes and synchronous_commit stay on: SIGKILL may tear a page and lose what was not yet written.
FAST: Mapping[str, str | int] = {
    "fsync": "off",
    "unix_socket_directories": "",
    "listen_addresses": HOST,
    # In the data folder, for what a killed server leaves in /dev/shm stays there until the machine is rebooted.
    "dynamic_shared_memory_type": "mmap",
}

ACCESS_RULES = """\
host all all all scram-sha-256
host replication all all scram-sha-256
"""

INITDB_TIMEOUT = 120.0
"""Seconds; it takes half a second on an idle machine."""


@dataclass(frozen=True, slots=True)
class Template:
    """A freshly initialised cluster, never started, and the superuser's password in it."""

    data: Path
    password: str

    def __repr__(self) -> str:
        return f"Template({str(self.data)!r})"


def within_reach(workspace: Workspace, binaries: Binaries) -> Binaries:
    """Return `binaries`, or a copy of them if the server's user cannot reach the originals."""
    folders = (binaries.bin_dir, *binaries.libraries)
    if workspace.account is None or all(open_to_all(folder) for folder in folders):
        return binaries
    return workspace.once(binaries, lambda: copy_binaries(binaries, workspace.new_folder("binaries")))


def server_environ(binaries: Binaries, locale: str, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of the server's programs: little, so that every machine behaves alike."""
    # Without LANG, what the server says before it knows the database is squeezed into ASCII: "f?r" for "für".
    environ = {"PATH": os.defpath, "TZ": "UTC", "LANG": locale, **extra}
    if binaries.libraries:
        inherited = environ.get("LD_LIBRARY_PATH")
        folders = [*map(str, binaries.libraries), *([inherited] if inherited else [])]
        environ["LD_LIBRARY_PATH"] = os.pathsep.join(folders)
    return environ


def copy_template(workspace: Workspace, template: Template, data: Path) -> None:
    """Make `data` a copy of the template, owned by the server's user."""
    data.mkdir()
    workspace.give(data)
    command = ["cp", "-a", f"{template.data}/.", str(data)]
    done = _run(command, {"PATH": os.defpath}, workspace)
    if done.returncode:
        raise ServerError(f"{' '.join(command)} failed: {done.stderr.strip()}")


def make_template(workspace: Workspace, binaries: Binaries, locale: str, environ: Mapping[str, str]) -> Template:
    """Return the cluster of these `binaries` and `locale`, initialised at the first call."""
    key = ("template", binaries, locale, tuple(sorted(environ.items())))
    return workspace.once(key, lambda: _initialise(workspace, binaries, locale, environ))


def _initialise(workspace: Workspace, binaries: Binaries, locale: str, environ: Mapping[str, str]) -> Template:
    template = Template(workspace.new_folder("template"), secrets.token_urlsafe(24))
    template.data.mkdir()
    workspace.give(template.data)
    password_file = template.data.with_suffix(".password")
    password_file.touch(mode=0o600)
    password_file.write_text(template.password + "\n", encoding="ascii")
    workspace.give(password_file)
    command = [
        *(str(binaries.bin_dir / "initdb"), "--pgdata", str(template.data), "--username", SUPERUSER),
        *("--pwfile", str(password_file), "--auth", "scram-sha-256"),
        *("--encoding", "UTF8", "--locale", locale, "--no-sync"),
    ]
    try:
        done = _run(command, environ, workspace)
    finally:
        password_file.unlink()
    if done.returncode:
        shutil.rmtree(template.data, ignore_errors=True)
        user = workspace.account.name if workspace.account else "oneself"
        raise ServerError(
            f"initdb of PostgreSQL {binaries.version} failed, run as {user} with locale {locale!r} "
            f'(`locale -a` lists those of this machine; "C" is everywhere): {done.stdout}{done.stderr}'.strip()
        )
    return template


def _run(command: list[str], environ: Mapping[str, str], workspace: Workspace) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INITDB_TIMEOUT,
            check=False,
            **popen_user(workspace.account),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(f"{command[0]} could not be run: {error}") from error


def server_command(binaries: Binaries, folder: Path) -> list[str]:
    """Return the command that starts the server whose files are in `folder`."""
    postgres = str(binaries.bin_dir / "postgres")
    return [postgres, "-D", str(folder / "data"), "-c", f"config_file={folder / 'postgresql.conf'}"]


def write_configuration(folder: Path, settings: Mapping[str, str | int]) -> None:
    """Write the configuration files into `folder`: ours over those of initdb, `settings` over both.

    They lie outside the data folder, where nobody but us can write.
    """
    (folder / "pg_hba.conf").write_text(ACCESS_RULES, encoding="utf-8")
    values = {**FAST, "hba_file": str(folder / "pg_hba.conf"), **settings}
    lines = [f"include = {_quoted(folder / 'data' / 'postgresql.conf')}"]
    lines += [f"{name} = {_quoted(value)}" for name, value in values.items()]
    (folder / "postgresql.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_settings(settings: Mapping[str, str | int]) -> None:
    """Raise `ValueError` for a setting that could not be written down or that the server decides itself."""
    for name, value in settings.items():
        if not re.fullmatch(r"[A-Za-z_][\w.]*", name) or "\n" in str(value):
            raise ValueError(f"setting {name!r} cannot be written into a configuration file: {value!r}")
        if name in ("port", "max_connections", "hba_file", "data_directory"):
            raise ValueError(f"setting {name!r} is not for `settings`: PostgresServer chooses it or has an argument")


def _quoted(value: object) -> str:
    text = str(value).replace("\\", "\\\\").replace("'", "''")
    return f"'{text}'"
