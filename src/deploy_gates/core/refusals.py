"""Why a move was not made. The store asks after the fact: its statement changed nothing, and says no more."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from deploy_gates.core.assignment import WHOLE_BP
from deploy_gates.core.canonical import short
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.errors import Refusal, Refused
from deploy_gates.core.promotion import Deployment, Event, Kind, Lease, Move, Record
from deploy_gates.core.release import Promotion, Release


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the store holds about a move it refused, read at once."""

    deployment: Deployment | None
    """`None`: no runner ever took the lease of this config in this environment."""
    known: bool
    """Whether the store keeps a config of that name under the digest."""
    same_key: Event | None
    """The move made before under the same idempotency key."""
    records: Collection[Record]
    """All evidence for the config and the digest; envelopes may be left out."""
    after: str
    """The environment that has to serve the digest first; empty: none."""
    before: Deployment | None
    """What that environment serves."""
    baselines: Collection[str]
    """Everything that was the baseline here at some time."""
    now: datetime
    """By the clock of the store."""


def is_replay(move: Move, made: Event) -> bool:
    """Whether the event is this very move, made before."""
    brought = made.candidate if made.kind == Kind.CANARY else made.baseline
    return (made.kind, brought, made.weight_bp) == (move.kind.value, move.digest, move.weight_bp)


def as_it_was(made: Event, now: Deployment) -> Deployment:
    """What the deployment was right after the move: the answer to somebody who asks for it again."""
    return replace(
        now,
        revision=made.revision,
        kind=Kind(made.kind),
        baseline=made.baseline,
        candidate=made.candidate,
        weight_bp=made.weight_bp,
        salt=made.salt,
        expires_at=datetime.fromtimestamp(made.expires_at_ms / 1000, UTC) if made.expires_at_ms else None,
        policy=made.policy,
        evidence=made.evidence,
        actor=made.actor,
        reason=made.reason,
        changed_at=datetime.fromtimestamp(made.at_ms / 1000, UTC),
    )


def why(move: Move, facts: Facts) -> Refused:
    """The first reason that stands between the move and the row, in the order in which to mend them."""
    found = facts.deployment
    if facts.same_key is not None:
        return _key_reused(move, facts.same_key)
    if found is None or (move.kind is Kind.ROLLBACK and not found.revision):
        return Refused(
            Refusal.UNKNOWN,
            f"nothing was ever promoted to {_place(move)}",
            hint=f"deploy-gates promote {move.config} --to {move.environment}",
        )
    if found.revision != move.expected:
        return Refused(
            Refusal.REVISION,
            f"{_place(move)} is at r{found.revision}, not r{move.expected}: "
            f"{found.actor or 'someone'} moved it first, and nothing was changed",
            hint="look with `deploy-gates status`, then try again",
        )
    refused = _rollback(move, found, facts) if move.kind is Kind.ROLLBACK else _forward(move, found, facts)
    return refused or Refused(
        Refusal.REVISION,
        f"{_place(move)} was being moved at the same time, and nothing was changed",
        hint="try again",
    )


def held(lease: Deployment, now: datetime) -> Refused:
    """Why a lease cannot be taken: another runner has it."""
    left_s = max(0.0, (lease.lease_until - now).total_seconds()) if lease.lease_until else 0.0
    return Refused(
        Refusal.LEASE,
        f"{lease.owner} is moving {lease.config} in {lease.environment}, "
        f"and holds it for another {left_s:.1f} s at most",
        hint="wait for it; `deploy-gates rollback` does not have to",
    )


def lost(lease: Lease, found: Deployment | None) -> Refused:
    """Why a lease cannot be renewed: it ran out, or somebody took over."""
    place = f"{lease.config} in {lease.environment}"
    if found is None or found.fence == lease.fence:
        return Refused(Refusal.LEASE, f"the lease of {lease.owner} on {place} has expired: take it again")
    return Refused(
        Refusal.FENCE,
        f"{found.owner or found.actor or 'someone'} has taken {place} over: "
        f"fence {lease.fence} of {lease.owner} is no longer the current one, which is {found.fence}",
    )


