"""Configs to release, and a team that releases them into a real store."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

from deploy_gates import clock, runner
from deploy_gates.client import ConfigClient
from deploy_gates.core import canonical
from deploy_gates.core.cost import Price
from deploy_gates.core.promotion import Record
from deploy_gates.store import Store, open_store

POLICY = "f" * 64
ENVIRONMENT = "development"
PRICE = Price(input_usd=Decimal("0.10"), output_usd=Decimal("0.20"), source="a test")
PATIENCE_S = 20.0
"""Long enough for a busy machine; nobody waits for it where all is well."""


def document(version: int) -> dict[str, Any]:
    """A config that can be told from every other version."""
    return {
        "model": f"model-{version}",
        "messages": [{"role": "user", "content": f"Version {version}: {{{{ subject }}}}"}],
        "inputs": {
            "type": "object",
            "properties": {"subject": {"type": "string"}},
            "required": ["subject"],
            "additionalProperties": False,
        },
        "parameters": {"temperature": 0},
        "environments": {
            ENVIRONMENT: {"base_url": "http://models.test/v1", "api_key_env": "TEST_KEY", "timeout_s": 7}
        },
    }


def digest(version: int) -> str:
    return canonical.digest(document(version))


@dataclass
class Team:
    """Releases versions of configs, with all the evidence it takes."""

    store: Store
    served: dict[int, int] = field(default_factory=dict)
    """Which version a revision of `triage` has as its baseline."""

    def release(
        self, version: int, config: str = "triage", *, weight_bp: int | None = None, lasts_s: float = 0.0
    ) -> int:
        """Promote a version, or serve it to a share, for so long; returns the revision."""
        spelling = canonical.spelled(
            document(version) | ({} if config == "triage" else {"consumers": [config]})
        )
        revision = self.release_spelled(spelling, config, weight_bp=weight_bp, lasts_s=lasts_s)
        if config == "triage" and weight_bp is None:
            self.served[revision] = version
        return revision

    def release_spelled(
        self,
        spelling: bytes,
        config: str = "triage",
        *,
        weight_bp: int | None = None,
        lasts_s: float = 0.0,
    ) -> int:
        digest = runner.keep(self.store, config, spelling, PRICE)
        self.store.put_evidence(
            Record(
                id=os.urandom(32).hex(),
                config=config,
                digest=digest,
                policy=POLICY,
                verdict="pass",
                finished_at=clock.now(),
                admitted_until={ENVIRONMENT: clock.now() + timedelta(days=1)},
                envelope=b"{}",
            )
        )
        moved = runner.promote(
            self.store,
            config=config,
            environment=ENVIRONMENT,
            digest=digest,
            policy=POLICY,
            actor="ada",
            reason="a test",
            weight_bp=weight_bp,
            lasts_s=lasts_s,
        )
        return moved.deployment.revision

    def roll_back(self, config: str = "triage") -> int:
        moved = runner.rollback(
            self.store, config=config, environment=ENVIRONMENT, actor="ada", reason="a test"
        )
        return moved.deployment.revision


@contextlib.contextmanager
def team(url: str, *, durable: bool = False) -> Iterator[Team]:
    """A team at the store, whose tables are there."""
    store = open_store(url, durable=durable)
    try:
        store.upgrade()
        yield Team(store)
    finally:
        store.close()


def eventually(condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def follows(client: ConfigClient, revision: int, config: str = "triage") -> bool:
    return client.wait_for(config, revision, PATIENCE_S)
