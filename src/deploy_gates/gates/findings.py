"""What a check of the type gate finds, gathered sentence by sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deploy_gates import documents
from deploy_gates.core.errors import Problem
from deploy_gates.core.gate import Check, Found, Outcome

NAMED_MAX = 20
"""So many are named; the rest is counted."""


@dataclass(kw_only=True, slots=True)
class Findings:
    """Sentences about one file: what is wrong, what nobody knows, and what is only worth knowing."""

    file: str
    lines: Mapping[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def miss(self, message: str, *, key: str = "", hint: str = "", file: str = "", line: int = 0) -> None:
        """Something is wrong."""
        self.wrong.append(self._said(message, key, hint, file, line))

    def doubt(self, message: str, *, key: str = "", hint: str = "", line: int = 0) -> None:
        """Nobody knows whether something is wrong."""
        self.unknown.append(self._said(message, key, hint, "", line))

    def note(self, message: str, *, key: str = "", hint: str = "", line: int = 0) -> None:
        """Nothing is wrong, but somebody may want to know."""
        self.notes.append(self._said(message, key, hint, "", line))

    def line(self, key: str) -> int:
        """The line of `key`, or of the nearest key above it that has one."""
        while key and key not in self.lines:
            key = documents.parent(key)
        return self.lines.get(key, 0)

    def outcome(self, check: Check) -> Outcome:
        """Missed if anything is wrong, unknown if anything is not known."""
        blocking = list(dict.fromkeys(self.wrong + self.unknown))
        found = Found.MISSED if self.wrong else Found.UNKNOWN if self.unknown else Found.MET
        said = blocking or list(dict.fromkeys(self.notes))
        rest = len(said) - NAMED_MAX
        counted = {"wrong": len(self.wrong), "unknown": len(self.unknown), "notes": len(self.notes)}
        figures = {name: count for name, count in counted.items() if count}
        return check.outcome(
            found, *said[:NAMED_MAX], *([f"… and {rest} more"] if rest > 0 else []), figures=figures
        )

    def _said(self, message: str, key: str, hint: str, file: str, line: int) -> str:
        problem = Problem(
            message=message, file=file or self.file, line=line or self.line(key), key=key, hint=hint
        )
        return str(problem)
