"""Clocks that are set while services and runners run by them, and the database too: real processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import engines
from deploy_gates import clock as true_clock
from stepping import SteppingClock, stepping_clock

HOUR_S = 3_600
DAY_S = 24 * HOUR_S
STEPS_S = (-DAY_S, HOUR_S, 30 * DAY_S, 0)
"""How far ahead the clock is, one after the other."""

FOLLOWING = str(Path(__file__).with_name("following.py"))
PROMOTER = """
import sys
from deploy_gates import clock, runner
from deploy_gates.store import open_store
from deploy_gates.testing import POLICY, a_release
store = open_store(sys.argv[1])
store.upgrade()
digest = a_release(store, int(sys.argv[2]))
moved = runner.promote(store, config="ticket-triage", environment="development", digest=digest, policy=POLICY,
                       actor="ada", reason="")
print(moved.deployment.revision, clock.now().isoformat())
"""
LATE_RUNNER = """
import sys
from deploy_gates.core.errors import Refused
from deploy_gates.store import open_store
store = open_store(sys.argv[1])
lease = store.acquire("ticket-triage", "development", "late")
print("holds it", flush=True)
sys.stdin.readline()
try:
    store.renew(lease)
except Refused as refused:
    print(refused.refusal.value)
"""


@pytest.fixture
def clock() -> Iterator[SteppingClock]:
    with stepping_clock() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path, clock: SteppingClock) -> Iterator[str]:
    """An empty store on each engine; PostgreSQL runs by the same clock as all others."""
    if request.param == "sqlite":
        yield engines.fresh_sqlite(tmp_path)
        return
    with engines.own_server(clock.environment) as server:
        yield engines.fresh_postgres(server.url)


def started(clock: SteppingClock, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | clock.environment,
    )


def said(process: subprocess.Popen[str], line: str = "") -> str:
    """What it says next, or on `line`."""
    assert process.stdin is not None
    assert process.stdout is not None
    if line:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def promoted(clock: SteppingClock, url: str, number: int) -> tuple[int, datetime]:
    """The revision, and what time it was to whoever promoted."""
    out, _ = started(clock, "-c", PROMOTER, url, str(number)).communicate(timeout=60)
    revision, at = out.split()
    return int(revision), datetime.fromisoformat(at)


def command(clock: SteppingClock, url: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "deploy_gates", *arguments, "--json", "--store", url],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | clock.environment,
    )
    return json.loads(done.stdout)


def test_whatever_the_clock_is_set_to_promotions_go_on_and_clients_follow(
    clock: SteppingClock, url: str
) -> None:
    promoted(clock, url, 1)
    numbers = itertools.cycle((2, 1))
    instances: list[list[int]] = []
    with started(clock, FOLLOWING, url) as service, started(clock, FOLLOWING, url) as killed:
        followed = [said(service, "1"), said(killed, "1")]
        killed.kill()
        for step_s in STEPS_S:
            with held(clock, url) as late:
                clock.set(step_s)
                revision, at = promoted(clock, url, next(numbers))
                refused = said(late, "go")
            assert abs(at - true_clock.now() - timedelta(seconds=step_s)) < timedelta(minutes=5)
            assert refused in ("fence", "lease")
            followed.append(said(service, str(revision)))
            instances.append(instances_at(clock, url, revision))
        log = command(clock, url, "log", "--verify")
        service.communicate(timeout=30)

    assert followed == ["True 1 False"] * 2 + [f"True {each} False" for each in (2, 3, 4, 5)]
    assert instances == [[2], [3], [4], [5]], "the one that was killed is not waited for"
    times = [datetime.fromisoformat(each["at"]) for each in reversed(log["events"])]
    assert log["problems"] == []
    assert times == sorted(times)
    assert len(times) == 5


def instances_at(clock: SteppingClock, url: str, revision: int) -> list[int]:
    """The revisions of the instances in `status`, once one of them is at this one."""
    for _ in range(20):
        (standing,) = command(clock, url, "status")
        revisions = [each["revision"] for each in standing["instances"]]
        if revision in revisions:
            break
    return revisions


@contextlib.contextmanager
def held(clock: SteppingClock, url: str) -> Iterator[subprocess.Popen[str]]:
    """A runner that holds the lease, and asks for more of it too late."""
    with started(clock, "-c", LATE_RUNNER, url) as process:
        assert said(process) == "holds it"
        yield process
