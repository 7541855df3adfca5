"""The end of a gate run on a terminal, and the line that moves while answers arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

from deploy_gates.core.cost import dollars
from deploy_gates.core.gate import GateResult, Verdict
from deploy_gates.report.text import ascii_only, clip, counted, listed, pad, pad_left, visible, width, wrap
from deploy_gates.report.values import (
    MARKS,
    CaseChange,
    GateReport,
    RunReport,
    better_words,
    case_changes,
    golden,
    spent_words,
    title_words,
    took_words,
    worse_words,
)

_GREEN, _RED, _YELLOW, _DIM = "32", "31", "33", "2"
_INKS = {
    Verdict.PASS: _GREEN,
    Verdict.FAIL: _RED,
    Verdict.INCONCLUSIVE: _YELLOW,
    Verdict.SKIP: _DIM,
}

WIDTH_MIN = 72
SHOWN = 3
"""So many of a kind are shown before `… 12 more with -v`."""
SHOWN_VERBOSE = 200
FIELDS_SHOWN = 8
REASON_MAX_COLUMNS = 400
REASON_MAX_COLUMNS_VERBOSE = 4_000
BAR_COLUMNS = 14

_REQUIRED, _TOOK, _SPENT = 19, 7, 9
"""Columns of the table of gates, from the right; what was measured has the rest."""
_RIGHT = _REQUIRED + _TOOK + _SPENT + 2


def terminal(run: RunReport, *, width: int = 96, color: bool, unicode: bool, verbose: int) -> list[str]:
    """The screen at the end of a run, without the rule above it; its last lines are the verdict."""
    paper = _Paper(width=max(width, WIDTH_MIN), color=color, unicode=unicode, verbose=verbose)
    blocks = [list(_context(paper, run)), *(_config(paper, report) for report in run.changes)]
    if len(run.changes) != 1:
        blocks.append(_verdict(paper, run.word, run.verdict, run.conclusion))
    return _joined(blocks)


def progress(
    label: str,
    *,
    answered: int,
    total: int,
    in_flight: int,
    spent_nanousd: int,
    elapsed_s: float,
    width: int = 96,
    unicode: bool = True,
) -> str:
    """How far the answers are: `golden  124 of 320 answers  39 %  ▕█████▍        ▏  12 in flight, $0.012`."""
    share = min(answered / total, 1.0) if total else 1.0
    percent = 100 if share == 1 else min(99, round(share * 100))
    said = [f"{in_flight:,} in flight", dollars(spent_nanousd)]
    if 0 < answered < total:
        said.append(f"about {_rough(elapsed_s / answered * (total - answered))} left")
    line = (
        f"{label}  {answered:,} of {total:,} answers  {percent:2} %  "
        f"{_bar(share, unicode=unicode)}  {', '.join(said)}"
    )
    return clip(visible(line), width, ellipsis="…" if unicode else "...")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Paper:
    """What can be shown, and how much of it."""

    width: int
    color: bool
    unicode: bool
    verbose: int

    def said(self, text: str) -> str:
        """`text` as it can be shown; whatever came from a file or a model passes through here."""
        safe = visible(text)
        return safe if self.unicode else ascii_only(safe)

    def ink(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self.color and text else text

    def clip(self, text: str, columns: int) -> str:
        return clip(text, columns, ellipsis=self.said("…"))

    @property
    def marks_end(self) -> int:
        return 2 + max(len(self.said(mark)) for mark in MARKS.values())

    @property
    def text_at(self) -> int:
        """Where the column behind the gates' names begins."""
        return max(18, self.marks_end + 14)


_T = TypeVar("_T")


def _some(paper: _Paper, items: Sequence[_T], shown: int) -> tuple[Sequence[_T], int]:
    """Those to show, and how many are hidden: never one alone, which would fit where it says so."""
    limit = SHOWN_VERBOSE if paper.verbose > 0 else shown
    return (items, 0) if len(items) <= limit + 1 else (items[:limit], len(items) - limit)


def _more(paper: _Paper, hidden: int, indent: int) -> Iterator[str]:
    if hidden:
        where = "in the report files" if paper.verbose > 0 else "with -v"
        yield " " * indent + paper.ink(paper.said(f"… {hidden:,} more {where}"), _DIM)


