"""What is alive in this process, when it forks and when it ends."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from typing import Protocol

FORK_WAIT_S = 0.5
"""How long a fork waits for threads to come out of their drivers; it then goes on without them."""


class Forkable(Protocol):
    """Something with threads, that is to go on in a child."""

    def before_fork(self) -> None:
        """Ask the threads out; do not wait."""

    def wait_before_fork(self, deadline: float) -> None:
        """Wait until they are out, or for `deadline`, on the monotonic clock."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Start anew: no thread but this one has come along."""

    def close(self) -> None:
        """The interpreter ends."""


class Turnstile:
    """`with turnstile:` around every call that may be inside a driver.

    A lock that another thread holds in the middle of SQLite, libpq, or OpenSSL stays held for ever in the
    child. So before a fork every client's threads are asked out of them, for a moment.
    """

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


_alive: weakref.WeakSet[Forkable] = weakref.WeakSet()


def register(each: Forkable) -> None:
    """Have `each` follow forks, as long as somebody holds it, and be closed at exit."""
    _alive.add(each)


def unregister(each: Forkable) -> None:
    """It is closed."""
    _alive.discard(each)


def _before() -> None:
    deadline = time.monotonic() + FORK_WAIT_S
    alive = list(_alive)
    for each in alive:
        each.before_fork()
    for each in alive:
        each.wait_before_fork(deadline)


def _in_parent() -> None:
    for each in list(_alive):
        each.after_fork_in_parent()


def _in_child() -> None:
    for each in list(_alive):
        each.after_fork_in_child()


def _at_exit() -> None:
    for each in list(_alive):
        each.close()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
atexit.register(_at_exit)
