"""A canary on its way, on a terminal: every metric in units of its own margin, better to the right.

A bar right of `╎` is safe, one across it is undecided, one left of it is harmful; `0` is no difference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy_gates.core.canary import Action, Aspect, Better, Decision, Kind, Plan, Reading, Word
from deploy_gates.report import quantities
from deploy_gates.report.quantities import clock, figures, odds, span, title
from deploy_gates.report.record import Terminal
from deploy_gates.report.text import clip, counted, listed, pad, pad_left, width, wrap

if TYPE_CHECKING:
    from deploy_gates.core.planning import Foresight, Sight

NAME_MAX = 20
"""Columns of a metric's name; longer ones are clipped."""
NAME_LEAST = 10
BAR_MIN, BAR_MAX = 12, 48
"""Columns of the picture."""
WORST, BEST = -1.6, 1.1
"""From where to where the picture reaches, in margins."""
MISSING_MAX = 6
"""Clauses of what is missing that are told."""

_GREEN, _RED, _YELLOW, _DIM, _BOLD = "32", "31", "33", "2", "1"
_COLORS = {Word.SAFE: _GREEN, Word.UNDECIDED: _YELLOW, Word.HARMFUL: _RED}
_SEVERITY = (Word.SAFE, Word.UNDECIDED, Word.HARMFUL)
_VERDICTS = {
    Action.CONTINUE: ("WATCHING", _YELLOW),
    Action.PROMOTE: ("PROMOTE", _GREEN),
    Action.ROLLBACK: ("ROLL BACK", _RED),
    Action.HOLD: ("HOLD", _YELLOW),
}
_ASCII = str.maketrans("╎├┤─●◂▸┼┊", ":[]-o<>+.")
_SIGHT_HEADS = ("", "baseline", "margin", "harm it sees", "takes", "gets", "word")
_WORD_WIDTH = len("(undecided)")
_HEADS = ("", "baseline", "candidate", "change", "at any time", "margin", "evidence", "word")
_DISPENSABLE = (6, 5, 3)
"""Columns of the table that a narrow terminal goes without, in this order."""


def picture(decision: Decision, terminal: Terminal, *, verbose: bool = False) -> list[str]:
    """The block that redraws: a row a metric, what was seen and is lacking, at the end the verdict."""
    return [*metrics(decision, terminal, verbose=verbose), *_verdict(decision, terminal), ""]


def metrics(decision: Decision, terminal: Terminal, *, verbose: bool = False) -> list[str]:
    """A row a metric, and what was seen and is lacking."""
    rows = shown(decision, verbose=verbose)
    lines = ["", *_rows(decision, rows, terminal), ""]
    for text, color in _below(decision, rows):
        folded = wrap(terminal.said(text), terminal.width - 4) if text else []
        lines += ["    " + (terminal.ink(each, color) if color else each) for each in folded]
    return lines


def line(decision: Decision) -> str:
    """One look on one line, for pipes and logs: time, what to do, each metric's word, how much was seen."""
    words = "; ".join(f"{word} {', '.join(names)}" for word, names in _by_word(decision).items())
    seen = f"{decision.arms.candidate:,} of {_total(decision):,} {decision.plan.unit}s"
    said = f"{clock(decision.elapsed_s):>7}  {decision.action.value:<8}  {seen}; {words}"
    if decision.action is Action.CONTINUE and not decision.missing:
        return said
    missing = [each for each in decision.missing[:MISSING_MAX] if each not in decision.reason]
    return f"{said}: {'; '.join([decision.reason, *missing])}"


def is_news(before: Decision | None, now: Decision) -> bool:
    """Whether anything is worth a line: an action, a word, a mark, or what is missing changed."""
    return before is None or _told(before) != _told(now)


def table(decision: Decision, terminal: Terminal) -> list[str]:
    """Every aspect in numbers: both arms, the change and its interval, margin, evidence of harm, word."""
    cells = _fitting([_HEADS, *(_numbers(decision, each) for each in decision.readings)], terminal)
    columns = _columns(cells, terminal)
    lines = ["", "  " + terminal.ink(_line(cells[0], columns, terminal).rstrip(), _DIM)]
    for reading, row in zip(decision.readings, cells[1:], strict=True):
        said = _line(row[:-1], columns[:-1], terminal)
        lines.append(f"  {said}{terminal.ink(terminal.said(row[-1]), _COLORS[reading.word])}")
    return [*lines, *_footnote(decision.readings, terminal), ""]


