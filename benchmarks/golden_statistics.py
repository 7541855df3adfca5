"""How often the golden gate is wrong, what it sees, and what stopping early saves, by simulation.

Of the cases 80 % nearly always pass, 15 % are unstable, and 5 %
nearly always fail. A loss is spread over all cases, or over those of one kind, or breaks some of them, or
takes whole clusters, or half of it does.

    python benchmarks/golden_statistics.py            all tables, some minutes on one core
    python benchmarks/golden_statistics.py --runs 100 sooner, and coarser
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import optimize
from scipy import stats as laws

from deploy_gates.core import stats, stopping
from deploy_gates.core.stats import Conclusion, Pair

MARGIN, CONFIDENCE = 0.02, 0.95
K = 5
"""Samples of what is known to be unstable."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Which cases there are."""

    n: int
    stable: float = 0.995
    """How often a stable case passes; `failing` those that nearly always fail."""
    failing: float = 0.03
    unstable_share: float = 0.15
    failing_share: float = 0.05
    cluster: int = 1
    """So many cases belong together, and of `together` of the clusters all have one fate."""
    together: float = 0.0
    alone: int = 0
    """So many cases are in no cluster."""
    heavy: float = 1.0
    """What every fourth case weighs."""
    margin: float = MARGIN
    samples: int = 1
    """Of an unstable case, under both configs."""
    baseline: int = 1
    """Of the baseline's answers to a stable case; to an unstable one twice as many, from 2 on."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    pairs: list[Pair]
    kinds: list[str]
    calls: list[int]


def draw(world: World, loss: float, kind: str, chance: random.Random) -> Drawn:
    """One comparison: every case under both configs, where the candidate loses `loss` on average."""
    unstable, failing = round(world.unstable_share * world.n), round(world.failing_share * world.n)
    kinds = ["unstable"] * unstable + ["missed"] * failing + ["met"] * (world.n - unstable - failing)
    chance.shuffle(kinds)
    rates = {
        "met": lambda: world.stable,
        "missed": lambda: world.failing,
        "unstable": lambda: chance.uniform(0.6, 0.95),
    }
    before = [rates[each]() for each in kinds]
    by_clusters = {"whole": loss, "half": loss / 2}.get(kind, 0.0)
    after = _after(before, kinds, loss - by_clusters, "wide" if by_clusters else kind, chance)
    fails = by_clusters * world.n / sum(before[world.alone :]) if by_clusters else 0.0
    pairs, calls = [], []
    lot = 0.0
    for at in range(world.n):
        size = world.cluster if at >= world.alone else 1
        is_first = (at - world.alone) % size == 0
        lot = chance.random() if is_first else lot
        if is_first:
            is_together = chance.random() < world.together
            is_lost = size > 1 and chance.random() < fails
        k = world.samples if kinds[at] == "unstable" else 1
        b = max(world.baseline * (2 if kinds[at] == "unstable" and world.baseline > 1 else 1), k)
        if size > 1 and is_together:
            was, now = (1.0 if lot < rate else 0.0 for rate in (before[at], after[at]))
        else:
            was, now = _mean(chance, before[at], b), _mean(chance, after[at], k)
        name = f"{(at - world.alone) // size}" if size > 1 else ""
        weight = world.heavy if at % 4 == 0 else 1.0
        pairs.append(Pair(baseline=was, candidate=0.0 if is_lost else now, cluster=name, weight=weight))
        calls.append(k)
    return Drawn(pairs=pairs, kinds=kinds, calls=calls)


def _mean(chance: random.Random, rate: float, samples: int) -> float:
    return sum(chance.random() < rate for _ in range(samples)) / samples


def _after(
    before: list[float], kinds: list[str], loss: float, kind: str, chance: random.Random
) -> list[float]:
    """The candidate's rates."""
    if kind == "broken":
        left, after = loss * len(before), list(before)
        for at in chance.sample(range(len(before)), len(before)):
            lost = min(after[at], left)
            after[at], left = after[at] - lost, left - lost
        return after
    hit = [rate * (kind in ("wide", each)) for rate, each in zip(before, kinds, strict=True)]
    if kind == "moved":  # some better, as many worse: no loss, and yet another config
        moved = [chance.choice((-0.05, 0.05)) * (0.05 < rate < 0.95) for rate in before]
        return [rate + each for rate, each in zip(before, moved, strict=True)]
    factor = loss * len(before) / max(sum(hit), 1e-9)
    return [max(0.0, rate - factor * each) for rate, each in zip(before, hit, strict=True)]


def concluded(world: World, loss: float, kind: str, runs: int) -> dict[Conclusion, float]:
    chance = random.Random(f"{world} {loss} {kind}")
    samples = (draw(world, loss, kind, chance).pairs for _ in range(runs))
    words = [stats.paired(pairs, margin=world.margin, confidence=CONFIDENCE).conclusion for pairs in samples]
    return {word: 100 * words.count(word) / runs for word in Conclusion}


