"""Weighing a canary: continue, promote, or roll back, after each bin, from sums that never grow.

Each metric has several e-processes against "no worse" (see `sequential`), of which the mean is one again;
the mean over the metrics decides a rollback at any time, and one exact or permutation test a metric does so
at the mark. Promotion is the reverse: every aspect that is to be proved has an e-process against "worse by
the margin", and all of them have to reach 1 / `false_promotion`. Confidence sequences are the ratios that
no e-process has ruled out. Requests are compared within one bin and revision only, so drift and traffic
steps are nobody's fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeAlias

import numpy as np

from deploy_gates.core import amounts, sequential
from deploy_gates.core.amounts import AmountSums, Values
from deploy_gates.core.canary import (
    COST,
    ERRORS,
    LATENCY,
    Action,
    Arms,
    Aspect,
    Better,
    Decision,
    Inconclusive,
    Kind,
    Metric,
    Plan,
    Reading,
    Word,
)
from deploy_gates.core.sequential import Evidence, Measured
from deploy_gates.core.shares import ShareSums
from deploy_gates.core.tally import BIN_MS, Arm, Histogram, Tally, Unit

ANYTIME_PART = 0.5
"""So much of the false-rollback rate is spent on looking at any time, the rest on the marks."""
MARK_DECAY = 0.05
"""Each further mark gets this part of what the one before got."""
SUSPICION = math.log(10)
"""While a metric has this much evidence of harm, nothing is promoted."""
SPLIT_LIMIT = math.log(1000)
"""At this evidence against the declared share, nothing is promoted: requests get lost or counted twice."""
AWAITED_LEAST = 5.0
"""No request where so many were to be expected happens seven times in a thousand: traffic is held."""
AWAITED_SURELY = 14.0
"""And this once in a million, so that a canary with little traffic may wait for long: it is taken back."""
LIMIT_BASELINE_PART = 0.2
"""The hard limit is for a candidate that fails by itself: where the baseline fails meanwhile at more than
this part of its rate, as when a provider is down, the statistics compare the two."""
DROPPED_MAX = 0.01
"""If clients lost more than this part of their outcomes, nothing is promoted."""
UNKNOWN_LEAST = 5
UNKNOWN_DEVIATIONS = 3.0
"""Nor if the candidate lacks so many more latencies or costs than the baseline would, and chance does not
explain that: they may be those of its slow requests."""

MetricSums: TypeAlias = ShareSums | AmountSums


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """Of so many requests that ended well an amount is known, and of all of them it should be."""

    candidate: int = 0
    candidate_due: int = 0
    baseline: int = 0
    baseline_due: int = 0

    def added(self, metric: Metric, baseline: Half, candidate: Half) -> Known:
        """After a stratum."""
        (in_c, due_c), (in_b, due_b) = candidate.known(metric), baseline.known(metric)
        return Known(
            candidate=self.candidate + in_c,
            candidate_due=self.candidate_due + due_c,
            baseline=self.baseline + in_b,
            baseline_due=self.baseline_due + due_b,
        )

    @property
    def is_lopsided(self) -> bool:
        """Whether the candidate lacks more than the baseline."""
        if not (self.candidate_due and self.baseline_due):
            return False
        of_baseline = 1 - self.baseline / self.baseline_due
        excess = self.candidate_due - self.candidate - self.candidate_due * (of_baseline + DROPPED_MAX)
        lacking = 1 - (self.candidate + self.baseline) / (self.candidate_due + self.baseline_due)
        variance = lacking * (1 - lacking) * (1 / self.candidate_due + 1 / self.baseline_due)
        return excess > max(UNKNOWN_LEAST, UNKNOWN_DEVIATIONS * math.sqrt(variance) * self.candidate_due)


@dataclass(frozen=True, kw_only=True, slots=True)
class Silence:
    """Bins in a row without a unit of an arm."""

    bins: int = 0
    awaited: float = 0.0
    """So many units were to be expected meanwhile."""

    def longer(self, so_far: int, of_other: int, other_now: int, bins: int) -> Silence:
        """After one more: the other arm says what was to be expected, and the past, if that is silent too."""
        shared = other_now * so_far / of_other if other_now and of_other else so_far / max(bins, 1)
        return Silence(bins=self.bins + 1, awaited=self.awaited + shared)

    def is_telling(self, plan: Plan, so_far: int) -> bool:
        """Whether it is a surprise: with little traffic, gaps are none. An arm that never had a unit is."""
        return self.bins >= plan.missing_bins and (self.awaited >= AWAITED_LEAST or not so_far)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Everything that the next look needs."""

    metrics: Mapping[str, MetricSums]
    split: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Units of the candidate and of the baseline, by revision."""
    first: int = 0
    first_errors: int = 0
    """The candidate's first units, up to the hard limit, and how many of them failed."""
    meanwhile: int = 0
    meanwhile_errors: int = 0
    """The same of the baseline, in the same bins."""
    known: Mapping[str, Known] = field(default_factory=dict)
    """Of latency and cost, what should be known of each request that ended well."""
    bins: int = 0
    """Since the candidate's first unit."""
    silent: Silence = Silence()
    silent_baseline: Silence = Silence()


