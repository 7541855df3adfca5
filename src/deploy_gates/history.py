"""How the golden cases of a config fared in earlier runs: a file in the state folder, one line a case.

It is a memory and no record: what is lost is learned again, so what cannot be read is left out with a note.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy_gates import files
from deploy_gates.core import past
from deploy_gates.core.canonical import Json
from deploy_gates.core.past import Past, Scored

MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Remembered:
    """The past of each case, by id."""

    cases: Mapping[str, Past] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What could not be read, one sentence each."""


def load(path: Path) -> Remembered:
    """What is remembered in the file at `path`; nothing if there is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return Remembered(notes=(f"{path} is larger than {MAX_BYTES >> 20} MB, and is not read",))
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return Remembered()
    except OSError as error:
        return Remembered(notes=(f"{path} cannot be read: {error.strerror or error}; no case has a past",))
    cases: dict[str, Past] = {}
    lost = 0
    for line in lines:
        try:
            raw = json.loads(line)
            cases[str(raw["case"])] = Past(scored=tuple(_scored(each) for each in raw["scored"]))
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            lost += 1
    notes = (f"{path}: {lost} lines hold no past of a case, and are left out",) if lost else ()
    return Remembered(cases=cases, notes=notes)


def keep(path: Path, before: Mapping[str, Past], answers: Mapping[str, Iterable[Json]]) -> None:
    """Add what this run has learned: by case, answers as `[key, when, score]`. `WorkspaceError`."""
    after = dict(before)
    for case, given in answers.items():
        known = before.get(case, Past()).scored
        made = past.merged(known, [_scored(each) for each in given])
        if made and made != known:
            after[case] = Past(scored=made)
    if after != dict(before):
        files.replace(path, b"".join(_line(case, each) for case, each in sorted(after.items())))


def _scored(raw: Json) -> Scored:
    if not isinstance(raw, list):
        raise TypeError("an answer is a key, a time, and a score")
    key, asked_at, score = raw
    if not isinstance(score, int | float) or not 0 <= score <= 1:
        raise ValueError(f"{score} is no score")
    return Scored(key=str(key), asked_at=str(asked_at), score=float(score))


def _line(case: str, remembered: Past) -> bytes:
    scored = [[each.key, each.asked_at, each.score] for each in remembered.scored]
    return json.dumps({"case": case, "scored": scored}, separators=(",", ":")).encode() + b"\n"
