"""What the canary engine promises, measured on simulated traffic, beside the rules that people use today.

    python benchmarks/canary.py                    # all tables, about ten minutes on two cores
    python benchmarks/canary.py --quick            # the same with a tenth of the runs
    python benchmarks/canary.py --only null,speed  # some of them

Every run is a canary of 300 s at 5 % of the traffic, with a minute of the baseline before and a look every
5 s. Rates of requests are totals of both arms. Bounds are one-sided 95 % bounds of Clopper and Pearson.
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

from deploy_gates.canary.traffic import HARMS, NULLS, Traffic, information_nats, observations, steps  # noqa: E402
from deploy_gates.core.canary import (  # noqa: E402
    COST,
    DEFAULT_METRICS,
    ERRORS,
    LATENCY,
    Action,
    Decision,
    Kind,
    Plan,
    declared_metric,
)
from deploy_gates.core.tally import Histogram, Tally  # noqa: E402
from deploy_gates.core.weighing import weigh  # noqa: E402

OURS = "deploy-gates"
RATES = (20, 100, 1000)
ALPHA = 0.01


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


def null(pool: Pool, scale: float) -> None:
    """How often a candidate that is no worse is rolled back."""
    jobs = [
        Job(
            name=f"{name} {rate}/s",
            traffic=_rated(traffic, rate),
            plan=SAFETY,
            seeds=range(_some(200 if rate == RATES[-1] else 600, scale)),
        )
        for name, traffic in NULLS.items()
        for rate in RATES
    ]
    found = iter(pool.runs(jobs))
    print("false rollback, %, and its bound: 1 % is declared, over all metrics and looks (default plan)")
    print(f"  {'':<10}" + "".join(f"{each:>17}" for each in (*(f"{rate}/s" for rate in RATES), "all rates")))
    everything: list[Run] = []
    for name in NULLS:
        cells = [next(found) for _ in RATES]
        together = [run for cell in cells for run in cell]
        everything += together
        count = sum(OURS in each.ended for each in together)
        reached = _reached(100 * upper(count, len(together)), 1.0, 0.6)
        told = "".join(f"{_rate(cell):>17}" for cell in (*cells, together))
        print(f"  {name:<10}{told}   {reached}")
    print(f"  {'all':<10}{_rate(everything):>17}  of {len(everything):,} canaries   must 1.0, stretch 0.6\n")


def _rate(runs: Sequence[Run], name: str = OURS) -> str:
    count = sum(name in each.ended for each in runs)
    return f"{100 * count / len(runs):.2f} (≤ {100 * upper(count, len(runs)):.2f})"


def rivals(pool: Pool, scale: float) -> None:
    """The same, and power, beside other rules."""
    rate = 100
    kinds = {**NULLS, **HARMS}
    del kinds["cold"]
    jobs = [
        Job(
            name=name,
            traffic=_rated(traffic, rate),
            plan=DETECTING,
            seeds=range(10_000, 10_000 + _some(200, scale)),
            with_rivals=True,
        )
        for name, traffic in kinds.items()
    ]
    found = dict(zip(kinds, pool.runs(jobs), strict=True))
    names = [OURS, *RIVALS]
    print(f"beside other rules, at {rate} requests a second, {len(found['aa'])} canaries a cell")
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


def limit(pool: Pool, scale: float) -> None:
    """How many requests a rollback takes, over the fewest that any test needs."""
    cells = (*RATIOS, *RATIOS_FAST)
    jobs = [
        Job(
            name=f"{name} {rate}/s",
            traffic=_rated(HARMS[name], rate),
            plan=DETECTING,
            seeds=range(20_000, 20_000 + _some(600 if rate < 500 else 300, scale)),
        )
        for name, rate in cells
    ]
    print("requests of the candidate until the rollback ÷ the fewest any test needs, log(1 / 0.01) / nats")
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


def power(pool: Pool, scale: float) -> None:
    """How often harm is rolled back by the mark."""
    cells = (("rare-tail", 60, 75), ("lat10", 85, 92), ("cost10", 60, 72), ("err2", 55, 70))
    jobs = [
        Job(
            name=name,
            traffic=_rated(HARMS[name], 100),
            plan=DETECTING,
            seeds=range(30_000, 30_000 + _some(800, scale)),
        )
        for name, *_ in cells
    ]
    outage = Job(
        name="outage",
        traffic=_rated(HARMS["outage"], 20),
        plan=DETECTING,
        seeds=range(30_000, 30_000 + _some(800, scale)),
    )
    *found, failing = pool.runs([*jobs, outage])
    print("rolled back by 300 s, %, at 100 requests a second (no warm-up)")
    for (name, must, stretch), runs in zip(cells, found, strict=True):
        share = 100 * sum(OURS in each.ended for each in runs) / len(runs)
        print(
            f"  {name:<12}{share:>6.1f}   must {must}, stretch {stretch}: {_reached(-share, -must, -stretch)}"
        )
    taken = [each.ended[OURS][0] for each in failing if OURS in each.ended]
    print(
        f"outage, one candidate request a second: {len(taken)} of {len(failing)} rolled back, "
        f"median {np.median(taken):.0f} s, p95 {np.quantile(taken, 0.95):.0f} s"
        "   must 10 / 20, stretch 5 / 15\n"
    )


def promotion(pool: Pool, scale: float) -> None:
    """How soon a good candidate is proved, and how often a harmful one is."""
    good = {
        f"good {rate}/s, {warm:.0f} s warm-up": (_rated(NULLS["aa"], rate), warm)
        for rate in RATES
        for warm in (0.0, 30.0)
    }
    bad = {
        "errors x2": replace(NULLS["aa"], errors_ratio=2.0),
        "latency +22 %": replace(NULLS["aa"], latency_ratio=1.22),
        "cost +22 %": replace(NULLS["aa"], cost_ratio=1.22),
    }
    jobs = [
        Job(
            name=name,
            traffic=traffic,
            plan=replace(DEFAULT, warm_up_s=warm),
            seeds=range(40_000, 40_000 + _some(300 if traffic.rate_rps < 500 else 100, scale)),
        )
        for name, (traffic, warm) in good.items()
    ]
    jobs += [
        Job(
            name=name,
            traffic=traffic,
            plan=replace(_only(metric), warm_up_s=0.0, false_rollback=1e-9),
            seeds=range(40_000, 40_000 + _some(600, scale)),
        )
        for (name, traffic), metric in zip(bad.items(), (ERRORS, LATENCY, COST), strict=True)
    ]
    found = pool.runs(jobs)
    print("promotion by proof        promoted by 300 s    median")
    for job, runs in zip(jobs, found, strict=True):
        if job.name not in good:
            continue
        share = 100 * sum(each.promoted_s is not None for each in runs) / len(runs)
        median = float(np.median([math.inf if each.promoted_s is None else each.promoted_s for each in runs]))
        told = "-" if math.isinf(median) else f"{median:.0f} s"
        print(f"  {job.name:<26}{share:>12.0f} %{told:>12}")
    print("  must 50 % at 100/s and 45 s at 1000/s; stretch 70 % and 30 s")
    print("a candidate worse by exactly one margin, judged by that metric alone, and promoted within 300 s")
    for job, runs in zip(jobs, found, strict=True):
        if job.name in bad:
            count = sum(each.promoted_s is not None for each in runs)
            print(f"  {job.name:<26}{100 * count / len(runs):>10.1f} %   must 5, stretch 2")
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
    truth = {
        ERRORS: job.traffic.errors_ratio,
        LATENCY: job.traffic.latency_ratio,
        COST: job.traffic.cost_ratio,
    }
    decision = None
    inside = dict.fromkeys(truth, True)
    for at_ms, tallies in steps(job.traffic, seed):
        decision = weigh(job.plan, tallies, decision, at_ms=at_ms)
        for name, ratio in truth.items():
            reading = decision.reading(name)
            inside[name] &= (reading.low or 0.0) <= ratio <= (reading.high or math.inf)
    assert decision is not None
    ends = {name: decision.reading(name) for name in truth}
    return Covered(
        inside=inside,
        width={name: (each.low or 0.0, each.high or math.inf) for name, each in ends.items()},
    )


def coverage(pool: Pool, scale: float) -> None:
    """How often a confidence sequence holds the truth at all looks, under drift, and how wide it is."""
    never = Plan(warm_up_s=0.0, false_rollback=1e-12, false_promotion=1e-12, limit_errors=10, extensions=20)
    print("95 % confidence sequences under drift: truth inside at every look, and the median at 300 s")
    print(f"  {'':<18}{'errors':>24}{'latency':>24}{'cost':>24}")
    for label, base in (("no difference", NULLS["drift"]), ("latency, cost +10 %", None)):
        traffic = base or replace(NULLS["drift"], latency_ratio=1.1, cost_ratio=1.1)
        for rate in RATES:
            n = _some(200 if rate < 500 else 60, scale)
            job = Job(name=label, traffic=_rated(traffic, rate), plan=never, seeds=range(50_000, 50_000 + n))
            found = [each for piece in pool._pool.map(covered, _pieces(job)) for each in piece]
            cells = []
            for name in (ERRORS, LATENCY, COST):
                rate_inside = np.mean([each.inside[name] for each in found])
                low, high = (float(np.median([each.width[name][end] for each in found])) for end in (0, 1))
                cells.append(f"{100 * rate_inside:.0f} % [{low:.2f}, {high:.2f}]")
            print(f"  {f'{label}, {rate}/s':<28}"[:28] + "".join(f"{cell:>22}" for cell in cells))
    print()


def speed(pool: Pool, scale: float) -> None:
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


def _some(n: int, scale: float) -> int:
    return max(20, round(n * scale))


TABLES: Mapping[str, Callable[[Pool, float], None]] = {
    "null": null,
    "limit": limit,
    "power": power,
    "promotion": promotion,
    "coverage": coverage,
    "rivals": rivals,
    "speed": speed,
}


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="What the canary engine promises, measured.")
    parser.add_argument("--only", default=",".join(TABLES), help=f"some of {', '.join(TABLES)}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(None if arguments is None else list(arguments))
    pool = Pool(asked.processes)
    for name in asked.only.split(","):
        began = time.perf_counter()
        TABLES[name](pool, 0.1 if asked.quick else asked.scale)
        print(f"  … {name} took {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