def worlds() -> Iterator[tuple[str, World]]:
    for n in (10, 50, 200, 1_000):
        yield f"{n:,} cases", World(n=n)
    yield "200, all pass", World(n=200, stable=1.0, unstable_share=0, failing_share=0)
    yield "200, rates near 0", World(n=200, stable=0.05, failing=0.01, failing_share=0.5, unstable_share=0)
    yield "200, rates near 1/2", World(n=200, unstable_share=1, failing_share=0)
    yield "200, K = 5 of unstable", World(n=200, samples=K)
    yield "200, K = 5, baseline 5", World(n=200, samples=K, baseline=5)
    yield "1,000, K = 5 of unstable", World(n=1_000, samples=K)
    yield "200, K = 5, baseline 10", World(n=200, samples=K, baseline=10)
    yield "60, K = 5, 5 pt", World(n=60, samples=K, margin=0.05)
    yield "1,000, K = 5, baseline 10", World(n=1_000, samples=K, baseline=10)
    yield "1,000 in clusters of 5", World(n=1_000, cluster=5, together=0.5)
    yield "2,000 in clusters of 10", World(n=2_000, cluster=10, together=0.02)
    yield "1,000 in clusters of 10, 5 pt", World(n=1_000, cluster=10, margin=0.05)
    yield "600 alone, 400 in clusters of 20, 10 pt", World(n=1_000, cluster=20, alone=600, margin=0.1)
    yield "1,000, every fourth weighs 10, 5 pt", World(n=1_000, heavy=10.0, margin=0.05)
    yield "10,000 cases", World(n=10_000)
    yield "100,000 cases", World(n=100_000)


def _losses(world: World) -> Iterator[str]:
    """In which ways this world can lose: what has no cases of a kind loses nothing there."""
    yield from ("wide", "broken")
    if world.unstable_share + world.failing_share < 1 and world.stable > world.margin * 2:
        yield "met"
    if world.unstable_share > world.margin * 2:
        yield "unstable"
    if world.cluster > 1:
        yield from ("whole", "half")


