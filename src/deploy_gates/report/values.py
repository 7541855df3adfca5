"""What reports are made of, and the sentences that all of them say in the same words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from math import isfinite

from deploy_gates.core.canonical import Json, JsonObject, short
from deploy_gates.core.config import ConfigChange, Snapshot
from deploy_gates.core.cost import NANO, dollars
from deploy_gates.core.gate import GateName, GateResult, Verdict, worst
from deploy_gates.report.text import counted, listed

MARKS = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.INCONCLUSIVE: "?", Verdict.SKIP: "–"}


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """What five gates found of one changed config."""

    change: ConfigChange
    results: tuple[GateResult, ...]
    """Of the five gates, in their order; one that was not chosen is a skip."""
    evidence_path: str = ""
    open_to: tuple[str, ...] = ()
    """The environments its evidence is admitted to."""
    hints: tuple[str, ...] = ()
    """More to act on, besides the hints of the gates."""

    @property
    def verdict(self) -> Verdict:
        return worst(result.verdict for result in self.results)

    @property
    def blocks(self) -> bool:
        return self.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)

    @property
    def word(self) -> str:
        """The verdict on the last line."""
        return verdict_word(self.verdict)

    @property
    def conclusion(self) -> str:
        """What is true now: `d20b7f4 may not be merged: golden fails`."""
        config = self.change.candidate.config
        name = short(config.digest) if config else self.change.name
        failed = [result.gate for result in self.results if result.verdict is Verdict.FAIL]
        unknown = [result.gate for result in self.results if result.verdict is Verdict.INCONCLUSIVE]
        skipped = [result.gate for result in self.results if result.verdict is Verdict.SKIP]
        passed = [result.gate for result in self.results if result.verdict is Verdict.PASS]
        if self.blocks:
            why = []
            if failed:
                why.append(f"{listed(failed)} {'fails' if len(failed) == 1 else 'fail'}")
            if unknown:
                why.append(f"{listed(unknown)} {'is' if len(unknown) == 1 else 'are'} inconclusive")
            return f"{name} may not be merged: {'; '.join(why)}"
        if not passed:
            return f"{name} was not gated: every gate was skipped"
        if "production" in self.open_to:
            return f"{name} may be promoted"
        if self.open_to:
            return f"{name} may go to {listed(self.open_to)}"
        if skipped:
            was = "was" if len(skipped) == 1 else "were"
            return f"{name} passes {listed(passed)}; {listed(skipped)} {was} skipped"
        return f"{name} passes the five gates"

    @property
    def all_hints(self) -> tuple[str, ...]:
        """What to do, each once: first what the blocking gates advise."""
        advised = [result.hint for result in self.results if result.blocks and result.hint]
        return tuple(dict.fromkeys([*advised, *self.hints]))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """What one run of the gates found."""

    changes: tuple[GateReport, ...]
    base: str
    started_at: datetime
    finished_at: datetime
    unchanged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    asked: int = 0
    replayed: int = 0
    spent_nanousd: int = 0
    budget_usd: Decimal | None = None
    notes: tuple[str, ...] = ()
    tool_version: str = ""

    @property
    def verdict(self) -> Verdict:
        """That of the worst config; where none changed, there was nothing to gate."""
        return worst(report.verdict for report in self.changes) if self.changes else Verdict.SKIP

    @property
    def word(self) -> str:
        return verdict_word(self.verdict)

    @property
    def conclusion(self) -> str:
        """The whole run in one sentence."""
        if not self.changes:
            since = f" since {self.base}" if self.base else ""
            return f"no config changed{since}: there is nothing to gate"
        blocked = [report.change.name for report in self.changes if report.blocks]
        if blocked:
            of = counted(len(self.changes), "config")
            return f"{len(blocked)} of {of} may not be merged: {listed(blocked)}"
        return f"{counted(len(self.changes), 'config')} gated, none blocks"

    @property
    def account(self) -> str:
        """Where the answers came from, and what they cost."""
        spent = dollars(self.spent_nanousd)
        if self.budget_usd is not None:
            spent += f" of {dollars(int(self.budget_usd * NANO))}"
        took = seconds((self.finished_at - self.started_at).total_seconds())
        return f"{counted(self.asked, 'question')} asked, {self.replayed:,} replayed, {spent} spent, {took}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseChange:
    """One golden case that came out differently than with the baseline."""

    case: str
    field: str = ""
    expected: str = ""
    got: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The golden gate's numbers in points, for a picture: the change, its interval, and the margin."""

    change_pt: float
    low_pt: float
    high_pt: float
    margin_pt: float
    confidence: float


