"""Pairs: promises that hold however often one looks, on simulated prompts with fixed seeds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from deploy_gates.core.canary import Action, Plan, Word
from deploy_gates.core.pairs import Answered, Finding, Pair, Pairing

PAIRS_MAX = 300


def pairs(
    seed: int, *, latency: float = 1.0, cost: float = 1.0, errors: tuple[float, float] = (0.02, 0.02)
) -> Iterator[Pair]:
    """Prompts of very different lengths, answered by both with some noise of their own."""
    rng = random.Random(seed)

    def answered(length: float, times: float, dollars: float, rate: float) -> Answered:
        if rng.random() < rate:
            return Answered(error=True)
        return Answered(
            error=False,
            latency_s=length * times * rng.lognormvariate(0, 0.3),
            cost_usd=0.01 * length * dollars * rng.lognormvariate(0, 0.15),
        )

    for number in range(PAIRS_MAX):
        length = rng.lognormvariate(0, 1.2)
        yield Pair(
            id=f"prompt-{number}",
            baseline=answered(length, 1.0, 1.0, errors[0]),
            candidate=answered(length, latency, cost, errors[1]),
        )


def judged(seed: int, plan: Plan | None = None, **effects: object) -> Finding:
    pairing = Pairing(plan or Plan())
    for pair in pairs(seed, **effects):  # type: ignore[arg-type]  # as `pairs` takes them
        if pairing.add(pair).has_ended:
            break
    return pairing.finding()


def test_a_candidate_that_is_no_worse_is_hardly_ever_rolled_back_and_mostly_promoted() -> None:
    found = [judged(seed, errors=(0.0, 0.0)) for seed in range(40)]

    assert sum(each.action is Action.ROLLBACK for each in found) <= 1
    assert sum(each.action is Action.PROMOTE for each in found) >= 38


@pytest.mark.parametrize(
    ("effects", "cause"),
    [
        ({"latency": 1.5}, "latency"),
        ({"cost": 1.3}, "cost"),
        ({"errors": (0.02, 0.2)}, "errors"),
    ],
)
def test_harm_is_found_within_pairs_that_a_team_can_pay_for_and_named(
    effects: dict[str, object], cause: str
) -> None:
    found = [judged(seed, **effects) for seed in range(12)]

    assert sum(each.action is Action.ROLLBACK for each in found) >= 11
    assert {each.cause[0] for each in found if each.action is Action.ROLLBACK} == {cause}
    assert sorted(each.pairs for each in found)[6] < 150


def test_a_candidate_that_is_worse_by_the_margin_is_hardly_ever_promoted() -> None:
    slower = [judged(seed, latency=1.22, errors=(0.0, 0.0)) for seed in range(40)]
    failing = [judged(seed, errors=(0.0, 0.03)) for seed in range(40)]

    assert sum(each.action is Action.PROMOTE for each in slower) <= 2 + 3
    assert sum(each.action is Action.PROMOTE for each in failing) <= 2 + 3


def test_confidence_sequences_hold_the_truth_at_all_times() -> None:
    missed = 0
    for seed in range(40):
        pairing = Pairing(replace(Plan(), false_rollback=1e-9, false_promotion=1e-9))
        found = [pairing.add(pair) for pair in pairs(seed, latency=1.1, errors=(0.02, 0.07))]
        errors, latency, _ = found[-1].comparisons
        missed += not _holds(errors.low, 0.05, errors.high) or not _holds(latency.low, 1.1, latency.high)

    assert missed <= 40 * 2 * 0.05 + 3


def _holds(low: float | None, truth: float, high: float | None) -> bool:
    return (low is None or low <= truth) and (high is None or truth <= high)


def test_the_e_value_of_pairs_whose_labels_are_drawn_is_one_on_average_at_most() -> None:
    """Ten pairs that differ a lot, all 1,024 ways to label them: the mean over them is no estimate."""
    kept = list(pairs(3, latency=3.0, cost=0.2, errors=(0.1, 0.4)))[:10]

    total = 0.0
    for labels in range(2 ** len(kept)):
        pairing = Pairing(replace(Plan(), false_rollback=1e-12, false_promotion=1e-12))
        for at, pair in enumerate(kept):
            swapped = replace(pair, baseline=pair.candidate, candidate=pair.baseline)
            pairing.add(swapped if labels >> at & 1 else pair)
        total += math.exp(pairing.finding().log_e)

    assert total / 2 ** len(kept) <= 1 + 1e-9


def test_more_harm_is_never_less_evidence_of_it() -> None:
    evidence = []
    for times in (1.0, 1.2, 1.5, 2.0, 5.0):
        pairing = Pairing(replace(Plan(), false_rollback=1e-12, false_promotion=1e-12))
        for pair in list(pairs(1, latency=times, errors=(0.0, 0.0)))[:40]:
            pairing.add(pair)
        evidence.append(pairing.finding().comparisons[1].log_e_harm)

    assert evidence == sorted(evidence)


def test_the_same_answers_from_both_are_safe_and_a_word_more_in_the_prompt_is_no_harm() -> None:
    pairing = Pairing(Plan())
    for number in range(200):
        before = Answered(error=False, latency_s=1.0 + number % 7, cost_usd=0.002)
        pairing.add(
            Pair(
                id=str(number),
                baseline=before,
                candidate=replace(before, cost_usd=0.00204),
            )
        )

    finding = pairing.finding()

    assert finding.action is Action.PROMOTE
    assert finding.pairs < 200, "nothing is asked after the decision"
    assert [each.word for each in finding.comparisons] == [Word.SAFE] * 3


def test_what_nobody_has_values_of_is_missing_and_never_promoted() -> None:
    pairing = Pairing(Plan())
    for number in range(250):
        answered = Answered(error=False, latency_s=1.0)
        pairing.add(Pair(id=str(number), baseline=answered, candidate=answered))

    finding = pairing.finding()

    assert finding.action is Action.CONTINUE
    assert finding.missing == ("no pair has a cost of both",)


def test_a_dry_run_is_shown_and_not_judged() -> None:
    plan = Plan()
    plan = replace(
        plan, metrics=tuple(replace(each, dry_run=each.name == "latency") for each in plan.metrics)
    )

    finding = judged(1, plan, latency=4.0, errors=(0.0, 0.0))

    assert finding.action is Action.PROMOTE
    assert finding.comparisons[1].word is Word.HARMFUL


def test_it_says_about_how_many_more_pairs_would_decide() -> None:
    pairing = Pairing(Plan())
    for pair in list(pairs(5, errors=(0.0, 0.0)))[:60]:
        finding = pairing.add(pair)

    assert finding.action is Action.CONTINUE
    assert finding.needed is not None
    assert 20 < finding.needed < 300


PAIR = {
    "id": "a",
    "baseline": {"error": False, "latency_s": 1.0, "cost": 0.01},
    "candidate": {"error": True},
}


def test_a_pair_is_read_as_it_was_written() -> None:
    pair = Pair.from_json(PAIR)  # type: ignore[arg-type]  # a dictionary of this kind is JSON

    assert pair.baseline == Answered(error=False, latency_s=1.0, cost_usd=0.01)
    assert pair.candidate == Answered(error=True)
    assert Pair.from_json(pair.to_json()) == pair


def _with(arm: str, **members: object) -> Callable[[], object]:
    return lambda: PAIR | {arm: PAIR[arm] | members}  # type: ignore[operator]  # a dictionary, both times


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (list, "a pair is no object"),
        (lambda: {"id": "a", "baseline": {"error": False}}, "a pair has no `candidate`"),
        (lambda: PAIR | {"id": 3}, "`id` is no text"),
        (lambda: PAIR | {"arm": "x"}, "unknown member `arm`"),
        (_with("baseline", latency_s=-1), "`baseline.latency_s` is -1"),
        (_with("candidate", cost=math.nan), "`candidate.cost` is nan"),
        (_with("candidate", cost="much"), "`candidate.cost` is no number"),
        (_with("candidate", error=0), "`candidate.error` is neither true nor false"),
    ],
)
def test_what_is_no_pair_is_told_in_a_sentence(made: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pair.from_json(made())  # type: ignore[arg-type]  # what is read may be anything
