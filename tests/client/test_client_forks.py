"""The client in processes that fork: real forks, real stores."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import serving
from releases import ENVIRONMENT, PATIENCE_S, Team, digest, eventually, follows, team

from deploy_gates.client import ConfigClient, forking

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def url(store_url: str) -> str:
    return store_url


@pytest.fixture
def releasing(url: str) -> Iterator[Team]:
    with team(url) as made:
        yield made


def connect(url: str, **options: Any) -> ConfigClient:
    return ConfigClient(url, environment=ENVIRONMENT, **({"last_good": None} | options))


class Child:
    """A forked process that works, says what came of it, and is gone."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._reading, writing = os.pipe()
        self.id = os.fork()
        if self.id:
            os.close(writing)
            return
        try:
            said = json.dumps(work())
            os.write(writing, said.encode())
        finally:
            os._exit(0)

    def result(self) -> Any:
        """What the work returned; a child that hangs is killed."""
        ready, _, _ = select.select([self._reading], [], [], PATIENCE_S)
        if not ready:
            os.kill(self.id, signal.SIGKILL)
        os.waitpid(self.id, 0)
        with open(self._reading, "rb") as pipe:
            return json.loads(pipe.read() or b'"it hung or failed"')


def test_a_child_serves_at_once_and_follows_by_itself(url: str, releasing: Team) -> None:
    releasing.release(1)
    with connect(url) as client:
        at_once = Child(lambda: client.get("triage").digest)
        child = Child(lambda: [follows(client, 2), client.get("triage").digest, client.is_stale])
        served = at_once.result()
        releasing.release(2)

        assert served == digest(1)
        assert child.result() == [True, digest(2), False]
        assert follows(client, 2)


def test_every_child_is_an_instance_of_its_own_and_leaves_by_itself(url: str, releasing: Team) -> None:
    releasing.release(1)
    with connect(url) as client:
        may_end, end = os.pipe()

        def work() -> bool:
            arrived = follows(client, 2)
            os.read(may_end, 1)
            client.close()
            return arrived

        children = [Child(work) for _ in range(2)]
        releasing.release(2)
        told = eventually(lambda: [each.revision for each in releasing.store.instances()] == [2] * 3)
        names = {each.name.rpartition(":")[2] for each in releasing.store.instances()}
        os.write(end, b"..")

        assert told
        assert names == {str(each) for each in (os.getpid(), *(child.id for child in children))}
        assert [child.result() for child in children] == [True, True]
        assert [each.name.rpartition(":")[2] for each in releasing.store.instances()] == [str(os.getpid())]
        os.close(may_end)
        os.close(end)


def test_a_child_reports_its_own_outcomes(url: str, releasing: Team) -> None:
    releasing.release(1)
    with connect(url) as client:
        with client.get("triage").call():
            pass

        def work() -> bool:
            with client.get("triage").call():
                pass
            return client.flush()

        assert Child(work).result() is True
        assert client.flush()
        assert sum(each.finished for each in releasing.store.tallies("triage", ENVIRONMENT)) == 2


def test_children_forked_in_the_middle_of_everything_never_hang(url: str, releasing: Team) -> None:
    releasing.release(1)

    def keep_releasing() -> None:
        with team(url) as others:
            for version in itertools.count(2):
                others.release(version)

    others = Child(keep_releasing)
    with connect(url, poll_s=0.001) as client:
        took_s = []
        children = []
        for _ in range(30):
            target = client.revision("triage") + 1
            begun = time.monotonic()
            child = Child(lambda target=target: follows(client, target))  # type: ignore[misc]
            took_s.append(time.monotonic() - begun)
            children.append(child.result())
    os.kill(others.id, signal.SIGKILL)
    others.result()

    assert children == [True] * 30
    assert sorted(took_s)[15] < forking.FORK_WAIT_S / 2