def verdict_word(verdict: Verdict) -> str:
    """What a verdict means for the merge: `PASS`, `SKIP`, or `BLOCK`."""
    return "BLOCK" if verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE) else verdict.upper()


def golden(report: GateReport) -> GateResult:
    return next(result for result in report.results if result.gate is GateName.GOLDEN)


def case_changes(result: GateResult, key: str) -> tuple[CaseChange, ...]:
    """The cases under `worse` or `better` in the golden gate's figures."""
    listed_ = result.figures.get(key)
    if not isinstance(listed_, list):
        return ()
    return tuple(_case_change(each) for each in listed_ if isinstance(each, dict))


def comparison(result: GateResult) -> Comparison | None:
    """The numbers to draw; `None` where there was no baseline, or nothing could be measured."""
    figures = [
        result.figures.get(key) for key in ("change_pt", "low_pt", "high_pt", "margin_pt", "confidence")
    ]
    numbers = [float(each) for each in figures if isinstance(each, int | float) and isfinite(each)]
    if len(numbers) != len(figures):
        return None
    change, low, high, margin, confidence = numbers
    return Comparison(change_pt=change, low_pt=low, high_pt=high, margin_pt=margin, confidence=confidence)


def worse_words(worse: Sequence[CaseChange], better: Sequence[CaseChange]) -> str:
    """`15 cases got worse, 3 got better; 11 of the 15 are tagged refund`."""
    said = f"{counted(len(worse), 'case')} got worse, {len(better):,} got better"
    tags = Counter(tag for case in worse for tag in case.tags)
    tag, count = min(tags.items(), key=lambda each: (-each[1], each[0]), default=("", 0))
    if count * 2 > len(worse) > 2:
        said += f"; {count} of the {len(worse)} are tagged {tag}"
    return said


def better_words(better: Sequence[CaseChange]) -> str:
    return f"{counted(len(better), 'case')} got better"


def title_words(change: ConfigChange) -> str:
    """`ticket-triage  3f9c2e1 → 8a41d07`."""
    was = f" (was {change.renamed_from})" if change.renamed_from else ""
    return f"{change.name}{was}  {baseline_words(change)} → {digest_words(change.candidate)}"


def baseline_words(change: ConfigChange) -> str:
    return digest_words(change.baseline) if change.baseline else "new"


def digest_words(snapshot: Snapshot) -> str:
    return short(snapshot.config.digest) if snapshot.config else "unreadable"


def seconds(amount: float) -> str:
    """A duration as people read it: `0.1 s`, `41.8 s`, `4.2 min`."""
    return f"{amount:.1f} s" if amount < 100 else f"{amount / 60:.1f} min"


def took_words(result: GateResult) -> str:
    return seconds(result.took_s) if result.took_s else ""


def spent_words(result: GateResult) -> str:
    """To a tenth of a cent, so that a column of them lines up."""
    if not result.spent_nanousd:
        return ""
    if result.spent_nanousd < NANO // 2000:
        return "<$0.001"
    if result.spent_nanousd < 100 * NANO:
        return f"${result.spent_nanousd / NANO:.3f}"
    return dollars(result.spent_nanousd)


def _case_change(raw: JsonObject) -> CaseChange:
    tags = raw.get("tags")
    return CaseChange(
        case=_text(raw.get("case")),
        field=_text(raw.get("field")),
        expected=_text(raw.get("expected")),
        got=_text(raw.get("got")),
        tags=tuple(_text(tag) for tag in tags) if isinstance(tags, list) else (),
    )


def _text(value: Json) -> str:
    return "" if value is None else str(value)