def sums_of(decision: Decision) -> Sums:
    """What a decision keeps for the next look."""
    assert isinstance(decision.sums, Sums)
    return decision.sums


@dataclass(frozen=True, kw_only=True, slots=True)
class Half:
    """One arm of one stratum."""

    n: int = 0
    has_traffic: bool = False
    """Where users are the unit, any tally is a sign of life: it may hold none who was not counted before."""
    errors: int = 0
    unfinished: int = 0
    dropped: int = 0
    latency: Histogram = field(default_factory=Histogram)
    cost: Histogram = field(default_factory=Histogram)
    metrics: Mapping[str, Histogram] = field(default_factory=dict)

    @classmethod
    def of(cls, tallies: Sequence[Tally]) -> Half:
        metrics: dict[str, Histogram] = {}
        for tally in tallies:
            for name, histogram in tally.metrics.items():
                metrics[name] = metrics[name] + histogram if name in metrics else histogram
        # A call that takes longer than clients wait between two reports begins in one tally and ends in
        # another: only all of them together say what never came back.
        started, finished = sum(each.started for each in tallies), sum(each.finished for each in tallies)
        unfinished = max(0, started - finished)
        return cls(
            n=max(started, finished),
            has_traffic=started + finished > 0 or any(each.unit is Unit.USER for each in tallies),
            errors=sum(each.errors for each in tallies) + unfinished,
            unfinished=unfinished,
            dropped=sum(each.dropped for each in tallies),
            latency=_added([each.latency_s for each in tallies]),
            cost=_added([each.cost_usd for each in tallies]),
            metrics=metrics,
        )

    def amount(self, metric: Metric) -> Values:
        """The values of an amount."""
        found = {LATENCY: self.latency, COST: self.cost}.get(metric.name) or self.metrics.get(metric.name)
        return Values.of(metric, found.counts if found else {}, found.total if found else 0.0)

    def known(self, metric: Metric) -> tuple[int, int]:
        """Of how many that ended well the amount is known, and how many there are."""
        due = self.n - self.errors
        return min(self.latency.n if metric.name == LATENCY else self.cost.n, due), due

    def share(self, metric: Metric) -> tuple[int, int]:
        """How many bad ones, of how many."""
        if metric.name == ERRORS:
            return self.errors, self.n
        found = self.metrics.get(metric.name, Histogram())
        true = sum(count for bucket, count in found.counts.items() if bucket >= 0)
        return (true if metric.better is Better.LOWER else found.n - true), found.n


def _added(histograms: Sequence[Histogram]) -> Histogram:
    if len(histograms) == 1:
        return histograms[0]
    counts: dict[int, int] = {}
    for each in histograms:
        for bucket, count in each.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
    return Histogram(counts=counts, total=sum(each.total for each in histograms))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stratum:
    """What both arms got in one bin of one revision."""

    start_ms: int
    revision: int
    baseline: Half
    candidate: Half


def weigh(
    plan: Plan,
    tallies: Iterable[Tally],
    before: Decision | None = None,
    *,
    at_ms: int,
    explain: bool = True,
) -> Decision:
    """What to do, now that the bins up to `at_ms` are closed.

    `tallies` are those of the bins that `before` has not weighed yet, in any order; what came of the
    baseline before the candidate's first request is the past that weights are made of. `ValueError` for a
    tally of a bin that was weighed before or is not closed. A decision that has ended stays as it is.

    Without `explain` at the first look there are no estimates and no confidence sequences. They decide
    nothing, and simulations by the thousand do without.
    """
    if before is not None and before.has_ended:
        return before
    strata = _strata(tallies)
    since_ms = before.at_ms if before else min((each.start_ms for each in strata), default=at_ms)
    for each in strata:
        if not since_ms <= each.start_ms <= at_ms - BIN_MS:
            raise ValueError(
                f"a tally of the bin at {each.start_ms} does not lie between {since_ms} and {at_ms}"
            )
    sums = sums_of(before) if before else Sums(metrics={e.name: _sums(e, explain) for e in plan.metrics})
    arms = before.arms if before else Arms()
    started_ms = before.started_ms if before else None
    marks = before.marks if before else 0
    by_bin = {start: list(group) for start, group in groupby(strata, key=lambda each: each.start_ms)}
    for start in range(since_ms, at_ms, BIN_MS):
        found = by_bin.get(start, [])
        if started_ms is None and any(each.candidate.n for each in found):
            started_ms = start
        sums, arms = _bin(plan, sums, arms, found, started_ms)
    return _decision(plan, sums, arms, at_ms, started_ms, marks)


