"""The words of a canary: what was planned, what each metric says so far, and what to do about it.

`weigh()` in `weighing` makes a `Decision` of a `Plan` and `Tally`s. A ratio is how many times worse the
candidate is, so that above one is worse for every metric, whichever way the metric itself points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.errors import SettingsError
from deploy_gates.core.tally import BIN_MS, Unit

ERRORS, LATENCY, COST = "errors", "latency", "cost"
"""The metrics every canary has; further ones are those that clients `score()`."""


class Kind(StrEnum):
    """What one value of a metric is."""

    SHARE = "share"
    """True or false: what counts is how often."""
    AMOUNT = "amount"
    """A positive number."""


class Better(StrEnum):
    """Which way a metric gets better."""

    LOWER = "lower"
    HIGHER = "higher"


class Aspect(StrEnum):
    """What of a metric is compared."""

    RATE = "rate"
    """How often, of a share."""
    SHAPE = "shape"
    """The whole law of an amount: all values scaled."""
    P50 = "p50"
    P95 = "p95"
    P99 = "p99"
    TAIL = "tail"
    """Few values that are much worse."""
    MEAN = "mean"


class Word(StrEnum):
    """An interval inside, across, or beyond the margin."""

    SAFE = "safe"
    UNDECIDED = "undecided"
    HARMFUL = "harmful"


class Action(StrEnum):
    """What to do now."""

    CONTINUE = "continue"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    HOLD = "hold"
    """Traffic stays where it is: something is missing, or a person decides."""


class Inconclusive(StrEnum):
    """What to do at the mark when nothing is proved."""

    EXTEND = "extend"
    HOLD = "hold"
    ROLLBACK = "rollback"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric of a plan, and how much worse still counts as no worse."""

    name: str
    kind: Kind
    better: Better = Better.LOWER
    margin_ratio: float | None = None
    """So many times worse is refused: promotion proves less. For a share, of the odds of the bad outcome."""
    margin_pt: float | None = None
    """The same of a share in percentage points. With both, the larger counts: twice as often as hardly ever
    is no harm, and could not be told from it."""
    tail_ratio: float = 1.49
    """`margin_ratio` of the 99th percentile of an amount."""
    rollback_ratio: float = 1.0
    """Proved to be worse by more than this many times is rolled back; 1: any proved worsening."""
    weight: float = 1.0
    """Its part of the false-rollback rate, relative to the other metrics."""
    dry_run: bool = False
    """Shown and not judged."""
    warm_up: bool = True
    """Whether the first `Plan.warm_up_s` are left out."""
    proofs: tuple[Aspect, ...] = (Aspect.RATE,)
    """What has to be proved no worse than the margin before promotion."""


DEFAULT_METRICS = (
    Metric(name=ERRORS, kind=Kind.SHARE, margin_ratio=2.0, margin_pt=0.5, warm_up=False),
    Metric(
        name=LATENCY,
        kind=Kind.AMOUNT,
        margin_ratio=1.22,
        proofs=(Aspect.SHAPE, Aspect.P95, Aspect.P99),
    ),
    Metric(name=COST, kind=Kind.AMOUNT, margin_ratio=1.22, proofs=(Aspect.SHAPE,)),
)


