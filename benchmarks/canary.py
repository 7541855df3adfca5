"""What the canary engine promises, measured on simulated traffic, beside the rules that people use today.

    python benchmarks/canary.py                                  # all tables
    python benchmarks/canary.py --quick                          # a tenth of the runs, in minutes
    python benchmarks/canary.py --only null,speed                # some of the tables
    python benchmarks/canary.py --only drift --rates 100 --runs 2000

Unless a row says otherwise, a run is a canary of 300 s at 5 % of the traffic, with a minute of the baseline
before and a look every 5 s. Rates of requests are totals of both arms. Bounds are one-sided 95 % bounds of
Clopper and Pearson.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")  # two processes share two cores

import numpy as np  # noqa: E402
from rivals import RIVALS, Series  # noqa: E402
from scipy.stats import beta  # noqa: E402

from deploy_gates.canary.traffic import (  # noqa: E402
    HARMS,
    NULLS,
    SCENARIOS,
    Family,
    Law,
    Traffic,
    information_nats,
    observations,
    steps,
)
from deploy_gates.core.canary import (  # noqa: E402
    COST,
    DEFAULT_METRICS,
    ERRORS,
    LATENCY,
    Action,
    Aspect,
    Decision,
    Inconclusive,
    Kind,
    Plan,
    declared_metric,
)
from deploy_gates.core.tally import Histogram, Tally  # noqa: E402
from deploy_gates.core.weighing import weigh  # noqa: E402

OURS = "deploy-gates"
RATES = (20, 100, 1000)
ALPHA = 0.01
SEEDS = 20_000
"""Kinds of traffic that are counted together have seeds so far apart, and are independent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Some canaries of one kind."""

    name: str
    traffic: Traffic
    plan: Plan
    seeds: range
    with_rivals: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """How one canary ended."""

    ended: Mapping[str, tuple[float, int]]
    """By rule: seconds and requests of the candidate until the rollback; a rule that is not there did not."""
    promoted_s: float | None = None


def run(job: Job) -> list[Run]:
    """All canaries of a job."""
    return [_run(job, seed) for seed in job.seeds]


def _run(job: Job, seed: int) -> Run:
    looks = list(steps(job.traffic, seed))
    plan = replace(job.plan, unit=job.traffic.unit)
    decision: Decision | None = None
    for at_ms, tallies in looks:
        decision = weigh(plan, tallies, decision, at_ms=at_ms, explain=False)
        if decision.has_ended:
            break
    assert decision is not None
    ended: dict[str, tuple[float, int]] = {}
    if decision.action is Action.ROLLBACK and decision.cause != ("undecided",):
        ended[OURS] = decision.elapsed_s, decision.arms.candidate
    if job.with_rivals:
        series = Series.of(looks)
        for name, rule in RIVALS.items():
            at = rule(series)
            if at is not None:
                ended[name] = (at + 1) * 5.0, int(series.n[1, : at + 1].sum())
    promoted_s = decision.elapsed_s if decision.action is Action.PROMOTE else None
    return Run(ended=ended, promoted_s=promoted_s)


# Plans. Detection is measured without a warm-up, as the limit is: it counts requests from the first one on.
# Nothing is promoted there (the proof would need a million to one), so that only rollbacks end a run.
DEFAULT = Plan(extensions=0)
DETECTING = Plan(warm_up_s=0.0, false_promotion=1e-6, extensions=2)
SAFETY = replace(DETECTING, warm_up_s=30.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """Which cells of the tables are asked for, and how many runs each has."""

    names: frozenset[str] = frozenset()
    """Of scenarios; empty: all."""
    rates: tuple[int, ...] = RATES
    runs: int | None = None
    scale: float = 1.0

    def wants(self, name: str, rate: int | None = None) -> bool:
        """Whether a cell is asked for."""
        return (not self.names or name in self.names) and (rate is None or rate in self.rates)

    def some(self, n: int) -> int:
        """The runs of a cell that usually has `n`."""
        return self.runs or max(20, round(n * self.scale))


class Pool:
    """Runs jobs on all cores, with a line on stderr of how far it is."""

    def __init__(self, processes: int) -> None:
        self._pool = ProcessPoolExecutor(processes)

    def runs(self, jobs: Sequence[Job]) -> list[list[Run]]:
        """The runs of each job."""
        pieces = [(at, piece) for at, job in enumerate(jobs) for piece in _pieces(job)]
        found: list[list[Run]] = [[] for _ in jobs]
        futures = [(at, self._pool.submit(run, piece)) for at, piece in pieces]
        for number, (at, future) in enumerate(futures, start=1):
            found[at] += future.result()
            if sys.stderr.isatty():
                print(f"\r  {jobs[at].name:<24} {number} of {len(futures)}   ", end="", file=sys.stderr)
        if sys.stderr.isatty():
            print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
        return found

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown()

    def covered(self, job: Job) -> list[Covered]:
        """The confidence sequences of a job."""
        return [each for piece in self._pool.map(covered, _pieces(job)) for each in piece]


def _pieces(job: Job) -> Iterator[Job]:
    size = 10 if job.traffic.rate_rps > 500 else 25
    for first in range(job.seeds.start, job.seeds.stop, size):
        yield replace(job, seeds=range(first, min(first + size, job.seeds.stop)))


def upper(count: int, n: int) -> float:
    """The upper bound of a rate."""
    return 1.0 if count == n else float(beta.ppf(0.95, count + 1, n - count))


def _rated(traffic: Traffic, rate: int) -> Traffic:
    return replace(traffic, rate_rps=float(rate))


# --- The tables ----------------------------------------------------------------------------------


def null(pool: Pool, scope: Scope) -> None:
    """How often a candidate that is no worse is rolled back."""
    jobs = [
        Job(
            name=f"{name} {rate}/s",
            traffic=_rated(traffic, rate),
            plan=SAFETY,
            seeds=range(first, first + scope.some(200 if rate > 500 else 600)),
        )
        for first, (name, traffic) in _seeded(NULLS, 100_000)
        for rate in scope.rates
        if scope.wants(name)
    ]
    if not jobs:
        return
    found = iter(pool.runs(jobs))
    print("false rollback by 300 s, %, and its bound: 1 % is declared, over all metrics and looks")
    print("  the default plan (30 s warm-up), but a promotion ends no run: there are more looks, not fewer")
    heads = (*(f"{rate}/s" for rate in scope.rates), "all rates")
    print(f"  {'':<10}" + "".join(f"{each:>17}" for each in heads))
    everything: list[Run] = []
    for name in filter(scope.wants, NULLS):
        cells = [next(found) for _ in scope.rates]
        together = [run for cell in cells for run in cell]
        everything += together
        told = "".join(f"{_rate(cell):>17}" for cell in (*cells, together))
        print(f"  {name:<10}{told}   {_held(together)}")
    print(f"  {'all':<10}{_rate(everything):>17}  of {len(everything):,} canaries   must 1.0, stretch 0.6\n")


def marks(pool: Pool, scope: Scope) -> None:
    """The same over all marks: an undecided canary goes on, and is tested again at 600 s and 900 s."""
    rate = 100
    kinds = {name: traffic for name, traffic in NULLS.items() if scope.wants(name, rate)}
    if not kinds:
        return
    plan = replace(SAFETY, on_inconclusive=Inconclusive.EXTEND, extensions=2)
    last_s = plan.mark_s * (1 + plan.extensions)
    jobs = [
        Job(
            name=name,
            traffic=replace(_rated(traffic, rate), duration_s=last_s),
            plan=plan,
            seeds=range(first, first + scope.some(200)),
        )
        for first, (name, traffic) in _seeded(kinds, 300_000)
    ]
    ends = [plan.mark_s * (1 + each) for each in range(1 + plan.extensions)]
    found = pool.runs(jobs)
    print(f"false rollback at {rate} requests a second where each mark extends the canary, %, and its bound")
    print(f"  {'by':<10}" + "".join(f"{f'{end:.0f} s':>17}" for end in ends))
    everything: list[Run] = []
    for job, runs in zip(jobs, found, strict=True):
        everything += runs
        print(f"  {job.name:<10}" + "".join(f"{_rate(_until(runs, end)):>17}" for end in ends))
    print(f"  {'all':<10}" + "".join(f"{_rate(_until(everything, end)):>17}" for end in ends))
    print(f"  of {len(everything):,} canaries: {_held(everything)}   must 1.0, stretch 0.6\n")


def _held(runs: Sequence[Run]) -> str:
    """Whether these show that no more than 1 % are rolled back."""
    count = sum(OURS in each.ended for each in runs)
    reached = _reached(100 * upper(count, len(runs)), 1.0, 0.6)
    if reached == "MISSED" and count <= 0.01 * len(runs):
        return "not shown: too few canaries for the bound"
    return reached


def _until(runs: Sequence[Run], end_s: float) -> list[Run]:
    """What had happened by then."""
    return [
        replace(each, ended={name: at for name, at in each.ended.items() if at[0] <= end_s}) for each in runs
    ]


def _rate(runs: Sequence[Run], name: str = OURS) -> str:
    count = sum(name in each.ended for each in runs)
    return f"{100 * count / len(runs):.2f} (≤ {100 * upper(count, len(runs)):.2f})"


def rivals(pool: Pool, scope: Scope) -> None:
    """The same, and power, beside other rules."""
    rate = 100
    kinds = {name: traffic for name, traffic in SCENARIOS.items() if name != "cold" and scope.wants(name)}
    if rate not in scope.rates or not kinds:
        return
    jobs = [
        Job(
            name=name,
            traffic=_rated(traffic, rate),
            plan=DETECTING,
            seeds=range(10_000, 10_000 + scope.some(200)),
            with_rivals=True,
        )
        for name, traffic in kinds.items()
    ]
    found = dict(zip(kinds, pool.runs(jobs), strict=True))
    names = [OURS, *RIVALS]
    print(
        f"beside other rules, at {rate} requests a second, {len(next(iter(found.values())))} canaries a cell"
    )
    print("  nobody has a warm-up, nothing is promoted, and sticky users are the unit for every rule")
    print("  rolled back, %: of good candidates (lower is better)")
    good = [each for each in kinds if each in NULLS]
    print(f"  {'':<24}" + "".join(f"{each:>9}" for each in good))
    for name in names:
        print(f"  {name:<24}" + "".join(f"{_percent(found[each], name):>9}" for each in good))
    print("  rolled back, % / median seconds: of harmful ones")
    bad = [each for each in kinds if each in HARMS]
    for half in (bad[:6], bad[6:]):
        print(f"  {'':<24}" + "".join(f"{each:>11}" for each in half))
        for name in names:
            cells = [f"{_percent(found[each], name)}/{_median_s(found[each], name)}" for each in half]
            print(f"  {name:<24}" + "".join(f"{cell:>11}" for cell in cells))
    print("  mean requests of the candidate until the rollback, or all of them")
    for half in (bad[:6], bad[6:]):
        print(f"  {'':<24}" + "".join(f"{each:>11}" for each in half))
        for name in names:
            cells = [f"{_exposed(found[each], name, rate):.0f}" for each in half]
            print(f"  {name:<24}" + "".join(f"{cell:>11}" for cell in cells))
    print()


def _percent(runs: Sequence[Run], name: str) -> str:
    return f"{100 * sum(name in each.ended for each in runs) / len(runs):.0f}"


def _median_s(runs: Sequence[Run], name: str) -> str:
    median = float(np.median([each.ended[name][0] if name in each.ended else math.inf for each in runs]))
    return "-" if math.isinf(median) else f"{median:.0f}"


def _exposed(runs: Sequence[Run], name: str, rate: int) -> float:
    return float(np.mean([each.ended[name][1] if name in each.ended else rate * 15 for each in runs]))


RATIOS = (("err5", 100), ("lat30", 100), ("tail", 100), ("cost30", 100), ("verbose", 100))
RATIOS_FAST = (("err2", 1000), ("lat10", 1000), ("cost10", 1000))


def limit(pool: Pool, scope: Scope) -> None:
    """How many requests a rollback takes, over the fewest that any test needs."""
    cells = [(name, rate) for name, rate in (*RATIOS, *RATIOS_FAST) if scope.wants(name, rate)]
    if not cells:
        return
    jobs = [
        Job(
            name=f"{name} {rate}/s",
            traffic=_rated(HARMS[name], rate),
            plan=DETECTING,
            seeds=range(20_000, 20_000 + scope.some(600 if rate < 500 else 300)),
        )
        for name, rate in cells
    ]
    print("requests of the candidate until the rollback ÷ the fewest any test needs; no warm-up")
    print(f"  {'':<16}{'nats':>8}{'limit':>8}{'median':>8}{'p95':>8}{'ratio':>8}   must 2.0, stretch 1.6")
    for job, (name, _), runs in zip(jobs, cells, pool.runs(jobs), strict=True):
        nats = information_nats(HARMS[name])
        least = math.log(1 / ALPHA) / nats
        taken = [each.ended[OURS][1] if OURS in each.ended else math.inf for each in runs]
        median, late = float(np.median(taken)), float(np.quantile(taken, 0.95, method="lower"))
        ratio = median / least
        print(
            f"  {job.name:<16}{nats:>8.4f}{least:>8.0f}{median:>8.0f}{late:>8.0f}{ratio:>8.2f}"
            f"   {_reached(ratio, 2.0, 1.6)}"
        )
    print()


def power(pool: Pool, scope: Scope) -> None:
    """How often harm is rolled back by the mark."""
    table = (("rare-tail", 60, 75), ("lat10", 85, 92), ("cost10", 60, 72), ("err2", 55, 70))
    cells = [each for each in table if scope.wants(each[0], 100)]
    outages = [("outage", 20)] if scope.wants("outage", 20) else []
    jobs = [
        Job(
            name=name,
            traffic=_rated(HARMS[name], rate),
            plan=DETECTING,
            seeds=range(30_000, 30_000 + scope.some(800)),
        )
        for name, rate in (*((name, 100) for name, *_ in cells), *outages)
    ]
    found = pool.runs(jobs)
    if cells:
        print("rolled back by 300 s, %, at 100 requests a second (no warm-up)")
    for (name, must, stretch), runs in zip(cells, found, strict=False):
        share = 100 * sum(OURS in each.ended for each in runs) / len(runs)
        told = f"{share:>6.1f} ± {_spread(share, len(runs)):.1f}"
        print(f"  {name:<12}{told}   must {must}, stretch {stretch}: {_reached(-share, -must, -stretch)}")
    for _, failing in zip(outages, found[len(cells) :], strict=True):
        taken = [each.ended[OURS][0] if OURS in each.ended else math.inf for each in failing]
        median, late = (float(np.quantile(taken, share, method="higher")) for share in (0.5, 0.95))
        print(
            f"outage, one candidate request a second: rolled back after a median of {median:.0f} s, "
            f"p95 {late:.0f} s   must 10 / 20, stretch 5 / 15"
        )
    if jobs:
        print()


def _spread(percent: float, n: int) -> float:
    """Two standard errors."""
    return 2 * math.sqrt(percent * (100 - percent) / n)


def promotion(pool: Pool, scope: Scope) -> None:
    """How soon a good candidate is proved, and how often a harmful one is."""
    good = {
        f"good {rate}/s, {warm:.0f} s warm-up": (_rated(NULLS["aa"], rate), warm)
        for rate in scope.rates
        for warm in (0.0, 30.0)
    }
    if scope.names and "aa" not in scope.names:
        return
    at_margins = _at_margins(NULLS["aa"])
    bad = {f"{metric} at the margin": traffic for metric, traffic in at_margins.items()}
    jobs = [
        Job(
            name=name,
            traffic=traffic,
            plan=replace(DEFAULT, warm_up_s=warm),
            seeds=range(40_000, 40_000 + scope.some(300 if traffic.rate_rps < 500 else 100)),
        )
        for name, (traffic, warm) in good.items()
    ]
    jobs += [
        Job(
            name=name,
            traffic=traffic,
            plan=_proving(metric),
            seeds=range(40_000, 40_000 + scope.some(600)),
        )
        for (name, traffic), metric in zip(bad.items(), at_margins, strict=True)
    ]
    found = pool.runs(jobs)
    print("promotion by proof        promoted by 300 s    median")
    for job, runs in zip(jobs, found, strict=True):
        if job.name not in good:
            continue
        share = _promoted(runs)
        median = float(np.median([math.inf if each.promoted_s is None else each.promoted_s for each in runs]))
        told = "-" if math.isinf(median) else f"{median:.0f} s"
        print(f"  {job.name:<26}{share:>12.0f} %{told:>12}")
    print("  must 50 % at 100/s and 45 s at 1000/s; stretch 70 % and 30 s")
    print("a candidate worse by exactly one margin, judged by that metric alone, and promoted within 300 s")
    for job, runs in zip(jobs, found, strict=True):
        if job.name in bad:
            count = sum(each.promoted_s is not None for each in runs)
            print(
                f"  {job.name:<26}{_promoted(runs):>10.1f} % (≤ {100 * upper(count, len(runs)):.1f})"
                "   must 5, stretch 2"
            )
    print()


def _only(name: str) -> Plan:
    return replace(
        DEFAULT, metrics=tuple(replace(each, dry_run=each.name != name) for each in DEFAULT_METRICS)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Covered:
    """Whether the truth was inside at every look, and the interval at the end, by metric."""

    inside: Mapping[str, bool]
    width: Mapping[str, tuple[float, float]]


def covered(job: Job) -> list[Covered]:
    """The confidence sequences of some canaries."""
    return [_covered(job, seed) for seed in job.seeds]


def _covered(job: Job, seed: int) -> Covered:
    """Where an amount is scaled, so are its quantiles and its mean: all aspects have the same truth."""
    truth = {
        ERRORS: job.traffic.errors_ratio,
        LATENCY: job.traffic.latency_ratio,
        COST: job.traffic.cost_ratio,
    }
    decision = None
    inside: dict[str, bool] = {}
    width: dict[str, tuple[float, float]] = {}
    for at_ms, tallies in steps(job.traffic, seed):
        decision = weigh(job.plan, tallies, decision, at_ms=at_ms)
        for each in decision.readings:
            if each.aspect is not Aspect.TAIL:
                name, ends = f"{each.metric}.{each.aspect}", (each.low or 0.0, each.high or math.inf)
                inside[name] = inside.get(name, True) and ends[0] <= truth[each.metric] <= ends[1]
                width[name] = ends
    return Covered(inside=inside, width=width)


NEVER = Plan(warm_up_s=0.0, false_rollback=1e-12, false_promotion=1e-12, limit_errors=10, extensions=20)
"""Nothing ends it, so that every confidence sequence is seen at all looks."""


def coverage(pool: Pool, scope: Scope) -> None:
    """How often a confidence sequence holds the truth at all looks, under drift, and how wide it is."""
    print("95 % confidence sequences under drift: truth inside at every look, %, and the median at 300 s")
    together: dict[str, list[bool]] = {}
    worse = replace(NULLS["drift"], latency_ratio=1.1, cost_ratio=1.1)
    kinds = {"no difference": NULLS["drift"], "latency, cost +10 %": worse}
    for first, (label, base) in _seeded(kinds, 500_000):
        for rate in scope.rates:
            seeds = range(first, first + scope.some(200 if rate < 500 else 60))
            job = Job(name=label, traffic=_rated(base, rate), plan=NEVER, seeds=seeds)
            found = pool.covered(job)
            cells = []
            for name in found[0].inside:
                inside = [each.inside[name] for each in found]
                together.setdefault(name, []).extend(inside)
                low, high = (float(np.median([each.width[name][end] for each in found])) for end in (0, 1))
                if name.partition(".")[2] in ("rate", "shape"):
                    cells.append(f"{100 * np.mean(inside):.1f} [{low:.2f}, {high:.2f}]")
            print(f"  {f'{label}, {rate}/s':<28}" + "".join(f"{cell:>22}" for cell in cells))
    print(f"  all of these, and how many canaries: {len(next(iter(together.values()))):,}")
    for name, inside in together.items():
        share = 100 * float(np.mean(inside))
        print(f"    {name:<14}{share:>7.1f}   {'reached' if share >= 95 else 'MISSED'} (must 95)")
    print()


_COST = NULLS["aa"].cost
_LATENCY = NULLS["aa"].latency
LAWS: Mapping[str, Traffic] = {
    **{
        family.value: Traffic(latency=replace(_LATENCY, family=family), cost=replace(_COST, family=family))
        for family in Family
        if family is not Family.LOGNORMAL
    },
    "few prices": Traffic(cost=Law(median=0.002, spread=0.8, family=Family.DISCRETE), huge_share=0.0),
    "errors 0.1 %": Traffic(error_rate=0.001),
    "errors 10 %": Traffic(error_rate=0.1),
    "half the traffic": Traffic(share=0.5),
    "no history": Traffic(before_s=0.0),
}
"""Traffic that the engine was not made for."""
WORSE = ("lat30", "cost30", "err5")


def _worse(traffic: Traffic) -> list[Traffic]:
    harms = [HARMS[name] for name in WORSE]
    return [
        replace(
            traffic,
            latency_ratio=each.latency_ratio,
            cost_ratio=each.cost_ratio,
            errors_ratio=each.errors_ratio,
        )
        for each in harms
    ]


def laws(pool: Pool, scope: Scope) -> None:
    """The promises on traffic of other laws: false rollbacks, power, false promotions, coverage."""
    rate = 100
    if rate not in scope.rates or scope.names:
        return
    n, n_few = scope.some(150), scope.some(40)
    jobs: list[Job] = []
    for first, (name, traffic) in _seeded(LAWS, 1_000_000):
        seeds, few = range(first, first + n), range(first, first + n_few)
        jobs.append(Job(name=name, traffic=traffic, plan=SAFETY, seeds=seeds))
        jobs += [Job(name=name, traffic=each, plan=DETECTING, seeds=few) for each in _worse(traffic)]
        jobs += [
            Job(name=name, traffic=bad, plan=_proving(metric), seeds=seeds)
            for metric, bad in _at_margins(traffic).items()
        ]
    found = iter(pool.runs(jobs))
    print(f"other laws, {rate} requests a second, {n} canaries a cell ({n_few} of the harmful ones)")
    print(
        "  rolled back, % (bound), of good ones; % / median seconds of harmful ones; promoted at a margin, %"
    )
    print("  CS: how often a 95 % confidence sequence holds the truth at every look, under drift, %")
    heads = (*WORSE, "at err", "at lat", "at cost", "CS err", "CS lat", "CS cost")
    print(f"  {'':<18}{'good':>16}" + "".join(f"{each:>9}" for each in heads))
    for first, (name, traffic) in _seeded(LAWS, 1_000_000):
        good, *rest = (next(found) for _ in range(1 + len(WORSE) + 3))
        cells = [f"{_percent(runs, OURS)}/{_median_s(runs, OURS)}" for runs in rest[: len(WORSE)]]
        cells += [f"{_promoted(runs):.1f}" for runs in rest[len(WORSE) :]]
        drifting = replace(traffic, drift=0.5)
        inside = pool.covered(Job(name=name, traffic=drifting, plan=NEVER, seeds=range(first, first + n_few)))
        cells += [
            f"{100 * np.mean([each.inside[key] for each in inside]):.0f}"
            for key in (f"{ERRORS}.rate", f"{LATENCY}.shape", f"{COST}.shape")
        ]
        print(f"  {name:<18}{_rate(good):>16}" + "".join(f"{cell:>9}" for cell in cells))
    print("  must 1.0 for good ones (as a bound), 5 at a margin, 95 inside\n")


def _seeded(kinds: Mapping[str, Traffic], first: int) -> Iterator[tuple[int, tuple[str, Traffic]]]:
    """Each kind with seeds of its own: from the same seeds, all would have the same errors."""
    for number, kind in enumerate(kinds.items()):
        yield first + number * SEEDS, kind


def _at_margins(traffic: Traffic) -> dict[str, Traffic]:
    """Candidates that are worse by exactly one margin."""
    errors, latency, cost = DEFAULT_METRICS
    assert errors.margin_ratio
    assert errors.margin_pt
    assert latency.margin_ratio
    assert cost.margin_ratio
    rate = traffic.error_rate
    of_odds = errors.margin_ratio / (1 - rate + rate * errors.margin_ratio)
    return {
        ERRORS: replace(traffic, errors_ratio=max(of_odds, 1 + errors.margin_pt / 100 / rate)),
        LATENCY: replace(traffic, latency_ratio=latency.margin_ratio),
        COST: replace(traffic, cost_ratio=cost.margin_ratio),
    }


def _proving(metric: str) -> Plan:
    """Judges one metric, and never rolls back."""
    return replace(_only(metric), warm_up_s=0.0, false_rollback=1e-9)


def _promoted(runs: Sequence[Run]) -> float:
    return 100 * sum(each.promoted_s is not None for each in runs) / len(runs)


def speed(pool: Pool, scope: Scope) -> None:
    """What a look costs, and a million recorded observations."""
    plan = Plan(
        warm_up_s=0.0,
        false_rollback=1e-12,
        false_promotion=1e-12,
        metrics=(
            *DEFAULT_METRICS,
            replace(declared_metric("accepted", Kind.SHARE), margin_ratio=1.5),
            replace(declared_metric("valid", Kind.SHARE), margin_ratio=1.5),
            declared_metric("tokens", Kind.AMOUNT),
        ),
    )
    looks = [
        (at, tuple(_further(each) for each in tallies)) for at, tallies in steps(_rated(NULLS["aa"], 100), 1)
    ]
    took = []
    for _ in range(3):
        decision = None
        for at_ms, tallies in looks:
            began = time.perf_counter()
            decision = weigh(plan, tallies, decision, at_ms=at_ms)
            took.append(time.perf_counter() - began)
    late = sorted(took[len(looks) // 2 :])
    print(
        f"one look with 6 metrics, 300 s into the canary: median {1000 * late[len(late) // 2]:.1f} ms, "
        f"least {1000 * late[0]:.1f} ms   must 5, stretch 1"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million.ndjson"
        lines = 0
        with path.open("w") as file:
            for line in observations(replace(NULLS["aa"], rate_rps=2_800.0, duration_s=300.0), 1):
                file.write(line)
                lines += 1
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "deploy_gates", "canary", "replay", str(path), "--json"],
            capture_output=True,
            check=False,
        )
        took_s = time.perf_counter() - began
    print(
        f"canary replay of {lines:,} observations: {took_s:.1f} s, exit {done.returncode}"
        "   must 10, stretch 3\n"
    )


def _further(tally: Tally) -> Tally:
    n = tally.finished
    good = round(0.9 * n)
    votes = Histogram(counts={0: good, -710: n - good}, total=float(good))
    return replace(tally, metrics={"accepted": votes, "valid": votes, "tokens": tally.cost_usd})


def _reached(value: float, must: float, stretch: float) -> str:
    return "stretch" if value <= stretch else "reached" if value <= must else "MISSED"


TABLES: Mapping[str, Callable[[Pool, Scope], None]] = {
    "null": null,
    "marks": marks,
    "limit": limit,
    "power": power,
    "promotion": promotion,
    "coverage": coverage,
    "laws": laws,
    "rivals": rivals,
    "speed": speed,
}
BY_SCENARIO = ("null", "marks", "limit", "power", "rivals")
"""Where cells go by scenarios."""


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="What the canary engine promises, measured.")
    parser.add_argument(
        "--only",
        default="",
        help=f"tables ({', '.join(TABLES)}) and scenarios ({', '.join(SCENARIOS)}), by commas",
    )
    parser.add_argument("--rates", default=",".join(map(str, RATES)), help="requests a second, by commas")
    parser.add_argument("--runs", type=int, help="so many runs a cell")
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(None if arguments is None else list(arguments))
    only = [each for each in asked.only.split(",") if each]
    unknown = [each for each in only if each not in {*TABLES, *SCENARIOS}]
    if unknown:
        parser.error(f"there is no table or scenario {', '.join(unknown)}")
    scope = Scope(
        names=frozenset(only) - set(TABLES),
        rates=tuple(int(each) for each in asked.rates.split(",")),
        runs=asked.runs,
        scale=0.1 if asked.quick else asked.scale,
    )
    pool = Pool(asked.processes)
    for name in [each for each in only if each in TABLES] or (BY_SCENARIO if scope.names else TABLES):
        began = time.perf_counter()
        TABLES[name](pool, scope)
        print(f"  … {name} took {time.perf_counter() - began:.0f} s", file=sys.stderr)
    pool.close()


if __name__ == "__main__":
    main()
