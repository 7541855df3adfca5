"""Services that go on while PostgreSQL is killed under them: real processes, and `kill -9`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from releases import ENVIRONMENT, Team, digest, eventually, follows, team

import engines
from deploy_gates import runner
from deploy_gates.client import ConfigClient

DOWN_S = 10.0
"""For how long the database is away."""

SERVICE = """
import json, sys, time
from pathlib import Path
from deploy_gates.client import ConfigClient

url, path, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
client = ConfigClient(url, environment="development", last_good=path)
print("ready", flush=True)
revisions, gets, slowest_s, was_stale, deadline = [], 0, 0.0, False, time.monotonic() + 60
while (not revisions or revisions[-1] < last) and time.monotonic() < deadline:
    begun = time.perf_counter()
    config = client.get("triage", "k")
    slowest_s = max(slowest_s, time.perf_counter() - begun)
    gets += 1
    if not revisions or revisions[-1] != config.revision:
        revisions.append(config.revision)
    was_stale = was_stale or config.is_stale
    if gets % 50 == 0:
        with config.call():
            time.sleep(0.001)
while client.is_stale and time.monotonic() < deadline:
    time.sleep(0.01)
is_flushed = client.flush(20)
client.close()
print(json.dumps([revisions, gets, slowest_s, was_stale, client.is_stale, is_flushed]))
"""


@pytest.fixture
def server() -> Iterator[engines.Server]:
    """A PostgreSQL of one's own, to be killed."""
    with engines.own_server() as made:
        yield made


@pytest.fixture
def releasing(server: engines.Server) -> Iterator[Team]:
    with team(server.url, durable=True) as made:
        yield made


def service(url: str, path: Path, last: int) -> subprocess.Popen[str]:
    """A process that asks for its config all the time, until it gets revision `last`."""
    started = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVICE, url, str(path), str(last)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def said(ended: subprocess.Popen[str]) -> Any:
    out, err = ended.communicate(timeout=90)
    assert ended.returncode == 0, err
    assert "Traceback" not in err
    assert "Warning:" not in err
    return json.loads(out)


def test_services_serve_the_last_good_value_while_the_database_is_dead_and_then_catch_up(
    tmp_path: Path, server: engines.Server, releasing: Team
) -> None:
    releasing.release(1)
    services = [service(server.url, tmp_path / f"{number}.json", 3) for number in range(3)]
    releasing.release(2)

    assert eventually(lambda: [each.revision for each in releasing.store.instances()] == [2] * 3)
    assert eventually(lambda: '"revision": 2' in (tmp_path / "0.json").read_text("utf-8"))
    server.kill()
    restarted = ConfigClient(
        server.url, environment=ENVIRONMENT, last_good=tmp_path / "0.json", wait_s=0.5, report=False
    )
    served, was_stale = restarted.get("triage").digest, restarted.is_stale
    assert not eventually(lambda: [each for each in services if each.poll() is not None], DOWN_S)
    server.start()
    with team(server.url) as again:
        assert again.release(3) == 3
        reports = [said(each) for each in services]
        assert follows(restarted, 3)
        restarted.close()
        problems = [said for each in again.store.deployments() for said in runner.problems(again.store, each)]
        counted = sum(each.started for each in again.store.tallies("triage", ENVIRONMENT))

    assert (served, was_stale, problems) == (digest(2), True, [])
    for revisions, gets, slowest_s, stale_meanwhile, stale_at_last, is_flushed in reports:
        assert revisions == [1, 2, 3] or revisions == [2, 3]
        assert (stale_meanwhile, stale_at_last, is_flushed) == (True, False, True)
        assert gets > 1_000
        assert slowest_s < 1.0
    called = sum(gets // 50 for _, gets, *_ in reports)
    assert called / 2 < counted <= called  # tallies of the last second before are not flushed to disk


def test_a_database_that_hangs_makes_nobody_wait(
    server: engines.Server, releasing: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy_gates.client.following.REREAD_S", 0.1)
    monkeypatch.setattr("deploy_gates.client.config.SILENT_S", 0.5)
    releasing.release(1)
    client = ConfigClient(server.url, environment=ENVIRONMENT, last_good=None)
    assert eventually(releasing.store.instances)
    with suspended(server):
        assert eventually(lambda: client.is_stale)
        assert "has not answered" in client.stale_reason
        begun = time.monotonic()
        with client.get("triage").call():
            pass
        client.close()
        assert time.monotonic() - begun < 1.0

    assert eventually(lambda: not [each for each in threading.enumerate() if "deploy-gates" in each.name])


@contextlib.contextmanager
def suspended(server: engines.Server) -> Iterator[None]:
    """All processes of the server stand still, and its connections stay open."""
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    processes = [process, *process.children()]
    for each in processes:
        each.suspend()
    try:
        yield
    finally:
        for each in processes:
            each.resume()
