"""Rows of the store as values: the columns have the same names on both engines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any, Protocol

from deploy_gates.core.delivery import Delivery, Fate
from deploy_gates.core.errors import StoreError
from deploy_gates.core.promotion import (
    Acknowledgement,
    Deployment,
    Event,
    Instance,
    Kind,
    Lease,
    Move,
    Record,
    Scope,
    Token,
)
from deploy_gates.core.release import Act, Approval, Entry, Promotion, Release, State, Status, Terms
from deploy_gates.core.tally import Tally


class Row(Protocol):
    """A row that knows its columns by name."""

    def __getitem__(self, column: str, /) -> Any: ...


def deployment_of(row: Row) -> Deployment:
    """A row of `deployment`."""
    return Deployment(
        config=row["config"],
        environment=row["environment"],
        revision=row["revision"],
        kind=Kind(row["kind"]) if row["kind"] else None,
        baseline=row["baseline"],
        candidate=row["candidate"],
        weight_bp=row["weight_bp"],
        salt=row["salt"],
        expires_at=time_of(row["expires_at_ms"]) if row["expires_at_ms"] else None,
        policy=row["policy"],
        evidence=row["evidence"],
        actor=row["actor"],
        reason=row["reason"],
        changed_at=time_of(row["changed_at_ms"]) if row["revision"] else None,
        owner=row["owner"],
        fence=row["fence"],
        lease_until=time_of(row["lease_until_ms"]) if row["lease_until_ms"] else None,
    )


def maybe_deployment_of(row: Row | None) -> Deployment | None:
    """A row of `deployment`, if there is one."""
    return None if row is None else deployment_of(row)


def lease_of(row: Row) -> Lease:
    """The lease in a row of `deployment`."""
    return Lease(
        config=row["config"],
        environment=row["environment"],
        owner=row["owner"],
        fence=row["fence"],
        until=time_of(row["lease_until_ms"]),
        revision=row["revision"],
    )


def keys_of(lease: Lease) -> dict[str, object]:
    """What a statement about a lease has to name."""
    return {"config": lease.config, "environment": lease.environment, "fence": lease.fence}


def event_of(row: Row) -> Event:
    """A row of `history`."""
    return Event(
        config=row["config"],
        environment=row["environment"],
        revision=row["revision"],
        kind=row["kind"],
        baseline=row["baseline"],
        candidate=row["candidate"],
        weight_bp=row["weight_bp"],
        salt=row["salt"],
        policy=row["policy"],
        evidence=row["evidence"],
        fence=row["fence"],
        actor=row["actor"],
        reason=row["reason"],
        key=row["idempotency_key"],
        at_ms=row["at_ms"],
        expires_at_ms=row["expires_at_ms"],
        previous=row["previous"],
        hash=row["hash"],
    )


def record_of(row: Row, admitted_until: Mapping[str, datetime]) -> Record:
    """A row of `evidence`, with the environments it opens and until when."""
    return Record(
        id=row["id"],
        config=row["config"],
        digest=row["digest"],
        policy=row["policy"],
        verdict=row["verdict"],
        finished_at=time_of(row["finished_at_ms"]),
        admitted_until=admitted_until,
        envelope=row["envelope"],
        signed_by=row["signed_by"],
        revoked_by=row["revoked_by"],
    )


def instance_of(row: Row) -> Instance:
    """A row of `instance`."""
    return Instance(
        id=row["id"],
        name=row["name"],
        environment=row["environment"],
        config=row["config"],
        revision=row["revision"],
        serving_since=time_of(row["serving_since_ms"]),
        reloaded=bool(row["reloaded"]),
        refused=row["refused"],
        reason=row["reason"],
        seen_at=time_of(row["seen_at_ms"]),
    )


def token_of(row: Row) -> Token:
    """A row of `token`."""
    return Token(
        id=row["id"],
        name=row["name"],
        secret_hash=row["secret_hash"],
        scopes=frozenset(Scope(each) for each in row["scopes"].split()),
        created_at=time_of(row["created_at_ms"]),
        created_by=row["created_by"],
        revoked_at=time_of(row["revoked_at_ms"]) if row["revoked_at_ms"] else None,
    )


def promotions_of(rows: Sequence[Row], lines: Sequence[Row]) -> tuple[Promotion, ...]:
    """Rows of `promotion`, each with its rows of `journal`."""
    journals: dict[int, list[Entry]] = {}
    for line in lines:
        journals.setdefault(line["promotion"], []).append(entry_of(line))
    return tuple(promotion_of(row, journals.get(row["id"], ())) for row in rows)


def promotion_of(row: Row, journal: Sequence[Entry]) -> Promotion:
    """A row of `promotion` with its journal."""
    return Promotion(
        id=row["id"],
        release=Release(
            config=row["config"],
            digest=row["digest"],
            actor=row["actor"],
            reason=row["reason"],
            commit=row["commit_id"],
        ),
        until=row["until"],
        baseline=_when_its_turn_came(journal) or row["baseline"],
        policy=row["policy"],
        terms=Terms.from_json(json.loads(row["terms"])),
        state=State(row["state"]),
        conclusion=row["conclusion"],
        proposed_at=time_of(row["proposed_at_ms"]),
        concluded_at=time_of(row["concluded_at_ms"]) if row["concluded_at_ms"] else None,
        owner=row["owner"],
        fence=row["fence"],
        lease_until=time_of(row["lease_until_ms"]) if row["lease_until_ms"] else None,
        journal=tuple(journal),
    )


def _when_its_turn_came(journal: Sequence[Entry]) -> str:
    """The baseline of a promotion, which another one may have moved while this one was queued."""
    return str(journal[0].data.get("baseline", "")) if journal else ""


def entry_of(row: Row) -> Entry:
    """A row of `journal`."""
    return Entry(
        promotion=row["promotion"],
        number=row["number"],
        act=Act(row["act"]),
        environment=row["environment"],
        status=Status(row["status"]),
        at_ms=row["at_ms"],
        owner=row["owner"],
        data=json.loads(row["data"]),
    )


def version_of(promotion: Promotion) -> int:
    """How far a promotion has got, as its row counts it: every line and every state is one further."""
    rank = {State.QUEUED: 0, State.RUNNING: 1}.get(promotion.state, 2)
    return 2 * len(promotion.journal) + rank


def approval_of(row: Row) -> Approval:
    """A row of `approval`."""
    return Approval(
        config=row["config"],
        digest=row["digest"],
        environment=row["environment"],
        approver=row["approver"],
        reason=row["reason"],
        at=time_of(row["at_ms"]),
    )


def delivery_of(row: Row) -> Delivery:
    """A row of `delivery`."""
    return Delivery(
        id=row["id"],
        thread=row["thread"],
        channel=row["channel"],
        body=json.loads(row["body"]),
        state=Fate(row["state"]),
        attempts=row["attempts"],
        created_at=time_of(row["created_at_ms"]),
        next_at=time_of(row["next_at_ms"]),
        external_id=row["external_id"],
        error=row["error"],
    )


def of_release(release: Release) -> dict[str, object]:
    """The columns of a release."""
    return {
        "config": release.config,
        "digest": release.digest,
        "actor": release.actor,
        "reason": release.reason,
        "commit_id": release.commit,
    }


def of_delivery(delivery: Delivery) -> dict[str, object]:
    """The columns of a delivery."""
    return {
        "id": delivery.id,
        "thread": delivery.thread,
        "channel": delivery.channel,
        "body": json.dumps(delivery.body),
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "created_at_ms": ms_of(delivery.created_at),
        "next_at_ms": ms_of(delivery.next_at),
        "external_id": delivery.external_id,
        "error": delivery.error,
    }


def ms_of(time: datetime) -> int:
    """Milliseconds since 1970, UTC."""
    return int(time.timestamp() * 1000)


def time_of(ms: int) -> datetime:
    """The time of so many milliseconds since 1970."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def span_ms(span: timedelta) -> int:
    """A span in whole milliseconds."""
    return int(span / timedelta(milliseconds=1))