def evidence_of_nothing(record: Record) -> Refused:
    """Why evidence is not kept: its config is not."""
    return Refused(
        Refusal.UNKNOWN,
        f"the evidence is for {record.config} {short(record.digest)}, and the store keeps no such config",
        hint="put the config into the store before its evidence",
    )


def release_of_nothing(release: Release) -> Refused:
    """Why a release is not put on its way: its config is not kept."""
    return Refused(
        Refusal.UNKNOWN,
        f"the store keeps no {release.config} {short(release.digest)}, so it cannot be on its way",
        hint="put the config into the store before its release",
    )


def superseded_by(id: int, release: Release) -> str:
    """How a promotion ends whose turn never came."""
    return f"superseded by promotion {id}: {short(release.digest)} by {release.actor} came later"


def not_taken(id: int, found: Promotion | None, now: datetime) -> Refused:
    """Why a promotion cannot be carried now."""
    if found is None:
        return Refused(Refusal.UNKNOWN, f"there is no promotion {id}", hint="deploy-gates status")
    if found.state.is_final:
        return Refused(Refusal.STATE, f"promotion {id} has ended: {found.state.value}, {found.conclusion}")
    if found.lease_until is not None and found.lease_until > now:
        left_s = (found.lease_until - now).total_seconds()
        return Refused(
            Refusal.LEASE,
            f"{found.owner} carries promotion {id}, and holds it for another {left_s:.1f} s at most",
            hint="wait for it; whoever ships next goes on if it dies",
        )
    return Refused(Refusal.STATE, f"promotion {id} is queued, and another one of {found.release.config} runs")


def promotion_lost(promotion: Promotion, found: Promotion | None) -> Refused:
    """Why nothing more is written to a promotion: it has ended, ran out, or somebody took over."""
    if found is None or found.state.is_final:
        ended = f": {found.state.value}, {found.conclusion}" if found else ""
        return Refused(Refusal.STATE, f"promotion {promotion.id} has ended{ended}")
    if found.fence == promotion.fence:
        return Refused(Refusal.LEASE, f"the lease on promotion {promotion.id} has expired: take it again")
    return Refused(
        Refusal.FENCE,
        f"{found.owner or 'someone'} has taken promotion {promotion.id} over: fence {promotion.fence} is no "
        f"longer the current one, which is {found.fence}",
    )


def no_environment(name: str) -> Refused:
    """Why nothing can be moved there."""
    return Refused(Refusal.UNKNOWN, f"there is no environment {name!r}", hint=", ".join(ENVIRONMENTS))


def _key_reused(move: Move, made: Event) -> Refused:
    brought = made.candidate if made.kind == Kind.CANARY else made.baseline
    return Refused(
        Refusal.KEY_REUSED,
        f"the idempotency key {move.key!r} belongs to another move of {_place(move)}: "
        f"r{made.revision}, {made.kind} {short(brought)}",
        hint="every move needs a key of its own",
    )


def _rollback(move: Move, found: Deployment, facts: Facts) -> Refused | None:
    if found.candidate or move.digest != found.baseline:
        if move.digest in facts.baselines:
            return None
        return Refused(
            Refusal.UNKNOWN,
            f"{short(move.digest)} was never served to everybody by {_place(move)}, "
            "so there is no going back to it",
            hint=f"deploy-gates log {move.config} --env {move.environment}",
        )
    return Refused(
        Refusal.STATE, f"{_place(move)} serves {short(move.digest)} already, and there is no canary to end"
    )


def _forward(move: Move, found: Deployment, facts: Facts) -> Refused | None:
    return (
        _not_holding(move, found, facts.now)
        or _state(move, found)
        or _unknown(move, facts)
        or _other_policy(move, found)
        or _no_evidence(move, facts)
        or _out_of_order(move, found, facts)
    )


def _not_holding(move: Move, found: Deployment, now: datetime) -> Refused | None:
    if found.fence != move.fence:
        return Refused(
            Refusal.FENCE,
            f"{found.owner or found.actor or 'someone'} has taken {_place(move)} over: "
            f"fence {move.fence} is no longer the current one, which is {found.fence}",
            hint="look with `deploy-gates status` before trying again",
        )
    if found.lease_until is None or found.lease_until <= now:
        return Refused(
            Refusal.LEASE, f"the lease on {_place(move)} expired before the move was made: take it again"
        )
    return None


