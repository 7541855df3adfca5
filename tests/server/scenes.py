"""What a dashboard may have to show: releases on their way, canaries with users, letters that died."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

from deploy_gates import clock, envelope, runner
from deploy_gates.core.canonical import spelled
from deploy_gates.core.delivery import Delivery, Fate
from deploy_gates.core.gate import GateName, GateResult
from deploy_gates.core.policy import Policy
from deploy_gates.core.release import Act, Promotion, Release, Status, Terms
from deploy_gates.core.tally import BIN_MS, Arm, Histogram, Tally
from deploy_gates.store import Store
from deploy_gates.testing import POLICY, a_document
from sealed import an_evidence

CONFIG = "ticket-triage"


def kept(store: Store, version: int, config: str = CONFIG, *gates: GateResult) -> str:
    """A version of a config, with evidence that passes."""
    digest = runner.keep(store, config, spelled(a_document(version)))
    evidence = an_evidence(digest, config=config)
    found = {each.gate: each for each in (*evidence.gates, *gates)}
    evidence = replace(evidence, gates=tuple(found[each] for each in GateName))
    runner.admit(store, envelope.enclose(evidence), policy=replace(Policy(), digest=POLICY))
    return digest


def served(
    store: Store, digest: str, environment: str, config: str = CONFIG, share: int | None = None
) -> int:
    """Move an environment by hand; the revision."""
    return runner.promote(
        store,
        config=config,
        environment=environment,
        digest=digest,
        policy=POLICY,
        actor="lin",
        reason="calmer tone",
        weight_bp=share,
    ).deployment.revision


def proposed(store: Store, digest: str, config: str = CONFIG, reason: str = "shorter answers") -> Promotion:
    """A release on its way, which a runner of the tests carries."""
    release = Release(config=config, digest=digest, actor="ada", reason=reason, commit="93aa05f" * 5)
    found = store.propose(release, until="production", policy=POLICY, terms=Terms(smoke=False))
    return store.take(found.id, "ship@laptop:1:1", timedelta(minutes=9))


def done(store: Store, promotion: Promotion, act: Act, environment: str, said: str, **data: int) -> Promotion:
    """A step, begun and ended."""
    begun = store.write(promotion, act, environment, Status.BEGUN, {})
    return store.write(begun, act, environment, Status.DONE, {"said": said, **data})


def in_canary(store: Store) -> Promotion:
    """Version 2 has a twentieth of production, and version 1 the rest."""
    for environment in ("development", "staging", "production"):
        served(store, kept(store, 1), environment)
    promotion = proposed(store, kept(store, 2))
    promotion = done(store, promotion, Act.ADMIT, "", "five gates pass, signed by ci")
    for environment in ("development", "staging"):
        revision = served(store, promotion.release.digest, environment)
        promotion = done(store, promotion, Act.PROMOTE, environment, f"r{revision - 1} → r{revision}")
    revision = served(store, promotion.release.digest, "production", share=500)
    promotion = done(store, promotion, Act.CANARY, "production", "r2 sends 5 %", to=revision)
    return store.write(promotion, Act.ANALYSIS, "production", Status.BEGUN, {})


def users(store: Store, promotion: Promotion) -> None:
    """What users of both arms got in the minute that has just ended."""
    end_ms = int(clock.now().timestamp() * 1000) // BIN_MS * BIN_MS
    revision = store.deployments("production", CONFIG)[0].revision
    begun_ms = store.history(CONFIG, "production", after=revision - 1)[0].at_ms
    first_ms = begun_ms // BIN_MS * BIN_MS
    made = [
        Tally(
            config=CONFIG,
            environment="production",
            revision=revision,
            arm=arm,
            start_ms=start_ms,
            started=n,
            finished=n,
            errors=n // 100,
            latency_s=Histogram(counts={0: n}, total=float(n)),
            cost_usd=Histogram(counts={-300: n}, total=0.002 * n),
        )
        for start_ms in range(first_ms, max(end_ms, first_ms) + 12 * BIN_MS, BIN_MS)
        for arm, n in ((Arm.BASELINE, 9_500), (Arm.CANDIDATE, 500))
    ]
    store.add_tallies("users", 0, made)


def dead_letter(store: Store) -> None:
    """A notification that was given up."""
    promotion = proposed(store, kept(store, 60, "summaries"), "summaries")
    now = clock.now()
    letter = Delivery(
        id="letter",
        thread=f"promotion/{promotion.id}",
        channel="chat",
        body={"type": "io.deploy-gates.promotion.proposed"},
        created_at=now,
        next_at=now,
    )
    store.announced(promotion, [letter])
    (due,) = store.due()
    store.settle(replace(due, state=Fate.DEAD, attempts=9, error="connection refused"))


def elsewhere(store: Store, statement: str) -> None:
    """Another process does this with the store."""
    source = (
        "import sys\nfrom deploy_gates.core.release import Act, State, Status\n"
        "from deploy_gates.store import open_store\n"
        f"store = open_store(sys.argv[1])\n{statement}\nstore.close()"
    )
    subprocess.run([sys.executable, "-c", source, store.url], check=True, timeout=60)


def tampered(store: Store, statement: str) -> None:
    """Somebody with access to the file of the store rewrites history."""
    connection = sqlite3.connect(store.url.removeprefix("sqlite:///"))
    try:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)
        connection.commit()
    finally:
        connection.close()
