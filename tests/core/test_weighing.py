"""What a canary is told of its tallies: laws that hold for all of them, and each way to end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy_gates.canary.traffic import NULLS, steps
from deploy_gates.core.canary import (
    COST,
    DEFAULT_METRICS,
    ERRORS,
    LATENCY,
    Action,
    Aspect,
    Better,
    Decision,
    Inconclusive,
    Kind,
    Metric,
    Plan,
    Word,
    checked,
)
from deploy_gates.core.errors import SettingsError
from deploy_gates.core.shares import ShareSums
from deploy_gates.core.tally import BIN_MS, Arm, Histogram, Tally, Unit
from deploy_gates.core.weighing import mark_rate, mark_tests, sums_of, weigh

START_MS = 1_000 * BIN_MS
QUICK = Plan(warm_up_s=0)


def law(n: int, *, median: float, spread: float = 0.8, seed: int = 0) -> list[float]:
    """So many values of a lognormal law."""
    return list(median * np.exp(spread * np.random.default_rng(seed).standard_normal(n)))


def tally(
    arm: Arm,
    at: int,
    n: int,
    *,
    errors: int = 0,
    slower: float = 1.0,
    dearer: float = 1.0,
    seed: int = 0,
    **changes: object,
) -> Tally:
    """What one arm got in bin number `at` of the canary."""
    mixed = seed * 10_000 + (at + 500) * 2 + (arm is Arm.CANDIDATE)
    made = Tally(
        config="ticket-triage",
        environment="production",
        revision=7,
        arm=arm,
        start_ms=START_MS + at * BIN_MS,
        started=n,
        finished=n,
        errors=errors,
        latency_s=Histogram.of(law(n - errors, median=0.8 * slower, seed=mixed)),
        cost_usd=Histogram.of(law(n, median=0.002 * dearer, spread=1.0, seed=mixed + 1_000_000)),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def traffic(
    bins: int,
    *,
    n: int = 475,
    m: int = 25,
    before: int = 12,
    errors: float = 0.01,
    seed: int = 0,
    **harm: float,
) -> Iterator[Tally]:
    """Both arms, bin by bin; `harm` is what happens to the candidate."""
    rng = np.random.default_rng(seed)
    worse = float(harm.pop("errors_ratio", 1.0))
    for at in range(-before, bins):
        yield tally(Arm.BASELINE, at, n, errors=int(rng.binomial(n, errors)), seed=seed)
        if at >= 0:
            failed = int(rng.binomial(m, min(errors * worse, 1)))
            yield tally(Arm.CANDIDATE, at, m, errors=failed, seed=seed, **harm)  # type: ignore[arg-type]


def weighed(plan: Plan, tallies: Iterable[Tally], *, bins: int | None = None) -> Decision:
    """All at once."""
    every = list(tallies)
    end = max(each.start_ms for each in every) + BIN_MS if bins is None else START_MS + bins * BIN_MS
    return weigh(plan, every, at_ms=end)


def looked(plan: Plan, tallies: Iterable[Tally], *, bins: int | None = None) -> Decision:
    """Bin by bin, until it has ended."""
    every = list(tallies)
    by_bin: dict[int, list[Tally]] = {}
    for each in every:
        by_bin.setdefault(each.start_ms, []).append(each)
    last = max(by_bin) if bins is None else START_MS + (bins - 1) * BIN_MS
    decision = None
    for start in range(min(by_bin), last + 1, BIN_MS):
        decision = weigh(plan, by_bin.get(start, ()), decision, at_ms=start + BIN_MS)
        if decision.has_ended:
            break
    assert decision is not None
    return decision


def numbers(decision: Decision) -> list[tuple[object, ...]]:
    """What a decision says, rounded where sums are taken in another order."""
    return [
        (
            each.metric,
            each.aspect,
            each.word,
            round(each.log_e_harm, 6),
            round(each.log_e_safe, 6),
            each.needed,
        )
        for each in decision.readings
    ]


# --- Laws ----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), parts=st.integers(2, 5), order=st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_splitting_merging_and_ordering_tallies_changes_nothing(seed: int, parts: int, order: object) -> None:
    whole = list(traffic(6, seed=seed))
    split = [piece for each in whole for piece in pieces(each, parts)]
    order.shuffle(split)  # type: ignore[attr-defined]

    assert numbers(weighed(QUICK, split)) == numbers(weighed(QUICK, whole))


def pieces(tally: Tally, parts: int) -> Iterator[Tally]:
    """The same tally as several clients would have sent it."""
    for part in range(parts):
        yield replace(
            tally,
            started=_part(tally.started, part, parts),
            finished=_part(tally.finished, part, parts),
            errors=_part(tally.errors, part, parts),
            latency_s=_histogram(tally.latency_s, part, parts),
            cost_usd=_histogram(tally.cost_usd, part, parts),
        )


def _part(count: int, part: int, parts: int) -> int:
    return count // parts + (part < count % parts)


def _histogram(whole: Histogram, part: int, parts: int) -> Histogram:
    counts = {bucket: _part(count, part, parts) for bucket, count in whole.counts.items()}
    return Histogram(
        counts={bucket: count for bucket, count in counts.items() if count}, total=whole.total / parts
    )


def test_time_may_be_shifted() -> None:
    here = list(traffic(8, seed=4))
    there = [replace(each, start_ms=each.start_ms + 12_345 * BIN_MS) for each in here]

    assert numbers(weighed(QUICK, there)) == numbers(weighed(QUICK, here))


def test_looking_once_tells_what_looking_often_does() -> None:
    every = list(traffic(20, seed=5))

    once, often = weighed(QUICK, every), looked(QUICK, every)

    assert numbers(once) == numbers(often)
    assert (once.action, once.log_e) == (often.action, often.log_e)


@pytest.mark.parametrize("harm", ["errors_ratio", "slower", "dearer"])
def test_more_harm_is_more_evidence(harm: str) -> None:
    found = [
        weighed(QUICK, traffic(20, seed=6, **{harm: ratio})).log_e
        for ratio in (1.0, 1.5, 2.5, 5.0)  # type: ignore[arg-type]
    ]

    assert found == sorted(found)
    assert found[-1] > found[0] + 20


def test_one_more_error_is_more_evidence_and_one_less_is_less() -> None:
    base = list(traffic(10, seed=7, errors=0.05))
    last = next(at for at, each in enumerate(base) if each.arm is Arm.CANDIDATE and 0 < each.errors < 20)
    found = []
    for change in (-1, 0, 1):
        changed = list(base)
        changed[last] = replace(base[last], errors=base[last].errors + change)
        found.append(weighed(QUICK, changed).reading(ERRORS).log_e_harm)

    assert found == sorted(set(found))


def test_arms_may_be_swapped() -> None:
    """The likelihood of an odds ratio is that of its inverse with the arms swapped."""
    every = list(traffic(10, seed=8, errors=0.1, before=0))
    other = {Arm.BASELINE: Arm.CANDIDATE, Arm.CANDIDATE: Arm.BASELINE}

    here = weighed(QUICK, every).reading(ERRORS)
    there = weighed(QUICK, [replace(each, arm=other[each.arm]) for each in every]).reading(ERRORS)

    assert here.ratio is not None
    assert there.ratio is not None
    assert math.log(here.ratio) == pytest.approx(-math.log(there.ratio), abs=1e-6)
    assert math.log(here.low or 0) == pytest.approx(-math.log(there.high or 0), abs=1e-6)


def test_a_metric_that_is_better_higher_is_weighed_as_its_inverse() -> None:
    """Tokens a second fall as seconds a token rise."""

    def speeds(ratio: float) -> Iterator[Tally]:
        for each in traffic(20, seed=9, slower=ratio):
            yield replace(each, metrics={"speed": Histogram.of([1 / x for x in values(each.latency_s)])})

    plan = Plan(
        warm_up_s=0,
        metrics=(
            *DEFAULT_METRICS,
            Metric(
                name="speed",
                kind=Kind.AMOUNT,
                better=Better.HIGHER,
                margin_ratio=1.22,
                proofs=(Aspect.SHAPE,),
            ),
        ),
    )

    found = weighed(plan, speeds(1.2))

    speed, latency = found.reading("speed"), found.reading(LATENCY)
    assert speed.ratio == pytest.approx(latency.ratio, rel=0.02)
    assert speed.log_e_harm == pytest.approx(latency.log_e_harm, rel=0.15)
    assert speed.baseline is not None
    assert speed.candidate is not None
    assert speed.baseline > speed.candidate


def values(histogram: Histogram) -> list[float]:
    return [1.04 ** (bucket + 0.5) for bucket, count in histogram.counts.items() for _ in range(count)]


def test_drift_and_traffic_steps_are_nobodys_fault() -> None:
    every = []
    for at in range(-12, 60):
        share = 0.05 if at < 20 else 0.25 if at < 40 else 0.5
        slower, n = 1 + max(at, 0) / 20, 500
        for arm in Arm:
            m = round(n * (share if arm is Arm.CANDIDATE else 1 - share)) if at >= 0 else n
            if at >= 0 or arm is Arm.BASELINE:
                made = tally(arm, at, m, errors=round(m * 0.01 * slower), slower=slower, seed=10)
                every.append(replace(made, revision=7 + (at >= 20) + (at >= 40)))

    found = looked(QUICK, every)

    assert found.action is not Action.ROLLBACK
    assert found.reading(LATENCY).ratio == pytest.approx(1.0, abs=0.06)


# --- How it ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("harm", "cause"),
    [({"errors_ratio": 8.0}, ERRORS), ({"slower": 1.5}, LATENCY), ({"dearer": 1.6}, COST)],
)
def test_harm_is_rolled_back_and_named(harm: Mapping[str, float], cause: str) -> None:
    found = looked(QUICK, traffic(60, seed=11, **harm))  # type: ignore[arg-type]

    assert found.action is Action.ROLLBACK
    assert found.cause[0] == cause
    assert cause in found.reason
    assert found.reading(cause).word is Word.HARMFUL
    assert found.log_e >= found.log_e_limit


def test_a_good_candidate_is_promoted_by_proof() -> None:
    found = looked(QUICK, traffic(60, n=4750, m=250, seed=12))

    assert found.action is Action.PROMOTE
    judged = [each for each in found.readings if each.margin_ratio is not None]
    assert {each.word for each in judged} == {Word.SAFE}
    assert len(judged) == 5


def test_a_decision_that_has_ended_stays() -> None:
    ended = looked(QUICK, traffic(60, seed=11, slower=2.0))

    assert weigh(QUICK, traffic(80), ended, at_ms=ended.at_ms + 10 * BIN_MS) is ended


def test_what_is_too_little_is_undecided_and_says_how_much_more() -> None:
    found = looked(QUICK, traffic(60, n=95, m=5, seed=13))

    assert found.action is Action.CONTINUE
    assert found.marks == 1
    assert found.next_mark_s == 600
    assert found.needed is not None
    assert 100 < found.needed < 5_000
    assert "goes on to 600 s" in found.reason


@pytest.mark.parametrize(
    ("plan", "action"),
    [
        (Plan(on_inconclusive=Inconclusive.HOLD), Action.HOLD),
        (Plan(on_inconclusive=Inconclusive.ROLLBACK), Action.ROLLBACK),
        (Plan(extensions=0), Action.ROLLBACK),
        (Plan(extensions=0, then=Inconclusive.HOLD), Action.HOLD),
    ],
)
def test_at_the_last_mark_an_undecided_canary_does_what_its_plan_says(plan: Plan, action: Action) -> None:
    found = looked(plan, traffic(60, n=95, m=5, seed=13))

    assert found.action is action
    assert found.cause == ("undecided",)


def chance(sums: ShareSums, level: float) -> float:
    """That of a p-value at or below a level: over all numbers of bad ones that there might have been."""
    return sum(float(each) for at, each in enumerate(sums.law) if sums.law[at:].sum() <= level)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("extensions", [0, 2])
def test_what_is_spent_at_the_marks_is_their_part_at_most(seed: int, extensions: int) -> None:
    """Errors are counted: of 250 requests with some 5, few numbers have a p-value just below a level."""
    plan = replace(QUICK, extensions=extensions, false_promotion=1e-9)
    found = looked(plan, traffic(4, n=950, m=50, seed=40 + seed))

    assert mark_rate(plan, 0) < plan.false_rollback
    for mark in range(extensions + 1):
        spent = 0.0
        for each in mark_tests(plan, sums_of(found), mark):
            sums = sums_of(found).metrics[each.metric]
            spent += chance(sums, each.level) if isinstance(sums, ShareSums) else each.level
        assert 0.6 * mark_rate(plan, mark) < spent <= mark_rate(plan, mark) * (1 + 1e-9)


@pytest.mark.parametrize("n", [1, 5, 14, 34, 58])
@pytest.mark.parametrize("share", [3, 19])
def test_where_errors_alone_roll_back_no_worse_lies_outside_of_their_interval(n: int, share: int) -> None:
    errors, plan = DEFAULT_METRICS[0], QUICK
    enough = plan.false_rollback / 2 / len(plan.metrics)

    for in_baseline in (0, 1, 3):
        for in_candidate in range(1, n + 1):
            sums = ShareSums().added(errors, (in_baseline, n * share), (in_candidate, n))
            (harm,), (measured,) = sums.harms(errors), sums.measured(errors, plan)
            if harm.value >= -math.log(enough):
                assert (measured.bounds.low or 0) > 1, (in_baseline, in_candidate)


def test_the_first_errors_are_a_hard_limit() -> None:
    every = [*traffic(0, seed=14), tally(Arm.BASELINE, 0, 95), tally(Arm.CANDIDATE, 0, 6, errors=5)]

    found = looked(
        replace(QUICK, metrics=tuple(replace(each, dry_run=each.name == ERRORS) for each in DEFAULT_METRICS)),
        every,
    )

    assert (found.action, found.cause) == (Action.ROLLBACK, ("errors.limit",))
    assert found.reason == "errors reached the hard limit: 5 of the candidate's first 6 requests failed"


@pytest.mark.parametrize(("errors", "action"), [(9, Action.ROLLBACK), (60, Action.CONTINUE)])
def test_an_outage_of_both_arms_is_not_the_candidates(errors: int, action: Action) -> None:
    every = [*traffic(0, seed=14), tally(Arm.BASELINE, 0, 95, errors=errors)]

    found = looked(QUICK, [*every, tally(Arm.CANDIDATE, 0, 10, errors=5)])

    assert found.action is action


def test_five_errors_of_many_are_no_hard_limit() -> None:
    every = [
        *traffic(0, seed=14),
        tally(Arm.BASELINE, 0, 4750, errors=95),
        tally(Arm.CANDIDATE, 0, 250, errors=5),
    ]

    assert looked(QUICK, every).action is Action.CONTINUE


def test_requests_that_never_came_back_are_errors() -> None:
    every = [
        replace(each, started=each.started + 10) if each.arm is Arm.CANDIDATE else each
        for each in traffic(30, seed=15)
    ]

    found = looked(QUICK, every)

    assert (found.action, found.cause[0]) == (Action.ROLLBACK, ERRORS)
    assert found.arms.unfinished > 0


def test_requests_that_ended_after_a_report_are_neither_errors_nor_counted_twice() -> None:
    every = list(traffic(30, seed=15))
    in_two = [
        part
        for each in every
        for part in (
            Tally(
                config=each.config,
                environment=each.environment,
                revision=each.revision,
                arm=each.arm,
                start_ms=each.start_ms,
                started=each.started // 2,
            ),
            replace(each, started=each.started - each.started // 2),
        )
    ]

    found = looked(QUICK, in_two)

    assert found.arms.unfinished == 0
    assert numbers(found) == numbers(looked(QUICK, every))


def test_the_warm_up_is_left_out_of_latency_and_cost_and_not_of_errors() -> None:
    def cold() -> Iterator[Tally]:
        for each in traffic(40, seed=16):
            at = (each.start_ms - START_MS) // BIN_MS
            if each.arm is Arm.CANDIDATE and at < 4:
                yield tally(Arm.CANDIDATE, at, 25, slower=3.0, dearer=3.0, seed=16)
            else:
                yield each

    warm, at_once = looked(Plan(), cold()), looked(QUICK, cold())

    assert at_once.action is Action.ROLLBACK
    assert warm.action is Action.PROMOTE
    assert warm.reading(LATENCY).seen_candidate < warm.reading(ERRORS).seen_candidate
    assert warm.arms.excluded == 6 * 25


# --- What is missing -----------------------------------------------------------------------------


def test_before_the_first_request_there_is_nothing_to_decide() -> None:
    found = looked(QUICK, traffic(0, seed=17))

    assert (found.action, found.started_ms) == (Action.HOLD, None)
    assert weigh(QUICK, (), at_ms=START_MS).action is Action.HOLD


def test_without_requests_of_the_candidate_traffic_is_held_and_then_taken_back() -> None:
    every = list(traffic(4, seed=18))
    every += [tally(Arm.BASELINE, at, 475, seed=18) for at in range(4, 40)]

    held, ended = looked(QUICK, every, bins=8), looked(QUICK, every, bins=40)

    assert (held.action, held.missing) == (Action.HOLD, ("the candidate got no request for 20 s",))
    assert (ended.action, ended.cause) == (Action.ROLLBACK, ("missing",))


def test_a_canary_of_users_who_were_all_counted_is_undecided_as_long_as_they_keep_coming() -> None:
    every = [replace(each, unit=Unit.USER) for each in traffic(4, seed=18)]
    again = [
        replace(tally(arm, at, 0, unit=Unit.USER), latency_s=Histogram(), cost_usd=Histogram())
        for at in range(4, 50)
        for arm in Arm
    ]

    coming, gone = looked(QUICK, [*every, *again]), looked(QUICK, every, bins=50)

    assert (coming.action, coming.missing) == (Action.CONTINUE, ())
    assert (gone.action, gone.cause) == (Action.ROLLBACK, ("missing",))


def test_without_a_baseline_nothing_is_promoted() -> None:
    every = [each for each in traffic(60, n=475, m=475, seed=19) if each.arm is Arm.CANDIDATE]

    found = looked(QUICK, every)

    assert found.action is Action.HOLD
    assert "the baseline got no request" in found.missing[0]


def test_a_metric_without_data_keeps_a_good_candidate_from_being_promoted() -> None:
    every = [replace(each, cost_usd=Histogram()) for each in traffic(30, n=4750, m=250, seed=20)]

    found = looked(QUICK, every)

    assert found.action is Action.CONTINUE
    assert found.missing == ("nothing is known of cost in both arms",)
    assert found.reading(COST).baseline is None


@pytest.mark.parametrize(("arms", "action"), [((Arm.CANDIDATE,), Action.CONTINUE), (Arm, Action.PROMOTE)])
def test_a_candidate_of_which_less_is_known_than_of_the_baseline_is_not_promoted(
    arms: Iterable[Arm], action: Action
) -> None:
    """The latencies that are missing may be those of its slow requests; half of both are no such thing."""
    rng = np.random.default_rng(21)
    every = []
    for each in traffic(20, n=4750, m=250, seed=21):
        half = Histogram.of(each for each in values(each.latency_s) if rng.random() < 0.5)
        every.append(replace(each, latency_s=half) if each.arm in arms else each)

    found = looked(QUICK, every)

    assert found.action is action
    assert [each for each in found.missing if "good requests of the candidate only" not in each] == []
    assert bool(found.missing) is (action is Action.CONTINUE)


def test_lost_outcomes_keep_a_good_candidate_from_being_promoted() -> None:
    every = [
        replace(each, dropped=10) if each.arm is Arm.CANDIDATE else each
        for each in traffic(30, n=4750, m=250, seed=21)
    ]

    found = looked(QUICK, every)

    assert found.action is not Action.PROMOTE
    assert "were lost" in found.missing[0]


def test_traffic_that_is_not_split_as_declared_is_held() -> None:
    found = looked(replace(QUICK, share=0.05), traffic(30, n=4750, m=100, seed=22))
    declared = looked(replace(QUICK, share=0.05, shares={7: 100 / 4850}), traffic(30, n=4750, m=100, seed=22))

    assert found.action is Action.HOLD
    assert "do not share the traffic as declared" in found.missing[0]
    assert declared.action is Action.PROMOTE


# --- Plans ---------------------------------------------------------------------------------------


def test_a_dry_run_is_shown_and_decides_nothing() -> None:
    metrics = tuple(replace(each, dry_run=each.name == LATENCY) for each in DEFAULT_METRICS)

    found = looked(replace(QUICK, metrics=metrics), traffic(60, n=4750, m=250, seed=23, slower=3.0))

    assert found.action is Action.PROMOTE
    assert found.reading(LATENCY).dry_run
    assert found.reading(LATENCY).word is Word.HARMFUL


def test_harm_below_the_rollback_ratio_is_let_be() -> None:
    metrics = tuple(
        replace(each, rollback_ratio=1.15) if each.name == LATENCY else each for each in DEFAULT_METRICS
    )
    every = list(traffic(40, n=4750, m=250, seed=24, slower=1.1))

    assert looked(QUICK, every).action is Action.ROLLBACK
    assert looked(replace(QUICK, metrics=metrics), every).action is Action.PROMOTE


@pytest.mark.parametrize(("accepted", "action"), [(0.91, Action.PROMOTE), (0.80, Action.ROLLBACK)])
def test_a_share_of_ones_own_has_its_margin_in_points(accepted: float, action: Action) -> None:
    metric = Metric(name="accepted", kind=Kind.SHARE, better=Better.HIGHER, margin_pt=4.0, warm_up=False)
    plan = replace(QUICK, metrics=(*DEFAULT_METRICS, metric))
    rng = np.random.default_rng(25)
    every = []
    for each in traffic(60, n=4750, m=250, seed=25):
        rate = accepted if each.arm is Arm.CANDIDATE else 0.91
        good = int(rng.binomial(each.finished, rate))
        votes = Histogram(counts={0: good, -710: each.finished - good}, total=good)
        every.append(replace(each, metrics={"accepted": votes}))

    found = looked(plan, every)

    reading = found.reading("accepted")
    assert found.action is action
    assert reading.baseline == pytest.approx(0.91, abs=0.01)
    assert reading.candidate == pytest.approx(accepted, abs=0.03)


def test_a_share_without_values_yet_is_undecided() -> None:
    metric = Metric(name="accepted", kind=Kind.SHARE, margin_pt=2.0, warm_up=False)

    found = looked(replace(QUICK, metrics=(*DEFAULT_METRICS, metric)), traffic(2, seed=26))

    assert found.reading("accepted").word is Word.UNDECIDED
    assert found.reading("accepted").margin_ratio is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": ()}, "dry run"),
        ({"metrics": (*DEFAULT_METRICS, DEFAULT_METRICS[0])}, "twice"),
        ({"false_rollback": 0.0}, "false_rollback"),
        ({"mark_s": 20.0}, "warm_up_s"),
        ({"limit_errors": 11}, "limit_errors"),
        ({"share": 1.5}, "share"),
        ({"metrics": (Metric(name="x", kind=Kind.AMOUNT),)}, "margin_ratio"),
        ({"metrics": (Metric(name="x", kind=Kind.AMOUNT, margin_pt=1.0),)}, "for shares"),
        ({"metrics": (Metric(name="x", kind=Kind.SHARE, margin_ratio=0.9),)}, "above 1"),
        ({"metrics": (Metric(name="x", kind=Kind.SHARE, margin_ratio=1.1, rollback_ratio=1.2),)}, "never"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes: Mapping[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        checked(replace(Plan(), **changes))  # type: ignore[arg-type]


def test_a_bin_is_weighed_once() -> None:
    first = weighed(QUICK, traffic(3, seed=27))

    with pytest.raises(ValueError, match="does not lie between"):
        weigh(QUICK, [tally(Arm.BASELINE, 2, 10)], first, at_ms=first.at_ms + BIN_MS)
    with pytest.raises(ValueError, match="does not lie between"):
        weigh(QUICK, [tally(Arm.BASELINE, 9, 10)], first, at_ms=first.at_ms + BIN_MS)


def test_a_decision_is_json_without_its_sums() -> None:
    import json

    found = looked(Plan(), traffic(20, seed=28))

    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["action"] == "continue"
    assert [each["metric"] for each in told["metrics"]] == [ERRORS, *[LATENCY] * 6, *[COST] * 6]


def test_where_hardly_anything_fails_the_margin_in_points_lets_a_good_candidate_pass() -> None:
    never = looked(QUICK, traffic(30, n=4750, m=250, errors=0.0, seed=29))
    ratio_only = replace(DEFAULT_METRICS[0], margin_pt=None)
    strict = looked(
        replace(QUICK, metrics=(ratio_only, *DEFAULT_METRICS[1:])),
        traffic(30, n=4750, m=250, errors=0.0, seed=29),
    )

    assert never.action is Action.PROMOTE
    assert strict.action is Action.CONTINUE
    assert "errors is not proved" in strict.reason


def test_a_rare_failure_that_becomes_frequent_is_not_promoted() -> None:
    every = [
        replace(each, errors=2, finished=each.finished) if each.arm is Arm.CANDIDATE else each
        for each in traffic(30, n=4750, m=250, errors=0.0, seed=30)
    ]

    found = looked(QUICK, every)

    assert (found.action, found.cause[0]) == (Action.ROLLBACK, ERRORS)


def test_gaps_of_little_traffic_are_nothing_missing() -> None:
    every = list(traffic(0, n=4, seed=31))
    for at in range(40):
        every.append(tally(Arm.BASELINE, at, 4, seed=31))
        if at % 8 == 0:
            every.append(tally(Arm.CANDIDATE, at, 1, seed=31))

    decision = None
    for start in range(START_MS - 12 * BIN_MS, START_MS + 40 * BIN_MS, BIN_MS):
        there = [each for each in every if each.start_ms == start]
        decision = weigh(QUICK, there, decision, at_ms=start + BIN_MS)
        if decision.started_ms is not None and start >= START_MS:
            assert decision.action is Action.CONTINUE


@pytest.mark.parametrize("rate_rps", [0.3, 1.0])
def test_a_canary_with_hardly_any_traffic_is_undecided_and_not_taken_back(rate_rps: float) -> None:
    plan = replace(QUICK, mark_s=2_000.0, extensions=0)
    thin = replace(NULLS["aa"], rate_rps=rate_rps, duration_s=1_800.0)

    for seed in range(8):
        decision = None
        for at_ms, tallies in steps(thin, seed):
            decision = weigh(plan, tallies, decision, at_ms=at_ms, explain=False)
        assert decision is not None
        assert decision.action in (Action.CONTINUE, Action.HOLD), (seed, decision.reason)


def test_where_nobody_comes_any_more_a_canary_is_held_and_then_taken_back() -> None:
    decision = looked(QUICK, traffic(12))
    ends = []
    for each in range(13, 60):
        decision = weigh(QUICK, (), decision, at_ms=START_MS + each * BIN_MS)
        ends.append(decision.action)

    assert (ends[1], ends[2], ends[-1]) == (Action.CONTINUE, Action.HOLD, Action.ROLLBACK)
    assert decision.reason == "the candidate got no request for 120 s: nothing can be judged"


def test_simulated_users_who_were_all_counted_are_a_sign_of_life() -> None:
    closed = replace(NULLS["sticky"], requests_per_user=300.0, duration_s=900.0)
    plan = replace(QUICK, unit=Unit.USER, mark_s=1_000.0, extensions=0)

    decision = None
    for at_ms, tallies in steps(closed, 3):
        decision = weigh(plan, tallies, decision, at_ms=at_ms, explain=False)

    assert decision is not None
    assert decision.action is Action.CONTINUE, decision.reason


@pytest.mark.parametrize("margin", [{"margin_ratio": 2.0}, {"margin_pt": 20.0}])
def test_before_anything_can_be_compared_nothing_is_promoted(margin: dict[str, float]) -> None:
    """The first bin of a canary that nobody of the baseline has met: a margin in points is none yet."""
    errors = Metric(name=ERRORS, kind=Kind.SHARE, warm_up=False, **margin)
    others = tuple(replace(each, dry_run=True) for each in DEFAULT_METRICS[1:])
    plan = replace(QUICK, metrics=(errors, *others))

    found = looked(plan, [tally(Arm.CANDIDATE, 0, 2)])

    assert found.action is Action.CONTINUE