def declared_metric(name: str, kind: Kind) -> Metric:
    """A further metric, as it is judged unless its team says otherwise."""
    if kind is Kind.SHARE:
        return Metric(name=name, kind=kind, margin_ratio=1.5, warm_up=False)
    return Metric(name=name, kind=kind, margin_ratio=1.22, proofs=(Aspect.SHAPE,))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is declared before a canary starts. What it is judged by does not change once it has begun."""

    metrics: tuple[Metric, ...] = DEFAULT_METRICS
    unit: Unit = Unit.REQUEST
    false_rollback: float = 0.01
    """How often a candidate that is no worse is rolled back: over all metrics and all looks."""
    false_promotion: float = 0.05
    """How often a candidate that is worse by the margin of a metric is promoted."""
    confidence: float = 0.95
    """Of each confidence sequence, at all times together."""
    mark_s: float = 300.0
    """When the fixed tests are run and the canary is to have ended."""
    extensions: int = 2
    """How often an undecided canary goes on for as long again."""
    on_inconclusive: Inconclusive = Inconclusive.EXTEND
    then: Inconclusive = Inconclusive.ROLLBACK
    """What happens after the last extension: hold or rollback."""
    warm_up_s: float = 30.0
    missing_bins: int = 3
    """So many bins without one request of the candidate hold the canary."""
    missing_limit_s: float = 120.0
    """After so long without a request of the candidate, it is rolled back."""
    limit_errors: int = 5
    """The hard limit: this many errors ..."""
    limit_requests: int = 10
    """... among so many first requests of the candidate roll it back, whatever statistics say."""
    share: float | None = None
    """The share of traffic that the candidate is to get; `None`: unknown, and not checked."""
    shares: Mapping[int, float] = field(default_factory=dict)
    """The share by revision, where it changed under way."""

    @property
    def judged(self) -> tuple[Metric, ...]:
        """The metrics that decide."""
        return tuple(each for each in self.metrics if not each.dry_run)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What is known of one aspect of one metric, after one look."""

    metric: str
    aspect: Aspect
    kind: Kind
    better: Better
    baseline: float | None
    """The estimate of the baseline in the metric's own unit (a share from 0 to 1); `None`: no data."""
    candidate: float | None
    ratio: float | None
    """How many times worse the candidate is, as estimated."""
    low: float | None
    """The confidence sequence of `ratio`: it is at least this; `None`: not bounded yet."""
    high: float | None
    margin_ratio: float | None
    """The ratio that promotion has to exclude; `None`: this aspect is shown and not proved."""
    log_e_harm: float
    """The natural logarithm of the e-value against "no worse"."""
    log_e_safe: float
    """The natural logarithm of the e-value against "worse by the margin"."""
    word: Word
    seen_baseline: int
    """Units of the baseline judged so far, the warm-up left out."""
    seen_candidate: int
    needed: int | None
    """About so many more of the candidate would decide; `None`: decided, or nobody can say."""
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Arms:
    """How much both arms got."""

    baseline: int = 0
    candidate: int = 0
    unfinished: int = 0
    """Requests of the candidate that never came back, counted as errors."""
    dropped: int = 0
    excluded: int = 0
    """Units of the candidate in the warm-up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What to do after one look, and everything it rests on."""

    plan: Plan
    action: Action
    reason: str
    """One sentence, for people."""
    cause: tuple[str, ...]
    """The metrics, as `latency` or `latency.tail`, that decided a rollback, the strongest first."""
    at_ms: int
    """The end of the last bin that was judged."""
    started_ms: int | None
    """The beginning of the first bin with a request of the candidate."""
    readings: tuple[Reading, ...]
    arms: Arms
    log_e: float
    """The e-value of the family, as a natural logarithm: the weighted mean of the metrics."""
    log_e_limit: float
    """At this, the candidate is rolled back."""
    log_e_proof: float
    """At this, a metric is proved to be safe."""
    log_e_split: float
    """The e-value against the declared share of traffic."""
    next_mark_s: float | None
    """When the fixed tests come next, in seconds since the start; `None`: no more."""
    marks: int
    """How many marks have passed."""
    needed: int | None
    """About so many more requests of the candidate would decide the slowest metric."""
    missing: tuple[str, ...]
    """What is missing, a clause each."""
    sums: object = field(repr=False, compare=False)
    """Everything the next look needs to know of this one: `weighing.Sums`, which nobody else reads."""

    @property
    def elapsed_s(self) -> float:
        """Since the start of the canary."""
        return 0.0 if self.started_ms is None else (self.at_ms - self.started_ms) / 1000

    @property
    def has_ended(self) -> bool:
        """Whether another look could change nothing."""
        return self.action in (Action.PROMOTE, Action.ROLLBACK)

    def reading(self, metric: str, aspect: Aspect | None = None) -> Reading:
        """One reading; without an aspect, the first of the metric, which speaks for it. `KeyError`."""
        for each in self.readings:
            if each.metric == metric and aspect in (None, each.aspect):
                return each
        raise KeyError(f"{metric}.{aspect}")

    def to_json(self) -> JsonObject:
        """Everything but the sums."""
        return {
            "action": self.action.value,
            "reason": self.reason,
            "cause": list(self.cause),
            "at_s": self.elapsed_s,
            "at_ms": self.at_ms,
            "started_ms": self.started_ms,
            "arms": {
                "baseline": self.arms.baseline,
                "candidate": self.arms.candidate,
                "unfinished": self.arms.unfinished,
                "dropped": self.arms.dropped,
                "excluded": self.arms.excluded,
            },
            "log10_e": _log10(self.log_e),
            "log10_e_limit": _log10(self.log_e_limit),
            "log10_e_split": _log10(self.log_e_split),
            "next_mark_s": self.next_mark_s,
            "needed": self.needed,
            "missing": list(self.missing),
            "metrics": [_reading(each) for each in self.readings],
        }


