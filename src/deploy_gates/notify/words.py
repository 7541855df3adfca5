"""What an event is to people: a line, a message, and the comment on a pull request that grows with each.

What configs, commits, and people say is spelled in entities where Markdown is read: it cannot mention
anybody, link anywhere, or end a table.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from deploy_gates.core.canonical import Json, JsonObject, short
from deploy_gates.notify.events import data_of, kind_of, time_of
from deploy_gates.report.text import visible

TITLE_MAX = 140
"""GitHub cuts the description of a status here; a title longer than that helps nobody."""
TEXT_MAX = 2_000
SHOWN_MAX = 50
"""So many events a comment lists."""
ENDS = {
    "shipped": "✓",
    "blocked": "✗",
    "rolled-back": "✗",
    "superseded": "–",
    "aborted": "–",
}
"""How a promotion may end, and its mark."""
_MARKED = {"promotion.held": "…", **{f"promotion.{each}": mark for each, mark in ENDS.items()}}
_SPECIAL = re.compile(r"[!#$&*<>@\[\\\]^_`|~]|:(?=//)|(?<=www)\.")


def end(event: JsonObject) -> str:
    """How the promotion has ended, as the event says: `rolled-back`; empty: it has not."""
    kind = kind_of(event).removeprefix("promotion.")
    return kind if kind in ENDS else ""


def title(event: JsonObject) -> str:
    """One line: `ticket-triage 8a41d07 shipped to production`."""
    data = data_of(event)
    name = f"{data['config']} {short(str(data['digest']))}"
    return _cut(f"{name} {_happened(event)}", TITLE_MAX)


def said(event: JsonObject) -> str:
    """What came of it, in one sentence; `title` where nothing more is said."""
    return _cut(str(data_of(event).get("said") or "") or title(event), TITLE_MAX)


def text(event: JsonObject) -> str:
    """A message of some lines, for chats and mail and tickets."""
    data = data_of(event)
    lines = [str(data.get("said") or "")]
    if data.get("hint"):
        lines.append(f"next: {data['hint']}")
    lines += figures(data)
    lines.append(f"change: {data['reason'] or short(str(data['digest']))}, by {data['actor']}")
    if data.get("commit"):
        lines.append(f"commit: {short(str(data['commit']))}")
    if data.get("evidence"):
        lines.append(f"evidence: {short(str(data['evidence']))}")
    if data.get("url"):
        lines.append(str(data["url"]))
    return _cut("\n".join(visible(each) for each in lines if each), TEXT_MAX)


def figures(data: JsonObject) -> list[str]:
    """The metrics of a canary, a line each: `latency: baseline 0.793, candidate 0.984, harmful`."""
    found = data.get("figures")
    metrics = found.get("metrics") if isinstance(found, dict) else None
    lines: dict[str, str] = {}
    for each in metrics if isinstance(metrics, list) else ():
        if isinstance(each, dict):  # the first reading of a metric speaks for it
            name = str(each.get("metric"))
            arms = f"baseline {_number(each.get('baseline'))}, candidate {_number(each.get('candidate'))}"
            lines.setdefault(name, f"{name}: {arms}, {each.get('word')}")
    return list(lines.values())


def comment(events: Sequence[JsonObject]) -> str:
    """The promotion so far, in GitHub's Markdown. `events` are those of one promotion, in order."""
    last = events[-1]
    data = data_of(last)
    mark = _MARKED.get(kind_of(last), "●")
    lines = [
        marker(last),
        f"### {mark} {literal(title(last))}",
        "",
        "| when (UTC) | where | what |",
        "| --- | --- | --- |",
    ]
    if len(events) > SHOWN_MAX:
        lines.append(f"| … | | {len(events) - SHOWN_MAX} more before |")
    for each in events[-SHOWN_MAX:]:
        about = data_of(each)
        cells = (
            f"{time_of(each):%H:%M:%S}",
            str(about.get("environment") or ""),
            _MARKED.get(kind_of(each), "") + f" {literal(_told(each))}",
        )
        lines.append(f"| {' | '.join(each.strip() for each in cells)} |")
    measured = [f"- {literal(each)}" for each in figures(data)]
    lines += ["", *measured, ""] if measured else [""]
    parts = [f"`{short(str(data['digest']))}`"]
    if data.get("evidence"):
        parts.append(f"evidence `{short(str(data['evidence']))}`")
    if data.get("url"):
        parts.append(f"[promotion {data['promotion']}]({data['url']})")
    lines.append(f"<sub>{' · '.join(parts)}</sub>")
    return "\n".join(lines) + "\n"


def tag(event: JsonObject) -> str:
    """A word that belongs to this promotion, or move, and to no other."""
    whole = f"{event['source']} {data_of(event)['key']}"
    return f"deploy-gates-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"


def marker(event: JsonObject) -> str:
    """By this a comment or an issue is found again: nobody sees it."""
    return f"<!-- {tag(event)} -->"


def literal(said: str) -> str:
    """`said` as nothing but text, wherever Markdown is read."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};&#8203;", visible(said))


def literal_lines(said: str) -> str:
    """Several lines as nothing but text, each on a line of its own."""
    return "  \n".join(literal(each) for each in said.splitlines())


def _happened(event: JsonObject) -> str:
    """What has happened, as the predicate of a sentence."""
    data, kind = data_of(event), kind_of(event)
    where = str(data.get("environment") or "")
    match kind.removeprefix("promotion."):
        case "proposed":
            return f"is on its way to {data['until']}"
        case "moved" if data.get("move") == "canary":
            return f"is the canary in {where}, for {_percent(data.get('weight_bp'))}"
        case "moved" if data.get("move") == "rollback":
            return f"is rolled back in {where}"
        case "moved":
            return f"is in {where}"
        case "verified":
            return f"meets its smoke cases in {where}" if data["is_met"] else f"misses smoke cases in {where}"
        case "decided":
            return "may go to everybody" if data["is_met"] else "is worse than the baseline"
        case "held":
            return f"is held{f' in {where}' if where else ''}"
        case "shipped":
            return f"shipped to {where}"
        case "deployment.moved":
            return f"moved by hand in {where}: {data['move']}, r{data['revision']}"
        case ended:
            return f"{ended.replace('-', ' ')}{f' in {where}' if where else ''}"


def _told(event: JsonObject) -> str:
    """What has happened, beside where."""
    data = data_of(event)
    told = str(data.get("said") or _happened(event))
    if end(event):
        return f"{end(event).replace('-', ' ')}: {told}"
    if data.get("move") == "promote":
        return f"everybody gets it: {told}"
    if data.get("move") == "rollback" and data.get("serves"):
        return f"everybody gets {short(str(data['serves']))} again"
    return told


def _percent(weight_bp: Json) -> str:
    return f"{weight_bp / 100:g} %" if isinstance(weight_bp, int | float) else "a share"


def _number(value: Json) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
