"""Amounts of all kinds of laws: smooth, rounded, a single value, and with zeros among them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from deploy_gates.core.amounts import BUCKETS, AmountSums, Values
from deploy_gates.core.canary import LATENCY, Aspect, Better, Kind, Metric, Plan
from deploy_gates.core.tally import Histogram

Law = Callable[[np.random.Generator, int], np.ndarray]
PLAN = Plan()
PROOF = -math.log(PLAN.false_promotion)


def lower(margin: float = 1.22) -> Metric:
    return Metric(
        name=LATENCY,
        kind=Kind.AMOUNT,
        margin_ratio=margin,
        tail_ratio=margin,
        proofs=(Aspect.SHAPE, Aspect.P95, Aspect.P99),
    )


def higher(margin: float = 1.22) -> Metric:
    return Metric(
        name="speed",
        kind=Kind.AMOUNT,
        better=Better.HIGHER,
        margin_ratio=margin,
        tail_ratio=margin,
        proofs=(Aspect.SHAPE, Aspect.P95, Aspect.P99),
    )


def values(metric: Metric, of: np.ndarray) -> Values:
    histogram = Histogram.of(of.tolist())
    return Values.of(metric, histogram.counts, histogram.total)


def lognormal(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.exp(0.8 * rng.standard_normal(n))


LAWS: dict[str, Law] = {
    "lognormal": lognormal,
    "narrow": lambda rng, n: np.exp(0.03 * rng.standard_normal(n)),
    "rounded to seconds": lambda rng, n: np.round(lognormal(rng, n)),
    "rounded to tenths": lambda rng, n: np.round(lognormal(rng, n), 1),
    "a single value": lambda rng, n: np.full(n, 1.03),
    "two values": lambda rng, n: rng.choice([0.2, 1.03], n),
    "a third is zero": lambda rng, n: lognormal(rng, n) * (rng.random(n) < 2 / 3),
    "hardly any is zero": lambda rng, n: lognormal(rng, n) * (rng.random(n) < 0.98),
}


def canary(
    metric: Metric,
    law: Law,
    ratio: float,
    seed: int,
    *,
    bins: int = 20,
    n: int = 300,
    m: int = 60,
    explain: bool = False,
) -> AmountSums:
    """What is kept after so many bins, with a candidate whose values are `ratio` times the baseline's."""
    rng = np.random.default_rng(seed)
    sums = AmountSums(explain=explain)
    for at in range(bins + 6):
        baseline = values(metric, law(rng, n))
        candidate = values(metric, law(rng, m) * ratio)
        sums = sums.taught(metric, baseline) if at < 6 else sums.added(metric, baseline, candidate)
    return sums


def of(metric: Metric, worse: float) -> float:
    return worse if metric.better is Better.LOWER else 1 / worse


@pytest.mark.parametrize("metric", [lower(), higher(), lower(1.1)], ids=["lower", "higher", "10 %"])
@pytest.mark.parametrize("name", LAWS)
def test_whatever_the_law_a_candidate_at_the_margin_is_rarely_proved_to_be_no_worse(
    name: str, metric: Metric
) -> None:
    n = 40
    assert metric.margin_ratio is not None
    ratio = of(metric, metric.margin_ratio)

    found = [canary(metric, LAWS[name], ratio, seed).proved for seed in range(n)]

    for aspect in metric.proofs:
        assert sum(each[aspect] >= PROOF for each in found) <= binom(n, PLAN.false_promotion).ppf(0.999)


@pytest.mark.parametrize("metric", [lower(), higher()], ids=["lower", "higher"])
@pytest.mark.parametrize("name", [*LAWS, "nothing but zeros"])
def test_whatever_the_law_a_candidate_that_is_no_worse_is_soon_proved_to_be_and_not_harmful(
    name: str, metric: Metric
) -> None:
    law = LAWS.get(name, lambda rng, n: np.zeros(n))

    found = [canary(metric, law, 1.0, seed, bins=40) for seed in range(8)]

    assert sum(each.proved[Aspect.SHAPE] >= PROOF for each in found) >= 7
    assert max(part.value for each in found for part in each.harms(metric)) < math.log(200)
    assert min(part.value for each in found for part in each.tests(metric)) > 1e-4


@pytest.mark.parametrize("metric", [lower(), higher()], ids=["lower", "higher"])
@pytest.mark.parametrize("name", LAWS)
def test_whatever_the_law_a_candidate_that_is_half_as_bad_again_is_harmful(name: str, metric: Metric) -> None:
    found = canary(metric, LAWS[name], of(metric, 1.5), 1)

    assert max(part.value for part in found.harms(metric)) > math.log(200)
    assert found.proved[Aspect.SHAPE] < PROOF


