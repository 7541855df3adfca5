"""`deploy-gates demo` as people run it: in a terminal, piped, interrupted, and killed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from deploy_gates.core.release import Promotion, Release, State, Terms
from deploy_gates.demo import model, repository
from deploy_gates.demo.repository import Gated
from deploy_gates.demo.story import Carried, Ended, Stage
from deploy_gates.store import open_store
from deploy_gates.testing import NOW

COMMAND = [sys.executable, "-m", "deploy_gates", "demo"]
WHOLE_S = 120.0
"""What is promised."""
PATIENCE_S = 30.0


def _environ(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "TERM": "xterm", "OPENAI_API_KEY": "must-not-be-used"}


class _Terminal:
    """The other side of a terminal: what was written to it so far."""

    def __init__(self, master: int) -> None:
        self._master = master
        self.text = ""

    def read(self) -> bool:
        """Whether there may be more."""
        try:
            got = os.read(self._master, 65_536)
        except OSError as error:  # Linux says so once nobody has it open
            if error.errno != errno.EIO:
                raise
            return False
        self.text += got.decode()
        return bool(got)

    def read_until(self, said: str) -> None:
        while said not in self.text:
            assert self.read(), self.text


@contextmanager
def _in_terminal(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], _Terminal]]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 45, 96, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=_environ(folder),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield process, _Terminal(master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _left(folder: Path) -> list[str]:
    """The command lines of processes that know a demo's folder."""
    return _with(f"{folder}/deploy-gates-demo-")


