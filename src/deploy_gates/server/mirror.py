"""What an environment serves, kept in memory for everybody who reads it over HTTP.

One thread an environment follows the store. Clients that listen are told when to look again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from deploy_gates.core.canonical import Json
from deploy_gates.core.errors import DeployGatesError
from deploy_gates.core.promotion import Deployment, Serving
from deploy_gates.store import Store

REREAD_S = 5.0
"""The store is read at least so often."""
RETRY_S = 0.5
LISTENERS_MAX = 1_000
"""Streams that may be open at a time."""

log = logging.getLogger("deploy_gates")


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One state of an environment, as it is sent."""

    serving: Serving
    body: bytes
    etag: str
    """Changes with what is served, and with nothing else."""

    @classmethod
    def of(cls, serving: Serving) -> View:
        deployments: list[Json] = [each.to_json() for each in serving.deployments]
        prices: dict[str, Json] = {digest: each.to_json() for digest, each in sorted(serving.prices.items())}
        body = json.dumps(
            {"environment": serving.environment, "deployments": deployments, "prices": prices}
        ).encode()
        return cls(serving=serving, body=body, etag=f'"{hashlib.sha256(body).hexdigest()[:32]}"')


@dataclass(eq=False)
class Listener:
    """One open stream: woken whenever there is something new."""

    loop: asyncio.AbstractEventLoop
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wake it, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self.loop.call_soon_threadsafe(self.news.set)


class Mirror:
    """Follows one environment in a thread of its own."""

    def __init__(self, store: Store, environment: str) -> None:
        self._store = store
        self._environment = environment
        self._lock = threading.Lock()
        self._listeners: set[Listener] = set()
        self._stop = threading.Event()
        self._wake: Callable[[], None] = _nothing
        self.view: View | None = None
        """`None`: the store could not be read yet."""
        self.is_stale = True
        self.has_read = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"mirror {environment}", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self) -> None:
        """End, and have every stream end."""
        self._stop.set()
        self._wake()
        self._thread.join(5)
        for each in list(self._listeners):
            each.tell()

    @property
    def is_closed(self) -> bool:
        return self._stop.is_set()

    def listen(self) -> Listener | None:
        """A new listener, on the running loop; `None` where there are too many already."""
        listener = Listener(loop=asyncio.get_running_loop())
        with self._lock:
            if len(self._listeners) >= LISTENERS_MAX:
                return None
            self._listeners.add(listener)
        return listener

    def forget(self, listener: Listener) -> None:
        """A stream has ended."""
        with self._lock:
            self._listeners.discard(listener)

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def deployment(self, config: str) -> Deployment | None:
        """What is served of one config."""
        rows = self.view.serving.deployments if self.view else ()
        return next((each for each in rows if each.config == config), None)

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                with self._store.watch() as watcher:
                    self._wake = watcher.wake
                    read_at = 0.0
                    while not self._stop.is_set():
                        if watcher.wait(0.2) or time.monotonic() - read_at > REREAD_S or self.is_stale:
                            self._read()
                            read_at = time.monotonic()
            except DeployGatesError as error:
                if not self.is_stale:
                    log.warning("%s is served from memory: %s", self._environment, error.message)
                self._rest()
            except Exception:  # a thread that ended would serve old configs as new ones
                log.exception("%s is served from memory", self._environment)
                self._rest()

    def _rest(self) -> None:
        self.is_stale = True
        self._wake = _nothing
        self._stop.wait(RETRY_S)

    def _read(self) -> None:
        before = self.view.serving if self.view else Serving(environment=self._environment, deployments=())
        found = self._store.serving(self._environment, known=before.configs)
        served = {each for row in found.deployments for each in (row.baseline, row.candidate) if each}
        configs, prices = {**before.configs, **found.configs}, {**before.prices, **found.prices}
        view = View.of(
            replace(
                found,
                configs={digest: configs[digest] for digest in served if digest in configs},
                prices={digest: prices[digest] for digest in served if digest in prices},
            )
        )
        is_new = self.view is None or view.etag != self.view.etag
        self.view, self.is_stale = view, False
        self.has_read.set()
        if is_new:
            with self._lock:
                listeners = list(self._listeners)
            for each in listeners:
                each.tell()


def _nothing() -> None:
    """Nobody waits."""
