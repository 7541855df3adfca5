"""A report in GitHub's Markdown: a comment on a pull request, or the summary of a job.

Whatever a config, a case, or a model says is spelled in entities: it cannot end a table, start a tag, mention
somebody, or link anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from deploy_gates.core.gate import SEVERITY, GateResult
from deploy_gates.report.text import counted, listed, visible
from deploy_gates.report.values import (
    MARKS,
    CaseChange,
    GateReport,
    RunReport,
    baseline_words,
    better_words,
    case_changes,
    digest_words,
    golden,
    spent_words,
    took_words,
    worse_words,
)

MARKER = "<!-- deploy-gates -->"
"""First of all: a bot finds its own comment by it, and changes that instead of adding another."""
MAX_CHARS = 60_000
"""GitHub refuses comments of more than 65,536 characters."""
TEXT_MAX_CHARS = 500
_LAST_WORDS_CHARS = 1_000
_ROWS = (100, 20, 5, 0)


def markdown(run: RunReport) -> str:
    """The report as a comment of at most 60,000 characters: where it is too long, cases go first."""
    for rows in _ROWS:
        sections = [_section(report, rows) for report in _worst_first(run.changes)]
        if sum(map(len, sections)) <= MAX_CHARS - len(_head(run)) - _LAST_WORDS_CHARS:
            break
    made, room = _head(run), MAX_CHARS - _LAST_WORDS_CHARS
    for at, section in enumerate(sections):
        if len(made) + len(section) >= room:
            made += f"\n{counted(len(sections) - at, 'more config')} would not fit into a comment.\n"
            break
        made += f"{section}\n"
    return f"{made}\n<sub>{_said(_origin(run))}</sub>\n"


def _worst_first(reports: Iterable[GateReport]) -> list[GateReport]:
    return sorted(reports, key=lambda report: -SEVERITY.index(report.verdict))


def _head(run: RunReport) -> str:
    lines = [MARKER]
    if len(run.changes) != 1:
        lines.append(f"**{run.word}**: {_said(run.conclusion)}\n")
    lines += [f"> note: {_prose(note)}\n" for note in run.notes[:20]]
    if run.deleted:
        lines.append(f"> {counted(len(run.deleted), 'config')} deleted: {_said(listed(run.deleted))}\n")
    return "\n".join(lines) + "\n"


def _origin(run: RunReport) -> str:
    base = f"compared with {run.base}; " if run.base else ""
    version = f"; pytest-deploy-gates {run.tool_version}" if run.tool_version else ""
    return f"{base}{run.account}{version}"


def _section(report: GateReport, rows: int) -> str:
    change = report.change
    title = f"{_said(change.name)} {_code(baseline_words(change))} → {_code(digest_words(change.candidate))}"
    lines = [
        f"## {MARKS[report.verdict]} {report.word}: {title}",
        "",
        f"**{_said(report.conclusion)}**",
        "",
        "| gate | verdict | measured | required | took | spent |",
        "| --- | --- | --- | --- | ---: | ---: |",
        *(_row(result) for result in report.results),
        "",
        *_reasons(report),
        *_cases(golden(report), rows),
        *_fields(report, rows),
        *(f"**hint:** {_prose(hint)}\n" for hint in report.all_hints),
    ]
    if report.evidence_path:
        lines.append(f"<sub>evidence: {_code(report.evidence_path)}</sub>\n")
    return "\n".join(lines)


def _row(result: GateResult) -> str:
    cells = [
        result.gate.value,
        f"{MARKS[result.verdict]} {result.verdict}",
        "<br>".join(map(_prose, result.measured)),
        "<br>".join(map(_prose, filter(None, result.required))),
        took_words(result),
        _said(spent_words(result)),
    ]
    return f"| {' | '.join(cells)} |"


def _reasons(report: GateReport) -> Iterator[str]:
    blocking = [result for result in report.results if result.blocks and result.reasons]
    for result in blocking:
        for reason in result.reasons[:5]:
            yield f"- **{result.gate}:** {_prose(reason)}"
        if len(result.reasons) > 5:
            yield f"- … {len(result.reasons) - 5:,} more"
    if blocking:
        yield ""


def _cases(result: GateResult, rows: int) -> Iterator[str]:
    worse, better = case_changes(result, "worse"), case_changes(result, "better")
    if worse:
        yield from _folded(worse_words(worse, better), _case_table(worse, rows))
    if better:
        yield from _folded(better_words(better), _case_table(better, rows))


def _case_table(cases: Sequence[CaseChange], rows: int) -> Iterator[str]:
    if rows:
        yield "| case | field | expected | got |"
        yield "| --- | --- | --- | --- |"
    for each in cases[:rows]:
        yield f"| {' | '.join(map(_code, (each.case, each.field, each.expected, each.got)))} |"
    if len(cases) > rows:
        yield f"\n… {len(cases) - rows:,} more in the report files"


def _fields(report: GateReport, rows: int) -> Iterator[str]:
    fields = report.change.fields
    if not fields:
        return
    table = ["| field | baseline | candidate |", "| --- | --- | --- |"]
    table += [
        f"| {_code(each.key)} | {_code(each.baseline)} | {_code(each.candidate)} |" for each in fields[:rows]
    ]
    if len(fields) > rows:
        table.append(f"\n… {len(fields) - rows:,} more")
    yield from _folded(f"{counted(len(fields), 'field')} changed", table)


def _folded(summary: str, body: Iterable[str]) -> Iterator[str]:
    yield f"<details><summary>{_said(summary)}</summary>\n"
    yield from body
    yield "\n</details>\n"


# --- Spelling -----------------------------------------------------------------------------------

_SPECIAL = re.compile(r"[!#$&*<>@\[\\\]^_`|~]|:(?=//)|(?<=www)\.")
_BREAKS = frozenset("@#:.")
"""What GitHub makes mentions and links of, even when spelled as an entity: a zero-width space prevents it."""


def _said(text: str) -> str:
    """`text` as nothing but text."""
    return _SPECIAL.sub(_broken, _short(text))


def _code(text: str) -> str:
    """`text` in the typeface of code, where GitHub neither mentions nor links."""
    return f"<code>{_SPECIAL.sub(_entity, _short(text))}</code>" if text else ""


def _prose(text: str) -> str:
    """`text`, with what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _said(text)
    return "".join(_code(part) if at % 2 else _said(part) for at, part in enumerate(parts))


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};"


def _broken(match: re.Match[str]) -> str:
    return _entity(match) + ("&#8203;" if match[0] in _BREAKS else "")


def _short(text: str) -> str:
    safe = visible(text)
    return safe if len(safe) <= TEXT_MAX_CHARS else f"{safe[: TEXT_MAX_CHARS - 1]}…"