def sight(foresight: Foresight, plan: Plan, terminal: Terminal) -> list[str]:
    """What a plan can see before it starts, metric by metric, and what would help where it is too little."""
    share, mark = f"{foresight.share * 100:g} %", span(foresight.mark_s)
    rate = f"{foresight.rate_rps:,g} {plan.unit.value}s a second"
    said = f"{rate}, {share} of them to the candidate, {mark}"
    lines = ["", *("  " + each for each in wrap(terminal.said(said), terminal.width - 2)), ""]
    cells = [_SIGHT_HEADS, *(_foreseen(each, plan) for each in foresight.sights)]
    columns = _columns(cells, terminal)
    lines.append("  " + terminal.ink(_line(cells[0], columns, terminal).rstrip(), _DIM))
    for each, row in zip(foresight.sights, cells[1:], strict=True):
        color = _DIM if each.dry_run else _GREEN if each.is_enough else _YELLOW
        front = _line(row[:-1], columns[:-1], terminal)
        lines.append(f"  {front}{terminal.ink(terminal.said(row[-1]), color)}")
    lines += _footnote(foresight.sights, terminal)
    lines.append("")
    word, color = ("ENOUGH", _GREEN) if foresight.is_enough else ("TOO FEW", _YELLOW)
    indent = 4 + len(word)
    told = [
        each for text in outlook(foresight) for each in wrap(terminal.said(text), terminal.width - indent)
    ]
    lines.append(f"  {terminal.ink(word, color)}  {told[0]}")
    return [*lines, *(" " * indent + each for each in told[1:]), ""]


def shown(decision: Decision, *, verbose: bool = False) -> list[Reading]:
    """The readings worth a row: the first of each metric, and aspects that say worse than it does."""
    found: list[Reading] = []
    primary: Reading | None = None
    cause = quantities.caused(decision)
    for each in decision.readings:
        if primary is None or each.metric != primary.metric:
            primary = each
            found.append(each)
            continue
        is_worse = _SEVERITY.index(each.word) > _SEVERITY.index(primary.word)
        counts = each.margin_ratio is not None or each.word is Word.HARMFUL
        if verbose or each is cause or (is_worse and counts):
            found.append(each)
    return found


# --- Rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """How wide what is."""

    indent: int
    name: int
    baseline: int
    candidate: int
    change: int
    bar: int

    @property
    def before_bar(self) -> int:
        return self.indent + self.name + self.baseline + self.candidate + self.change + 8


def _rows(decision: Decision, rows: Sequence[Reading], terminal: Terminal) -> Iterator[str]:
    if not rows:
        return
    ellipsis = terminal.said("…")
    cells = [figures(each) for each in rows]
    names = [clip(terminal.said(_name(each, rows)), NAME_MAX, ellipsis=ellipsis) for each in rows]
    made = [[terminal.said(part) for part in (c.baseline, c.candidate, c.change)] for c in cells]
    layout = _layout(names, made, terminal)
    yield from _heads(layout, terminal)
    for reading, name, (baseline, candidate, change) in zip(rows, names, made, strict=True):
        front = (
            " " * layout.indent
            + pad(clip(name, layout.name, ellipsis=ellipsis), layout.name)
            + "  "
            + pad_left(clip(baseline, layout.baseline, ellipsis=ellipsis), layout.baseline)
            + "  "
            + pad_left(clip(candidate, layout.candidate, ellipsis=ellipsis), layout.candidate)
            + "  "
            + pad_left(clip(change, layout.change, ellipsis=ellipsis), layout.change)
            + "  "
        )
        bar = bar_of(reading, quantities.scale(decision, reading), layout.bar)
        color = _DIM if reading.dry_run else _COLORS[reading.word]
        drawn = bar if terminal.unicode else bar.translate(_ASCII)
        yield front + _inked(drawn, color, terminal) + "  " + terminal.ink(_word(reading), color)
    yield from _footnote(rows, terminal)


