"""A report as one HTML file: no network, no script, light and dark, also on a phone and read aloud."""

from __future__ import annotations

import html as escaping
from collections.abc import Iterable, Iterator, Sequence

from deploy_gates.core.gate import GateResult, Verdict
from deploy_gates.report.text import counted, listed, visible
from deploy_gates.report.values import (
    MARKS,
    CaseChange,
    Comparison,
    GateReport,
    RunReport,
    baseline_words,
    better_words,
    case_changes,
    comparison,
    digest_words,
    golden,
    spent_words,
    took_words,
    worse_words,
)

ROWS_MAX = 1_000
REASONS_MAX = 100
TEXT_MAX_CHARS = 4_000
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Whatever a text may smuggle in, the browser loads and runs nothing."""
_CLASSES = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "fail",
    Verdict.INCONCLUSIVE: "unknown",
    Verdict.SKIP: "skip",
}


def html(run: RunReport) -> str:
    """The report as one self-contained page."""
    names = listed(report.change.name for report in run.changes) or "nothing"
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{_said(f'{run.word}: {names}')} – deploy gates</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        *_header(run),
        "<main>",
        *(line for at, report in enumerate(run.changes) for line in _config(report, at)),
        "</main>",
        *_footer(run),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _header(run: RunReport) -> Iterator[str]:
    yield "<header>"
    yield "<h1>deploy gates</h1>"
    if len(run.changes) != 1:
        yield f"<p>{_badge(run.word, run.verdict)} {_said(run.conclusion)}</p>"
    notes = list(run.notes)
    if run.deleted:
        notes.append(f"{counted(len(run.deleted), 'config')} deleted: {listed(run.deleted)}")
    yield from (f'<p class="dim">{_prose(note)}</p>' for note in notes)
    yield "</header>"


def _footer(run: RunReport) -> Iterator[str]:
    started = f"{run.started_at:%Y-%m-%d %H:%M:%S %Z}"
    said = [f"compared with {run.base}"] if run.base else []
    said += [run.account, f"started {started}", f"pytest-deploy-gates {run.tool_version}"]
    if run.unchanged:
        said.append(f"{counted(len(run.unchanged), 'config')} unchanged: {listed(run.unchanged)}")
    yield f'<footer class="dim">{"<br>".join(map(_said, said))}</footer>'


def _config(report: GateReport, at: int) -> Iterator[str]:
    change = report.change
    was = f' <span class="dim">(was {_said(change.renamed_from)})</span>' if change.renamed_from else ""
    digests = (
        f"<code>{_said(baseline_words(change))}</code> → <code>{_said(digest_words(change.candidate))}</code>"
    )
    yield f'<article aria-labelledby="config-{at}">'
    yield f'<h2 id="config-{at}">{_said(change.name)}{was} <span class="digests">{digests}</span></h2>'
    yield f'<p class="dim file">{_said(change.candidate.config_file)}</p>'
    yield f'<p class="conclusion">{_badge(report.word, report.verdict)} {_said(report.conclusion)}</p>'
    yield from (f'<p class="hint"><b>hint:</b> {_prose(hint)}</p>' for hint in report.all_hints)
    yield from _gates(report.results)
    yield from _reasons(report.results)
    drawn = comparison(golden(report))
    if drawn is not None:
        yield from _picture(drawn, golden(report).verdict)
    yield from _cases(golden(report))
    yield from _fields(report)
    if report.evidence_path:
        yield f'<p class="dim file">evidence: {_said(report.evidence_path)}</p>'
    yield "</article>"


def _badge(word: str, verdict: Verdict) -> str:
    return f'<strong class="badge {_CLASSES[verdict]}">{word}</strong>'


# --- Tables -------------------------------------------------------------------------------------


def _gates(results: Sequence[GateResult]) -> Iterator[str]:
    rows = []
    for result in results:
        mark = f'<span class="{_CLASSES[result.verdict]}">{MARKS[result.verdict]} {result.verdict}</span>'
        measured, required = (
            "<br>".join(_prose(each) for each in lines if each)
            for lines in (result.measured, result.required)
        )
        rows.append([result.gate.value, mark, measured, required, took_words(result), spent_words(result)])
    heads = ("gate", "verdict", "measured", "required", "took", "spent")
    yield from _table("gates", "The five gates", heads, rows)


def _reasons(results: Sequence[GateResult]) -> Iterator[str]:
    for result in results:
        if not result.reasons:
            continue
        yield f"<h3>{result.gate}: {'why it blocks' if result.blocks else 'worth knowing'}</h3>"
        yield "<ul>"
        yield from (f"<li>{_prose(reason)}</li>" for reason in result.reasons[:REASONS_MAX])
        if len(result.reasons) > REASONS_MAX:
            yield f"<li>… {len(result.reasons) - REASONS_MAX:,} more</li>"
        yield "</ul>"


def _cases(result: GateResult) -> Iterator[str]:
    worse, better = case_changes(result, "worse"), case_changes(result, "better")
    if worse:
        yield from _folded(worse_words(worse, better), _case_table(worse, "Cases that got worse"), " open")
    if better:
        yield from _folded(better_words(better), _case_table(better, "Cases that got better"))


def _case_table(cases: Sequence[CaseChange], caption: str) -> Iterator[str]:
    rows = [list(map(_said, (each.case, each.field, each.expected, each.got))) for each in cases[:ROWS_MAX]]
    yield from _table("cases", caption, ("case", "field", "expected", "got"), rows)
    if len(cases) > ROWS_MAX:
        yield f"<p>… {len(cases) - ROWS_MAX:,} more in the JSON report</p>"


def _fields(report: GateReport) -> Iterator[str]:
    fields = report.change.fields
    if fields:
        rows = [list(map(_said, (each.key, each.baseline, each.candidate))) for each in fields[:ROWS_MAX]]
        table = _table("fields", "What changed", ("field", "baseline", "candidate"), rows)
        yield from _folded(f"{counted(len(fields), 'field')} changed", table, " open")


def _folded(summary: str, body: Iterable[str], state: str = "") -> Iterator[str]:
    yield f"<details{state}><summary>{_said(summary)}</summary>"
    yield from body
    yield "</details>"


def _table(kind: str, caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table; roles are spelled out because on a phone its rows are laid out as blocks."""
    yield f'<table class="{kind}" role="table"><caption>{caption}</caption>'
    cells = "".join(f'<th scope="col" role="columnheader">{head}</th>' for head in heads)
    yield f'<thead role="rowgroup"><tr role="row">{cells}</tr></thead><tbody role="rowgroup">'
    for first, *others in rows:
        cells = "".join(
            f'<td role="cell" data-head="{head}">{cell}</td>'
            if cell
            else '<td role="cell" class="none"></td>'
            for head, cell in zip(heads[1:], others, strict=True)
        )
        yield f'<tr role="row"><th scope="row" role="rowheader">{first}</th>{cells}</tr>'
    yield "</tbody></table>"


