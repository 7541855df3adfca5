"""What was answered stays answered: through crashes, full disks, and other processes."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.servers import Request, Says, serve

from deploy_gates import recordings
from deploy_gates.core.cost import Usage
from deploy_gates.core.errors import WorkspaceError
from deploy_gates.core.question import Answer, Api, Question, ToolCall, question
from deploy_gates.recordings import Journal
from deploy_gates.testing import NOW, an_answer


def asked(text: str, sample: int = 0) -> Question:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return question(Api.CHAT, body, label=f"case {text}", sample=sample)  # type: ignore[arg-type]  # JSON


def a_journal(folder: Path, *, again: bool = False, now: datetime = NOW) -> Journal:
    return Journal(folder / ".deploy-gates" / "journal", "triage", now=now, again=again)


def record(path: Path, **answers: Answer) -> None:
    """Put these answers into the recordings at `path`, through a journal, in this order."""
    journal = a_journal(path.parent)
    for name, answer in answers.items():
        journal.append(asked(name), answer)
    recordings.merge(path, journal)


def texts(path: Path) -> list[str]:
    return [answer.text for answer in recordings.load(path).answers.values()]


FULL = Answer(
    text='Grüße 😀\u2028 "quoted"\nand more',
    tool_calls=(ToolCall(name="book", arguments='{"days": 3}'),),
    refusal="I will not",
    finish_reason="tool_calls",
    usage=Usage(input_tokens=312, output_tokens=7, cached_input_tokens=256, reasoning_tokens=3),
    model="gpt-4.1-mini-2025-04-14",
    latency_s=0.412,
    first_token_s=0.125,
    asked_at=NOW,
    recorded=True,
)
BARE = Answer(text="", recorded=True)


# --- The file -----------------------------------------------------------------------------------


def test_a_recording_is_one_plain_line_that_diffs_well(tmp_path: Path) -> None:
    record(tmp_path / "recordings.jsonl", refund=FULL)

    assert (tmp_path / "recordings.jsonl").read_text() == (
        f'{{"key": "{asked("refund").key}", "case": "case refund", "model": "gpt-4.1-mini-2025-04-14", '
        '"asked_at": "2026-11-23T09:14:02Z", "latency_s": 0.412, "first_token_s": 0.125, '
        '"text": "Grüße 😀\u2028 \\"quoted\\"\\nand more", '
        '"tool_calls": [{"name": "book", "arguments": "{\\"days\\": 3}"}], "refusal": "I will not", '
        '"finish_reason": "tool_calls", "usage": {"input_tokens": 312, "output_tokens": 7, '
        '"cached_input_tokens": 256, "reasoning_tokens": 3}}\n'
    )


@pytest.mark.parametrize("answer", [FULL, BARE, an_answer("half an emoji: \ud83d")])
def test_an_answer_comes_back_as_it_was(tmp_path: Path, answer: Answer) -> None:
    path = tmp_path / "recordings.jsonl"

    record(path, it=answer)

    assert recordings.load(path).answers == {asked("it").key: answer}


def test_every_sample_of_a_question_is_kept(tmp_path: Path) -> None:
    path, journal = tmp_path / "recordings.jsonl", a_journal(tmp_path)

    for sample in range(3):
        journal.append(asked("it", sample), an_answer(str(sample)))
    recordings.merge(path, journal)

    assert texts(path) == ["0", "1", "2"]


def test_where_there_is_no_file_nothing_is_recorded(tmp_path: Path) -> None:
    assert recordings.load(tmp_path / "recordings.jsonl").answers == {}


def test_a_thousand_answers_are_read_in_no_time(tmp_path: Path) -> None:
    path = tmp_path / "recordings.jsonl"
    record(path, **{f"case-{at}": FULL for at in range(1_000)})

    took_s = min(timed(path) for _ in range(10))

    assert took_s < 0.05


def timed(path: Path) -> float:
    began = time.process_time()
    assert len(recordings.load(path).answers) == 1_000
    return time.process_time() - began


def test_a_torn_last_line_is_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "recordings.jsonl"
    record(path, a=FULL, b=FULL)
    whole = path.read_bytes()

    for cut in range(len(whole) // 2 + 1, len(whole) - 1, 7):
        path.write_bytes(whole[:cut])
        found = recordings.load(path)

        assert list(found.answers) == [asked("a").key]
        assert found.warnings == (f"{path}:2: the last line was torn while it was written, and is left out",)


BROKEN = {
    "half a line": ('{"key": "k", "text": "a', "Unterminated string"),
    "a conflict": ("<<<<<<< HEAD", "a merge conflict is not resolved"),
    "a list": ("[]", "it is not an object"),
    "too deep": ("[" * 100_000, "it is not an object"),
    "no key": ('{"text": "a"}', "it has no `key`"),
    "no text": ('{"key": "k"}', "it has no `text`"),
    "a number for text": ('{"key": "k", "text": 7}', "it has no `text`"),
    "a number for a model": ('{"key": "k", "text": "", "model": 7}', "`model` is not a string"),
    "no time": ('{"key": "k", "text": "", "asked_at": "soon"}', "Invalid isoformat"),
    "no time zone": ('{"key": "k", "text": "", "asked_at": "2026-11-23T09:14:02"}', "has no time zone"),
    "before the start": (
        '{"key": "k", "text": "", "latency_s": -1}',
        "`latency_s` is not a number of seconds",
    ),
    "no number": ('{"key": "k", "text": "", "latency_s": NaN}', "`latency_s` is not a number of seconds"),
    "yes for tokens": ('{"key": "k", "text": "", "usage": {"input_tokens": true}}', "`usage`"),
    "other tokens": ('{"key": "k", "text": "", "usage": {"tokens": 1}}', "`usage`"),
    "a tool without a name": ('{"key": "k", "text": "", "tool_calls": [{}]}', "`tool_calls`"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_any_other_broken_line_is_an_error_that_says_where(tmp_path: Path, name: str) -> None:
    line, why = BROKEN[name]
    path = tmp_path / "recordings.jsonl"
    path.write_text(f'{{"key": "a", "text": ""}}\n\n{line}\n{{"key": "b", "text": ""}}\n')

    with pytest.raises(WorkspaceError) as caught:
        recordings.load(path)

    assert caught.value.message.startswith(f"{path}:3: ")
    assert why in caught.value.message


# --- The journal --------------------------------------------------------------------------------


def test_what_was_journaled_is_there_for_the_next_run(tmp_path: Path) -> None:
    a_journal(tmp_path).append(asked("a"), FULL)

    assert a_journal(tmp_path).answers == {asked("a").key: FULL}


def test_a_torn_line_in_a_journal_costs_only_itself(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    journal.append(asked("a"), an_answer("a"))
    with journal.path.open("ab") as file:
        file.write(b'\n{"key": "torn", "text": "half')

    journal.append(asked("b"), an_answer("b"))

    assert [answer.text for answer in a_journal(tmp_path).answers.values()] == ["a", "b"]


def test_merging_keeps_places_replaces_what_is_newer_and_adds_the_rest_in_order(tmp_path: Path) -> None:
    path, later = tmp_path / "recordings.jsonl", NOW + timedelta(hours=1)
    record(path, a=an_answer("a"), b=an_answer("b"), c=an_answer("c"))
    journal = a_journal(tmp_path)
    for name in ("z", "b", "y", "x"):
        journal.append(asked(name), an_answer(f"new {name}", asked_at=later))
    journal.append(asked("c"), an_answer("stale c", asked_at=NOW - timedelta(days=9)))

    changed = recordings.merge(path, journal, order=[asked(name).key for name in "xy"])

    assert texts(path) == ["a", "new b", "c", "new x", "new y", "new z"]
    assert changed == 4
    assert not journal.path.exists()


def test_merging_nothing_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "recordings.jsonl"
    record(path, a=FULL)
    before = path.stat()

    recordings.merge(path, a_journal(tmp_path))
    record(path, a=FULL)

    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_run_that_asks_everything_resumes_its_own_journal_only(tmp_path: Path) -> None:
    a_journal(tmp_path).append(asked("a"), an_answer("of a run for what is missing"))
    a_journal(tmp_path, again=True).append(asked("b"), an_answer("of a run for everything"))

    one, other = a_journal(tmp_path), a_journal(tmp_path, again=True)

    assert [answer.text for answer in one.answers.values()] == [
        "of a run for everything",
        "of a run for what is missing",
    ]
    assert [answer.text for answer in other.answers.values()] == ["of a run for everything"]


def test_it_resumes_nothing_older_than_a_day(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, again=True)
    journal.append(asked("a"), an_answer("a", asked_at=NOW - timedelta(hours=25)))
    journal.append(asked("b"), an_answer("b", asked_at=NOW - timedelta(hours=23)))
    journal.append(asked("c"), an_answer("c", asked_at=None))

    resumed = a_journal(tmp_path, again=True).answers

    assert [answer.text for answer in resumed.values()] == ["b"]


def test_a_journal_that_will_be_resumed_outlives_its_merge(tmp_path: Path) -> None:
    path, journal = tmp_path / "recordings.jsonl", a_journal(tmp_path, again=True)
    journal.append(asked("a"), an_answer("a"))

    recordings.merge(path, journal, keep=True)

    assert texts(path) == ["a"]
    assert set(a_journal(tmp_path, again=True).answers) == {asked("a").key}


# --- Other processes ----------------------------------------------------------------------------

RUN = """
import sys
from pathlib import Path
from deploy_gates import recordings
from deploy_gates.core.question import Api, question
from deploy_gates.recordings import Journal
from deploy_gates.testing import NOW, an_answer

folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
journal = Journal(folder / ".deploy-gates" / "journal", "triage", now=NOW)
for at in range(count):
    asked = question(Api.CHAT, {"model": name, "messages": [at]}, label=name)
    journal.append(asked, an_answer(name * 300))
    if at % 50 == 49:
        recordings.merge(folder / "recordings.jsonl", journal)
recordings.merge(folder / "recordings.jsonl", journal)
"""


def test_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", RUN, str(tmp_path)]

    running = [subprocess.Popen([*arguments, name, "300"]) for name in "abc"]
    ends = [each.wait(60) for each in running]

    assert ends == [0, 0, 0]
    found = texts(tmp_path / "recordings.jsonl")
    assert {name: found.count(name * 300) for name in "abc"} == {"a": 300, "b": 300, "c": 300}
    assert len(found) == 900


def test_a_journal_someone_is_writing_is_merged_and_left_to_them(tmp_path: Path) -> None:
    path, mine, theirs = tmp_path / "recordings.jsonl", a_journal(tmp_path), a_journal(tmp_path)
    theirs.append(asked("a"), an_answer("a"))
    mine.append(asked("b"), an_answer("b"))

    recordings.merge(path, mine)
    theirs.append(asked("c"), an_answer("c"))
    recordings.merge(path, theirs)

    assert texts(path) == ["a", "b", "c"]
    assert not mine.path.exists()


ASK = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from deploy_gates.core.question import Api, question
from deploy_gates.model import Endpoint, Engine, Record
from deploy_gates.recordings import Journal
from deploy_gates.core.gate import Check, Found, GateName

now = lambda: datetime.now(UTC)
journal = Journal(Path(sys.argv[1]) / ".deploy-gates" / "journal", "triage", now=now(), again=True)
engine = Engine(recorded={}, endpoint=Endpoint(base_url=sys.argv[2], api_key="x"), record=Record.ALL,
                journal=journal, price=lambda *_: 1, estimate=None, now=now, in_flight=5)

def check(at):
    def begin():
        answer = yield question(Api.CHAT, {"model": "m", "messages": [{"role": "user", "content": str(at)}]})
        return made.outcome(Found.MET, answer.text)
    made = Check(id=f"f::{at}", gate=GateName.GOLDEN, config="triage", begin=begin)
    return made

checks = [check(at) for at in range(40)]
engine.ask_ahead(checks)
met = sum(engine.outcome(each).found is Found.MET for each in checks)
print(met, engine.totals.asked, engine.totals.replayed)
engine.close()
"""