def _strata(tallies: Iterable[Tally]) -> list[_Stratum]:
    ordered = sorted(tallies, key=lambda each: (each.start_ms, each.revision))
    strata = []
    for (start, revision), group in groupby(ordered, key=lambda each: (each.start_ms, each.revision)):
        both = list(group)
        baseline, candidate = ([each for each in both if each.arm is arm] for arm in Arm)
        strata.append(
            _Stratum(
                start_ms=start,
                revision=revision,
                baseline=Half.of(baseline),
                candidate=Half.of(candidate),
            )
        )
    return strata


def _sums(metric: Metric, explain: bool) -> MetricSums:
    return ShareSums(explain=explain) if metric.kind is Kind.SHARE else AmountSums(explain=explain)


# --- One bin -------------------------------------------------------------------------------------


def _bin(
    plan: Plan, sums: Sums, arms: Arms, strata: Sequence[_Stratum], started_ms: int | None
) -> tuple[Sums, Arms]:
    metrics = dict(sums.metrics)
    split, known = dict(sums.split), dict(sums.known)
    first, first_errors = sums.first, sums.first_errors
    meanwhile, meanwhile_errors = sums.meanwhile, sums.meanwhile_errors
    for stratum in strata:
        warm = started_ms is not None and stratum.start_ms - started_ms < plan.warm_up_s * 1000
        baseline, candidate = stratum.baseline, stratum.candidate
        for metric in plan.metrics:
            judged = started_ms is not None and not (metric.warm_up and warm)
            metrics[metric.name] = _metric(metric, metrics[metric.name], stratum, judged)
            if judged and metric.name in (LATENCY, COST):
                known[metric.name] = known.get(metric.name, Known()).added(metric, baseline, candidate)
        arms = Arms(
            baseline=arms.baseline + (baseline.n if started_ms is not None else 0),
            candidate=arms.candidate + candidate.n,
            unfinished=arms.unfinished + candidate.unfinished,
            dropped=arms.dropped + candidate.dropped,
            excluded=arms.excluded + (candidate.n if warm else 0),
        )
        if started_ms is not None:
            in_candidate, in_baseline = split.get(stratum.revision, (0, 0))
            split[stratum.revision] = (in_candidate + candidate.n, in_baseline + baseline.n)
        if first < plan.limit_requests:
            first, first_errors = first + candidate.n, first_errors + candidate.errors
            if started_ms is not None:
                meanwhile, meanwhile_errors = meanwhile + baseline.n, meanwhile_errors + baseline.errors
    baselines, candidates = [each.baseline for each in strata], [each.candidate for each in strata]
    now, now_baseline = sum(each.n for each in candidates), sum(each.n for each in baselines)
    has_begun = started_ms is not None
    bins = sums.bins + has_begun
    silent, silent_baseline = Silence(), Silence()
    if has_begun and not any(each.has_traffic for each in candidates):
        silent = sums.silent.longer(arms.candidate, arms.baseline, now_baseline, bins)
    if has_begun and not any(each.has_traffic for each in baselines):
        silent_baseline = sums.silent_baseline.longer(arms.baseline, arms.candidate, now, bins)
    return replace(
        sums,
        metrics=metrics,
        split=split,
        known=known,
        first=first,
        first_errors=first_errors,
        meanwhile=meanwhile,
        meanwhile_errors=meanwhile_errors,
        bins=bins,
        silent=silent,
        silent_baseline=silent_baseline,
    ), arms


