"""A canary's analysis as pictures: SVG by hand, no script, font, or request; light, dark, and read aloud.

Every panel has time from the candidate's first request to the right. A panel of a metric shows its confidence
sequence as a band on a scale of ratios, told in the metric's own words, and tints what its margin refuses.
"""

from __future__ import annotations

import html as escaping
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from deploy_gates.core.canary import Action, Aspect, Better, Decision, Kind, Reading, Word
from deploy_gates.core.tally import BIN_MS, Unit
from deploy_gates.report import quantities
from deploy_gates.report.quantities import clock, figures, odds, span, title
from deploy_gates.report.text import clip, visible, width

POINTS_MAX = 360
"""Of one line; of a longer history every second, third, … look is drawn, and the last."""
PANELS_MAX = 48
"""Metrics and aspects that get a panel."""
NARROW_PX, WIDE_PX = 400, 1120
"""How wide a panel is drawn: about a phone, and about a page."""
GAP_PX = 24
LETTER_PX = 7.0
"""About so wide is a column of text, of 13 px."""
LINE_PX = 16
"""Labels stand at least so far apart."""
MARGINS_MAX, BOUNDS_MAX, BETTER_MAX = 16.0, 4.0, 2.5
"""A scale reaches at most so many margins from no difference: for what is estimated now, for bounds, and for
what is better than that anyway."""
SERIES = 8
"""So many lines have a colour of their own; the next as many are dashed."""

_LN10 = math.log(10)
_CLASSES = {Word.SAFE: "safe", Word.UNDECIDED: "undecided", Word.HARMFUL: "harmful"}
_TICK_APART_PX = 20
_STEPS_S = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400)
_PERCENT_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_PERCENT_MOST = math.log(6)
"""What is more than this is told as so many times."""
_TIMES = (1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 1_000, 10_000, 1_000_000)
_POINT_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One picture: its size, what it shows in words, and its elements, from the upper left corner on."""

    width: float
    height: float
    title: str
    told: str
    lines: tuple[str, ...]


def svg(
    history: Sequence[Decision],
    *,
    width_px: float = WIDE_PX,
    name: str = "canary",
    until_s: float | None = None,
) -> str:
    """The whole analysis as one picture; `name` makes ids unique on a page, `until_s` is where time ends."""
    panels = [each(history, width_px, until_s) for each in (evidence, proofs, traffic)]
    columns = max(1, int((width_px + GAP_PX) // (NARROW_PX + GAP_PX)))
    each_px = (width_px - GAP_PX * (columns - 1)) / columns
    small = [intervals(history, each, each_px, until_s) for each in charted(history)]
    placed: list[str] = []
    y = 0.0
    for start in range(0, len(small), columns):
        row = small[start : start + columns]
        placed += [_moved(each, at * (each_px + GAP_PX), y) for at, each in enumerate(row)]
        y += max(each.height for each in row) + GAP_PX
    for panel in panels:
        placed.append(_moved(panel, 0, y))
        y += panel.height + GAP_PX
    last = history[-1] if history else None
    whole = Panel(
        width=width_px,
        height=max(y - GAP_PX, 1),
        title=f"Canary analysis: {last.action}" if last else "Canary analysis: nothing yet",
        told=" ".join([last.reason if last else "", *(each.told for each in [*small, *panels])]).strip(),
        lines=tuple(placed),
    )
    return element(whole, name=name)


def element(panel: Panel, *, name: str, style: bool = True) -> str:
    """A panel as an `<svg>`; without its own style where the page has `STYLE`."""
    size = f'viewBox="0 0 {panel.width:g} {panel.height:g}" width="{panel.width:g}" height="{panel.height:g}"'
    ids = f"{_said(name)}-title {_said(name)}-told"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" aria-labelledby="{ids}" {size}>',
        f'<title id="{_said(name)}-title">{_said(panel.title)}</title>',
        f'<desc id="{_said(name)}-told">{_said(panel.told)}</desc>',
        *([f"<style>{STYLE}</style>"] if style else []),
        *panel.lines,
        "</svg>",
    ]
    return "\n".join(parts)


def charted(history: Sequence[Decision]) -> list[Reading]:
    """The readings that get a panel: the first of each metric, what is to be proved, and what decided."""
    if not history:
        return []
    last = history[-1]
    cause = quantities.caused(last)
    seen: set[str] = set()
    found = []
    for each in last.readings:
        is_first = each.metric not in seen
        seen.add(each.metric)
        if is_first or each is cause or (each.margin_ratio is not None and each.aspect is not Aspect.TAIL):
            found.append(each)
    return found[:PANELS_MAX]


# --- Time ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """Where the plot of a panel lies, and how long it lasts."""

    left: float
    right: float
    top: float
    bottom: float
    until_s: float

    def x(self, seconds: float) -> float:
        part = min(max(seconds / self.until_s, 0.0), 1.0)
        return self.left + part * (self.right - self.left)


def _started(history: Sequence[Decision]) -> list[Decision]:
    return [each for each in history if each.started_ms is not None]


def _thinned(history: Sequence[Decision]) -> list[Decision]:
    """At most `POINTS_MAX` looks, the last always among them."""
    stride = math.ceil(len(history) / POINTS_MAX) or 1
    return list(history[::-1][::stride][::-1])


def _until(history: Sequence[Decision], until_s: float | None) -> float:
    elapsed = history[-1].elapsed_s if history else 0.0
    return max(elapsed, until_s or 0.0, 10.0)


def _time_axis(frame: _Frame, history: Sequence[Decision]) -> Iterator[str]:
    """Ticks at round times, the warm-up and the marks; the line of the plot's floor."""
    room = (frame.right - frame.left) / frame.until_s
    step = next((each for each in _STEPS_S if each * room >= 52), _STEPS_S[-1] * 7)
    for at in range(0, math.floor(frame.until_s) + 1, step):
        x = frame.x(at)
        yield _line(x, frame.bottom, x, frame.bottom + 4, "axis")
        yield _text(x, frame.bottom + 17, clock(at), "tick", "middle")
    yield _line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
    if history:
        plan = history[-1].plan
        for number in range(1, history[-1].marks + 1):
            x = frame.x(plan.mark_s * number)
            yield _line(x, frame.top, x, frame.bottom, "mark")


