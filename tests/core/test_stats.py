"""Statistics are tested by what they promise: count how often the promise is broken."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given as by_hypothesis
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from deploy_gates.core import stats
from deploy_gates.core.stats import Conclusion, Pair, Paired, paired

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
SIZES = (10, 30, 50, 150, 200, 1000)

MET = Pair(baseline=1, candidate=1)
WORSE = Pair(baseline=1, candidate=0)
BETTER = Pair(baseline=0, candidate=1)


def pairs(n: int, *, better: int = 0, worse: int = 0) -> list[Pair]:
    """`n` cases of which so many changed."""
    return [WORSE] * worse + [BETTER] * better + [MET] * (n - better - worse)


def concluded(given: Sequence[Pair], margin: float = 0.02) -> Paired:
    return paired(given, margin=margin, confidence=CONFIDENCE)


# --- The promise, enumerated: yes or no, equal weights, no clusters -----------------------------


@functools.cache
def fewest_better(n: int, worse: int, margin: float) -> int:
    """So many have to get better, where so many got worse, for the lower bound to clear the margin."""
    return bisect.bisect_left(
        range(n - worse + 1),
        True,
        key=lambda better: stats.difference_low(better, worse, n, CONFIDENCE) >= -margin,
    )


def chance_of_no_worse(n: int, margin: float, share: float, loss: float) -> float:
    """How likely that is where `share` of the cases change, `loss` of them for the worse on balance."""
    p_better, p_worse = (share - loss) / 2, (share + loss) / 2
    total = 0.0
    for worse in range(n + 1):
        likely = float(scipy_stats.binom.pmf(worse, n, p_worse))
        if likely > 1e-7:
            fewest = fewest_better(n, worse, margin)
            total += likely * float(scipy_stats.binom.sf(fewest - 1, n - worse, p_better / (1 - p_worse)))
    return total


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("margin", [0.02, 0.05])
def test_a_loss_as_large_as_the_margin_passes_in_at_most_one_of_twenty_runs(n: int, margin: float) -> None:
    shares = sorted({margin, margin + 0.005, 0.1, 0.2})

    chances = {share: chance_of_no_worse(n, margin, share, loss=margin) for share in shares}

    assert max(chances.values()) <= ALPHA, chances


@pytest.mark.parametrize("n", [*SIZES, 89, 133, 140])
def test_a_margin_at_which_nothing_changes_but_for_the_worse_is_no_way_around(n: int) -> None:
    """Tango's interval passes such a loss in 6.8 % of the runs at n = 133."""
    chances = [chance_of_no_worse(n, margin, margin, loss=margin) for margin in (0.01, 0.02, 0.1)]

    assert max(chances) <= ALPHA


def test_no_loss_is_called_worse_in_at_most_one_of_twenty_runs() -> None:
    changed = range(301)
    fewest = [
        bisect.bisect_left(
            range(all_ + 1), True, key=lambda worse: stats.mcnemar(all_ - worse, worse) < ALPHA
        )
        for all_ in changed
    ]
    calls = scipy_stats.binom.sf([few - 1 for few in fewest], changed, 0.5)

    chances = {
        (n, share): float(scipy_stats.binom.pmf(changed, n, share) @ calls)
        for n in SIZES
        for share in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    }

    assert max(chances.values()) <= ALPHA, chances


def test_harmless_changes_of_a_good_dataset_pass_and_harmful_ones_are_found() -> None:
    """A bound that always said undecided would keep every promise above."""
    harmless = chance_of_no_worse(1000, 0.02, 0.02, loss=0.0)
    calls = [stats.mcnemar(changed, changed + 50) < ALPHA for changed in range(0, 100, 5)]

    assert harmless > 0.98
    assert all(calls)


# --- The promise, simulated: clusters, weights, scores ------------------------------------------


