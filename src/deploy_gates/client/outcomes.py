"""Measures calls and tells the store what came of them, in the background.

Whoever calls a model only ever appends to a queue. One thread empties it four times a second, adds up, and
sends about once a second. What cannot be sent is tried again under the same numbers, so that it counts once.
"""

from __future__ import annotations

import atexit
import logging
import math
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import NamedTuple, Self

from deploy_gates import clock
from deploy_gates.client.counting import Began, Counting, End, Ended
from deploy_gates.client.served import Served
from deploy_gates.client.usage import id_of, usage_of
from deploy_gates.core.errors import StoreUnavailable
from deploy_gates.core.tally import METRICS_MAX, Tally

EVENTS_MAX = 50_000
"""Beginnings and ends of calls that wait to be added up; what comes on top is counted as dropped."""
LOST_MAX = 100_000
"""Calls that were dropped and wait to be counted as such."""
COUNT_EVERY_S = 0.25
SEND_EVERY_S = 1.0
RETRY_FIRST_S, RETRY_MAX_S = 0.25, 8.0
"""How long to wait before sending again, doubled each time."""
REFUSALS_MAX = 20
"""So often a batch is sent that the store refuses, though it can be reached: it would hold up all others."""
EXIT_S = 2.0
"""How long the end of the interpreter waits for the last tallies, all clients together."""
METRIC_MAX_CHARS = 200

log = logging.getLogger("deploy_gates")


class Call:
    """One call of a model, from `with` to its end, also `async with`. It never waits, nor raises by itself.

    A call that ends with an exception, which goes its way untouched, or with `fail`, is an error. One that
    its caller gives up (`asyncio.CancelledError`, `KeyboardInterrupt`, and whatever else is no `Exception`)
    has finished, but neither well nor badly: it says nothing of the config. A timeout is an error where it is
    raised inside of the block.
    """

    __slots__ = (
        "_answer_id",
        "_answer_nanousd",
        "_began",
        "_cost_nanousd",
        "_has_failed",
        "_key",
        "_queue",
        "_scores",
        "_served",
    )

    def __init__(self, queue: _Queue, served: Served, key: str | None) -> None:
        self._queue = queue
        self._served = served
        self._key = key
        self._began: Began | None = None

    def record(self, answer: object) -> None:
        """Take usage, and thereby the cost, from an answer.

        That is a response of `openai`, the last chunk of a stream, or a dictionary of either. Several answers
        in one call add up; the chunks of one stream do not.
        """
        try:
            self._record(answer)
        except Exception:  # whatever an answer does when it is looked at, it is not the caller's fault
            log.exception("the usage of an answer could not be read, so its cost is not counted")

    def score(self, metric: str, value: bool | float) -> None:
        """How good the answer was, by a measure of your own. One value each; the last one counts."""
        try:
            number = float(value)
        except Exception:  # noqa: BLE001  # whatever it does when it is asked, it is no number
            number = math.nan
        is_name = isinstance(metric, str) and 0 < len(metric) <= METRIC_MAX_CHARS
        if not is_name or not math.isfinite(number):
            log.debug("%r of %r cannot be counted", value, metric)
        elif self._began is not None and (metric in self._scores or len(self._scores) < METRICS_MAX):
            self._scores[metric] = number

    def fail(self, reason: str = "") -> None:
        """The call ends badly, though nothing was raised."""
        self._has_failed = True
        log.debug("a call of %s failed: %s", self._served.name, reason)

    def __enter__(self) -> Self:
        self._has_failed = False
        self._answer_id = ""
        self._answer_nanousd = 0
        self._cost_nanousd: int | None = None
        self._scores: dict[str, float] = {}
        queue = self._queue
        began = Began(self._served, self._key, queue.now(), queue.monotonic())
        self._began = began if queue.put(began, began) else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        began = self._began
        if began is None:
            return
        self._began = None
        end = End.WELL
        if self._has_failed or (kind is not None and issubclass(kind, Exception)):
            end = End.BADLY
        elif kind is not None:
            end = End.ABANDONED
        queue = self._queue
        queue.put(Ended(began, queue.monotonic(), end, self._cost_nanousd, self._scores), began)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _record(self, answer: object) -> None:
        if self._began is None or self._served.price is None:
            return
        usage = usage_of(answer)
        if usage is None:
            return
        answer_id, cost_nanousd = id_of(answer), self._served.price.cost_nanousd(usage)
        before = self._answer_nanousd if answer_id and answer_id == self._answer_id else 0
        self._cost_nanousd = (self._cost_nanousd or 0) - before + cost_nanousd
        self._answer_id, self._answer_nanousd = answer_id, cost_nanousd