def _warm_up(frame: _Frame, decision: Decision, reading: Reading) -> Iterator[str]:
    metric = quantities.planned(decision, reading)
    if metric is None or not metric.warm_up or decision.plan.warm_up_s <= 0:
        return
    x = frame.x(min(decision.plan.warm_up_s, frame.until_s))
    yield _rect(frame.left, frame.top, x - frame.left, frame.bottom - frame.top, "warm")
    if x - frame.left >= len("warm-up") * LETTER_PX * 0.9:
        yield _text((frame.left + x) / 2, frame.top + 14, "warm-up", "tick", "middle")


# --- A metric -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    """From the logarithm of a factor, more upwards, to a height."""

    least: float
    most: float
    top: float
    bottom: float

    def y(self, value: float) -> float:
        part = (min(max(value, self.least), self.most) - self.least) / (self.most - self.least)
        return self.bottom - part * (self.bottom - self.top)


def intervals(
    history: Sequence[Decision], reading: Reading, width_px: float = NARROW_PX, until_s: float | None = None
) -> Panel:
    """How the interval of one reading closed in, with its margin and what the margin refuses."""
    looks = _thinned(_started(history))
    found = [(each.elapsed_s, _same(each, reading)) for each in looks]
    points = [(at, each) for at, each in found if each is not None]
    last = points[-1][1] if points else reading
    decision = history[-1]
    frame = _Frame(left=66, right=width_px - 88, top=46, bottom=186, until_s=_until(looks, until_s))
    margin = quantities.scale(decision, last)
    scale = _scale([each for _, each in points], margin, frame)
    both = figures(last)
    word = f"{last.word}, dry run" if last.dry_run else last.word.value
    room = int((width_px - (len(word) + 2) * LETTER_PX) / (LETTER_PX * 1.1))
    lines = [
        _text(0, 15, clip(visible(title(last)), room), "name"),
        _text(width_px, 15, word, f"word {_CLASSES[last.word]}", "end"),
        _text(0, 33, _subtitle(last, both.baseline, both.candidate), "dim"),
        *_refused(frame, scale, last),
        *_ratio_axis(frame, scale, last),
        *_band(frame, scale, points),
        *_warm_up(frame, decision, last),
        *_time_axis(frame, looks),
        *_ribbon(frame, points),
        *_ends(frame, scale, last, decision),
    ]
    return Panel(
        width=width_px,
        height=frame.bottom + 22,
        title=title(last),
        told=_told(decision, last),
        lines=tuple(lines),
    )