def test_a_child_that_cannot_reach_the_store_serves_what_its_parent_did(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    with team(f"sqlite:///{tmp_path}/here/store.db") as releasing:
        releasing.release(1)
        with connect(f"sqlite:///{tmp_path}/here/store.db", last_good=kept) as client:
            assert eventually(kept.exists)
            older = kept.read_bytes()
            assert follows(client, releasing.release(2))
            assert eventually(lambda: kept.read_bytes() != older)
            kept.write_bytes(older)
            (tmp_path / "here").rename(tmp_path / "there")
            assert eventually(lambda: client.is_stale)

            child = Child(lambda: [eventually(lambda: _is_older(client), 1.0), client.is_stale])

            assert child.result() == [False, True]


def _is_older(client: ConfigClient) -> bool:
    return client.get("triage").digest != digest(2)


def test_a_child_of_a_client_that_was_closed_stays_closed(url: str, releasing: Team) -> None:
    releasing.release(1)
    client = connect(url)
    client.close()

    threads, served = Child(lambda: [threading.active_count(), client.get("triage").digest]).result()

    assert (threads, served) == (1, digest(1))


def test_processes_of_multiprocessing_follow_too(url: str, releasing: Team) -> None:
    releasing.release(1)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with connect(url) as client:
        processes = [
            context.Process(target=lambda: results.put((follows(client, 2), client.get("triage").digest)))
            for _ in range(2)
        ]
        for process in processes:
            process.start()
        releasing.release(2)

        assert [results.get() for _ in processes] == [(True, digest(2))] * 2
        for process in processes:
            process.join(PATIENCE_S)
            assert process.exitcode == 0
            process.close()
    results.close()


def test_a_client_over_http_goes_on_in_a_child() -> None:
    with serving() as server:
        server.release(1)
        with ConfigClient(server.url, environment=ENVIRONMENT, token=server.token, last_good=None) as client:
            assert eventually(lambda: server.streams == 1)

            def work() -> list[object]:
                at_once = client.get("triage").digest
                return [at_once, follows(client, 2), client.get("triage").digest]

            child = Child(work)
            assert eventually(lambda: (server.streams, len(server.instances)) == (2, 2))
            server.release(2)

            assert child.result() == [digest(1), True, digest(2)]
            assert follows(client, 2)


WARNINGS = [
    *("-W", "error"),
    *("-W", "ignore:This process:DeprecationWarning"),
    *("-W", "ignore::ResourceWarning"),  # a child must not close its parent's connections
]
PRELOADED = """
import os, sys
from pathlib import Path
from deploy_gates.client import ConfigClient

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

client = ConfigClient(sys.argv[1], environment="development", last_good=None)
workers = []
for _ in range(3):
    worker = os.fork()
    if not worker:
        with client.get("triage").call():
            pass
        say("worker at", client.revision("triage"))
        say("worker at", client.wait_for("triage", 2, 20) and client.revision("triage"))
        sys.exit(0)
    workers.append(worker)
codes = [os.waitpid(worker, 0)[1] for worker in workers]
say("master at", client.wait_for("triage", 2, 20) and client.revision("triage"), codes)
"""


def test_workers_forked_from_a_master_that_had_the_client_follow_report_and_leave(
    url: str, releasing: Team
) -> None:
    releasing.release(1)

    with subprocess.Popen(
        [sys.executable, *WARNINGS, "-c", PRELOADED, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as master:
        instances = eventually(lambda: len(releasing.store.instances()) == 4)
        releasing.release(2)
        out, err = master.communicate(timeout=PATIENCE_S)

    assert instances
    assert err == ""
    assert sorted(out.splitlines()) == [
        "master at 2 [0, 0, 0]",
        *["worker at 1"] * 3,
        *["worker at 2"] * 3,
    ]
    assert sum(each.finished for each in releasing.store.tallies("triage", ENVIRONMENT)) == 3
    assert releasing.store.instances() == ()


def test_starting_another_program_costs_nothing_and_disturbs_nobody(url: str, releasing: Team) -> None:
    releasing.release(1)
    with connect(url) as client:
        for _ in range(3):
            subprocess.run([sys.executable, "-c", ""], check=True, preexec_fn=os.setsid)

        assert follows(client, releasing.release(2))
        assert eventually(lambda: [each.revision for each in releasing.store.instances()] == [2])
