"""Sending what is due: a thread a channel, so that one that hangs holds up nobody else.

A delivery arrives at least once: who dies between sending and saying so has it sent again, under the same id.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from deploy_gates import clock
from deploy_gates.core.delivery import Delivery, Fate
from deploy_gates.core.errors import DeployGatesError
from deploy_gates.notify.settled import Telling
from deploy_gates.notify.web import SEND_S, Undelivered
from deploy_gates.store import CLAIM_TTL, Store

BATCH_MAX = 100
"""So many deliveries are claimed at a time."""
FIRST_RETRY_S = 5.0
RETRY_FACTOR = 3.0
RETRY_MAX_S = 3_600.0
"""With ten attempts the last one comes some four hours after the first."""
LACKING_S = 5.0
"""After so long at first a delivery is offered again that this process cannot send: another one may."""
LACKING_MAX = timedelta(days=1)
THREAD_MAX = 200
"""So many deliveries of a thread a sender may look back at."""
DEAD_MAX = 10_000
REQUESTS_MAX = 4
"""So many requests one delivery is given time for: what is claimed is sent early enough, or given back."""

log = logging.getLogger("deploy_gates")


def pause_s(attempts: int, retry_after_s: float, jitter: float) -> float:
    """How long to wait after so many failed attempts. `jitter`, 0 to 1, keeps apart who failed at once."""
    backoff = min(FIRST_RETRY_S * RETRY_FACTOR ** (max(attempts, 1) - 1), RETRY_MAX_S)
    return max(backoff * (0.5 + 0.5 * jitter), retry_after_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Courier:
    """Tries deliveries, one at a time, and has the store keep what came of each."""

    store: Store
    telling: Telling
    now: Callable[[], datetime] = clock.now
    jitter: Callable[[], float] = random.random

    def carry(self, delivery: Delivery) -> Delivery:
        """One try, and what has become of the delivery then."""
        tried = self._tried(delivery)
        self.store.settle(tried)
        return tried

    def give_back(self, delivery: Delivery) -> None:
        """It was not tried, for want of time: whoever claims it next may do so at once."""
        self.store.settle(replace(delivery, next_at=self.now()))

    def _tried(self, delivery: Delivery) -> Delivery:
        channel = self.telling.channel(delivery.channel)
        if channel is None or channel.sender is None:
            lacks = channel.lacks if channel else f"these settings know no channel {delivery.channel}"
            return self._left(delivery, lacks)
        attempts = delivery.attempts + 1
        try:
            external_id = channel.sender.send(delivery, lambda: self._thread(delivery))
        except Undelivered as error:
            return self._failed(replace(delivery, attempts=attempts, error=error.message), error)
        except DeployGatesError as error:  # the store is away: who would know what was sent before?
            return self._failed(replace(delivery, attempts=attempts, error=error.message), Undelivered(""))
        except Exception as error:  # noqa: BLE001  # an adapter's mistake: its text may hold anything
            said = f"sending it broke off: {type(error).__name__}"
            return self._failed(replace(delivery, attempts=attempts, error=said), Undelivered(""))
        return replace(
            delivery,
            state=Fate.DELIVERED,
            attempts=attempts,
            external_id=external_id or delivery.external_id,
            error="",
        )

    def _failed(self, delivery: Delivery, error: Undelivered) -> Delivery:
        if error.is_final or delivery.attempts >= self.telling.attempts:
            log.warning("%s is given up: %s", delivery.id, delivery.error)
            return replace(delivery, state=Fate.DEAD)
        wait_s = pause_s(delivery.attempts, error.retry_after_s, self.jitter())
        return replace(delivery, next_at=self.now() + timedelta(seconds=wait_s))

    def _left(self, delivery: Delivery, lacks: str) -> Delivery:
        """It was not tried. The longer nobody could, the more seldom it is offered."""
        age = self.now() - delivery.created_at
        if age > LACKING_MAX:
            return replace(delivery, state=Fate.DEAD, error=lacks)
        wait = max(timedelta(seconds=LACKING_S), age / 10)
        return replace(delivery, error=lacks, next_at=self.now() + wait)

    def _thread(self, delivery: Delivery) -> list[Delivery]:
        found = self.store.deliveries(thread=delivery.thread, channel=delivery.channel, limit=THREAD_MAX)
        return list(reversed(found))


class Lanes:
    """The threads that send, one a channel, begun when there is something to send."""

    def __init__(self, courier: Courier, on_sent: Callable[[], None] = lambda: None) -> None:
        self._courier = courier
        self._on_sent = on_sent
        self._changed = threading.Condition()
        self._queues: dict[str, queue.SimpleQueue[tuple[Delivery, float] | None]] = {}
        self._threads: list[threading.Thread] = []
        self._open = 0
        self.sent = 0
        """How many tries were made."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being sent, and nothing waits for it."""
        with self._changed:
            return self._open == 0

    def put(self, deliveries: tuple[Delivery, ...], claimed_at: float) -> None:
        """Have these sent, which were claimed at that moment of `time.monotonic()`."""
        for each in deliveries:
            with self._changed:
                if each.channel not in self._queues:
                    self._begin(each.channel)
                self._open += 1
                self._queues[each.channel].put((each, claimed_at))

    def wait(self, timeout_s: float) -> bool:
        """Whether everything was sent, or tried, within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Send nothing more. A request that hangs is left to its own deadline."""
        with self._changed:
            queues = list(self._queues.values())
        for each in queues:
            with contextlib.suppress(queue.Empty):
                while True:
                    each.get_nowait()
                    self._done()
            each.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _begin(self, channel: str) -> None:
        waiting: queue.SimpleQueue[tuple[Delivery, float] | None] = queue.SimpleQueue()
        self._queues[channel] = waiting
        thread = threading.Thread(target=self._run, args=(waiting,), name=f"notify {channel}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, waiting: queue.SimpleQueue[tuple[Delivery, float] | None]) -> None:
        while (item := waiting.get()) is not None:
            delivery, claimed_at = item
            try:
                left_s = CLAIM_TTL.total_seconds() - (time.monotonic() - claimed_at)
                if left_s > REQUESTS_MAX * SEND_S:
                    with self._changed:
                        self.sent += 1
                    self._courier.carry(delivery)
                elif left_s > SEND_S:
                    self._courier.give_back(delivery)
                # Else its claim has ended, or nearly so: it may be another sender's by now.
            except Exception as error:  # noqa: BLE001  # it is claimed no longer soon, and tried again
                log.debug("%s could not be settled: %s", delivery.id, type(error).__name__)
            finally:
                self._done()

    def _done(self) -> None:
        with self._changed:
            self._open -= 1
            self._changed.notify_all()
        self._on_sent()  # the next one of its thread is due now


def deliver(
    store: Store,
    telling: Telling,
    *,
    timeout_s: float = CLAIM_TTL.total_seconds(),
    claim: timedelta = CLAIM_TTL,
    now: Callable[[], datetime] = clock.now,
    jitter: Callable[[], float] = random.random,
) -> int:
    """Send what is due now, one try each, every channel at the same time; how many were tried."""
    lanes = Lanes(Courier(store=store, telling=telling, now=now, jitter=jitter))
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            claimed_at = time.monotonic()
            batch = store.due(limit=BATCH_MAX, claim=claim)
            if not batch:
                break
            lanes.put(batch, claimed_at)
            lanes.wait(deadline - time.monotonic())
    finally:
        lanes.close(1.0)
    return lanes.sent


def again(store: Store, id: str, *, now: Callable[[], datetime] = clock.now) -> Delivery | None:
    """Have a dead letter sent once more, as if it were new; `None` where there is none of that id."""
    dead = store.deliveries(state=Fate.DEAD.value, limit=DEAD_MAX)
    found = next((each for each in dead if each.id == id), None)
    if found is None:
        return None
    due = replace(found, state=Fate.DUE, attempts=0, next_at=now(), error="")
    store.settle(due)
    return due
