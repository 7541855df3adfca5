"""The client over real stores: what it serves, how soon, and what it says of it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from releases import ENVIRONMENT, PATIENCE_S, PRICE, Team, digest, document, eventually, follows, team

from deploy_gates.client import ConfigClient
from deploy_gates.core import canonical
from deploy_gates.core.assignment import bucket
from deploy_gates.core.errors import ConfigUnavailable, PromptError, StoreError
from deploy_gates.core.tally import Arm

GET_MAX_US = 2.0
IMPORT_MAX_S = 0.1
HEAVY = {"numpy", "pytest", "openai", "jsonschema", "tiktoken", "psycopg", "jinja2", "starlette", "pydantic"}


@pytest.fixture
def url(store_url: str) -> str:
    return store_url


@pytest.fixture
def releasing(url: str) -> Iterator[Team]:
    with team(url) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a SQLite store, for what only a file can suffer."""
    return tmp_path / "store.db"


@pytest.fixture
def releasing_to_file(file: Path) -> Iterator[Team]:
    with team(f"sqlite:///{file}") as made:
        yield made


def connect(url: str, **options: object) -> ConfigClient:
    return ConfigClient(url, environment=ENVIRONMENT, **({"last_good": None} | options))  # type: ignore[arg-type]


# --- What is served -------------------------------------------------------------------------------


def test_a_client_serves_what_was_promoted(url: str, releasing: Team) -> None:
    revision = releasing.release(1)

    with connect(url) as client:
        config = client.get("triage")
        baseline, candidate = client.arms("triage")

        assert (config.name, config.environment, config.revision) == ("triage", ENVIRONMENT, revision)
        assert (config.digest, config.document, config.arm) == (digest(1), document(1), Arm.BASELINE)
        assert (config.base_url, config.api_key_env, config.timeout_s) == (
            "http://models.test/v1",
            "TEST_KEY",
            7,
        )
        assert (config.key, config.is_stale, client.is_stale, client.names) == (
            None,
            False,
            False,
            ("triage",),
        )
        assert (baseline.price, candidate, client.revision("triage")) == (PRICE, None, revision)


def test_a_promotion_and_a_rollback_reach_a_client(url: str, releasing: Team) -> None:
    releasing.release(1)
    with connect(url) as client:
        before = client.get("triage")

        arrived = follows(client, releasing.release(2))
        promoted = client.get("triage")
        returned = follows(client, releasing.roll_back())

        assert (arrived, returned) == (True, True)
        assert (before.digest, promoted.digest, client.get("triage").digest) == (
            digest(1),
            digest(2),
            digest(1),
        )


def test_a_config_that_comes_later_is_served_too(url: str, releasing: Team) -> None:
    with connect(url) as client:
        with pytest.raises(ConfigUnavailable, match="nothing named triage was promoted to development"):
            client.get("triage")

        assert follows(client, releasing.release(1))
        assert client.get("triage").digest == digest(1)


def test_callbacks_are_told_what_changed_until_they_want_no_more(
    url: str, releasing: Team, caplog: pytest.LogCaptureFixture
) -> None:
    releasing.release(1)
    releasing.release(1, "other")
    told: list[frozenset[str]] = []
    with connect(url) as client:
        client.on_change(_fail)
        unsubscribe = client.on_change(told.append)

        releasing.release(2)
        assert eventually(lambda: told)
        unsubscribe()
        assert follows(client, releasing.release(3))
        assert follows(client, releasing.release(4, "other"), "other")

        assert told == [frozenset({"triage"})]
    assert "a callback of on_change failed" in caplog.text


def _fail(names: frozenset[str]) -> None:
    raise ZeroDivisionError(str(names))


def test_waiting_for_a_revision_that_does_not_come_ends_in_time(url: str, releasing: Team) -> None:
    revision = releasing.release(1)

    with connect(url) as client:
        assert client.wait_for("triage", revision, 0)
        assert not client.wait_for("triage", revision + 1, 0.05)
        assert not client.wait_for("nothing", 1, 0.01)


def test_what_is_wrong_with_a_name_is_said(tmp_path: Path, url: str, releasing: Team) -> None:
    releasing.release(1)

    with connect(url) as client, connect(f"sqlite:///{tmp_path}/none.db", wait_s=0) as lost:
        with pytest.raises(ConfigUnavailable, match="nothing named triag was promoted") as missing:
            client.get("triag")
        with pytest.raises(ConfigUnavailable, match=r"none\.db cannot be read \(") as away:
            lost.get("triage", "k")
        for ask in (lost.revision, lost.arms):
            with pytest.raises(ConfigUnavailable, match="nothing was kept on disk"):
                ask("triage")

    assert "there is triage" in missing.value.hint
    assert "as soon as the store can be read" in away.value.hint


