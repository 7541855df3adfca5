"""Adds up what became of calls: from events to tallies, by request and, while a canary runs, by user.

A canary gives the same user the same arm. Requests of one user resemble each other, so then the user is the
unit: one value each, of what happened in the 20 seconds after the first request. Who was counted once is not
counted again in the same canary, because by then the arm is no surprise any more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from datetime import datetime
from enum import Enum, auto
from typing import NamedTuple

from deploy_gates.client.served import Served
from deploy_gates.core.cost import NANO
from deploy_gates.core.tally import BIN_MS, METRICS_MAX, Arm, Histogram, Tally, Unit, bucket_of

USER_S = 20.0
"""How long after the first request the value of a user is closed."""
USERS_PENDING_MAX = 20_000
"""Users whose value is not closed yet."""
USERS_SEEN_MAX = 100_000
"""Users that are remembered as counted."""
SUMS_MAX = 5_000
"""Tallies in the making; of more the oldest are given up."""
BUCKETS_MAX = 100_000
"""Buckets of all their histograms together: this is what takes the memory."""
BATCH_TALLIES_MAX = 200
BATCH_BUCKETS_MAX = 10_000
"""What is sent at once stays below a few hundred kilobytes."""
LEAST, GREATEST = 1e-12, 1e12
"""Values beyond are counted as these: the outermost buckets reach no further."""

log = logging.getLogger("deploy_gates")


class End(Enum):
    """How a call ended."""

    WELL = auto()
    BADLY = auto()
    ABANDONED = auto()
    """The caller gave it up, which says nothing of the config."""


class Began(NamedTuple):
    """A call has begun."""

    served: Served
    key: str | None
    at: datetime
    at_s: float
    """On the monotonic clock."""


class Ended(NamedTuple):
    """A call has ended."""

    began: Began
    at_s: float
    """On the monotonic clock."""
    end: End
    cost_nanousd: int | None
    scores: Mapping[str, float]


class Counting:
    """All that is not sent yet. Bounded: what does not fit is counted as dropped. Used by one thread."""

    def __init__(self) -> None:
        self._sums: dict[_Key, _Sum] = {}
        self._buckets = 0
        self._users: dict[tuple[str, int], _User] = {}
        self._canaries: dict[str, _Canary] = {}
        self._has_warned = False

    def began(self, event: Began) -> None:
        """Count a call that has begun."""
        served = event.served
        self._sum(served, _bin_ms(event.at), Unit.REQUEST).started += 1
        if served.canary and event.key is not None:
            self._user_began(event, event.key)
        elif not served.canary:
            ended = self._canaries.get(served.name)
            if ended is not None and ended.revision < served.revision:
                del self._canaries[served.name]

    def ended(self, event: Ended) -> None:
        """Count how a call ended that was counted when it began."""
        served, key, at, at_s = event.began
        total = self._sum(served, _bin_ms(at), Unit.REQUEST)
        total.finished += 1
        total.errors += event.end is End.BADLY
        latency_s = max(0.0, event.at_s - at_s)
        if event.end is End.WELL:
            self._add(total.latency_s, latency_s)
        if event.cost_nanousd is not None:
            self._add(total.cost_usd, event.cost_nanousd / NANO)
        for metric, value in event.scores.items():
            self._score(total, metric, value)
        if served.canary and key is not None:
            user = self._users.get((served.name, hash((served.canary, key))))
            if user is not None and user.takes(event):
                user.add(event, latency_s)
        self._bound()

    def lost(self, event: Began) -> None:
        """Count a call of which there was no room to keep what became of it."""
        self._sum(event.served, _bin_ms(event.at), Unit.REQUEST).dropped += 1

    def close_users(self, now_s: float) -> None:
        """Make values of the users whose time is over; of all where `now_s` is infinite."""
        while self._users:
            oldest, user = next(iter(self._users.items()))
            if user.closes_s > now_s:
                break
            del self._users[oldest]
            total = self._sum(user.served, user.start_ms, Unit.USER)
            total.finished += user.finished > 0
            total.errors += user.errors > 0
            if user.latency.n:
                self._add(total.latency_s, math.exp(user.latency.mean))
            if user.cost.n:
                self._add(total.cost_usd, math.exp(user.cost.mean))
            for metric, mean in user.metrics.items():
                self._score(total, metric, mean.mean)
        self._bound()

    def take(self) -> tuple[Tally, ...]:
        """The oldest tallies, as many as are sent at once; they are not kept here any longer."""
        taken: list[Tally] = []
        buckets = 0
        for key in list(self._sums)[:BATCH_TALLIES_MAX]:
            size = self._sums[key].buckets
            if taken and buckets + size > BATCH_BUCKETS_MAX:
                break
            buckets += size
            taken.append(self._sums.pop(key).tally(key))
        self._buckets -= buckets
        return tuple(taken)

    def give_up(self, tallies: tuple[Tally, ...]) -> None:
        """Tallies that cannot be sent were taken for nothing: what was in them is counted as dropped."""
        for each in tallies:
            key = _Key(each.config, each.environment, each.revision, each.arm, each.unit, each.start_ms)
            self._of(key).dropped += max(each.started, each.finished) + each.dropped

    def _sum(self, served: Served, start_ms: int, unit: Unit) -> _Sum:
        return self._of(_Key(served.name, served.environment, served.revision, served.arm, unit, start_ms))

    def _of(self, key: _Key) -> _Sum:
        found = self._sums.get(key)
        if found is None:
            found = self._sums[key] = _Sum()
        return found

    def _score(self, total: _Sum, metric: str, value: float) -> None:
        found = total.metrics.get(metric)
        if found is None:
            if len(total.metrics) >= METRICS_MAX:
                self._warn(f"no more than {METRICS_MAX} metrics are counted: {metric!r} is not")
                return
            found = total.metrics[metric] = _Counts()
        self._add(found, value)

    def _add(self, counts: _Counts, value: float) -> None:
        self._buckets += counts.add(value)

    def _warn(self, message: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("%s", message)

    def _bound(self) -> None:
        """Give up the oldest sums until the rest has room; a later one of that arm says how much it was."""
        while self._buckets > BUCKETS_MAX or len(self._sums) > SUMS_MAX:
            key, oldest = next(iter(self._sums.items()))
            del self._sums[key]
            self._buckets -= oldest.buckets
            heir = next((each for each in self._sums if each[:-1] == key[:-1]), None)
            if heir is not None:
                self._sums[heir].dropped += oldest.calls
            elif oldest.started or oldest.finished:
                self._of(key).dropped = oldest.calls
            else:
                self._warn("so many outcomes were dropped that not even their number could be kept")

    # --- Users ----------------------------------------------------------------------------------

    def _user_began(self, event: Began, key: str) -> None:
        served = event.served
        user = hash((served.canary, key))
        if (served.name, user) in self._users:
            return
        canary = self._canaries.get(served.name)
        if canary is None or (canary.salt != served.canary and canary.revision < served.revision):
            canary = self._canaries[served.name] = _Canary(served.canary)
        canary.revision = max(canary.revision, served.revision)
        if user in canary.seen:
            return
        total = self._sum(served, _bin_ms(event.at), Unit.USER)
        seen = sum(len(each.seen) for each in self._canaries.values())
        is_late = canary.salt != served.canary
        if is_late or seen >= USERS_SEEN_MAX or len(self._users) >= USERS_PENDING_MAX:
            total.dropped += 1
            return
        canary.seen.add(user)
        total.started += 1
        self._users[served.name, user] = _User(served, _bin_ms(event.at), event.at_s + USER_S)


class _Key(NamedTuple):
    """What a tally is of. When it began comes last: the rest is its series."""

    config: str
    environment: str
    revision: int
    arm: Arm
    unit: Unit
    start_ms: int


class _Counts:
    """A histogram in the making."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0.0

    def add(self, value: float) -> int:
        """Count a value; how many buckets that made."""
        value = min(max(value, -GREATEST), GREATEST)
        bucket, before = bucket_of(value), len(self.counts)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.total += value
        return len(self.counts) - before

    def histogram(self) -> Histogram:
        """What was counted."""
        return Histogram(counts=self.counts, total=self.total)