# --- The picture --------------------------------------------------------------------------------


def _picture(drawn: Comparison, verdict: Verdict) -> Iterator[str]:
    """The change and its interval as a bar, the margin as a line: a bar right of the line is a pass.

    Places are percentages, so that the picture stretches and its letters do not.
    """
    least, most = min(drawn.low_pt, -drawn.margin_pt, 0.0), max(drawn.high_pt, -drawn.margin_pt, 0.0)
    span = (most - least) or 1.0

    def x(points: float) -> str:
        return f"{18 + 64 * (points - least) / span:.2f}%"

    low, point, high, margin = x(drawn.low_pt), x(drawn.change_pt), x(drawn.high_pt), x(-drawn.margin_pt)
    sure = f"{drawn.confidence * 100:g} % sure"
    told = (
        f"The share of cases that pass changed by {_points(drawn.change_pt)}, between "
        f"{_points(drawn.low_pt)} and {_points(drawn.high_pt)} (each {sure}); "
        f"the margin is {_points(-drawn.margin_pt)}."
    )
    yield "<figure>"
    yield f'<svg role="img" aria-label="{told}" width="100%" height="108">'
    yield f'<line class="axis" x1="{x(0)}" x2="{x(0)}" y1="26" y2="84"/>'
    yield f'<text class="tick" x="{x(0)}" y="98" text-anchor="middle">no change</text>'
    yield f'<line class="margin" x1="{margin}" x2="{margin}" y1="20" y2="64"/>'
    yield f'<text x="{margin}" y="14" text-anchor="middle">margin {_points(-drawn.margin_pt)}</text>'
    yield f'<g class="{_CLASSES[verdict]}">'
    yield f'<line class="bar" x1="{low}" x2="{high}" y1="50" y2="50"/>'
    yield "".join(f'<line class="end" x1="{at}" x2="{at}" y1="43" y2="57"/>' for at in (low, high))
    yield f'<circle cx="{point}" cy="50" r="6"/>'
    yield "</g>"
    if drawn.low_pt != drawn.high_pt:
        yield f'<text x="{low}" y="78" text-anchor="end">{_points(drawn.low_pt)}</text>'
        yield f'<text x="{high}" y="78" text-anchor="start">{_points(drawn.high_pt)}</text>'
    yield f'<text class="point" x="{point}" y="38" text-anchor="middle">{_points(drawn.change_pt)}</text>'
    yield "</svg>"
    yield (
        f"<figcaption>Golden cases that pass, candidate against baseline, in points; better to the right. "
        f"Each end of the bar is {sure}; the gate passes when all of the bar is right of the margin."
        f"</figcaption></figure>"
    )


