"""Fakes and builders for tests: ours, and those of the teams that write checks of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from deploy_gates.core.canonical import Json, JsonObject, digest_of, spelled
from deploy_gates.core.config import (
    ENVIRONMENTS,
    Case,
    ConfigChange,
    Message,
    ModelConfig,
    Output,
    Snapshot,
)
from deploy_gates.core.cost import Usage
from deploy_gates.core.errors import Cause, Unanswered
from deploy_gates.core.evidence import FOREVER
from deploy_gates.core.gate import Check, Found, Outcome
from deploy_gates.core.policy import Context, Policy
from deploy_gates.core.promotion import Record
from deploy_gates.core.question import Answer, Api, Question
from deploy_gates.store import Store

NOW = datetime(2026, 11, 23, 9, 14, 2, tzinfo=UTC)
"""The time in tests, unless a test says otherwise."""

TICKET_SCHEMA: JsonObject = {
    "type": "object",
    "properties": {
        "category": {"type": "string", "enum": ["billing", "refund", "technical"]},
        "reason": {"type": "string", "maxLength": 120},
    },
    "required": ["category", "reason"],
    "additionalProperties": False,
}


def a_config(**fields: object) -> ModelConfig:
    """A small valid config that triages a ticket; `fields` override those of `ModelConfig`."""
    made: dict[str, object] = {
        "name": "ticket-triage",
        "model": "gpt-4.1-mini",
        "api": Api.CHAT,
        "messages": (
            Message(role="system", content="Sort the ticket."),
            Message(role="user", content="{{ body }}"),
        ),
        "inputs": {
            "type": "object",
            "properties": {"body": {"type": "string"}},
            "required": ["body"],
            "additionalProperties": False,
        },
        "parameters": {"temperature": 0, "max_completion_tokens": 120},
        "output": Output(name="ticket", schema=TICKET_SCHEMA),
    }
    made |= fields
    if "document" not in made:
        made["document"] = {"digest-of": repr(sorted((key, repr(value)) for key, value in made.items()))}
    return ModelConfig(**made)  # type: ignore[arg-type]  # a builder for tests takes any field


def a_case(id: str, **fields: object) -> Case:
    """A case whose input is its own id and whose expected category is `refund`."""
    made: dict[str, object] = {
        "id": id,
        "inputs": {"body": id},
        "expects": True,
        "expected": {"category": "refund"},
    }
    return Case(**(made | fields))  # type: ignore[arg-type]  # a builder for tests takes any field


def a_snapshot(config: ModelConfig | None = None, cases: Iterable[Case] = (), **fields: object) -> Snapshot:
    """The folder `golden/ticket-triage` with this config and these cases."""
    config = config or a_config()
    made: dict[str, object] = {
        "folder": f"golden/{config.name}",
        "config_file": f"golden/{config.name}/config.yaml",
        "cases_file": f"golden/{config.name}/cases.jsonl",
        "config": config,
        "cases": tuple(cases),
    }
    return Snapshot(**(made | fields))  # type: ignore[arg-type]  # a builder for tests takes any field


def a_change(
    candidate: Snapshot, baseline: Snapshot | None = None, recordings: Mapping[str, Answer] | None = None
) -> ConfigChange:
    """The change from `baseline` to `candidate`."""
    return ConfigChange(
        name=candidate.name, baseline=baseline, candidate=candidate, base="main", recordings=recordings or {}
    )


def a_context(policy: Policy | None = None, **fields: object) -> Context:
    """A run at `NOW` that may not ask, and for which every word is a token."""
    made: dict[str, object] = {
        "policy": policy or Policy(),
        "now": NOW,
        "root": ".",
        "count_tokens": lambda encoding, text: len(text.split()),
    }
    return Context(**(made | fields))  # type: ignore[arg-type]  # a builder for tests takes any field


def an_answer(
    content: Json | str, *, input_tokens: int = 100, output_tokens: int = 20, **fields: object
) -> Answer:
    """An answer; anything but a string becomes its JSON."""
    made: dict[str, object] = {
        "text": content if isinstance(content, str) else json.dumps(content),
        "usage": Usage(input_tokens=input_tokens, output_tokens=output_tokens),
        "model": "gpt-4.1-mini",
        "latency_s": 0.4,
        "asked_at": NOW,
        "recorded": True,
    }
    return Answer(**(made | fields))  # type: ignore[arg-type]  # a builder for tests takes any field


POLICY = "1" * 64
"""The digest of a policy, for evidence made by hand."""


def a_document(number: int = 1) -> JsonObject:
    """The document of a small valid config; numbers make them differ."""
    return {
        "model": "gpt-4.1-mini",
        "messages": [
            {"role": "system", "content": f"Sort the ticket. This is wording {number}."},
            {"role": "user", "content": "{{ body }}"},
        ],
        "inputs": {"type": "object", "properties": {"body": {"type": "string"}}, "required": ["body"]},
        "parameters": {"temperature": 0, "max_completion_tokens": 120},
    }


def a_record(digest: str, **fields: object) -> Record:
    """Passing evidence for a digest, under `POLICY`, that opens every environment for good."""
    made: dict[str, object] = {
        "config": "ticket-triage",
        "digest": digest,
        "policy": POLICY,
        "verdict": "pass",
        "finished_at": NOW,
        "admitted_until": dict.fromkeys(ENVIRONMENTS, FOREVER),
        "envelope": b"{}",
    } | fields
    made.setdefault("id", digest_of(repr(sorted(made.items(), key=str)).encode()))
    return Record(**made)  # type: ignore[arg-type]  # a builder for tests takes any field


def a_release(store: Store, number: int = 1, *, config: str = "ticket-triage", **fields: object) -> str:
    """Have the store keep a config and passing evidence for it; its digest."""
    digest = store.put_config(config, spelled(a_document(number)))
    store.put_evidence(a_record(digest, config=config, **fields))
    return digest


def run_check(check: Check, answer: Callable[[Question], Answer | Unanswered]) -> Outcome:
    """Drive one check to its end with answers written by hand."""
    asking = check.begin()
    try:
        question = next(asking)
        while True:
            reply = answer(question)
            question = asking.throw(reply) if isinstance(reply, Unanswered) else asking.send(reply)
    except StopIteration as end:
        outcome = end.value
        assert isinstance(outcome, Outcome)
        return outcome
    except Unanswered as error:
        return check.outcome(Found.UNKNOWN, error.message)


def never(question: Question) -> Answer | Unanswered:
    """An endpoint that is not there, for checks that ask nothing."""
    return Unanswered(Cause.NOT_RECORDED, f"{question.label or question.digest[:7]} was never recorded")
