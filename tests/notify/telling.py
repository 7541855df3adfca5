"""Channels to services on loopback, and releases that are carried by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from deploy_gates import runner
from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.release import Act, Promotion, Release, State, Status, Step, Terms
from deploy_gates.notify import Telling
from deploy_gates.store import Store
from deploy_gates.testing import POLICY, a_release

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE_S = 20.0


def telling_to(*urls: str, environ: dict[str, str] | None = None, **table: Any) -> Telling:
    """A webhook to each URL: `hook-0`, `hook-1`, …"""
    channels: JsonObject = {
        f"hook-{at}": {"kind": "webhook", "url": url, "secret_env": "HOOK_SECRET"}
        for at, url in enumerate(urls)
    }
    return Telling.of(
        {"channels": channels, **table}, {"HOOK_SECRET": SECRET} if environ is None else environ
    )


def proposed(store: Store, number: int = 1, *, config: str = "ticket-triage", **fields: Any) -> Promotion:
    """A release on its way, under evidence."""
    digest = a_release(store, number, config=config)
    release = Release(config=config, digest=digest, actor="ada", reason="calmer tone", **fields)
    return store.propose(release, until="production", policy=POLICY, terms=Terms(smoke=False))


def moved(store: Store, promotion: Promotion, environment: str) -> Promotion:
    """Everybody in the environment gets it, and the journal says so."""
    promotion = store.take(promotion.id, "runner-1")
    made = runner.promote(
        store,
        config=promotion.release.config,
        environment=environment,
        digest=promotion.release.digest,
        policy=POLICY,
        actor="ada",
        reason="calmer tone",
        key=promotion.key(Step(act=Act.PROMOTE, environment=environment)),
    )
    data: JsonObject = {"said": f"r{made.deployment.revision}", "to": made.deployment.revision}
    return store.write(promotion, Act.PROMOTE, environment, Status.DONE, data)


def concluded(store: Store, promotion: Promotion) -> Promotion:
    taken = store.take(promotion.id, "runner-1")
    return store.conclude(taken, State.SHIPPED, f"{taken.until} serves it")


def shipped(store: Store, number: int = 1, **fields: Any) -> Promotion:
    """A release that went all the way."""
    promotion = proposed(store, number, **fields)
    for environment in promotion.environments:
        promotion = moved(store, promotion, environment)
    return concluded(store, promotion)


def until(holds: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
