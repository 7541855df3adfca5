"""What a promotion costs, how soon clients follow, and what a look-up takes, as ratios in one run.

    python benchmarks/store.py                 everything
    python benchmarks/store.py --only get,commit

Rows that are compared are measured in turn, so that a machine whose speed drifts is as slow for both.
PostgreSQL comes from the wheel the tests use; flagd is compared with where it is installed
(`pip install openfeature-provider-flagd`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import psutil

import engines
from deploy_gates import runner
from deploy_gates.client import ConfigClient
from deploy_gates.core.promotion import Kind, Lease, Move
from deploy_gates.store import Store, open_store
from deploy_gates.testing import POLICY, a_release

CONFIG = "ticket-triage"
ENGINES = ("sqlite", "postgres")
SECTIONS = ("commit", "follow", "get", "fleet", "rollback", "ofrep")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A figure that has to be reached, and one that would be good."""

    must: float
    stretch: float


@contextlib.contextmanager
def stores(scratch: Path) -> Iterator[dict[str, str]]:
    """The URLs of an empty store of each engine."""
    with engines.postgres_server() as server:
        urls = {"sqlite": f"sqlite:///{scratch / 'store.db'}", "postgres": engines.fresh_postgres(server)}
        for url in urls.values():
            store = open_store(url)
            store.upgrade()
            store.close()
        yield urls


class Promoter:
    """Promotes two configs in turn, in development, and holds the lease."""

    def __init__(self, url: str) -> None:
        self.store: Store = open_store(url)
        self.digests = [a_release(self.store, number) for number in (1, 2)]
        for each in self.store.deployments("development", CONFIG):
            if each.candidate:
                runner.rollback(
                    self.store, config=CONFIG, environment="development", actor="bench", reason=""
                )
        self.take()

    def take(self) -> None:
        """Take the lease, after whoever moved the environment since."""
        self.lease: Lease = self.store.acquire(CONFIG, "development", "bench", timedelta(minutes=10))
        self.revision = self.lease.revision

    def move(self) -> int:
        """Make the next promotion; its revision."""
        digest = self.digests[self.revision % 2]
        made = self.store.move(
            Move(
                config=CONFIG,
                environment="development",
                kind=Kind.PROMOTE,
                digest=digest,
                expected=self.revision,
                fence=self.lease.fence,
                policy=POLICY,
                actor="bench",
                reason="",
                key=f"bench-{self.revision}",
            )
        )
        self.revision = made.deployment.revision
        return self.revision


# --- A commit -----------------------------------------------------------------------------------


def commit(urls: dict[str, str], scratch: Path, rounds: int) -> None:
    """A promotion beside the least that could be called one: a compare-and-swap of one row."""
    heading("a promotion ÷ a bare compare-and-swap with the same durability", "p50", "p99", "÷ bare")
    target = Target(must=3, stretch=1.5)
    for engine in ENGINES:
        promoter = Promoter(urls[engine])
        with bare_swap(engine, urls[engine], scratch) as swap:
            bare, full = in_turn(swap, promoter.move, rounds)
        promoter.store.close()
        row(f"{engine}: bare compare-and-swap", ms(median(bare)), ms(percentile(bare, 99)), "1.0")
        ratio = median(full) / median(bare)
        row(f"{engine}: promotion", ms(median(full)), ms(percentile(full, 99)), judged(ratio, target))


