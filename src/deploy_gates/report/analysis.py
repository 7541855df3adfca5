"""A canary's analysis as one HTML file: the decision first, then what it rests on, down to every look."""

from __future__ import annotations

import base64
import csv
import html as escaping
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from deploy_gates.core.canary import Action, Aspect, Decision, Reading, Word
from deploy_gates.core.canonical import Json
from deploy_gates.report import chart, quantities
from deploy_gates.report.quantities import figures, odds, span
from deploy_gates.report.text import counted, listed, visible

LOOKS_MAX = 720
"""Looks of which the page holds the numbers: an hour; of a longer canary, the last hour."""
TEXT_MAX_CHARS = 2_000
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Whatever a text may smuggle in, the browser loads and runs nothing."""
_VERDICTS = {
    Action.CONTINUE: ("STILL WATCHING", "undecided"),
    Action.PROMOTE: ("PROMOTE", "safe"),
    Action.ROLLBACK: ("ROLL BACK", "harmful"),
    Action.HOLD: ("HOLD", "undecided"),
}
_MARKS = {Word.SAFE: "✓", Word.UNDECIDED: "?", Word.HARMFUL: "✗"}
_HEADS = (
    "metric",
    "so far",
    "baseline",
    "candidate",
    "change",
    "at any time",
    "margin",
    "evidence",
    "seen",
    "needed",
    "weight",
)


def page(history: Sequence[Decision], *, title: str, subtitle: str = "", footer: str = "") -> str:
    """The report of all looks of a canary; `title` and `subtitle` say whose it is."""
    word = _VERDICTS[history[-1].action][0] if history else "NOTHING YET"
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{_said(f'{word}: {title}')} – deploy gates</title>",
        f"<style>{chart.STYLE}{_STYLE}</style>",
        "</head>",
        "<body>",
        *_header(history, title, subtitle),
        "<main>",
        *(_body(history) if history else ["<p>No look was taken yet.</p>"]),
        "</main>",
        *([f'<footer class="dim">{_said(footer)}</footer>'] if footer else []),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def fragment(history: Sequence[Decision]) -> str:
    """All looks of a canary as a part of another page, which has `FRAGMENT_STYLE`: tables and pictures."""
    last = history[-1]
    told = chart.charted(history)
    lines = [
        '<div class="analysis">',
        *_decided(last),
        *_table(last, told, "What is judged; bars in margins, better to the right"),
        *_warm_up(last),
        '<div class="panels">',
        *(
            f"<figure>{_drawn(chart.intervals(history, each, chart.NARROW_PX), f'metric-{at}')}</figure>"
            for at, each in enumerate(told)
        ),
        "</div>",
        *_both_widths("harm", chart.evidence, history),
        *_both_widths("safety", chart.proofs, history),
        *_both_widths("traffic", chart.traffic, history),
        *_reading_aid(last),
        "</div>",
    ]
    return "\n".join(lines)


def _header(history: Sequence[Decision], title: str, subtitle: str) -> Iterator[str]:
    yield "<header>"
    yield f'<p class="kind">canary analysis</p><h1>{_said(title)}</h1>'
    if subtitle:
        yield f'<p class="dim">{_said(subtitle)}</p>'
    if history:
        yield from _decided(history[-1])
    yield "</header>"


def _decided(last: Decision) -> Iterator[str]:
    word, kind = _VERDICTS[last.action]
    yield f'<section class="decision {kind}"><strong class="badge">{word}</strong>'
    yield f"<p>{_said(last.reason)}</p>"
    explained = quantities.explained(last) if last.action is Action.ROLLBACK else ""
    if explained:
        yield f'<p class="why">{_said(explained)}</p>'
    yield from (
        f'<p class="why">missing: {_said(each)}</p>' for each in last.missing if each not in last.reason
    )
    yield "</section>"
    yield '<dl class="facts">'
    yield from (f"<div><dt>{head}</dt><dd>{_said(said)}</dd></div>" for head, said in _facts(last))
    yield "</dl>"


def _facts(last: Decision) -> Iterator[tuple[str, str]]:
    arms = last.arms
    yield "time", span(last.elapsed_s)
    yield "the candidate answered", f"{arms.candidate:,} of {arms.baseline + arms.candidate:,}"
    yield "evidence of harm", odds(last.log_e)
    yield "rolls back at", odds(last.log_e_limit)
    if last.next_mark_s is not None and not last.has_ended:
        yield "next mark", span(last.next_mark_s)
    if last.needed is not None and not last.has_ended:
        yield "still needed", f"about {last.needed:,}"
    if arms.unfinished:
        yield "never came back", f"{arms.unfinished:,}"
    if arms.dropped:
        yield "outcomes lost", f"{arms.dropped:,}"


def _body(history: Sequence[Decision]) -> Iterator[str]:
    last = history[-1]
    told = chart.charted(history)
    yield "<h2>Metrics</h2>"
    yield from _table(last, told, "What is judged; bars in margins, better to the right")
    yield from _warm_up(last)
    rest = [each for each in last.readings if each not in told]
    if rest:
        yield f"<details><summary>{counted(len(rest), 'more aspect')}, shown and not judged</summary>"
        yield from _table(last, rest, "Further aspects")
        yield "</details>"
    yield "<h2>How it came to this</h2>"
    yield from _both_widths("harm", chart.evidence, history)
    yield from _both_widths("safety", chart.proofs, history)
    yield '<div class="panels">'
    for at, each in enumerate(told):
        panel = chart.intervals(history, each, chart.NARROW_PX)
        yield f"<figure>{_drawn(panel, f'metric-{at}')}</figure>"
    yield "</div>"
    yield from _both_widths("traffic", chart.traffic, history)
    yield from _reading_aid(last)
    yield from _downloads(history)


def _both_widths(
    name: str, draw: Callable[[Sequence[Decision], float], chart.Panel], history: Sequence[Decision]
) -> Iterator[str]:
    """Once for a page and once for a phone; the style shows the one that fits."""
    for kind, width_px in (("wide", chart.WIDE_PX), ("slim", chart.NARROW_PX)):
        yield f'<figure class="{kind}">{_drawn(draw(history, width_px), f"{name}-{kind}")}</figure>'


def _drawn(panel: chart.Panel, name: str) -> str:
    return chart.element(panel, name=name, style=False)


def _warm_up(last: Decision) -> Iterator[str]:
    plan = last.plan
    late = [each.name for each in plan.metrics if each.warm_up]
    if plan.warm_up_s > 0 and late:
        excluded = counted(last.arms.excluded, plan.unit)
        verb = "leaves" if len(late) == 1 else "leave"
        said = f"{listed(late)} {verb} out the warm-up: the first {span(plan.warm_up_s)}, {excluded}"
        yield f'<p class="dim">{_said(said)} of the candidate.</p>'


# --- Tables -------------------------------------------------------------------------------------


def _table(last: Decision, readings: Sequence[Reading], caption: str) -> Iterator[str]:
    """Roles are spelled out because on a phone its rows are laid out as blocks."""
    yield f'<table role="table"><caption>{caption}</caption>'
    cells = "".join(f'<th scope="col" role="columnheader">{head}</th>' for head in _HEADS)
    yield f'<thead role="rowgroup"><tr role="row">{cells}</tr></thead><tbody role="rowgroup">'
    for at, reading in enumerate(readings):
        is_first = not at or readings[at - 1].metric != reading.metric
        first, *others = _cells(last, reading, is_first=is_first)
        row = "".join(
            f'<td role="cell" class="c{number}{_NONE if cell == "–" else ""}" data-head="{head}">{cell}</td>'
            for number, (head, cell) in enumerate(zip(_HEADS[1:], others, strict=True), 2)
        )
        kind = "" if is_first else ' class="aspect"'
        yield f'<tr role="row"{kind}><th scope="row" role="rowheader">{first}</th>{row}</tr>'
    yield "</tbody></table>"


def _cells(last: Decision, reading: Reading, *, is_first: bool) -> Iterator[str]:
    both = figures(reading)
    metric = quantities.planned(last, reading)
    aspect = quantities.aspect_words(reading.aspect)
    dry = '<span class="dry">dry run</span>' if reading.dry_run else ""
    said = f'{_said(reading.metric)} <span class="sub">{aspect}</span>' if aspect else _said(reading.metric)
    yield f"{said} {dry}".strip()
    yield f'<span class="word {reading.word}">{_MARKS[reading.word]} {reading.word}</span>'
    median = '<span class="sub">median </span>' if reading.aspect is Aspect.SHAPE else ""
    yield median + _said(both.baseline)
    yield _said(both.candidate)
    yield _said(both.change)
    yield f'{_bar(last, reading)}<span class="sub">{_said(quantities.interval_words(reading))}</span>'
    yield _said(quantities.margin_words(last, reading))
    safe = f"{odds(reading.log_e_safe)} safe" if reading.margin_ratio is not None else ""
    harm = odds(reading.log_e_harm)
    yield f'{_said(harm)}<span class="sub"> harm</span> <span class="sub own">{_said(safe)}</span>'
    yield f"{reading.seen_candidate:,}"
    yield f"{reading.needed:,}" if reading.needed is not None else "–"
    yield f"{metric.weight:g}" if metric is not None and is_first and not reading.dry_run else "–"


_NONE = " none"
_BAR_PX, _BAR_HIGH_PX = 168, 22
_WORST, _BEST = -1.6, 1.1


def _bar(last: Decision, reading: Reading) -> str:
    """The interval in margins, better to the right, with lines for the margin and for no difference."""
    margin = quantities.scale(last, reading)

    def x(ratio: float | None, unknown: float) -> float:
        if ratio is None or math.isnan(ratio) or margin is None:
            place = unknown
        elif ratio <= 0 or math.isinf(ratio):
            place = _BEST if ratio <= 0 else _WORST
        else:
            place = -math.log(ratio) / math.log(margin)
        return (min(max(place, _WORST), _BEST) - _WORST) / (_BEST - _WORST) * _BAR_PX

    refused, zero = x(margin, -1.0), x(1.0, 0.0)
    middle = _BAR_HIGH_PX / 2
    parts = [
        f'<svg class="chart bar" aria-hidden="true" viewBox="-4 0 {_BAR_PX + 8} {_BAR_HIGH_PX}" '
        f'width="{_BAR_PX + 8}" height="{_BAR_HIGH_PX}">',
        f'<rect class="refused" x="0" y="1" width="{refused:.1f}" height="{_BAR_HIGH_PX - 2}"/>',
        f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="1" y2="{_BAR_HIGH_PX - 1}"/>',
        f'<line class="margin" x1="{refused:.1f}" x2="{refused:.1f}" y1="1" y2="{_BAR_HIGH_PX - 1}"/>',
    ]
    if margin is not None and (
        reading.ratio is not None or reading.low is not None or reading.high is not None
    ):
        left, right = x(reading.high, _WORST), x(reading.low, _BEST)
        kind = f"{reading.word}{' open' if reading.low is None or reading.high is None else ''}"
        parts.append(
            f'<line class="reach {kind}" x1="{left:.1f}" x2="{max(right, left + 1):.1f}" '
            f'y1="{middle}" y2="{middle}"/>'
        )
        if reading.ratio is not None:
            parts.append(
                f'<circle class="{reading.word}" cx="{x(reading.ratio, 0):.1f}" cy="{middle}" r="4.5"/>'
            )
    return "".join([*parts, "</svg>"])


# --- What helps to read it, and the numbers -----------------------------------------------------


def _reading_aid(last: Decision) -> Iterator[str]:
    plan = last.plan
    said = [
        f"The band holds the true change at all times together with {plan.confidence * 100:g} % confidence: "
        f"looking as often as one likes is allowed.",
        f"A candidate that is no worse is rolled back in at most {plan.false_rollback * 100:g} % of "
        f"canaries, over all metrics and looks; one that is worse by a margin is promoted in at most "
        f"{plan.false_promotion * 100:g} %.",
        "Safe: proved to be no worse than the margin. Harmful: proved to be worse than the baseline. "
        "Undecided: neither, yet; that alone promotes nothing.",
        "Evidence is an e-value: how many to 1 one would have won by betting against “no worse”, or for "
        "safety against “worse by the margin”. "
        "Each metric is drawn by its strongest aspect; all together is the weighted mean, which decides.",
        "Requests are compared with those of the same five seconds only, so that common drift and steps of "
        "traffic are not mistaken for a difference.",
    ]
    yield "<details><summary>How to read this</summary><ul>"
    yield from (f"<li>{_said(each)}</li>" for each in said)
    yield "</ul></details>"


def _downloads(history: Sequence[Decision]) -> Iterator[str]:
    kept = history[-LOOKS_MAX:]
    looks = counted(len(kept), "look")
    of = f" (the last of {len(history):,})" if len(kept) < len(history) else ""
    yield f'<p class="data">The numbers of {looks}{of}: '
    yield f"{_link('canary.csv', 'text/csv', table_csv(kept))} · "
    yield f"{_link('canary.json', 'application/json', looks_json(kept))}</p>"


def _link(name: str, kind: str, content: str) -> str:
    coded = base64.b64encode(content.encode()).decode()
    return f'<a download="{name}" href="data:{kind};base64,{coded}">{name}</a>'


def looks_json(history: Iterable[Decision]) -> str:
    """Every look, as `--json` has it."""
    return json.dumps([_finite(each.to_json()) for each in history], separators=(",", ":"), allow_nan=False)


def table_csv(history: Iterable[Decision]) -> str:
    """A row a look and reading."""
    written = io.StringIO()
    rows = csv.writer(written)
    heads = ["at_s", "action", "requests_baseline", "requests_candidate", "log10_e", "metric", "aspect"]
    fields = ["baseline", "candidate", "ratio", "low", "high", "margin_ratio", "log10_e_harm", "log10_e_safe"]
    rows.writerow([*heads, *fields, "word", "seen_baseline", "seen_candidate", "needed", "dry_run"])
    for look in history:
        front = [look.elapsed_s, look.action.value, look.arms.baseline, look.arms.candidate]
        for each in look.readings:
            numbers = [each.baseline, each.candidate, each.ratio, each.low, each.high, each.margin_ratio]
            evidence = [round(value / math.log(10), 4) for value in (each.log_e_harm, each.log_e_safe)]
            rows.writerow(
                [
                    *front,
                    round(look.log_e / math.log(10), 4),
                    visible(each.metric),
                    each.aspect.value,
                    *("" if number is None else f"{number:.6g}" for number in numbers),
                    *evidence,
                    each.word.value,
                    each.seen_baseline,
                    each.seen_candidate,
                    "" if each.needed is None else each.needed,
                    int(each.dry_run),
                ]
            )
    return written.getvalue()


def _finite(value: Json) -> Json:
    """JSON has no word for infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