def _hanging(paper: _Paper, label: str, text: str, *, columns: int = 0) -> list[str]:
    """`text` behind `label`, its further lines below its first; `columns` is the least width of the label."""
    columns = max(columns, width(label))
    first, *rest = wrap(paper.said(text), paper.width - columns)
    return [pad(label, columns) + first, *(" " * columns + line for line in rest)]


def _joined(blocks: Sequence[Sequence[str]]) -> list[str]:
    """The blocks with an empty line between."""
    lines: list[str] = []
    for block in blocks:
        if block:
            lines += ["", *block] if lines else block
    return lines


# --- One config ---------------------------------------------------------------------------------


def _config(paper: _Paper, report: GateReport) -> list[str]:
    return _joined(
        [
            _title(paper, report),
            list(_fields(paper, report)),
            list(_table(paper, report)),
            list(_reasons(paper, report)),
            list(_cases(paper, report)),
            _verdict(paper, report.word, report.verdict, report.conclusion, _sealed_at(paper, report)),
            list(_hints(paper, report)),
        ]
    )


def _title(paper: _Paper, report: GateReport) -> list[str]:
    title = wrap(paper.said(title_words(report.change)), paper.width)
    return _both_ends(paper, title, report.change.candidate.config_file, indent=4)


def _both_ends(paper: _Paper, left: list[str], right: str, *, indent: int) -> list[str]:
    """`right` at the right edge of the last line; below it where it does not fit."""
    right = paper.said(right)
    if not right:
        return left
    room = paper.width - width(left[-1]) - width(right)
    if room >= 2:
        return [*left[:-1], left[-1] + " " * room + paper.ink(right, _DIM)]
    below = wrap(right, paper.width - indent)
    return [*left, *(" " * indent + paper.ink(line, _DIM) for line in below)]


def _fields(paper: _Paper, report: GateReport) -> Iterator[str]:
    shown, hidden = _some(paper, report.change.fields, FIELDS_SHOWN)
    keys = [paper.clip(paper.said(each.key), 40) for each in shown]
    columns = max([14, *(width(key) + 3 for key in keys)])
    for key, each in zip(keys, shown, strict=True):
        told = f"{each.baseline} → {each.candidate}" if each.baseline else each.candidate
        yield from _hanging(paper, "    " + key, told, columns=4 + columns)
    yield from _more(paper, hidden, 4)


def _table(paper: _Paper, report: GateReport) -> Iterator[str]:
    head = pad(" " * (paper.marks_end + 1) + "gate", paper.text_at) + "measured"
    yield paper.ink(_columns(paper, head, "required", "took", "spent"), _DIM)
    for result in report.results:
        yield from _row(paper, result)


def _row(paper: _Paper, result: GateResult) -> Iterator[str]:
    mark = paper.said(MARKS[result.verdict])
    name = pad("  " + pad(mark, paper.marks_end - 2) + f" {result.gate}", paper.text_at)
    took, spent = took_words(result), spent_words(result)
    for at, (measured, required) in enumerate(_cells(paper, result)):
        if at:
            yield _columns(paper, " " * paper.text_at + measured, required, "", "")
            continue
        line = _columns(paper, name + measured, required, took, spent)
        if result.verdict is Verdict.SKIP:
            yield paper.ink(line, _DIM)
        else:
            yield line.replace(mark, paper.ink(mark, _INKS[result.verdict]), 1)


def _cells(paper: _Paper, result: GateResult) -> Iterator[tuple[str, str]]:
    """`measured` and `required` line by line, each wrapped into its column."""
    for measured, required in zip_longest(
        result.measured or (result.verdict.value,), result.required, fillvalue=""
    ):
        left = wrap(paper.said(measured), paper.width - _RIGHT - paper.text_at - 2)
        right = wrap(paper.said(required), _REQUIRED - 1)
        yield from zip_longest(left, right, fillvalue="")


def _columns(paper: _Paper, left: str, required: str, took: str, spent: str) -> str:
    line = pad(left, paper.width - _RIGHT) + pad(required, _REQUIRED)
    return (line + pad_left(took, _TOOK) + pad_left(spent, _SPENT)).rstrip()


