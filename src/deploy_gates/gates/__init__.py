"""The five gates: what to check, and how to judge what came out. They ask; they do not call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from deploy_gates.core.config import ConfigChange
from deploy_gates.core.gate import Check, GateName, GateResult, Outcome
from deploy_gates.core.policy import Context
from deploy_gates.gates import cost, golden, integration, type, unit  # noqa: A004  # the gate's name


class Gate(Protocol):
    """A question that a change must pass. Each is a module with these two functions."""

    def checks(self, change: ConfigChange, context: Context) -> Iterator[Check]:
        """What is to be verified of this change."""

    def judge(self, change: ConfigChange, outcomes: Sequence[Outcome], context: Context) -> GateResult:
        """The verdict, from the outcomes of all gates."""


GATES: dict[GateName, Gate] = {
    GateName.TYPE: type,
    GateName.UNIT: unit,
    GateName.INTEGRATION: integration,
    GateName.GOLDEN: golden,
    GateName.COST: cost,
}
"""In the order in which they are shown."""
