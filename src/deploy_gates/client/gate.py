"""Keeps background threads out of drivers while the process forks.

A lock that another thread holds in the middle of SQLite, libpq, or OpenSSL stays held for ever in the child.
So before a fork every client's threads are asked out of them, for a moment.
"""

from __future__ import annotations

import threading
import time


class Gate:
    """`with gate:` around every call that may be inside a driver. `close` waits until nobody is."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._inside = 0
        self._is_closed = False

    def __enter__(self) -> None:
        with self._condition:
            while self._is_closed:
                self._condition.wait()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()

    def close(self) -> None:
        """Let nobody in."""
        with self._condition:
            self._is_closed = True

    def wait_until_empty(self, deadline: float) -> bool:
        """Whether everybody was out by `deadline`, on the monotonic clock."""
        with self._condition:
            return self._condition.wait_for(
                lambda: not self._inside, timeout=max(0.0, deadline - time.monotonic())
            )

    def open(self) -> None:
        """Let everybody in again."""
        with self._condition:
            self._is_closed = False
            self._condition.notify_all()