def errors(runs: int) -> Iterator[dict[str, object]]:
    """False blocks of what loses nothing, false passes of what loses the whole margin."""
    for name, world in worlds():
        times = max(20, min(runs, runs * 2_000 // max(world.n, 200)))
        harmless = concluded(world, 0.0, "wide", times)
        moved = concluded(world, 0.0, "moved", times)
        passes = {
            kind: concluded(world, world.margin, kind, times)[Conclusion.NO_WORSE] for kind in _losses(world)
        }
        worst = max(passes, key=lambda kind: passes[kind])
        yield {
            "world": name,
            "runs": times,
            "false block": round(harmless[Conclusion.WORSE], 1),
            "moved about": round(moved[Conclusion.WORSE], 1),
            "false pass": round(passes[worst], 1),
            "where": worst,
            "harmless passes": round(harmless[Conclusion.NO_WORSE], 1),
        }


def power(runs: int) -> Iterator[dict[str, object]]:
    """200 cases, a margin of 2 points: what each plan sees."""
    for name, world in (
        ("1 sample", World(n=200)),
        ("K = 5 of unstable, 1.6 calls a case", World(n=200, samples=K)),
        ("the same, 5 answers of the baseline stored", World(n=200, samples=K, baseline=5)),
        ("the same, 10 answers of the baseline stored", World(n=200, samples=K, baseline=10)),
    ):
        harmless, lost = concluded(world, 0.0, "wide", runs), concluded(world, 0.05, "wide", runs)
        broken = concluded(world, 0.05, "broken", runs)
        yield {
            "plan": name,
            "-5 pt wide caught": round(lost[Conclusion.WORSE], 1),
            "-5 pt broken caught": round(broken[Conclusion.WORSE], 1),
            "harmless blocked": round(harmless[Conclusion.WORSE], 1),
            "harmless inconclusive": round(harmless[Conclusion.UNDECIDED], 1),
        }


def limit(runs: int) -> Iterator[dict[str, object]]:
    """The same 200 cases: what no rule at all can better, however it is made.

    The largest chance to pass what is harmless, over all rules that pass each of these losses of the margin
    in at most 5 % of the runs (linear programming over what can be seen: how many stable cases each config
    missed, and the sum of the unstable ones, which is nearly normal). Harmless changes are blocked in 5 %.
    """
    for name, stored in (
        ("1 answer of the baseline, 5 to unstable", (1, K)),
        ("5 and 10", (5, 2 * K)),
        ("10 and 20", (10, 4 * K)),
    ):
        passes = _most_passes(*stored)
        yield {"plan": name, "harmless inconclusive, at least": round(100 * (CONFIDENCE - passes), 1)}


def _most_passes(stored: int, stored_unstable: int, n: int = 200) -> float:
    missed = 0.8 * n * 0.005 + 0.05 * n * 0.03  # of stable cases, by either config, if nothing changed
    swing = 0.15 * 0.1642  # the mean of p (1 - p) over p of unstable cases, for all cases
    spread = 100 * math.sqrt(swing * (1 / K + 1 / stored_unstable) / n)
    most = 4 * stored + 5 * math.sqrt(4 * stored) + 3
    counts = np.unique(np.round(np.linspace(0, most, min(math.ceil(most), 14) + 1)).astype(int))
    sums = np.concatenate([[-np.inf], np.linspace(-4, 4, 41) * spread, [np.inf]])

    def seen(candidate: float, baseline: float, lost_pt: float) -> list[float]:
        own = laws.poisson.pmf(np.arange(16), candidate)
        own[-1] = 1 - own[:-1].sum()
        other = np.diff(np.concatenate([[0], laws.poisson.cdf(counts[1:] - 1, baseline * stored), [1]]))
        unstable = np.diff(laws.norm.cdf((sums - lost_pt) / spread))
        return [float(a * b * c) for a in own for b in other for c in unstable]

    losses = [
        seen(baseline + (100 * MARGIN - lost_pt) * n / 100, baseline, lost_pt)
        for baseline in (0.02, 0.3, 0.6, missed, 1.6, 2.5, 4.0)
        for lost_pt in np.linspace(-2, 4, 25)
        if baseline + (100 * MARGIN - lost_pt) * n / 100 >= 0
    ]
    found = optimize.linprog(
        -np.array(seen(missed, missed, 0.0)),
        A_ub=np.array(losses),
        b_ub=np.full(len(losses), 1 - CONFIDENCE),
        bounds=(0, 1),
        method="highs",
    )
    assert found.fun is not None, found.message
    return -found.fun


def saved(runs: int) -> Iterator[dict[str, object]]:
    """Calls that stopping early saves, and that its promises hold; "at most" is what no rule can exceed.

    To pass what never differs after `k` cases is to pass a loss of the margin with chance (1 - margin)^k.
    """
    for n, margin in ((1_000, 0.02), (1_000, 0.05), (2_500, 0.02), (10_000, 0.02)):
        fewest = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - margin))
        times = max(10, runs * 1_000 // n // 2)
        for name, world, loss in (
            ("no effect", World(n=n), 0.0),
            ("no effect, K = 5", World(n=n, samples=K), 0.0),
            ("-10 pt", World(n=n), 0.1),
            ("-10 pt, K = 5", World(n=n, samples=K), 0.1),
            ("identical answers", World(n=n, stable=1.0, failing=0.0, unstable_share=0.0), 0.0),
            ("the margin lost", World(n=n, samples=K), margin),
        ):
            words, shares = _stopped(world, loss, margin, 5 if name.startswith("ident") else times)
            yield {
                "cases": n,
                "margin pt": 100 * margin,
                "change": name,
                "calls saved": f"{100 * sum(shares) / len(shares):.1f} %",
                **({"at most": f"{100 - 100 * fewest / n:.1f} %"} if name.startswith("ident") else {}),
                "worse": round(words[Conclusion.WORSE], 1),
                "no worse": round(words[Conclusion.NO_WORSE], 1),
            }


def _stopped(
    world: World, loss: float, margin: float, runs: int
) -> tuple[dict[Conclusion, float], list[float]]:
    chance, words, shares = random.Random(f"{world} {loss} {margin}"), [], []
    for run in range(runs):
        drawn = draw(world, loss, "wide", chance)
        cases = tuple(
            stopping.Case(id=f"{at}", cluster=pair.cluster, kind=kind)
            for at, (pair, kind) in enumerate(zip(drawn.pairs, drawn.kinds, strict=True))
        )
        order = [int(each) for each in stopping.order(cases, f"{run}")]
        pairs = [drawn.pairs[at] for at in order]
        found = stopping.decide(pairs, n=world.n, margin=margin, confidence=CONFIDENCE)
        words.append(found.found.conclusion)
        asked = sum(drawn.calls[at] for at in order[: found.cases])
        shares.append(1 - asked / sum(drawn.calls))
    return {word: 100 * words.count(word) / runs for word in Conclusion}, shares


TABLES: dict[str, Callable[[int], Iterator[dict[str, object]]]] = {
    "power": power,
    "limit": limit,
    "saved": saved,
    "errors": errors,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--only", choices=list(TABLES))
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    asked = parser.parse_args()
    rows: dict[str, list[dict[str, object]]] = {}
    for name, table in TABLES.items():
        if asked.only not in (None, name):
            continue
        print(f"\n{name}: {inspect.getdoc(table)}", flush=True)
        began = time.perf_counter()
        for row in table(asked.runs):
            rows.setdefault(name, []).append(row)
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
