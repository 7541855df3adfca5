"""Looking early errs no more often than looking once, and ends sooner."""

from __future__ import annotations

import math
import random

import pytest

from deploy_gates.core import stopping
from deploy_gates.core.stats import Conclusion, Pair

MET = Pair(baseline=1, candidate=1)
WORSE = Pair(baseline=1, candidate=0)
BETTER = Pair(baseline=0, candidate=1)
RUNS = 300
LUCK = 3 * math.sqrt(0.05 * 0.95 / RUNS)
"""By this much a promise that is kept may look broken, in one of a thousand simulations."""


def drawn(chance: random.Random, n: int, worse: float, better: float) -> list[Pair]:
    return [
        WORSE if (at := chance.random()) < worse else BETTER if at > 1 - better else MET for _ in range(n)
    ]


def concluded(n: int, worse: float, better: float, margin: float, seed: str) -> dict[Conclusion, float]:
    chance = random.Random(seed)
    words = [
        stopping.decide(drawn(chance, n, worse, better), n=n, margin=margin, confidence=0.95).found.conclusion
        for _ in range(RUNS)
    ]
    return {word: words.count(word) / RUNS for word in Conclusion}


@pytest.mark.parametrize("margin", [0.02, 0.05])
@pytest.mark.parametrize("side", ["safe", "harmful"])
def test_the_looks_together_cross_as_often_as_one_look_may(side: str, margin: float) -> None:
    """A random walk that is looked at as the cases are."""
    looks, chance = stopping.looks(1000, margin=margin, confidence=0.95), random.Random(1)
    levels = [(look.cases / 1000, level) for look in looks if (level := getattr(look, side)) is not None]
    bounds = [(share, stopping.NormalDist().inv_cdf(level)) for share, level in levels]
    runs, crossed = 8000, 0
    for _ in range(runs):
        total = before = 0.0
        for share, bound in bounds:
            total += chance.gauss(0, math.sqrt(share - before))
            before = share
            if total > bound * math.sqrt(share):
                crossed += 1
                break

    assert crossed / runs == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / runs))


@pytest.mark.parametrize(
    ("n", "margin", "cases"), [(1000, 0.05, 96), (1000, 0.02, 211), (2500, 0.02, 241), (10_000, 0.02, 289)]
)
def test_identical_answers_end_at_the_look_at_which_they_prove_the_margin(
    n: int, margin: float, cases: int
) -> None:
    """No rule that errs in 5 % of the runs ends before 59 cases at 5 points, or before 149 at 2."""
    found = stopping.decide([MET] * n, n=n, margin=margin, confidence=0.95)

    assert (found.cases, found.found.conclusion) == (cases, Conclusion.NO_WORSE)
    assert all(look.safe is None for look in stopping.looks(n, margin=margin, confidence=0.95)[:1])


def test_a_margin_of_nothing_is_looked_at_for_harm_and_for_safety_at_the_end() -> None:
    looks = stopping.looks(1000, margin=0.0, confidence=0.95)

    assert [look.cases for look in looks if look.safe is not None] == [1000]
    assert len(looks) > 10


def test_no_loss_is_blocked_no_more_often_by_looking_early() -> None:
    found = concluded(600, 0.04, 0.04, 0.02, "harmless")

    assert found[Conclusion.WORSE] <= 0.05 + LUCK


def test_a_loss_as_large_as_the_margin_passes_no_more_often_by_looking_early() -> None:
    found = concluded(600, 0.05, 0.01, 0.04, "margin")

    assert found[Conclusion.NO_WORSE] <= 0.05 + LUCK


def test_a_large_loss_ends_soon_and_no_change_at_all_too() -> None:
    lost = stopping.decide(drawn(random.Random(3), 1000, 0.12, 0.02), n=1000, margin=0.02, confidence=0.95)
    same = stopping.decide([MET] * 1000, n=1000, margin=0.05, confidence=0.95)

    assert lost.found.conclusion is Conclusion.WORSE
    assert lost.cases <= 300
    assert same.found.conclusion is Conclusion.NO_WORSE
    assert same.cases <= 100


def test_few_cases_are_looked_at_once_at_the_confidence_declared() -> None:
    looks = stopping.looks(400, margin=0.02, confidence=0.95)

    assert looks == (stopping.Look(cases=400, safe=0.95, harmful=0.95),)


def test_a_look_that_did_not_decide_is_not_taken_again() -> None:
    pairs = [WORSE] * 20 + [MET] * 300

    assert stopping.decide(pairs[:300], n=1000, margin=0.02, confidence=0.95).cases == 20
    assert stopping.decide(pairs[:270], n=1000, margin=0.02, confidence=0.95, since=211).cases == 270


def test_between_two_looks_nothing_is_decided() -> None:
    found = stopping.decide([WORSE] * 25, n=1000, margin=0.02, confidence=0.95)
    early = stopping.decide([WORSE] * 10, n=1000, margin=0.02, confidence=0.95)

    assert (found.cases, found.found.conclusion) == (20, Conclusion.WORSE)
    assert early.found.conclusion is Conclusion.UNDECIDED


def test_each_kind_comes_in_its_share_and_what_belongs_together_together() -> None:
    cases = tuple(
        stopping.Case(
            id=f"{at}", kind="unstable" if at % 10 == 0 else "", cluster=f"c{at // 2}" if at > 900 else ""
        )
        for at in range(1000)
    )

    order = stopping.order(cases, "seed")

    assert sorted(order) == sorted(case.id for case in cases)
    assert sum(int(each) % 10 == 0 for each in order[:200]) == pytest.approx(20, abs=3)
    places = {each: at for at, each in enumerate(order)}
    assert all(abs(places[f"{at}"] - places[f"{at + 1}"]) == 1 for at in range(902, 998, 2))
    assert order != stopping.order(cases, "another change")
    assert order == stopping.order(cases, "seed")
