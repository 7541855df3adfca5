"""The statistics that a canary rests on, against exact counting."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deploy_gates.core import sequential


def exact(log_w: np.ndarray, n: np.ndarray, k: int) -> float:
    """The mean product over all choices of k, by adding them up."""
    polynomial = np.zeros(k + 1)
    polynomial[0] = 1.0
    for weight, count in zip(np.exp(log_w), n.astype(int), strict=True):
        terms = [math.comb(count, j) * weight**j for j in range(min(count, k) + 1)]
        polynomial = np.convolve(polynomial, terms)[: k + 1]
    return math.log(polynomial[k]) - math.log(math.comb(int(n.sum()), k))


@given(
    n=st.lists(st.integers(1, 30), min_size=2, max_size=12).filter(lambda n: sum(n) >= 20),
    share=st.floats(0.02, 0.98),
    spread=st.floats(0, 0.8),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_the_mean_product_is_that_of_all_choices(
    n: list[int], share: float, spread: float, seed: int
) -> None:
    counts = np.array(n, dtype=float)
    k = min(max(round(share * sum(n)), 1), sum(n) - 1)
    log_w = spread * np.random.default_rng(seed).standard_normal(len(n))

    found = sequential.log_mean_product(log_w[None, :], counts, k)[0]

    assert found == pytest.approx(exact(log_w, counts, k), abs=3e-4)


def test_the_mean_product_of_few_values_is_near_to_counting_them() -> None:
    values = np.array([-0.4, -0.1, 0.0, 0.3, 0.7])

    found = sequential.log_mean_product(values[None, :], np.ones(5), 2)[0]

    choices = [math.exp(values[a] + values[b]) for a, b in itertools.combinations(range(5), 2)]
    assert found == pytest.approx(math.log(sum(choices) / len(choices)), abs=2e-3)


@pytest.mark.parametrize("log_w", [5.0, 10.0, 16.0, 200.0, 600.0])
@pytest.mark.parametrize(("n", "m", "k"), [(10, 10, 10), (95, 5, 5), (5, 95, 5), (50, 50, 50), (99, 1, 5)])
def test_weights_that_are_far_apart_are_never_taken_for_less_than_they_are(
    n: int, m: int, k: int, log_w: float
) -> None:
    counts = np.array([n, m], dtype=float)

    found = sequential.log_mean_product(np.array([[0.0, log_w]]), counts, k)[0]

    j = np.arange(max(0, k - n), min(k, m) + 1)
    counted = np.logaddexp.reduce(stats.hypergeom(n + m, m, k).logpmf(j) + log_w * j)
    assert counted - 0.02 < found < math.inf


@pytest.mark.parametrize(("k", "expected"), [(0, 0.0), (7, 7 * math.log(3))])
def test_choosing_none_or_all_leaves_nothing_to_chance(k: int, expected: float) -> None:
    found = sequential.log_mean_product(np.full((1, 2), math.log(3)), np.array([3.0, 4.0]), k)

    assert found[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("total", "marked", "k"), [(100, 3, 5), (500, 250, 25), (20, 20, 3), (9000, 4000, 4500)]
)
@pytest.mark.parametrize("log_theta", [-2.0, 0.0, 0.7, 3.0])
def test_odds_are_those_of_the_noncentral_hypergeometric_law(
    total: int, marked: int, k: int, log_theta: float
) -> None:
    law = stats.hypergeom(total, marked, k)
    j = np.arange(0, min(k, marked) + 1)

    found = sequential.log_mean_odds(np.array([log_theta]), total, marked, k)[0]

    terms = law.logpmf(j) + log_theta * j
    assert found == pytest.approx(float(np.logaddexp.reduce(terms)), abs=1e-4)


def test_the_law_of_marked_ones_is_that_of_the_noncentral_hypergeometric() -> None:
    low, law = sequential.hypergeometric(60, 20, 10, log_theta=math.log(3))

    expected = stats.nchypergeom_fisher(60, 20, 10, 3.0).pmf(np.arange(low, low + len(law)))
    assert law == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", [0.4, 2.0])
def test_the_tail_of_a_sum_is_that_of_its_law(shape: float) -> None:
    """Gamma laws: their sums are known, and skewed."""
    n, deviation = 400, math.sqrt(shape)
    tilts = np.minimum(sequential.TILTS / deviation, 0.97)  # the law has no generating function from 1 on
    generating = n * shape * (-np.log1p(-tilts) - tilts)
    for z in (2.0, 3.0, 3.5):
        x = z * deviation * math.sqrt(n)

        found = sequential.upper_tail(x / deviation, generating)

        assert found == pytest.approx(stats.gamma(n * shape).sf(n * shape + x), rel=0.05)


@pytest.mark.parametrize("noise", [0.0, 1e-12, -1e-12])
def test_a_sum_that_does_not_vary_tells_nothing(noise: float) -> None:
    assert sequential.upper_tail(noise, np.full(len(sequential.TILTS), noise)) == 1.0


@given(
    candidate=st.integers(0, 30),
    n=st.integers(30, 31),
    share=st.floats(0.05, 0.5),
)
def test_the_split_is_an_e_value(candidate: int, n: int, share: float) -> None:
    e = [
        math.exp(sequential.log_beta_binomial(k, n - k, share)) * stats.binom(n, share).pmf(k)
        for k in range(n + 1)
    ]

    assert sum(e) == pytest.approx(1.0, abs=1e-6)
    assert e[candidate] >= 0


def test_scores_are_normal_ranks_and_rise_beyond_what_was_seen() -> None:
    counts = np.zeros(50)
    counts[10:20] = 10

    z = sequential.normal_scores(counts, step=0.04)

    assert z[10] == pytest.approx(-z[19])
    assert z[10] == pytest.approx(stats.norm.ppf(0.05), abs=0.02)
    assert (np.diff(z) >= 0).all()
    assert z[19] < z[25] <= z[19] + 1.5


def test_bounds_lie_between_the_points_of_the_grid() -> None:
    grid = np.array([-1.0, 0.0, 1.0])

    found = sequential.bounds(grid, np.array([4.0, 0.0, 2.0]), 1.0)
    none = sequential.bounds(grid, np.zeros(3), 1.0)
    single = sequential.bounds(grid, np.array([5.0, 3.0, 9.0]), 1.0)

    assert (found.low, found.high) == (pytest.approx(math.exp(-0.25)), pytest.approx(math.exp(0.5)))
    assert (none.low, none.high) == (None, None)
    assert (single.low, single.high) == (1.0, 1.0)


def test_either_arm_tells_the_same() -> None:
    """The evidence of the chosen ones for a weight is that of the others for its inverse."""
    log_w = np.random.default_rng(3).standard_normal((4, 30)) / 3
    n = np.full(30, 4.0)
    chosen = np.arange(30) % 4.0

    one = log_w @ chosen - sequential.log_mean_product(log_w, n, chosen.sum())
    other = -log_w @ (n - chosen) - sequential.log_mean_product(-log_w, n, (n - chosen).sum())

    assert one == pytest.approx(other, abs=1e-5)