class _Sum:
    """A tally in the making."""

    __slots__ = ("cost_usd", "dropped", "errors", "finished", "latency_s", "metrics", "started")

    def __init__(self) -> None:
        self.started = self.finished = self.errors = self.dropped = 0
        self.latency_s = _Counts()
        self.cost_usd = _Counts()
        self.metrics: dict[str, _Counts] = {}

    @property
    def buckets(self) -> int:
        return sum(len(each.counts) for each in (self.latency_s, self.cost_usd, *self.metrics.values()))

    @property
    def calls(self) -> int:
        """How many are lost with it."""
        return max(self.started, self.finished) + self.dropped

    def tally(self, key: _Key) -> Tally:
        """What was counted."""
        return Tally(
            config=key.config,
            environment=key.environment,
            revision=key.revision,
            arm=key.arm,
            start_ms=key.start_ms,
            unit=key.unit,
            started=self.started,
            finished=self.finished,
            errors=self.errors,
            latency_s=self.latency_s.histogram(),
            cost_usd=self.cost_usd.histogram(),
            metrics={name: each.histogram() for name, each in self.metrics.items()},
            dropped=self.dropped,
        )


class _Canary:
    """Who was counted in a canary; it lives through all of its steps."""

    __slots__ = ("revision", "salt", "seen")

    def __init__(self, salt: str) -> None:
        self.salt = salt
        self.revision = 0
        self.seen: set[int] = set()


class _Mean:
    """A mean in the making."""

    __slots__ = ("n", "total")

    def __init__(self) -> None:
        self.n = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.n += 1
        self.total += value

    @property
    def mean(self) -> float:
        return self.total / self.n


class _User:
    """One user, from the first request until the value is closed."""

    __slots__ = ("closes_s", "cost", "errors", "finished", "latency", "metrics", "served", "start_ms")

    def __init__(self, served: Served, start_ms: int, closes_s: float) -> None:
        self.served = served
        self.start_ms = start_ms
        self.closes_s = closes_s
        self.finished = self.errors = 0
        self.latency = _Mean()
        """Of logarithms."""
        self.cost = _Mean()
        """Of logarithms."""
        self.metrics: dict[str, _Mean] = {}

    def takes(self, event: Ended) -> bool:
        """Whether the call is of the same arm and came to its end in time."""
        return event.began.served.arm is self.served.arm and event.at_s <= self.closes_s

    def add(self, event: Ended, latency_s: float) -> None:
        """Count a call."""
        self.finished += 1
        self.errors += event.end is End.BADLY
        if event.end is End.WELL:
            self.latency.add(math.log(max(latency_s, LEAST)))
        if event.cost_nanousd is not None:
            self.cost.add(math.log(max(event.cost_nanousd / NANO, LEAST)))
        for metric, value in event.scores.items():
            if metric in self.metrics or len(self.metrics) < METRICS_MAX:
                self.metrics.setdefault(metric, _Mean()).add(value)


def _bin_ms(at: datetime) -> int:
    at_ms = int(at.timestamp() * 1000)
    return max(0, at_ms - at_ms % BIN_MS)
