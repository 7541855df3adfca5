"""The processes of a demo: each ends with it, at the latest when this process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from deploy_gates.core.errors import WorkspaceError

END_S = 3.0
"""So long processes that are told to end may take, all together; then they are killed."""
RUN_MAX_S = 120.0
STDERR_FILE = "talk.txt"
SAID_FILE = "said.txt"

FOREIGN = ("DEPLOY_GATES_", "GITHUB_", "GITLAB_", "CI_", "PYTEST_", "OPENAI_", "GIT_")
"""Variables that begin so belong to another repository, another store, or somebody's account."""


class Processes:
    """Starts modules of Python, and ends what is left of them."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self._folder = folder
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        own.pop("CI", None)
        direct = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")  # everything is on this machine
        self._environ = {**own, **direct, **variables}
        self._running: list[subprocess.Popen[str]] = []

    def start(
        self, module: str, *arguments: str, cwd: Path | None = None, stdout: int | IO[str] | None = None
    ) -> subprocess.Popen[str]:
        """Run a module; it is not of this terminal, so ctrl-c is for us alone. What it says aside is kept."""
        with (self._folder / STDERR_FILE).open("a") as talk:
            process = subprocess.Popen(
                [sys.executable, "-m", "deploy_gates.demo.tied", module, *arguments],
                cwd=cwd or self._folder,
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=talk,
                text=True,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def run(
        self,
        module: str,
        *arguments: str,
        cwd: Path | None = None,
        is_shown: bool = False,
        timeout_s: float = RUN_MAX_S,
    ) -> tuple[int, str]:
        """Run a module to its end; its status, and what it said unless that was shown. `WorkspaceError`."""
        said_file = self._folder / SAID_FILE
        with said_file.open("w") as said:
            process = self.start(module, *arguments, cwd=cwd, stdout=None if is_shown else said)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise WorkspaceError(
                f"`{module.replace('_', '-')} {arguments[0]}` has not ended within {timeout_s:g} s",
                hint="this machine may be too busy for a demo",
            ) from error
        finally:
            process.kill()  # nothing, unless something went wrong
            process.wait()
            self._forget(process)
        return status, said_file.read_text(errors="replace")

    def talk(self) -> str:
        """The last line that any of them said aside."""
        lines = (self._folder / STDERR_FILE).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def close(self) -> None:
        """End all of them; those that do not within seconds are killed."""
        for each in self._running:
            if each.poll() is None:
                each.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + END_S
        for each in list(self._running):
            try:
                each.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()
            self._forget(each)

    def _forget(self, process: subprocess.Popen[str]) -> None:
        if process.stdin is not None:
            process.stdin.close()
        self._running.remove(process)
