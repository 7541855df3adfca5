"""Telling open pages that something has changed: they load themselves again, and swap what differs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable

from sse_starlette import ServerSentEvent

from deploy_gates.core.errors import DeployGatesError
from deploy_gates.store import Store

PAUSE_S = 0.5
"""At most so often a page is told: tallies change the store all the time."""
TICK_S = 5.0
"""It is told at least so often: times pass, and canaries are judged."""
RETRY_S = 2.0
PAGES_MAX = 500
"""Pages that may be open at a time."""

log = logging.getLogger("deploy_gates")


class Live:
    """Follows the store in a thread while anybody has a page open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._pages: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._stop = threading.Event()
        self._wake: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """One event whenever a page may look different. It ends with the server."""
        news = asyncio.Event()
        with self._lock:
            if len(self._pages) >= PAGES_MAX or self._stop.is_set():
                return
            self._pages[news] = asyncio.get_running_loop()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._follow, name="dashboard", daemon=True)
                self._thread.start()
        try:
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), TICK_S)
                news.clear()
                yield ServerSentEvent(event="changed", data="")
                await asyncio.sleep(PAUSE_S)
        finally:
            with self._lock:
                self._pages.pop(news, None)

    def close(self) -> None:
        """End: every open stream does, too."""
        self._stop.set()
        self._wake()
        self._tell()
        if self._thread is not None:
            self._thread.join(5)

    def _follow(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                if not self._pages:
                    self._thread = None
                    return
            try:
                with self._store.watch() as watcher:
                    self._wake = watcher.wake
                    while self._pages and not self._stop.is_set():
                        if watcher.wait(0.5):
                            self._tell()
            except DeployGatesError:
                self._stop.wait(RETRY_S)
            except Exception:  # pages go on with their ticks
                log.exception("the dashboard does not follow the store")
                self._stop.wait(RETRY_S)
            self._wake = lambda: None

    def _tell(self) -> None:
        with self._lock:
            pages = list(self._pages.items())
        for news, loop in pages:
            with contextlib.suppress(RuntimeError):  # its loop has ended meanwhile
                loop.call_soon_threadsafe(news.set)
