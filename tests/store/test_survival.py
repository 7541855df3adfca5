"""Promoters that are killed or race each other, and databases that are killed or full, as real processes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import engines
from deploy_gates import runner
from deploy_gates.core.errors import StoreUnavailable
from deploy_gates.core.promotion import Acknowledgement
from deploy_gates.store import Store, open_store, postgres, sqlite
from deploy_gates.testing import POLICY, a_release

KILLING = Path(__file__).with_name("killing.py")
FOLLOWING = Path(__file__).with_name("following.py")


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


def test_a_service_reads_on_through_a_migration(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = sqlite if store_url.startswith("sqlite") else postgres
    known = engine._migrations()
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_migrations", lambda: known[:-1])
        store = open_store(store_url)
        store.upgrade()
    digests = [a_release(store, 1), a_release(store, 2)]
    promoted(store, digests[0])
    with subprocess.Popen(
        [sys.executable, str(FOLLOWING), store_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as service:
        before = said(service, 1)
        upgrade = (sys.executable, "-m", "deploy_gates", "store", "upgrade", "--json", "--store", store_url)
        upgraded = json.loads(subprocess.run(upgrade, stdout=subprocess.PIPE, check=True).stdout)
        meanwhile = said(service, 1)
        promoted(store, digests[1])
        after = said(service, 2)
        service.communicate(timeout=30)
    store.close()

    assert (upgraded["before"], upgraded["after"]) == (len(known) - 1, len(known))
    assert [before, meanwhile, after] == ["True 1 False", "True 1 False", "True 2 False"]


def said(service: subprocess.Popen[str], revision: int) -> str:
    """What the service says once it serves this revision."""
    assert service.stdin is not None
    assert service.stdout is not None
    service.stdin.write(f"{revision}\n")
    service.stdin.flush()
    return service.stdout.readline().strip()


def test_a_command_whose_database_dies_after_the_move_says_that_it_was_made() -> None:
    with engines.own_server() as server:
        url = engines.fresh_postgres(server.url)
        store = open_store(url)
        store.upgrade()
        promoted(store, a_release(store, 1))
        promoted(store, a_release(store, 2))
        waited_for = Acknowledgement(config="ticket-triage", revision=2, age_ms=0)
        store.acknowledge("i", "never follows", "development", [waited_for])
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "deploy_gates", "rollback", "ticket-triage"),
                *("--env=development", "--store", url),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as command:
            _until(lambda: store.deployments()[0].revision == 3)
            server.kill()
            said, warned = command.communicate(timeout=60)
        store.close()

    assert command.returncode == 0
    assert "ROLLED BACK" in said
    assert "nobody can tell which clients follow" in warned


def test_a_full_disk_of_the_database_refuses_a_promotion_and_loses_none() -> None:
    with engines.own_server() as server:
        url = engines.fresh_postgres(server.url)
        store = open_store(url)
        store.upgrade()
        digests = [a_release(store, 1), a_release(store, 2)]
        promoted(store, digests[0])
        with full(server, url, "outbox"), pytest.raises(StoreUnavailable) as refused:
            promoted(store, digests[1])
        (before,) = store.deployments()
        revision = promoted(store, digests[1])
        (after,) = store.deployments()
        problems = list(runner.problems(store, after))
        untold = [each.revision for each in store.outbox()]
        store.close()

    assert "is full, and nothing was changed" in refused.value.message
    assert (before.revision, before.baseline) == (1, digests[0])
    assert (revision, after.revision, problems, untold) == (2, 2, [], [1, 2])


@contextlib.contextmanager
def full(server: engines.Server, url: str, table: str) -> Iterator[None]:
    """No byte can be added to this table: its file is `/dev/full`, and what was in it is back afterwards."""
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT pg_relation_filepath(%s)", [table]).fetchone()
    assert found is not None
    file = server.folder / "data" / found[0]
    kept = file.with_name(f"{file.name}.kept")
    server.stop()
    file.rename(kept)
    file.symlink_to("/dev/full")
    server.start()
    yield
    server.stop()
    kept.replace(file)
    server.start()


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
