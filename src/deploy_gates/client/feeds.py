"""Where a client's configs come from: straight out of a store, or over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, TypeVar

from deploy_gates.core.errors import StoreError, StoreUnavailable
from deploy_gates.core.promotion import Acknowledgement, Serving
from deploy_gates.core.tally import Tally
from deploy_gates.store import Store, Watcher, open_store

CLOSE_WAIT_S = 0.1
"""How long `close` waits for a call under way, which otherwise closes behind itself."""

_T = TypeVar("_T")


class Feed(Protocol):
    """What a client needs of the store, for one environment.

    `read` and `wait` are used by one thread, everything else by any. Every call but `wake` and `close` may
    raise `StoreError`, and the next one tries anew.
    """

    url: str
    """Where from, as it may be shown, the same from every folder."""

    def read(self, known: Collection[str]) -> Serving:
        """What is served, with the documents whose digests are not `known`."""

    def wait(self, timeout_s: float) -> bool:
        """Whether something may have changed since the last `read`; `False` after the time, or `wake`."""

    def wake(self) -> None:
        """Have a waiting `wait` return at once."""

    def acknowledge(
        self, instance: str, name: str, environment: str, served: Sequence[Acknowledgement]
    ) -> None:
        """What an instance serves, in place of what it said before."""

    def leave(self, instance: str) -> None:
        """The instance has ended."""

    def report(self, instance: str, first: int, tallies: Sequence[Tally]) -> None:
        """Keep tallies, numbered from `first` on."""

    def renewed(self) -> Feed:
        """In a child after a fork: one like this, with connections of its own. This one is left alone."""

    def close(self) -> None:
        """Let go of every connection. Calls under way end soon, with an error; later ones fail."""


def feed_of(url: str, *, token: str, environment: str, poll_s: float) -> Feed:
    """The feed for a store's URL or for that of a server. `StoreError` for a URL that is neither."""
    if url.startswith(("http://", "https://")):
        from deploy_gates.client.remote import HttpFeed

        return HttpFeed(url, token, environment)
    store = open_store(url, durable=False)  # nothing is opened before it is used
    where = store.url
    store.close()
    if not url.startswith("sqlite:"):
        return StoreFeed(lambda: open_store(url, durable=False), where, environment)

    def opened() -> Store:
        from deploy_gates.store.sqlite import SqliteStore

        return SqliteStore(Path(where.removeprefix("sqlite:///")), durable=False, poll_s=poll_s)

    return StoreFeed(opened, where, environment)


class StoreFeed:
    """Reads a store on one connection and writes on another: no write keeps a reader waiting."""

    def __init__(self, open_: Callable[[], Store], url: str, environment: str) -> None:
        self.url = url
        self._open = open_
        self._environment = environment
        self._reading = _Line(open_)
        self._writing = _Line(open_)
        self._watching = ExitStack()
        self._waking = threading.Lock()
        self._watcher: Watcher | None = None

    def read(self, known: Collection[str]) -> Serving:
        def watched(store: Store) -> Serving:
            self._watch(store)  # before reading: no change falls between the two
            try:
                return store.serving(self._environment, known)
            except LookupError:  # a column that only later tables have
                store.check()
                raise

        return self._run(watched)

    def wait(self, timeout_s: float) -> bool:
        def watched(store: Store) -> bool:
            watcher = self._watch(store)
            return not self._reading.is_closed and watcher.wait(timeout_s)

        return self._run(watched)

    def wake(self) -> None:
        with self._waking:
            if self._watcher is not None:
                self._watcher.wake()

    def acknowledge(
        self, instance: str, name: str, environment: str, served: Sequence[Acknowledgement]
    ) -> None:
        self._writing.run(lambda store: store.acknowledge(instance, name, environment, served))

    def leave(self, instance: str) -> None:
        self._writing.run(lambda store: store.leave(instance))

    def report(self, instance: str, first: int, tallies: Sequence[Tally]) -> None:
        self._writing.run(lambda store: store.add_tallies(instance, first, tallies))

    def renewed(self) -> StoreFeed:
        _parents.append(self)
        return StoreFeed(self._open, self.url, self._environment)

    def close(self) -> None:
        self._reading.is_closed = self._writing.is_closed = True
        self.wake()
        self._reading.close(self._unwatch)
        self._writing.close()

    def _run(self, call: Callable[[Store], _T]) -> _T:
        return self._reading.run(call, before_drop=self._unwatch)

    def _watch(self, store: Store) -> Watcher:
        if self._watcher is None:
            self._watcher = self._watching.enter_context(store.watch())
        return self._watcher

    def _unwatch(self) -> None:
        with self._waking:  # nobody wakes what is closed
            self._watcher = None
        self._watching.close()


class _Line:
    """A store that is opened when it is needed, given up after an error, and closed when nobody uses it."""

    def __init__(self, open_: Callable[[], Store]) -> None:
        self._open = open_
        self._lock = threading.Lock()
        self._store: Store | None = None
        self.is_closed = False

    def run(self, call: Callable[[Store], _T], *, before_drop: Callable[[], None] = lambda: None) -> _T:
        try:
            with self._lock:
                if self.is_closed:
                    raise StoreUnavailable("the client is closed")
                if self._store is None:
                    self._store = self._open()
                try:
                    return call(self._store)
                except StoreError:
                    self._drop(before_drop)
                    raise
        finally:
            if self.is_closed:
                self.close(before_drop)

    def close(self, before: Callable[[], None] = lambda: None) -> None:
        self.is_closed = True
        if self._lock.acquire(timeout=CLOSE_WAIT_S):
            try:
                self._drop(before)
            finally:
                self._lock.release()

    def _drop(self, before: Callable[[], None]) -> None:
        store, self._store = self._store, None
        try:
            before()
        finally:
            if store is not None:
                store.close()


_parents: list[StoreFeed] = []
"""What a child has of its parent's connections: to close them here would close them there."""
