"""What runs where, and what was done: the screens of `status` and `log`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from deploy_gates.core.canonical import short
from deploy_gates.core.promotion import Deployment, Event, Kind, Standing
from deploy_gates.report.text import ascii_only, clip, counted, pad, visible, wrap

_GREEN, _RED, _YELLOW, _DIM, _BOLD = "32", "31", "33", "2", "1"
WIDTH_MIN = 80
_INDENT, _WHAT, _LOG_WIDTH = 43, 28, 96
"""Columns of the log: where it says what was done, how much room that has, what all of it takes."""
NAME_MAX = 20
"""Columns of a config's name; longer ones are clipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terminal:
    """What a screen can show."""

    width: int = 96
    color: bool = False
    unicode: bool = True

    def said(self, text: str) -> str:
        """`text` as it can be shown; whatever somebody wrote passes through here."""
        safe = visible(text)
        return safe if self.unicode else ascii_only(safe)

    def ink(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self.color and text else text


def status(
    standings: Sequence[Standing],
    terminal: Terminal,
    *,
    now: datetime,
    config: str = "",
    environment: str = "",
) -> list[str]:
    """What each environment serves, since when, by whom, and which clients follow."""
    if not standings:
        return [_nothing(config, environment, terminal)]
    names = max(len("config"), *(len(each.deployment.config) for each in standings))
    columns = (min(names, NAME_MAX) + 2, 14, 26)
    heads = ("config", "environment", "serves", "since")
    lines = ["", "  " + terminal.ink(_row(terminal, heads, columns), _DIM)]
    for config, group in groupby(standings, key=lambda each: each.deployment.config):
        title = config
        for each in group:
            lines += _standing(each, title, columns, terminal, now)
            title = ""
    return [*lines, ""]


def _nothing(config: str, environment: str, terminal: Terminal) -> str:
    of, to = f" of {terminal.said(config)}" * bool(config), f" to {environment}" * bool(environment)
    return f"nothing{of} was promoted{to} yet"


def history(
    events: Iterable[Event], terminal: Terminal, *, only: str = "", environment: str = ""
) -> list[str]:
    """The log, as it is given: a line an event, by config, with who did it and why below."""
    lines: list[str] = []
    for config, group in groupby(events, key=lambda each: each.config):
        lines += ["", f"  {terminal.ink(terminal.said(config), _BOLD)}", ""]
        for event in group:
            when = terminal.ink(f"{event.at:%Y-%m-%d %H:%M:%S}", _DIM)
            what = terminal.said(_done(event))
            color = _RED if event.kind == Kind.ROLLBACK else _YELLOW if event.kind == Kind.CANARY else _GREEN
            revision = f"r{event.revision}"
            by = f"by {event.actor}" + (f", evidence {short(event.evidence)}" if event.evidence else "")
            lines.append(f"  {when}  {event.environment:<12} {revision:<6} {terminal.ink(what, color)}")
            below = [terminal.said(by)]
            if terminal.width >= _LOG_WIDTH:
                lines[-1] += " " * max(2, _WHAT - len(what)) + below.pop()
            below += [terminal.said(event.reason)] if event.reason else []
            for text in below:
                lines += [
                    " " * _INDENT + terminal.ink(line, _DIM) for line in wrap(text, terminal.width - _INDENT)
                ]
    return [*lines, ""] if lines else [_nothing(only, environment, terminal)]


def verification(deployments: Sequence[Deployment], problems: Sequence[str], terminal: Terminal) -> list[str]:
    """Whether the histories are whole, and what is wrong with them."""
    if problems:
        mark = terminal.ink(terminal.said("✗"), _RED)
        lines = [f"  {mark} {terminal.said(each)}" for each in problems]
        said = f"TAMPERED  {counted(len(problems), 'row')} of the log cannot be trusted"
        return [*lines, "", f"  {terminal.ink(said, _RED)}", ""]
    total = sum(each.revision for each in deployments)
    said = f"VERIFIED  {counted(total, 'event')} of {counted(len(deployments), 'deployment')}"
    return [
        f"  {terminal.ink(said, _GREEN)}: none edited, removed, or reordered",
        "",
    ]


def moved(standing: Standing, replayed: bool, terminal: Terminal) -> list[str]:
    """What is true after a promotion or a rollback, and who has it."""
    found = standing.deployment
    kind = found.kind or Kind.PROMOTE
    word = {Kind.PROMOTE: "PROMOTED", Kind.CANARY: "CANARY", Kind.ROLLBACK: "ROLLED BACK"}[kind]
    color = _YELLOW if kind is Kind.ROLLBACK else _GREEN
    again = " (moved before, under the same key)" if replayed else ""
    clients = f"; {following(standing, 'have it')}" if standing.instances else ""
    said = (
        f"{found.config} in {found.environment} serves {_serves(found)} (r{found.revision}){clients}{again}"
    )
    indent = len(word) + 4
    first, *rest = wrap(terminal.said(said), terminal.width - indent)
    return [
        f"  {terminal.ink(word, color)}  {first}",
        *(" " * indent + line for line in rest),
        *_refusing(standing, indent, terminal),
    ]


def following(standing: Standing, verb: str = "") -> str:
    """`14 of 14 clients after 38 ms`; how many refuse is said, too. `verb` stands behind the clients."""
    said = f"{len(standing.following)} of {counted(len(standing.instances), 'client')}"
    said += f" {verb}" if verb else ""
    if standing.took is not None:
        said += f" after {_span(standing.took)}"
    refusing = [each for each in standing.instances if each.refused]
    refuse = "refuses" if len(refusing) == 1 else "refuse"
    return f"{said}, {len(refusing)} {refuse}" if refusing else said


def _standing(
    standing: Standing, title: str, columns: Sequence[int], terminal: Terminal, now: datetime
) -> Iterator[str]:
    found = standing.deployment
    since = f"r{found.revision}, {_ago(now - found.changed_at)}" if found.changed_at else ""
    cells = (title, found.environment, _serves(found), since)
    yield "  " + _row(terminal, cells, columns)
    verb = {Kind.PROMOTE: "promoted", Kind.CANARY: "canary", Kind.ROLLBACK: "rolled back"}
    what = f"{verb[found.kind]} by {found.actor}" if found.kind else ""
    reason = f": {found.reason}" if found.reason else ""
    indent = 2 + columns[0] + columns[1]
    text = clip(terminal.said(what + reason), terminal.width - indent, ellipsis=terminal.said("…"))
    yield " " * indent + terminal.ink(text, _YELLOW if found.kind is Kind.ROLLBACK else _DIM)
    if standing.instances:
        is_whole = len(standing.following) == len(standing.instances)
        yield " " * indent + terminal.ink(following(standing), _GREEN if is_whole else _YELLOW)
    yield from _refusing(standing, indent, terminal)


def _refusing(standing: Standing, indent: int, terminal: Terminal) -> Iterator[str]:
    for each in standing.instances:
        if each.refused:
            said = f"{each.name} refuses r{each.refused}, and serves r{each.revision}: {each.reason}"
            for line in wrap(terminal.said(said), terminal.width - indent):
                yield " " * indent + terminal.ink(line, _RED)


def _serves(found: Deployment) -> str:
    if not found.candidate:
        return short(found.baseline)
    return f"{short(found.baseline)}, {percent(found.weight_bp)} {short(found.candidate)}"


def _done(event: Event) -> str:
    if event.kind == Kind.CANARY:
        return f"{percent(event.weight_bp)} to {short(event.candidate)}"
    verb = "back to" if event.kind == Kind.ROLLBACK else "promoted"
    return f"{verb} {short(event.baseline)}"


def percent(weight_bp: int) -> str:
    """A weight as people read it: `5 %`, `0.25 %`."""
    return f"{weight_bp / 100:g} %"


def _row(terminal: Terminal, cells: Sequence[str], columns: Sequence[int]) -> str:
    *padded, last = cells
    ellipsis = terminal.said("…")
    made = "".join(
        pad(clip(terminal.said(cell), width - 1, ellipsis=ellipsis), width)
        for cell, width in zip(padded, columns, strict=True)
    )
    return (made + terminal.said(last)).rstrip()


def _ago(span: timedelta) -> str:
    seconds = max(0, round(span.total_seconds()))
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 100 * 60:
        return f"{seconds // 60} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h"
    return f"{seconds // 86400} days"


def _span(span: timedelta) -> str:
    ms = span / timedelta(milliseconds=1)
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"
