"""What a client serves of one config: at most two arms, made once per revision and never changed."""

from __future__ import annotations

from dataclasses import dataclass

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.config import Environment, ModelConfig
from deploy_gates.core.cost import Price
from deploy_gates.core.tally import Arm


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """One arm of one config at one revision."""

    name: str
    environment: str
    revision: int
    arm: Arm
    digest: str
    config: ModelConfig
    price: Price | None = None
    """What a call costs; `None`: nobody said, and no cost is reported."""
    canary: str = ""
    """The salt of the canary that runs, on both arms; empty: none. While one runs, users are counted as well.

    Whoever makes a `Served` of a deployment sets it: `deployment.salt if deployment.candidate else ""`.
    """

    @property
    def document(self) -> JsonObject:
        """The whole configuration, as it was released."""
        return self.config.document

    @property
    def endpoint(self) -> Environment:
        """Where this environment asks: base URL, name of the key, timeout."""
        return self.config.environment(self.environment)
