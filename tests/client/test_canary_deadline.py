"""The deadline of a canary: clients end it by themselves, whoever is dead and whatever the clock says."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_server import serving
from openfeature import api as openfeature
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.flag_evaluation import Reason
from releases import ENVIRONMENT, PATIENCE_S, Team, digest, eventually, follows, team

import engines
from deploy_gates import clock, flags
from deploy_gates.client import ConfigClient, last_good
from deploy_gates.client.snapshot import left_s
from deploy_gates.core.promotion import Deployment, Kind
from deploy_gates.core.tally import Arm, Unit
from deploy_gates.openfeature import DeployGatesProvider

LASTS_S = 1.5
"""How long a canary lasts where the test is there from its beginning."""
LONG_S = 5.0
"""Where processes have to start while it runs."""
HALF_BP = 5_000
KEYS = [f"user-{number}" for number in range(64)]
"""Some of them get the candidate of any canary with half of the keys, but for one in 2^64."""


@pytest.fixture
def releasing(store_url: str) -> Iterator[Team]:
    with team(store_url) as made:
        yield made


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store/store.db"


@pytest.fixture
def releasing_to_file(file_url: str) -> Iterator[Team]:
    with team(file_url) as made:
        yield made


def connect(url: str, **options: Any) -> ConfigClient:
    return ConfigClient(url, environment=ENVIRONMENT, **({"last_good": None} | options))


def arms(client: ConfigClient) -> set[str]:
    """What the keys are served."""
    return {client.get("triage", key).digest for key in KEYS}


BOTH, BASELINE = {digest(1), digest(2)}, {digest(1)}


# --- While the store is there -------------------------------------------------------------------


def test_after_its_deadline_everybody_gets_the_baseline_and_applications_are_told(
    store_url: str, releasing: Team
) -> None:
    releasing.release(1)
    told: list[frozenset[str]] = []
    with connect(store_url) as client:
        began = time.monotonic()
        canary = releasing.release(2, weight_bp=HALF_BP, lasts_s=LASTS_S)
        assert follows(client, canary)
        kept = next(config for key in KEYS if (config := client.get("triage", key)).arm is Arm.CANDIDATE)
        while_it_lasted, split = arms(client), flags.evaluate(client, "triage", KEYS[0])
        client.on_change(told.append)

        assert eventually(lambda: arms(client) == BASELINE)
        lasted_s = time.monotonic() - began
        assert eventually(lambda: told == [frozenset({"triage"})])

        assert while_it_lasted == BOTH
        assert lasted_s > LASTS_S - 0.1
        assert (client.revision("triage"), client.arms("triage")[1]) == (canary, None)
        assert kept.digest == digest(2), "a config that was handed out does not change"
        after = flags.evaluate(client, "triage", KEYS[0])
        assert (split.reason, after.reason, after.variant) == ("SPLIT", "STATIC", Arm.BASELINE)


def test_a_canary_without_a_deadline_and_one_that_is_promoted_in_time_go_on(
    store_url: str, releasing: Team
) -> None:
    releasing.release(1)
    endless = releasing.release(2, weight_bp=HALF_BP)
    with connect(store_url) as client:
        assert client.arms("triage")[1] is not None
        assert releasing.store.deployments()[0].expires_at is None
        assert follows(client, endless)
        releasing.roll_back()
        releasing.release(2, weight_bp=HALF_BP, lasts_s=LASTS_S)
        assert follows(client, releasing.release(2))

        over = time.monotonic() + LASTS_S + 0.2
        assert eventually(lambda: time.monotonic() > over)

        assert arms(client) == {digest(2)}


def test_a_canary_whose_share_grows_keeps_its_deadline(store_url: str, releasing: Team) -> None:
    releasing.release(1)
    releasing.release(2, weight_bp=HALF_BP, lasts_s=LASTS_S)
    (begun,) = releasing.store.deployments()
    with connect(store_url) as client:
        grown = releasing.release(2, weight_bp=9_000)

        assert follows(client, grown)
        assert releasing.store.deployments()[0].expires_at == begun.expires_at
        assert eventually(lambda: arms(client) == BASELINE)
        assert begun.expires_at is not None
        assert clock.now() >= begun.expires_at


def test_what_is_reported_after_the_deadline_is_of_the_baseline(store_url: str, releasing: Team) -> None:
    releasing.release(1)
    with connect(store_url) as client:
        assert follows(client, releasing.release(2, weight_bp=HALF_BP, lasts_s=LASTS_S))
        shared = [key for key in KEYS if client.get("triage", key).arm is Arm.CANDIDATE]
        for key in shared:
            with client.get("triage", key).call():
                pass
        assert eventually(lambda: arms(client) == BASELINE)

        for key in shared:
            with client.get("triage", key).call():
                pass
        assert client.flush()

        counted = dict.fromkeys(Arm, 0)
        for tally in releasing.store.tallies("triage", ENVIRONMENT):
            counted[tally.arm] += tally.finished if tally.unit is Unit.REQUEST else 0
        assert shared
        assert counted == {Arm.CANDIDATE: len(shared), Arm.BASELINE: len(shared)}


def test_openfeature_sees_the_arm_go_back_and_names_the_flags(store_url: str, releasing: Team) -> None:
    changed: list[str] = []

    def note(details: EventDetails) -> None:
        changed.extend(details.flags_changed or ())

    releasing.release(1)
    with connect(store_url) as client:
        assert follows(client, releasing.release(2, weight_bp=HALF_BP, lasts_s=LASTS_S))
        key = next(key for key in KEYS if client.get("triage", key).arm is Arm.CANDIDATE)
        openfeature.set_provider_and_wait(DeployGatesProvider(client))
        try:
            asked = openfeature.get_client()
            asked.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, note)
            context = EvaluationContext(targeting_key=key)
            before = asked.get_string_details("triage.model", "none", context)

            assert eventually(lambda: asked.get_string_value("triage.model", "none", context) == "model-1")
            assert eventually(lambda: "triage.model" in changed)

            after = asked.get_string_details("triage.model", "none", context)
        finally:
            openfeature.shutdown()
    assert (before.value, before.variant, before.reason) == ("model-2", "candidate", Reason.SPLIT)
    assert (after.value, after.variant, after.reason) == ("model-1", "baseline", Reason.STATIC)


# --- While nobody is there ----------------------------------------------------------------------

RUNNER = """
import sys, time
sys.path[:0] = sys.argv[2:]
from releases import team
with team(sys.argv[1], durable=True) as releasing:
    print(releasing.release(2, weight_bp=5_000, lasts_s=5.0), flush=True)
    time.sleep(600)  # it would decide the canary now
