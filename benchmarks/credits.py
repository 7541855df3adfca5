"""How fast a transaction of credits is, and whether any credit is ever lost.

`python benchmarks/credits.py` measures everything on a PostgreSQL of its own and on SQLite; `--only` chooses.
Latencies of an open loop count from the moment a transaction was due, not from when it could be sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import engines
from deploy_gates.core.errors import StoreUnavailable
from deploy_gates.core.ledger import Answer, Kind, Terms, Transaction
from deploy_gates.credits import AsyncCredits, Credits, Usage
from deploy_gates.store import open_store

USAGE = Usage(input_tokens=900, output_tokens=120)
PLENTY = 10**14
ENGINES = ("postgresql", "sqlite")
LANES = 32
"""Coroutines of one process of the campaign."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What was measured, and what it has to be."""

    name: str
    measured: float
    unit: str
    must: float | None = None
    stretch: float | None = None
    is_most: bool = True
    """Whether it may be at most so much, or has to be at least."""

    def line(self) -> str:
        sign = "≤" if self.is_most else "≥"
        bars = [f"{sign} {bar:,g}" for bar in (self.must, self.stretch) if bar is not None]
        return f"{self.name:<64} {self.measured:>12,.2f} {self.unit:<8} {self.word:<7} {' · '.join(bars)}"

    @property
    def word(self) -> str:
        if self.must is None:
            return ""
        return "stretch" if self._meets(self.stretch) else "must" if self._meets(self.must) else "MISSED"

    def _meets(self, bar: float | None) -> bool:
        return bar is not None and (self.measured <= bar if self.is_most else self.measured >= bar)


# --- Stores -------------------------------------------------------------------------------------


@contextmanager
def a_store(engine: str) -> Iterator[str]:
    """The URL of a store with tables, on a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        if engine == "sqlite":
            url = engines.fresh_sqlite(Path(folder))
            open_store(url).upgrade()
            yield url
            return
        with engines.own_server() as server:
            url = engines.fresh_postgres(server.url)
            open_store(url).upgrade()
            yield url


def organisations(bank: Credits, count: int) -> list[str]:
    """So many of them, rich."""
    names = [f"org-{number}" for number in range(count)]
    for name in names:
        bank.ledger.add(name, name, Terms(), "benchmark")
    grants = [Transaction(organisation=name, id="grant", kind=Kind.GRANT, amount=PLENTY) for name in names]
    for start in range(0, count, 256):
        bank.ledger.apply(grants[start : start + 256])
    return names


def a_call(organisation: str, id: str) -> Transaction:
    """A transaction as a call makes it, at a price that was calculated before."""
    return Transaction(
        organisation=organisation,
        id=id,
        kind=Kind.CONSUME,
        amount=421_000,
        model="gpt-4.1-mini",
        usage=USAGE,
        actor="benchmark",
    )


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The value below which that share lies."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]


# --- An open loop -------------------------------------------------------------------------------


def open_loop(url: str, count: int, per_minute: int, seconds: float) -> list[float]:
    """Latencies in ms, from the moment each transaction was due, at random moments like those of users."""

    async def run(bank: Credits, names: list[str]) -> list[float]:
        asking, drawn = AsyncCredits(bank), random.Random(7)
        took_ms: list[float] = []
        begin = time.perf_counter() + 0.2
        due, tasks = begin, []

        async def one(number: int, due: float) -> None:
            answer = await asking.transact(a_call(drawn.choice(names), f"open-{number}"))
            assert answer.accepted, answer.reason
            took_ms.append((time.perf_counter() - due) * 1000)

        number = 0
        while due < begin + seconds:
            due += drawn.expovariate(per_minute / 60)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(number, due)))
            number += 1
        await asyncio.gather(*tasks)
        return took_ms

    with Credits(url) as bank:
        names = organisations(bank, count)
        for name in names[:20]:
            bank.transact(a_call(name, "warm"))
        return sorted(asyncio.run(run(bank, names)))


def measure_open_loop(engine: str, seconds: float) -> Iterator[Figure]:
    """The bar of the mission: thousands a minute under 50 ms."""
    for count, what in ((1, "one organisation"), (100, "100 organisations")):
        with a_store(engine) as url:
            took = open_loop(url, count, 6_000, seconds)
        name = f"{engine}, 6,000 a minute, open loop, {what}"
        yield Figure(name=f"{name}: p50", measured=percentile(took, 0.5), unit="ms")
        yield Figure(name=f"{name}: p99", measured=percentile(took, 0.99), unit="ms", must=50, stretch=10)


# --- Callers that wait for their answer ---------------------------------------------------------


def closed_loop(bank: Credits, names: list[str], callers: int, seconds: float) -> tuple[float, list[float]]:
    """Transactions a second and their latencies in ms, with so many coroutines."""

    async def run() -> tuple[float, list[float]]:
        asking, took_ms = AsyncCredits(bank), list[float]()
        begin = time.perf_counter()
        until = begin + seconds

        async def caller(number: int) -> None:
            drawn, count = random.Random(number), 0
            while (now := time.perf_counter()) < until:
                asked = a_call(drawn.choice(names), f"{begin}-{number}-{count}")
                answer = await asking.transact(asked)
                assert answer.accepted, answer.reason
                took_ms.append((time.perf_counter() - now) * 1000)
                count += 1

        await asyncio.gather(*(caller(number) for number in range(callers)))
        return len(took_ms) / (time.perf_counter() - begin), sorted(took_ms)

    return asyncio.run(run())


def measure_hot(seconds: float) -> Iterator[Figure]:
    """256 callers on one organisation, PostgreSQL."""
    with a_store("postgresql") as url, Credits(url) as bank:
        names = organisations(bank, 1)
        closed_loop(bank, names, 256, 2.0)
        per_s, took = closed_loop(bank, names, 256, seconds)
    name = "postgresql, 256 callers, one organisation"
    yield Figure(name=f"{name}: p99", measured=percentile(took, 0.99), unit="ms", must=50, stretch=12)
    yield Figure(name=name, measured=per_s, unit="/s", must=3_000, stretch=30_000, is_most=False)


def pgbench(url: str, seconds: float, *options: str) -> float:
    """Transactions a second of pgbench's own simple-update."""
    programs = engines.programs()
    ran = subprocess.run(
        [str(programs / "pgbench"), "-n", "-N", "-T", str(round(seconds)), "-M", "prepared", *options, url],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"tps = ([0-9.]+)", ran.stdout)
    assert found is not None, ran.stdout
    return float(found[1])