class Outcomes:
    """What became of the calls of one client, on its way to the store.

    `send` delivers tallies numbered from `first` on, where what was delivered before changes nothing, and
    raises what it likes if it cannot. `now` and `monotonic` are the clocks that calls are measured by.
    """

    def __init__(
        self,
        send: Callable[[int, Sequence[Tally]], None],
        *,
        now: Callable[[], datetime] = clock.now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._now = now
        self._monotonic = monotonic
        self._delivery = self._new_delivery()
        _alive.add(self)

    def begin(self, served: Served, key: str | None) -> Call:
        """Measures a call, once it is entered."""
        delivery = self._delivery
        if delivery.thread is None:
            delivery.start()
        return Call(delivery.queue, served, key)

    def flush(self, timeout_s: float) -> bool:
        """Deliver the outcomes there are; whether that was done within `timeout_s`."""
        return self._delivery.flush(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Deliver what there is, for at most `timeout_s`, and end. Calls that end later are not counted."""
        _alive.discard(self)
        self._delivery.close(timeout_s)

    def after_fork(self) -> None:
        """In the child: the parent delivers what began there, so forget it and start anew."""
        self._delivery = self._new_delivery()

    def _new_delivery(self) -> _Delivery:
        return _Delivery(self._send, _Queue(self._now, self._monotonic))


class _Queue:
    """What calls append to. No lock: `deque.append` needs none."""

    __slots__ = ("events", "is_open", "lost", "monotonic", "now")

    def __init__(self, now: Callable[[], datetime], monotonic: Callable[[], float]) -> None:
        self.now = now
        self.monotonic = monotonic
        self.events: deque[Began | Ended] = deque()
        self.lost: deque[Began] = deque(maxlen=LOST_MAX)
        self.is_open = True

    def put(self, event: Began | Ended, began: Began) -> bool:
        """Whether there was room for it."""
        if not self.is_open:
            return False
        if len(self.events) >= EVENTS_MAX:
            self.lost.append(began)
            return False
        self.events.append(event)
        return True


class _Batch(NamedTuple):
    """Tallies on their way, under numbers that they keep."""

    first: int
    tallies: tuple[Tally, ...]


class _Delivery:
    """The thread and all that only it touches."""

    def __init__(self, send: Callable[[int, Sequence[Tally]], None], queue: _Queue) -> None:
        self.queue = queue
        self.thread: threading.Thread | None = None
        self._send = send
        self._counting = Counting()
        self._batch: _Batch | None = None
        self._next = 1
        self._failures = 0
        self._refusals = 0
        self._starting = threading.Lock()
        self._changed = threading.Condition()
        self._asked = self._heard = self._answered = 0
        """How many flushes were asked for, tried, and done."""
        self._is_closing = False
        self._is_over = False
        self._is_delivered = True
        """By the time it was closed."""

    def start(self) -> None:
        """Start the thread, unless another caller is just doing it."""
        if not self._starting.acquire(blocking=False):
            return
        try:
            if self.thread is None and not self._is_closing:
                thread = threading.Thread(target=self._run, name="deploy-gates outcomes", daemon=True)
                thread.start()
                self.thread = thread
        except RuntimeError as error:  # no more threads; the next call tries again
            log.debug("outcomes are not delivered yet: %s", error)
        finally:
            self._starting.release()

    def flush(self, timeout_s: float) -> bool:
        """Whether all there is was delivered within the time."""
        if self.thread is None:
            return not self.queue.events
        if self._is_over:
            return self._is_delivered
        with self._changed:
            self._asked += 1
            asked = self._asked
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._answered >= asked or self._is_over, timeout_s) and (
                self._answered >= asked
            )

    def close(self, timeout_s: float) -> None:
        """Deliver what there is, for as long as that, and end the thread."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            was_closing, self._is_closing = self._is_closing, True
        self.queue.is_open = False
        if was_closing or self.thread is None:
            return
        self._is_delivered = self.flush(timeout_s)
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if not self._is_delivered:
            log.warning("the client was closed before all outcomes were delivered: the last ones are lost")

    # --- The thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        send_at = time.monotonic() + SEND_EVERY_S
        while not self._is_over:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._heard or self._is_over, COUNT_EVERY_S)
                asked = self._asked
            try:
                self._count()
                if asked > self._heard or time.monotonic() >= send_at:
                    self._heard = asked
                    if self._deliver():
                        self._answer(asked)
                    send_at = time.monotonic() + (_pause_s(self._failures) or SEND_EVERY_S)
            except Exception:  # the thread has to live on
                log.exception("outcomes could not be added up")

    def _count(self) -> None:
        """Empty the queue."""
        events, lost, counting = self.queue.events, self.queue.lost, self._counting
        is_closing = self._is_closing
        for _ in range(len(events)):
            event = events.popleft()
            try:
                if isinstance(event, Began):
                    counting.began(event)
                else:
                    counting.ended(event)
            except Exception:
                log.exception("the outcome of a call could not be counted")
        for _ in range(len(lost)):
            counting.lost(lost.popleft())
        counting.close_users(math.inf if is_closing else self.queue.monotonic())

    def _deliver(self) -> bool:
        """Whether everything that was counted has been sent."""
        while True:
            if self._batch is None:
                tallies = self._counting.take()
                if not tallies:
                    return True
                self._batch = _Batch(self._next, tallies)
                self._next += len(tallies)
            if self._is_over or not self._sent(self._batch):
                return False
            self._batch = None

    def _sent(self, batch: _Batch) -> bool:
        """Whether the batch need not be sent any more."""
        try:
            self._send(batch.first, batch.tallies)
        except StoreUnavailable as error:
            self._warn(error)
        except Exception as error:  # noqa: BLE001  # whoever sends may do so by any means
            self._warn(error)
            self._refusals += 1
            if self._refusals >= REFUSALS_MAX:
                log.error("outcomes were refused %d times and are given up: %s", self._refusals, error)
                self._counting.give_up(batch.tallies)
                self._refusals = 0
                self._batch = None
        else:
            self._failures = self._refusals = 0
            return True
        self._failures += 1
        return False

    def _warn(self, error: Exception) -> None:
        level = logging.DEBUG if self._failures else logging.WARNING
        log.log(level, "outcomes cannot be delivered, and are kept meanwhile: %s", error)

    def _answer(self, asked: int) -> None:
        with self._changed:
            self._answered = asked
            self._changed.notify_all()


def _pause_s(failures: int) -> float:
    """How long to wait after so many failures, at random, so that not everybody comes back at once."""
    if not failures:
        return 0.0
    return min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0)


_alive: weakref.WeakSet[Outcomes] = weakref.WeakSet()


def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_S
    for each in list(_alive):
        each.close(max(0.0, deadline - time.monotonic()))


atexit.register(_at_exit)
