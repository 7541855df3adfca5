"""Promoters that are killed or race each other, and databases that are away, as real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engines
from deploy_gates import runner
from deploy_gates.client import ConfigClient
from deploy_gates.core.errors import StoreUnavailable
from deploy_gates.store import Store, open_store
from deploy_gates.testing import POLICY, a_release

KILLING = Path(__file__).with_name("killing.py")


def killing(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(KILLING), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def test_a_promoter_killed_at_every_step_leaves_the_store_before_or_after(
    store: Store, store_url: str
) -> None:
    made = killing("kill", store_url, "500", "1")

    assert made["problems"] == []
    assert made["moved"] > 0
    assert all(made["killed_in"][step] > 0 for step in ("acquire", "move", "release")), made


def test_of_two_promoters_exactly_one_wins_each_of_a_thousand_revisions(store: Store, store_url: str) -> None:
    made = killing("race", store_url, "1000")

    assert made["problems"] == []
    assert made["revision"] == sum(made["won"]) == 1_000
    assert min(made["won"]) > 0
    assert sum(made["lost"]) > 0, "they never met"


DOWN_S = 10.0


def test_while_the_database_is_down_clients_serve_what_was_good_and_then_catch_up() -> None:
    with engines.own_server() as server:
        url = engines.fresh_postgres(server.url)
        store = open_store(url)
        store.upgrade()
        digests = [a_release(store, 1), a_release(store, 2)]
        promoted(store, digests[0])
        with ConfigClient(url, environment="development", last_good=None) as client:
            asking = Asking(client)
            server.kill()
            _until(lambda: client.is_stale)
            with pytest.raises(StoreUnavailable):
                store.deployments()
            asking.answers.clear()
            went_down = time.monotonic()
            _until(lambda: time.monotonic() - went_down > DOWN_S)
            while_down = set(asking.answers)
            server.start()
            revision = promoted(store, digests[1])
            caught_up = client.wait_for("ticket-triage", revision, 30)
            _until(lambda: not client.is_stale and digests[1] in asking.answers)
            asking.stop()
        (found,) = store.deployments()
        problems = list(runner.problems(store, found))
        store.close()

    assert while_down == {digests[0]}
    assert caught_up
    assert problems == []


class Asking:
    """A thread that asks a client without a pause, as a service under load does."""

    def __init__(self, client: ConfigClient) -> None:
        self._client = client
        self._stop = threading.Event()
        self.answers: set[str] = set()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        at = 0
        while not self._stop.is_set():
            at += 1
            self.answers.add(self._client.get("ticket-triage", f"user-{at}").digest)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_acknowledged_promotions_outlive_a_power_cut() -> None:
    with engines.own_server() as server:
        url = engines.fresh_postgres(server.url)
        store = open_store(url)
        store.upgrade()
        digests = [a_release(store, 1), a_release(store, 2)]
        for at in range(20):
            revision = promoted(store, digests[at % 2])
        server.kill()
        server.start()
        (found,) = store.deployments()
        problems = list(runner.problems(store, found))
        store.close()

    assert found.revision == revision == 20
    assert problems == []


def promoted(store: Store, digest: str) -> int:
    return runner.promote(
        store,
        config="ticket-triage",
        environment="development",
        digest=digest,
        policy=POLICY,
        actor="ada",
        reason="",
    ).deployment.revision


def _until(holds: Callable[[], bool], deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