def _state(move: Move, found: Deployment) -> Refused | None:
    place = _place(move)
    if found.candidate and found.candidate != move.digest:
        return Refused(
            Refusal.STATE,
            f"a canary of {short(found.candidate)} runs in {place}, "
            f"and {short(move.digest)} cannot overtake it",
            hint=f"end it first: `deploy-gates rollback {move.config} --env {move.environment}`",
        )
    if move.kind is Kind.CANARY:
        if not found.baseline:
            return Refused(Refusal.STATE, f"{place} serves nothing a canary could be compared with")
        if not 0 < move.weight_bp < WHOLE_BP:
            return Refused(Refusal.STATE, "a canary gets more than 0 % and less than 100 %")
    if found.baseline == move.digest:
        return Refused(Refusal.STATE, f"{place} serves {short(move.digest)} already")
    return None


def _unknown(move: Move, facts: Facts) -> Refused | None:
    if facts.known:
        return None
    return Refused(
        Refusal.UNKNOWN, f"the store keeps no config {move.config} with the digest {short(move.digest)}"
    )


def _other_policy(move: Move, found: Deployment) -> Refused | None:
    if move.adopt_policy or found.policy in ("", move.policy):
        return None
    return Refused(
        Refusal.POLICY,
        f"{_place(move)} judges by policy {short(found.policy)}, and these settings are "
        f"policy {short(move.policy)}",
        hint="if the change of the settings was reviewed, promote with --adopt-policy; "
        "evidence under the old policy then no longer counts",
    )


def _no_evidence(move: Move, facts: Facts) -> Refused | None:
    name, place = f"{move.config} {short(move.digest)}", _place(move)
    passing = [each for each in facts.records if each.verdict == "pass"]
    under = [each for each in passing if each.policy == move.policy]
    standing = [each for each in under if not each.revoked_by]
    opening = [each for each in standing if move.environment in each.admitted_until]
    if any(each.admitted_until[move.environment] > facts.now for each in opening):
        return None
    rerun = "run `pytest --deploy-gates`, and promote with what it seals"
    if not facts.records:
        return Refused(Refusal.EVIDENCE, f"there is no evidence for {name}", hint=rerun)
    if not passing:
        latest = max(facts.records, key=lambda each: each.finished_at)
        return Refused(
            Refusal.EVIDENCE, f"no evidence for {name} passes: the latest says {latest.verdict}", hint=rerun
        )
    if not under:
        return Refused(
            Refusal.EVIDENCE,
            f"the evidence for {name} was sealed under another policy than {short(move.policy)}",
            hint=rerun,
        )
    if not standing:
        return Refused(
            Refusal.EVIDENCE,
            f"the evidence for {name} was revoked: a later run failed ({short(under[-1].revoked_by)})",
            hint=rerun,
        )
    if not opening:
        return Refused(
            Refusal.EVIDENCE,
            f"the evidence for {name} does not open {move.environment}: its answers are too old "
            "or of unknown age",
            hint="set the endpoint's key and run `pytest --deploy-gates --gate-record=all`",
        )
    until = max(each.admitted_until[move.environment] for each in opening)
    return Refused(
        Refusal.EVIDENCE,
        f"the evidence for {name} opened {place} until {until:%Y-%m-%d %H:%M} UTC, which has passed",
        hint="set the endpoint's key and run `pytest --deploy-gates --gate-record=all`",
    )


def _out_of_order(move: Move, found: Deployment, facts: Facts) -> Refused | None:
    if not facts.after or found.candidate == move.digest:
        return None
    if facts.before is not None and facts.before.baseline == move.digest:
        return None
    serves = short(facts.before.baseline) if facts.before and facts.before.baseline else "nothing"
    return Refused(
        Refusal.ORDER,
        f"{move.environment} takes what {facts.after} serves, and {facts.after} serves {serves}, "
        f"not {short(move.digest)}",
        hint=f"deploy-gates promote {move.config} --to {facts.after}",
    )


def _place(move: Move) -> str:
    return f"{move.config} in {move.environment}"