def _with(*said: str) -> list[str]:
    """The command lines of processes that hold all of these."""
    found = [" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])]
    return [line for line in found if all(each in line for each in said)]


def _wait_until_nothing_is_left(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while left := _left(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_the_whole_story_in_a_terminal_in_two_minutes(tmp_path: Path) -> None:
    began = time.monotonic()

    with _in_terminal(tmp_path) as (process, screen):
        screen.read_until("dashboard")
        screen.read_until("ctrl-c")
        address = re.search(r"http://127\.0\.0\.1:\d+", screen.text)
        assert address is not None, screen.text
        with urllib.request.urlopen(address[0] + "/healthz", timeout=PATIENCE_S) as answer:
            status = answer.status
        while screen.read():
            pass
        process.wait(PATIENCE_S)
    took_s = time.monotonic() - began

    said = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", screen.text)
    assert process.returncode == 0, said
    assert "simulated" in said.lstrip().splitlines()[0]
    assert status == 200
    assert "SHIPPED" in said
    assert "ROLLED BACK" in said
    why = r"errors (rose .*% sure|reached the hard limit)"  # chance may send the first errors close together
    assert re.search(rf"rolled back  \w{{7}}  a bad change\r\n\s+{why}", said), said
    assert re.search(r"blocked      \w{7}", said)
    assert re.search(r"3 of 3 clients served that \d{1,3} ms after the decision", said), "within a second"
    assert max(len(each) for each in said.splitlines()) <= 96
    assert took_s < WHOLE_S
    assert _left(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    shown = {_bare(line) for line in said.splitlines()}
    assert [line for line in _readme() if _bare(line) not in shown] == []


def _readme() -> list[str]:
    """The lines of the README's screens of the demo that look alike each time."""
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    screens = readme.split("<!-- screen: demo -->\n", 1)[1].split("\nBoth screens", 1)[0]
    lines = [line for line in screens.splitlines() if line.startswith(("  ", "hello"))]
    drawn = ("╎", "no data yet", "count for errors only", "rolls back", "allowed", "the margin is")
    return [line for line in lines if not any(each in line for each in drawn) and "baseline  " not in line]


def _bare(line: str) -> str:
    """A line without what differs from run to run: digests, numbers, times, and how wide it is."""
    return " ".join(re.sub(r"\b[0-9a-f]{7}\b|[0-9][0-9,.]*", "#", line).replace("min # s", "s").split())


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    with _in_terminal(tmp_path) as (process, screen):
        screen.read_until("$ deploy-gates ship")
        process.send_signal(signal.SIGINT)
        while screen.read():
            pass
        process.wait(PATIENCE_S)

    assert process.returncode == 130, screen.text
    assert "nothing is left running" in screen.text
    assert "Traceback" not in screen.text
    assert _left(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_that_is_closed_ends_everything(tmp_path: Path) -> None:
    with _in_terminal(tmp_path, "--no-serve") as (process, screen):
        screen.read_until("ctrl-c")
        process.send_signal(signal.SIGHUP)
        process.wait(PATIENCE_S)

    assert _left(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_demo_started_ends_with_it(tmp_path: Path) -> None:
    with _in_terminal(tmp_path) as (process, screen):
        screen.read_until("$ deploy-gates ship")
        running = len(_left(tmp_path))
        process.kill()

        _wait_until_nothing_is_left(tmp_path)

    assert running >= 4, "three processes of users, and a server"


def test_a_store_that_knows_the_config_is_left_alone(tmp_path: Path, store_url: str) -> None:
    store = open_store(store_url)
    store.upgrade()
    digest = store.put_config(repository.CONFIG, b'{"model": "gpt-4.1-mini"}')
    release = Release(config=repository.CONFIG, digest=digest, actor="ada")
    store.propose(release, until="production", policy="", terms=Terms())
    store.close()

    done = subprocess.run(
        [*COMMAND, "--json", "--store", store_url],
        cwd=tmp_path,
        env=_environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["refusal"] == "state"
    assert list(tmp_path.glob("deploy-gates-demo-*")) == []


def test_every_process_finds_a_store_that_was_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///mine.db")
    store.upgrade()
    store.close()

    with Stage(url="sqlite:///mine.db", has_server=False) as stage:
        url = stage.url
        services, deadline = 0, time.monotonic() + PATIENCE_S
        while services < 3 and time.monotonic() < deadline:  # what was begun just now has no name yet
            services = len(_with("deploy_gates.demo.users", url))

    assert url == f"sqlite:///{tmp_path}/mine.db"
    assert services == 3
    assert _with("deploy_gates.demo.users", url) == []
    assert (tmp_path / "mine.db").exists()
    assert not stage.folder.exists()


def test_machines_are_told_what_is_simulated_and_how_it_ended() -> None:
    gated = Gated(
        verdict="fail",
        gates=(("type", "fail"), ("cost", "pass")),
        reasons=("`reveiw` is no input",),
        conclusion="f90f6a3 may not be merged",
        digest="f90f6a3",
    )
    promotion = Promotion(
        id=3,
        release=Release(config=repository.CONFIG, digest="2084e9f", actor="demo"),
        until="production",
        state=State.SHIPPED,
        conclusion="production serves it",
        proposed_at=NOW,
    )
    blocked = Carried(change=repository.BLOCKED, gated=gated)
    bad = Carried(change=repository.BAD, gated=gated, promotion=promotion, clients=3, followed_s=0.009)

    told = Ended(carried=(bad, blocked), took_s=49.04, store="SQLite").to_json()

    assert told["simulated"] == ["users", "model"]
    assert told["as_told"] is False, "the bad change was shipped"
    releases = json.loads(json.dumps(told))["releases"]
    assert [each["conclusion"] for each in releases] == ["production serves it", "`reveiw` is no input"]


def test_the_simulated_model_answers_by_what_a_config_asks_for_alone() -> None:
    short = model.Manner.of({"messages": [], "parameters": {"max_completion_tokens": 10}})
    enough = model.Manner.of({"messages": [], "parameters": {"max_completion_tokens": 20}})
    asked = 20_000

    cut, whole = (
        sum(bool(manner.answer(chance).fault) for _ in range(asked)) / asked
        for manner, chance in ((short, random.Random(1)), (enough, random.Random(2)))
    )

    assert cut == pytest.approx(model.LONG_SHARE + model.FAILING_SHARE, abs=0.01)
    assert whole == pytest.approx(model.FAILING_SHARE, abs=0.002)
