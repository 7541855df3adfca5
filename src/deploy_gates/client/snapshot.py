"""From what the store says to what is served: checked, parsed, and never half of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType

from deploy_gates.client.served import Served
from deploy_gates.core import canonical, parsing
from deploy_gates.core.canonical import short
from deploy_gates.core.config import ModelConfig
from deploy_gates.core.cost import Price
from deploy_gates.core.promotion import Deployment, Serving, problem
from deploy_gates.core.tally import Arm

SPARE_DOCUMENTS_MAX = 32
"""Documents kept beyond those that are served: a rollback finds its own without asking."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A config that was found to be what its digest says."""

    spelling: bytes
    config: ModelConfig
    price: Price | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What is served of one config."""

    deployment: Deployment
    baseline: Served
    candidate: Served | None
    """`None` as well once the canary has ended by itself."""
    since: float
    """Since when, on the monotonic clock."""
    deadline: float = math.inf
    """When the canary ends by itself, on the monotonic clock, which nobody sets."""
    is_confirmed: bool = True
    """The store itself said so; otherwise it was found on disk."""
    is_reload: bool = False
    """It came while something else was served, or nothing: it was not there from the start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Declined:
    """A revision that cannot be served, and why."""

    revision: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """All that a client serves. It is replaced as a whole."""

    rows: Mapping[str, Row]
    documents: Mapping[str, Document]
    """By digest."""
    declined: Mapping[str, Declined]
    """By config: the newest revision where that one is not served."""
    is_first: bool = True
    """The store itself has not been read yet."""
    missing: frozenset[str] = frozenset()
    """Served, but no longer named by the store, which forgets nothing: it may be another one."""


EMPTY = Snapshot(rows={}, documents={}, declined={})


def accepted(
    serving: Serving,
    before: Snapshot,
    *,
    now: float,
    today: datetime,
    deadlines: Mapping[str, float] = MappingProxyType({}),
    is_confirmed: bool = True,
) -> Snapshot:
    """What to serve after the store said so. What cannot be served leaves what was served in its place.

    `now` is on the monotonic clock, and so are the `deadlines` of canaries that are known already, by config;
    `today` is on the wall. `is_confirmed` is false for what was found on disk.
    """
    documents = dict(before.documents)
    rows: dict[str, Row] = {}
    declined: dict[str, Declined] = {}
    for deployment in serving.deployments:
        name, old = deployment.config, before.rows.get(deployment.config)
        if not deployment.revision:
            continue
        if old is not None and _is_same(old.deployment, deployment):
            rows[name] = old if old.is_confirmed else replace(old, is_confirmed=is_confirmed)
            continue
        try:
            row = _row(deployment, serving, documents, now)
            deadline = min(now + left_s(deployment, today), deadlines.get(name, math.inf))
            if old is not None and _goes_on(old.deployment, deployment):
                deadline = min(deadline, old.deadline)
            rows[name] = replace(
                row, deadline=deadline, is_confirmed=is_confirmed, is_reload=not before.is_first
            )
        except ValueError as error:
            declined[name] = Declined(revision=deployment.revision, reason=str(error)[:500])
            if old is not None:
                rows[name] = old
    missing = {name: row for name, row in before.rows.items() if row.is_confirmed and name not in rows}
    return Snapshot(
        rows=rows | missing,
        documents=_bounded(documents, rows | missing),
        declined=declined,
        is_first=before.is_first and not is_confirmed,
        missing=frozenset(missing),
    )


def left_s(deployment: Deployment, today: datetime) -> float:
    """How many seconds a canary that is seen for the first time has left; infinite for what never ends.

    No more than it was given: a wall clock that was set back does not make it longer.
    """
    if not deployment.candidate or deployment.expires_at is None:
        return math.inf
    begun = today if deployment.changed_at is None else max(today, deployment.changed_at)
    return max(0.0, (deployment.expires_at - begun).total_seconds())


