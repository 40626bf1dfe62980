"""What Lambda tells a function: by its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REGION = "us-east-1"
ACCOUNT = "123456789012"


@dataclass(frozen=True, slots=True)
class Function:
    """A function as one would configure it. `handler` is ``"module.name"``, found from `folder`; `workers` is the
    number of processes on Managed Instances, ``None`` elsewhere."""

    handler: str
    folder: Path
    environment: Mapping[str, str]
    name: str
    memory: int
    workers: int | None
    snap_start: bool

    @property
    def arn(self) -> str:
        """The name of the function among all."""
        return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{self.name}"

    def command(self) -> list[str]:
        """Return what starts the runtime client."""
        return [sys.executable, "-m", "awslambdaric", self.handler]

    def variables(self, address: str, temporary: Path) -> dict[str, str]:
        """Return the environment of its processes: this one's, what Lambda sets, and the function's own on top."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_LAMBDA_", "_X_AMZN"))
        }
        return {**inherited, **self._of_lambda(address, temporary), **self.environment}

    def _of_lambda(self, address: str, temporary: Path) -> dict[str, str]:
        variables = {
            "_HANDLER": self.handler,
            "AWS_DEFAULT_REGION": REGION,
            # From 3.12 on the client waits for events in a thread: it goes by this text, not by the interpreter.
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.memory),
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start" if self.snap_start else "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{self.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": "2026/01/01/[$LATEST]00000000000000000000000000000000",
            "AWS_LAMBDA_RUNTIME_API": address,
            "AWS_REGION": REGION,
            "LAMBDA_TASK_ROOT": str(self.folder),
            "TMPDIR": str(temporary),
        }
        if self.workers is not None:
            variables["AWS_LAMBDA_INITIALIZATION_TYPE"] = "lambda-managed-instances"
            variables["AWS_LAMBDA_MAX_CONCURRENCY"] = str(self.workers)
        return variables
