"""Tallies: what users got of one arm in five seconds, as sums that add up.

A client sends tallies and never single requests, a Prometheus query makes the same values, and the canary
analysis reads nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from deploy_gates.core.canonical import Json, JsonObject

BIN_MS = 5_000
"""How long a bin is: requests are counted where they began."""
GROWTH = 1.04
"""Each bucket of a histogram ends 4 % above where it begins."""
LOWEST, HIGHEST = -710, 710
"""Buckets reach from 1e-12 to 1e12; what lies outside is counted in the outermost."""
METRICS_MAX = 16
"""Further metrics a tally may carry."""
BINS_MAX = 1_500


class Arm(StrEnum):
    """Which of the two configs served a request."""

    BASELINE = "baseline"
    CANDIDATE = "candidate"


class Unit(StrEnum):
    """What is counted. Where the same user keeps the same arm, users are the unit, and not their requests."""

    REQUEST = "request"
    USER = "user"


def bucket_of(value: float) -> int:
    """The bucket of a positive number; zero and less lie in the lowest. `ValueError` for NaN."""
    if math.isnan(value):
        raise ValueError("NaN has no place in a histogram")
    if value <= 0:
        return LOWEST
    if math.isinf(value):
        return HIGHEST
    return min(max(math.floor(math.log(value) / math.log(GROWTH)), LOWEST), HIGHEST)


def edges(bucket: int) -> tuple[float, float]:
    """From where to where a bucket reaches."""
    return GROWTH**bucket, GROWTH ** (bucket + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """How many values lie in which bucket, and their sum, which the buckets alone know to 4 %."""

    counts: Mapping[int, int] = field(default_factory=dict)
    total: float = 0.0

    @property
    def n(self) -> int:
        return sum(self.counts.values())

    def __add__(self, other: Histogram) -> Histogram:
        counts = dict(self.counts)
        for bucket, count in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        return Histogram(counts=counts, total=self.total + other.total)

    @classmethod
    def of(cls, values: Iterable[float]) -> Histogram:
        """The histogram of some values."""
        counts: dict[int, int] = {}
        total = 0.0
        for value in values:
            bucket = bucket_of(value)
            counts[bucket] = counts.get(bucket, 0) + 1
            total += value
        return cls(counts=counts, total=total)

    def to_json(self) -> JsonObject:
        return {
            "counts": [[bucket, self.counts[bucket]] for bucket in sorted(self.counts)],
            "total": self.total,
        }

    @classmethod
    def from_json(cls, value: Json) -> Histogram:
        """The histogram written so. `ValueError` for anything else."""
        raw = _members(value, "counts", "total")
        pairs = raw["counts"]
        if not isinstance(pairs, list) or len(pairs) > BINS_MAX:
            raise ValueError("`counts` is no list of [bucket, count] of a sensible length")
        counts: dict[int, int] = {}
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError("`counts` holds something that is no [bucket, count]")
            bucket, count = _count(pair[0], "a bucket", LOWEST), _count(pair[1], "a count", 1)
            if bucket > HIGHEST or bucket in counts:
                raise ValueError(f"bucket {bucket} is given twice or does not exist")
            counts[bucket] = count
        return cls(counts=counts, total=_finite(raw["total"], "`total`"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What users got of one arm in one bin, as one client saw it."""

    config: str
    environment: str
    revision: int
    """The revision that was served: weights do not change within one, so no tally straddles a step."""
    arm: Arm
    start_ms: int
    """When the bin began, in milliseconds since 1970, UTC: a multiple of `BIN_MS`."""
    unit: Unit = Unit.REQUEST
    started: int = 0
    """Calls that began in this bin, counted when they begin: those that never came back are among them."""
    finished: int = 0
    """Calls of this bin that ended, well or badly."""
    errors: int = 0
    """Calls of this bin that ended badly."""
    latency_s: Histogram = Histogram()
    """Of calls that ended well."""
    cost_usd: Histogram = Histogram()
    """Of calls whose usage and price are known."""
    metrics: Mapping[str, Histogram] = field(default_factory=dict)
    """Further metrics; one that is true or false is counted as 1 and 0."""
    dropped: int = 0
    """Calls whose outcome was lost because memory is bounded: whoever judges must know."""

    @property
    def key(self) -> tuple[str, str, int, str, int, str]:
        """Tallies with the same key can be added."""
        return (self.config, self.environment, self.revision, self.arm.value, self.start_ms, self.unit.value)

    def __add__(self, other: Tally) -> Tally:
        if self.key != other.key:
            raise ValueError(f"tallies of {self.key} and {other.key} do not add up to anything")
        metrics = dict(self.metrics)
        for name, histogram in other.metrics.items():
            metrics[name] = metrics.get(name, Histogram()) + histogram
        return replace(
            self,
            started=self.started + other.started,
            finished=self.finished + other.finished,
            errors=self.errors + other.errors,
            latency_s=self.latency_s + other.latency_s,
            cost_usd=self.cost_usd + other.cost_usd,
            metrics=metrics,
            dropped=self.dropped + other.dropped,
        )

    def to_json(self) -> JsonObject:
        return {
            "config": self.config,
            "environment": self.environment,
            "revision": self.revision,
            "arm": self.arm.value,
            "start_ms": self.start_ms,
            "unit": self.unit.value,
            "started": self.started,
            "finished": self.finished,
            "errors": self.errors,
            "latency_s": self.latency_s.to_json(),
            "cost_usd": self.cost_usd.to_json(),
            "metrics": {name: each.to_json() for name, each in sorted(self.metrics.items())},
            "dropped": self.dropped,
        }

    @classmethod
    def from_json(cls, value: Json) -> Tally:
        """The tally written so. `ValueError`, in one sentence, for anything else."""
        raw = _members(value, *_FIELDS)
        metrics = raw["metrics"]
        if not isinstance(metrics, dict) or len(metrics) > METRICS_MAX:
            raise ValueError(f"`metrics` is no object with at most {METRICS_MAX} members")
        start_ms = _count(raw["start_ms"], "`start_ms`", 0)
        if start_ms % BIN_MS:
            raise ValueError(f"`start_ms` is no multiple of {BIN_MS}")
        return cls(
            config=_text(raw["config"], "`config`"),
            environment=_text(raw["environment"], "`environment`"),
            revision=_count(raw["revision"], "`revision`", 1),
            arm=Arm(_text(raw["arm"], "`arm`")),
            start_ms=start_ms,
            unit=Unit(_text(raw["unit"], "`unit`")),
            started=_count(raw["started"], "`started`", 0),
            finished=_count(raw["finished"], "`finished`", 0),
            errors=_count(raw["errors"], "`errors`", 0),
            latency_s=Histogram.from_json(raw["latency_s"]),
            cost_usd=Histogram.from_json(raw["cost_usd"]),
            metrics={_text(name, "a metric"): Histogram.from_json(each) for name, each in metrics.items()},
            dropped=_count(raw["dropped"], "`dropped`", 0),
        )


_FIELDS = (
    "config",
    "environment",
    "revision",
    "arm",
    "start_ms",
    "unit",
    "started",
    "finished",
    "errors",
    "latency_s",
    "cost_usd",
    "metrics",
    "dropped",
)
_TEXT_MAX = 200
_COUNT_MAX = 2**53


def _members(value: Json, *names: str) -> JsonObject:
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"an object with exactly these members is expected: {', '.join(names)}")
    return value


def _count(value: Json, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _COUNT_MAX:
        raise ValueError(f"{name} is no whole number from {least} on")
    return value


def _finite(value: Json, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is no finite number")
    return float(value)


def _text(value: Json, name: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _TEXT_MAX:
        raise ValueError(f"{name} is no text of 1 to {_TEXT_MAX} characters")
    return value