def _reading(reading: Reading) -> Json:
    return {
        "metric": reading.metric,
        "aspect": reading.aspect.value,
        "baseline": reading.baseline,
        "candidate": reading.candidate,
        "ratio": reading.ratio,
        "low": reading.low,
        "high": reading.high,
        "margin_ratio": reading.margin_ratio,
        "log10_e_harm": _log10(reading.log_e_harm),
        "log10_e_safe": _log10(reading.log_e_safe),
        "word": reading.word.value,
        "seen": {"baseline": reading.seen_baseline, "candidate": reading.seen_candidate},
        "needed": reading.needed,
        "dry_run": reading.dry_run,
    }


def _log10(natural: float) -> float:
    return round(natural / math.log(10), 4)


def checked(plan: Plan) -> Plan:
    """The plan, if it makes sense. `SettingsError`, in one sentence, if it does not."""
    names = [each.name for each in plan.metrics]
    wrong = [
        (len(set(names)) < len(names), "a metric is planned twice"),
        (not plan.judged, "every metric is a dry run: nothing would be judged"),
        (not 0 < plan.false_rollback <= 0.2, "`false_rollback` lies outside 0 to 0.2"),
        (not 0 < plan.false_promotion <= 0.2, "`false_promotion` lies outside 0 to 0.2"),
        (not 0.5 <= plan.confidence < 1, "`confidence` lies outside 0.5 to 1"),
        (not BIN_MS / 1000 <= plan.mark_s <= 86_400, "`mark_s` lies outside 5 s to a day"),
        (not 0 <= plan.warm_up_s < plan.mark_s, "`warm_up_s` does not end before `mark_s`"),
        (plan.then is Inconclusive.EXTEND, "`then` says what follows the last extension: hold or rollback"),
        (not 0 <= plan.extensions <= 20, "`extensions` lies outside 0 to 20"),
        (not 1 <= plan.limit_errors <= plan.limit_requests <= 1000, "`limit_errors` of `limit_requests`"),
        (any(not 0 < each < 1 for each in (plan.share, *plan.shares.values()) if each), "`share`"),
    ]
    wrong += [(bad, f"metric {each.name}: {why}") for each in plan.metrics for bad, why in _wrong(each)]
    for bad, why in wrong:
        if bad:
            raise SettingsError(f"this canary cannot be planned: {why}")
    return plan


def _wrong(metric: Metric) -> list[tuple[bool, str]]:
    ratio, points = metric.margin_ratio, metric.margin_pt
    return [
        (ratio is None and points is None, "give `margin_ratio` or `margin_pt`"),
        (points is not None and metric.kind is Kind.AMOUNT, "`margin_pt` is for shares"),
        (points is not None and not 0 < points < 100, "`margin_pt` lies outside 0 to 100"),
        (ratio is not None and not 1 < ratio <= 100, "`margin_ratio` is above 1: 1.22 is 22 % worse"),
        (not 1 < metric.tail_ratio <= 100, "`tail_ratio` is above 1"),
        (not 1 <= metric.rollback_ratio <= 100, "`rollback_ratio` is 1 or more"),
        (
            ratio is not None and metric.rollback_ratio > ratio,
            "`rollback_ratio` lies above `margin_ratio`: what is refused would never be rolled back",
        ),
        (not metric.weight > 0 or math.isinf(metric.weight), "`weight` is a positive number"),
    ]