def _metric(metric: Metric, sums: MetricSums, stratum: _Stratum, judged: bool) -> MetricSums:
    baseline, candidate = stratum.baseline, stratum.candidate
    if isinstance(sums, ShareSums):
        bad = baseline.share(metric)
        return sums.added(metric, bad, candidate.share(metric)) if judged else sums.taught(bad)
    values = baseline.amount(metric)
    return sums.added(metric, values, candidate.amount(metric)) if judged else sums.taught(metric, values)


# --- What it comes to ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Harm:
    """The e-values against "no worse", by metric, and the part of each metric."""

    weights: Mapping[str, float]
    found: Mapping[str, tuple[Evidence, ...]]

    @classmethod
    def of(cls, plan: Plan, sums: Sums) -> _Harm:
        found = {each.name: sums.metrics[each.name].harms(each) for each in plan.metrics}
        return cls(weights=_weights(plan), found=found)

    def log_e(self, metric: str) -> float:
        """The logarithm of the e-value of a metric."""
        deciding = [each for each in self.found[metric] if each.part]
        return float(np.logaddexp.reduce([math.log(each.part) + each.value for each in deciding]))

    def log_family(self, plan: Plan) -> float:
        """The logarithm of the e-value of all that are judged."""
        parts = [math.log(self.weights[each.name]) + self.log_e(each.name) for each in plan.judged]
        return float(np.logaddexp.reduce(parts))


def _decision(plan: Plan, sums: Sums, arms: Arms, at_ms: int, started_ms: int | None, marks: int) -> Decision:
    elapsed_s = 0.0 if started_ms is None else (at_ms - started_ms) / 1000
    harm = _Harm.of(plan, sums)
    is_mark = marks <= _extensions(plan) and elapsed_s >= plan.mark_s * (marks + 1)
    failed = _failed(plan, sums, marks) if is_mark else ()
    readings = tuple(
        reading
        for metric in plan.metrics
        for reading in _readings(plan, metric, sums.metrics[metric.name], harm, failed)
    )
    marks += is_mark
    draft = Decision(
        plan=plan,
        action=Action.CONTINUE,
        reason="",
        cause=(),
        at_ms=at_ms,
        started_ms=started_ms,
        readings=readings,
        arms=arms,
        log_e=harm.log_family(plan),
        log_e_limit=_log_limit(plan),
        log_e_proof=-math.log(plan.false_promotion),
        log_e_split=_log_split(plan, sums),
        next_mark_s=plan.mark_s * (marks + 1) if marks <= _extensions(plan) else None,
        marks=marks,
        needed=max((each.needed for each in readings if each.needed is not None), default=None),
        missing=_missing(plan, sums, arms, elapsed_s),
        sums=sums,
    )
    action, reason, cause = _verdict(draft, harm, failed, is_mark)
    return replace(draft, action=action, reason=reason, cause=cause)


def _verdict(
    draft: Decision, harm: _Harm, failed: tuple[str, ...], is_mark: bool
) -> tuple[Action, str, tuple[str, ...]]:
    plan, sums = draft.plan, sums_of(draft)
    if draft.started_ms is None:
        return Action.HOLD, "the candidate got no request yet", ()
    if _is_beyond_limit(plan, sums):
        why = (
            f"{ERRORS} reached the hard limit: {sums.first_errors:,} of the candidate's first {sums.first:,} "
            f"{plan.unit}s failed"
        )
        return Action.ROLLBACK, why, (f"{ERRORS}.limit",)
    if draft.log_e >= draft.log_e_limit:
        cause = _cause(plan, harm)
        why = f"{cause[0]} is worse, proved {_odds(draft.log_e)} to 1; {_odds(draft.log_e_limit)} were needed"
        return Action.ROLLBACK, why, cause
    if failed:
        why = f"{failed[0]} is worse at the mark of {plan.mark_s * draft.marks:.0f} s"
        return Action.ROLLBACK, why, failed
    is_long = sums.silent.bins * BIN_MS >= plan.missing_limit_s * 1000
    is_silent = sums.silent.is_telling(plan, draft.arms.candidate)
    is_baseline_silent = sums.silent_baseline.is_telling(plan, draft.arms.baseline)
    if is_silent and is_long and sums.silent.awaited >= AWAITED_SURELY:
        return Action.ROLLBACK, f"{draft.missing[0]}: nothing can be judged", ("missing",)
    if is_silent or is_baseline_silent or draft.log_e_split >= SPLIT_LIMIT:
        return Action.HOLD, f"{draft.missing[0]}: traffic stays as it is", ()
    unproved = _unproved(draft, harm)
    if not unproved and not draft.missing:
        return Action.PROMOTE, "every metric is proved to be no worse than its margin", ()
    open_points = "; ".join(list(dict.fromkeys([*draft.missing, *unproved]))[:3])
    if draft.marks <= _extensions(plan):
        if is_mark:
            return Action.CONTINUE, f"undecided at the mark ({open_points}): {_extended(draft)}", ()
        return Action.CONTINUE, f"undecided: {open_points}", ()
    final = plan.then if plan.on_inconclusive is Inconclusive.EXTEND else plan.on_inconclusive
    why = f"undecided after {draft.elapsed_s:.0f} s: {open_points}"
    return (Action.ROLLBACK if final is Inconclusive.ROLLBACK else Action.HOLD), why, ("undecided",)


