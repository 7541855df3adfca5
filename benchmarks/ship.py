"""What a ship costs besides its canary, how soon clients are back, and what is left after `kill -9`.

    python benchmarks/ship.py                            everything; the campaign takes a quarter of an hour
    python benchmarks/ship.py --only overhead,back
    python benchmarks/ship.py --only campaign --engine postgres --ships 20 --seed 7

Everything is real but the users: commands, servers, databases and clients are processes of their own, on real
stores, with the real time. In the campaign runners, the server, clients and PostgreSQL are killed by SIGKILL.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/ship"))

from road import CONFIG, Road
from runner_process import BROKEN, Runners
from users import Users

import engines
from deploy_gates import clock, runner, settings
from deploy_gates.core.assignment import bucket
from deploy_gates.core.canonical import JsonObject, spelled
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.errors import Refused, StoreUnavailable
from deploy_gates.core.promotion import Event, Scope
from deploy_gates.core.release import Act, Promotion, Release, State, Status, Terms
from deploy_gates.ship.carrying import MOVES, Carrier
from deploy_gates.ship.checkout import Checkout
from deploy_gates.store import Store, open_store, tokens
from deploy_gates.testing import POLICY, a_document, a_record, a_release
from project import Project
from sealed import seal

SECTIONS = ("overhead", "back", "campaign")
ENGINES = ("sqlite", "postgres")
PRODUCTION = ENVIRONMENTS[-1]
QUICK = """
[tool.deploy_gates.canary]
unit = "request"
warm_up_s = 0
mark_s = 30

[tool.deploy_gates.canary.metrics.errors]
margin_pt = 20

[tool.deploy_gates.canary.metrics.latency]
dry_run = true

[tool.deploy_gates.canary.metrics.cost]
margin_ratio = 10.0

[tool.deploy_gates.ship]
weight = 50
"""
"""Margins so wide that a few seconds of traffic decide. Calls that ask nobody say nothing of latency."""
CANARY: JsonObject = {
    "unit": "request",
    "warm_up_s": 0,
    "mark_s": 30,
    "metrics": {"errors": {"margin_pt": 20}, "latency": {"dry_run": True}, "cost": {"dry_run": True}},
}
"""In the campaign only errors decide: calls that ask nobody are as fast as the machine is idle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A figure that has to be reached, and one that would be good, in seconds."""

    must: float
    stretch: float


OVERHEAD = Target(must=5, stretch=1.5)
BACK = Target(must=1, stretch=0.2)

# --- What is left of a ship without its canary --------------------------------------------------


def overhead(urls: Callable[[str], str], asked: argparse.Namespace, scratch: Path) -> None:
    """Whole processes of `deploy-gates ship`, timed from outside, minus the canary by its journal."""
    heading("our own overhead in a whole ship", "p50", "slowest", "")
    for name, command in (
        ("python -c pass", ["-c", "pass"]),
        ("deploy-gates --version", ["-m", "deploy_gates", "--version"]),
        ("importing what a canary needs", ["-c", "import deploy_gates.canary.watching"]),
    ):
        took = [timed(partial(run, [sys.executable, *command])) for _ in range(5)]
        row(name, seconds(statistics.median(took)), seconds(max(took)))
    for engine in asked.engines:
        project = Project(scratch / f"project-{engine}", cases=12)
        project.write("pyproject.toml", (project.root / "pyproject.toml").read_text() + QUICK)
        project.record()
        project.commit("recorded")
        seal(project)
        fresh = [urls(engine) for _ in range(asked.rounds)]
        first = [timed(partial(ship, project, url)) for url in fresh]
        report(f"{engine}: the first release", first)
        others = list(with_canaries(project, fresh[-1], asked.rounds))
        report(f"{engine}: with a canary, without its time", others)


def with_canaries(project: Project, url: str, rounds: int) -> Iterator[float]:
    """Ships of further releases, before users who are there."""
    store = open_store(url)
    with Users(url, "triage") as users:
        users.start()
        for at in range(rounds):
            project.edit("Sort the ticket.", f"Sort the ticket. Step {at}.")
            project.record()
            project.commit(f"step {at}")
            seal(project)
            users.wait_for(requests=400)
            took = timed(lambda: ship(project, url))
            last = store.promotions("triage")[0]
            began, ended = last.outcome(Act.CANARY, PRODUCTION), last.outcome(Act.ANALYSIS, PRODUCTION)
            assert began is not None, last
            assert ended is not None, last
            yield took - (ended.at_ms - began.at_ms) / 1000
    store.close()


def ship(project: Project, url: str) -> None:
    environ = {**os.environ, "DEPLOY_GATES_ACTOR": "ada", "DEPLOY_GATES_STORE": url}
    run([sys.executable, "-m", "deploy_gates", "ship"], cwd=project.root, env=environ)


def report(name: str, took: Sequence[float]) -> None:
    row(name, seconds(statistics.median(took)), seconds(max(took)), judged(max(took), OVERHEAD))


# --- From the decision to the last client -------------------------------------------------------

FLEET = """
import os, sys, threading, time
from deploy_gates.client import ConfigClient
url, token, environment, name, first, number = *sys.argv[1:5], int(sys.argv[5]), int(sys.argv[6])
def note(at, client):
    now = time.monotonic()
    served, other = client.arms(name)
    os.write(1, f"{at} {served.revision} {int(other is None)} {now}\\n".encode())