def test_an_address_that_can_never_work_is_refused_at_once() -> None:
    for url in ("mysql://host/db", "sqlite:///", "https://", "http://user:secret@host"):
        with pytest.raises(StoreError):
            connect(url)


def test_a_store_that_appears_later_is_found(url: str) -> None:
    with connect(url, wait_s=0) as client, team(url) as releasing:
        assert client.is_stale

        assert follows(client, releasing.release(1))
        assert eventually(lambda: not client.is_stale)


# --- Requests -------------------------------------------------------------------------------------


def test_a_config_makes_a_request(url: str, releasing: Team) -> None:
    releasing.release(1)

    with connect(url) as client:
        request = client.get("triage").request(subject="{{ hello }}")

    assert request == {
        "model": "model-1",
        "messages": [{"role": "user", "content": "Version 1: {{ hello }}"}],
        "temperature": 0,
    }


@pytest.mark.parametrize(
    ("inputs", "says"),
    [({}, "wants an input `subject`"), ({"subject": "a", "sbject": "b"}, "has no input `sbject`")],
)
def test_a_request_with_other_inputs_is_refused(
    url: str, releasing: Team, inputs: dict[str, str], says: str
) -> None:
    releasing.release(1)

    with connect(url) as client, pytest.raises(PromptError, match=says) as refused:
        client.get("triage").request(**inputs)

    assert refused.value.hint == "its inputs: `subject`"


# --- Who gets the candidate -----------------------------------------------------------------------


def test_keys_are_drawn_by_their_bucket_and_nobody_else_gets_the_candidate(url: str, releasing: Team) -> None:
    releasing.release(1)
    revision = releasing.release(2, weight_bp=500)
    keys = [f"organization-{number}" for number in range(5_000)] + ["", "é", "🙂", "\n"]

    with connect(url) as client:
        (deployment,) = releasing.store.deployments()
        drawn = {key for key in keys if client.get("triage", key).arm is Arm.CANDIDATE}

        assert drawn == {key for key in keys if bucket(deployment.salt, key) < 500}
        assert 150 < len(drawn) < 350
        assert client.get("triage").arm is Arm.BASELINE
        assert client.revision("triage") == revision
        for key in itertools.islice(drawn, 3):
            config = client.get("triage", key)
            assert (config.key, config.digest, config.revision) == (key, digest(2), revision)
            assert client.assign("triage", key) is client.arms("triage")[1]
        assert {each.canary for each in client.arms("triage") if each} == {deployment.salt}


def test_keys_that_are_no_proper_text_are_drawn_as_well(url: str, releasing: Team) -> None:
    """A service that passes numbers must not fail for the first time when a canary begins."""
    releasing.release(1)
    releasing.release(2, weight_bp=5_000)
    keys: list[Any] = [*range(100), *(f"{number}\ud800" for number in range(100))]

    with connect(url) as client:
        drawn = [client.get("triage", key).arm for key in keys]
        again = [client.get("triage", key if isinstance(key, str) else str(key)).arm for key in keys]

    assert drawn == again
    assert set(drawn[:100]) == set(drawn[100:]) == set(Arm)


@pytest.mark.parametrize("weight_bp", [1, 9_999])
def test_the_smallest_and_the_largest_share_are_exact(url: str, releasing: Team, weight_bp: int) -> None:
    releasing.release(1)
    releasing.release(2, weight_bp=weight_bp)
    keys = [str(number) for number in range(20_000)]

    with connect(url) as client:
        (deployment,) = releasing.store.deployments()
        drawn = {key for key in keys if client.get("triage", key).arm is Arm.CANDIDATE}

    assert drawn == {key for key in keys if bucket(deployment.salt, key) < weight_bp}


def test_who_has_the_candidate_keeps_it_while_its_share_grows(url: str, releasing: Team) -> None:
    keys = [f"user-{number}" for number in range(2_000)]
    releasing.release(1)
    drawn: list[set[str]] = []
    with connect(url) as client:
        for weight_bp in (500, 2_500, 5_000):
            assert follows(client, releasing.release(2, weight_bp=weight_bp))
            drawn.append({key for key in keys if client.get("triage", key).arm is Arm.CANDIDATE})
        assert follows(client, releasing.release(2))

        assert drawn[0] < drawn[1] < drawn[2]
        assert {client.get("triage", key).digest for key in keys} == {digest(2)}


