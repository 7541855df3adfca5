"""Tallies add up, survive JSON, and are refused in one sentence where they are not what they claim."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_gates.core.tally import (
    BIN_MS,
    BINS_MAX,
    GROWTH,
    HIGHEST,
    LOWEST,
    METRICS_MAX,
    Arm,
    Histogram,
    Tally,
    Unit,
    bucket_of,
    edges,
)

counts = st.integers(0, 10**9)
# Quarters of small numbers: their sums are exact, so that the laws are, too.
histograms = st.builds(
    Histogram,
    counts=st.dictionaries(st.integers(LOWEST, HIGHEST), st.integers(1, 10**6), max_size=6),
    total=st.integers(-(10**9), 10**9).map(lambda quarters: quarters / 4),
)
metrics = st.dictionaries(st.sampled_from(["helpful", "length", "žalost"]), histograms, max_size=3)


def a_tally(**fields: Any) -> Tally:
    """Ten calls of a baseline."""
    made: dict[str, Any] = {
        "config": "ticket-triage",
        "environment": "production",
        "revision": 42,
        "arm": Arm.BASELINE,
        "start_ms": 1_790_000_000_000,
        "started": 10,
        "finished": 9,
        "errors": 1,
        "latency_s": Histogram.of([0.5, 0.8, 2.5]),
        "cost_usd": Histogram.of([0.0021]),
        "metrics": {"helpful": Histogram.of([1, 0, 1])},
    }
    return Tally(**(made | fields))


same_key = st.builds(
    a_tally,
    started=counts,
    finished=counts,
    errors=counts,
    latency_s=histograms,
    cost_usd=histograms,
    metrics=metrics,
    dropped=counts,
)
any_tally = st.builds(
    a_tally,
    config=st.text(min_size=1, max_size=200),
    environment=st.sampled_from(["development", "staging", "production"]),
    revision=st.integers(1, 2**53),
    arm=st.sampled_from(Arm),
    unit=st.sampled_from(Unit),
    start_ms=st.integers(0, 2**40).map(lambda n: n * BIN_MS),
    started=counts,
    latency_s=histograms,
    cost_usd=histograms,
    metrics=metrics,
    dropped=counts,
)


# --- Addition -------------------------------------------------------------------------------------


@given(same_key, same_key, same_key)
def test_addition_does_not_care_for_order(one: Tally, two: Tally, three: Tally) -> None:
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)


@given(same_key)
def test_an_empty_tally_changes_nothing(tally: Tally) -> None:
    empty = Tally(
        config=tally.config,
        environment=tally.environment,
        revision=tally.revision,
        arm=tally.arm,
        start_ms=tally.start_ms,
    )

    assert tally + empty == tally


@given(st.lists(st.floats(1e-15, 1e15), max_size=30), st.lists(st.floats(1e-15, 1e15), max_size=30))
def test_histograms_of_parts_add_up_to_that_of_the_whole(one: list[float], other: list[float]) -> None:
    whole, sums = Histogram.of(one + other), Histogram.of(one) + Histogram.of(other)

    assert sums.counts == whole.counts
    assert sums.n == len(one) + len(other)
    assert math.isclose(sums.total, whole.total, rel_tol=1e-12)


def test_addition_leaves_the_parts_alone() -> None:
    one, two = a_tally(), a_tally()
    before = one.to_json()

    one + two  # what matters is what it leaves behind

    assert one.to_json() == two.to_json() == before


@pytest.mark.parametrize(
    "other",
    [
        {"config": "another"},
        {"environment": "staging"},
        {"revision": 43},
        {"arm": Arm.CANDIDATE},
        {"unit": Unit.USER},
        {"start_ms": 1_790_000_005_000},
    ],
    ids=lambda each: next(iter(each)),
)
def test_tallies_of_different_things_do_not_add_up(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="do not add up"):
        a_tally() + a_tally(**other)


# --- JSON -----------------------------------------------------------------------------------------


@given(any_tally)
def test_a_tally_comes_back_from_json_as_it_was(tally: Tally) -> None:
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))) == tally


GARBAGE: dict[str, Any] = {
    "a list": lambda raw: [raw],
    "a text": lambda raw: "tally",
    "nothing": lambda raw: None,
    "a member too few": lambda raw: {key: each for key, each in raw.items() if key != "dropped"},
    "a member too many": lambda raw: raw | {"user": "ada"},
    "no config": lambda raw: raw | {"config": ""},
    "a config of 201 characters": lambda raw: raw | {"config": "x" * 201},
    "a config that is a number": lambda raw: raw | {"config": 7},
    "revision 0": lambda raw: raw | {"revision": 0},
    "a third arm": lambda raw: raw | {"arm": "control"},
    "another unit": lambda raw: raw | {"unit": "session"},
    "a start between bins": lambda raw: raw | {"start_ms": 1_790_000_000_001},
    "a start before 1970": lambda raw: raw | {"start_ms": -BIN_MS},
    "a negative count": lambda raw: raw | {"started": -1},
    "half a call": lambda raw: raw | {"finished": 0.5},
    "true calls": lambda raw: raw | {"errors": True},
    "a count beyond all counts": lambda raw: raw | {"dropped": 2**53 + 1},
    "a histogram that is a list": lambda raw: raw | {"latency_s": [[0, 1]]},
    "buckets that are an object": lambda raw: raw | {"latency_s": {"counts": {"0": 1}, "total": 1}},
    "a bucket without a count": lambda raw: raw | {"latency_s": {"counts": [[0]], "total": 1}},
    "an empty bucket": lambda raw: raw | {"latency_s": {"counts": [[0, 0]], "total": 1}},
    "a bucket twice": lambda raw: raw | {"latency_s": {"counts": [[0, 1], [0, 1]], "total": 1}},
    "a bucket too low": lambda raw: raw | {"latency_s": {"counts": [[LOWEST - 1, 1]], "total": 1}},
    "a bucket too high": lambda raw: raw | {"latency_s": {"counts": [[HIGHEST + 1, 1]], "total": 1}},
    "too many buckets": lambda raw: raw | {"latency_s": {"counts": [[0, 1]] * (BINS_MAX + 1), "total": 1}},
    "an infinite total": lambda raw: raw | {"cost_usd": {"counts": [[0, 1]], "total": math.inf}},
    "a total that is NaN": lambda raw: raw | {"cost_usd": {"counts": [[0, 1]], "total": math.nan}},
    "a total that is a text": lambda raw: raw | {"cost_usd": {"counts": [[0, 1]], "total": "1"}},
    "metrics in a list": lambda raw: raw | {"metrics": []},
    "a metric without a name": lambda raw: raw | {"metrics": {"": raw["cost_usd"]}},
    "too many metrics": lambda raw: (
        raw | {"metrics": {f"m{n}": raw["cost_usd"] for n in range(METRICS_MAX + 1)}}
    ),
}


@pytest.mark.parametrize("spoil", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_refused_in_one_sentence(spoil: Any) -> None:
    raw = a_tally().to_json()

    with pytest.raises(ValueError) as refused:
        Tally.from_json(spoil(raw))

    said = str(refused.value)
    assert said
    assert "\n" not in said


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(a_tally().to_json())), json_values, min_size=1))
def test_whatever_stands_in_a_tally_it_is_one_or_a_value_error(spoilt: dict[str, Any]) -> None:
    try:
        read = Tally.from_json(a_tally().to_json() | spoilt)
    except ValueError:
        return

    assert Tally.from_json(read.to_json()) == read


# --- Buckets --------------------------------------------------------------------------------------


@given(st.floats(1.0001e-12, 0.9999e12))
def test_a_value_lies_between_the_edges_of_its_bucket_which_are_4_percent_apart(value: float) -> None:
    below, above = edges(bucket_of(value))

    assert below * (1 - 1e-9) <= value <= above * (1 + 1e-9)
    assert above / below == pytest.approx(GROWTH)
    assert GROWTH <= 1.04


@given(st.floats(1e-13, 1e13), st.floats(1e-13, 1e13))
def test_the_greater_value_never_lies_in_the_lower_bucket(one: float, other: float) -> None:
    assert (bucket_of(one) <= bucket_of(other)) == (one <= other) or bucket_of(one) == bucket_of(other)


@pytest.mark.parametrize(
    ("value", "bucket"),
    [
        (0, LOWEST),
        (-0.0, LOWEST),
        (-5, LOWEST),
        (-math.inf, LOWEST),
        (5e-324, LOWEST),
        (1e-13, LOWEST),
        (1, 0),
        (1.039, 0),
        (1.041, 1),
        (0.99, -1),
        (1e13, HIGHEST),
        (1.7e308, HIGHEST),
        (math.inf, HIGHEST),
    ],
)
def test_every_number_has_a_bucket(value: float, bucket: int) -> None:
    assert bucket_of(value) == bucket


def test_nan_has_none() -> None:
    with pytest.raises(ValueError, match="NaN"):
        bucket_of(math.nan)


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=50))
def test_the_mean_is_known_exactly_and_by_the_buckets_to_4_percent(values: list[float]) -> None:
    histogram = Histogram.of(values)

    by_buckets = sum(edges(bucket)[0] * count for bucket, count in histogram.counts.items())

    assert histogram.total == pytest.approx(sum(values))
    assert by_buckets <= histogram.total * (1 + 1e-9)
    assert histogram.total <= by_buckets * GROWTH * (1 + 1e-9)


def test_what_is_true_or_false_is_counted_as_1_and_0() -> None:
    histogram = Histogram.of([True, False, True])

    assert (histogram.n, histogram.total) == (3, 2.0)
    assert histogram.counts == {LOWEST: 1, bucket_of(1): 2}


def test_replacing_the_bin_makes_another_key() -> None:
    tally = a_tally()

    assert replace(tally, start_ms=tally.start_ms + BIN_MS).key != tally.key
    assert replace(tally, started=0, dropped=3).key == tally.key