def measure_beside_pgbench(seconds: float, rounds: int) -> Iterator[Figure]:
    """8 clients and 1,000 organisations beside 8 clients of pgbench, in turns on one server."""
    with tempfile.TemporaryDirectory(), engines.own_server() as server:
        url = engines.fresh_postgres(server.url)
        open_store(url).upgrade()
        subprocess.run(
            [str(engines.programs() / "pgbench"), "-i", "-q", "-s", "10", server.url],
            capture_output=True,
            check=True,
        )
        with Credits(url) as bank:
            names = organisations(bank, 1_000)
            closed_loop(bank, names, 8, 1.0)
            ours, theirs = [], []
            for _ in range(rounds):
                theirs.append(pgbench(server.url, seconds, "-c", "8", "-j", "2"))
                ours.append(closed_loop(bank, names, 8, seconds)[0])
    ratios = sorted(own / other for own, other in zip(ours, theirs, strict=True))
    name = "8 clients, 1,000 organisations"
    yield Figure(name=f"pgbench simple-update, {name}", measured=sorted(theirs)[rounds // 2], unit="/s")
    yield Figure(name=f"postgresql, {name}", measured=sorted(ours)[rounds // 2], unit="/s")
    yield Figure(
        name=f"postgresql ÷ pgbench simple-update, {name}, median of {rounds}",
        measured=ratios[rounds // 2],
        unit="×",
        must=0.8,
        stretch=1.3,
        is_most=False,
    )


# --- Processes on one file ----------------------------------------------------------------------


def _contender(url: str, number: int, seconds: float, told: multiprocessing.Queue[tuple[int, float]]) -> None:
    longest_s, count = 0.0, 0
    with Credits(url) as bank:
        until = time.perf_counter() + seconds
        while (now := time.perf_counter()) < until:
            bank.transact(a_call("org-0", f"{number}-{count}"))
            longest_s = max(longest_s, time.perf_counter() - now)
            count += 1
    told.put((count, longest_s))


def measure_contention(seconds: float) -> Iterator[Figure]:
    """8 processes that write one file as fast as they can."""
    told: multiprocessing.Queue[tuple[int, float]] = multiprocessing.Queue()
    with a_store("sqlite") as url:
        with Credits(url) as bank:
            organisations(bank, 1)
        contenders = [
            multiprocessing.Process(target=_contender, args=(url, number, seconds, told))
            for number in range(8)
        ]
        for each in contenders:
            each.start()
        found = [told.get(timeout=seconds + 60) for _ in contenders]
        for each in contenders:
            each.join()
    counts = [count for count, _ in found]
    yield Figure(name="sqlite, 8 processes", measured=sum(counts) / seconds, unit="/s")
    longest_ms = max(longest for _, longest in found) * 1000
    yield Figure(name="sqlite, 8 processes: longest wait", measured=longest_ms, unit="ms", must=250)
    share = min(counts) / (sum(counts) / len(counts))
    yield Figure(name="sqlite, 8 processes: fewest ÷ mean", measured=share, unit="×", must=0.3, is_most=False)


# --- The campaign -------------------------------------------------------------------------------


def drawn(number: int, worker: int, names: Sequence[str], open_ids: list[tuple[str, str]]) -> Transaction:
    """The operation of that number: the same, whoever draws it again."""
    random_ = random.Random(worker * 10_000_019 + number)
    kind = random_.choices(
        [Kind.CONSUME, Kind.RESERVE, Kind.POST, Kind.VOID, Kind.GRANT, Kind.CORRECT],
        weights=[30, 30, 20, 8, 8, 4],
    )[0]
    name, own = random_.choice(names), f"w{worker}-{number}"
    if kind in (Kind.POST, Kind.VOID) and not open_ids:
        kind = Kind.RESERVE
    if kind in (Kind.POST, Kind.VOID):
        name, reservation = open_ids[random_.randrange(len(open_ids))]
        amount = random_.randrange(150) if kind is Kind.POST else 0
        return Transaction(organisation=name, id=own, kind=kind, amount=amount, reservation=reservation)
    amount = random_.randrange(1, 100) * (random_.choice((1, 1, -1)) if kind is Kind.GRANT else 1)
    hold_s = random_.choice((0.0, 0.0, 0.05)) if kind is Kind.RESERVE else 0.0
    return Transaction(organisation=name, id=own, kind=kind, amount=amount, hold_s=hold_s)


def campaign_worker(url: str, worker: int, names: list[str], until: int, journal: str) -> None:
    """Asks in many coroutines, writes down every answer, and goes on after a kill where its journal ends."""
    path = Path(journal)
    done: set[int] = set()
    if path.exists():
        done = {json.loads(line)["n"] for line in path.read_bytes().splitlines() if line.endswith(b"}")}

    async def lane(asking: AsyncCredits, log: IO[bytes], start: int) -> None:
        open_ids: list[tuple[str, str]] = []
        for number in range(start, until, LANES):
            asked = drawn(number, worker, names, open_ids)
            # Whether it was answered before or not, its reservations are remembered in the same order.
            if asked.kind is Kind.RESERVE:
                open_ids.append((asked.organisation, asked.id))
                del open_ids[:-20]
            if number in done:
                continue
            entry = (await _patiently(asking, asked)).entry
            made = None if entry is None else [entry.organisation, entry.seq, entry.amount, entry.hash[:16]]
            log.write(json.dumps({"n": number, "made": made}).encode() + b"\n")

    async def run(asking: AsyncCredits, log: IO[bytes]) -> None:
        await asyncio.gather(*(lane(asking, log, start) for start in range(LANES)))

    with Credits(url) as bank, path.open("ab", buffering=0) as log:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            log.write(b"\n")  # the kill came in the midst of a line: that answer is asked for again
        asyncio.run(run(AsyncCredits(bank), log))


async def _patiently(asking: AsyncCredits, asked: Transaction) -> Answer:
    while True:
        try:
            return await asking.transact(asked)
        except StoreUnavailable:
            await asyncio.sleep(random.uniform(0.01, 0.1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Campaign:
    """What came of it."""

    operations: int
    kills: int
    lost: int
    made: int
    below: int
    breaks: tuple[str, ...]
    seconds: float


def campaign(url: str, operations: int, *, workers: int = 8, kills: int = 40, seed: int = 1) -> Campaign:
    """Workers that are killed and asked again, and then every ledger read from its beginning."""
    begin, chance = time.perf_counter(), random.Random(seed)
    with Credits(url) as bank, tempfile.TemporaryDirectory() as folder:
        names = [f"org-{number}" for number in range(20)]
        for name in names:
            bank.ledger.add(name, name, Terms(lowest=chance.choice((0, 0, -200))), "campaign")
        each_does = operations // workers
        journals = [str(Path(folder) / f"{number}.ndjson") for number in range(workers)]
        start = multiprocessing.get_context("spawn").Process

        def worker(number: int) -> multiprocessing.process.BaseProcess:
            made = start(
                target=campaign_worker, args=(url, number, names, each_does, journals[number]), daemon=True
            )
            made.start()
            return made

        running = {number: worker(number) for number in range(workers)}
        killed = 0
        while running:
            time.sleep(0.02)
            sizes = sum(Path(each).stat().st_size for each in journals if Path(each).exists())
            is_due = killed < kills * min(1.0, sizes / (operations * 60))
            for number, process in list(running.items()):
                if not process.is_alive():
                    process.join()
                    if process.exitcode == 0:
                        del running[number]
                    else:
                        running[number] = worker(number)
                elif is_due and chance.random() < 0.2 and process.pid is not None:
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
                    killed += 1
                    is_due = False
                    running[number] = worker(number)
        return _counted(bank, names, journals, operations, killed, begin)


def _counted(
    bank: Credits, names: list[str], journals: list[str], operations: int, killed: int, begin: float
) -> Campaign:
    bank.ledger.sweep()
    lost = made = below = 0
    breaks: list[str] = []
    told: dict[tuple[str, str], list[object]] = {}
    answered = 0
    for worker, journal in enumerate(journals):
        for line in Path(journal).read_text().splitlines():
            if not line.endswith("}"):
                continue
            said = json.loads(line)
            answered += 1
            if said["made"]:
                told[said["made"][0], f"w{worker}-{said['n']}"] = said["made"]
    if answered < operations // len(journals) * len(journals):
        breaks.append(f"{answered} answers to {operations} operations")
    for name in names:
        audited = bank.ledger.audit(name)
        assert audited is not None, name
        breaks += audited.faults
        balance, after, moved = audited.organisation.balance, 0, 0
        below += balance.available < audited.organisation.terms.lowest
        while page := bank.ledger.entries(name, after=after):
            after = page[-1].seq
            for entry in page:
                moved += entry.amount if entry.kind is Kind.GRANT else 0
                below += entry.balance.available < audited.organisation.terms.lowest
                if entry.kind in (Kind.EXPIRE, Kind.TERMS):
                    continue
                known = told.pop((name, entry.id), None)
                made += known is None or known[1:] != [entry.seq, entry.amount, entry.hash[:16]]
        made += moved + balance.issued != 0
    lost = len(told)
    return Campaign(
        operations=answered,
        kills=killed,
        lost=lost,
        made=made,
        below=below,
        breaks=tuple(breaks),
        seconds=time.perf_counter() - begin,
    )


def measure_campaign(engine: str, operations: int) -> Iterator[Figure]:
    """Nothing is lost, nothing made, nothing negative, nothing broken."""
    with a_store(engine) as url:
        came = campaign(url, operations)
    name = f"{engine}, {came.operations:,} operations, 8 processes, {came.kills} kills"
    yield Figure(name=name, measured=came.operations / came.seconds, unit="/s")
    for what, count in (
        ("credits lost", came.lost),
        ("credits made", came.made),
        ("balances below their limit", came.below),
        ("audit breaks", len(came.breaks)),
    ):
        yield Figure(name=f"{name}: {what}", measured=count, unit="", must=0)
    for each in came.breaks[:5]:
        print(f"    {each}")


# --- The command --------------------------------------------------------------------------------


def main() -> int:
    """Measure what was chosen; 1 where a figure misses its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=("open", "hot", "pgbench", "processes", "campaign"), action="append"
    )
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    chosen = given.only or ["open", "hot", "pgbench", "processes", "campaign"]
    on = given.engine or list(ENGINES)
    plans: list[tuple[str, Iterator[Figure]]] = []
    plans += [("open", measure_open_loop(engine, given.seconds)) for engine in on]
    if "postgresql" in on:
        plans.append(("hot", measure_hot(given.seconds)))
        plans.append(("pgbench", measure_beside_pgbench(given.seconds / 4, given.rounds)))
    if "sqlite" in on:
        plans.append(("processes", measure_contention(given.seconds)))
    plans += [("campaign", measure_campaign(engine, given.operations)) for engine in on]
    figures: list[Figure] = []
    for name, plan in plans:
        if name in chosen:
            for figure in plan:  # nothing is measured before it is asked for
                figures.append(figure)
                if not given.json:
                    print(figure.line(), flush=True)
    if given.json:
        print(json.dumps([[each.name, each.measured, each.unit, each.word] for each in figures], indent=2))
    return 1 if any(each.word == "MISSED" for each in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
