"""The commands about canaries, as processes: what they print, and with what status they end."""

from __future__ import annotations

import gzip
import json
import os
import pty
import random
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_watching import CONFIG, ENVIRONMENT, released

from deploy_gates import runner
from deploy_gates.client import ConfigClient
from deploy_gates.core.tally import Arm
from deploy_gates.store import Store, open_store

Run = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = (sys.executable, "-m", "deploy_gates", "canary")
TIMEOUT_S = 120.0


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `deploy-gates canary` in a folder without settings."""

    def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env={**os.environ, **variables},
        )

    return run


def traffic(*, times: float = 1.0, seed: int = 1, until_s: float = 300, rate: float = 60) -> Iterator[str]:
    """Observations of a canary at 30 % that begins after a minute; its latency is `times` as long."""
    rng = random.Random(seed)
    t = 0.0
    while (t := t + rng.expovariate(rate)) < until_s:
        is_candidate = t > 60 and rng.random() < 0.3
        made: dict[str, Any] = {
            "t": round(t, 3),
            "arm": "candidate" if is_candidate else "baseline",
            "error": rng.random() < 0.02,
        }
        if not made["error"]:
            made["latency_s"] = rng.lognormvariate(0, 0.8) * (times if is_candidate else 1)
            made["cost"] = 0.002 * rng.lognormvariate(0, 0.5)
        yield json.dumps(made)


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., str]:
    """Writes a recording; returns its name."""

    def recorded(**fields: Any) -> str:
        (tmp_path / "traffic.ndjson").write_text("\n".join(traffic(**fields)) + "\n")
        return "traffic.ndjson"

    return recorded


# --- Replaying -----------------------------------------------------------------------------------


def test_a_recording_of_a_good_candidate_is_promoted(run: Run, recorded: Callable[..., str]) -> None:
    done = run("replay", recorded())

    assert done.returncode == 0, done.stdout + done.stderr
    assert "PROMOTE" in done.stdout
    assert [each for each in ("errors", "latency", "cost") if f"  {each}" not in done.stdout] == []
    assert done.stderr == ""


def test_a_recording_of_a_slow_candidate_is_rolled_back_and_every_look_is_told(
    run: Run, recorded: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "traffic.ndjson.gz").write_bytes(gzip.compress((tmp_path / recorded(times=1.6)).read_bytes()))

    done = run("replay", "traffic.ndjson.gz", "--json")

    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["decision"]["action"] == "rollback"
    assert found["decision"]["cause"][0].startswith("latency")
    assert found["looks"][-1] == found["decision"]
    assert [each["at_ms"] for each in found["looks"]] == list(
        range(found["looks"][0]["at_ms"], found["decision"]["at_ms"] + 1, 5_000)
    )
    assert {each["action"] for each in found["looks"][:-1]} <= {"hold", "continue"}


def test_a_recording_comes_over_standard_input_as_well(run: Run) -> None:
    stdin = "\n".join(traffic(times=1.6))

    done = run("replay", "-", "--json", stdin=stdin)

    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["decision"]["action"] == "rollback"


def test_too_little_traffic_is_undecided_and_says_how_much_more_it_takes(
    run: Run, recorded: Callable[..., str]
) -> None:
    done = run("replay", recorded(until_s=100, rate=20))

    assert done.returncode == 1
    assert "PROMOTE" not in done.stdout
    assert "it ends here, undecided" in done.stdout
    assert re.search(r"needs? about [\d,]+ more", " ".join(done.stdout.split()))


@pytest.mark.parametrize("name", ["canary.html", "canary.svg"])
def test_a_report_of_the_whole_analysis_is_written(
    run: Run, recorded: Callable[..., str], tmp_path: Path, name: str
) -> None:
    done = run("replay", recorded(), "--report", name)

    text = (tmp_path / name).read_text()
    assert done.returncode == 0
    assert f"report: {name}" in done.stderr
    assert ("<!doctype html>" if name.endswith("html") else "<svg") in text


def test_users_who_come_again_and_again_are_counted_once_and_not_missed(run: Run, tmp_path: Path) -> None:
    rng = random.Random(4)
    lines = []
    for made in map(json.loads, traffic(until_s=330)):
        user = rng.randrange(400)
        arm = "candidate" if made["t"] > 60 and user < 40 else "baseline"
        lines.append(json.dumps({**made, "arm": arm, "key": f"user-{user}"}))
    (tmp_path / "traffic.ndjson").write_text("\n".join(lines))

    done = run("replay", "traffic.ndjson", "--json")

    found = json.loads(done.stdout)["decision"]
    assert (found["action"], found["missing"]) == ("continue", [])
    assert found["arms"]["candidate"] == 40
    assert found["at_s"] > 240


LINE = '{"t": 1, "arm": "baseline", "error": false, "latency_s": 1}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "traffic.ndjson"),
        (LINE + LINE.replace('s": 1', 's": -1'), "line 2"),
        (LINE + LINE.replace("baseline", "control"), "line 2"),
        (LINE.replace('"t": 1', '"t": 100') + LINE, "line 2"),
        (LINE + "{", "line 2"),
    ],
    ids=["empty", "negative latency", "unknown arm", "time goes backwards", "no JSON"],
)
def test_bad_input_is_a_sentence_with_its_line_and_status_2(
    run: Run, tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "traffic.ndjson").write_text(content)

    done = run("replay", "traffic.ndjson")

    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_behind_good_bins_is_still_noticed(
    run: Run, recorded: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / recorded(until_s=80)
    path.write_text(path.read_text() + "{\n")

    done = run("replay", "traffic.ndjson")

    assert done.returncode == 2
    assert f"line {len(path.read_text().splitlines())}" in done.stderr


@pytest.mark.parametrize("times", [1.0, 2.0], ids=["promoted", "rolled back"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: gzip.compress(text)[:-100],
        lambda text: text + LINE.replace("1}", "NaN}").encode(),
        lambda text: text + LINE.encode(),
    ],
    ids=["cut off", "NaN", "time goes backwards"],
)
def test_what_is_wrong_behind_the_look_that_decides_is_noticed_and_nothing_is_promoted(
    run: Run, recorded: Callable[..., str], tmp_path: Path, times: float, spoil: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / recorded(times=times)
    before = run("replay", path.name, "--json")
    path.write_bytes(spoil(path.read_bytes()))

    done = run("replay", path.name)

    assert json.loads(before.stdout)["decision"]["action"] == ("promote" if times == 1 else "rollback")
    assert json.loads(before.stdout)["decision"]["at_s"] < 200
    assert done.returncode == 2
    assert re.search(r"traffic.ndjson, line [\d]+: ", done.stderr)
    assert "promote" not in done.stdout.lower()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--report", "canary.pdf"), "neither .html nor .svg"),
        (("--report", "nowhere/canary.svg"), "there is no folder"),
        (("--margin", "speed=1.1"), "no metric of this plan"),
        (("--margin", "latency=fast"), "no margin of latency"),
        (("--margin", "latency=0.9"), "metric latency"),
        (("--metric", "accepted"), "does not say what it is"),
        (("--metric", "cost:amount"), "every canary has it"),
        (("--share", "150"), "no share"),
        (("--alpha", "0.9"), "`false_rollback`"),
    ],
)
def test_a_plan_that_makes_no_sense_is_a_sentence_and_status_2(
    run: Run, recorded: Callable[..., str], arguments: tuple[str, ...], said: str
) -> None:
    done = run("replay", recorded(until_s=10), *arguments)

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_overrules_the_settings_which_overrule_the_defaults(
    run: Run, recorded: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.deploy_gates.canary]\nmark_s = 60.0\nmetrics.errors.margin_ratio = 50.0\n"
    )
    name = recorded(until_s=90)

    settled = json.loads(run("replay", name, "--json").stdout)["decision"]
    told = json.loads(
        run("replay", name, "--json", "--mark", "45", "--margin", "errors=3", "--dry-run", "cost").stdout
    )["decision"]

    assert [each["margin_ratio"] for each in settled["metrics"] if each["metric"] == "errors"] == [
        pytest.approx(50)
    ]
    assert [each["margin_ratio"] for each in told["metrics"] if each["metric"] == "errors"] == [
        pytest.approx(3)
    ]
    assert settled["next_mark_s"] == 60
    assert told["next_mark_s"] == 45
    assert {each["dry_run"] for each in told["metrics"] if each["metric"] == "cost"} == {True}


def test_a_further_metric_is_judged_as_it_is_declared(run: Run, tmp_path: Path) -> None:
    rng = random.Random(2)
    lines = []
    for line in traffic():
        made = json.loads(line)
        is_candidate = made["arm"] == "candidate"
        lines.append(
            json.dumps({**made, "metrics": {"accepted": rng.random() < (0.4 if is_candidate else 0.8)}})
        )
    (tmp_path / "traffic.ndjson").write_text("\n".join(lines))

    done = run("replay", "traffic.ndjson", "--json", "--metric", "accepted:share:higher:5pt")

    assert json.loads(done.stdout)["decision"]["cause"][0] == "accepted"


def test_without_the_statistics_it_says_what_to_install(
    run: Run, recorded: Callable[..., str], tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "numpy").mkdir(parents=True)
    (hidden / "numpy/__init__.py").write_text("raise ModuleNotFoundError('No module', name='numpy')")

    done = run("replay", recorded(until_s=10), PYTHONPATH=str(hidden))

    assert done.returncode == 2
    assert "needs numpy" in done.stderr
    assert "pip install 'pytest-deploy-gates[canary]'" in done.stderr


def test_on_a_terminal_the_picture_is_redrawn_in_place(recorded: Callable[..., str], tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    name = recorded()

    process = subprocess.Popen(
        [*COMMAND, "replay", name], cwd=tmp_path, stdout=theirs, stderr=theirs, stdin=theirs
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], TIMEOUT_S)[0]:
        try:
            shown += os.read(ours, 65_536)
        except OSError:  # the terminal is closed when the process ends
            break
    os.close(ours)

    assert process.wait() == 0
    assert b"\x1b[J" in shown, "nothing was drawn over"
    assert shown.decode().count("PROMOTE") >= 1


# --- Simulating ----------------------------------------------------------------------------------


def test_simulated_traffic_is_judged_alike_whether_it_was_written_down_or_not(run: Run) -> None:
    arguments = ("simulate", "--scenario", "lat30", "--seed", "7", "--share", "20", "--duration", "120")

    written = run(*arguments, "-o", "traffic.ndjson.gz")
    replayed = json.loads(run("replay", "traffic.ndjson.gz", "--json").stdout)["decision"]
    at_once = run(*arguments, "--json")

    assert written.returncode == 0, written.stderr
    assert "observations: traffic.ndjson.gz" in written.stderr
    assert at_once.returncode == 1
    decided = json.loads(at_once.stdout)["decision"]
    assert (decided["action"], decided["cause"]) == (replayed["action"], replayed["cause"])
    assert (decided["at_s"], decided["arms"]) == (replayed["at_s"], replayed["arms"])


def test_many_simulated_canaries_tell_how_often_each_decision_comes(run: Run) -> None:
    arguments = ("simulate", "--runs", "12", "--errors", "20", "--rate", "200", "--duration", "60")

    told = run(*arguments)
    found = json.loads(run(*arguments, "--json").stdout)

    assert told.returncode == 0, told.stderr
    assert "rolled back" in told.stdout
    assert found["rolled back"]["n"] == 12
    assert found["rolled back"]["low"] > 0.7
    assert found["promoted"] == {
        "n": 0,
        "share": 0.0,
        "low": 0.0,
        "high": pytest.approx(0.2209, abs=1e-3),
        "median_s": None,
        "median_requests": None,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--scenario", "doom"), "there is no scenario 'doom'"),
        (("--rate", "0"), "a rate above 0"),
        (("--rate", "nan"), "--rate nan"),
        (("--step", "soon:25"), "--step 'soon:25'"),
        (("-o", "nowhere/traffic.ndjson"), "cannot be written"),
        (("--seed", "-1"), "-1 is not a whole number from 0 on"),
        (("--runs", "3", "-o", "traffic.ndjson"), "--output writes the traffic of one canary"),
        (("--runs", "3", "--report", "canary.html"), "--report shows one canary"),
    ],
)
def test_traffic_that_cannot_be_simulated_is_a_sentence_and_status_2(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    done = run("simulate", *arguments)

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_simulated_canaries_that_only_time_ended_are_undecided(run: Run) -> None:
    arguments = ("--runs", "4", "--rate", "2", "--duration", "900", "--inconclusive", "rollback")

    found = json.loads(run("simulate", *arguments, "--json").stdout)

    assert found["rolled back"]["n"] + found["undecided"]["n"] == 4
    assert found["undecided"]["n"] >= 3


# --- Before it starts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "0"), "0 is not a number above 0"),
        (("--minutes", "nan"), "nan is not a number above 0"),
        (("triage", "--from", "traffic.ndjson"), "the traffic of triage, or that of traffic.ndjson?"),
    ],
)
def test_a_plan_that_cannot_be_foreseen_is_a_sentence_and_status_2(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    done = run("plan", *arguments)

    assert done.returncode == 2
    assert said in done.stderr


def test_a_plan_tells_what_it_will_see_and_what_would_help(run: Run, recorded: Callable[..., str]) -> None:
    name = recorded(until_s=90)

    poor = run("plan", "--from", name, "--rate", "20", "--share", "5")
    rich = run("plan", "--from", name, "--rate", "2000", "--share", "25", "--json")

    assert poor.returncode == 1
    assert "paired replay" in " ".join(poor.stdout.split())
    assert rich.returncode == 0
    assert json.loads(rich.stdout)["is_enough"] is True


def test_a_plan_without_traffic_to_go_by_says_so(run: Run) -> None:
    done = run("plan")

    assert done.returncode == 2
    assert "--from FILE" in done.stderr


# --- Watching ------------------------------------------------------------------------------------


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = open_store(store_url, durable=False)
    made.upgrade()
    yield made
    made.close()


def test_a_candidate_that_fails_is_rolled_back_by_what_real_clients_report(
    run: Run, store: Store, store_url: str
) -> None:
    released(store, 1)
    canary = released(store, 2, 5_000)
    is_over = threading.Event()

    def serve(client: ConfigClient) -> None:
        number = 0
        while not is_over.wait(0.01):
            number += 1
            config = client.get(CONFIG, f"request-{number}")
            with config.call() as call:
                if config.arm is Arm.CANDIDATE:
                    call.fail()

    with ConfigClient(store_url, environment=ENVIRONMENT, last_good=None) as client:
        assert client.wait_for(CONFIG, canary, 20)
        serving = threading.Thread(target=serve, args=(client,))
        serving.start()
        try:
            began = time.monotonic()
            arguments = ("watch", CONFIG, "--env", ENVIRONMENT, "--store", store_url, "--unit", "request")
            done = run(*arguments, "--json")
            took_s = time.monotonic() - began
        finally:
            is_over.set()
            serving.join()

    found = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    assert found["decision"]["action"] == "rollback"
    assert found["decision"]["cause"][0].startswith("errors")
    assert took_s < 30


@pytest.mark.parametrize(("end", "status"), [("rolled back", 1), ("promoted", 0)])
def test_whoever_ends_a_canary_that_is_watched_is_named(
    tmp_path: Path, store: Store, store_url: str, end: str, status: int
) -> None:
    released(store, 1)
    released(store, 2, 500)

    process = subprocess.Popen(
        [*COMMAND, "watch", CONFIG, "--env", ENVIRONMENT, "--store", store_url],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    if end == "promoted":
        released(store, 2)
    else:
        runner.rollback(store, config=CONFIG, environment=ENVIRONMENT, actor="lin", reason="refunds")
    rest, _ = process.communicate(timeout=TIMEOUT_S)

    assert "the candidate got no request yet" in first
    assert f"{end} by {'ada' if end == 'promoted' else 'lin'} at r3" in rest
    assert process.returncode == status


def test_where_no_canary_runs_there_is_nothing_to_watch(run: Run, store: Store, store_url: str) -> None:
    released(store, 1)

    done = run("watch", CONFIG, "--env", ENVIRONMENT, "--store", store_url)

    assert done.returncode == 1
    assert "no canary of ticket-triage runs in development" in done.stderr


def test_settings_of_a_source_that_cannot_be_used_are_status_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.deploy_gates.canary.prometheus]\nurl = "p:9090"\n')

    done = run("watch", CONFIG)

    assert done.returncode == 2
    assert "url is no http or https URL" in done.stderr


def test_a_store_that_is_away_is_status_3(run: Run) -> None:
    done = run("watch", CONFIG, "--store", "postgresql://nobody@127.0.0.1:9/nothing")

    assert done.returncode == 3
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["watch", "replay", "simulate", "plan", "pair"])
def test_each_command_has_an_example(run: Run, command: str) -> None:
    done = run(command, "--help")

    assert done.returncode == 0
    assert f"example: deploy-gates canary {command}" in done.stdout


def test_the_readme_shows_what_is_printed(run: Run) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    shown = readme.split("<!-- screen: canary -->\n```console\n")[1].split("```")[0]

    run("simulate", "--scenario", "lat30", "--seed", "1", "-o", "slower.ndjson.gz")
    done = run("replay", "slower.ndjson.gz", "--report", "analysis.html")

    assert done.returncode == 1
    assert shown in done.stdout