def _reasons(paper: _Paper, report: GateReport) -> Iterator[str]:
    """Why it blocks; with -v also what stands out where it does not."""
    most = REASON_MAX_COLUMNS_VERBOSE if paper.verbose > 0 else REASON_MAX_COLUMNS
    for result in report.results:
        if not (result.blocks or paper.verbose > 0):
            continue
        shown, hidden = _some(paper, result.reasons, SHOWN)
        for at, reason in enumerate(shown):
            label = f"    {'' if at else result.gate}"
            yield from _hanging(paper, label, paper.clip(visible(reason), most), columns=paper.text_at)
        yield from _more(paper, hidden, paper.text_at)


def _cases(paper: _Paper, report: GateReport) -> Iterator[str]:
    """Which golden cases came out otherwise than with the baseline."""
    result = golden(report)
    worse, better = case_changes(result, "worse"), case_changes(result, "better")
    if (not worse and not better) or not (result.blocks or paper.verbose > 0):
        return
    yield from _hanging(paper, "    ", worse_words(worse, better))
    if worse:
        yield ""
        yield from _case_table(paper, worse)
    if better and paper.verbose > 0:
        yield ""
        yield from _hanging(paper, "    ", better_words(better))
        yield ""
        yield from _case_table(paper, better)


def _case_table(paper: _Paper, cases: Sequence[CaseChange]) -> Iterator[str]:
    shown, hidden = _some(paper, cases, SHOWN)
    rows = [
        (
            paper.clip(paper.said(each.case), 32),
            paper.clip(paper.said(each.field), 20),
            paper.said(f"expected {each.expected}" if each.expected else ""),
            paper.said(f"got {each.got}" if each.got else ""),
        )
        for each in shown
    ]
    case, field, expected, got = (max(map(width, column)) for column in zip(*rows, strict=True))
    room = paper.width - 4 - (case + 4) - (field + 3) - 4
    expected = min(expected, max(room // 2, room - got))
    for row in rows:
        line = f"    {pad(row[0], case)}    {pad(row[1], field)}   "
        line += f"{pad(paper.clip(row[2], expected), expected)}    {paper.clip(row[3], room - expected)}"
        yield line.rstrip()
    yield from _more(paper, hidden, 4)


def _verdict(paper: _Paper, word: str, verdict: Verdict, conclusion: str, right: str = "") -> list[str]:
    label = f"  {word}  "
    lines = _both_ends(paper, _hanging(paper, label, conclusion), right, indent=len(label))
    lines[0] = lines[0].replace(word, paper.ink(word, _INKS[verdict]), 1)
    return lines


def _sealed_at(paper: _Paper, report: GateReport) -> str:
    """Where the evidence lies, for those who go on with it."""
    if not report.evidence_path or (report.blocks and paper.verbose < 1):
        return ""
    return f"evidence: {report.evidence_path}"


def _hints(paper: _Paper, report: GateReport) -> Iterator[str]:
    for hint in report.all_hints:
        yield from _hanging(paper, "  hint: ", hint)


# --- The whole run ------------------------------------------------------------------------------


def _context(paper: _Paper, run: RunReport) -> Iterator[str]:
    """What the gates were about; most of it only with -v."""
    said = [f"note: {note}" for note in run.notes]
    if run.deleted:
        said.append(f"{counted(len(run.deleted), 'config')} deleted: {listed(run.deleted)}")
    if paper.verbose > 0:
        if run.unchanged:
            said.append(f"{counted(len(run.unchanged), 'config')} unchanged: {listed(run.unchanged)}")
        said.append(f"compared with {run.base}; {run.account}" if run.base else run.account)
    for text in said:
        for line in wrap(paper.said(text), paper.width):
            yield paper.ink(line, _DIM)


# --- Progress -----------------------------------------------------------------------------------


def _bar(share: float, *, unicode: bool) -> str:
    if not unicode:
        return f"[{'#' * int(share * BAR_COLUMNS):{BAR_COLUMNS}}]"
    eighths = int(share * BAR_COLUMNS * 8)
    filled = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return f"▕{filled:{BAR_COLUMNS}}▏"


def _rough(left_s: float) -> str:
    return f"{max(1, left_s):.0f} s" if left_s < 100 else f"{left_s / 60:.0f} min"