clients = [ConfigClient(url, environment=environment, token=token, last_good=None) for _ in range(number)]
for at, client in enumerate(clients, first):
    client.on_change(lambda names, at=at, client=client: note(at, client))
    note(at, client)
sys.stdin.read()
for client in clients:
    client.close()
"""
CLIENTS, PROCESSES = 50, 5
ARRIVES_WITHIN_S, STARTS_WITHIN_S = 20.0, 60.0


class Fleet:
    """Fifty clients in five processes, which tell by the machine's clock when each got which revision."""

    def __init__(self, url: str, token: str, environment: str, name: str) -> None:
        each = CLIENTS // PROCESSES
        self._changed = threading.Condition()
        self._seen: dict[int, dict[int, float]] = defaultdict(dict)
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", FLEET, url, token, environment, name, str(at * each), str(each)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for at in range(PROCESSES)
        ]
        self._threads = [threading.Thread(target=self._read, args=(each,)) for each in self._processes]
        for thread in self._threads:
            thread.start()

    def gather(self) -> None:
        """Wait until all of them serve: how long they take to start is nobody's rollback."""
        with self._changed:
            everybody = self._changed.wait_for(lambda: len(self._seen) == CLIENTS, STARTS_WITHIN_S)
        assert everybody, f"only {len(self._seen)} of {CLIENTS} clients serve"

    def last(self, revision: int) -> float:
        """When the last of them served this revision or a later one, to everybody alike."""

        def arrived() -> bool:
            found = [max(seen) for seen in self._seen.values()]
            return len(found) == CLIENTS and min(found) >= revision

        with self._changed:
            assert self._changed.wait_for(arrived, ARRIVES_WITHIN_S), f"r{revision} does not arrive"
            return max(
                min(at for each, at in seen.items() if each >= revision) for seen in self._seen.values()
            )

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            client, revision, is_whole, at = line.split()
            if is_whole == "1":
                with self._changed:
                    self._seen[int(client)].setdefault(int(revision), float(at))
                    self._changed.notify_all()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._processes:
            assert each.stdin is not None
            each.stdin.close()
        for process, thread in zip(self._processes, self._threads, strict=True):
            process.wait(20)
            thread.join()
            assert process.stdout is not None
            process.stdout.close()


Rollback: TypeAlias = "Callable[[], tuple[float, int]]"
"""Rolls back; when that was decided by the clock of the machine, and the revision it made."""