def _is_beyond_limit(plan: Plan, sums: Sums) -> bool:
    """Whether the hard limit is reached, and it is no outage of both arms."""
    limit = plan.limit_errors / plan.limit_requests
    if sums.first_errors < max(plan.limit_errors, sums.first * limit):
        return False
    return sums.meanwhile_errors <= LIMIT_BASELINE_PART * limit * sums.meanwhile


def _extended(draft: Decision) -> str:
    return f"it goes on to {draft.next_mark_s:.0f} s" if draft.next_mark_s else ""


def _odds(log_e: float) -> str:
    log10 = log_e / math.log(10)
    return f"{10**log10:,.0f}" if log10 < 7 else f"10^{math.floor(log10)}"


def _weights(plan: Plan) -> dict[str, float]:
    """The part of each metric; a dry run is shown as if it were judged as well."""
    whole = sum(each.weight for each in plan.judged)
    return {each.name: each.weight / (whole + each.weight * each.dry_run) for each in plan.metrics}


def _extensions(plan: Plan) -> int:
    return plan.extensions if plan.on_inconclusive is Inconclusive.EXTEND else 0


def mark_rate(plan: Plan, mark: int) -> float:
    """The part of the false-rollback rate that is spent at the mark of this number, from 0."""
    parts = [MARK_DECAY**each for each in range(_extensions(plan) + 1)]
    return plan.false_rollback * (1 - ANYTIME_PART) * parts[mark] / sum(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkTest:
    """A p-value at a mark, and the level at or below which it rolls back."""

    metric: str
    evidence: Evidence
    level: float


def mark_tests(plan: Plan, sums: Sums, mark: int) -> tuple[MarkTest, ...]:
    """The tests at the mark of this number, whose levels add up to its part of the false-rollback rate.

    Bonferroni, weighted. A count is whole, so a share does not spend its level to the end; what it leaves is
    spent by nobody, and the real rate stays below the declared one.
    """
    weights = _weights(plan)
    tests = [
        (metric, each, weights[metric.name] * each.part)
        for metric in plan.judged
        for each in sums.metrics[metric.name].tests(metric)
    ]
    rate = mark_rate(plan, mark) / sum(part for _, _, part in tests)
    return tuple(
        MarkTest(metric=metric.name, evidence=each, level=part * rate) for metric, each, part in tests
    )


def _cause(plan: Plan, harm: _Harm) -> tuple[str, ...]:
    """The aspects with the most evidence of harm: those that are enough alone, or else the strongest."""
    found = sorted(
        (
            (math.log(harm.weights[metric.name] * each.part) + each.value, _named(metric.name, each.aspect))
            for metric in plan.judged
            for each in harm.found[metric.name]
            if each.part
        ),
        reverse=True,
    )
    enough = tuple(name for log_e, name in found if log_e >= _log_limit(plan))
    return enough or (found[0][1],)


def _log_limit(plan: Plan) -> float:
    return -math.log(plan.false_rollback * ANYTIME_PART)


def _named(metric: str, aspect: Aspect) -> str:
    return metric if aspect in (Aspect.RATE, Aspect.SHAPE) else f"{metric}.{aspect.value}"


def _failed(plan: Plan, sums: Sums, mark: int) -> tuple[str, ...]:
    """The aspects that fail their one test at a mark, the strongest first."""
    failing = [each for each in mark_tests(plan, sums, mark) if each.evidence.value <= each.level]
    failing.sort(key=lambda each: each.evidence.value / each.level)
    return tuple(_named(each.metric, each.evidence.aspect) for each in failing)


def _log_split(plan: Plan, sums: Sums) -> float:
    """The logarithm of the e-value against the declared shares of traffic."""
    total = 0.0
    for revision, (candidate, baseline) in sums.split.items():
        share = plan.shares.get(revision, plan.share)
        if share is not None:
            total += sequential.log_beta_binomial(candidate, baseline, share)
    return total


def _missing(plan: Plan, sums: Sums, arms: Arms, elapsed_s: float) -> tuple[str, ...]:
    found = []
    if sums.silent.is_telling(plan, arms.candidate):
        found.append(f"the candidate got no request for {sums.silent.bins * BIN_MS // 1000} s")
    if sums.silent_baseline.is_telling(plan, arms.baseline):
        found.append(f"the baseline got no request for {sums.silent_baseline.bins * BIN_MS // 1000} s")
    if _log_split(plan, sums) >= SPLIT_LIMIT:
        found.append("the arms do not share the traffic as declared: requests are lost or counted twice")
    if arms.dropped > DROPPED_MAX * max(arms.candidate, 1):
        found.append(f"the outcomes of {arms.dropped:,} requests of the candidate were lost")
    for metric in plan.judged:
        each = sums.metrics[metric.name]
        due_s = (plan.warm_up_s if metric.warm_up else 0.0) + plan.missing_bins * BIN_MS / 1000
        if not each.seen and elapsed_s > due_s:
            found.append(f"nothing is known of {metric.name} in both arms")
        elif (known := sums.known.get(metric.name)) is not None and known.is_lopsided:
            of = f"{known.candidate:,} of {known.candidate_due:,} good {plan.unit}s of the candidate"
            found.append(f"{metric.name} is known of {of} only")
    return tuple(found)


def _unproved(draft: Decision, harm: _Harm) -> list[str]:
    """Why a promotion is not proved, a clause each."""
    found = []
    metrics = sums_of(draft).metrics
    names = {each.name: each for each in draft.plan.judged}
    for each in draft.readings:
        if each.metric not in names or each.margin_ratio is None or not metrics[each.metric].seen:
            continue
        if each.log_e_safe < draft.log_e_proof:
            more = f", about {each.needed:,} more {draft.plan.unit}s" if each.needed else ""
            found.append(f"{_named(each.metric, each.aspect)} is not proved{more}")
    provable = {each.metric for each in draft.readings if each.margin_ratio is not None}
    for name in names:
        if not metrics[name].seen or name not in provable:
            found.append(f"nothing is known of {name} yet")  # and nothing is no proof
        if harm.log_e(name) >= SUSPICION:
            found.append(f"{name} looks worse")
    return found


# --- Readings ------------------------------------------------------------------------------------


def _readings(
    plan: Plan, metric: Metric, sums: MetricSums, harm: _Harm, failed: tuple[str, ...]
) -> list[Reading]:
    harms = {each.aspect: each for each in harm.found[metric.name]}
    found = []
    for each in sums.measured(metric, plan):
        evidence = harms[each.aspect]
        word = _word(plan, metric, each, evidence, harm.weights[metric.name], failed)
        is_open = word is Word.UNDECIDED and each.margin_ratio is not None
        found.append(
            Reading(
                metric=metric.name,
                aspect=each.aspect,
                kind=metric.kind,
                better=metric.better,
                baseline=each.baseline,
                candidate=each.candidate,
                ratio=each.ratio,
                low=each.bounds.low,
                high=each.bounds.high,
                margin_ratio=each.margin_ratio,
                log_e_harm=evidence.value,
                log_e_safe=each.log_e_safe,
                word=word,
                seen_baseline=sums.seen_baseline,
                seen_candidate=sums.seen,
                needed=each.needed if is_open else None,
                dry_run=metric.dry_run,
            )
        )
    return found


def _word(
    plan: Plan,
    metric: Metric,
    measured: Measured,
    evidence: Evidence,
    weight: float,
    failed: tuple[str, ...],
) -> Word:
    low, high, margin = measured.bounds.low, measured.bounds.high, measured.margin_ratio
    spent = weight * evidence.part
    is_proved = spent > 0 and evidence.value + math.log(spent) >= _log_limit(plan)
    is_beyond = low is not None and margin is not None and low > margin
    if is_proved or is_beyond or _named(metric.name, measured.aspect) in failed:
        return Word.HARMFUL
    if margin is not None:
        return Word.SAFE if measured.log_e_safe >= -math.log(plan.false_promotion) else Word.UNDECIDED
    allowed = amounts.margin_of(metric, measured.aspect) if metric.margin_ratio else 0.0
    return Word.SAFE if high is not None and high <= allowed else Word.UNDECIDED
