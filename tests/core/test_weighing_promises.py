"""What the canary promises, by counting how often the promise is broken; seeds are fixed.

The whole of it, with more runs and beside other rules, is `benchmarks/canary.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from scipy.stats import binom

from deploy_gates.canary.traffic import HARMS, NULLS, Traffic, information_nats, steps
from deploy_gates.core.canary import COST, ERRORS, LATENCY, Action, Decision, Inconclusive, Plan
from deploy_gates.core.weighing import weigh

WARM = Plan(false_promotion=1e-6)
PLAIN = replace(WARM, warm_up_s=0.0)
"""Without a warm-up, and without promotions, which would end a run."""


def decided(traffic: Traffic, plan: Plan, seed: int, *, explain: bool = False) -> Decision:
    """How one canary ends."""
    decision = None
    for at_ms, tallies in steps(traffic, seed):
        decision = weigh(replace(plan, unit=traffic.unit), tallies, decision, at_ms=at_ms, explain=explain)
        if decision.has_ended:
            break
    assert decision is not None
    return decision


def ended(job: tuple[Traffic, Plan, int]) -> tuple[Action, float, int, float]:
    """The action, the seconds, the requests of the candidate, and the evidence."""
    decision = decided(*job)
    return decision.action, decision.elapsed_s, decision.arms.candidate, decision.log_e


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as made:
        yield made


@pytest.fixture(scope="module")
def good(pool: ProcessPoolExecutor) -> dict[str, list[Action]]:
    """How good candidates end, by scenario."""
    jobs = {
        name: [(replace(traffic, rate_rps=50.0), WARM, seed) for seed in range(24)]
        for name, traffic in NULLS.items()
    }
    found = pool.map(ended, [job for each in jobs.values() for job in each], chunksize=8)
    actions = iter([action for action, *_ in found])
    return {name: [next(actions) for _ in each] for name, each in jobs.items()}


@pytest.mark.parametrize("name", NULLS)
def test_no_weather_rolls_good_candidates_back(good: dict[str, list[Action]], name: str) -> None:
    """At 1 %, more than this many of so many would be seen once in a thousand times."""
    rolled_back = good[name].count(Action.ROLLBACK)

    assert rolled_back <= binom(len(good[name]), 0.01).ppf(0.999)


def test_good_candidates_are_rarely_rolled_back(good: dict[str, list[Action]]) -> None:
    every = [action for each in good.values() for action in each]

    assert every.count(Action.ROLLBACK) <= binom(len(every), 0.01).ppf(0.999)


def test_marks_that_extend_a_canary_roll_no_more_good_candidates_back(pool: ProcessPoolExecutor) -> None:
    plan = replace(WARM, mark_s=100.0, extensions=2, then=Inconclusive.HOLD)
    n = 80
    jobs = [(replace(NULLS["drift"], rate_rps=30.0), plan, 7_000 + seed) for seed in range(n)]

    found = list(pool.map(ended, jobs, chunksize=8))

    actions = [action for action, *_ in found]
    assert {seconds for action, seconds, *_ in found if action is not Action.ROLLBACK} == {300.0}
    assert actions.count(Action.ROLLBACK) <= binom(n, 0.01).ppf(0.999)


def test_evidence_against_good_candidates_is_one_on_average(pool: ProcessPoolExecutor) -> None:
    jobs = [(replace(NULLS["drift"], rate_rps=50.0, duration_s=60.0), PLAIN, seed) for seed in range(150)]

    e = [math.exp(found[3]) for found in pool.map(ended, jobs, chunksize=15)]

    assert np.mean(e) < 1 + 3 * np.std(e) / math.sqrt(len(e))


@pytest.mark.parametrize("name", ["err5", "lat30", "cost30", "verbose"])
def test_harm_is_found_with_at_most_twice_the_fewest_requests(pool: ProcessPoolExecutor, name: str) -> None:
    jobs = [(HARMS[name], PLAIN, seed) for seed in range(40)]

    found = list(pool.map(ended, jobs, chunksize=5))

    assert {action for action, *_ in found} == {Action.ROLLBACK}
    taken = float(np.median([requests for _, _, requests, _ in found]))
    spread = 1.25 * float(np.std([requests for _, _, requests, _ in found])) / math.sqrt(len(found))
    assert taken - 2 * spread <= 2.0 * math.log(100) / information_nats(HARMS[name])


def test_an_outage_at_one_request_a_second_ends_within_seconds(pool: ProcessPoolExecutor) -> None:
    jobs = [(replace(HARMS["outage"], rate_rps=20.0), PLAIN, seed) for seed in range(80)]

    seconds = [found[1] for found in pool.map(ended, jobs, chunksize=20)]

    assert np.median(seconds) <= 10
    assert np.quantile(seconds, 0.95) <= 20


@pytest.mark.parametrize(
    ("harm", "metric"),
    [({"errors_ratio": 2 / 1.01}, ERRORS), ({"latency_ratio": 1.22}, LATENCY), ({"cost_ratio": 1.22}, COST)],
)
def test_a_candidate_at_the_margin_is_rarely_promoted(
    pool: ProcessPoolExecutor, harm: dict[str, float], metric: str
) -> None:
    metrics = tuple(replace(each, dry_run=each.name != metric) for each in Plan().metrics)
    plan = Plan(metrics=metrics, warm_up_s=0.0, false_rollback=1e-9)
    n = 60
    traffic = Traffic(**harm, rate_rps=300.0, duration_s=100.0)  # type: ignore[arg-type]

    found = pool.map(ended, [(traffic, plan, seed) for seed in range(n)], chunksize=10)

    assert sum(action is Action.PROMOTE for action, *_ in found) <= binom(n, 0.05).ppf(0.999)


def test_good_candidates_are_promoted_by_proof_where_traffic_allows(pool: ProcessPoolExecutor) -> None:
    quick = Plan(warm_up_s=0.0)
    fast = [(replace(NULLS["aa"], rate_rps=1000.0), quick, seed) for seed in range(12)]
    slow = [(replace(NULLS["aa"], rate_rps=20.0), quick, seed) for seed in range(16)]

    found, silent = (list(pool.map(ended, jobs, chunksize=5)) for jobs in (fast, slow))

    assert {action for action, *_ in found} == {Action.PROMOTE}
    assert np.median([seconds for _, seconds, *_ in found]) <= 45
    assert {action for action, *_ in silent} == {Action.CONTINUE}


def held(job: tuple[Traffic, int]) -> list[bool]:
    """Whether the confidence sequences hold the truth at every look."""
    traffic, seed = job
    plan = Plan(warm_up_s=0.0, false_rollback=1e-12, false_promotion=1e-12)
    truth = {ERRORS: 1.0, LATENCY: traffic.latency_ratio, COST: 1.0}
    inside = dict.fromkeys(truth, True)
    decision = None
    for at_ms, tallies in steps(traffic, seed):
        decision = weigh(plan, tallies, decision, at_ms=at_ms)
        for name, ratio in truth.items():
            reading = decision.reading(name)
            inside[name] &= (reading.low or 0.0) <= ratio <= (reading.high or math.inf)
    return list(inside.values())


def test_confidence_sequences_hold_the_truth_at_all_times(pool: ProcessPoolExecutor) -> None:
    n = 40
    traffic = replace(NULLS["drift"], latency_ratio=1.1, rate_rps=300.0, duration_s=100.0)

    found = np.array(list(pool.map(held, [(traffic, seed) for seed in range(n)], chunksize=5)))

    assert (found.sum(axis=0) >= binom(n, 0.95).ppf(0.001)).all()
