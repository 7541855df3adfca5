"""Pairs: the same prompt answered by both configs, compared pair by pair with the prompt's own share removed.

Everything here holds at any number of pairs, however often one looks. Under "no difference" both answers of a
pair could as well be swapped, and that is all that is assumed: of the errors of a pair, of its latencies, and
of its costs, whatever their laws are and however they change from pair to pair.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deploy_gates.core.canary import COST, ERRORS, LATENCY, Action, Kind, Metric, Plan, Word
from deploy_gates.core.canonical import Json, JsonObject

ERRORS_MARGIN_PT = 3.0
"""So many more failures in a hundred are refused, where the plan gives errors no margin in points: of prompts
that hardly ever fail, no ratio of errors can be proved."""
TRIVIAL_RATIO = 1.05
"""So little worse is no harm: with the same prompt on both sides, one word more in it is proved to cost."""
FAILING = (0.55, 0.65, 0.8, 0.95)
"""How often it is the candidate that fails, where one of both does: the alternatives that are bet on."""
STAKES = (0.05, 0.2, 0.5, 0.9)
"""Parts of the largest bet on a difference of failures that cannot be lost altogether."""
TILTS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""How steeply a log-ratio counts, per scale."""
SCALE_FIRST, SCALE_LEAST = 0.3, 0.01
"""The scale of log-ratios before there are any, and the least it is taken to be."""
SCALE_PAIRS = 8
"""So many pairs make a scale."""
LOOK_GROWTH = 1.1
"""Intervals are worked out anew when there are so many times more pairs: evidence is with every pair."""
RATIO_MAX = 1_000.0
STEPS = 40
"""Of the bisection that finds a bound,"""
FINE = 5e-4
"""which ends when it is so near."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """What became of one prompt with one config."""

    error: bool
    latency_s: float | None = None
    """`None` for an error: what fails fast is not fast."""
    cost_usd: float | None = None

    def to_json(self) -> JsonObject:
        return {"error": self.error, "latency_s": self.latency_s, "cost": self.cost_usd}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The same prompt, answered by both."""

    id: str
    baseline: Answered
    candidate: Answered

    def to_json(self) -> JsonObject:
        return {"id": self.id, "baseline": self.baseline.to_json(), "candidate": self.candidate.to_json()}

    @classmethod
    def from_json(cls, value: Json) -> Pair:
        """The pair written so. `ValueError`, in one sentence, for anything else."""
        raw = _members(value, "a pair", {"id", "baseline", "candidate"}, {"id", "baseline", "candidate"})
        if not isinstance(raw["id"], str) or not raw["id"]:
            raise ValueError("`id` is no text")
        return cls(
            id=raw["id"],
            baseline=_answered(raw["baseline"], "baseline"),
            candidate=_answered(raw["candidate"], "candidate"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What the pairs say of one metric."""

    metric: str
    kind: Kind
    pairs: int
    """Pairs in which both have a value."""
    baseline: float | None
    """How often it failed, or its median."""
    candidate: float | None
    change: float | None
    """Of a share, the difference (0.01: one more in a hundred); of an amount, the median ratio."""
    low: float | None
    """The confidence sequence of `change`, at all times together; `None`: not bounded yet."""
    high: float | None
    margin: float
    """What `change` has to stay below."""
    log_e_harm: float
    log_e_safe: float
    word: Word
    needed: int | None
    """About so many more pairs would decide; `None`: decided, or nobody can say."""
    dry_run: bool = False

    def to_json(self) -> JsonObject:
        return {
            "metric": self.metric,
            "kind": self.kind.value,
            "pairs": self.pairs,
            "baseline": self.baseline,
            "candidate": self.candidate,
            "change": self.change,
            "low": self.low,
            "high": self.high,
            "margin": self.margin,
            "log10_e_harm": _log10(self.log_e_harm),
            "log10_e_safe": _log10(self.log_e_safe),
            "word": self.word.value,
            "needed": self.needed,
            "dry_run": self.dry_run,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What all pairs so far say, and whether more are needed."""

    action: Action
    """Promote, roll back, or go on."""
    reason: str
    cause: tuple[str, ...]
    pairs: int
    comparisons: tuple[Comparison, ...]
    log_e: float
    log_e_limit: float
    log_e_proof: float
    needed: int | None
    missing: tuple[str, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether more pairs would change nothing."""
        return self.action in (Action.PROMOTE, Action.ROLLBACK)

    def to_json(self) -> JsonObject:
        return {
            "action": self.action.value,
            "reason": self.reason,
            "cause": list(self.cause),
            "pairs": self.pairs,
            "log10_e": _log10(self.log_e),
            "log10_e_limit": _log10(self.log_e_limit),
            "log10_e_proof": _log10(self.log_e_proof),
            "needed": self.needed,
            "missing": list(self.missing),
            "metrics": [each.to_json() for each in self.comparisons],
        }


class Pairing:
    """Adds up pairs, one after the other; what it found stays found."""

    def __init__(self, plan: Plan) -> None:
        """Judges errors, latency and cost by `plan`; its further metrics are none that pairs have."""
        self.pairs = 0
        self._plan = plan
        self._judged: dict[str, _Errors | _Amounts] = {}
        alpha = 1 - plan.confidence
        for metric in plan.metrics:
            if metric.name == ERRORS:
                self._judged[metric.name] = _Errors(metric, alpha)
            elif metric.name in (LATENCY, COST):
                self._judged[metric.name] = _Amounts(metric, alpha)
        self._found: Finding | None = None

    def add(self, pair: Pair) -> Finding:
        """Take one pair more into account. Once decided, the finding stays as it is."""
        if self._found is not None and self._found.has_ended:
            return self._found
        self.pairs += 1
        before, now = pair.baseline, pair.candidate
        for name, sums in self._judged.items():
            if isinstance(sums, _Errors):
                sums.add(before.error, now.error)
            elif not before.error and not now.error:
                values = (
                    (before.latency_s, now.latency_s) if name == LATENCY else (before.cost_usd, now.cost_usd)
                )
                sums.add(*values)
        self._found = self._finding()
        return self._found

    def finding(self) -> Finding:
        """What the pairs so far say."""
        return self._found or self._finding()

    def _finding(self) -> Finding:
        plan = self._plan
        limit, proof = -math.log(plan.false_rollback), -math.log(plan.false_promotion)
        judged = {name: each for name, each in self._judged.items() if not each.metric.dry_run}
        whole = sum(each.metric.weight for each in judged.values()) or 1.0
        weights = {name: each.metric.weight / whole for name, each in judged.items()}
        log_e = _log_sum([math.log(weights[name]) + each.log_e_harm for name, each in judged.items()])
        alone = {name: limit - math.log(weights[name]) if name in weights else limit for name in self._judged}
        compared = tuple(each.comparison(alone[name], proof) for name, each in self._judged.items())
        decisive = [each for each in compared if not each.dry_run]
        missing = tuple(
            f"no pair has a {each.metric} of both" for each in decisive if self.pairs and not each.pairs
        )
        needed = [each.needed for each in decisive if each.word is Word.UNDECIDED]
        action, reason, cause = _verdict(decisive, log_e, limit, missing)
        return Finding(
            action=action,
            reason=reason,
            cause=cause,
            pairs=self.pairs,
            comparisons=compared,
            log_e=log_e,
            log_e_limit=limit,
            log_e_proof=proof,
            needed=max((each for each in needed if each is not None), default=None) if all(needed) else None,
            missing=missing,
        )


def _verdict(
    judged: Sequence[Comparison], log_e: float, limit: float, missing: Sequence[str]
) -> tuple[Action, str, tuple[str, ...]]:
    if log_e >= limit:
        worst = sorted(judged, key=lambda each: -each.log_e_harm)
        harmful = [each.metric for each in worst if each.word is Word.HARMFUL]
        cause = tuple(harmful or [worst[0].metric])
        odds = f"{math.exp(min(log_e, 40)):,.0f}"
        return Action.ROLLBACK, f"{cause[0]} is worse, proved {odds} to 1", cause
    if missing:
        return Action.CONTINUE, "; ".join(missing), ()
    undecided = [each.metric for each in judged if each.word is not Word.SAFE]
    if judged and not undecided:
        return Action.PROMOTE, "every metric is proved to be no worse than its margin", ()
    return Action.CONTINUE, f"undecided: {', '.join(undecided)}", ()


# --- Errors --------------------------------------------------------------------------------------


class _Errors:
    """Which of both fails where one of them does, and how often that is."""

    def __init__(self, metric: Metric, alpha: float) -> None:
        self.metric = metric
        self.log_e_safe = 0.0
        points = metric.margin_pt if metric.margin_ratio is None else None
        self._margin = (points or ERRORS_MARGIN_PT) / 100
        self._limit = math.log(2 / alpha)
        self._only = {-1: 0, 0: 0, 1: 0}
        """Pairs in which the baseline alone failed, both or none did, the candidate alone failed."""
        self._failed = [0, 0]
        self._bounds = _Bounds(-1.0, 1.0)
        self._best_safe = 0.0

    @property
    def n(self) -> int:
        return sum(self._only.values())

    @property
    def log_e_harm(self) -> float:
        """Against "where only one fails, it is the candidate at most as often"."""
        odds = self.metric.rollback_ratio
        null = odds / (1 + odds)
        return _log_mean(
            [
                self._only[1] * math.log(more / null) + self._only[-1] * math.log((1 - more) / (1 - null))
                for more in (null + (each - 0.5) * 2 * (1 - null) for each in FAILING)
            ]
        )

    def add(self, before: bool, now: bool) -> None:
        """Take into account which of both failed."""
        self._only[int(now) - int(before)] += 1
        self._failed[0] += before
        self._failed[1] += now
        self.log_e_safe = self._log_e_less(self._margin)
        self._best_safe = max(self._best_safe, self.log_e_safe)
        self._bounds.tighten(self.n, self._log_e_more, self._log_e_less, self._limit)

    def _log_e_more(self, difference: float) -> float:
        """Against "the difference is at most this"."""
        return self._log_bet(difference, sign=1)

    def _log_e_less(self, difference: float) -> float:
        """Against "the difference is at least this"."""
        return self._log_bet(-difference, sign=-1)

    def _log_bet(self, difference: float, sign: int) -> float:
        whole = 1 + difference
        if whole <= 0:
            return math.inf if any(self._only[sign * each] for each in (0, 1)) else 0.0
        return _log_mean(
            [
                sum(
                    count * math.log(max(1 + stake * (sign * each - difference) / whole, 1e-300))
                    for each, count in self._only.items()
                    if count
                )
                for stake in STAKES
            ]
        )

    def comparison(self, limit: float, proof: float) -> Comparison:
        n = self.n
        return Comparison(
            metric=self.metric.name,
            kind=Kind.SHARE,
            pairs=n,
            baseline=self._failed[0] / n if n else None,
            candidate=self._failed[1] / n if n else None,
            change=(self._failed[1] - self._failed[0]) / n if n else None,
            low=self._bounds.low if self._bounds.low > -1 else None,
            high=self._bounds.high if self._bounds.high < 1 else None,
            margin=self._margin,
            log_e_harm=self.log_e_harm,
            log_e_safe=self._best_safe,
            word=_word(self.log_e_harm, self._best_safe, limit, proof),
            needed=_needed(n, self.log_e_harm, self.log_e_safe, self._best_safe, limit, proof),
            dry_run=self.metric.dry_run,
        )


# --- Latency and cost ----------------------------------------------------------------------------


class _Amounts:
    """The logarithm of how many times more the candidate took, pair by pair."""

    def __init__(self, metric: Metric, alpha: float) -> None:
        self.metric = metric
        self._margin = metric.margin_ratio or 1.0
        self._limit = math.log(2 / alpha)
        self._ratios: list[float] = []
        self._scales: list[float] = []
        """Of each pair, from the pairs before it."""
        self._sorted: list[float] = []
        self._values: tuple[list[float], list[float]] = ([], [])
        self._harm = [0.0] * len(TILTS)
        self._safe = [0.0] * len(TILTS)
        self._best_safe = 0.0
        self._bounds = _Bounds(-math.log(RATIO_MAX), math.log(RATIO_MAX))

    @property
    def log_e_harm(self) -> float:
        """Against "no more than `rollback_ratio` times as much"."""
        return _log_mean(self._harm)

    def add(self, before: float | None, now: float | None) -> None:
        """Take into account what both took, where both are known; nothing against something is no ratio."""
        if before is None or now is None or (min(before, now) <= 0 and before != now):
            return
        ratio, scale = math.log(now / before) if before != now else 0.0, self._scale()
        harm = math.log(max(self.metric.rollback_ratio, TRIVIAL_RATIO))
        for at, tilt in enumerate(TILTS):
            self._harm[at] += _log_swapped(tilt * (ratio - harm) / scale)
            self._safe[at] += _log_swapped(tilt * (math.log(self._margin) - ratio) / scale)
        self._ratios.append(ratio)
        self._scales.append(scale)
        insort(self._sorted, ratio)
        for kept, value in zip(self._values, (before, now), strict=True):
            insort(kept, value)
        self._best_safe = max(self._best_safe, _log_mean(self._safe))
        self._bounds.tighten(len(self._ratios), self._log_e_more, self._log_e_less, self._limit)

    def _scale(self) -> float:
        """How far apart log-ratios lie: half their interquartile range, of the pairs before only."""
        n = len(self._sorted)
        if n < SCALE_PAIRS:
            return SCALE_FIRST
        return max((self._sorted[(3 * n) // 4] - self._sorted[n // 4]) / 2, SCALE_LEAST)

    def _log_e_more(self, shift: float) -> float:
        return self._log_e(shift, 1)

    def _log_e_less(self, shift: float) -> float:
        return self._log_e(shift, -1)

    def _log_e(self, shift: float, sign: int) -> float:
        scaled = [
            sign * (ratio - shift) / scale for ratio, scale in zip(self._ratios, self._scales, strict=True)
        ]
        return _log_mean([sum(_log_swapped(tilt * each) for each in scaled) for tilt in TILTS])

    def comparison(self, limit: float, proof: float) -> Comparison:
        n, edge = len(self._ratios), math.log(RATIO_MAX)
        safe = _log_mean(self._safe)
        low, high = self._bounds.low, self._bounds.high
        return Comparison(
            metric=self.metric.name,
            kind=Kind.AMOUNT,
            pairs=n,
            baseline=_median(self._values[0]),
            candidate=_median(self._values[1]),
            change=math.exp(_median(self._sorted) or 0.0) if n else None,
            low=math.exp(low) if low > -edge else None,
            high=math.exp(high) if high < edge else None,
            margin=self._margin,
            log_e_harm=self.log_e_harm,
            log_e_safe=self._best_safe,
            word=_word(self.log_e_harm, self._best_safe, limit, proof),
            needed=_needed(n, self.log_e_harm, safe, self._best_safe, limit, proof),
            dry_run=self.metric.dry_run,
        )


def _log_swapped(x: float) -> float:
    """log(exp(x) / cosh(x)): on average at most 1 before the log, where x could as well be -x, or is less."""
    return math.log(2) - (math.log1p(math.exp(-2 * x)) if x > -300 else -2 * x)


# --- What both have in common --------------------------------------------------------------------


class _Bounds:
    """A confidence sequence: what it has excluded once stays excluded."""

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high
        self._next = 1.0

    def tighten(
        self, n: int, more: Callable[[float], float], less: Callable[[float], float], limit: float
    ) -> None:
        """Exclude what is refuted by now: `more(x)` falls with x and refutes all below, `less` the others."""
        if n < self._next:
            return
        self._next = max(n + 1.0, n * LOOK_GROWTH)
        if more(self.low) >= limit:
            self.low = _bisected(self.low, self.high, lambda x: more(x) >= limit)
        if less(self.high) >= limit:
            self.high = _bisected(self.high, self.low, lambda x: less(x) >= limit)


def _bisected(refuted: float, other: float, is_refuted: Callable[[float], bool]) -> float:
    """The end of what is refuted, from its side; `other` is beyond it."""
    for _ in range(STEPS):
        if abs(other - refuted) < FINE:
            break
        middle = (refuted + other) / 2
        if is_refuted(middle):
            refuted = middle
        else:
            other = middle
    return refuted


def _word(harm: float, safe: float, limit: float, proof: float) -> Word:
    if harm >= limit:
        return Word.HARMFUL
    return Word.SAFE if safe >= proof else Word.UNDECIDED


def _needed(n: int, harm: float, safe: float, best_safe: float, limit: float, proof: float) -> int | None:
    """About so many more, if evidence goes on to grow as it has so far."""
    if harm >= limit or best_safe >= proof:
        return None
    found = [
        math.ceil((goal - have) * n / have) for have, goal in ((harm, limit), (safe, proof)) if have > 0.5
    ]
    return min(found, default=None)


def _median(ordered: Sequence[float]) -> float | None:
    if not ordered:
        return None
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs, default=-math.inf)
    if math.isinf(top):
        return top
    return top + math.log(sum(math.exp(each - top) for each in logs))


def _log_mean(logs: Sequence[float]) -> float:
    return _log_sum(logs) - math.log(len(logs))


def _log10(natural: float) -> float:
    return round(natural / math.log(10), 4)


# --- Reading -------------------------------------------------------------------------------------


def _answered(value: Json, arm: str) -> Answered:
    raw = _members(value, f"`{arm}`", {"error"}, {"error", "latency_s", "cost"})
    if not isinstance(raw["error"], bool):
        raise ValueError(f"`{arm}.error` is neither true nor false")
    return Answered(
        error=raw["error"],
        latency_s=_amount(raw.get("latency_s"), f"`{arm}.latency_s`"),
        cost_usd=_amount(raw.get("cost"), f"`{arm}.cost`"),
    )


def _amount(value: Json, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is no number")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value}, and no finite number from 0 on")
    return float(value)


def _members(value: Json, name: str, least: set[str], most: set[str]) -> Mapping[str, Json]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    if lacking := sorted(least - set(value)):
        raise ValueError(f"{name} has no `{lacking[0]}`")
    if unknown := sorted(set(value) - most):
        raise ValueError(f"{name} has an unknown member `{unknown[0]}`")
    return value