"""

SERVICE = """
import json, sys, time
from pathlib import Path
from deploy_gates import clock
from deploy_gates.client import ConfigClient

url, path, back_s, until = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
if back_s:
    from datetime import timedelta
    now = clock.now
    clock.now = lambda: now() - timedelta(seconds=back_s)  # as if somebody had set the clock back
client = ConfigClient(url, environment="development", last_good=path, wait_s=5 if not back_s else 0.1)
keys = [f"user-{number}" for number in range(64)]
last, gets = 0.0, 0
print("ready", flush=True)
while time.monotonic() < until:
    if any(client.get("triage", key).arm == "candidate" for key in keys):
        last = time.monotonic()
    gets += 1
    time.sleep(0.005)
revision = client.revision("triage")
client.close()
print(json.dumps([last, gets, revision]))
"""


def process(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def first_line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def said(started: subprocess.Popen[str]) -> Any:
    assert started.stdout is not None
    last = started.stdout.readline()  # `communicate` would not see what came together with the first line
    _, err = started.communicate(timeout=60)
    assert started.returncode == 0, err
    return json.loads(last)


def test_services_end_a_canary_whose_runner_was_killed_and_whose_database_is_dead(tmp_path: Path) -> None:
    with engines.own_server() as server, team(server.url, durable=True) as releasing:
        releasing.release(1)
        runner = process(RUNNER, server.url, Path(__file__).parent)
        assert first_line(runner) == "2"
        began = time.monotonic()
        service = process(SERVICE, server.url, tmp_path / "last.json", 0, began + LONG_S + 2)
        assert first_line(service) == "ready"
        runner.send_signal(signal.SIGKILL)
        runner.communicate()
        assert eventually(lambda: (tmp_path / "last.json").exists())
        server.kill()
        restarted = process(SERVICE, server.url, tmp_path / "last.json", 3_600, began + LONG_S + 2)
        assert first_line(restarted) == "ready"

        told = [said(service), said(restarted)]
        later = process(SERVICE, server.url, tmp_path / "last.json", 7_200, 0)
        assert first_line(later) == "ready"
        told_later = said(later)

    for last, gets, revision in told:
        assert began < last < began + LONG_S + 0.3, "the candidate was served, and no longer than it may be"
        assert (gets > 0, revision) == (True, 2)
    assert told_later == [0.0, 0, 2]


FORKING = """
import json, os, sys, time, warnings
from datetime import timedelta
from deploy_gates import clock
from deploy_gates.client import ConfigClient

