"""Carrying one config into one environment: keep it, keep its evidence, take the lease, make the move."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence

from deploy_gates import envelope
from deploy_gates.core import evidence as evidences
from deploy_gates.core.canonical import digest
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.cost import Price
from deploy_gates.core.errors import Refusal, Refused, StoreUnavailable
from deploy_gates.core.policy import Policy
from deploy_gates.core.promotion import (
    Deployment,
    Event,
    Instance,
    Kind,
    Move,
    Moved,
    Record,
    Standing,
    served_before,
    verified,
)
from deploy_gates.envelope import PublicKey
from deploy_gates.store import ROWS_MAX, Store

FOLLOWED_S = 2.0
"""How long to wait for clients to say that they follow: they do within a second, or are gone."""
ATTEMPTS_MAX = 5
"""How often a rollback tries again because the environment was moved meanwhile."""


def keep(store: Store, name: str, spelling: bytes, price: Price | None = None) -> str:
    """Have the store keep a config and what a call of it costs; returns the digest."""
    return store.put_config(name, spelling, price)


def admit(
    store: Store,
    enclosed: bytes,
    *,
    keys: Sequence[PublicKey] = (),
    require_signature: bool = False,
    policy: Policy | None = None,
    dataset: str = "",
    prices: str = "",
) -> Record:
    """Verify evidence and have the store keep it, with the environments it opens.

    With `dataset`, the digest of the golden cases as they are now, and `prices`, where prices are from now,
    evidence found with others is refused. `EnvelopeError` for evidence that cannot be trusted, `Refused` for
    that of a config nobody kept. Evidence that fails is kept as well: it revokes what passed before.
    """
    found = envelope.verify(enclosed, keys, require_signature=require_signature)
    evidence = found.evidence
    outdated = [
        what
        for what, now, then in (
            ("golden cases", dataset, (evidence.dataset_digest,)),
            ("prices", prices, evidence.provenance.price_source.split("; ")),
        )
        if now and now not in then
    ]
    if outdated:
        raise Refused(
            Refusal.EVIDENCE,
            f"the {outdated[0]} of {evidence.config} have changed since the gates ran",
            hint="run `pytest --deploy-gates` again",
        )
    opens = {
        name: until
        for name in ENVIRONMENTS
        if (until := evidences.admitted_until(evidence, environment=name, policy=policy)) is not None
    }
    record = Record(
        id=digest(evidence.to_statement()),
        config=evidence.config,
        digest=evidence.digest,
        policy=evidence.provenance.policy_digest,
        verdict=evidence.verdict.value,
        finished_at=evidence.provenance.finished_at,
        admitted_until=opens,
        envelope=enclosed,
        signed_by=found.signed_by or "",
    )
    store.put_evidence(record)
    return record


def promote(
    store: Store,
    *,
    config: str,
    environment: str,
    digest: str,
    policy: str,
    actor: str,
    reason: str,
    weight_bp: int | None = None,
    key: str = "",
    expected: int | None = None,
    adopt_policy: bool = False,
    lasts_s: float = 0.0,
) -> Moved:
    """Bring a digest into an environment: to everybody, or with `weight_bp` to a share, as a canary.

    A canary that begins is ended by the clients themselves after `lasts_s`; 0: never.
    `policy` is the digest of the policy that its evidence has to be under. `Refused` says why not. The same
    `key` makes the same move once.
    """
    lease = store.acquire(config, environment, owner(actor))
    try:
        return store.move(
            Move(
                config=config,
                environment=environment,
                kind=Kind.PROMOTE if weight_bp is None else Kind.CANARY,
                digest=digest,
                weight_bp=weight_bp or 0,
                salt="" if weight_bp is None else secrets.token_hex(8),
                lasts_s=0.0 if weight_bp is None else lasts_s,
                expected=lease.revision if expected is None else expected,
                fence=lease.fence,
                policy=policy,
                adopt_policy=adopt_policy,
                actor=actor,
                reason=reason,
                key=key or secrets.token_hex(16),
            )
        )
    finally:
        with contextlib.suppress(StoreUnavailable):  # the move is made or refused all the same; leases expire
            store.release(lease)


def rollback(
    store: Store,
    *,
    config: str,
    environment: str,
    actor: str,
    reason: str,
    digest: str = "",
    key: str = "",
    expected: int | None = None,
) -> Moved:
    """End the canary; where none runs, bring back what was served before, or the `digest` named.

    It waits for no lease, takes the environment from whoever moves it, and needs no evidence: what it brings
    back was served here before. `Refused` where there is nothing to go back to.
    """
    key = key or secrets.token_hex(16)
    first = _standing(store, config, environment)
    found = first
    for _ in range(ATTEMPTS_MAX):
        try:
            return store.move(
                Move(
                    config=config,
                    environment=environment,
                    kind=Kind.ROLLBACK,
                    digest=digest or _target(store, found),
                    expected=found.revision if expected is None else expected,
                    fence=found.fence,
                    actor=actor,
                    reason=reason,
                    key=key,
                )
            )
        except Refused as refused:
            found = _standing(store, config, environment)
            is_same = (found.baseline, found.candidate) == (first.baseline, first.candidate)
            if refused.refusal is not Refusal.REVISION or expected is not None or not is_same:
                raise
    raise Refused(Refusal.REVISION, f"{config} in {environment} is being moved too often to be rolled back")


def events(store: Store, config: str, environment: str) -> Iterator[Event]:
    """The whole history of one deployment, oldest first, a page at a time."""
    after = 0
    while page := store.history(config, environment, after=after, limit=ROWS_MAX):
        yield from page
        after = page[-1].revision


def problems(store: Store, deployment: Deployment) -> Iterator[str]:
    """Everything that is wrong with the history of a deployment, named row by row.

    It may be moved meanwhile: then its history ends somewhere between how it stood before and how it stands
    after.
    """
    history = list(events(store, deployment.config, deployment.environment))
    after = _standing(store, deployment.config, deployment.environment)
    last = history[-1] if history else None
    end = last.revision if last else 0
    is_between = deployment.revision <= end <= after.revision
    yield from verified(history, end if is_between else after.revision)
    for each in (deployment, after):
        expires_ms = round(each.expires_at.timestamp() * 1000) if each.expires_at else 0
        told = last and (last.baseline, last.candidate, last.weight_bp, last.salt, last.expires_at_ms)
        serves = (each.baseline, each.candidate, each.weight_bp, each.salt, expires_ms)
        if last and each.revision == end and serves != told:
            yield (
                f"{each.config} in {each.environment} serves something else than r{end} of its history says: "
                "the row was edited"
            )
            return


def status(store: Store, *, environment: str = "", config: str = "") -> tuple[Standing, ...]:
    """What runs where, and which clients have it."""
    found: dict[tuple[str, str], list[Instance]] = {}
    for each in store.instances(environment, config):
        found.setdefault((each.config, each.environment), []).append(each)
    return tuple(
        Standing(deployment=each, instances=tuple(found.get((each.config, each.environment), ())))
        for each in store.deployments(environment, config)
        if each.revision
    )


def followed(store: Store, deployment: Deployment, timeout_s: float = FOLLOWED_S) -> Standing:
    """The deployment and its clients, as soon as all of them serve its revision, or after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        instances = store.instances(deployment.environment, deployment.config)
        behind = [each for each in instances if each.revision < deployment.revision and not each.refused]
        if not behind or time.monotonic() > deadline:
            return Standing(deployment=deployment, instances=instances)
        time.sleep(0.02)


def owner(actor: str) -> str:
    """A name for one runner: no other one has it, wherever it runs."""
    return f"{actor}@{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def _standing(store: Store, config: str, environment: str) -> Deployment:
    found = store.deployments(environment, config)
    return found[0] if found else Deployment(config=config, environment=environment)


def _target(store: Store, deployment: Deployment) -> str:
    if deployment.candidate or not deployment.revision:
        return deployment.baseline
    target = served_before(events(store, deployment.config, deployment.environment))
    if not target:
        raise Refused(
            Refusal.STATE,
            f"{deployment.config} in {deployment.environment} never served anything but what it serves now: "
            "there is nothing to go back to",
        )
    return target