def _subtitle(reading: Reading, baseline: str, candidate: str) -> str:
    if reading.baseline is None and reading.candidate is None:
        return "no data yet"
    median = "median " if reading.aspect is Aspect.SHAPE else ""
    return f"{median}{baseline} → {candidate}"


def _told(decision: Decision, reading: Reading) -> str:
    both = figures(reading)
    said = f"{title(reading)}: {reading.word}; baseline {both.baseline}, candidate {both.candidate}, "
    said += f"{quantities.interval_words(reading)}"
    margin = quantities.margin_words(decision, reading)
    return f"{said}; the margin is {margin}." if margin != "–" else f"{said}."


def _same(decision: Decision, reading: Reading) -> Reading | None:
    return next(
        (e for e in decision.readings if e.metric == reading.metric and e.aspect is reading.aspect), None
    )


def _log(reading: Reading, ratio: float | None, unknown: float) -> float:
    """More upwards; `unknown` margins for what is not bounded."""
    if ratio is None or math.isnan(ratio):
        return unknown
    worse = -math.inf if ratio <= 0 else math.log(ratio) if math.isfinite(ratio) else math.inf
    return worse if reading.better is Better.LOWER else -worse


def _scale(readings: Sequence[Reading], margin: float | None, frame: _Frame) -> _Scale:
    """Around no difference and the margin, as far as the later half of the history reaches."""
    unit = math.log(margin) if margin is not None else math.log(1.25)
    worse = -1.0 if readings and readings[-1].better is Better.HIGHER else 1.0
    reach = [-0.9 * unit * worse, 1.5 * unit * worse]
    later = readings[len(readings) // 2 :]
    for at, each in enumerate(later, 1):
        most = MARGINS_MAX if at == len(later) else BOUNDS_MAX
        for ratio, margins in ((each.low, BOUNDS_MAX), (each.ratio, most), (each.high, BOUNDS_MAX)):
            value = _log(each, ratio, 0.0)
            better = BETTER_MAX if value * worse < 0 else margins
            reach.append(min(max(value * 1.08, -better * unit), better * unit))
    return _Scale(least=min(reach), most=max(reach), top=frame.top, bottom=frame.bottom)


def _refused(frame: _Frame, scale: _Scale, reading: Reading) -> Iterator[str]:
    """What the margin refuses, and the line of the margin."""
    if reading.margin_ratio is None or not reading.margin_ratio > 1:
        return
    y = scale.y(_log(reading, reading.margin_ratio, 0.0))
    top, bottom = (frame.top, y) if reading.better is Better.LOWER else (y, frame.bottom)
    yield _rect(frame.left, top, frame.right - frame.left, bottom - top, "refused")
    yield _line(frame.left, y, frame.right, y, "margin")


def _ratio_axis(frame: _Frame, scale: _Scale, reading: Reading) -> Iterator[str]:
    for value, label in _ratio_ticks(scale, reading):
        y = scale.y(value)
        kind = "zero" if value == 0 else "grid"
        yield _line(frame.left, y, frame.right, y, kind)
        yield _text(frame.left - 7, y + 4, label, "tick", "end")


def _ratio_ticks(scale: _Scale, reading: Reading) -> list[tuple[float, str]]:
    """Round changes, as dense as their labels have room."""
    bad = reading.baseline
    if reading.kind is Kind.AMOUNT and scale.most < _PERCENT_MOST:
        even = [_percents(_even(step, 1.0), scale) for step in _PERCENT_STEPS]
        round_ = _percents([sign * each for each in _PERCENT_STEPS for sign in (1, -1)], scale)
    elif reading.kind is Kind.SHARE and bad is not None and 0 < bad < 1:
        even = [_points(_even(step, 100.0), bad, scale) for step in _POINT_STEPS]
        round_ = _points([sign * each for each in _POINT_STEPS for sign in (1, -1)], bad, scale)
    else:
        return _apart([(0.0, "×1"), *_multiples(scale)], scale)
    uneven = _apart([(0.0, "0"), *round_], scale)
    for ticks in even:
        heights = sorted([scale.y(0.0), *(scale.y(value) for value, _ in ticks)])
        if ticks and min(low - high for high, low in pairwise(heights)) >= _TICK_APART_PX:
            return [(0.0, "0"), *ticks] if len(ticks) + 1 >= len(uneven) else uneven
    return uneven


def _even(step: float, most: float) -> list[float]:
    """Multiples of a step, both ways; none where there would be more than a scale could ever show."""
    count = round(6 * most / step) if most == 1.0 else round(most / step)
    return [round(at * step, 6) for at in range(-count, count + 1) if at] if count <= 6_000 else []


def _apart(ticks: Sequence[tuple[float, str]], scale: _Scale) -> list[tuple[float, str]]:
    """The first, and going away from it, those with room to the one before."""
    kept = list(ticks[:1])
    for sign in (1, -1):
        last = 0.0
        for value, label in sorted(ticks, key=lambda each: abs(each[0])):
            if value * sign > 0 and abs(scale.y(value) - scale.y(last)) >= _TICK_APART_PX:
                kept.append((value, label))
                last = value
    return kept


def _percents(changes: Sequence[float], scale: _Scale) -> list[tuple[float, str]]:
    found = [(math.log1p(each), f"{each * 100:+g} %".replace("-", "−")) for each in changes if each > -1]
    return [each for each in found if scale.least <= each[0] <= scale.most]


def _multiples(scale: _Scale) -> list[tuple[float, str]]:
    found = [
        (sign * math.log(each), f"{mark}{each:,g}") for each in _TIMES for sign, mark in ((1, "×"), (-1, "÷"))
    ]
    return [each for each in found if scale.least <= each[0] <= scale.most]


def _points(changes: Sequence[float], share: float, scale: _Scale) -> list[tuple[float, str]]:
    """Percentage points up and down from the baseline's share, where the odds are so many times as much."""
    found = []
    for each in changes:
        moved = share + each / 100
        if not 0 < moved < 1:
            continue
        value = math.log(moved / (1 - moved)) - math.log(share / (1 - share))
        if scale.least <= value <= scale.most:
            found.append((value, f"{each:+g} pt".replace("-", "−")))
    return found


def _band(frame: _Frame, scale: _Scale, points: Sequence[tuple[float, Reading]]) -> Iterator[str]:
    judged = [(at, each) for at, each in points if each.seen_candidate or each.ratio is not None]
    if judged:
        first = judged[0]
        judged = [(max(0.0, first[0] - BIN_MS / 1000), first[1]), *judged] if len(judged) == 1 else judged
    upper, lower = [], []
    for at, each in judged:
        lows = _log(each, each.low, -math.inf if each.better is Better.LOWER else math.inf)
        highs = _log(each, each.high, math.inf if each.better is Better.LOWER else -math.inf)
        upper.append((frame.x(at), scale.y(max(lows, highs))))
        lower.append((frame.x(at), scale.y(min(lows, highs))))
    if len(upper) > 1 and any(each.low is not None or each.high is not None for _, each in judged):
        yield f'<polygon class="band" points="{_path([*upper, *reversed(lower)])}"/>'
        yield from _bound(upper, frame)
        yield from _bound(lower, frame)
    line = [(frame.x(at), scale.y(_log(e, e.ratio, 0.0))) for at, e in judged if e.ratio is not None]
    if len(line) > 1:
        yield f'<polyline class="estimate" points="{_path(line)}"/>'
    if line:
        yield f'<circle class="now" cx="{line[-1][0]:.1f}" cy="{line[-1][1]:.1f}" r="3.5"/>'


def _bound(edge: Sequence[tuple[float, float]], frame: _Frame) -> Iterator[str]:
    """One end of the band, where it lies within the picture."""
    for is_inside, group in groupby(edge, key=lambda each: frame.top < each[1] < frame.bottom):
        points = list(group)
        if is_inside and len(points) > 1:
            yield f'<polyline class="bound" points="{_path(points)}"/>'


def _ribbon(frame: _Frame, points: Sequence[tuple[float, Reading]]) -> Iterator[str]:
    """Along the floor, the word at each time, as a colour; the last one is written above the panel."""
    runs: list[tuple[float, float, Word]] = []
    before = 0.0
    for at, each in points:
        if runs and runs[-1][2] is each.word:
            runs[-1] = (runs[-1][0], at, each.word)
        else:
            runs.append((before, at, each.word))
        before = at
    for start, end, word in runs:
        x = frame.x(start)
        yield _rect(x, frame.bottom - 4, frame.x(end) - x, 4, f"ribbon {_CLASSES[word]}")


def _ends(frame: _Frame, scale: _Scale, last: Reading, decision: Decision) -> Iterator[str]:
    """To the right: the change now, and the margin."""
    labels = []
    if last.ratio is not None:
        change = quantities.estimate_words(last).removesuffix(" odds")
        labels.append((scale.y(_log(last, last.ratio, 0.0)), change, "point"))
    if last.margin_ratio is not None and last.margin_ratio > 1:
        sign = "≤" if last.better is Better.LOWER else "≥"
        margin = quantities.margin_words(decision, last).removesuffix(" odds")
        labels.append((scale.y(_log(last, last.margin_ratio, 0.0)), f"{sign} {margin}", "limit"))
    places = spread([each[0] for each in labels], LINE_PX, frame.top - 4, frame.bottom)
    for y, (_, text, kind) in zip(places, labels, strict=True):
        yield _text(frame.right + 8, y + 4, text, kind)


# --- Evidence -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Series:
    """One e-value over time, as natural logarithms, a look each."""

    label: str
    values: Sequence[float]
    kind: str


def evidence(history: Sequence[Decision], width_px: float = WIDE_PX, until_s: float | None = None) -> Panel:
    """The evidence of harm over time: of all metrics together, of each, and how much rolls back."""
    looks = _thinned(_started(history))
    last = looks[-1] if looks else None
    names = list(dict.fromkeys(each.metric for each in last.readings)) if last else []
    dry = {each.metric for each in last.readings if each.dry_run} if last else set()
    lines = [
        _Series(
            label=f"({name})" if name in dry else name,
            values=[_strongest(look, name) for look in looks],
            kind=_kind(at, is_dry=name in dry),
        )
        for at, name in enumerate(names)
    ]
    lines.append(_Series(label="all together", values=[each.log_e for each in looks], kind="family"))
    said = "how many to 1 it speaks against “no worse”"
    head = ("Evidence of harm", f"{said}; (…): a dry run" if dry and width_px >= WIDE_PX / 2 else said)
    told = "Nothing yet."
    if last:
        told = f"All metrics together: {odds(last.log_e)} after {span(last.elapsed_s)}; "
        told += f"{odds(last.log_e_limit)} rolls back."
    limit = (last.log_e_limit, "rolls back", "harmful") if last else (0.0, "", "")
    return _e_panel(looks, lines, head, told, limit, width_px, until_s)


def proofs(history: Sequence[Decision], width_px: float = WIDE_PX, until_s: float | None = None) -> Panel:
    """The evidence of safety over time, of all that promotion has to prove, and how much proves it."""
    looks = _thinned(_started(history))
    last = looks[-1] if looks else None
    due = (
        [each for each in last.readings if each.margin_ratio is not None and not each.dry_run] if last else []
    )
    lines = []
    for at, each in enumerate(due):
        found = [_same(look, each) for look in looks]
        values = [reading.log_e_safe if reading else 0.0 for reading in found]
        lines.append(_Series(label=title(each), values=values, kind=_kind(at, is_dry=False)))
    told = "Nothing yet."
    if last:
        proved = sum(each.log_e_safe >= last.log_e_proof for each in due)
        told = f"{proved} of {len(due)} are proved; each takes {odds(last.log_e_proof)}."
    head = ("Evidence of safety", "how many to 1 it speaks against “worse by the margin”")
    limit = (last.log_e_proof, "proves it", "safe") if last else (0.0, "", "")
    return _e_panel(looks, lines, head, told, limit, width_px, until_s)


def _strongest(look: Decision, metric: str) -> float:
    """The evidence of harm of the aspect that has most of it."""
    return max((each.log_e_harm for each in look.readings if each.metric == metric), default=0.0)


def _kind(at: int, *, is_dry: bool) -> str:
    return f"s{at % SERIES}" + (" more" if at % (2 * SERIES) >= SERIES else "") + (" dry" if is_dry else "")


def _e_panel(
    looks: Sequence[Decision],
    series: Sequence[_Series],
    head: tuple[str, str],
    told: str,
    limit: tuple[float, str, str],
    width_px: float,
    until_s: float | None,
) -> Panel:
    """E-values on a logarithmic scale, with the line that decides."""
    name, said = head
    log_e_limit, verb, kind = limit
    gutter = 190 if width_px >= WIDE_PX / 2 else 116
    bottom = 68 + max(170, LINE_PX * len(series) + 10)
    frame = _Frame(left=58, right=width_px - gutter, top=68, bottom=bottom, until_s=_until(looks, until_s))
    lines = [_text(0, 15, name, "name"), _text(0, 33, clip(said, int(width_px / LETTER_PX) - 1), "dim")]
    if looks:
        level = log_e_limit / _LN10
        overall = [value / _LN10 for each in series if each.kind == "family" for value in each.values]
        most = max([level * 1.35, *(min(each, level * 2) + 0.2 for each in overall)])
        scale = _Scale(least=-1.0, most=most, top=frame.top, bottom=frame.bottom)
        lines += _e_axis(frame, scale)
        lines += _time_axis(frame, looks)
        y = scale.y(level)
        lines.append(_line(frame.left, y, frame.right, y, f"margin {kind}"))
        lines += _e_lines(frame, scale, looks, series, gutter)
        is_right = _is_early(frame, looks)
        x, anchor = (frame.right - 6, "end") if is_right else (frame.left + 6, "start")
        lines += _e_dots(frame, scale, looks, series, log_e_limit)
        lines.append(_text(x, y - 7, f"{odds(log_e_limit)} {verb}", f"limit {kind}", anchor))
        lines += _e_end(frame, looks)
    else:
        lines += _time_axis(frame, looks)
    return Panel(width=width_px, height=frame.bottom + 22, title=name, told=told, lines=tuple(lines))


def _e_axis(frame: _Frame, scale: _Scale) -> Iterator[str]:
    for power in range(-1, math.floor(scale.most) + 1):
        y = scale.y(power)
        label = "0.1" if power < 0 else f"{10**power:,}" if power < 5 else f"10{_raised(power)}"
        yield _line(frame.left, y, frame.right, y, "zero" if power == 0 else "grid")
        yield _text(frame.left - 7, y + 4, label, "tick", "end")


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _e_lines(
    frame: _Frame, scale: _Scale, looks: Sequence[Decision], series: Sequence[_Series], gutter: float
) -> Iterator[str]:
    """The lines, and to the right their names."""
    for each in series:
        yield _e_line(frame, scale, looks, each.values, each.kind)
    ends = [scale.y(each.values[-1] / _LN10) for each in series]
    places = spread(ends, LINE_PX, frame.top, frame.bottom - 2)
    end = frame.x(looks[-1].elapsed_s)
    columns = int((gutter - 30) / LETTER_PX)
    for y, at_y, each in zip(places, ends, series, strict=True):
        leader = _path([(end + 3, at_y), (frame.right + 8, y), (frame.right + 20, y)])
        yield f'<polyline class="leader {each.kind}" points="{leader}"/>'
        label = _shortened(visible(each.label), columns)
        yield _text(frame.right + 25, y + 4, label, f"label {each.kind}")


def _e_line(
    frame: _Frame, scale: _Scale, looks: Sequence[Decision], values: Sequence[float], kind: str
) -> str:
    points = [(frame.x(0), scale.y(0.0))] + [
        (frame.x(look.elapsed_s), scale.y(value / _LN10)) for look, value in zip(looks, values, strict=True)
    ]
    return f'<polyline class="series {kind}" points="{_path(points)}"/>'


def _e_dots(
    frame: _Frame, scale: _Scale, looks: Sequence[Decision], series: Sequence[_Series], limit: float
) -> Iterator[str]:
    """Where what decides reaches its line: all metrics together, or what is to be proved, each."""
    deciding = [each for each in series if each.kind == "family"] or series
    for each in deciding:
        at = next((number for number, value in enumerate(each.values) if value >= limit), None)
        if at is not None:
            x, y = frame.x(looks[at].elapsed_s), scale.y(each.values[at] / _LN10)
            yield f'<circle class="crossed {each.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


def _is_early(frame: _Frame, looks: Sequence[Decision]) -> bool:
    """Whether the end lies left of the middle, so that its label has room to the right only."""
    return looks[-1].has_ended and frame.x(looks[-1].elapsed_s) < (frame.left + frame.right) / 2


def _e_end(frame: _Frame, looks: Sequence[Decision]) -> Iterator[str]:
    """When it ended, how, and why."""
    last = looks[-1]
    if not last.has_ended:
        return
    cause = quantities.caused(last)
    is_safe = last.action is Action.PROMOTE
    why = "" if is_safe else title(cause) if cause else (last.cause or ("",))[0]
    said = f"{clock(last.elapsed_s)} {'proved safe' if is_safe else 'rolled back'}{f': {why}' if why else ''}"
    at = frame.x(last.elapsed_s)
    is_right = _is_early(frame, looks)
    room = (frame.right - at if is_right else at - frame.left) / (LETTER_PX * 1.1) - 2
    kind = "safe" if is_safe else "harmful"
    yield _line(at, frame.top - 18, at, frame.bottom, f"crossing {kind}")
    anchor, to = ("start", at + 8) if is_right else ("end", at - 8)
    yield _text(to, frame.top - 8, clip(visible(said), max(2, int(room))), f"word {kind}", anchor)


# --- Traffic ------------------------------------------------------------------------------------


def traffic(history: Sequence[Decision], width_px: float = WIDE_PX, until_s: float | None = None) -> Panel:
    """What both arms got in each bin, each on a scale of its own."""
    looks = _thinned(_started(history))
    gutter = 190 if width_px >= WIDE_PX / 2 else 116
    frame = _Frame(left=58, right=width_px - gutter, top=44, bottom=150, until_s=_until(looks, until_s))
    units = f"{(looks[-1].plan.unit if looks else Unit.REQUEST).capitalize()}s"
    lines = [_text(0, 15, f"{units} per {BIN_MS // 1000} s", "name")]
    half = (frame.bottom - frame.top - 12) / 2
    for number, arm in enumerate(("baseline", "candidate")):
        floor = frame.top + half + number * (half + 12)
        bars = list(_per_bin(looks, arm))
        most = max((each for _, _, each in bars), default=0.0)
        for start, end, count in bars:
            if count > 0:
                x, tall = frame.x(start), half * count / most
                lines.append(_rect(x, floor - tall, max(frame.x(end) - x - 0.6, 0.6), tall, f"bar {arm}"))
        if not number:
            lines.append(_line(frame.left, floor, frame.right, floor, "grid"))
        if most > 0:
            lines.append(_text(frame.left - 7, floor - half + 9, f"{most:,.0f}", "tick", "end"))
        total = getattr(looks[-1].arms, arm) if looks else 0
        lines.append(_text(frame.right + 8, floor - half / 2 - 4, arm, f"label {arm}"))
        lines.append(_text(frame.right + 8, floor - half / 2 + 12, f"{total:,}", "tick"))
    lines += _time_axis(frame, looks)
    arms = looks[-1].arms if looks else None
    told = f"{arms.baseline:,} of the baseline, {arms.candidate:,} of the candidate." if arms else "None yet."
    return Panel(
        width=width_px, height=frame.bottom + 22, title=f"{units} of both arms", told=told, lines=tuple(lines)
    )


def _per_bin(looks: Sequence[Decision], arm: str) -> Iterator[tuple[float, float, float]]:
    """From when to when, and how many a bin; looks further apart than a bin are spread evenly."""
    before_s, before = 0.0, 0
    for at, look in enumerate(looks):
        now_s, now = look.elapsed_s, getattr(look.arms, arm)
        bins = (now_s - before_s) * 1000 / BIN_MS
        if bins > 0 and (at or bins <= 1):
            yield before_s, now_s, (now - before) / bins
        before_s, before = now_s, now


# --- Placing and spelling -----------------------------------------------------------------------


def spread(places: Sequence[float], apart: float, least: float, most: float) -> list[float]:
    """The places, moved as little as keeps them `apart` and between `least` and `most`, in their order."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    groups: list[tuple[float, list[int]]] = []
    for at in order:
        groups.append((min(max(places[at], least), most), [at]))
        while len(groups) > 1:
            (upper, above), (lower, below) = groups[-2:]
            if lower - upper >= apart * (len(above) + len(below)) / 2:
                break
            members = above + below
            middle = (upper * len(above) + lower * len(below)) / len(members)
            reach = apart * (len(members) - 1) / 2
            groups[-2:] = [(max(min(middle, most - reach), least + reach), members)]
    found = [0.0] * len(places)
    for middle, members in groups:
        for number, at in enumerate(members):
            found[at] = middle + apart * (number - (len(members) - 1) / 2)
    return found


def _shortened(text: str, columns: int) -> str:
    """Beginning and end of a long name: often it is the end that tells names apart."""
    if width(text) <= columns:
        return text
    end = text[-(columns // 2) :]
    return clip(text, max(columns - width(end), 2)) + end


def _moved(panel: Panel, x: float, y: float) -> str:
    return f'<g transform="translate({x:.1f} {y:.1f})">' + "\n".join(panel.lines) + "</g>"


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _rect(x: float, y: float, wide: float, high: float, kind: str) -> str:
    size = f'width="{max(wide, 0):.1f}" height="{max(high, 0):.1f}"'
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" {size}/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_said(text)}</text>'


def _said(text: str) -> str:
    return escaping.escape(visible(text))


STYLE = """
.chart { --ink: #1f2328; --paper: #fff; --dim: #59636e; --line: #e4e8ed; --axis: #8c959f; --band: #0969da;
  --safe: #1a7f37; --harmful: #cf222e; --undecided: #8a5a00; --s0: #8250df; --s1: #0969da; --s2: #bc4c00;
  --s3: #1b7c83; --s4: #bf3989; --s5: #7d6b00; --s6: #4b5bd0; --s7: #57606a;
  font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; font-variant-numeric: tabular-nums;
  fill: var(--ink); background: var(--paper); max-width: 100%; height: auto; display: block;
  overflow: visible; }
@media (prefers-color-scheme: dark) { .chart { --ink: #e6edf3; --paper: #0d1117; --dim: #9aa4ae;
  --line: #262c35; --axis: #6e7681; --band: #58a6ff; --safe: #3fb950; --harmful: #ff7b72;
  --undecided: #e3b341; --s0: #bc8cff; --s1: #58a6ff; --s2: #ffa657; --s3: #56d4dd; --s4: #ff9bce;
  --s5: #d8c94f; --s6: #9aa5ff; --s7: #afb8c1; } }
.chart text { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
.chart .name { font-weight: 600; font-size: 15px; }
.chart .dim, .chart .tick { fill: var(--dim); } .chart .tick { font-size: 12px; }
.chart .word, .chart .point { font-weight: 600; }
.chart .word.safe { fill: var(--safe); } .chart .word.undecided { fill: var(--undecided); }
.chart .word.harmful, .chart .limit { fill: var(--harmful); }
.chart .point { fill: var(--band); }
.chart .axis { stroke: var(--axis); } .chart .grid { stroke: var(--line); }
.chart .zero { stroke: var(--axis); }
.chart .margin { stroke: var(--harmful); stroke-width: 1.5; stroke-dasharray: 6 4; }
.chart .margin.safe { stroke: var(--safe); } .chart .limit.safe { fill: var(--safe); }
.chart .mark { stroke: var(--axis); stroke-dasharray: 2 4; }
.chart .refused { fill: var(--harmful); opacity: .07; }
.chart .warm { fill: var(--axis); opacity: .14; }
.chart .band { fill: var(--band); opacity: .2; }
.chart polyline { fill: none; stroke-linejoin: round; stroke-linecap: round; }
.chart .bound { stroke: var(--band); stroke-width: 1; opacity: .55; }
.chart .estimate { stroke: var(--band); stroke-width: 2.25; }
.chart .now { fill: var(--band); stroke: var(--paper); stroke-width: 1.5; }
.chart .ribbon.safe { fill: var(--safe); } .chart .ribbon.undecided { fill: var(--undecided); opacity: .45; }
.chart .ribbon.harmful { fill: var(--harmful); }
.chart .s0 { --own: var(--s0); } .chart .s1 { --own: var(--s1); } .chart .s2 { --own: var(--s2); }
.chart .s3 { --own: var(--s3); } .chart .s4 { --own: var(--s4); } .chart .s5 { --own: var(--s5); }
.chart .s6 { --own: var(--s6); } .chart .s7 { --own: var(--s7); } .chart .family { --own: var(--ink); }
.chart .series { stroke: var(--own); stroke-width: 1.75; } .chart .series.more { stroke-dasharray: 5 3; }
.chart .series.family { stroke-width: 3; } .chart .series.dry { opacity: .45; }
.chart .leader { stroke: var(--own); opacity: .6; } .chart .label { fill: var(--own, var(--ink)); }
.chart .label.family { font-weight: 600; }
.chart .crossing.harmful { stroke: var(--harmful); } .chart .crossing.safe { stroke: var(--safe); }
.chart .crossed { fill: var(--own); stroke: var(--paper); stroke-width: 1.5; }
.chart .crossed.family { fill: var(--harmful); }
.chart .bar.baseline { fill: var(--axis); } .chart .bar.candidate { fill: var(--band); }
.chart .label.candidate { fill: var(--band); }
"""
