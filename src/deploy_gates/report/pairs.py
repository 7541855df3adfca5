"""What a paired replay found, in numbers."""

from __future__ import annotations

import math

from deploy_gates.core.canary import Action, Aspect, Better, Kind, Reading, Word
from deploy_gates.core.pairs import Comparison, Finding
from deploy_gates.report import quantities
from deploy_gates.report.record import Terminal
from deploy_gates.report.text import clip, counted, pad, pad_left, width, wrap

NAME_MAX = 20
"""Columns of a metric's name."""
_GREEN, _RED, _YELLOW, _DIM = "32", "31", "33", "2"
_COLORS = {Word.SAFE: _GREEN, Word.UNDECIDED: _YELLOW, Word.HARMFUL: _RED}
_VERDICTS = {Action.PROMOTE: ("NO WORSE", _GREEN), Action.ROLLBACK: ("WORSE", _RED)}
_HEADS = ("", "pairs", "baseline", "candidate", "change", "at any time", "margin", "evidence", "word")


def table(finding: Finding, terminal: Terminal) -> list[str]:
    """A row a metric, and at the end the verdict."""
    rows = [_HEADS, *(_row(each) for each in finding.comparisons)]
    said = [[terminal.said(cell) for cell in row] for row in rows]
    columns = [max(width(row[at]) for row in said) for at in range(len(_HEADS))]
    lines = ["", "  " + terminal.ink(_line(said[0], columns), _DIM)]
    for each, row in zip(finding.comparisons, said[1:], strict=True):
        front = _line(row[:-1], columns)
        lines.append(f"  {front}  {terminal.ink(row[-1], _DIM if each.dry_run else _COLORS[each.word])}")
    word, color = _VERDICTS.get(finding.action, ("UNDECIDED", _YELLOW))
    indent = 4 + len(word)
    told = [each for text in _told(finding) for each in wrap(terminal.said(text), terminal.width - indent)]
    lines += ["", f"  {terminal.ink(word, color)}  {told[0]}"]
    return [*lines, *(" " * indent + each for each in told[1:]), ""]


def line(finding: Finding) -> str:
    """How far it is, on one line."""
    words = ", ".join(f"{each.metric} {each.word}" for each in finding.comparisons)
    more = f"; about {counted(finding.needed, 'more pair')}" if finding.needed else ""
    return f"{counted(finding.pairs, 'pair')}: {words}{more}"


def _told(finding: Finding) -> list[str]:
    told = [finding.reason, f"{counted(finding.pairs, 'prompt')} answered by both"]
    if not finding.has_ended and finding.needed:
        told.append(f"about {counted(finding.needed, 'more pair')} would decide: --repeat, or more prompts")
    return told


def _row(found: Comparison) -> tuple[str, ...]:
    both = quantities.figures(_as_reading(found))
    word = f"({found.word})" if found.dry_run else found.word.value
    return (
        clip(found.metric, NAME_MAX),
        f"{found.pairs:,}",
        both.baseline,
        both.candidate,
        _change(found, found.change),
        _interval(found),
        _change(found, found.margin),
        quantities.odds(found.log_e_harm).replace(" to ", ":"),
        word,
    )


def _interval(found: Comparison) -> str:
    if found.low is None and found.high is None:
        return "not bounded yet" if found.pairs else "no data yet"
    if found.high is None:
        return f"from {_change(found, found.low)}"
    if found.low is None:
        return f"up to {_change(found, found.high)}"
    return f"{_change(found, found.low)} to {_change(found, found.high)}"


def _change(found: Comparison, change: float | None) -> str:
    if change is None:
        return "–"
    points = change * 100 if found.kind is Kind.SHARE else (change - 1) * 100
    digits = 1 if abs(points) < 9.95 else 0
    sign = "±" if round(points, digits) == 0 else "+" if points > 0 else "−"
    return f"{sign}{abs(points):,.{digits}f} {'pt' if found.kind is Kind.SHARE else '%'}"


def _line(cells: list[str], columns: list[int]) -> str:
    padded = [pad(cells[0], columns[0])]
    padded += [pad_left(cell, room) for cell, room in zip(cells[1:], columns[1:], strict=False)]
    return "  ".join(padded)


def _as_reading(found: Comparison) -> Reading:
    """The same in the words of a canary: its numbers are written alike."""
    is_share = found.kind is Kind.SHARE
    return Reading(
        metric=found.metric,
        aspect=Aspect.RATE if is_share else Aspect.SHAPE,
        kind=found.kind,
        better=Better.LOWER,
        baseline=found.baseline,
        candidate=found.candidate,
        ratio=None if is_share else found.change,
        low=None,
        high=None,
        margin_ratio=None,
        log_e_harm=found.log_e_harm if math.isfinite(found.log_e_harm) else 0.0,
        log_e_safe=found.log_e_safe,
        word=found.word,
        seen_baseline=found.pairs,
        seen_candidate=found.pairs,
        needed=found.needed,
        dry_run=found.dry_run,
    )