def _points(points: float) -> str:
    told = f"{points:+.1f} pt".replace("-", "−")
    return f"±{told[1:]}" if float(told[1:-3]) == 0 else told


# --- Spelling -----------------------------------------------------------------------------------


def _said(text: str) -> str:
    """`text` as nothing but text."""
    safe = visible(text)
    return escaping.escape(safe if len(safe) <= TEXT_MAX_CHARS else f"{safe[: TEXT_MAX_CHARS - 1]}…")


def _prose(text: str) -> str:
    """`text`, with what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _said(text)
    return "".join(f"<code>{_said(part)}</code>" if at % 2 else _said(part) for at, part in enumerate(parts))


STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --dim: #59636e; --line: #d1d9e0;
  --tint: #f6f8fa; --pass: #1a7f37; --fail: #cf222e; --unknown: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --dim: #9aa4ae;
  --line: #30363d; --tint: #161b22; --pass: #3fb950; --fail: #ff7b72; --unknown: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 3rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1rem; font-weight: 600; color: var(--dim); }
h2 { margin: 0; font-size: 1.5rem; line-height: 1.3; }
h3 { margin: 1.5rem 0 .25rem; font-size: 1rem; }
p { margin: .5rem 0; }
code { font: .9em ui-monospace, monospace; background: var(--tint); border-radius: 4px; padding: .1em .3em; }
article { margin-top: 1.5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
footer { margin-top: 2rem; padding-top: 1rem; border-top: 1px solid var(--line); }
ul { margin: .25rem 0; padding-left: 1.25rem; }
.dim, footer, figcaption, caption { color: var(--dim); font-size: .875rem; }
.file { margin: .125rem 0; }
.digests { font-size: 1rem; font-weight: 400; white-space: nowrap; }
.conclusion { font-size: 1.125rem; }
.badge { border: 1.5px solid currentColor; border-radius: 6px; padding: .05rem .5rem; margin-right: .25rem; }
.pass { color: var(--pass); } .fail { color: var(--fail); } .unknown { color: var(--unknown); }
.skip { color: var(--dim); }
.hint { border-left: 3px solid var(--line); padding-left: .75rem; }
table { width: 100%; border-collapse: collapse; margin: 1rem 0; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { text-align: left; vertical-align: top; padding: .375rem .75rem .375rem 0;
  border-top: 1px solid var(--line); }
thead th { font-size: .875rem; font-weight: 400; color: var(--dim); border-top: 0; }
tbody th { font-weight: 600; }
.gates td:nth-child(2) { white-space: nowrap; font-weight: 600; }
.gates :is(th, td):nth-child(n+5) { text-align: right; white-space: nowrap; }
.gates :is(th, td):last-child { padding-right: 0; }
.cases tbody, .fields tbody { font-size: .9rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
details caption { position: absolute; clip-path: inset(50%); height: 1px; width: 1px; overflow: hidden; }
details table { margin: .25rem 0; }
figure { margin: 1.5rem 0; padding: 1rem; background: var(--tint); border-radius: 8px; }
svg { display: block; font: .8125rem system-ui, sans-serif; fill: var(--ink); }
text { paint-order: stroke; stroke: var(--tint); stroke-width: 4px; }
.axis { stroke: var(--dim); } .tick { fill: var(--dim); } .point { font-weight: 600; }
.margin { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 4 3; }
.bar, .end { stroke: currentColor; stroke-width: 3; } circle { fill: currentColor; }
@media (max-width: 40rem) {
  thead { position: absolute; clip-path: inset(50%); height: 1px; width: 1px; overflow: hidden; }
  table, tbody, caption, tr { display: block; }
  tr { padding: .5rem 0; border-top: 1px solid var(--line); }
  th, td, .gates :is(th, td):nth-child(n) { display: block; border: 0; padding: 0; text-align: left;
    white-space: normal; }
  td.none { display: none !important; }
  td[data-head]::before { content: attr(data-head) " "; color: var(--dim); font-weight: 400; }
  .gates tr { display: flex; flex-wrap: wrap; column-gap: .75rem; }
  .gates td:nth-child(2)::before { content: none; }
  .gates td:nth-child(3), .gates td:nth-child(4) { width: 100%; }
}
"""