def _said(text: str) -> str:
    """`text` as nothing but text."""
    safe = visible(text)
    return escaping.escape(safe if len(safe) <= TEXT_MAX_CHARS else f"{safe[: TEXT_MAX_CHARS - 1]}…")


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --dim: #59636e; --line: #d1d9e0;
  --tint: #f6f8fa; --safe: #1a7f37; --harmful: #cf222e; --undecided: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --dim: #9aa4ae;
  --line: #30363d; --tint: #161b22; --safe: #3fb950; --harmful: #ff7b72; --undecided: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 3rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.kind { margin: 0; font-weight: 600; color: var(--dim); font-size: .875rem; }
h1 { margin: 0; font-size: 1.5rem; line-height: 1.3; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.125rem; }
p { margin: .5rem 0; }
.dim, .sub, caption { color: var(--dim); font-size: .875rem; font-weight: 400; }
.decision { margin: 1.25rem 0; padding: .875rem 1.125rem; border-radius: 10px; background: var(--tint);
  border-left: 6px solid var(--own); font-size: 1.125rem; }
.decision p { margin: .25rem 0; } .decision .why { font-size: 1rem; }
.decision.safe { --own: var(--safe); } .decision.harmful { --own: var(--harmful); }
.decision.undecided { --own: var(--undecided); }
.badge { color: var(--own); letter-spacing: .02em; }
.facts { display: flex; flex-wrap: wrap; gap: .75rem 2.5rem; margin: 1rem 0; }
.facts dt { color: var(--dim); font-size: .875rem; } .facts dd { margin: 0; font-size: 1.25rem; }
table { width: 100%; border-collapse: collapse; margin: .5rem 0; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { text-align: right; vertical-align: top; padding: .5rem 0 .5rem .875rem; white-space: nowrap;
  border-top: 1px solid var(--line); }
thead th { font-size: .875rem; font-weight: 400; color: var(--dim); border-top: 0; vertical-align: bottom; }
tbody th, th:first-child, td.c2, td.c6, th:nth-child(6) { text-align: left; }
th:first-child { padding-left: 0; }
tbody th { font-weight: 600; white-space: normal; min-width: 7rem; }
tr.aspect > * { border-top: 0; padding-top: .125rem; } tr.aspect th { font-weight: 400; }
.word { font-weight: 600; }
.word.safe { color: var(--safe); } .word.harmful { color: var(--harmful); }
.word.undecided { color: var(--undecided); }
.c6 .sub, .sub.own { display: block; }
.dry { font-size: .75rem; font-weight: 400; color: var(--dim); border: 1px solid var(--line);
  border-radius: 4px; padding: 0 .3rem; white-space: nowrap; }
.chart.bar { background: none; }
.bar .reach { stroke-width: 5; stroke-linecap: round; opacity: .55; } .bar .reach.open { opacity: .3; }
.bar .safe { stroke: var(--safe); } .bar .harmful { stroke: var(--harmful); }
.bar .undecided { stroke: var(--undecided); }
.bar circle { stroke-width: 0 !important; }
.bar circle.safe { fill: var(--safe); } .bar circle.harmful { fill: var(--harmful); }
.bar circle.undecided { fill: var(--undecided); }
figure { margin: 1.5rem 0; } figure .chart { width: 100%; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.75rem 2.5rem; } .panels figure { margin: 0; } .panels .chart { max-width: 36rem; }
.slim { display: none; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
details caption { position: absolute; clip-path: inset(50%); height: 1px; width: 1px; overflow: hidden; }
ul { margin: .25rem 0; padding-left: 1.25rem; }
a { color: inherit; } footer { margin-top: 2rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media (max-width: 66rem) {
  thead { position: absolute; clip-path: inset(50%); height: 1px; width: 1px; overflow: hidden; }
  table, tbody, caption { display: block; }
  tbody tr { display: flex; flex-wrap: wrap; gap: .125rem 1.25rem; padding: .625rem 0;
    border-top: 1px solid var(--line); align-items: baseline; }
  tbody :is(th, td) { display: block; border: 0; padding: 0 !important; text-align: left;
    white-space: normal; }
  tbody th { min-width: 0; } tbody td.none { display: none; } .sub.own { display: inline; }
  td[data-head]:not(.c2, .c6)::before { content: attr(data-head) " "; color: var(--dim); font-size: .875rem; }
  td.c6 { width: 100%; display: flex; flex-wrap: wrap; gap: 0 .75rem; align-items: center; }
}
@media (max-width: 52rem) { .wide { display: none; } .slim { display: block; max-width: 36rem; } }
@media print {
  body { max-width: none; padding: 0; font-size: .8rem; }
  figure, tr, .decision, .facts { break-inside: avoid; } .data, details:not([open]) { display: none; }
}
"""

FRAGMENT_STYLE = f"{chart.STYLE}.analysis {{{_STYLE}}}"
"""For a page that has a `fragment`; its colours are those variables of the page that are named as here."""