def expired(snapshot: Snapshot, now: float) -> Snapshot:
    """The same without the canaries that have ended by themselves; `snapshot` itself where none has."""
    over = {name: _ended(row) for name, row in snapshot.rows.items() if row.candidate and row.deadline <= now}
    return replace(snapshot, rows={**snapshot.rows, **over}) if over else snapshot


def next_deadline(snapshot: Snapshot) -> float:
    """When the next canary ends by itself, on the monotonic clock."""
    return min((row.deadline for row in snapshot.rows.values() if row.candidate), default=math.inf)


def changes(before: Snapshot, after: Snapshot) -> frozenset[str]:
    """The names of configs of which something else is served now."""
    names = before.rows.keys() | after.rows.keys()
    return frozenset(
        name
        for name in names
        if name not in before.rows
        or name not in after.rows
        or not _is_same(before.rows[name].deployment, after.rows[name].deployment)
        or (before.rows[name].candidate is None) != (after.rows[name].candidate is None)
    )


def inherited(snapshot: Snapshot) -> Snapshot:
    """The same for a child after a fork, which has served it from its start."""
    rows = {name: replace(row, is_reload=False) for name, row in snapshot.rows.items()}
    return replace(snapshot, rows=rows)


def _ended(row: Row) -> Row:
    """Nobody gets the candidate any more, and whose users it had is no longer counted."""
    return replace(row, baseline=replace(row.baseline, canary=""), candidate=None)


def _goes_on(before: Deployment, after: Deployment) -> bool:
    """Whether it is the same canary with no more time than it had; a later revision may give it more."""
    is_same = (before.candidate, before.salt) == (after.candidate, after.salt)
    return is_same and (before.expires_at == after.expires_at or before.revision == after.revision)


def _is_same(before: Deployment, after: Deployment) -> bool:
    # A file or a server of an earlier version knows no deadlines: whoever tells one later is believed.
    is_news = after.expires_at is not None and after.expires_at != before.expires_at
    return _identity(before) == _identity(after) and not is_news


def _identity(row: Deployment) -> tuple[object, ...]:
    return (row.revision, row.baseline, row.candidate, row.weight_bp, row.salt)


def _row(deployment: Deployment, serving: Serving, documents: dict[str, Document], now: float) -> Row:
    fault = problem(deployment)
    if fault:
        raise ValueError(fault)
    digests = {Arm.BASELINE: deployment.baseline, Arm.CANDIDATE: deployment.candidate}
    arms: dict[Arm, Served] = {}
    for arm, digest in digests.items():
        if not digest:
            continue
        if digest not in documents:
            documents[digest] = _document(digest, deployment.config, serving)
        document = documents[digest]
        arms[arm] = Served(
            name=deployment.config,
            environment=deployment.environment,
            revision=deployment.revision,
            arm=arm,
            digest=digest,
            config=document.config,
            price=document.price,
            canary=deployment.salt if deployment.candidate else "",
        )
    return Row(
        deployment=deployment,
        baseline=arms[Arm.BASELINE],
        candidate=arms.get(Arm.CANDIDATE),
        since=now,
    )


def _document(digest: str, name: str, serving: Serving) -> Document:
    spelling = serving.configs.get(digest)
    if spelling is None:
        raise ValueError(f"the document {short(digest)} did not come with it")
    if canonical.digest_of(spelling) != digest:
        raise ValueError(f"the document {short(digest)} was altered: it is not what its digest says")
    try:
        config = parsing.config(canonical.restored(spelling), name)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"the document {short(digest)} is no config this version knows: {error}") from error
    return Document(spelling=spelling, config=config, price=serving.prices.get(digest))


def _bounded(documents: dict[str, Document], rows: Mapping[str, Row]) -> dict[str, Document]:
    """The documents in use, and of the others those that came last."""
    used = {row.deployment.baseline for row in rows.values()}
    used |= {row.deployment.candidate for row in rows.values()}
    spare = [digest for digest in documents if digest not in used]
    for digest in spare[: max(0, len(spare) - SPARE_DOCUMENTS_MAX)]:
        del documents[digest]
    return documents