def test_kill_9_in_the_middle_loses_no_answer_and_pays_none_twice(tmp_path: Path) -> None:
    killed: list[subprocess.Popen[str]] = []

    def script(request: Request) -> Says:
        if request.number == 20:
            killed[0].send_signal(signal.SIGKILL)
        return Says(f"answer {request.prompt}", after_s=0.005)

    with serve(script) as server:
        run = [sys.executable, "-c", ASK, str(tmp_path), server.base_url]
        killed.append(subprocess.Popen(run, stdout=subprocess.PIPE, text=True))
        killed[0].communicate(timeout=60)
        kept = len(a_journal(tmp_path, again=True, now=datetime.now(UTC)).answers)
        again = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60)

    assert killed[0].returncode == -signal.SIGKILL
    assert again.stdout == f"40 {40 - kept} {kept}\n"
    assert kept >= 20 - 5
    assert server.asked <= 40 + 5


# --- Full and read-only disks -------------------------------------------------------------------


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(journal: Journal) -> int:
    """How many answers there was room for; the rest raises."""
    for at in range(10_000):
        journal.append(asked(str(at)), an_answer("x" * 1_000))
    return 10_000


def check_full(journal: Journal, reason: str) -> None:
    with pytest.raises(WorkspaceError) as caught:
        fill(journal)
    journal.close()

    assert reason in caught.value.message
    assert "those that came before it are safe there" in caught.value.message
    assert caught.value.hint
    kept = list(Journal(journal.path.parent, "triage", now=NOW).answers)
    assert len(kept) > 20
    assert kept == [asked(str(at)).key for at in range(len(kept))]


