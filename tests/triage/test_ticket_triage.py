"""The support team's own tests of its config: they run inside the gates."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.config import ModelConfig
from deploy_gates.core.question import Answer


@pytest.mark.gate("unit", config="ticket-triage")
def test_the_examples_show_every_category_once(candidate: ModelConfig) -> None:
    shown = [
        json.loads(str(each.content))["category"] for each in candidate.messages if each.role == "assistant"
    ]

    assert sorted(shown) == ["account", "billing", "other", "refund", "shipping", "technical"]


@pytest.mark.gate("integration", config="ticket-triage")
def test_a_lost_parcel_goes_to_shipping(ask: Callable[[JsonObject], Answer]) -> None:
    answer = ask(
        {
            "subject": "Where is my package?",
            "body": "My parcel was supposed to arrive on Monday. The tracking has not moved for five days.",
        }
    )

    assert json.loads(answer.text)["category"] == "shipping"
