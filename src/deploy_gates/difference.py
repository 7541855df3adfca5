"""What a change did to a config, field by field, in human words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator

from deploy_gates.core.canonical import Json
from deploy_gates.core.config import FieldChange, ModelConfig
from deploy_gates.documents import join

SHORT = 80
"""Texts that are longer than this together are told by what happened to them rather than shown."""
SHOWN_MAX = 40


def fields(baseline: ModelConfig, candidate: ModelConfig) -> tuple[FieldChange, ...]:
    """Each field that differs, in the order of the candidate's document."""
    if baseline.document == candidate.document:
        return ()
    from deepdiff import DeepDiff

    tree = DeepDiff(baseline.document, candidate.document, view="tree", threshold_to_diff_deeper=0)
    found = []
    for kind, levels in tree.items():
        for level in levels:
            path = level.path(output_format="list")
            was = None if kind.endswith("_added") else level.t1
            now = None if kind.endswith("_removed") else level.t2
            found.append((path, _change(join(path), kind, was, now)))
    order = list(candidate.document) + list(baseline.document)
    found.sort(key=lambda each: (order.index(each[0][0]), join(each[0])))
    return tuple(change for _, change in found)


def _change(key: str, kind: str, was: Json, now: Json) -> FieldChange:
    if kind.endswith("_added"):
        return FieldChange(key=key, baseline="", candidate=f"added: {_told(now)}")
    if kind.endswith("_removed"):
        return FieldChange(key=key, baseline="", candidate=f"removed: {_told(was)}")
    if isinstance(was, str) and isinstance(now, str) and (len(was + now) > SHORT or "\n" in was + now):
        return FieldChange(key=key, baseline="", candidate=_text_change(was, now))
    return FieldChange(key=key, baseline=_told(was), candidate=_told(now))


def _text_change(was: str, now: str) -> str:
    """`+14 −3 lines`, or `+3 −1 words` within one line."""
    unit, before, after = "lines", was.splitlines(), now.splitlines()
    if len(before) == len(after) == 1:
        unit, before, after = "words", was.split(), now.split()
    added = removed = 0
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag != "equal":
            removed += i2 - i1
            added += j2 - j1
    return f"+{added} −{removed} {unit}, {len(now) - len(was):+,} characters".replace("-", "−")


def _told(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= SHOWN_MAX and "\n" not in text:
        return text if text.strip() else json.dumps(text)
    if isinstance(value, str):
        return f"{len(value.splitlines())} lines" if "\n" in value else f"{len(value.split())} words"
    if isinstance(value, dict):
        return _listed(iter(value))
    if isinstance(value, list):
        return "1 item" if len(value) == 1 else f"{len(value)} items"
    return text


def _listed(names: Iterator[str]) -> str:
    listed = list(names)
    keys = "key" if len(listed) == 1 else "keys"
    return f"{len(listed)} {keys} ({', '.join(listed[:3])}{', …' if len(listed) > 3 else ''})"


def lines(baseline: str, candidate: str, *, context: int = 2) -> list[str]:
    """A unified diff of two texts, without its file header."""
    made = difflib.unified_diff(baseline.splitlines(), candidate.splitlines(), lineterm="", n=context)
    return list(made)[2:]