def of_move(move: Move) -> dict[str, object]:
    """The parameters of the statement that makes a move."""
    return {
        "config": move.config,
        "environment": move.environment,
        "kind": move.kind.value,
        "digest": move.digest,
        "weight_bp": move.weight_bp,
        "salt": move.salt,
        "lasts_ms": round(move.lasts_s * 1000),
        "expected": move.expected,
        "fence": move.fence,
        "policy": move.policy,
        "adopt_policy": move.adopt_policy,
        "actor": move.actor,
        "reason": move.reason,
        "key": move.key,
    }


def of_record(record: Record) -> dict[str, object]:
    """The columns of evidence."""
    return {
        "id": record.id,
        "config": record.config,
        "digest": record.digest,
        "policy": record.policy,
        "verdict": record.verdict,
        "finished_at_ms": ms_of(record.finished_at),
        "signed_by": record.signed_by,
        "envelope": record.envelope,
    }


def of_acknowledgement(
    instance: str, name: str, environment: str, served: Acknowledgement
) -> dict[str, object]:
    """The parameters of the statement that keeps what an instance serves."""
    return {
        "id": instance,
        "name": name,
        "environment": environment,
        "config": served.config,
        "revision": served.revision,
        "age_ms": served.age_ms,
        "reloaded": served.reloaded,
        "refused": served.refused,
        "reason": served.reason,
    }


def of_tallies(instance: str, first: int, tallies: Sequence[Tally]) -> list[dict[str, object]]:
    """The rows of tallies, numbered from `first` on."""
    return [
        {
            "instance": instance,
            "number": number,
            "config": each.config,
            "environment": each.environment,
            "start_ms": each.start_ms,
            "body": json.dumps(each.to_json()),
        }
        for number, each in enumerate(tallies, start=first)
    ]


def of_token(token: Token) -> dict[str, object]:
    """The columns of a token that is in force."""
    return {
        "id": token.id,
        "name": token.name,
        "secret_hash": token.secret_hash,
        "scopes": " ".join(sorted(token.scopes)),
        "created_at_ms": ms_of(token.created_at),
        "created_by": token.created_by,
    }


def migrations(engine: str) -> list[str]:
    """The numbered files of an engine, the first one first."""
    folder = resources.files("deploy_gates.store").joinpath(f"schema/{engine}")
    names = sorted(each.name for each in folder.iterdir() if each.name.endswith(".sql"))
    return [folder.joinpath(name).read_text(encoding="utf-8") for name in names]


def check_not_newer(version: int, known: int, url: str) -> None:
    """`StoreError` for tables that a newer program made."""
    if version > known:
        raise StoreError(
            f"the tables of {url} are of version {version}, and this program knows them up to {known}",
            hint="install a newer pytest-deploy-gates; nothing was changed",
        )


def check_current(version: int, known: int, url: str) -> None:
    """`StoreError` for tables that are not those this program wants."""
    check_not_newer(version, known, url)
    if version < known:
        raise StoreError(
            f"the tables of {url} are of version {version}, and this program wants {known}",
            hint="deploy-gates store upgrade",
        )
