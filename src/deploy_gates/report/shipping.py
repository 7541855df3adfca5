"""A release on its way: a block that redraws on a terminal, or a line an event elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from deploy_gates.core.canary import Decision
from deploy_gates.core.canonical import short
from deploy_gates.core.promotion import Standing
from deploy_gates.core.release import PRODUCTION, Act, Entry, Promotion, State, Status
from deploy_gates.report import canary, quantities
from deploy_gates.report.record import Terminal, following, percent
from deploy_gates.report.text import clip, counted, pad, pad_left, width, wrap

NAME_WIDTH = 13
"""Columns of the name of a step: `development` and a gap."""
TIME_WIDTH = 12
"""Columns of how long a step took."""

_GREEN, _RED, _YELLOW, _DIM, _BOLD = "32", "31", "33", "2", "1"
_MARKS = {"done": ("✓", _GREEN), "failed": ("✗", _RED), "begun": ("●", _YELLOW), "held": ("‖", _YELLOW)}
_ASCII_MARKS = {"✓": "ok", "✗": "XX", "●": "..", "‖": "||"}
_WAITS = {Act.APPROVAL: "waits for an approval", Act.THAW: "waits for the end of a freeze"}
_WORDS = {
    State.SHIPPED: ("SHIPPED", _GREEN),
    State.ROLLED_BACK: ("ROLLED BACK", _RED),
    State.BLOCKED: ("BLOCKED", _RED),
    State.SUPERSEDED: ("SUPERSEDED", _YELLOW),
    State.ABORTED: ("ABORTED", _RED),
    State.QUEUED: ("QUEUED", _YELLOW),
}
_HELD, _CARRIED, _LEFT = ("HELD", _YELLOW), ("UNDER WAY", _YELLOW), ("LEFT", _YELLOW)


def block(
    promotion: Promotion,
    terminal: Terminal,
    *,
    now: datetime,
    decision: Decision | None = None,
    standing: Standing | None = None,
    note: str = "",
    has_stopped: bool = False,
) -> list[str]:
    """The whole story so far: a row a step, the canary's metrics, and at the end what is true now.

    `decision` is the last look at its canary, `standing` who has what the last move brought, `has_stopped`
    says that nobody carries it on at the moment.
    """
    lines = ["", _head(promotion, terminal), ""]
    for place in ("", *promotion.environments):
        row = _row(promotion, place, now)
        if row is not None:
            lines.append(_drawn(row, terminal))
    if decision is not None and decision.started_ms is not None:
        lines += canary.metrics(decision, terminal)
    if promotion.state.is_final or has_stopped:
        lines += ["", *_end(promotion, terminal, decision, standing, now)]
    elif note:
        lines += ["", *("    " + terminal.ink(each, _DIM) for each in _folded(note, terminal, 4))]
    return [*lines, ""]


def under_way(promotions: Sequence[Promotion], terminal: Terminal, *, now: datetime) -> list[str]:
    """Promotions that have not ended, a line or two each, below what runs where."""
    lines = []
    for each in promotions:
        word, color = ("held", _YELLOW) if each.held else (each.state.value, _DIM)
        last = each.journal[-1] if each.journal else None
        where = f"{last.environment} {last.act.value}".strip() if last is not None else "nothing begun"
        said = f"promotion {each.id}  {each.release.config} {short(each.release.digest)}"
        age = quantities.span(max((now - each.proposed_at).total_seconds(), 0.0))
        lines.append(
            f"  {terminal.said(said)}  {terminal.ink(word, color)}  {terminal.said(f'{where}, {age}')}"
        )
        lines += ["    " + terminal.ink(part, _DIM) for part in _folded(each.held, terminal, 4) if each.held]
    return [*lines, ""] if lines else []


def line(promotion: Promotion, entry: Entry, terminal: Terminal) -> str:
    """One event on one line; empty for one that is told with the next."""
    place, said = entry.environment or "evidence", entry.said
    moved, begun = promotion.outcome(Act.PROMOTE, place), promotion.outcome(Act.CANARY, place)
    is_smoked = promotion.terms.smoke and begun is None
    is_told_next = entry.act is Act.ANALYSIS or (entry.act is Act.PROMOTE and is_smoked)
    if entry.status is Status.BEGUN or (is_told_next and entry.status is not Status.HELD):
        return ""
    if entry.act is Act.SMOKE and entry.status is Status.DONE and moved is not None:
        said = f"{moved.said}  {said}"
    elif entry.act is Act.PROMOTE and begun is not None and entry.status is Status.DONE:
        said = f"{said}  100 % to {short(promotion.release.digest)}: {_proof(promotion)}"
    elif entry.act is Act.ADMIT:
        said = f"{short(promotion.release.digest)}  {said}"
    elif entry.act is Act.ROLLBACK:
        said = f"r{entry.data.get('from')} → r{entry.data.get('to')}  rolled back: {said}"
    if entry.status is Status.HELD:
        said = f"held: {said}"
    return terminal.said(f"{_clock(entry.at)}  {pad(place, NAME_WIDTH)}{said}")


def look(decision: Decision, terminal: Terminal) -> str:
    """One look at the canary on one line."""
    when = datetime.fromtimestamp(decision.at_ms / 1000).astimezone()
    return terminal.said(f"{when:%H:%M:%S}  {pad(PRODUCTION, NAME_WIDTH)}{canary.line(decision).strip()}")


def last_line(
    promotion: Promotion,
    terminal: Terminal,
    *,
    now: datetime,
    decision: Decision | None = None,
    standing: Standing | None = None,
) -> str:
    """How it ended, or why it stands still, on one line."""
    word = _word(promotion, now)[0].lower()
    said = "; ".join(_true_now(promotion, decision, standing, now))
    return terminal.said(f"{_clock(promotion.concluded_at or now)}  {pad(word, NAME_WIDTH)}{said}")


def hint(promotion: Promotion) -> str:
    """What helps a promotion that has ended badly or stands still; empty: nothing is known to."""
    if promotion.state is State.ROLLED_BACK and promotion.outcome(Act.ANALYSIS, PRODUCTION) is not None:
        return "the golden cases accept what production rejects; add such a case before the next try"
    last = promotion.journal[-1] if promotion.journal else None
    return str(last.data.get("hint", "")) if last is not None else ""


# --- Rows ---------------------------------------------------------------------------------------


def _head(promotion: Promotion, terminal: Terminal) -> str:
    release = promotion.release
    was = short(promotion.baseline) if promotion.baseline else "new"
    left = f"{release.config}  {was} → {short(release.digest)}"
    why = f": {release.reason}" if release.reason else ""
    commit = f" ({short(release.commit)})" if release.commit else ""
    right = f"promotion {promotion.id} by {release.actor}{why}"
    left, right, commit = terminal.said(left), terminal.said(right), terminal.said(commit)
    room = terminal.width - width(left) - width(commit) - 2
    right = clip(right, max(room, 20), ellipsis=terminal.said("…")) + commit
    gap = max(2, terminal.width - width(left) - width(right))
    return terminal.ink(left, _BOLD) + " " * gap + terminal.ink(right, _DIM)


def _row(promotion: Promotion, place: str, now: datetime) -> tuple[str, str, str, str] | None:
    """Mark, name, what was done, and how long it took, of one environment; `None`: not reached yet."""
    entries = [each for each in promotion.journal if each.environment == place]
    name = place or "evidence"
    if not entries:
        is_past = any(_after(promotion, each.environment, place) for each in promotion.journal)
        is_past = is_past or promotion.state is State.SHIPPED
        return ("done", name, f"serves {short(promotion.release.digest)} already", "") if is_past else None
    last = entries[-1]
    mark = "done" if _is_over(promotion, place) else last.status.value
    if last.act is Act.ROLLBACK:
        mark = "failed"
    ended = last.at if mark in ("done", "failed") or promotion.state.is_final else now
    took = max((ended - entries[0].at).total_seconds(), 0.0)
    return mark, name, _said(promotion, place), f"{took:.1f} s" if took < 60 else quantities.span(took)


def _after(promotion: Promotion, environment: str, place: str) -> bool:
    order = ("", *promotion.environments)
    return environment in order and order.index(environment) > order.index(place)


def _is_over(promotion: Promotion, place: str) -> bool:
    """Whether everything was done in an environment, and well."""
    if not place:
        found = promotion.outcome(Act.ADMIT)
    elif place == PRODUCTION and promotion.last(Act.CANARY, place):
        found = promotion.outcome(Act.PROMOTE, place)
    else:
        act = Act.SMOKE if promotion.terms.smoke else Act.PROMOTE
        found = promotion.outcome(act, place)
    return found is not None and found.status is Status.DONE


def _said(promotion: Promotion, place: str) -> str:
    """What was done in an environment, in the order in which it was."""
    if not place:
        found = promotion.last(Act.ADMIT)
        return found.said if found is not None and found.status is not Status.BEGUN else "being verified"
    parts = []
    begun = promotion.outcome(Act.CANARY, place)
    promoted = promotion.outcome(Act.PROMOTE, place)
    rolled = promotion.outcome(Act.ROLLBACK, place)
    ended = promoted if promoted is not None and promoted.status is Status.DONE else rolled
    if begun is not None and ended is not None and begun.status is Status.DONE:
        weight = percent(promotion.terms.weight_bp)
        what = "100 %" if ended is promoted else "rolled back"
        parts.append(f"r{begun.data.get('to')} {weight} → r{ended.data.get('to')} {what}")
        if ended is promoted:
            parts.append(_proof(promotion))
    elif begun is not None:
        parts.append(begun.said)
    else:
        parts += [each.said for each in (promoted,) if each is not None]
        parts += [f"r{each.data.get('to')} rolled back" for each in (rolled,) if each is not None]
    smoke = promotion.last(Act.SMOKE, place)
    if smoke is not None:
        said = {Status.BEGUN: "asking the smoke cases", Status.HELD: "smoke cases wait"}
        parts.append(said.get(smoke.status, smoke.said))
    last = promotion.journal[-1]
    if last.status is Status.HELD and last.act is not Act.SMOKE and last.environment == place:
        parts.append(_WAITS.get(last.act, "waits"))
    return ", ".join(each for each in parts if each) or "on its way"


def _proof(promotion: Promotion) -> str:
    """What the canary proved, counted."""
    analysis = promotion.outcome(Act.ANALYSIS, PRODUCTION)
    decision = analysis.data.get("decision") if analysis is not None else None
    if not isinstance(decision, dict):
        return ""
    arms, metrics = decision.get("arms"), decision.get("metrics")
    if not isinstance(arms, dict) or not isinstance(metrics, list):
        return ""
    names = {
        str(each.get("metric")) for each in metrics if isinstance(each, dict) and not each.get("dry_run")
    }
    requests = sum(int(str(arms.get(each, 0))) for each in ("baseline", "candidate"))
    return f"{counted(len(names), 'metric')} safe after {requests:,} requests"


def _drawn(row: tuple[str, str, str, str], terminal: Terminal) -> str:
    mark, name, said, took = row
    sign, color = _MARKS[mark]
    shown = sign if terminal.unicode else _ASCII_MARKS[sign]
    room = terminal.width - 3 - width(shown) - NAME_WIDTH - TIME_WIDTH
    text = clip(terminal.said(said), room, ellipsis=terminal.said("…"))
    return (
        f"  {terminal.ink(shown, color)} "
        + pad(name, NAME_WIDTH)
        + pad(text, room)
        + terminal.ink(pad_left(took, TIME_WIDTH), _DIM)
    ).rstrip()


# --- The end ------------------------------------------------------------------------------------


def _end(
    promotion: Promotion,
    terminal: Terminal,
    decision: Decision | None,
    standing: Standing | None,
    now: datetime,
) -> Iterator[str]:
    why = "" if promotion.state is State.SHIPPED else promotion.conclusion
    if decision is not None and promotion.state is State.ROLLED_BACK:
        why = quantities.explained(decision) or why
    if why:
        yield from ("    " + each for each in _folded(why, terminal, 4))
        yield ""
    word, color = _word(promotion, now)
    indent = 4 + len(word)
    true_now = _true_now(promotion, decision, standing, now)
    told = [each for text in true_now for each in _folded(text, terminal, indent)]
    yield f"  {terminal.ink(word, color)}  {told[0]}"
    yield from (" " * indent + each for each in told[1:])
    if said := hint(promotion):
        yield ""
        yield from ("  " + terminal.ink(each, _DIM) for each in _folded(f"hint: {said}", terminal, 2))


def _word(promotion: Promotion, now: datetime) -> tuple[str, str]:
    """How it ended, or why it does not go on here, and the color of that."""
    if promotion.state is not State.RUNNING:
        return _WORDS[promotion.state]
    return _CARRIED if promotion.is_carried(now) else _HELD if promotion.held else _LEFT


def _true_now(
    promotion: Promotion, decision: Decision | None, standing: Standing | None, now: datetime
) -> Iterator[str]:
    """What everybody is served now, and what the candidate cost."""
    if promotion.is_carried(now):
        yield f"{promotion.owner.rpartition(':')[0]} carries {short(promotion.release.digest)}"
    elif standing is not None:
        deployment = standing.deployment
        clients = f"; {following(standing, 'have it')}" if standing.instances else ""
        again = " again" if promotion.state is State.ROLLED_BACK else ""
        share = f"{percent(deployment.weight_bp)} {short(deployment.candidate)} and otherwise "
        serves = f"{share if deployment.candidate else ''}{short(deployment.baseline)}{again}"
        yield f"{deployment.environment} serves {serves} (r{deployment.revision}){clients}"
    elif promotion.state is State.SHIPPED:
        yield promotion.conclusion
    elif not promotion.state.is_final:
        yield f"{short(promotion.release.digest)} waits: {promotion.held or 'nobody carries it on'}"
    elif promotion.baseline and promotion.state is not State.ABORTED:
        serves = f"{promotion.until} serves {short(promotion.baseline)} as before"
        yield f"{short(promotion.release.digest)} goes no further; {serves}"
    else:
        yield f"{short(promotion.release.digest)} goes no further"
    if decision is not None and promotion.state is State.ROLLED_BACK:
        of = decision.arms.baseline + decision.arms.candidate
        yield f"{short(promotion.release.digest)} answered {decision.arms.candidate:,} of {of:,} requests"


def _folded(text: str, terminal: Terminal, indent: int) -> list[str]:
    return wrap(terminal.said(text), terminal.width - indent)


def _clock(when: datetime) -> str:
    return f"{when.astimezone():%H:%M:%S}"
