"""Hearing from PostgreSQL that something has changed."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import time

import psycopg

from deploy_gates.core.errors import StoreUnavailable
from deploy_gates.store.connections import Connections, abandon, translated

CHANNEL = "deploy_gates"
"""Where moves are told of, by a trigger, with the schema they are in."""
LOOK_EVERY_S = 5.0
"""How often a watcher looks for itself whether it missed something."""
DEAF_LOOK_EVERY_S = 0.25
"""The same for a watcher that notifications do not reach."""
PROBE_MAX_S = 2.0
"""How long the notification may take that a watcher sends to itself."""


class PostgresWatcher:
    """Listens on a connection of its own, and looks for itself now and then.

    A pooler that gives every transaction another session swallows notifications without a word. So each
    watcher begins by sending one to itself, through another connection.
    """

    def __init__(self, connections: Connections) -> None:
        self._url = connections.url
        self._process = os.getpid()
        self._connection = connections.connect()
        self._said: set[str] = set()
        self._connection.add_notify_handler(lambda told: self._said.add(told.payload))
        self._woken, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        try:
            for each in (self._woken, self._waker):
                each.setblocking(False)
            self._selector.register(self._woken, selectors.EVENT_READ)
            self._selector.register(self._connection.fileno(), selectors.EVENT_READ)
            self.hears = self._listen(connections)
            self._schema, self._seen = self._look()
        except BaseException as error:
            self.close()
            if isinstance(error, psycopg.Error):
                raise translated(error, self._url) from error
            raise
        self._look_at = self._next_look()

    def wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                if self._schema in self._heard():
                    return True
                if time.monotonic() >= self._look_at:
                    self._look_at = self._next_look()
                    _, found = self._look()
                    if found != self._seen:
                        self._seen = found
                        return True
                    continue  # what was said meanwhile is here already, and nothing more may come
                left_s = min(deadline, self._look_at) - time.monotonic()
                ready = {key.fileobj for key, _ in self._selector.select(max(0.0, left_s))}
                if self._woken in ready:
                    self._drain()
                    return False
                if not ready and time.monotonic() >= deadline:
                    return False
        except psycopg.Error as error:
            raise translated(error, self._url) from error
        except (OSError, ValueError) as error:  # the selector or the socket was closed by another thread
            raise StoreUnavailable(f"the watcher of {self._url} was closed") from error

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake already; or closed
            self._waker.send(b"!")

    def close(self) -> None:
        if self._process == os.getpid():
            self._connection.close()
        else:
            abandon(self._connection)
        self._selector.close()
        self._woken.close()
        self._waker.close()

    def _listen(self, connections: Connections) -> bool:
        """Whether notifications arrive."""
        probe = f"{CHANNEL}_{secrets.token_hex(8)}"
        self._connection.execute(f"LISTEN {CHANNEL}")
        self._connection.execute(f"LISTEN {probe}")
        connections.run(lambda other: other.execute("SELECT pg_notify(%s, %s)", (probe, probe)))
        deadline = time.monotonic() + PROBE_MAX_S
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                if probe in self._heard():
                    return True
                self._selector.select(left_s)
            return False
        finally:
            self._connection.execute(f"UNLISTEN {probe}")

    def _heard(self) -> set[str]:
        """What was said since the last time.

        What arrives together with the answer to a query is taken by psycopg, which passes it on.
        """
        line = self._connection.pgconn
        line.consume_input()
        while (told := line.notifies()) is not None:
            self._said.add(told.extra.decode())
        heard, self._said = self._said, set()
        return heard

    def _look(self) -> tuple[str, int]:
        """The schema, and a number that grows with every move; what is heard meanwhile, is heard later."""
        row = self._connection.execute(
            "SELECT current_schema() AS here, coalesce(sum(revision), 0)::bigint AS moves FROM deployment"
        ).fetchone()
        assert row is not None
        return str(row["here"]), int(row["moves"])

    def _next_look(self) -> float:
        return time.monotonic() + (LOOK_EVERY_S if self.hears else DEAF_LOOK_EVERY_S)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
