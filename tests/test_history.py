"""The history of cases: a memory that grows, and that nothing breaks."""

from __future__ import annotations

from pathlib import Path

from deploy_gates import history
from deploy_gates.core.past import Past, Scored


def test_what_a_run_learned_is_there_for_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "history" / "triage.jsonl"

    history.keep(path, {}, {"refund": [["a", "2026-11-01T00:00:00Z", 1]]})
    first = history.load(path)
    history.keep(path, first.cases, {"refund": [["a", "2026-11-02T00:00:00Z", 0]]})
    again = history.load(path)

    assert first.cases["refund"] == Past(scored=(Scored(key="a", asked_at="2026-11-01T00:00:00Z", score=1),))
    assert [each.score for each in again.cases["refund"].scored] == [1, 0]
    assert again.cases["refund"].is_unstable


def test_a_replay_of_the_same_answers_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "triage.jsonl"
    history.keep(path, {}, {"refund": [["a", "2026-11-01T00:00:00Z", 1]]})
    before = path.stat().st_mtime_ns

    history.keep(path, history.load(path).cases, {"refund": [["a", "2026-11-01T00:00:00Z", 1]]})

    assert path.stat().st_mtime_ns == before


def test_lines_that_cannot_be_read_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "triage.jsonl"
    history.keep(path, {}, {"refund": [["a", "2026-11-01T00:00:00Z", 1]]})
    path.write_bytes(
        path.read_bytes() + b'{"case": "torn", "sco\n[1]\n{"case": "x", "scored": [["k", "t", 7]]}\n'
    )

    found = history.load(path)

    assert list(found.cases) == ["refund"]
    assert len(found.notes) == 1
    assert "3 lines" in found.notes[0]
    assert history.load(tmp_path / "none.jsonl").notes == ()