# --- What cannot be served ------------------------------------------------------------------------


def test_a_revision_that_cannot_be_read_is_refused_and_all_else_moves_on(
    url: str, releasing: Team, caplog: pytest.LogCaptureFixture
) -> None:
    first = releasing.release(1)
    with connect(url) as client:
        broken = releasing.release_spelled(b'{"messages": [], "version": "of another age"}')
        assert follows(client, releasing.release(1, "other"), "other")

        assert client.get("triage").digest == digest(1)
        assert eventually(lambda: any(each.refused for each in releasing.store.instances(config="triage")))
        (told,) = releasing.store.instances(config="triage")
        assert (told.revision, told.refused) == (first, broken)
        assert "no config this version knows: the config has no `model`" in told.reason

        assert follows(client, releasing.release(3))
        assert eventually(lambda: not releasing.store.instances(config="triage")[0].refused)
    assert caplog.text.count(f"r{broken} of triage is refused") == 1
    assert "no longer names" not in caplog.text


def test_a_document_that_was_altered_in_the_store_is_refused(file: Path, releasing_to_file: Team) -> None:
    releasing = releasing_to_file
    spelling = canonical.spelled(document(1))
    with connect(f"sqlite:///{file}") as client:
        with sqlite3.connect(file) as store:
            store.execute("DROP TRIGGER config_is_what_its_digest_says")
            store.execute(
                "INSERT INTO config VALUES (?, 'triage', ?)",
                (canonical.digest_of(spelling), spelling.replace(b"model-1", b"model-x")),
            )
        store.close()
        releasing.release(1)

        assert eventually(lambda: any(each.refused for each in releasing.store.instances()))
        with pytest.raises(ConfigUnavailable, match="was altered: it is not what its digest says"):
            client.get("triage")


def test_a_store_that_forgets_what_it_had_promoted_does_not_take_it_away(
    file: Path, releasing_to_file: Team, caplog: pytest.LogCaptureFixture
) -> None:
    releasing_to_file.release(1)
    with connect(f"sqlite:///{file}") as client:
        with sqlite3.connect(file) as store:
            for trigger in ("deployment_is_kept", "history_is_kept"):
                store.execute(f"DROP TRIGGER {trigger}")
            for table in ("outbox", "history", "deployment"):
                store.execute(f"DELETE FROM {table}")
        store.close()

        assert eventually(lambda: "no longer names triage" in caplog.text)
        assert client.get("triage").digest == digest(1)


# --- What the store is told -----------------------------------------------------------------------


def test_the_store_is_told_who_serves_what_and_how_soon(url: str, releasing: Team) -> None:
    first = releasing.release(1)
    with connect(url, name="worker 7") as client:
        assert eventually(lambda: releasing.store.instances())
        (started,) = releasing.store.instances()
        second = releasing.release(2)
        assert eventually(lambda: releasing.store.instances()[0].revision == second)
        (followed,) = releasing.store.instances()
        (deployment,) = releasing.store.deployments()

        assert (started.name, started.environment, started.config) == ("worker 7", ENVIRONMENT, "triage")
        assert (started.revision, started.reloaded, followed.reloaded) == (first, False, True)
        assert started.id == followed.id
        assert deployment.changed_at is not None
        assert abs((followed.serving_since - deployment.changed_at).total_seconds()) < PATIENCE_S
        assert not client.is_stale

    assert releasing.store.instances() == ()


def test_a_client_that_is_not_to_report_says_nothing(url: str, releasing: Team) -> None:
    releasing.release(1)
    with connect(url, report=False) as client, connect(url, name="the other one"):
        assert follows(client, releasing.release(2))
        assert eventually(lambda: releasing.store.instances())

        assert [each.name for each in releasing.store.instances()] == ["the other one"]


def test_outcomes_arrive_in_the_store(url: str, releasing: Team) -> None:
    revision = releasing.release(1)
    with connect(url) as client:
        with client.get("triage", "k").call() as call:
            call.score("solved", True)

        assert client.flush()
        (tally,) = releasing.store.tallies("triage", ENVIRONMENT)

    assert (tally.started, tally.finished, tally.revision, tally.arm) == (1, 1, revision, Arm.BASELINE)


# --- Threads and loops ----------------------------------------------------------------------------


