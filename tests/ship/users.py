"""Users of production for tests: one process with a client, as a service would have it.

Run as a script, it serves until its standard input is closed, and does what it is told line by line:
`fail DIGEST` has every call of that config fail.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Self

from deploy_gates import clock
from deploy_gates.client import ConfigClient
from deploy_gates.core.cost import Usage
from deploy_gates.core.errors import ConfigUnavailable
from deploy_gates.core.tally import BIN_MS
from deploy_gates.store import Store, open_store

RATE_RPS = 200
PATIENCE_S = 40.0
REPORTED_MS = 1_500
"""Clients report every second."""


class Users:
    """The process, seen from a test."""

    def __init__(self, url: str, config: str) -> None:
        self._url = url
        self._config = config
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Let them come."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._url, self._config], stdin=subprocess.PIPE, text=True
        )

    def fail(self, digest: str) -> None:
        """From now on every call of this config fails."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"fail {digest}\n")
        self._process.stdin.flush()

    def wait_for(self, *, requests: int) -> None:
        """Until so many have been reported, in bins that have ended."""
        store = open_store(self._url)
        deadline = time.monotonic() + PATIENCE_S
        try:
            while self._reported(store) < requests:
                assert time.monotonic() < deadline, "there are no users"
                time.sleep(0.1)
        finally:
            store.close()

    def _reported(self, store: Store) -> int:
        ended_ms = int(clock.now().timestamp() * 1000) - BIN_MS - REPORTED_MS
        found = store.tallies(self._config, "production", until_ms=max(ended_ms, 0))
        return sum(each.latency_s.n for each in found)

    def served(self) -> str:
        """What production serves, as a client that starts now sees it."""
        with ConfigClient(self._url, environment="production", wait_s=5.0) as client:
            return client.get(self._config, key="somebody").digest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def main(url: str, name: str) -> None:
    failing: set[str] = set()

    def listen() -> None:
        for line in sys.stdin:
            failing.add(line.split()[1])

    threading.Thread(target=listen, daemon=True).start()
    with ConfigClient(url, environment="production", wait_s=10.0) as client:
        number = 0
        while True:
            number += 1
            try:
                config = client.get(name, key=f"user-{number}")
            except ConfigUnavailable:
                time.sleep(0.1)
                continue
            with config.call() as call:
                call.record(Usage(input_tokens=100 + number % 7, output_tokens=20 + number % 5))
                if config.digest in failing:
                    call.fail("the model fails")
            time.sleep(1 / RATE_RPS)


if __name__ == "__main__":
    main(*sys.argv[1:])