def test_a_journal_on_a_full_disk_keeps_what_it_has(small_disk: Path) -> None:
    check_full(a_journal(small_disk), os.strerror(errno.ENOSPC))


def test_a_journal_that_may_not_grow_keeps_what_it_has(tmp_path: Path) -> None:
    with at_most(50_000):
        check_full(a_journal(tmp_path), os.strerror(errno.EFBIG))


def test_recordings_are_never_half_written(tmp_path: Path) -> None:
    path, journal = tmp_path / "recordings.jsonl", a_journal(tmp_path)
    record(path, a=an_answer("a" * 30_000))
    before = path.read_bytes()
    journal.append(asked("b"), an_answer("b" * 30_000))

    with at_most(40_000), pytest.raises(WorkspaceError) as caught:
        recordings.merge(path, journal)

    assert path.read_bytes() == before
    assert f"what this run was answered is safe in {journal.path}" in caught.value.message
    assert sorted(os.listdir(tmp_path)) == [".deploy-gates", path.name]
    recordings.merge(path, journal)
    assert len(texts(path)) == 2


def test_recordings_that_were_broken_meanwhile_are_left_alone(tmp_path: Path) -> None:
    path, journal = tmp_path / "recordings.jsonl", a_journal(tmp_path)
    path.write_text("<<<<<<< HEAD\n{}\n")
    journal.append(asked("b"), FULL)

    with pytest.raises(WorkspaceError, match=r"merge conflict .* is safe in"):
        recordings.merge(path, journal)

    assert path.read_text() == "<<<<<<< HEAD\n{}\n"
    assert set(a_journal(tmp_path).answers) == {asked("b").key}


def test_where_nothing_can_be_written_it_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / ".deploy-gates").write_text("a file where a folder should be")

    with pytest.raises(WorkspaceError, match="nothing was asked") as caught:
        a_journal(tmp_path).open()

    assert "--gate-record=none" in caught.value.hint


def test_a_read_only_disk_is_told_plainly(small_disk: Path) -> None:
    path, journal = small_disk / "recordings.jsonl", a_journal(small_disk)
    journal.append(asked("a"), FULL)
    journal.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    read_only = os.strerror(errno.EROFS)

    with pytest.raises(WorkspaceError, match=read_only):
        a_journal(small_disk).open()
    with pytest.raises(WorkspaceError, match=f"{read_only}.* is safe in"):
        recordings.merge(path, journal)

    assert set(a_journal(small_disk).answers) == {asked("a").key}


def test_a_folder_is_no_recordings(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=os.strerror(errno.EISDIR)):
        recordings.load(tmp_path)