@pytest.mark.parametrize("ratio", [1.0, 1.2, 0.8])
@pytest.mark.parametrize("name", LAWS)
def test_whatever_the_law_a_confidence_sequence_holds_the_ratio(name: str, ratio: float) -> None:
    metric = lower()
    n = 20
    misses = dict.fromkeys((Aspect.SHAPE, Aspect.P50, Aspect.P95, Aspect.P99), 0)

    for seed in range(n):
        found = canary(metric, LAWS[name], ratio, seed, bins=12, explain=True)
        for each in found.measured(metric, PLAN):
            if each.aspect in misses:
                low, high = each.bounds.low or 0.0, each.bounds.high or math.inf
                misses[each.aspect] += not low <= ratio <= high

    assert max(misses.values()) <= binom(n, 0.05).ppf(0.999), misses


@pytest.mark.parametrize("value", [0.0, 0.0021, 1.0, 1.03, 700.0])
def test_where_all_values_are_one_nothing_is_told_at_the_mark(value: float) -> None:
    found = canary(lower(), lambda rng, n: np.full(n, value), 1.0, 1, bins=60)

    assert {each.value for each in found.tests(lower())} == {1.0}


def test_where_nothing_costs_anything_both_cost_the_same() -> None:
    found = canary(lower(), lambda rng, n: np.zeros(n), 1.0, 1, explain=True).measured(lower(), PLAN)

    assert {(each.baseline, each.candidate, each.ratio) for each in found} == {(0.0, 0.0, 1.0)}


def test_a_candidate_that_costs_something_where_the_baseline_costs_nothing_is_worse() -> None:
    metric, nothing = lower(), values(lower(), np.zeros(100))
    sums = AmountSums().taught(metric, nothing)

    sums = sums.added(metric, nothing, values(metric, np.full(20, 0.002)))

    assert max(each.value for each in sums.harms(metric)) > math.log(200)
    shape = sums.measured(metric, PLAN)[0]
    assert (shape.baseline, shape.ratio) == (0.0, None)
    assert shape.log_e_safe == 0


@pytest.mark.parametrize("name", LAWS)
def test_over_all_choices_of_who_is_the_candidate_evidence_is_one_on_average(name: str) -> None:
    metric, k, n = lower(), 4, 12
    rng = np.random.default_rng(5)
    taught = AmountSums(explain=False).taught(metric, values(metric, LAWS[name](rng, 400)))
    pooled = LAWS[name](rng, n)
    e: dict[Aspect, list[float]] = {}

    for chosen in itertools.combinations(range(n), k):
        is_candidate = np.isin(np.arange(n), chosen)
        found = taught.added(
            metric, values(metric, pooled[~is_candidate]), values(metric, pooled[is_candidate])
        )
        for each in found.harms(metric):
            e.setdefault(each.aspect, []).append(math.exp(each.value))

    assert {aspect: np.mean(each) for aspect, each in e.items()} == {
        aspect: pytest.approx(1.0, abs=0.01) for aspect in e
    }


def test_swapping_the_arms_turns_the_ratio_around() -> None:
    metric = lower()
    rng = np.random.default_rng(7)
    here = there = AmountSums().taught(metric, values(metric, lognormal(rng, 2_000)))
    for _ in range(10):
        one, other = values(metric, lognormal(rng, 150)), values(metric, 1.1 * lognormal(rng, 150))
        here, there = here.added(metric, one, other), there.added(metric, other, one)

    found, swapped = (each.measured(metric, PLAN)[0] for each in (here, there))

    assert found.ratio is not None
    assert swapped.ratio is not None
    assert math.log(found.ratio) == pytest.approx(-math.log(swapped.ratio), abs=0.02)
    for low, high in ((found.bounds.low, swapped.bounds.high), (swapped.bounds.low, found.bounds.high)):
        assert low is not None
        assert high is not None
        assert math.log(low) == pytest.approx(-math.log(high), abs=0.02)


def test_every_number_stays_finite_whatever_values_come() -> None:
    metric = lower()
    rng = np.random.default_rng(8)
    extremes = [0.0, 1e-13, 1e-6, 1.0, 1.0001, 3e4, 1e12]
    for seed in range(8):
        sums = AmountSums()
        for _ in range(4):
            some = rng.choice(extremes, 2)
            baseline = values(metric, rng.choice(some, 60))
            sums = sums.added(metric, baseline, values(metric, rng.choice(extremes, 1 + seed)))

        found = [each.value for each in (*sums.harms(metric), *sums.tests(metric))]
        assert all(map(math.isfinite, found))
        assert all(np.isfinite(each).all() for each in (sums.near, *sums.safe.values()))
        assert sums.candidate.sum() == 3 * (1 + seed)
        assert len(sums.candidate) == BUCKETS
