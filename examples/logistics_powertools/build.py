"""Puts together what is deployed: ``python -m logistics_powertools.build`` in the folder above, with network.

It makes ``build/function`` (the template's CodeUri) and ``build/function.zip`` (what serverless.yml deploys) in this
folder, for Python 3.13 on x86_64, and prints their sizes. boto3 is not among it: the runtime has it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = HERE / "build"
FUNCTION = BUILD / "function"
TARGET = ["--platform", "manylinux2014_x86_64", "--implementation", "cp", "--python-version", "3.13"]
REQUIREMENTS = ["aws-lambda-powertools[parser,tracer]", "psycopg[binary]"]
SKIPPED = ("__pycache__", "build", "*.yaml", "*.yml", "*.md", "*.sql", "local.py", "build.py")


def pip(*arguments: str | Path) -> None:
    """Run this interpreter's pip."""
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


def build() -> Path:
    """Make the folder and return it."""
    shutil.rmtree(BUILD, ignore_errors=True)
    FUNCTION.mkdir(parents=True)
    pip("wheel", "--no-deps", "--wheel-dir", BUILD, ROOT)  # of this checkout
    [wheel] = BUILD.glob("*.whl")
    pip("install", "--target", FUNCTION, "--only-binary", ":all:", "--no-compile", *TARGET, wheel, *REQUIREMENTS)
    for package in ("logistics", "logistics_powertools"):
        shutil.copytree(HERE.parent / package, FUNCTION / package, ignore=shutil.ignore_patterns(*SKIPPED))
    for name in ("bin", "boto3*", "botocore*", "s3transfer*"):  # the last three come with the runtime
        for path in FUNCTION.glob(name):
            shutil.rmtree(path)
    return FUNCTION


def size(path: Path) -> float:
    """Return the megabytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(each.stat().st_size for each in files if each.is_file()) / 1e6


if __name__ == "__main__":
    folder = build()
    archive = Path(shutil.make_archive(str(BUILD / "function"), "zip", folder))
    print(f"unpacked {size(folder):.1f} MB, zipped {size(archive):.1f} MB")
