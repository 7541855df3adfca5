"""Three environments, users that tests simulate bin by bin, and a clock that moves as fast as asked to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from deploy_gates import clock, runner
from deploy_gates.core.canonical import spelled
from deploy_gates.core.release import Promotion, Release, Terms
from deploy_gates.core.tally import BIN_MS, GROWTH, Arm, Histogram, Tally
from deploy_gates.ship.carrying import Carrier
from deploy_gates.store import Store
from deploy_gates.testing import POLICY, a_document, a_record

CONFIG = "ticket-triage"
WAITS_MAX = 3_000
"""Whoever waits for so long waits for ever."""


@dataclass
class Road:
    """A store with evidence for some versions of a config, and users of whatever production serves."""

    store: Store
    rate_rps: int = 1_000
    slower: float = 1.0
    """The candidate takes so many times as long."""
    failing: float = 0.01
    """So often the candidate fails; the baseline fails once in a hundred."""
    at: datetime = field(default_factory=clock.now)
    meanwhile: dict[int, Callable[[], object]] = field(default_factory=dict)
    """What happens after so many waits."""
    waits: int = 0
    sent: int = 0
    told_ms: int = 0
    first_ms: int = 0
    """From here bins are counted: what users get in a bin depends on its number, not on the time of day."""

    def __post_init__(self) -> None:
        self.told_ms = (int(self.at.timestamp() * 1000) // BIN_MS - 24) * BIN_MS  # two minutes of the past
        self.first_ms = self.told_ms

    def now(self) -> datetime:
        return self.at

    def wait(self, seconds: float) -> None:
        self.waits += 1
        assert self.waits < WAITS_MAX, "nothing is decided"
        self.at += timedelta(seconds=seconds)
        self.serve()
        if self.waits in self.meanwhile:
            self.meanwhile.pop(self.waits)()

    def digest(self, version: int) -> str:
        """Keep a version and passing evidence for it."""
        digest = runner.keep(self.store, CONFIG, spelled(a_document(version)))
        self.store.put_evidence(a_record(digest, finished_at=clock.now() - timedelta(minutes=4)))
        return digest

    def release(self, version: int, actor: str = "ada") -> Release:
        return Release(config=CONFIG, digest=self.digest(version), actor=actor, reason=f"version {version}")

    def propose(
        self, version: int, *, until: str = "production", actor: str = "ada", **terms: Any
    ) -> Promotion:
        given: dict[str, Any] = {"smoke": False, "lasts_s": 1_200.0}
        return self.store.propose(
            self.release(version, actor), until=until, policy=POLICY, terms=Terms(**(given | terms))
        )

    def carrier(self, name: str = "ship", **fields: Any) -> Carrier:
        given: dict[str, Any] = {"now": self.now, "wait": self.wait}
        return Carrier(store=self.store, owner=runner.owner(name), **(given | fields))

    def ship(self, version: int, **terms: Any) -> Promotion:
        """Propose and carry; how it ended or stands."""
        proposed = self.propose(version, **terms)
        return self.carried(proposed.id)

    def carried(self, id: int, **fields: Any) -> Promotion:
        assert list(self.carrier(**fields).ship(id)), id
        found = self.store.promotion(id)
        assert found is not None, id
        return found

    def serves(self, environment: str = "production") -> tuple[str, str]:
        """Baseline and candidate."""
        found = self.store.deployments(environment, CONFIG)
        return (found[0].baseline, found[0].candidate) if found else ("", "")

    def serve(self) -> None:
        """Tell of every bin that has ended by now what users of production got in it."""
        end_ms = int(self.at.timestamp() * 1000) // BIN_MS * BIN_MS
        found = self.store.deployments("production", CONFIG)
        if not found or not found[0].revision:
            self.told_ms = end_ms
            return
        here = found[0]
        made = []
        for start_ms in range(self.told_ms, end_ms, BIN_MS):
            n = self.rate_rps * BIN_MS // 1000
            share = here.weight_bp / 10_000
            made.append(self._tally(Arm.BASELINE, here.revision, start_ms, round(n * (1 - share))))
            if here.candidate:
                made.append(self._tally(Arm.CANDIDATE, here.revision, start_ms, round(n * share)))
        self.store.add_tallies("users", self.sent, made)
        self.sent += len(made)
        self.told_ms = max(self.told_ms, end_ms)

    def _tally(self, arm: Arm, revision: int, start_ms: int, n: int) -> Tally:
        rng = np.random.default_rng([(start_ms - self.first_ms) // BIN_MS, arm is Arm.CANDIDATE])
        is_candidate = arm is Arm.CANDIDATE
        errors = int(rng.binomial(n, self.failing if is_candidate else 0.01))
        lengths = rng.lognormal(0, 0.8, n - errors)
        return Tally(
            config=CONFIG,
            environment="production",
            revision=revision,
            arm=arm,
            start_ms=start_ms,
            started=n,
            finished=n,
            errors=errors,
            latency_s=_histogram(lengths * (self.slower if is_candidate else 1.0)),
            cost_usd=_histogram(lengths * 0.002),
        )


def _histogram(values: np.ndarray) -> Histogram:
    buckets, counts = np.unique(np.floor(np.log(values) / np.log(GROWTH)).astype(int), return_counts=True)
    return Histogram(
        counts={int(each): int(count) for each, count in zip(buckets, counts, strict=True)},
        total=float(values.sum()),
    )