@contextlib.contextmanager
def bare_swap(engine: str, url: str, scratch: Path) -> Iterator[Callable[[], object]]:
    """One row with a revision and a digest, in a file or database of its own."""
    create = "CREATE TABLE pointer (name TEXT PRIMARY KEY, revision INTEGER NOT NULL, digest TEXT NOT NULL)"
    insert = "INSERT INTO pointer VALUES ('development', 0, '')"
    revision = 0
    if engine == "sqlite":
        with contextlib.closing(sqlite3.connect(scratch / "bare.db", isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(create)
            connection.execute(insert)

            def swap() -> None:
                nonlocal revision
                done = connection.execute(
                    "UPDATE pointer SET revision = revision + 1, digest = ? WHERE name = ? AND revision = ? "
                    "RETURNING revision",
                    ("d" * 64, "development", revision),
                )
                revision = done.fetchall()[0][0]

            yield swap
        return
    import psycopg

    with psycopg.connect(url, autocommit=True) as server:
        server.execute(create)
        server.execute(insert)

        def swap_there() -> None:
            nonlocal revision
            done = server.execute(
                "UPDATE pointer SET revision = revision + 1, digest = %s WHERE name = %s AND revision = %s "
                "RETURNING revision",
                ("d" * 64, "development", revision),
            )
            (revision,) = done.fetchall()[0]

        yield swap_there


def in_turn(
    one: Callable[[], object], other: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for at in range(rounds + 20):
        for into, call in zip(times, (one, other), strict=True):
            began = time.perf_counter()
            call()
            if at >= 20:  # the first ones warm up
                into.append(time.perf_counter() - began)
    return times


# --- Following ----------------------------------------------------------------------------------

FOLLOWER = """
import json, sys, time
from deploy_gates.client import ConfigClient
url, token, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = {}
with ConfigClient(url, environment="development", token=token, last_good=None) as client:
    at = client.get("ticket-triage").revision
    print("ready", flush=True)
    deadline = time.monotonic() + 120
    while at < last and time.monotonic() < deadline:
        now = client.get("ticket-triage").revision
        if now != at:
            seen[now] = time.monotonic()
            at = now
        time.sleep(0.0002)
print(json.dumps(seen))
"""


def follow(urls: dict[str, str], scratch: Path, rounds: int) -> None:
    """From the commit to `client.get` in another process that asks five thousand times a second."""
    heading("commit → new value from client.get in another process", "p50", "p99", "p99 must")
    targets = {
        "postgres": Target(must=25, stretch=5),
        "sqlite": Target(must=50, stretch=10),
        "http": Target(must=100, stretch=25),
    }
    for engine, target in targets.items():
        with reached(engine, urls) as (url, address, token):
            delays = followed(url, address, token, rounds)
        row(
            f"{engine}: {len(delays)} promotions",
            ms(median(delays)),
            ms(percentile(delays, 99)),
            judged(percentile(delays, 99) * 1000, target, " ms"),
        )


def followed(url: str, address: str, token: str, rounds: int) -> list[float]:
    """How long after the commit each promotion was seen; one that was never seen is an hour late."""
    promoter = Promoter(url)
    if not promoter.revision:
        promoter.move()
    last = promoter.revision + rounds
    with subprocess.Popen(
        [sys.executable, "-c", FOLLOWER, address, token, str(last)], stdout=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "ready\n"
        committed = {}
        for _ in range(rounds):
            revision = promoter.move()
            committed[revision] = time.monotonic()
            time.sleep(0.02)
        seen = {int(key): value for key, value in json.loads(follower.stdout.read()).items()}
    promoter.store.close()
    final = seen.get(last)
    assert final is not None, "the last promotion never arrived"
    return [
        max(0.0, min((at for later, at in seen.items() if later >= revision)) - when)
        for revision, when in committed.items()
    ]


# --- A look-up ----------------------------------------------------------------------------------


def get(urls: dict[str, str], scratch: Path, rounds: int) -> None:
    """A look-up with a key while a canary runs, beside OpenFeature with flagd in process."""
    promoter = Promoter(urls["sqlite"])
    if not promoter.revision:
        promoter.move()
    store = promoter.store
    candidate = a_release(store, 3)
    store.release(promoter.lease)
    runner.promote(
        store,
        config=CONFIG,
        environment="development",
        digest=candidate,
        policy=POLICY,
        actor="bench",
        reason="",
        weight_bp=500,
        lasts_s=3_600.0,
    )
    keys = [f"user-{number}" for number in range(1_000)]
    heading("client.get with a sticky canary key", "a call", "", "must")
    with ConfigClient(urls["sqlite"], environment="development", last_good=None) as client:
        shared = sum(client.get(CONFIG, key).arm == "candidate" for key in keys)
        own_s = per_call(lambda: [client.get(CONFIG, key) for key in keys], len(keys), rounds)
        row(
            f"client.get, {shared} of 1,000 keys in the canary",
            f"{own_s * 1e6:.2f} µs",
            "",
            judged(own_s * 1e6, Target(must=2, stretch=0.8), " µs"),
        )
        flagd_s = flagd_per_call(scratch, keys, rounds)
    store.close()
    if flagd_s is not None:
        row("OpenFeature with flagd in process", f"{flagd_s * 1e6:.2f} µs", "", "")
        row("client.get ÷ flagd in process", "", "", judged(own_s / flagd_s, Target(must=0.1, stretch=0.1)))


def flagd_per_call(scratch: Path, keys: Sequence[str], rounds: int) -> float | None:
    """The same question to OpenFeature's SDK over flagd's own evaluator, in this process."""
    try:
        flagd: Any = importlib.import_module("openfeature.contrib.provider.flagd")
        settings: Any = importlib.import_module("openfeature.contrib.provider.flagd.config")
    except ImportError:
        row("OpenFeature with flagd in process", "not installed", "", "")
        return None
    from openfeature import api
    from openfeature.evaluation_context import EvaluationContext

    flags = scratch / "flags.json"
    variants = {name: {"digest": name, "model": "gpt-4.1-mini"} for name in ("baseline", "candidate")}
    flags.write_text(
        json.dumps(
            {
                "flags": {
                    CONFIG: {
                        "state": "ENABLED",
                        "variants": variants,
                        "defaultVariant": "baseline",
                        "targeting": {"fractional": [["baseline", 95], ["candidate", 5]]},
                    }
                }
            }
        )
    )
    provider = flagd.FlagdProvider(
        resolver_type=settings.ResolverType.FILE, offline_flag_source_path=str(flags), deadline_ms=5_000
    )
    api.set_provider_and_wait(provider) if hasattr(api, "set_provider_and_wait") else api.set_provider(
        provider
    )
    client = api.get_client()
    contexts = [EvaluationContext(targeting_key=key) for key in keys]
    try:
        return per_call(
            lambda: [client.get_object_value(CONFIG, {}, context) for context in contexts],
            len(keys),
            max(3, rounds // 20),
        )
    finally:
        provider.shutdown()
        api.shutdown()


def per_call(calls: Callable[[], object], number: int, rounds: int) -> float:
    """Seconds a call: the median over the rounds."""
    times = []
    for _ in range(max(3, rounds // 4)):
        began = time.perf_counter()
        calls()
        times.append((time.perf_counter() - began) / number)
    return median(times)


# --- Many clients -------------------------------------------------------------------------------

FLEET = """
import json, sys, threading, time
from deploy_gates.client import ConfigClient
url, token, number, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
clients = [ConfigClient(url, environment="development", token=token, last_good=None) for _ in range(number)]
seen = [{} for _ in clients]
def note(at, client):
    seen[at].setdefault(client.get("ticket-triage").revision, time.monotonic())
for at, client in enumerate(clients):
    client.on_change(lambda names, at=at, client=client: note(at, client))
    note(at, client)
print("ready", flush=True)
deadline = time.monotonic() + 300
while time.monotonic() < deadline and any(client.get("ticket-triage").revision < last for client in clients):
    time.sleep(0.01)
print(json.dumps(seen))
for client in clients:
    client.close()
"""


def fleet(urls: dict[str, str], scratch: Path, promotions: int, clients: int = 100) -> None:
    """A hundred clients in four processes: does each of them follow every promotion within a second?"""
    heading(f"{clients} clients, {promotions} promotions", "lost", "stale", "p99", "slowest")
    for engine in (*ENGINES, "http"):
        with reached(engine, urls) as (url, address, token):
            promoter = Promoter(url)
            if not promoter.revision:
                promoter.move()
            last = promoter.revision + promotions
            with fleet_of(clients, address, token, last) as processes:
                committed = {}
                for _ in range(promotions):
                    revision = promoter.move()
                    committed[revision] = time.monotonic()
                    time.sleep(0.03)
                lost, delays = 0, []
                for each in processes:
                    assert each.stdout is not None
                    for seen in json.loads(each.stdout.readline()):
                        arrived = sorted((int(revision), at) for revision, at in seen.items())
                        lost += arrived[-1][0] < last
                        delays += delays_of(arrived, committed)
            promoter.store.close()
        stale = sum(each > 1 for each in delays)
        row(engine, f"{lost} (must 0)", f"{stale} (must 0)", ms(percentile(delays, 99)), ms(max(delays)))


@contextlib.contextmanager
def fleet_of(clients: int, address: str, token: str, last: int) -> Iterator[list[subprocess.Popen[str]]]:
    """So many clients in four processes, all of which serve something; they end once they serve `last`."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", FLEET, address, token, str(clients // 4), str(last)],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(4)
        ]
        for each in processes:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        try:
            yield processes
        except BaseException:
            for each in processes:  # they would wait for a revision that does not come
                each.kill()
            raise


@contextlib.contextmanager
def reached(engine: str, urls: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """The store of an engine, and the address and token by which clients reach it."""
    url = urls["sqlite" if engine == "http" else engine]
    with contextlib.ExitStack() as stack:
        yield (url, *(stack.enter_context(server(url)) if engine == "http" else (url, "")))


def rollback(urls: dict[str, str], scratch: Path, rounds: int, clients: int = 100) -> None:
    """From the start of the command to the last of a hundred clients."""
    heading(f"`deploy-gates rollback`: from the command to {clients} clients", "p50", "slowest", "must")
    for engine in (*ENGINES, "http"):
        with reached(engine, urls) as (url, address, token):
            promoter = Promoter(url)
            took = [rolled_back(promoter, url, address, token, clients) for _ in range(5)]
            promoter.store.close()
        row(engine, ms(median(took)), ms(max(took)), judged(median(took), Target(must=1, stretch=1), " s"))


def rolled_back(promoter: Promoter, url: str, address: str, token: str, clients: int) -> float:
    """Seconds from the command to the last client that serves what was served before."""
    for _ in range(2):  # two configs in turn: there is something to go back to
        promoter.take()
        promoter.move()
    promoter.store.release(promoter.lease)
    with fleet_of(clients, address, token, promoter.revision + 1) as processes:
        command = (sys.executable, "-m", "deploy_gates", "rollback", CONFIG, "--env=development")
        while sum(each.revision == promoter.revision for each in promoter.store.instances()) < clients:
            time.sleep(0.1)  # they have just started, and are still busy with that
        began = time.monotonic()
        subprocess.run([*command, "--store", url], stdout=subprocess.DEVNULL, check=True)
        arrivals = []
        for each in processes:
            assert each.stdout is not None
            arrivals += [max(seen.values()) for seen in json.loads(each.stdout.readline())]
    return float(max(arrivals) - began)


def delays_of(arrived: list[tuple[int, float]], committed: dict[int, float]) -> list[float]:
    """How long after each commit a client served that revision or a later one."""
    delays, at = [], 0
    for revision, when in committed.items():
        while at < len(arrived) and arrived[at][0] < revision:
            at += 1
        if at == len(arrived):
            break
        delays.append(max(0.0, arrived[at][1] - when))
    return delays


# --- OFREP --------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(url: str) -> Iterator[tuple[str, str]]:
    """A server of the store, as a process: its address, and a token that may read and report."""
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "deploy_gates",
            "token",
            "create",
            "bench",
            "--scope=read",
            "--scope=report",
            "--store",
            url,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "deploy_gates",
            "serve",
            "--port=0",
            "--environment=development",
            "--store",
            url,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            yield address, made.stdout.strip()
        finally:
            process.terminate()
            process.wait(10)


LOAD = """
import asyncio, json, sys, time
host, token = sys.argv[1], sys.argv[3]
port, seconds, connections = int(sys.argv[2]), float(sys.argv[4]), int(sys.argv[5])
def request(key):
    body = json.dumps({"context": {"targetingKey": key}}).encode()
    head = ["POST /ofrep/v1/evaluate/flags/ticket-triage HTTP/1.1", f"Host: {host}",
            "Content-Type: application/json", f"Authorization: Bearer {token}",
            f"Content-Length: {len(body)}", "", ""]
    return "\\r\\n".join(head).encode() + body
async def worker(number, end, times):
    reader, writer = await asyncio.open_connection(host, port)
    asked = [request(f"user-{number}-{each}") for each in range(100)]
    at = 0
    while time.monotonic() < end:
        began = time.perf_counter()
        writer.write(asked[at % 100]); at += 1
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length:")[1].split(b"\\r\\n")[0])
        await reader.readexactly(length)
        times.append(time.perf_counter() - began)
    writer.close()
async def main():
    times = []
    began = time.monotonic()
    await asyncio.gather(*(worker(number, began + seconds, times) for number in range(connections)))
    took = time.monotonic() - began
    times.sort()
    print(json.dumps([len(times) / took, times[len(times) // 2], times[int(len(times) * 0.99)]]))
asyncio.run(main())
"""


def ofrep(urls: dict[str, str], scratch: Path, rounds: int) -> None:
    """Single evaluations over loopback; who asks has the second core."""
    heading("OFREP single evaluation, one server process", "p50", "p99", "requests/s")
    promoter = Promoter(urls["sqlite"])
    if not promoter.revision:
        promoter.move()
    promoter.store.close()
    with server(urls["sqlite"]) as (address, token):
        (process,) = (each for each in psutil.Process().children() if "serve" in each.cmdline())
        host, _, port = address.rpartition("/")[2].partition(":")
        for connections in (1, 16):
            before = process.cpu_times()
            done = subprocess.run(
                [sys.executable, "-c", LOAD, host, port, token, "5", str(connections)],
                capture_output=True,
                text=True,
                check=True,
            )
            after = process.cpu_times()
            rate, p50, p99 = json.loads(done.stdout)
            said = judged(-rate, Target(must=-2_000, stretch=-5_000)) if connections > 1 else f"{rate:,.0f}"
            row(f"{connections} connections", ms(p50), ms(p99), said)
        # What a core with nothing else to do would take.
        spent_s = after.user + after.system - before.user - before.system
        row(
            "processor time of the server",
            f"{spent_s / rate / 5 * 1e6:.0f} µs",
            "",
            f"{rate * 5 / spent_s:,.0f}",
        )


# --- Saying it ----------------------------------------------------------------------------------


def median(times: Sequence[float]) -> float:
    return statistics.median(times)


def percentile(times: Sequence[float], which: int) -> float:
    return sorted(times)[min(len(times) - 1, len(times) * which // 100)]


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def judged(figure: float, target: Target, unit: str = "") -> str:
    """The figure with how it stands to its target; negative ones are better the larger they are."""
    word = "stretch" if figure <= target.stretch else "reached" if figure <= target.must else "MISSED"
    size = abs(figure)
    shown = f"{size:,.0f}" if size >= 100 else f"{size:.2f}"
    return f"{shown}{unit}, {word} (must {abs(target.must):g})"


def heading(name: str, *columns: str) -> None:
    print(f"\n{name}\n" + " " * 46 + "".join(f"{each:<14}" for each in columns).rstrip())


def row(name: str, *columns: str) -> None:
    print(f"  {name:<44}" + "".join(f"{each:<14}" for each in columns).rstrip(), flush=True)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--promotions", type=int, default=1_000)
    asked = parser.parse_args()
    chosen = asked.only.split(",")
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    with tempfile.TemporaryDirectory() as folder, stores(Path(folder)) as urls:
        for section in SECTIONS:
            if section in chosen:
                rounds = asked.promotions if section == "fleet" else asked.rounds
                globals()[section](urls, Path(folder), rounds)


if __name__ == "__main__":
    main()