def clustered(size: int, share: float, loss: float, together: float) -> Callable[[random.Random], list[Pair]]:
    """200 cases in clusters; in `together` of these, what happens to one happens to all."""

    def draw(chance: random.Random) -> Pair:
        at = chance.random()
        return WORSE if at < (share + loss) / 2 else BETTER if at < share else MET

    def sample(chance: random.Random) -> list[Pair]:
        made = []
        for name in range(200 // size):
            alike = draw(chance) if chance.random() < together else None
            made += [replace(alike or draw(chance), cluster=f"{name}") for _ in range(size)]
        return made

    return sample


def weighted(share: float, loss: float) -> Callable[[random.Random], list[Pair]]:
    """200 cases, some of which count ten times."""
    plain = clustered(1, share, loss, together=0)

    def sample(chance: random.Random) -> list[Pair]:
        return [replace(pair, weight=chance.choice((1, 1, 1, 10)), cluster="") for pair in plain(chance)]

    return sample


def sampled(loss: float) -> Callable[[random.Random], list[Pair]]:
    """150 cases, five samples of each, of which every sixth case is unstable."""

    def score(chance: random.Random, rate: float) -> float:
        return sum(chance.random() < rate for _ in range(5)) / 5

    def sample(chance: random.Random) -> list[Pair]:
        made = [MET] * 125
        for _ in range(25):
            rate = chance.uniform(0.35, 0.8)
            made.append(Pair(baseline=score(chance, rate), candidate=score(chance, rate - loss * 6)))
        return made

    return sample


def uneven(loss: float) -> Callable[[random.Random], list[Pair]]:
    """150 cases, ten stored answers of the baseline and one of the candidate to each, a sixth unstable."""

    def score(chance: random.Random, rate: float, samples: int) -> float:
        return sum(chance.random() < rate for _ in range(samples)) / samples

    def sample(chance: random.Random) -> list[Pair]:
        made = []
        for at in range(150):
            rate = chance.uniform(0.5, 0.9) if at % 6 == 0 else 0.99
            made.append(Pair(baseline=score(chance, rate, 10), candidate=score(chance, rate - loss, 1)))
        return made

    return sample


def hidden(sizes: Sequence[int], whole: float, single: float) -> Callable[[random.Random], list[Pair]]:
    """Clusters of which the largest fail as a whole so often that `whole` is lost, amid cases that change to
    either side, and more for the worse so that `single` is lost.
    """
    largest = [size for size in sizes if size == max(sizes)]
    fails = whole * sum(sizes) / sum(largest)

    def sample(chance: random.Random) -> list[Pair]:
        made = []
        for name, size in enumerate(sizes):
            is_lost = size == largest[0] and chance.random() < fails
            for _ in range(size):
                at = chance.random()
                pair = WORSE if is_lost or at < 0.02 + single else BETTER if at > 0.98 else MET
                made.append(replace(pair, cluster=f"{name}"))
        return made

    return sample


SAMPLES: dict[str, Callable[[float], Callable[[random.Random], list[Pair]]]] = {
    "clusters of 5, half of them alike": lambda loss: clustered(5, 0.1, loss, together=0.5),
    "clusters of 5, all alike": lambda loss: clustered(5, 0.1, loss, together=1),
    "clusters of 20, independent": lambda loss: clustered(20, 0.1, loss, together=0),
    "weights of 1 and 10": lambda loss: weighted(0.1, loss),
    "scores of five samples": sampled,
    "ten answers against one": uneven,
    "clusters that fail as a whole": lambda loss: hidden([10] * 100, loss, 0),
    "half of it by whole clusters": lambda loss: hidden([10] * 100, loss / 2, loss / 2),
    "large clusters among single cases": lambda loss: hidden([1] * 300 + [20] * 5, loss, 0),
    "the same, half of it": lambda loss: hidden([1] * 300 + [20] * 5, loss / 2, loss / 2),
}
RUNS = 300
LUCK = 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
"""By this much a promise that is kept may look broken, in one of a thousand simulations."""


def rates(sample: Callable[[random.Random], list[Pair]], seed: str, margin: float) -> dict[Conclusion, float]:
    chance = random.Random(seed)
    words = [concluded(sample(chance), margin).conclusion for _ in range(RUNS)]
    return {word: words.count(word) / RUNS for word in Conclusion}


@pytest.mark.parametrize("name", SAMPLES)
def test_clusters_weights_and_scores_let_no_loss_pass_either(name: str) -> None:
    sample = SAMPLES[name](0.05)

    found = rates(sample, name, margin=0.05)

    assert found[Conclusion.NO_WORSE] <= ALPHA + LUCK


@pytest.mark.parametrize("name", SAMPLES)
def test_clusters_weights_and_scores_are_not_called_worse_by_luck(name: str) -> None:
    sample = SAMPLES[name](0.0)

    found = rates(sample, name, margin=0.0)

    assert found[Conclusion.WORSE] <= ALPHA + LUCK


def test_ignoring_the_clusters_would_break_the_promise() -> None:
    sample = clustered(10, 0.1, 0.0, together=1)

    found = rates(lambda chance: [replace(pair, cluster="") for pair in sample(chance)], "naive", margin=0.0)

    assert found[Conclusion.WORSE] > 4 * ALPHA


def test_clusters_that_fail_as_a_whole_and_none_of_which_was_seen_are_allowed_for() -> None:
    few = [replace(MET, cluster=f"{at // 10}") for at in range(500)]

    found = concluded(few)

    assert found.low == pytest.approx(-(1 - 0.05 ** (1 / 50)))
    assert found.conclusion is Conclusion.UNDECIDED


def test_no_failing_of_whole_clusters_that_costs_more_than_the_bound_is_likely_not_to_be_seen() -> None:
    chance = random.Random(7)
    for _ in range(200):
        sizes = [chance.choice((1, 1, 1, 2, 5, 20)) for _ in range(chance.randint(5, 200))]
        low = concluded([replace(MET, weight=size, cluster=f"{at}") for at, size in enumerate(sizes)]).low
        fails = [
            chance.random() ** chance.choice((1, 4, 20)) * (size > 1 or chance.random()) for size in sizes
        ]
        cost = math.fsum(p * size for p, size in zip(fails, sizes, strict=True)) / sum(sizes)

        assert cost <= -low or math.prod(1 - p for p in fails) <= ALPHA


def test_many_clusters_in_which_little_changes_prove_the_margin() -> None:
    """A bound that allowed for anything would keep every promise above."""
    found = rates(hidden([5] * 200, 0, 0), "harmless", margin=0.05)

    assert found[Conclusion.NO_WORSE] > 0.9


@pytest.mark.parametrize("n", [10, 50, 200])
def test_changes_in_part_prove_no_more_than_no_change_at_all(n: int) -> None:
    slight = [Pair(baseline=1 - 0.02 * (at % 2), candidate=0.98 + 0.02 * (at % 2)) for at in range(n)]

    assert concluded(slight).low <= concluded(pairs(n)).low + 1e-12


def test_a_large_loss_among_many_small_ones_leaves_more_room_than_its_share_of_the_spread() -> None:
    """The same mean and the same second moment: what is rare and large may be missed by luck."""
    even = [Pair(baseline=1, candidate=3 / 4)] * 32 + [MET] * 168
    rare = [WORSE] + [Pair(baseline=1, candidate=6 / 7)] * 49 + [MET] * 150

    assert concluded(rare).delta == pytest.approx(concluded(even).delta)
    assert concluded(rare).low < concluded(even).low


# --- Laws ---------------------------------------------------------------------------------------

MIXED = [
    Pair(baseline=0.2, candidate=0.8, weight=3, cluster="a"),
    Pair(baseline=1, candidate=0.4, cluster="a"),
    Pair(baseline=1, candidate=0, weight=0.5, cluster="b"),
    Pair(baseline=0, candidate=1),
    *[Pair(baseline=1, candidate=1, cluster=f"c{at % 7}") for at in range(40)],
]


@pytest.mark.parametrize("given", [pairs(60, better=3, worse=7), MIXED], ids=["plain", "mixed"])
def test_exchanging_baseline_and_candidate_turns_everything_around(given: list[Pair]) -> None:
    turned = [replace(pair, baseline=pair.candidate, candidate=pair.baseline) for pair in given]

    found, other = concluded(given), concluded(turned)

    assert (other.delta, other.low, other.high) == pytest.approx((-found.delta, -found.high, -found.low))
    assert (other.better, other.worse) == (found.worse, found.better)
    assert other.p_worse == pytest.approx(1 - found.p_worse)


@pytest.mark.parametrize("given", [pairs(60, better=3, worse=7), MIXED], ids=["plain", "mixed"])
def test_neither_order_nor_the_unit_of_the_weights_matters(given: list[Pair]) -> None:
    chance = random.Random(1)
    other = [replace(pair, weight=pair.weight * 7) for pair in chance.sample(given, k=len(given))]

    first, second = concluded(given), concluded(other)

    for name in ("baseline", "candidate", "delta", "low", "high", "p_worse", "effective_n"):
        assert getattr(second, name) == pytest.approx(getattr(first, name))


EXTREME = st.builds(
    Pair,
    baseline=st.sampled_from([0.0, 0.2, 1.0]),
    candidate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    weight=st.sampled_from([1e-6, 1e-3, 1.0, 7.0, 1e6]),
    cluster=st.sampled_from(["", "a", "b"]),
)


@by_hypothesis(st.lists(EXTREME, min_size=1, max_size=6))
def test_whatever_cases_weigh_there_are_bounds(given: list[Pair]) -> None:
    found = concluded(given)

    assert -1 <= found.low <= found.delta + 1e-9
    assert found.delta - 1e-9 <= found.high <= 1


@pytest.mark.parametrize("n", [10, 50, 400])
def test_the_bound_moves_with_what_happened_and_never_past_it(n: int) -> None:
    for worse, better in itertools.product(range(0, n // 2, max(2, n // 20)), repeat=2):
        low = stats.difference_low(better, worse, n, CONFIDENCE)

        assert -1 <= low < (better - worse) / n
        assert low < stats.difference_low(better + 1, worse, n, CONFIDENCE)
        assert low > stats.difference_low(better, worse + 1, n, CONFIDENCE) or low == -1


def test_a_case_that_outweighs_all_others_is_as_good_as_alone() -> None:
    others = [replace(pair, weight=1e-3) for pair in pairs(500, better=20)]
    found = concluded([replace(MET, weight=1e6), *others])

    assert found.effective_n == pytest.approx(1, abs=1e-5)
    assert found.conclusion is Conclusion.UNDECIDED


def test_copies_of_a_case_in_its_cluster_prove_nothing_more() -> None:
    once = [replace(pair, cluster=f"{at}") for at, pair in enumerate(pairs(200, better=4, worse=4))]

    found, copied = concluded(once), concluded(once * 5)

    assert copied.low <= found.low + 1e-12
    assert copied.effective_n == pytest.approx(200)
    assert copied.clusters == 200


def test_without_a_single_change_the_bound_is_the_rule_of_three() -> None:
    for n in (10, 100, 150, 1000):
        found = concluded(pairs(n))

        assert found.low == pytest.approx(-(1 - 0.05 ** (1 / n)))
        assert (found.conclusion is Conclusion.NO_WORSE) == (n >= 149)
        assert found.p_worse == 1


def test_the_same_requests_differ_by_nothing_however_few_they_are() -> None:
    given = [replace(MET, same_request=True), Pair(baseline=0, candidate=0, same_request=True)]

    found = concluded(given)

    assert (found.delta, found.low, found.high) == (0, 0, 0)
    assert found.conclusion is Conclusion.NO_WORSE
    assert found.baseline == found.candidate == 0.5


def test_one_request_that_differs_brings_chance_back() -> None:
    found = concluded([MET, *[replace(MET, same_request=True)] * 20])

    assert found.low < -0.1
    assert found.conclusion is Conclusion.UNDECIDED


@pytest.mark.parametrize(
    ("better", "worse", "conclusion"),
    [
        (0, 0, Conclusion.NO_WORSE),
        (7, 4, Conclusion.NO_WORSE),
        (3, 15, Conclusion.WORSE),
        (4, 9, Conclusion.UNDECIDED),
    ],
)
def test_of_400_cases_the_changed_ones_decide(better: int, worse: int, conclusion: Conclusion) -> None:
    found = concluded(pairs(400, better=better, worse=worse))

    assert found.conclusion is conclusion
    assert (found.n, found.better, found.worse) == (400, better, worse)
    assert found.delta == pytest.approx((better - worse) / 400)
    assert found.low < found.delta < found.high


@pytest.mark.parametrize("names", ["aa", "aaa", "aabb"])
@pytest.mark.parametrize("change", [(0, 0.2), (0.2, 0), (0.5, 0.8)])
def test_cases_of_a_cluster_that_change_alike_in_part_have_bounds(
    names: str, change: tuple[float, float]
) -> None:
    given = [Pair(baseline=change[0], candidate=change[1], cluster=name) for name in names]

    found = concluded(given)

    assert -1 <= found.low <= found.delta <= found.high <= 1
    assert found.conclusion is Conclusion.UNDECIDED


def test_one_cluster_alone_says_nothing() -> None:
    found = concluded([replace(pair, cluster="only") for pair in pairs(500, better=20)])

    assert (found.low, found.high) == (-1, 1)
    assert found.conclusion is Conclusion.UNDECIDED


@pytest.mark.parametrize(
    "given",
    [
        [],
        [Pair(baseline=math.nan, candidate=1)],
        [Pair(baseline=0, candidate=1.01)],
        [Pair(baseline=-0.1, candidate=1)],
        [Pair(baseline=1, candidate=1, weight=0)],
        [Pair(baseline=1, candidate=1, weight=math.nan)],
        [Pair(baseline=1, candidate=1, weight=math.inf)],
        [Pair(baseline=1, candidate=1, weight=1e-200)],
        [Pair(baseline=1, candidate=0, same_request=True)],
    ],
    ids=str,
)
def test_what_is_no_score_is_refused(given: list[Pair]) -> None:
    with pytest.raises(ValueError):
        concluded(given)


@pytest.mark.parametrize(("margin", "confidence"), [(-0.01, 0.95), (math.nan, 0.95), (0.02, 0.5), (0.02, 1)])
def test_what_is_no_margin_or_confidence_is_refused(margin: float, confidence: float) -> None:
    with pytest.raises(ValueError):
        paired([MET], margin=margin, confidence=confidence)


# --- How much is needed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "better", "worse"), [(60, 0, 0), (200, 5, 5), (200, 3, 7), (100, 1, 2), (50, 5, 2)]
)
def test_as_many_more_cases_as_it_says_would_decide(n: int, better: int, worse: int) -> None:
    more = stats.more_needed(pairs(n, better=better, worse=worse), margin=0.02, confidence=CONFIDENCE)

    assert more is not None

    def undecided(times: float) -> bool:
        scaled = pairs(round(n * times), better=round(better * times), worse=round(worse * times))
        return concluded(scaled).conclusion is Conclusion.UNDECIDED

    assert undecided(1 + 0.7 * more / n)
    assert not undecided(1 + 1.4 * more / n)


def test_no_number_of_cases_proves_that_nothing_is_lost_at_all() -> None:
    more = stats.more_needed(pairs(100), margin=0.0, confidence=CONFIDENCE)

    assert more is None


def test_where_it_is_decided_no_more_are_needed() -> None:
    assert stats.more_needed(pairs(400), margin=0.02, confidence=CONFIDENCE) == 0


@pytest.mark.parametrize(
    ("share", "loss_pt", "n"),
    [
        (0.05, 1, 3089),
        (0.05, 2, 771),
        (0.05, 3, 341),
        (0.10, 1, 6181),
        (0.10, 2, 1544),
        (0.10, 3, 685),
        (0.10, 5, 245),
        (0.20, 1, 12363),
        (0.20, 2, 3089),
        (0.20, 3, 1372),
        (0.20, 5, 493),
        (0.20, 10, 122),
    ],
)
def test_the_smallest_loss_that_can_be_seen_is_that_of_the_published_table(
    share: float, loss_pt: float, n: int
) -> None:
    seen = stats.detectable(n, share, CONFIDENCE)

    assert seen == pytest.approx(loss_pt, rel=0.002)


def test_more_cases_see_smaller_losses_and_one_case_sees_none() -> None:
    seen = [stats.detectable(n, 0.0, CONFIDENCE) for n in (1, 10, 100, 1000)]

    assert seen[0] is None
    assert seen[1:] == sorted(seen[1:], reverse=True)  # type: ignore[type-var]


# --- Against others' numbers --------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_rates_have_the_bounds_that_scipy_computes(confidence: float) -> None:
    two_sided = 2 * confidence - 1
    for k, n in [(0, 10), (1, 10), (7, 20), (20, 20), (387, 400), (3, 10_000)]:
        test = scipy_stats.binomtest(k, n)
        for method, ours in (("wilson", stats.wilson), ("exact", stats.clopper_pearson)):
            theirs = test.proportion_ci(two_sided, method=method)

            assert (ours(k, n, confidence).low, ours(k, n, confidence).high) == pytest.approx(
                (theirs.low, theirs.high), abs=1e-12
            )


def test_distributions_agree_with_scipy() -> None:
    chance = random.Random(3)
    for _ in range(300):
        a, b = 10 ** chance.uniform(-1, 4), 10 ** chance.uniform(-1, 4)
        x = min(1 - 1e-9, max(1e-9, chance.betavariate(a, b)))
        p = chance.choice((0.01, 0.05, 0.5, 0.95, 0.99))

        assert stats.beta_cdf(x, a, b) == pytest.approx(scipy_stats.beta.cdf(x, a, b), abs=1e-9)
        assert stats.beta_quantile(p, a, b) == pytest.approx(scipy_stats.beta.ppf(p, a, b), abs=1e-9)


def test_the_t_quantile_agrees_with_scipy() -> None:
    for freedom, p in itertools.product((0.7, 1, 2.5, 9, 49, 999, 1e5), (0.6, 0.95, 0.995)):
        assert stats.t_quantile(p, freedom) == pytest.approx(scipy_stats.t.ppf(p, freedom), rel=1e-6)


def test_the_p_value_is_the_mid_p_of_mcnemar() -> None:
    for better, worse in itertools.product(range(0, 40, 3), repeat=2):
        changed = scipy_stats.binom(better + worse, 0.5)
        expected = changed.sf(worse) + changed.pmf(worse) / 2 if better + worse else 1.0

        assert stats.mcnemar(better, worse) == pytest.approx(expected, abs=1e-12)


def test_unequal_amounts_are_flipped_in_every_way() -> None:
    chance = random.Random(4)
    for _ in range(50):
        scores = [chance.choice((0, 0.2, 0.4, 0.6, 1)) for _ in range(16)]
        given = [Pair(baseline=b, candidate=c) for b, c in zip(scores[::2], scores[1::2], strict=True)]
        changes = [pair.candidate - pair.baseline for pair in given]
        flipped = [
            sum(sign * each for sign, each in zip(signs, changes, strict=True))
            for signs in itertools.product((1, -1), repeat=len(changes))
        ]
        observed = sum(changes)
        equal = sum(math.isclose(each, observed, abs_tol=1e-9) for each in flipped)
        lower = sum(each < observed - 1e-9 for each in flipped)
        expected = (lower + equal / 2) / len(flipped) if any(changes) else 1.0

        assert concluded(given).p_worse == pytest.approx(expected, abs=1e-9)


def test_many_unequal_amounts_are_flipped_as_the_normal_limit_says() -> None:
    chance = random.Random(5)
    given = [
        Pair(baseline=0.5, candidate=0.5 + chance.uniform(-0.5, 0.45), weight=chance.uniform(1, 2))
        for _ in range(500)
    ]
    won = [pair.weight * (pair.candidate - pair.baseline) for pair in given]

    found = concluded(given)

    z = sum(won) / math.sqrt(sum(each * each for each in won))
    assert found.p_worse == pytest.approx(scipy_stats.norm.cdf(z), abs=0.002)


def test_a_bound_stated_by_hand() -> None:
    """2 % - 6 % - √(1.643² + 5.491² + 2 · 0.0361 · 1.643 · 5.491) %, with limits from a table."""
    low = stats.difference_low(2, 6, 100, CONFIDENCE)

    assert low == pytest.approx(-0.0979, abs=0.0001)