def _layout(names: Sequence[str], cells: Sequence[Sequence[str]], terminal: Terminal) -> _Layout:
    indent = 4 if terminal.width >= 90 else 2
    baseline, candidate, change = (
        max(width(head), *(width(row[at]) for row in cells))
        for at, head in enumerate(("baseline", "candidate", "change"))
    )
    name = max(map(width, names))
    room = terminal.width - indent - baseline - candidate - change - 8 - 2 - _WORD_WIDTH
    if room - name < BAR_MIN:
        name = max(8, room - BAR_MIN)
    if room - name < BAR_MIN:
        excess = BAR_MIN + name - room
        change = max(6, change - excess)
        room = terminal.width - indent - baseline - candidate - change - 8 - 2 - _WORD_WIDTH
    return _Layout(
        indent=indent,
        name=name,
        baseline=baseline,
        candidate=candidate,
        change=change,
        bar=min(max(room - name, 1), BAR_MAX),
    )


def _heads(layout: _Layout, terminal: Terminal) -> Iterator[str]:
    front = (
        " " * (layout.indent + layout.name + 2)
        + pad_left("baseline", layout.baseline)
        + "  "
        + pad_left("candidate", layout.candidate)
        + "  "
        + pad_left("change", layout.change)
        + "  "
    )
    scale = [" "] * layout.bar
    better = "better ▸" if terminal.unicode else "better >"
    for text, middle in (("margin", _column(-1.0, layout.bar)), ("0", _column(0.0, layout.bar))):
        start = min(max(0, middle - len(text) // 2), layout.bar - len(text))
        scale[start : start + len(text)] = text
    start = layout.bar - len(better)
    if start > 0 and all(each == " " for each in scale[start - 1 :]):
        scale[start:] = better
    yield terminal.ink((front + "".join(scale)).rstrip(), _DIM)


def bar_of(reading: Reading, margin: float | None, columns: int) -> str:
    """The interval of a reading as a picture so many columns wide, the margin at −1, no difference at 0."""
    cells = [" "] * columns
    at_margin, at_zero = _column(-1.0, columns), _column(0.0, columns)
    cells[at_zero], cells[at_margin] = "┊", "╎"
    if margin is None or (reading.ratio is None and reading.low is None and reading.high is None):
        return _noted("no data yet" if reading.baseline is None else "", cells)
    left, point, right = (_place(each, margin) for each in (reading.high, reading.ratio, reading.low))
    left = -math.inf if left is None else left
    right = math.inf if right is None else right
    if right < WORST:
        return "◂" + "".join(cells[1:])
    if left > BEST:
        return "".join(cells[:-1]) + "▸"
    start, end = _column(max(left, WORST), columns), _column(min(right, BEST), columns)
    for at in range(start, end + 1):
        cells[at] = "┼" if at == at_margin else "─"
    if end > start:
        cells[start] = "├" if left >= WORST else "◂"
        cells[end] = "┤" if right <= BEST else "▸"
    if point is not None and WORST <= point <= BEST:
        cells[_column(point, columns)] = "●"
    elif end == start:
        cells[start] = "●"
    return "".join(cells)


def _place(ratio: float | None, margin: float) -> float | None:
    """In margins, better to the right."""
    if ratio is None or math.isnan(ratio):
        return None
    if ratio <= 0:
        return math.inf
    return -math.inf if math.isinf(ratio) else -math.log(ratio) / math.log(margin)


def _column(place: float, columns: int) -> int:
    return min(columns - 1, max(0, round((place - WORST) / (BEST - WORST) * (columns - 1))))


def _noted(text: str, cells: Sequence[str]) -> str:
    return text.center(len(cells)) if text and len(text) <= len(cells) else "".join(cells)


def _inked(bar: str, color: str, terminal: Terminal) -> str:
    """The interval in the color of its word, margin and zero in the background."""
    if not terminal.color:
        return bar
    parts = re.split(r"([╎┊:.])", bar)
    return "".join(
        terminal.ink(part, _DIM if at % 2 else color) if part.strip() else part
        for at, part in enumerate(parts)
    )


def _name(reading: Reading, rows: Sequence[Reading]) -> str:
    """The metric, or its aspect below it."""
    first = next(each for each in rows if each.metric == reading.metric)
    return reading.metric if reading is first else f"  {quantities.aspect_words(reading.aspect)}"


def _word(reading: Reading) -> str:
    return f"({reading.word})" if reading.dry_run else reading.word.value


def _footnote(rows: Sequence[Reading] | Sequence[Sight], terminal: Terminal) -> Iterator[str]:
    if any(each.dry_run for each in rows):
        yield "    " + terminal.ink(terminal.said("(word): a dry run, shown and not judged"), _DIM)


# --- What stands below --------------------------------------------------------------------------


def _below(decision: Decision, rows: Sequence[Reading]) -> Iterator[tuple[str, str]]:
    if decision.started_ms is not None:
        if not decision.has_ended:
            yield _seen(decision), ""
        yield _time(decision), _DIM
        yield _warm_up(decision, rows), _DIM
    for clause in decision.missing[:MISSING_MAX]:
        if decision.action is Action.CONTINUE or clause not in decision.reason:  # which is not told then
            yield f"missing: {clause}", _YELLOW


def _seen(decision: Decision) -> str:
    said = f"{decision.arms.candidate:,} of {_total(decision):,} {decision.plan.unit}s"
    if decision.arms.unfinished:
        said += f", {decision.arms.unfinished:,} of them never came back"
    slowest = needed(decision)
    if slowest is None:
        return said
    more = _rounded(slowest.needed or 0)
    return f"{said}; {title(slowest)} needs about {more} more of the candidate to decide"


def needed(decision: Decision) -> Reading | None:
    """The judged reading that takes longest to decide."""
    open_ = [each for each in decision.readings if each.needed and not each.dry_run]
    return max(open_, key=lambda each: each.needed or 0, default=None)


def _rounded(count: int) -> str:
    """To two digits: nobody knows it better."""
    if count < 100:
        return f"{count:,}"
    step = 10 ** (len(str(count)) - 2)
    return f"{math.ceil(count / step) * step:,}"


def _time(decision: Decision) -> str:
    said = span(decision.elapsed_s)
    if decision.next_mark_s is not None and not decision.has_ended:
        said += f" of {span(decision.next_mark_s)}"
    return f"{said}; evidence of harm {odds(decision.log_e)}, {odds(decision.log_e_limit)} rolls back"


def _warm_up(decision: Decision, rows: Sequence[Reading]) -> str:
    warm_up_s = decision.plan.warm_up_s
    at_once = list(dict.fromkeys(each.metric for each in rows if not _is_late(decision, each)))
    if warm_up_s <= 0 or not any(_is_late(decision, each) for each in rows):
        return ""
    said = f"the first {span(warm_up_s)} ({counted(decision.arms.excluded, decision.plan.unit)})"
    return f"{said} count for {listed(at_once)} only" if at_once else f"{said} do not count"


def _is_late(decision: Decision, reading: Reading) -> bool:
    metric = quantities.planned(decision, reading)
    return metric is not None and metric.warm_up


def _verdict(decision: Decision, terminal: Terminal) -> Iterator[str]:
    """Nothing while it goes on and nothing is wrong; at the end the last lines."""
    if decision.action is Action.CONTINUE:
        return
    word, color = _VERDICTS[decision.action]
    if decision.started_ms is not None:
        yield ""
    explained = quantities.explained(decision) if decision.action is Action.ROLLBACK else ""
    if explained:
        yield from ("    " + each for each in wrap(terminal.said(explained), terminal.width - 4))
        yield ""
    indent = 4 + len(word)
    told = [decision.reason]
    if decision.has_ended:
        of = f"{decision.arms.candidate:,} of {_total(decision):,} {decision.plan.unit}s"
        told.append(f"the candidate answered {of} in {span(decision.elapsed_s)}")
    lines = [each for text in told for each in wrap(terminal.said(text), terminal.width - indent)]
    yield f"  {terminal.ink(word, color)}  {lines[0]}"
    yield from (" " * indent + each for each in lines[1:])


def _total(decision: Decision) -> int:
    return decision.arms.baseline + decision.arms.candidate


def _told(decision: Decision) -> tuple[object, ...]:
    """What a reader would want to hear of, without the numbers that change with every look."""
    words = _by_word(decision)
    missing = tuple(re.sub(r"[\d,]+", "#", each) for each in decision.missing)
    return decision.action, words, decision.marks, missing, decision.started_ms is None


def _by_word(decision: Decision) -> dict[Word, list[str]]:
    """What is harmful, undecided, and safe, of all that is judged."""
    rows = [each for each in shown(decision) if not each.dry_run]
    found = {word: [title(each) for each in rows if each.word is word] for word in reversed(_SEVERITY)}
    return {word: names for word, names in found.items() if names}


# --- The table ----------------------------------------------------------------------------------


def _numbers(decision: Decision, reading: Reading) -> tuple[str, ...]:
    found = figures(reading)
    aspect = quantities.aspect_words(reading.aspect)
    name = f"  {aspect}" if reading.aspect not in (Aspect.RATE, Aspect.SHAPE) else reading.metric
    return (
        name,
        found.baseline,
        found.candidate,
        found.change,
        quantities.interval_words(reading),
        quantities.margin_words(decision, reading),
        odds(reading.log_e_harm).replace(" to ", ":"),
        _word(reading),
    )


def _fitting(rows: Sequence[Sequence[str]], terminal: Terminal) -> list[list[str]]:
    """Without the columns that a narrow terminal has no room for."""
    kept = list(range(len(_HEADS)))
    for at in _DISPENSABLE:
        columns = [max(width(terminal.said(row[each])) for row in rows) + 2 for each in kept]
        if sum(columns[1:]) + NAME_LEAST + 2 <= terminal.width:
            break
        kept.remove(at)
    return [[row[each] for each in kept] for row in rows]


def _columns(rows: Sequence[Sequence[str]], terminal: Terminal) -> list[int]:
    """As wide as the widest, the name giving way."""
    columns = [max(width(terminal.said(row[at])) for row in rows) + 2 for at in range(len(rows[0]))]
    columns[0] = min(columns[0], NAME_MAX + 2)
    excess = sum(columns) - terminal.width
    return [max(NAME_LEAST, columns[0] - max(0, excess)), *columns[1:]]


def _line(cells: Sequence[str], columns: Sequence[int], terminal: Terminal) -> str:
    """The name begins at the left, numbers end at the right, what remains is the word."""
    ellipsis = terminal.said("…")
    said = ""
    for at, (cell, room) in enumerate(zip(cells, columns, strict=True)):
        text = clip(terminal.said(cell), room - 2, ellipsis=ellipsis)
        is_left = at == 0 or cell in (_HEADS[-1], _SIGHT_HEADS[-1])
        said += pad(text, room) if is_left else pad_left(text, room - 2) + "  "
    return said


# --- Before it starts ---------------------------------------------------------------------------


def _foreseen(found: Sight, plan: Plan) -> tuple[str, ...]:
    """Margin, the least harm that is seen, and how many of the candidate it takes and gets."""
    reading = _as_reading(found, plan)
    baseline = figures(reading).baseline
    seen = "–" if found.detectable_ratio is None else quantities.change_words(reading, found.detectable_ratio)
    word = "enough" if found.is_enough else "too few"
    return (
        title(reading),
        f"median {baseline}" if found.kind is Kind.AMOUNT else baseline,
        quantities.change_words(reading, found.margin_ratio),
        seen,
        "–" if found.needed is None else _rounded(found.needed),
        f"{found.got:,}",
        f"({word})" if found.dry_run else word,
    )


def _as_reading(found: Sight, plan: Plan) -> Reading:
    """A reading of the baseline alone: a share is planned as how often it is bad."""
    better = next((each.better for each in plan.metrics if each.name == found.metric), Better.LOWER)
    is_turned = found.kind is Kind.SHARE and better is Better.HIGHER
    return Reading(
        metric=found.metric,
        aspect=found.aspect,
        kind=found.kind,
        better=better,
        baseline=1 - found.baseline if is_turned else found.baseline,
        candidate=None,
        ratio=None,
        low=None,
        high=None,
        margin_ratio=found.margin_ratio,
        log_e_harm=0.0,
        log_e_safe=0.0,
        word=Word.UNDECIDED,
        seen_baseline=0,
        seen_candidate=0,
        needed=found.needed,
        dry_run=found.dry_run,
    )


def outlook(foresight: Foresight) -> Iterator[str]:
    """Whether a plan sees enough, and what would help if it does not, a sentence each."""
    mark = span(foresight.mark_s)
    if foresight.is_enough:
        yield f"within {mark}, a candidate that is no worse can be proved to be"
        return
    yield from (f"the baseline has no {each} to go by" for each in foresight.missing)
    short = [each for each in foresight.sights if not each.dry_run and not each.is_enough]
    if short:
        names = listed(dict.fromkeys(each.metric for each in short))
        yield f"{mark} can prove nothing of {names}: such a canary would end undecided"
    helps = []
    if foresight.share_enough is not None:
        helps.append(f"{foresight.share_enough * 100:g} % of the traffic")
    if foresight.mark_enough_s is not None:
        helps.append(f"a mark at {span(math.ceil(foresight.mark_enough_s / 60) * 60)}")
    if short:
        helps += ["a wider margin", "a paired replay of recorded prompts"]
        yield f"what would help: {listed(helps, 'or')}"