def back(urls: Callable[[str], str], asked: argparse.Namespace, scratch: Path) -> None:
    """A canary is rolled back in every way there is, in turn; one clock for all."""
    heading(f"decision → last of {CLIENTS} clients on the baseline", "p50", "p99", "p99")
    for how in (*asked.engines, *(["http"] if "sqlite" in asked.engines else [])):
        url = urls("sqlite" if how == "http" else how)
        store = open_store(url)
        token = a_token(store)
        with served(url, token, scratch) as (address, _):
            where = (address, token) if how == "http" else (url, "")
            first = a_release(store, 1)
            for environment in ENVIRONMENTS:
                promote(store, CONFIG, environment, first)
            with Fleet(*where, PRODUCTION, CONFIG) as fleet:
                ways = {
                    "by the analysis": partial(by_analysis, store),
                    "by `deploy-gates rollback`": partial(by_command, store, url),
                    "by HTTP": partial(by_http, store, address, token),
                }
                for name, way in ways.items():
                    rounds = asked.repeats // 3 if "`" in name else asked.repeats
                    told_back(f"{how}: {name}", fleet, way, rounds)
            smoke = BySmoke(store, scratch / f"smoke-{how}")
            with Fleet(*where, "development", "triage") as fleet:
                told_back(f"{how}: by a smoke case missed", fleet, smoke, asked.repeats // 3)
        store.close()


def told_back(name: str, fleet: Fleet, way: Rollback, rounds: int) -> None:
    took = []
    fleet.gather()
    for _ in range(rounds):
        decided, revision = way()
        took.append(fleet.last(revision) - decided)
    p99 = percentile(took, 99)
    row(f"{name}, {len(took)} times", ms(statistics.median(took)), ms(p99), judged(p99, BACK))


def by_analysis(store: Store) -> tuple[float, int]:
    """A runner with simulated users, whose candidate fails always: from the analysis before it is written."""
    decided = 0.0

    def crosses(place: str) -> None:
        nonlocal decided
        if place == f"after analysis {PRODUCTION}":
            decided = time.monotonic()

    road = Road(store=store, failing=1.0)
    proposed = road.propose(next_number(), low_traffic=True)
    *_, told = road.carrier(crosses=crosses).ship(proposed.id)
    assert told.promotion.state is State.ROLLED_BACK, told
    return decided, store.deployments(PRODUCTION, CONFIG)[0].revision


def by_command(store: Store, url: str) -> tuple[float, int]:
    """From before the process is started."""
    begin_canary(store)
    began = time.monotonic()
    run([*DEPLOY_GATES, "rollback", CONFIG, "--env", PRODUCTION, "--by", "lin", "--store", url])
    return began, store.deployments(PRODUCTION, CONFIG)[0].revision


def by_http(store: Store, address: str, token: str) -> tuple[float, int]:
    """From before the request is sent."""
    begin_canary(store)
    began = time.monotonic()
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    connection.request(
        "POST",
        f"/v1/deployments/{CONFIG}/{PRODUCTION}/rollback",
        body=json.dumps({"reason": "measured"}),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    assert answer.status == 200, said
    return began, store.deployments(PRODUCTION, CONFIG)[0].revision


class BySmoke:
    """A repository whose every further release misses its smoke cases in development."""

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self._project = Project(root, cases=6)
        self._project.record()
        seal(self._project)
        self._carried("")

    def __call__(self) -> tuple[float, int]:
        self._project.edit("Sort the ticket.", f"Sort the ticket. Step {next_number()}.")
        self._project.record(lambda inputs, number: {"category": "technical"})
        seal(self._project)
        return self._carried("after smoke development")

    def _carried(self, decides: str) -> tuple[float, int]:
        decided = 0.0

        def crosses(place: str) -> None:
            nonlocal decided
            if place == decides:
                decided = time.monotonic()

        root = self._project.root
        checkout = Checkout(root=root, settled=settings.load(root))
        proposed = checkout.propose(self._store, "triage", actor="ada", until="staging")
        assert proposed is not None
        carrier = Carrier(store=self._store, owner=runner.owner("ship"), checkout=checkout, crosses=crosses)
        *_, told = carrier.ship(proposed.id)
        assert told.promotion.state is (State.ROLLED_BACK if decides else State.SHIPPED), told
        return decided, self._store.deployments("development", "triage")[0].revision


def begin_canary(store: Store) -> None:
    """One of a half; its clients have it."""
    digest = a_release(store, next_number())
    for environment in ENVIRONMENTS[:-1]:
        promote(store, CONFIG, environment, digest)
    moved = promote(store, CONFIG, PRODUCTION, digest, weight_bp=5_000)
    runner.followed(store, store.deployments(PRODUCTION, CONFIG)[0])
    assert moved.candidate == digest


# --- The campaign: what a client process does ---------------------------------------------------

SERVICE = """
import json, os, random, sys, time
from pathlib import Path
from deploy_gates.client import ConfigClient
from deploy_gates.core.cost import Usage
from deploy_gates.core.errors import ConfigUnavailable
url, token, log, last_good, seed, names = *sys.argv[1:5], int(sys.argv[5]), json.loads(sys.argv[6])
FAILS = {120: 0.0, 121: 0.6, 122: 1.0}
out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
draw = random.Random(seed)
known, candidates = {}, {}
def say(*told):
    os.write(out, (json.dumps(told) + "\\n").encode())
with ConfigClient(url, environment="production", token=token, last_good=Path(last_good), wait_s=10) as client:
    told_at = 0.0
    while True:
        for name in names:
            key = f"user-{draw.randrange(5_000)}"
            try:
                config = client.get(name, key)
            except ConfigUnavailable:
                continue
            row = (name, config.revision, config.digest)
            if known.setdefault(row, 0) < 3:
                known[row] += 1
                say("got", *row, key, time.time())
            if config.arm == "candidate":
                candidates[row] = time.time()
            with config.call() as call:
                call.record(Usage(input_tokens=100, output_tokens=20))
                if draw.random() < FAILS[config.document["parameters"]["max_completion_tokens"]]:
                    call.fail("the model fails")
        if time.time() - told_at > 0.5 and candidates:
            for row, at in candidates.items():
                say("had", *row, "", at)
            candidates.clear()
            told_at = time.time()
        time.sleep(0.02)
"""
"""A service with users. It writes down what it got for whom, and when it served a candidate last."""

# --- The campaign: what is shipped, and who is killed -------------------------------------------

LANES = 12
"""So many configs are shipped side by side."""
SERVICES = 3
TTL_S = 2.0
LASTS_S = 120.0
"""Clients end a canary after this."""
SHIPS_WITHIN_S = 200.0
"""Whoever has not ended by then never does."""
LATE_S = 60.0
"""So long after its deadline a canary may be in the record, until somebody ends it there."""
GRACE_S = 1.0
DATABASE_KILLS = (0.15, 0.4, 0.65, 0.9)
"""PostgreSQL is killed once these shares of the ships have ended."""
STEPS = (
    "evidence",
    *(f"promote {each}" for each in ENVIRONMENTS),
    *(f"{act} {PRODUCTION}" for act in ("canary", "analysis")),
)
PLACES = (*(f"{when} {step}" for when in ("before", "after") for step in STEPS), "before the conclusion")
BACK_PLACES = ("before rollback production", "after rollback production")
DOOMED_MAX = 3
"""So many runners of one ship may be killed."""


@dataclass(kw_only=True)
class Ship:
    """One release under way: what it deserves, and what fate has for those who carry it."""

    number: int
    draw: random.Random
    config: str
    kind: str
    """good, or how bad: half or all of its calls fail."""
    id: int = 0
    digest: str = ""
    began: float = field(default_factory=time.monotonic)
    runner: int = 0
    """The pid of who carries it; 0: nobody that we know of."""
    again_at: float = 0.0
    """When the next one is started."""
    kill_at: float = 0.0
    wake_at: float = 0.0
    killed: int = 0
    undo_at: float = 0.0
    """When somebody rolls it back by hand; 0: nobody does."""
    undone: bool = False
    fates: list[str] = field(default_factory=list)


class Campaign:
    """Ships releases of several configs side by side, kills whoever has a part in it, and counts."""

    def __init__(self, url: str, *, ships: int, seed: int, scratch: Path, server: engines.Server | None):
        self.url, self.ships, self.seed, self.scratch, self.database = url, ships, seed, scratch, server
        self.store = open_store(url)
        self.draw = random.Random(seed)
        self.names = [f"config-{at:02}" for at in range(LANES)]
        self.under_way: dict[str, list[Ship]] = {name: [] for name in self.names}
        self.serves: dict[str, str] = {}
        """What everybody in production has before the first ship, by config."""
        self.kills: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.strays: list[str] = []
        self.lost: list[str] = []
        self.explained = 0
        self.begun = self.ended = 0
        self.log = scratch / "served"
        self.told = scratch / "told"
        self.services: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        """Until all have ended; then everything is looked at once more."""
        self._prepare()
        token = a_token(self.store)
        port = free_port()
        errors = (self.scratch / "errors").open("ab")
        with (
            errors,
            Runners(self.url, errors=errors.fileno()) as self.runners,
            Killed(partial(serve, self.url, port, self.scratch, errors)) as web,
        ):
            address = f"http://127.0.0.1:{port}"
            services = [Killed(partial(self._service, at, address, token, errors)) for at in range(SERVICES)]
            with contextlib.ExitStack() as stack:
                for each in services:
                    stack.enter_context(each)
                self._carry_all(web, services)
        self._look_at_everything()
        self.store.close()

    def _prepare(self) -> None:
        for at, name in enumerate(self.names):
            digest = self._keep(name, "good", -at)
            for environment in ENVIRONMENTS:
                promote(self.store, name, environment, digest)
            self.serves[name] = digest

    def _keep(self, name: str, kind: str, number: int) -> str:
        document = a_document(number)
        document["parameters"] = {"max_completion_tokens": {"good": 120, "half": 121, "all": 122}[kind]}
        document["environments"] = {PRODUCTION: {"timeout_s": 5}}
        digest = runner.keep(self.store, name, spelled(document))
        self.store.put_evidence(a_record(digest, config=name, finished_at=clock.now() - timedelta(minutes=4)))
        return digest

    def _service(self, at: int, address: str, token: str, errors: Any) -> subprocess.Popen[Any]:
        url = address if at == SERVICES - 1 else self.url
        last_good = str(self.scratch / f"last-good-{at}.json")
        seed = self.draw.randrange(1 << 30)
        command = [sys.executable, "-c", SERVICE, url, token, str(self.log), last_good, str(seed)]
        return subprocess.Popen([*command, json.dumps(self.names)], stderr=errors)

    # --- Shipping and killing -------------------------------------------------------------------

    def _carry_all(self, web: Killed, services: Sequence[Killed]) -> None:
        looked_at = told_at = 0.0
        databases = [round(each * self.ships) for each in DATABASE_KILLS] if self.database else []
        web_at, service_at = self._later(6, 15), self._later(3, 8)
        while self.ended < self.ships:
            now = time.monotonic()
            if databases and self.ended >= databases[0]:
                databases.pop(0)
                self._kill_database()
            if now > web_at:
                web.kill()
                self.kills["server"] += 1
                web_at = self._later(6, 15)
            if now > service_at:
                self.draw.choice(services).kill()
                self.kills["client"] += 1
                service_at = self._later(3, 8)
            try:
                for name in self.names:
                    self._lane(name)
                if now - looked_at > 0.5:
                    looked_at = now
                    self._look()
            except StoreUnavailable:
                time.sleep(0.1)
            if now - told_at > 20:
                told_at = now
                killed = sum(self.kills.values())
                print(f"    {self.ended} of {self.ships} ships, {killed} kills", file=sys.stderr, flush=True)
            time.sleep(0.03)

    def _later(self, low: float, high: float) -> float:
        return time.monotonic() + self.draw.uniform(low, high)

    def _kill_database(self) -> None:
        assert self.database is not None
        self.database.kill()
        self.kills["database"] += 1
        time.sleep(self.draw.uniform(0, 2))  # for so long it is away
        self.database.start()

    def _lane(self, name: str) -> None:
        """Go on with one config: what is under way, what comes next, and sometimes one more behind it."""
        ships = self.under_way[name]
        wants_more = not ships or (
            len(ships) < 3 and ships[-1].draw.random() < 0.001 and time.monotonic() - ships[-1].began > 1
        )
        if wants_more and self.begun < self.ships:
            self._begin(name)
        for each in list(ships):
            self._advance(each)

    def _begin(self, name: str) -> None:
        number = self.begun + 1
        draw = random.Random(f"{self.seed}/{number}")
        kind = draw.choices(("good", "half", "all"), (6, 2, 2))[0]
        made = Ship(number=number, draw=draw, config=name, kind=kind)
        if draw.random() < 0.05:
            made.undo_at = time.monotonic() + draw.uniform(1, 8)
        made.digest = self._keep(name, kind, number)
        release = Release(config=name, digest=made.digest, actor="ada", reason=f"ship {number}")
        Carrier(store=self.store, owner=runner.owner("ship")).settle(name)  # as the command does
        terms = Terms(weight_bp=5_000, canary=CANARY, lasts_s=LASTS_S, smoke=False, low_traffic=True)
        made.id = self.store.propose(release, until=PRODUCTION, policy=POLICY, terms=terms).id
        self.begun = number
        self.under_way[name].append(made)

    def _advance(self, ship: Ship) -> None:
        now = time.monotonic()
        if ship.kill_at and now > ship.kill_at and ship.runner:
            self._send(ship, signal.SIGKILL)
            ship.kill_at = 0.0
        if ship.wake_at and now > ship.wake_at:
            self._send(ship, signal.SIGCONT)
            ship.wake_at = 0.0
        if ship.undo_at and now > ship.undo_at:
            self._undo(ship)
        if ship.runner and ship.runner in (ended := self.runners.ended()):
            self._note_end(ship, ended[ship.runner])
        promotion = self.store.promotion(ship.id)
        assert promotion is not None, ship
        if promotion.state.is_final and not ship.wake_at and not ship.runner:
            self._conclude(ship, promotion)
        elif now - ship.began > SHIPS_WITHIN_S:
            self.wrong.append(f"{said(ship)} is {promotion.state} for ever: {last(promotion)}")
            self._drop(ship)
        elif not ship.runner and now > ship.again_at and not promotion.state.is_final:
            self._start(ship)

    def _start(self, ship: Ship) -> None:
        """A runner, and what happens to it."""
        draw, task = ship.draw, dict[str, Any]()
        fate = draw.choices(("place", "moment", "sleep", "none"), (35, 35, 10, 20))[0]
        if ship.killed >= DOOMED_MAX:
            fate = "none"
        if fate == "place":
            task["place"] = draw.choice(PLACES if ship.kind == "good" else PLACES + BACK_PLACES * 3)
        ship.fates.append(task.get("place", fate))
        ship.runner = self.runners.start(ship.id, ttl_s=TTL_S, told=str(self.told), **task)
        if fate == "moment":
            ship.kill_at = time.monotonic() + draw.uniform(0.01, 10)
        if fate == "sleep":
            ship.kill_at, ship.wake_at = 0.0, time.monotonic() + draw.uniform(3, 6)
            self._send(ship, signal.SIGSTOP)

    def _send(self, ship: Ship, sent: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(ship.runner, sent)
            if sent is signal.SIGSTOP:
                self.kills["runner put to sleep"] += 1

    def _note_end(self, ship: Ship, status: int) -> None:
        fate = ship.fates[-1]
        if status == -signal.SIGKILL:
            ship.killed += 1
            self.kills["runner"] += 1
            self.kills[f"  {'at a random moment' if fate == 'moment' else fate}"] += 1
        elif status == BROKEN:
            self.wrong.append(f"{said(ship)}: a runner broke, see errors")
        ship.runner = 0
        ship.kill_at = ship.wake_at = 0.0
        is_left = ship.draw.random() < 0.3  # to the server
        ship.again_at = time.monotonic() + (30.0 if is_left else ship.draw.uniform(0.05, 4))

    def _undo(self, ship: Ship) -> None:
        """Somebody rolls the canary back by hand, unless it has just been decided."""
        ship.undo_at = 0.0
        here = self.store.deployments(PRODUCTION, ship.config)[0]
        if here.candidate != ship.digest:
            return
        with contextlib.suppress(Refused):
            runner.rollback(
                self.store,
                config=ship.config,
                environment=PRODUCTION,
                actor="lin",
                reason="by hand",
                expected=here.revision,
            )
            ship.undone = True
            self.kills["canaries rolled back by hand"] += 1

    def _drop(self, ship: Ship) -> None:
        if ship.runner:
            self._send(ship, signal.SIGKILL)
        self.under_way[ship.config].remove(ship)
        self.ended += 1

    # --- Looking --------------------------------------------------------------------------------

    def _look(self) -> None:
        """What may never be, at any moment."""
        running = Counter(
            each.release.config for each in self.store.promotions(is_open=True) if each.state is State.RUNNING
        )
        self.wrong += [f"{count} promotions of {name} run" for name, count in running.items() if count > 1]
        now = clock.now()
        for each in self.store.deployments(PRODUCTION):
            if each.expires_at is not None and now > each.expires_at + timedelta(seconds=LATE_S):
                self.wrong.append(f"{each.config} r{each.revision} is a canary past its deadline")

    def _conclude(self, ship: Ship, promotion: Promotion) -> None:
        """Whether a ship has ended as its users deserve, and the environments say the same."""
        self._drop(ship)
        state, why = promotion.state, promotion.conclusion
        is_honest = "deadline" in why or "without a request" in why
        fits = {
            State.SHIPPED: ship.kind == "good" and not ship.undone,
            State.ROLLED_BACK: ship.kind != "good" or ship.undone or is_honest,
            State.SUPERSEDED: True,
        }.get(state, False)
        if not fits:
            self.wrong.append(
                f"{said(ship)} is {state}: {why}{rows(promotion)}{traffic(self.store, promotion)}"
            )
        what = "by hand" if ship.undone else ship.kind if ship.kind == "good" else "bad"
        honestly = f" ({why})" if state is State.ROLLED_BACK and ship.kind == "good" and is_honest else ""
        self.ends[f"{what}: {state}{honestly}"] += 1
        here = self.store.deployments(PRODUCTION, ship.config)[0]
        others = {each.digest for each in self.under_way[ship.config]}
        shipped = [each for each in self.store.promotions(ship.config) if each.state is State.SHIPPED]
        last = max(shipped, key=lambda each: each.concluded_at or each.proposed_at, default=None)
        is_here = here.baseline in {last.release.digest if last else self.serves[ship.config], *others}
        if not is_here or here.candidate not in {"", *others}:
            self.wrong.append(f"{said(ship)} is {state}, and production serves {here}")
        for each in self.store.deployments(config=ship.config):
            self.lost += list(runner.problems(self.store, each))

    def _look_at_everything(self) -> None:
        """The whole record once more: histories, journals, what was acknowledged, and what was served."""
        promotions: dict[int, Promotion] = {}
        while found := self.store.promotions(before=min(promotions, default=0)):
            promotions |= {each.id: each for each in found}
        histories = {
            (each.config, each.environment): list(runner.events(self.store, each.config, each.environment))
            for each in self.store.deployments()
        }
        for each in self.store.deployments():
            self.lost += list(runner.problems(self.store, each))
        for promotion in promotions.values():
            self.lost += gaps(promotion, histories)
        for (name, environment), events in histories.items():
            self._look_at_moves(name, environment, events, promotions)
        self.lost += unkept(self.told, promotions)
        self.lost += overlaps(promotions)
        self.strays += strayed(self.log, histories)

    def _look_at_moves(
        self, name: str, environment: str, events: Sequence[Event], promotions: dict[int, Promotion]
    ) -> None:
        keys = Counter(each.key for each in events)
        self.lost += [f"{name} {environment}: {key} twice" for key, count in keys.items() if count > 1]
        for event in events:
            if not event.key.startswith("promotion-"):
                continue
            number, _, act = event.key.removeprefix("promotion-").partition("/")
            rows = [
                each
                for each in promotions[int(number)].journal
                if (each.act, each.environment) == (Act(act), environment)
            ]
            if not any(each.status is Status.BEGUN for each in rows):
                self.lost.append(f"{name} {environment} r{event.revision}: no journal tells of it")
            if not any(each.data.get("to") == event.revision for each in rows):
                self.explained += 1  # its runner died in between; the key in the history says whose it is


class Killed:
    """A process that is killed again and again, and started anew at once."""

    def __init__(self, start: Callable[[], subprocess.Popen[Any]]) -> None:
        self._start = start
        self._process = start()

    def kill(self) -> None:
        """SIGKILL, and a new one."""
        self._process.kill()
        self._process.wait()
        self._process = self._start()

    def __enter__(self) -> Killed:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


# --- The campaign: what the record says ---------------------------------------------------------


def gaps(promotion: Promotion, histories: dict[tuple[str, str], list[Event]]) -> Iterator[str]:
    """What is missing in one journal, or what it says and the history does not."""
    numbers = [each.number for each in promotion.journal]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"promotion {promotion.id}: the numbers of its journal are {numbers}"
    for entry in promotion.journal:
        if entry.act in MOVES and entry.status is Status.DONE:
            events = histories[promotion.release.config, entry.environment]
            if entry.data["to"] not in {each.revision for each in events}:
                yield f"promotion {promotion.id}: {entry.act} {entry.environment} was never made"


def overlaps(promotions: dict[int, Promotion]) -> Iterator[str]:
    """Promotions of one config that ran at the same time, by their journals."""
    last: dict[str, Promotion] = {}
    for each in (each for _, each in sorted(promotions.items())):
        before = last.get(each.release.config)
        if not each.journal:
            continue
        last[each.release.config] = each
        if before is None or before.concluded_at is None:
            continue
        if each.journal[0].at < before.concluded_at:
            yield f"promotion {each.id} ran before {before.id} had ended"


def unkept(told: Path, promotions: dict[int, Promotion]) -> Iterator[str]:
    """What a runner was told to be written, and is not there any more."""
    for line in told.read_text().splitlines() if told.exists() else ():
        number, state, rows = json.loads(line)
        kept = [
            [each.number, each.act, each.environment, each.status, each.data.get("to")]
            for each in promotions[number].journal
        ]
        if kept[: len(rows)] != rows:
            yield f"promotion {number}: its journal has lost or changed a row that was acknowledged"
        if State(state).is_final and promotions[number].state != state:
            yield f"promotion {number} was acknowledged as {state} and is {promotions[number].state}"


def strayed(log: Path, histories: dict[tuple[str, str], list[Event]]) -> Iterator[str]:
    """What clients served and no history has, to whom it was not due, or after its deadline."""
    events = {
        (name, each.revision): each
        for (name, environment), found in histories.items()
        for each in found
        if environment == PRODUCTION
    }
    for line in log.read_text().splitlines():
        word, name, revision, digest, key, at = json.loads(line)
        event = events.get((name, revision))
        if event is None or digest not in (event.baseline, event.candidate):
            yield f"{name} r{revision}: {digest[:7]} was served, and is not in the history"
            continue
        is_candidate = bool(event.candidate) and digest == event.candidate
        is_over = event.expires_at_ms and at * 1000 > event.expires_at_ms
        is_late = event.expires_at_ms and at * 1000 > event.expires_at_ms + GRACE_S * 1000
        if is_candidate and is_late:
            yield f"{name} r{revision}: the candidate was served past its deadline"
        due = bool(event.candidate) and bucket(event.salt, key) < event.weight_bp
        if word == "got" and due != is_candidate and not is_over:
            yield f"{name} r{revision}: {key} got the arm that was not due"


def said(ship: Ship) -> str:
    return f"ship {ship.number} ({ship.kind}, promotion {ship.id}, {', '.join(ship.fates)})"


def rows(promotion: Promotion) -> str:
    """The journal, a line a row."""
    return "".join(
        f"\n        {each.at:%H:%M:%S} {each.act} {each.environment} {each.status} by {each.owner[-17:]}: "
        f"{each.said} {json.dumps(each.data.get('decision', ''))}"
        for each in promotion.journal
    )


def traffic(store: Store, promotion: Promotion) -> str:
    """What its users reported, a line a bin, revision and arm."""
    since_ms = int(promotion.proposed_at.timestamp() * 1000) - 10_000
    sums: Counter[tuple[Any, ...]] = Counter()
    for each in store.tallies(promotion.release.config, PRODUCTION, since_ms=since_ms):
        for name in ("started", "finished", "errors", "dropped"):
            sums[each.start_ms, each.revision, each.unit, each.arm, name] += getattr(each, name)
    return "".join(f"\n        {key}: {count}" for key, count in sorted(sums.items()) if count)


def last(promotion: Promotion) -> str:
    entry = promotion.journal[-1] if promotion.journal else None
    return f"{entry.act} {entry.environment} {entry.status}: {entry.said}" if entry else "no journal"


def campaign(urls: Callable[[str], str], asked: argparse.Namespace, scratch: Path) -> None:
    """The ships, divided among the engines."""
    for engine in asked.engines:
        ships = asked.ships // len(asked.engines)
        place = scratch / f"campaign-{engine}"
        place.mkdir()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(engines.own_server()) if engine == "postgres" else None
            url = upgraded(engines.fresh_postgres(server.url) if server else engines.fresh_sqlite(place))
            made = Campaign(url, ships=ships, seed=asked.seed, scratch=place, server=server)
            began = time.monotonic()
            made.run()
            tell(engine, made, time.monotonic() - began)


def tell(engine: str, made: Campaign, took_s: float) -> None:
    heading(f"campaign on {engine}: {made.ships} ships in {took_s:.0f} s, seed {made.seed}", "")
    for name, count in made.ends.most_common():
        row(name, f"{count:,}")
    heading("  killed", "")
    for name, count in sorted(made.kills.items(), key=lambda each: each[0].startswith(" ")):
        row(name, f"{count:,}")
    row("moves told by their key alone", f"{made.explained:,}")
    heading("  left behind", "", "must")
    for name, found in (
        ("promotions in a wrong or unknown state", made.wrong),
        ("clients on an unrecorded config", made.strays),
        ("lost audit rows", made.lost),
    ):
        row(name, f"{len(found)}", "0, reached" if not found else "0, MISSED")
        for each in found[:20]:
            print(f"      {each}")
    errors = made.scratch / "errors"
    if (text := errors.read_text(errors="replace")) and "Traceback" in text:
        print(f"      processes said:\n{text[-4_000:]}")


# --- Processes and stores -----------------------------------------------------------------------

DEPLOY_GATES = (sys.executable, "-m", "deploy_gates")
_numbers = iter(range(1_000, 1_000_000))


def next_number() -> int:
    """One that no release has yet."""
    return next(_numbers)


def serve(url: str, port: int, cwd: Path, errors: Any = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*DEPLOY_GATES, "serve", f"--port={port}", "--store", url],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
    )


@contextlib.contextmanager
def served(url: str, token: str, cwd: Path) -> Iterator[tuple[str, str]]:
    """A server that answers, and ends with the block."""
    port = free_port()
    process = serve(url, port, cwd)
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            break
        except OSError:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.05)
        finally:
            connection.close()
    try:
        yield f"http://127.0.0.1:{port}", token
    finally:
        process.terminate()
        process.wait(20)


def a_token(store: Store) -> str:
    scopes = frozenset((Scope.READ, Scope.REPORT, Scope.PROMOTE))
    secret, token = tokens.issue("bench", scopes, created_by="bench", now=clock.now())
    store.put_token(token)
    return secret


def promote(store: Store, config: str, environment: str, digest: str, weight_bp: int | None = None) -> Any:
    return runner.promote(
        store,
        config=config,
        environment=environment,
        digest=digest,
        policy=POLICY,
        actor="bench",
        reason="",
        weight_bp=weight_bp,
        adopt_policy=True,
    ).deployment


def run(command: Sequence[str], **more: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def free_port() -> int:
    port: int = engines._free_port()
    return port


def upgraded(url: str) -> str:
    store = open_store(url)
    store.upgrade()
    store.close()
    return url


# --- Saying it ----------------------------------------------------------------------------------


def timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def percentile(times: Sequence[float], which: int) -> float:
    return sorted(times)[min(len(times) - 1, len(times) * which // 100)]


def seconds(figure: float) -> str:
    return f"{figure:.2f} s"


def ms(figure: float) -> str:
    return f"{figure * 1000:.0f} ms"


def judged(figure: float, target: Target) -> str:
    word = "stretch" if figure <= target.stretch else "reached" if figure <= target.must else "MISSED"
    return f"{word} (must {target.must:g} s, stretch {target.stretch:g} s)"


def heading(name: str, *columns: str) -> None:
    print(f"\n{name}\n" + " " * 52 + "".join(f"{each:<12}" for each in columns).rstrip())


def row(name: str, *columns: str) -> None:
    print(f"  {name:<50}" + "".join(f"{each:<12}" for each in columns).rstrip(), flush=True)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--engine", default="both", choices=(*ENGINES, "both"))
    parser.add_argument("--rounds", type=int, default=5, help="whole ships of each kind (default: 5)")
    parser.add_argument("--repeats", type=int, default=60, help="rollbacks of each kind (default: 60)")
    parser.add_argument("--ships", type=int, default=300, help="of the campaign, in all (default: 300)")
    parser.add_argument("--seed", type=int, default=1, help="of the campaign (default: 1)")
    asked = parser.parse_args()
    asked.engines = ENGINES if asked.engine == "both" else (asked.engine,)
    chosen = asked.only.split(",")
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers: list[str] = []

        def urls(engine: str) -> str:
            """An empty store."""
            if engine == "sqlite":
                return upgraded(engines.fresh_sqlite(Path(folder)))
            if not servers:
                servers.append(stack.enter_context(engines.postgres_server()))
            return upgraded(engines.fresh_postgres(servers[0]))

        for section in SECTIONS:
            if section in chosen:
                globals()[section](urls, asked, Path(folder))


if __name__ == "__main__":
    main()
