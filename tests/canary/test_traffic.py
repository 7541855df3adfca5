"""Simulated traffic is what it says it is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy_gates.canary import stream
from deploy_gates.canary.traffic import (
    HARMS,
    NULLS,
    SCENARIOS,
    START_MS,
    Family,
    Law,
    Traffic,
    checked,
    information_nats,
    observations,
    shares,
    steps,
)
from deploy_gates.core.errors import SettingsError
from deploy_gates.core.tally import BIN_MS, Arm, Histogram, Tally, Unit


def arms(traffic: Traffic, seed: int = 1) -> dict[Arm, list[Tally]]:
    """The tallies of the canary, by arm."""
    every = [each for _, tallies in steps(traffic, seed) for each in tallies if each.start_ms >= START_MS]
    return {arm: [each for each in every if each.arm is arm] for arm in Arm}


def median(tallies: list[Tally], metric: str) -> float:
    whole = sum((getattr(each, metric) for each in tallies), Histogram())
    buckets = sorted(whole.counts)
    cumulated = np.cumsum([whole.counts[each] for each in buckets])
    return float(1.04 ** (buckets[int(np.searchsorted(cumulated, cumulated[-1] / 2))] + 0.5))


def test_rates_shares_and_effects_are_as_asked_for() -> None:
    traffic = Traffic(rate_rps=1000, share=0.2, errors_ratio=3.0, latency_ratio=1.5, cost_ratio=2.0)

    found = arms(traffic)

    n = {arm: sum(each.started for each in found[arm]) for arm in Arm}
    errors = {arm: sum(each.errors for each in found[arm]) / n[arm] for arm in Arm}
    assert sum(n.values()) == pytest.approx(300_000, rel=0.01)
    assert n[Arm.CANDIDATE] / sum(n.values()) == pytest.approx(0.2, abs=0.005)
    assert errors[Arm.BASELINE] == pytest.approx(0.01, abs=0.001)
    assert errors[Arm.CANDIDATE] == pytest.approx(0.03, abs=0.003)
    for metric, ratio in (("latency_s", 1.5), ("cost_usd", 2.0)):
        medians = [median(found[arm], metric) for arm in Arm]
        assert medians[1] / medians[0] == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_seed_repeats_its_traffic(name: str) -> None:
    assert list(steps(SCENARIOS[name], 3)) == list(steps(SCENARIOS[name], 3))
    assert list(steps(SCENARIOS[name], 3)) != list(steps(SCENARIOS[name], 4))


@pytest.mark.parametrize("name", ["aa", "steps", "sticky", "tail"])
def test_tallies_and_observations_are_the_same_traffic(name: str, tmp_path: Path) -> None:
    traffic = replace(SCENARIOS[name], duration_s=120.0, steps=SCENARIOS[name].steps[:1])
    file = tmp_path / "traffic.ndjson"
    file.write_text("".join(observations(traffic, 5)))

    made = arms(traffic, 5)
    read = [each for _, tallies in stream.read(str(file)) for each in tallies if each.start_ms >= 0]

    assert {each.unit for each in read} == {traffic.unit}
    for arm in Arm:
        counted = sum(each.started for each in read if each.arm is arm)
        if traffic.unit is Unit.REQUEST:
            assert counted == sum(each.started for each in made[arm])
        else:  # the reader forgets users when the candidate comes, so those who were there count as new
            assert 0.95 < counted / sum(each.started for each in made[arm]) < 1.25


def test_no_bin_straddles_a_step_and_revisions_have_their_shares() -> None:
    traffic = NULLS["steps"]

    found = arms(replace(traffic, rate_rps=1000))

    for revision, share in shares(traffic).items():
        n = {arm: sum(each.started for each in found[arm] if each.revision == revision) for arm in Arm}
        assert n[Arm.CANDIDATE] / sum(n.values()) == pytest.approx(share, abs=0.01)
    assert sorted(shares(traffic).values()) == [0.05, 0.25, 0.5]


def test_users_keep_their_arm_and_are_counted_once() -> None:
    lines = [json.loads(each) for each in observations(NULLS["sticky"], 2)]
    seen: dict[str, set[str]] = {}
    for each in lines:
        if each["t"] >= 0:
            seen.setdefault(each["key"], set()).add(each["arm"])

    users = sum(each.started for _, tallies in steps(NULLS["sticky"], 2) for each in tallies)

    assert {len(each) for each in seen.values()} == {1}
    assert users < len(lines) / 3


def test_a_cold_start_ends() -> None:
    found = arms(replace(NULLS["cold"], rate_rps=1000), 1)
    early = [each for each in found[Arm.CANDIDATE] if each.start_ms < START_MS + 4 * BIN_MS]
    late = [each for each in found[Arm.CANDIDATE] if each.start_ms >= START_MS + 4 * BIN_MS]

    assert median(early, "latency_s") / median(late, "latency_s") == pytest.approx(1.5, rel=0.06)


@pytest.mark.parametrize("family", Family)
def test_every_law_has_its_median_and_rises(family: Family) -> None:
    law = Law(median=0.8, spread=0.7, family=family)

    values = law.at(np.linspace(-3, 3, 61))

    assert (np.diff(values) >= 0).all()
    assert law.at(np.zeros(1))[0] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("name", "fewest"),
    [("err2", 1256), ("err5", 123), ("outage", 4), ("lat10", 801), ("lat30", 106), ("cost10", 1098)],
)
def test_the_information_is_that_of_the_published_table(name: str, fewest: int) -> None:
    found = math.log(100) / information_nats(HARMS[name])

    assert found == pytest.approx(fewest, rel=0.02 if fewest > 10 else 0.2)


def test_the_information_of_a_plain_shift_is_known() -> None:
    """Where no request fails, which would leave no latency; here one in a hundred does."""
    traffic = Traffic(latency=Law(median=1.0, spread=0.5), latency_ratio=math.exp(0.05), share=0.01)

    assert information_nats(traffic) == pytest.approx(0.99 * 0.99 * 0.1**2 / 2, rel=0.001)


@pytest.mark.parametrize(
    "changes",
    [{"rate_rps": 0.0}, {"share": 1.0}, {"duration_s": 1.0}, {"errors_ratio": 200.0}, {"rate_rps": 1e7}],
)
def test_traffic_that_makes_no_sense_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="cannot be simulated"):
        checked(replace(Traffic(), **changes))  # type: ignore[arg-type]
