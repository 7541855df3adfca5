"""Many callers, few round trips: what is asked for while one is under way goes with the next.

There is no timer: who is alone is sent at once. What belongs to one organisation is in one round trip at a
time, so that the callers of a busy one wait for each other here and not for its row in the database.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from deploy_gates.core.errors import DeployGatesError, StoreUnavailable
from deploy_gates.core.ledger import Answer, Transaction
from deploy_gates.store.ledger import BATCH_MAX

WAITING_MAX = 20_000
"""How many transactions wait in one process; what comes on top is told to come back later."""

log = logging.getLogger("deploy_gates")


class _Waiting:
    """A transaction and who waits for its answer."""

    __slots__ = ("answered", "asked", "future", "loop", "outcome")

    def __init__(self, asked: Transaction, loop: asyncio.AbstractEventLoop | None) -> None:
        self.asked = asked
        self.loop = loop
        self.future: asyncio.Future[Answer] | None = loop.create_future() if loop else None
        self.answered: threading.Lock | None = None
        if loop is None:
            self.answered = threading.Lock()
            self.answered.acquire()
        self.outcome: Answer | Exception | None = None


class Batcher:
    """Sends transactions in batches by `send`, from `workers` threads that are started when needed."""

    def __init__(self, send: Callable[[Sequence[Transaction]], list[Answer]], *, workers: int) -> None:
        self._send = send
        self._workers = workers
        self._begin()
        _alive.add(self)

    def ask(self, asked: Transaction) -> Answer:
        """The answer, once it is there. What `send` raises is raised here."""
        waiting = _Waiting(asked, None)
        self._put(waiting)
        self._wake()
        assert waiting.answered is not None, "whoever waits without a loop has a lock"
        waiting.answered.acquire()
        if isinstance(waiting.outcome, Exception):
            raise waiting.outcome
        assert waiting.outcome is not None, "whoever is woken has an answer"
        return waiting.outcome

    async def ask_async(self, asked: Transaction) -> Answer:
        """The same in an event loop. Who gives up waiting has not called the transaction back."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(asked, loop)
        self._put(waiting)
        if loop not in self._waking:  # what is asked in the same turn of the loop goes together
            self._waking.add(loop)
            loop.call_soon(self._wake_from, loop)
        assert waiting.future is not None, "whoever waits in a loop has a future"
        return await waiting.future

    def close(self) -> None:
        """Send what waits, and end. Who asks from now on is refused."""
        _alive.discard(self)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for each in self._threads:
            each.join()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition(threading.Lock())
        self._queues: dict[str, deque[_Waiting]] = {}
        self._ready: deque[str] = deque()
        """Organisations with something to send and nothing under way."""
        self._busy: set[str] = set()
        self._waking: set[asyncio.AbstractEventLoop] = set()
        """Loops that wake a worker at the end of their turn."""
        self._waiting = 0
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def _put(self, waiting: _Waiting) -> None:
        name = waiting.asked.organisation
        with self._changed:
            if self._is_closed:
                raise StoreUnavailable("these credits were closed, and nothing was changed")
            if self._waiting >= WAITING_MAX:
                raise StoreUnavailable(
                    f"{WAITING_MAX:,} transactions wait already, and nothing was changed",
                    hint="try again later, with the same id",
                )
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = deque()
            if not queue and name not in self._busy:
                self._ready.append(name)
            queue.append(waiting)
            self._waiting += 1

    def _wake(self) -> None:
        """Have a worker take what there is."""
        with self._changed:
            if not self._ready:
                return
            if self._idle:
                self._changed.notify()
            elif len(self._threads) < self._workers:
                thread = threading.Thread(target=self._work, name="deploy-gates credits", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _wake_from(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waking.discard(loop)
        self._wake()

    # --- The threads ----------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._ready:
                    if self._is_closed and not self._waiting:
                        self._changed.notify_all()
                        return
                    self._idle += 1
                    try:
                        self._changed.wait()
                    finally:
                        self._idle -= 1
                batch = self._take()
            try:
                self._answer(batch)
            finally:
                self._give_back(batch)

    def _take(self) -> list[_Waiting]:
        """The next batch: whole organisations, and of each only what does not depend on itself."""
        batch: list[_Waiting] = []
        while self._ready and len(batch) < BATCH_MAX:
            name = self._ready.popleft()
            queue, keys = self._queues[name], set[str]()
            while queue and len(batch) < BATCH_MAX:
                asked = queue[0].asked
                own = {asked.id, asked.reservation} - {""}
                if own & keys:
                    break
                keys |= own
                batch.append(queue.popleft())
            self._busy.add(name)
        return batch

    def _give_back(self, batch: Sequence[_Waiting]) -> None:
        with self._changed:
            self._waiting -= len(batch)
            for name in {each.asked.organisation for each in batch}:
                self._busy.discard(name)
                if self._queues[name]:
                    self._ready.append(name)
                    if self._idle:
                        self._changed.notify()
                else:
                    del self._queues[name]
            if self._is_closed:
                self._changed.notify_all()

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        try:
            outcomes: Sequence[Answer | Exception] = self._send([each.asked for each in batch])
        except StoreUnavailable as error:
            outcomes = [error] * len(batch)
        except Exception as error:  # noqa: BLE001  # one that cannot be kept harms none of the others
            outcomes = [error] if len(batch) == 1 else [self._alone(each.asked) for each in batch]
        _deliver(batch, outcomes)

    def _alone(self, asked: Transaction) -> Answer | Exception:
        try:
            return self._send([asked])[0]
        except DeployGatesError as error:
            return error
        except Exception as error:
            log.exception("a transaction failed")
            return error

    def _after_fork(self) -> None:
        if self._process != os.getpid():
            self._begin()


def _deliver(batch: Sequence[_Waiting], outcomes: Sequence[Answer | Exception]) -> None:
    loops: dict[asyncio.AbstractEventLoop, list[_Waiting]] = {}
    for waiting, outcome in zip(batch, outcomes, strict=True):
        waiting.outcome = outcome
        if waiting.answered is not None:
            waiting.answered.release()
        elif waiting.loop is not None:
            loops.setdefault(waiting.loop, []).append(waiting)
    for loop, there in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, there)
        except RuntimeError:  # the loop has ended, and nobody waits any more
            log.debug("%d answers came too late for their loop", len(there))


def _resolve(batch: Sequence[_Waiting]) -> None:
    for each in batch:
        future, outcome = each.future, each.outcome
        if future is None or future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        elif outcome is not None:
            future.set_result(outcome)


_alive: weakref.WeakSet[Batcher] = weakref.WeakSet()


def _forget_threads() -> None:
    for each in list(_alive):
        each._after_fork()


os.register_at_fork(after_in_child=_forget_threads)