warnings.simplefilter("ignore", DeprecationWarning)  # to fork with threads is what is tried here
client = ConfigClient(sys.argv[1], environment="development", last_good=None, wait_s=5)
keys = [f"user-{number}" for number in range(64)]

def last_until(until):
    last = 0.0
    while time.monotonic() < until:
        if any(client.get("triage", key).arm == "candidate" for key in keys):
            last = time.monotonic()
        time.sleep(0.005)
    return [last, client.arms("triage")[1] is None]

def forked(work):
    told, tell = os.pipe()
    if os.fork() == 0:
        os.write(tell, json.dumps(work()).encode())
        os._exit(0)
    os.close(tell)
    return told

def heard(told):
    with open(told, "rb") as pipe:
        said = json.loads(pipe.read())
    os.wait()
    return said

print("ready", flush=True)
until = float(sys.stdin.readline())
now = clock.now
clock.now = lambda: now() - timedelta(days=1)  # as if somebody had set the clock back
early = forked(lambda: [last_until(until), heard(forked(lambda: last_until(until)))])
own = last_until(until)
child, grandchild = heard(early)
late = heard(forked(lambda: last_until(time.monotonic() + 0.2)))
client.close()
print(json.dumps([own, child, grandchild, late]))
"""


def test_forked_children_end_a_canary_too_before_and_after_its_deadline(
    tmp_path: Path, file_url: str, releasing_to_file: Team
) -> None:
    releasing_to_file.release(1)
    releasing_to_file.release(2, weight_bp=HALF_BP, lasts_s=LONG_S)
    began = time.monotonic()
    service = process(FORKING, file_url)
    assert first_line(service) == "ready"

    with away(tmp_path):
        out, err = service.communicate(f"{began + LONG_S + 1}\n", timeout=60)

    assert service.returncode == 0, err
    own, child, grandchild, late = json.loads(out)
    for last, has_ended in (own, child):
        assert began < last < began + LONG_S + 0.3
        assert has_ended
    assert grandchild == late == [0.0, True], "forked after the deadline"


@contextlib.contextmanager
def away(tmp_path: Path) -> Iterator[None]:
    """The store is not where it was, meanwhile."""
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    try:
        yield
    finally:
        (tmp_path / "elsewhere").rename(tmp_path / "store")


def set_back(monkeypatch: pytest.MonkeyPatch, span: timedelta) -> None:
    now: Callable[[], datetime] = clock.now
    monkeypatch.setattr(clock, "now", lambda: now() - span)


@pytest.mark.parametrize("is_same_boot", [True, False], ids=["restarted", "rebooted"])
def test_what_is_on_disk_ends_in_time_after_a_restart_with_the_clock_set_back(
    tmp_path: Path,
    file_url: str,
    releasing_to_file: Team,
    monkeypatch: pytest.MonkeyPatch,
    is_same_boot: bool,
) -> None:
    file = tmp_path / "last.json"
    releasing_to_file.release(1)
    releasing_to_file.release(2, weight_bp=HALF_BP, lasts_s=LASTS_S)
    began = time.monotonic()
    with connect(file_url, last_good=file) as before:
        assert before.arms("triage")[1] is not None
    set_back(monkeypatch, timedelta(days=1))
    if not is_same_boot:
        monkeypatch.setattr(last_good, "_BOOT_ID", tmp_path / "another")
        (tmp_path / "another").write_text("another start of the machine\n")

    with away(tmp_path), connect(file_url, last_good=file) as client:
        assert client.is_stale
        restarted = time.monotonic()
        assert eventually(lambda: client.arms("triage")[1] is None)
        ended = time.monotonic()
        assert arms(client) == BASELINE

    # Until the machine starts anew nothing is added; after that, what was left when the file was written.
    assert ended - (began if is_same_boot else restarted) < LASTS_S + 0.5


def test_a_canary_that_has_ended_stays_so_after_a_restart_with_the_clock_set_back(
    tmp_path: Path, file_url: str, releasing_to_file: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "last.json"
    releasing_to_file.release(1)
    canary = releasing_to_file.release(2, weight_bp=HALF_BP, lasts_s=0.3)
    with connect(file_url, last_good=file) as before:
        while before.arms("triage")[1] is not None:
            pass  # closed in the very moment, before anything in the background has noticed
    set_back(monkeypatch, timedelta(days=1))
    monkeypatch.setattr(last_good, "_BOOT_ID", tmp_path / "none")

    with away(tmp_path), connect(file_url, last_good=file) as client:
        assert (arms(client), client.revision("triage")) == (BASELINE, canary)


@pytest.mark.parametrize(
    "value", ["soon", {"boot": "", "deadline_ms": "soon", "left_ms": 1}, {"boot": "", "left_ms": 1}]
)
def test_a_file_whose_deadlines_cannot_be_read_is_refused(
    tmp_path: Path, file_url: str, releasing_to_file: Team, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from deploy_gates.core import canonical

    file = tmp_path / "last.json"
    releasing_to_file.release(1)
    connect(file_url, last_good=file).close()
    body = json.loads(file.read_text())["body"] | {"canaries": {"triage": value}}
    file.write_text(json.dumps({"digest": canonical.digest(body), "body": body}))

    with away(tmp_path), connect(file_url, last_good=file, wait_s=0.2) as client:
        assert client.names == ()

    assert "is damaged and is not used" in caplog.text


def test_a_file_of_an_earlier_version_is_still_served(
    tmp_path: Path, file_url: str, releasing_to_file: Team
) -> None:
    from deploy_gates.core import canonical

    file = tmp_path / "last.json"
    releasing_to_file.release(1)
    connect(file_url, last_good=file).close()
    body = json.loads(file.read_text())["body"]
    del body["canaries"]
    for each in body["deployments"]:
        del each["expires_at"]
    file.write_text(json.dumps({"digest": canonical.digest(body), "body": body}))

    with away(tmp_path), connect(file_url, last_good=file, wait_s=0.2) as client:
        assert arms(client) == BASELINE


def test_a_canary_of_an_earlier_file_ends_as_soon_as_the_store_has_said_when(
    tmp_path: Path, file_url: str, releasing_to_file: Team
) -> None:
    from deploy_gates.core import canonical

    file = tmp_path / "last.json"
    releasing_to_file.release(1)
    releasing_to_file.release(2, weight_bp=HALF_BP, lasts_s=LASTS_S)
    connect(file_url, last_good=file).close()
    body = json.loads(file.read_text())["body"]
    del body["canaries"]
    for each in body["deployments"]:
        del each["expires_at"]
    file.write_text(json.dumps({"digest": canonical.digest(body), "body": body}))

    with contextlib.ExitStack() as stack:
        with away(tmp_path):
            client = stack.enter_context(connect(file_url, last_good=file, wait_s=0.2))
            before = arms(client)

        assert before == BOTH
        assert eventually(lambda: arms(client) == BASELINE)
        assert eventually(lambda: client.arms("triage")[1] is None)


# --- Over HTTP ----------------------------------------------------------------------------------


def test_a_client_of_a_server_that_is_gone_ends_the_canary_in_time() -> None:
    with serving() as server, contextlib.ExitStack() as stack:
        server.release(1)
        server.release(2)
        client = stack.enter_context(connect(server.url, token=server.token))
        now = clock.now()
        server.release(
            1,
            kind=Kind.CANARY,
            candidate=digest(2),
            weight_bp=HALF_BP,
            salt="one",
            changed_at=now,
            expires_at=now + timedelta(seconds=LASTS_S),
        )
        began = time.monotonic()
        assert follows(client, 3)
        assert arms(client) == BOTH
        server.change(status=503)

        assert eventually(lambda: arms(client) == BASELINE)

        assert time.monotonic() - began > LASTS_S - 0.1
        assert eventually(lambda: client.arms("triage")[1] is None)


SERVE = (sys.executable, "-m", "deploy_gates", "serve", "--port=0", f"--environment={ENVIRONMENT}")


def test_a_server_passes_the_deadline_on_and_evaluates_by_it_after_the_store_is_gone(
    tmp_path: Path, file_url: str, releasing_to_file: Team
) -> None:
    releasing_to_file.release(1)
    with subprocess.Popen(
        [*SERVE, f"--store={file_url}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": ""},
    ) as server:
        try:
            address = first_line(server).split()[-1]
            canary = releasing_to_file.release(2, weight_bp=HALF_BP, lasts_s=LASTS_S)
            (moved,) = releasing_to_file.store.deployments()
            assert eventually(lambda: _evaluated(address)["metadata"]["revision"] == canary)
            (passed_on,) = _asked(f"{address}/v1/environments/{ENVIRONMENT}")["deployments"]
            with away(tmp_path):
                assert eventually(lambda: _variants(address) == {"baseline"})
                ended_at = clock.now()
        finally:
            server.terminate()

    assert moved.expires_at is not None
    assert passed_on["expires_at"] == moved.expires_at.isoformat()
    assert ended_at >= moved.expires_at - timedelta(milliseconds=100)


def _variants(address: str) -> set[str]:
    return {_evaluated(address, key)["variant"] for key in KEYS[:16]}


def _evaluated(address: str, key: str = KEYS[0]) -> Any:
    return _asked(f"{address}/ofrep/v1/evaluate/flags/triage", {"context": {"targetingKey": key}})


def _asked(url: str, body: Any = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.loads(answer.read())


# --- How long is left ---------------------------------------------------------------------------

BEGUN = datetime.fromisoformat("2026-03-02T09:00:00+00:00")


@pytest.mark.parametrize(
    ("seen_s", "left"),
    [(0, 300), (100, 200), (300, 0), (100_000, 0), (-50, 300), (-100_000, 300)],
    ids=["at once", "later", "at its end", "long after", "a clock behind", "a clock set back"],
)
def test_a_canary_has_no_more_left_than_it_was_given(seen_s: float, left: float) -> None:
    canary = Deployment(
        config="triage",
        environment=ENVIRONMENT,
        revision=2,
        baseline="1" * 64,
        candidate="2" * 64,
        weight_bp=500,
        salt="one",
        changed_at=BEGUN,
        expires_at=BEGUN + timedelta(seconds=300),
    )

    assert left_s(canary, BEGUN + timedelta(seconds=seen_s)) == left
