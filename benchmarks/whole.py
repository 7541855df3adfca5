"""One whole process, measured from its start to its end, beside what the endpoint saw of it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from endpoint import Remote


@dataclass(frozen=True, kw_only=True, slots=True)
class Took:
    """What one process took, and what the server saw of it."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    requests: int
    most: int
    first_s: float
    status: int
    said: str = field(repr=False, default="")


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    remote: Remote,
    environ: Mapping[str, str] | None = None,
    kill_after: int = 0,
    **behaviour: object,
) -> Took:
    """Run a whole process. With `kill_after`, it is killed once the server had so many requests."""
    remote.set(**behaviour)
    with tempfile.TemporaryFile() as output:
        began_at, began = time.time(), time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=_environ(remote) | dict(environ or {}),
            start_new_session=True,
        )
        while kill_after and remote.stats()["requests"] < kill_after:
            time.sleep(0.01)
        if kill_after:
            os.killpg(process.pid, signal.SIGKILL)
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode(errors="replace")
    stats = remote.stats()
    return Took(
        wall_s=wall_s,
        cpu_s=used.ru_utime + used.ru_stime,
        peak_mb=used.ru_maxrss / 1024,
        requests=stats["requests"],
        most=stats["most"],
        first_s=max(0.0, stats["first_at"] - began_at) if stats["first_at"] else 0.0,
        status=process.returncode,
        said=said,
    )


def _environ(remote: Remote) -> dict[str, str]:
    passed = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OPENAI_", "GITHUB_", "DEPLOY_GATES_", "PYTHON")) and name != "CI"
    }
    return passed | {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": remote.base_url}
