"""A document that passed its schema becomes a value; one that did not is refused, and never half read."""

from __future__ import annotations

import pytest

from deploy_gates.core import parsing
from deploy_gates.core.canonical import JsonObject, restored, spelled
from deploy_gates.testing import a_document


def test_a_document_that_was_kept_makes_the_same_config() -> None:
    document = a_document()

    made = parsing.config(restored(spelled(document)), "ticket-triage")

    assert made == parsing.config(document, "ticket-triage")
    assert made.max_output_tokens == 120


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": "hello"}, "a list belongs"),
        ({"messages": [{"role": "user"}]}, "no `content`"),
        ({"parameters": []}, "an object belongs"),
        ({"output": {}}, "no `schema`"),
        ({"environments": {"production": {"timeout_s": "soon"}}}, "a number belongs"),
        ({"api": "telepathy"}, "telepathy"),
    ],
)
def test_a_document_that_is_not_one_says_what_is_wrong(change: JsonObject, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parsing.config(a_document() | change, "ticket-triage")
