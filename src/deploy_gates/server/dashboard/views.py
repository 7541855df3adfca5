"""What the pages say, as plain values: made of what the store has, without a request or a template."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from deploy_gates import difference, envelope
from deploy_gates.core import parsing
from deploy_gates.core.canonical import restored, short
from deploy_gates.core.config import ENVIRONMENTS, FieldChange
from deploy_gates.core.errors import DeployGatesError
from deploy_gates.core.gate import GateResult, Verdict
from deploy_gates.core.promotion import Event, Kind, Standing
from deploy_gates.core.release import PRODUCTION, Act, Entry, Promotion, State, Status
from deploy_gates.report.record import following, percent
from deploy_gates.store import Store

CHANGES_MAX = 200
"""So many fields of a change are shown."""
_KINDS = {
    State.QUEUED: "waiting",
    State.RUNNING: "waiting",
    State.SHIPPED: "good",
    State.BLOCKED: "bad",
    State.ROLLED_BACK: "bad",
    State.SUPERSEDED: "quiet",
    State.ABORTED: "bad",
}
_VERDICTS = {
    Verdict.PASS: "good",
    Verdict.FAIL: "bad",
    Verdict.INCONCLUSIVE: "waiting",
    Verdict.SKIP: "quiet",
}
_MARKS = {Status.DONE: "✓", Status.FAILED: "✗", Status.BEGUN: "●", Status.HELD: "‖"}
_STATUS_KINDS = {Status.DONE: "good", Status.FAILED: "bad", Status.BEGUN: "waiting", Status.HELD: "waiting"}
_WORDS = {
    Act.ADMIT: "evidence",
    Act.APPROVAL: "approval",
    Act.THAW: "freeze",
    Act.PROMOTE: "promotion",
    Act.SMOKE: "smoke cases",
    Act.CANARY: "canary",
    Act.ANALYSIS: "analysis",
    Act.ROLLBACK: "rollback",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """A word and how it looks: good, bad, waiting, or quiet."""

    said: str
    kind: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One config and what each environment serves of it; `None` where it never served it."""

    config: str
    cells: tuple[tuple[str, Standing | None], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a promotion, as far as it has got."""

    name: str
    environment: str
    mark: str
    kind: str
    said: str
    at: datetime | None
    took: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    """The evidence of a promotion."""

    record: str
    """The id of the evidence."""
    signed_by: str
    finished_at: datetime
    results: tuple[GateResult, ...]


def rows(standings: Iterable[Standing]) -> list[Row]:
    """Environments × configs."""
    found: dict[str, dict[str, Standing]] = {}
    for each in standings:
        found.setdefault(each.deployment.config, {})[each.deployment.environment] = each
    return [
        Row(config=config, cells=tuple((name, here.get(name)) for name in ENVIRONMENTS))
        for config, here in sorted(found.items())
    ]


def state(promotion: Promotion) -> Word:
    """The state of a promotion in a word; one that waits says so."""
    held = promotion.state is State.RUNNING and promotion.held
    return Word(said="held" if held else promotion.state.value, kind=_KINDS[promotion.state])


def doing(entry: Entry) -> str:
    """The last line of a journal, as one line: `production: analysis`."""
    place = f"{entry.environment}: " if entry.environment else ""
    return f"{place}{entry.said or _WORDS[entry.act]}"


def verdict(of: Verdict) -> Word:
    """The word of a gate."""
    return Word(said=of.value, kind=_VERDICTS[of])


def kind_of(event: Event) -> Word:
    """What a move did."""
    if event.kind == Kind.CANARY:
        return Word(said=f"{percent(event.weight_bp)} to {short(event.candidate)}", kind="waiting")
    verb, kind = ("back to", "bad") if event.kind == Kind.ROLLBACK else ("promoted", "good")
    return Word(said=f"{verb} {short(event.baseline)}", kind=kind)


def clients(standing: Standing) -> str:
    """Who follows: `14 of 14 clients after 38 ms`."""
    return following(standing) if standing.instances else ""


def steps(promotion: Promotion, now: datetime) -> list[Step]:
    """Every step that was begun, in the order in which it was, with what came of it."""
    order: dict[tuple[Act, str], list[Entry]] = {}
    for entry in promotion.journal:
        order.setdefault((entry.act, entry.environment), []).append(entry)
    return [_step(promotion, entries, now) for entries in order.values()]


def _step(promotion: Promotion, entries: Sequence[Entry], now: datetime) -> Step:
    first, last = entries[0], entries[-1]
    has_ended = last.status in (Status.DONE, Status.FAILED)
    until = last.at if has_ended or promotion.state.is_final else now
    is_over = promotion.state.is_final and not has_ended
    return Step(
        name=_WORDS[last.act],
        environment=last.environment,
        mark="–" if is_over else _MARKS[last.status],
        kind="quiet" if is_over else _STATUS_KINDS[last.status],
        said=last.said if last.status is not Status.BEGUN else "under way" if not is_over else "left",
        at=first.at,
        took=span(max(until - first.at, timedelta())),
    )


def span(length: timedelta) -> str:
    """`0.4 s`, `4 min 10 s`."""
    seconds = length.total_seconds()
    if seconds < 59.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def ago(when: datetime, now: datetime) -> str:
    """`4 min ago`."""
    seconds = max(0, round((now - when).total_seconds()))
    for size, word in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {word} ago"
    return f"{seconds} s ago" if seconds >= 10 else "just now"


def gates(store: Store, promotion: Promotion) -> Gates | None:
    """What the gates found of the release; `None` where nothing is kept, or it cannot be read."""
    entry = promotion.outcome(Act.ADMIT)
    wanted = str(entry.data.get("evidence", "")) if entry is not None else ""
    records = store.evidence(promotion.release.config, promotion.release.digest)
    record = next((each for each in records if each.id == wanted), records[0] if records else None)
    if record is None:
        return None
    try:
        found = envelope.verify(record.envelope, (), require_signature=False).evidence
    except DeployGatesError:
        return None
    return Gates(
        record=record.id, signed_by=record.signed_by, finished_at=record.finished_at, results=found.gates
    )


class Changes:
    """What differs between two configs, remembered: configs never change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.between = functools.lru_cache(maxsize=256)(self._between)

    def _between(self, baseline: str, candidate: str) -> tuple[FieldChange, ...]:
        """Field by field; nothing where one of them is not kept, or of another version."""
        found = []
        for digest in (baseline, candidate):
            kept = self._store.config(digest) if digest else None
            if kept is None:
                return ()
            try:
                found.append(parsing.config(restored(kept[1]), kept[0]))
            except (KeyError, ValueError):
                return ()
        return difference.fields(found[0], found[1])[:CHANGES_MAX]


def rollback_of(standing: Standing | None, promotion: Promotion) -> str:
    """What a rollback of production would do now, for the label of its button; empty: nothing."""
    if standing is None:
        return ""
    here, digest = standing.deployment, promotion.release.digest
    if here.candidate == digest:
        return f"End the canary of {short(digest)}"
    if here.baseline == digest and promotion.baseline and promotion.until == PRODUCTION:
        return f"Roll production back to {short(promotion.baseline)}"
    return ""
