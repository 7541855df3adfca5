"""A metric's numbers in its own words."""

from __future__ import annotations

import math
from dataclasses import replace

import canaries
import pytest

from deploy_gates.core.canary import Arms, Aspect
from deploy_gates.report import quantities


@pytest.mark.parametrize(
    ("metric", "baseline", "candidate", "said"),
    [
        ("errors", 0.0101, 0.0096, ("1.01 %", "0.96 %", "−0.05 pt")),
        ("errors", 0.01, 0.4737, ("1.00 %", "47.37 %", "+46.4 pt")),
        ("errors", 0.0, 0.0, ("0.00 %", "0.00 %", "±0.00 pt")),
        ("errors", 0.00012, 0.00031, ("0.012 %", "0.031 %", "+0.019 pt")),
        ("accepted", 0.912, 0.917, ("91.2 %", "91.7 %", "+0.5 pt")),
        ("valid output", 0.9994, 0.9967, ("99.94 %", "99.67 %", "−0.27 pt")),
        ("latency", 1.42, 1.31, ("1.42 s", "1.31 s", "−0.11 s")),
        ("latency", 0.310, 0.305, ("310 ms", "305 ms", "−5 ms")),
        ("latency", 0.9996, 0.880, ("1.00 s", "0.88 s", "−0.12 s")),
        ("latency", 61.23, 58.0, ("61.2 s", "58.0 s", "−3.2 s")),
        ("cost", 0.00064, 0.00077, ("$0.00064", "$0.00077", "+20 %")),
        ("cost", 0.000640, 0.000652, ("$0.000640", "$0.000652", "+1.9 %")),
        ("cost", 1.20, 30.0, ("$1.2", "$30.0", "×25")),
        ("tokens", 1412.0, 1398.0, ("1,412", "1,398", "−1.0 %")),
        ("tokens", None, None, ("–", "–", "–")),
        ("tokens", math.inf, 3.0, ("–", "3", "×0")),
    ],
)
def test_both_arms_have_the_digits_that_tell_them_apart(
    metric: str, baseline: float | None, candidate: float | None, said: tuple[str, str, str]
) -> None:
    found = quantities.figures(canaries.reading(metric, baseline=baseline, candidate=candidate))

    assert (found.baseline, found.candidate, found.change) == said


@pytest.mark.parametrize(
    ("metric", "baseline", "ratio", "said"),
    [
        ("errors", 0.01, 2.0, "+0.98 pt"),
        ("errors", 0.01, math.inf, "+99.0 pt"),
        ("errors", 0.0, 2.0, "×2 odds"),
        ("errors", None, 2.0, "×2 odds"),
        ("accepted", 0.9, 2.0, "−8.2 pt"),
        ("latency", 1.0, 1.22, "+22 %"),
        ("latency", 1.0, 0.958, "−4.2 %"),
        ("latency", 1.0, 1.0, "±0.0 %"),
        ("latency", 1.0, math.inf, "×∞"),
        ("latency", 1.0, 0.0, "×0"),
        ("latency", 1.0, None, "–"),
    ],
)
def test_a_ratio_is_told_as_the_change_of_the_metric(
    metric: str, baseline: float | None, ratio: float | None, said: str
) -> None:
    reading = canaries.reading(metric, baseline=baseline)

    assert quantities.change_words(reading, ratio) == said


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.011, 1.18, "+1.1 to +18 %"),
        (None, 1.18, "up to +18 %"),
        (1.1, None, "from +10 %"),
        (1.5, 20.0, "+50 % to ×20"),
        (None, None, "not bounded yet"),
    ],
)
def test_an_interval_is_told_with_its_open_ends(low: float | None, high: float | None, said: str) -> None:
    reading = canaries.reading("cost", baseline=1.0, candidate=1.1, low=low, high=high)

    assert quantities.interval_words(reading) == said


def test_an_interval_of_what_gets_better_upwards_begins_with_the_lesser_change() -> None:
    reading = canaries.reading("accepted", baseline=0.912, candidate=0.917, low=0.6, high=1.3)

    assert quantities.interval_words(reading) == "−2.3 to +3.3 pt"


def test_a_rollback_within_the_margin_says_why_it_is_one_all_the_same() -> None:
    cost = canaries.reading("cost", baseline=1.0, candidate=1.05, ratio=1.05, low=1.01, high=1.08)

    said = quantities.explained(canaries.decision([cost], cause=("cost",)))

    assert said == (
        "cost rose 5.0 %, at best 1.0 % (95 % sure, at any time); "
        "what is proved to be worse is rolled back, even within the margin of 22 %"
    )


@pytest.mark.parametrize("cause", [(), ("errors.limit",), ("missing",), ("undecided",)])
def test_what_no_metric_decided_is_explained_by_the_reason_alone(cause: tuple[str, ...]) -> None:
    assert quantities.explained(replace(canaries.going(), cause=cause)) == ""


def test_a_cause_with_an_aspect_is_found_even_in_a_metric_with_a_dot() -> None:
    tail = replace(canaries.reading("latency", aspect=Aspect.TAIL), metric="a.b")

    found = quantities.caused(canaries.decision([tail], cause=("a.b.tail",), arms=Arms()))

    assert found is tail


@pytest.mark.parametrize(
    ("log_e", "said"),
    [
        (math.log(216), "216 to 1"),
        (math.log(4_336_561), "4,336,561 to 1"),
        (math.log(1.23), "1.2 to 1"),
        (math.log(0.07), "0.07 to 1"),
        (-50.0, "<0.01 to 1"),
        (-math.inf, "<0.01 to 1"),
        (1e6, "10^999 to 1"),
        (math.inf, "10^999 to 1"),
        (math.nan, "–"),
    ],
)
def test_an_e_value_is_told_as_odds(log_e: float, said: str) -> None:
    assert quantities.odds(log_e) == said


@pytest.mark.parametrize(
    ("seconds", "span", "clock"),
    [
        (45, "45 s", "0:45"),
        (185, "3 min 05 s", "3:05"),
        (300, "5 min", "5:00"),
        (3725, "1 h 02 min", "1:02:05"),
    ],
)
def test_times_are_told_as_people_read_them(seconds: float, span: str, clock: str) -> None:
    assert (quantities.span(seconds), quantities.clock(seconds)) == (span, clock)