def test_threads_see_only_whole_revisions_while_they_change(url: str, releasing: Team) -> None:
    releasing.release(0)
    digests = {f"model-{version}": (digest(version), version + 1) for version in range(201)}
    torn: list[str] = []
    seen: list[int] = []
    is_over = threading.Event()

    def hammer(client: ConfigClient) -> None:
        latest = 0
        while not is_over.is_set():
            for key in (None, "a", "b", "c"):
                config = client.get("triage", key)
                if (config.digest, config.revision) != digests[str(config.document["model"])]:
                    torn.append(repr(config))
                if config.revision < latest:
                    torn.append(f"back from {latest} to {config!r}")
                latest = config.revision
            time.sleep(0)  # the others want their turn
        seen.append(latest)

    with connect(url) as client:
        threads = [threading.Thread(target=hammer, args=(client,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in range(1, 201):
            releasing.release(version)
        arrived = follows(client, 201)
        is_over.set()
        for thread in threads:
            thread.join()

    assert arrived
    assert torn == []
    assert len(seen) == 3


def test_a_client_serves_a_running_loop(url: str, releasing: Team) -> None:
    releasing.release(1)

    async def serve(client: ConfigClient) -> str:
        config = client.get("triage", "k")
        async with config.call():
            await asyncio.sleep(0)
        return config.digest

    with connect(url) as client:
        assert asyncio.run(serve(client)) == digest(1)
        assert client.flush()
        (tally,) = releasing.store.tallies("triage", ENVIRONMENT)
        assert tally.finished == 1


# --- The end --------------------------------------------------------------------------------------


def test_closing_is_prompt_and_leaves_nothing_behind(url: str, releasing: Team) -> None:
    releasing.release(1)
    before = set(threading.enumerate())
    client = connect(url)
    during = set(threading.enumerate())

    begun = time.monotonic()
    client.close()
    took_s = time.monotonic() - begun
    client.close()

    assert len(during - before) >= 2
    assert set(threading.enumerate()) <= before
    assert took_s < 1
    assert client.get("triage").digest == digest(1)


def test_a_callback_may_close_its_client(url: str, releasing: Team) -> None:
    releasing.release(1)
    before = set(threading.enumerate())
    client = connect(url)
    client.on_change(lambda _: client.close())

    releasing.release(2)

    assert eventually(lambda: set(threading.enumerate()) <= before)


FORGETS_TO_CLOSE = """
import sys
from deploy_gates.client import ConfigClient
client = ConfigClient(sys.argv[1], environment="development", last_good=None)
with client.get("triage", "k").call():
    pass
print(client.get("triage").revision)
"""


def test_a_process_that_just_ends_has_reported_what_it_did(url: str, releasing: Team) -> None:
    releasing.release(1)

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORGETS_TO_CLOSE, url],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert [each.finished for each in releasing.store.tallies("triage", ENVIRONMENT)] == [1]
    assert releasing.store.instances() == ()


# --- What it costs --------------------------------------------------------------------------------


def test_getting_a_config_for_a_key_takes_less_than_two_microseconds(url: str, releasing: Team) -> None:
    releasing.release(1)
    releasing.release(2, weight_bp=500, lasts_s=3_600)

    with connect(url) as client:
        get = client.get
        rounds = timeit.repeat(
            lambda: get("triage", "organization-4711"), timer=time.thread_time, number=10_000, repeat=9
        )

    assert min(rounds) / 10_000 * 1e6 <= GET_MAX_US


IMPORTS = """
import sys, time
begun = time.process_time()
import deploy_gates.client
print(time.process_time() - begun)
print(*sys.modules)
"""


def test_the_import_is_quick_and_brings_nothing_heavy(tmp_path: Path) -> None:
    compiled = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    runs = [
        subprocess.run(
            [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, env=compiled
        ).stdout
        for _ in range(4)
    ]

    imported = {name.split(".")[0] for name in runs[0].splitlines()[1].split()}
    assert "deploy_gates" in imported
    assert imported & (HEAVY | {"sqlite3", "asyncio", "http"}) == set()
    assert min(float(run.splitlines()[0]) for run in runs) < IMPORT_MAX_S


def test_a_step_of_the_clock_changes_nothing(
    url: str, releasing: Team, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    releasing.release(1)
    told: list[frozenset[str]] = []
    with connect(url) as client, caplog.at_level(logging.WARNING):
        client.on_change(told.append)
        real = time.time
        for step_s in (86_400.0, -86_400.0):
            monkeypatch.setattr(time, "time", lambda step_s=step_s: real() + step_s)

            assert follows(client, releasing.release(2 if step_s > 0 else 3))
            assert not client.is_stale

    assert told == [frozenset({"triage"})] * 2
