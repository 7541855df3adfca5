"""Check, Outcome, Verdict, GateResult; and the verdict of a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TypeAlias

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.cost import Usage
from deploy_gates.core.question import Answer, Question


class GateName(StrEnum):
    """The five gates, in the order in which they are shown."""

    TYPE = "type"
    UNIT = "unit"
    INTEGRATION = "integration"
    GOLDEN = "golden"
    COST = "cost"


class Verdict(StrEnum):
    """What a gate says; everything but pass and skip blocks."""

    PASS = "pass"
    SKIP = "skip"
    INCONCLUSIVE = "inconclusive"
    FAIL = "fail"


SEVERITY = (Verdict.SKIP, Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a whole is that of its worst part; nothing measured is inconclusive."""
    return max(verdicts, key=SEVERITY.index, default=Verdict.INCONCLUSIVE)


class Found(StrEnum):
    """What one check found."""

    MET = "met"
    MISSED = "missed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one check found, with the figures its gate decides on. Travels as JSON and comes back equal."""

    check: str
    """The check's id: unique within a run."""
    gate: GateName
    config: str
    found: Found
    reasons: tuple[str, ...] = ()
    """One sentence each: why it was missed or could not be known; what stands out where it was met."""
    case: str = ""
    tags: tuple[str, ...] = ()
    figures: JsonObject = field(default_factory=dict)
    """Plain numbers and strings that the gate's `judge` reads."""
    usage: Usage | None = None
    """What its answers used, recorded ones too."""
    spent_nanousd: int = 0
    """What was paid for it in this run."""
    took_s: float = 0.0
    asked: int = 0
    replayed: int = 0
    oldest_answer: str = ""
    """When the oldest answer it rests on was given, RFC 3339; empty where it rests on none."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        raw = json.loads(text)
        return cls(
            **raw
            | {
                "gate": GateName(raw["gate"]),
                "found": Found(raw["found"]),
                "reasons": tuple(raw["reasons"]),
                "tags": tuple(raw["tags"]),
                "usage": Usage(**raw["usage"]) if raw["usage"] else None,
            }
        )


Asking: TypeAlias = Generator[Question, Answer, Outcome]
"""Yields what it wants to ask, is sent each answer, returns what it found.

Where a question has no answer, `Unanswered` is thrown into it; a check that lets it pass ends as unknown.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing to verify."""

    id: str
    """`golden/ticket-triage/cases.jsonl::refund-partial`: also its node id in pytest."""
    gate: GateName
    config: str
    begin: Callable[[], Asking]
    case: str = ""
    tags: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return self.id.partition("::")[0]

    @property
    def name(self) -> str:
        return self.id.partition("::")[2]

    def outcome(
        self,
        found: Found,
        *reasons: str,
        figures: Mapping[str, Json] | None = None,
        usage: Usage | None = None,
    ) -> Outcome:
        """An outcome of this check; who ran it adds time, money, and where the answers came from."""
        return Outcome(
            check=self.id,
            gate=self.gate,
            config=self.config,
            found=found,
            reasons=reasons,
            case=self.case,
            tags=self.tags,
            figures=dict(figures or {}),
            usage=usage,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    """One gate's verdict, with the number it turned on and the limit."""

    gate: GateName
    verdict: Verdict
    measured: tuple[str, ...]
    """What was found, in a line or two: `372 of 400, baseline 384`."""
    required: tuple[str, ...] = ()
    """What was asked for, line by line beside `measured`."""
    reasons: tuple[str, ...] = ()
    """Why it blocks, most important first, one sentence each."""
    hint: str = ""
    checks: int = 0
    missed: int = 0
    unknown: int = 0
    figures: JsonObject = field(default_factory=dict)
    """The same in numbers, for machines and for evidence."""
    took_s: float = 0.0
    spent_nanousd: int = 0

    @property
    def blocks(self) -> bool:
        return self.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)
