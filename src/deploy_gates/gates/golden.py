"""Answers are no worse than the baseline's by more than the margin, as far as all cases together can prove.

A single case proves nothing, so the gate decides and not the case. A config without a baseline is held to a
pass rate, which has to be proved as well.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy_gates.core import quarantine, stats, stopping
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import Case, ConfigChange, Kind, ModelConfig
from deploy_gates.core.errors import Cause, Problem
from deploy_gates.core.gate import Asking, Check, Found, GateName, GateResult, Outcome, Verdict, worst
from deploy_gates.core.past import Past
from deploy_gates.core.policy import Context, GoldenPolicy
from deploy_gates.core.quarantine import Quarantine
from deploy_gates.core.stats import Conclusion, Pair, Paired
from deploy_gates.gates import asking, judging
from deploy_gates.snapshot import LABELS

SAMPLES_MAX = 20
"""Whoever needs more samples than that needs more cases."""
NAMED_MAX = 20
"""So many cases are named in a sentence; the rest is counted."""


def checks(change: ConfigChange, context: Context) -> Iterator[Check]:
    """The dataset against the baseline's, then every case."""
    config = change.candidate.config
    if config is None:
        return
    dataset = functools.partial(_dataset, change=change, config=config, context=context)
    yield _check(f"{change.candidate.config_file}::golden/dataset", change.name, dataset)
    yield from judging.label_checks(change)
    arms = asking.arms(change, config, context, str(Path(context.root, change.candidate.folder)))
    for case in change.candidate.cases:
        compare = functools.partial(asking.compare, case=case, arms=arms)
        yield _check(f"{change.candidate.cases_file}::{case.id}", change.name, compare, case)


def judge(change: ConfigChange, outcomes: Sequence[Outcome], context: Context) -> GateResult:
    """The verdict of all cases together. Of several findings the worst counts, and is told first."""
    order = {case.id: at for at, case in enumerate(change.candidate.cases)}
    own = sorted(
        (each for each in outcomes if each.gate is GateName.GOLDEN),
        key=lambda each: (order.get(each.case, -1), each.check),
    )
    if not own:
        return _nothing(context)
    apart = quarantine.of(change.candidate.config, context.now)
    all_unknown = [each for each in own if each.case and each.found is Found.UNKNOWN]
    all_known = [_Scored.of(each) for each in own if each.case and each.found is not Found.UNKNOWN]
    known = [each for each in all_known if each.outcome.case not in apart.cases]
    unknown = [each for each in all_unknown if each.case not in apart.cases]
    policy = context.policy.golden
    if has_baseline(change):
        stopped = _stopped(change, known, context)
        if stopped is not None and stopped.is_certain:
            unknown = [each for each in unknown if not _is_spared(each)]
        compared = _against_baseline(known, policy, stopped)
    else:
        compared = _on_its_own(known, policy)
    findings = [
        *_dataset_findings([each for each in own if not each.case]),
        *_judge_findings(change, own),
        *_must_pass_findings(all_known),
        *_quarantine_findings(apart, known=order),
        *_flaky_findings(change, context),
        *_unknown_findings(unknown),
        # The cases that happen to be known are not the sample that was drawn: nothing follows from them.
        *([] if unknown else [compared.finding]),
    ]
    findings.sort(key=lambda each: each.verdict is not Verdict.FAIL)
    not_known = f", {len(unknown):,} not known" if unknown and known else ""
    return GateResult(
        gate=GateName.GOLDEN,
        verdict=worst(each.verdict for each in findings),
        measured=(compared.measured[0] + not_known, *compared.measured[1:]),
        required=compared.required,
        reasons=tuple(reason for each in findings for reason in each.reasons),
        hint=next((each.hint for each in findings if each.hint), ""),
        checks=len(own),
        missed=sum(each.found is Found.MISSED for each in own),
        unknown=sum(each.found is Found.UNKNOWN and not _is_spared(each) for each in own),
        figures=compared.figures | _apart_figures(apart, all_known) | _judge_figures(own),
    )


def _check(id: str, config: str, begin: Callable[[Check], Asking], case: Case | None = None) -> Check:
    check = Check(
        id=id,
        gate=GateName.GOLDEN,
        config=config,
        begin=lambda: begin(check),
        case=case.id if case else "",
        tags=case.tags if case else (),
    )
    return check


# --- The dataset --------------------------------------------------------------------------------


def _dataset(check: Check, *, change: ConfigChange, config: ModelConfig, context: Context) -> Asking:
    """The cases may grow and change; they may not quietly become fewer, or ask for less."""
    yield from ()
    base, least = change.base or "the baseline", max(1, context.policy.golden.min_cases)
    cases = {case.id: case for case in change.candidate.cases}
    before = {case.id: case for case in change.baseline.cases} if change.baseline else {}
    gone = [each for each in before if each not in cases and each not in _retired(config)]
    kept = [(was, cases[each]) for each, was in before.items() if each in cases]
    weaker = [f"{now.id} ({lost})" for was, now in kept if (lost := _lost(was, now))]
    changed = [now.id for was, now in kept if was.expects and now.expects and was.expected != now.expected]
    problems = []
    if len(cases) < least:
        problems.append((f"holds {_cases(len(cases))}, and the policy wants at least {least}", "add cases"))
    if gone:
        hint = "put them back, or name those removed on purpose in the config: `golden: {retired: [...]}`"
        problems.append((f"lacks {_cases(len(gone))} of {base}: {_named(gone)}", hint))
    if weaker:
        hint = "ask for as much, or retire the case and give what is left of it another id"
        problems.append((f"asks for less than {base} does: {_named(weaker)}", hint))
    return check.outcome(
        Found.MISSED if problems else Found.MET,
        *(str(Problem(message=what, file=change.candidate.cases_file, hint=hint)) for what, hint in problems),
        *([f"another answer is expected of {_cases(len(changed))}: {_named(changed)}"] if changed else []),
        figures={
            "cases": len(cases),
            "added": sum(each not in before for each in cases) if before else 0,
            "gone": list[Json](gone),
            "weaker": list[Json](weaker),
            "changed": list[Json](changed),
        },
    )


def _retired(config: ModelConfig) -> list[Json]:
    golden = config.document.get("golden")
    retired = golden.get("retired") if isinstance(golden, dict) else None
    return retired if isinstance(retired, list) else []


def _lost(was: Case, now: Case) -> str:
    """What a case no longer asks for; empty if it asks for as much as it did."""
    if was.expects and not now.expects:
        return "no `expected`"
    if len(now.checks) < len(was.checks):
        return f"{len(now.checks)} of {len(was.checks)} checks"
    return "no `must_pass`" if was.must_pass and not now.must_pass else ""


# --- What bears on the verdict ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Finding:
    """One thing that bears on the verdict."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    hint: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Compared:
    """What the statistics say: in lines, as a finding, in numbers."""

    measured: tuple[str, ...]
    required: tuple[str, ...]
    finding: _Finding
    figures: JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scored:
    """A case whose score is known, and the baseline's, if there is one."""

    outcome: Outcome
    score: float
    baseline: float
    must_pass: bool

    @classmethod
    def of(cls, outcome: Outcome) -> _Scored:
        figures = outcome.figures
        before = figures["baseline_score"]
        return cls(
            outcome=outcome,
            score=_number(figures["score"]),
            baseline=1.0 if before is None else _number(before),  # a new config is held to perfection
            must_pass=figures["must_pass"] is True,
        )

    @property
    def pair(self) -> Pair:
        figures = self.outcome.figures
        return Pair(
            baseline=self.baseline,
            candidate=self.score,
            weight=_number(figures["weight"]),
            cluster=str(figures["cluster"]),
            same_request=figures["same_request"] is True,
        )

    @property
    def case(self) -> JsonObject:
        """The case as reports show it."""
        figures = self.outcome.figures
        return {
            "case": self.outcome.case,
            "field": figures.get("field", ""),
            "expected": figures.get("expected", ""),
            "got": figures.get("got", ""),
            "tags": list[Json](self.outcome.tags),
        }


def _nothing(context: Context) -> GateResult:
    is_optional = GateName.GOLDEN in context.policy.optional
    return GateResult(
        gate=GateName.GOLDEN,
        verdict=Verdict.SKIP if is_optional else Verdict.INCONCLUSIVE,
        measured=("no check was executed",),
        reasons=() if is_optional else ("no check was executed",),
    )


def _dataset_findings(outcomes: Sequence[Outcome]) -> Iterator[_Finding]:
    verdicts = {Found.MISSED: Verdict.FAIL, Found.UNKNOWN: Verdict.INCONCLUSIVE, Found.MET: Verdict.PASS}
    for each in outcomes:
        yield _Finding(verdict=verdicts[each.found], reasons=each.reasons)


def _judge_findings(change: ConfigChange, outcomes: Sequence[Outcome]) -> Iterator[_Finding]:
    """How far the judge can be trusted, wherever one has a say."""
    config = change.candidate.config
    judged = sum(any(each.kind is Kind.JUDGE for each in case.checks) for case in change.candidate.cases)
    if config is None or not judged:
        return
    found = judging.agreement(outcomes)
    unproven = f"nobody has compared the judge of {_cases(judged)} with people: {LABELS}"
    yield _Finding(verdict=Verdict.PASS, reasons=(str(found) if found else unproven,))


def _judge_figures(outcomes: Sequence[Outcome]) -> JsonObject:
    found = judging.agreement(outcomes)
    if found is None:
        return {}
    return {
        "judge": {
            "labels": found.n,
            "agreed": found.agreed,
            "judge_rate": _rounded(found.judge),
            "people_rate": _rounded(found.people),
            "gap": _rounded(found.gap),
        }
    }


def _must_pass_findings(known: Sequence[_Scored]) -> Iterator[_Finding]:
    missed = [each for each in known if each.must_pass and each.score < 1]
    if missed:
        told = (f"{each.outcome.case} must pass: {'; '.join(each.outcome.reasons)}" for each in missed)
        yield _Finding(verdict=Verdict.FAIL, reasons=tuple(told))


def _unknown_findings(unknown: Sequence[Outcome]) -> Iterator[_Finding]:
    """Cases that are not known, those with the same reason together: they are neither met nor missed."""
    alike: dict[str, list[Outcome]] = {}
    for each in unknown:
        alike.setdefault(_without_id(each), []).append(each)
    for why, cases in sorted(alike.items(), key=lambda item: -len(item[1])):
        hints = Counter(str(each.figures.get("hint") or "") for each in cases)
        who = cases[0].case if len(cases) == 1 else _cases(len(cases))
        are = "is" if len(cases) == 1 else "are"
        yield _Finding(
            verdict=Verdict.INCONCLUSIVE,
            reasons=(f"{who} {are} not known: {why}",),
            hint=hints.most_common(1)[0][0],
        )


def _without_id(outcome: Outcome) -> str:
    """Its reason without its own name, so that equal ones are equal."""
    why = outcome.reasons[0] if outcome.reasons else "no reason was given"
    return re.sub(rf"\s*(\b(?:for|of) )?(?<![\w-]){re.escape(outcome.case)}(?![\w-])\s*", " ", why).strip()


# --- Before the run -----------------------------------------------------------------------------


def power(change: ConfigChange, context: Context) -> str:
    """What loss these cases can see, before any is asked: `400 cases × 2 samples can see −2.1 pt`."""
    apart = quarantine.of(change.candidate.config, context.now).cases
    counted = [case for case in change.candidate.cases if case.id not in apart]
    counted = [case for case in counted if not case.must_pass] or counted
    if not counted or change.candidate.config is None:
        return ""
    policy, past = context.policy.golden, context.history.get(change.name, {})
    once = often = samples = 0.0
    for case in counted:
        known = past.get(case.id, Past())
        count = asking.wanted(case, policy, known)
        swing = known.swing if len(known.scored) >= PAST_MIN else SWING_ASSUMED
        once, often, samples = once + swing, often + swing / count, samples + count
    clusters, size = _independent(counted)
    size *= once / often if often else 1.0
    loss_pt = stats.detectable(size, min(1.0, once / len(counted)), policy.confidence)
    times = f" × {samples / len(counted):.2g} samples" if samples > len(counted) else ""
    asked = _cases(len(counted)) + (f" in {clusters:,} clusters" if clusters < len(counted) else "") + times
    sees = "no loss at all" if loss_pt is None else f"a loss of {loss_pt:.1f} pt"
    unstable = [case.id for case in counted if past.get(case.id, Past()).is_unstable]
    flaky = f"; flaky: {_named(unstable)}" if unstable else ""
    return f"deploy-gates: {change.name}: {asked} can see {sees}{flaky}"


def _independent(cases: Sequence[Case]) -> tuple[int, float]:
    """In how many clusters they are, and how many cases of equal weight on their own would say as much."""
    weights: dict[str, float] = {}
    for case in cases:
        cluster = case.cluster or f"\0{case.id}"
        weights[cluster] = weights.get(cluster, 0.0) + case.weight
    alone = sum(case.weight**2 for case in cases)
    alike = sum(weight**2 for weight in weights.values())
    varies = (1 - ALIKE_ASSUMED) * alone + ALIKE_ASSUMED * alike
    return len(weights), sum(weights.values()) ** 2 / varies


PAST_MIN = 3
"""With fewer answers than these nobody knows how much a case varies."""
SWING_ASSUMED = 0.05
"""Then it is taken to change once in twenty times."""
ALIKE_ASSUMED = 0.5
"""So much of what varies the cases of one cluster are taken to have in common."""


def _flaky_findings(change: ConfigChange, context: Context) -> Iterator[_Finding]:
    past = context.history.get(change.name, {})
    flaky = [
        f"{case.id} ({100 * past[case.id].rate:.0f} % of {len(past[case.id].scored)})"
        for case in change.candidate.cases
        if case.id in past and past[case.id].is_unstable
    ]
    if flaky:
        are = "1 case is" if len(flaky) == 1 else f"{len(flaky):,} cases are"
        told = f"{are} flaky, by earlier answers met: {_named(flaky)}"
        yield _Finding(verdict=Verdict.PASS, reasons=(told,))


# --- Enough is known ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stopped:
    """What the cases that count say, in the order in which they are asked, at the looks that are due."""

    n: int
    known: tuple[_Scored, ...]
    """Those the conclusion rests on."""
    found: Paired

    @property
    def is_certain(self) -> bool:
        return self.found.conclusion is not Conclusion.UNDECIDED


def has_baseline(change: ConfigChange) -> bool:
    """Whether there is a config to be no worse than."""
    return change.baseline is not None and change.baseline.config is not None


def in_order(change: ConfigChange, context: Context) -> tuple[str, ...]:
    """The ids of the cases in the order in which asking them teaches most; empty: as they stand."""
    apart = quarantine.of(change.candidate.config, context.now).cases
    counted = [case for case in change.candidate.cases if case.id not in apart]
    if not has_baseline(change) or not _stops_early(len(counted), context):
        return ()
    # By what the file says alone: a replay elsewhere, which knows no history, has to go the same way.
    cases = tuple(
        stopping.Case(id=case.id, cluster=case.cluster, kind=" ".join(sorted(case.tags))) for case in counted
    )
    assert change.baseline is not None, "it has a baseline"
    configs = (change.baseline.config, change.candidate.config)
    seed = " ".join(each.digest if each else "" for each in configs)
    # What must pass and what does not count is asked whatever the others say.
    first = [case.id for case in change.candidate.cases if case.must_pass or case.id in apart]
    return (*first, *(each for each in stopping.order(cases, seed) if each not in set(first)))


def is_certain(change: ConfigChange, outcomes: Sequence[Outcome], context: Context) -> bool:
    """Whether the cases that are known decide already, so that no other has to be asked."""
    known = [_Scored.of(each) for each in outcomes if each.found is not Found.UNKNOWN]
    stopped = _stopped(change, known, context, is_new=True)
    return stopped is not None and stopped.is_certain


def looks(change: ConfigChange, context: Context) -> tuple[int, ...]:
    """After how many of the cases in order it is worth asking whether they decide."""
    order, before = in_order(change, context), _asked_whatever(change, context)
    return tuple(look.cases + before for look in _planned(len(order) - before, context))[:-1] if order else ()


def _planned(n: int, context: Context) -> tuple[stopping.Look, ...]:
    policy = context.policy.golden
    return stopping.looks(n, margin=policy.margin_pt / 100, confidence=policy.confidence)


def _stops_early(n: int, context: Context) -> bool:
    return context.policy.golden.early_stop and n >= stopping.CASES_MIN


def _asked_whatever(change: ConfigChange, context: Context) -> int:
    apart = quarantine.of(change.candidate.config, context.now).cases
    return sum(case.must_pass or case.id in apart for case in change.candidate.cases)


def _stopped(
    change: ConfigChange, known: Sequence[_Scored], context: Context, *, is_new: bool = False
) -> _Stopped | None:
    """What the looks say, or with `is_new` the last one; `None` where cases are few, and all are one sample.

    What must pass decides apart, and is no part of a sample that may end early.
    """
    order = in_order(change, context)
    if not order:
        return None
    sample = order[_asked_whatever(change, context) :]
    by_case = {each.outcome.case: each for each in known}
    first: list[_Scored] = []
    for case in sample:
        if case not in by_case:
            break
        first.append(by_case[case])
    if not first:
        return None
    policy, planned = context.policy.golden, _planned(len(sample), context)
    decided = stopping.decide(
        [each.pair for each in first],
        n=len(sample),
        margin=policy.margin_pt / 100,
        confidence=policy.confidence,
        since=max((look.cases for look in planned if look.cases < len(first)), default=0) if is_new else 0,
    )
    return _Stopped(
        n=len(sample),
        known=tuple(first[: decided.cases]),
        found=decided.found,
    )


def _is_spared(outcome: Outcome) -> bool:
    return outcome.figures.get("unanswered") == Cause.SPARED.value


def _quarantine_findings(apart: Quarantine, *, known: Collection[str]) -> Iterator[_Finding]:
    strange = [each for each in (*apart.cases, *apart.expired) if each not in known]
    held = [f"{case} (until {until})" for case, until in apart.cases.items() if case in known]
    over = [each for each in apart.expired if each in known]
    told = []
    if strange:
        told.append(f"the quarantine names {_named(strange)}, which no case is called: it sets nothing apart")
    if held:
        told.append(f"in quarantine, asked and not counted: {_named(held)}")
    if over:
        told.append(f"the quarantine of {_named(over)} is over: they count again")
    if told:
        yield _Finding(verdict=Verdict.PASS, reasons=tuple(told))


def _apart_figures(apart: Quarantine, known: Sequence[_Scored]) -> JsonObject:
    found = {each.outcome.case: each for each in known}
    held: dict[str, Json] = {
        case: {"until": until, "score": _rounded(found[case].score) if case in found else None}
        for case, until in apart.cases.items()
    }
    return {"quarantined": held} if held else {}


# --- The statistics -----------------------------------------------------------------------------


def _against_baseline(
    known: Sequence[_Scored], policy: GoldenPolicy, stopped: _Stopped | None = None
) -> _Compared:
    """No worse than the baseline on the same cases, by more than the margin."""
    required = ("", f"≥ −{_limit(policy.margin_pt)} pt")
    if not known:
        return _no_case(required)
    margin, everything = policy.margin_pt / 100, known
    if stopped is not None:
        known, found = stopped.known, stopped.found
    else:
        known = _sample(known)
        found = stats.paired([each.pair for each in known], margin=margin, confidence=policy.confidence)
    pairs = [each.pair for each in known]
    more = stats.more_needed(pairs, margin=margin, confidence=policy.confidence)
    low = _points(100 * found.low, unlike=None if found.low >= -margin else -policy.margin_pt)
    early = stopped is not None and stopped.is_certain and found.n < stopped.n
    by_tag = _tags(known, policy)
    return _Compared(
        measured=(
            _counted(known, found, has_baseline=True),
            f"{_points(100 * found.delta)}, at worst {low} ({_sure(policy)})",
            *([f"certain after {found.n:,} of {_cases(stopped.n)}"] if stopped and early else []),
        ),
        required=required,
        finding=_finding(known, found, policy, more, by_tag),
        figures=_figures(known, found, policy)
        | {
            "baseline_rate": _rounded(found.baseline),
            "change_pt": _rounded(100 * found.delta),
            "low_pt": _rounded(100 * found.low),
            "high_pt": _rounded(100 * found.high),
            "margin_pt": policy.margin_pt,
            "p_worse": _rounded(found.p_worse),
            "conclusion": found.conclusion.value,
            "same_requests": sum(pair.same_request for pair in pairs),
            "more_cases": more,
            "worse": [each.case for each in everything if each.score < each.baseline],
            "better": [
                each.case | {"got": each.case["expected"]}
                for each in everything
                if each.score > each.baseline
            ],
        }
        | ({"stopped_at": found.n, "planned": stopped.n} if stopped and early else {})
        | ({"worse_tags": {tag: _rounded(p) for tag, p in by_tag.items()}} if by_tag else {}),
    )


def _tags(known: Sequence[_Scored], policy: GoldenPolicy) -> dict[str, float]:
    """The tags whose own cases are proved worse, and how likely that is by chance, all tags together.

    Holm 1979, Scandinavian Journal of Statistics 6:65: the chance that any of them is named wrongly is at
    most `1 - confidence`, however many tags there are.
    """
    tagged: dict[str, list[_Scored]] = {}
    for each in known:
        for tag in each.outcome.tags:
            tagged.setdefault(tag, []).append(each)
    chances = {
        tag: stats.paired([each.pair for each in cases], margin=0.0, confidence=policy.confidence).p_worse
        for tag, cases in tagged.items()
        if len(cases) < len(known)  # a tag that all have says what all say
    }
    return {tag: p for tag, p in stats.holm(chances).items() if p < 1 - policy.confidence}


def _finding(
    known: Sequence[_Scored],
    found: Paired,
    policy: GoldenPolicy,
    more: int | None,
    by_tag: Mapping[str, float],
) -> _Finding:
    is_blind = found.candidate == found.baseline == 0 and not all(each.pair.same_request for each in known)
    if is_blind:
        return _Finding(
            verdict=Verdict.INCONCLUSIVE,
            reasons=("neither config meets a single case, so these cannot tell the two apart",),
        )
    of_tags = tuple(
        f"worse where tagged {tag}: by chance, all tags counted, in {100 * p:.2g} % of such comparisons"
        for tag, p in sorted(by_tag.items(), key=lambda item: item[1])
    )
    declared = [tag for tag in by_tag if tag in policy.tags]
    if found.conclusion is Conclusion.WORSE:
        chance = f"by chance alone it would be as large in {100 * found.p_worse:.2g} % of such comparisons"
        return _Finding(
            verdict=Verdict.FAIL,
            reasons=(f"the loss is proved: {chance}", *of_tags),
            hint=_weak_spot(known),
        )
    if declared:
        return _Finding(verdict=Verdict.FAIL, reasons=of_tags, hint=_weak_spot(known))
    if found.conclusion is Conclusion.NO_WORSE:
        return _Finding(verdict=Verdict.PASS, reasons=of_tags)
    return _Finding(
        verdict=Verdict.INCONCLUSIVE,
        reasons=(
            f"{_cases(found.n)} cannot tell a loss of {_limit(policy.margin_pt)} pt from none",
            *of_tags,
        ),
        hint=_weigh_down(known, policy) or _would_decide(more, known),
    )


def _on_its_own(known: Sequence[_Scored], policy: GoldenPolicy) -> _Compared:
    """A config without a baseline: its pass rate is at least the policy's, by the exact lower bound.

    That bound is the one of a comparison with a baseline that meets every case.
    """
    required = (f"≥ {100 * policy.min_pass_rate:.6g} %",)
    if not known:
        return _no_case(required)
    everything, known = known, _sample(known)
    pairs, margin = [each.pair for each in known], 1 - policy.min_pass_rate
    found = stats.paired(pairs, margin=margin, confidence=policy.confidence)
    more = stats.more_needed(pairs, margin=margin, confidence=policy.confidence, or_worse=False)
    least, is_proved = 1 + found.low, found.conclusion is Conclusion.NO_WORSE
    worst_rate = _percent(least, unlike=None if is_proved else policy.min_pass_rate)
    finding = _Finding(verdict=Verdict.PASS)
    if found.candidate < policy.min_pass_rate:
        finding = _Finding(
            verdict=Verdict.FAIL,
            reasons=(
                f"{sum(each.score < 1 for each in known):,} of {_cases(found.n)} missed",
                *_missed(known),
            ),
        )
    elif not is_proved:
        finding = _Finding(
            verdict=Verdict.INCONCLUSIVE,
            reasons=(
                f"{_cases(found.n)} do not prove that {100 * policy.min_pass_rate:.6g} % are met",
                *_missed(known),
            ),
            hint=_would_decide(more),
        )
    return _Compared(
        measured=(f"{_counted(known, found, has_baseline=False)}, at worst {worst_rate} ({_sure(policy)})",),
        required=required,
        finding=finding,
        figures=_figures(known, found, policy)
        | {
            "low_rate": _rounded(least),
            "min_pass_rate": policy.min_pass_rate,
            "more_cases": more,
            "missed": [each.case for each in everything if each.score < 1],
        },
    )


def _sample(known: Sequence[_Scored]) -> Sequence[_Scored]:
    """The cases that speak for others like them: what must pass decides apart, unless all must."""
    return [each for each in known if not each.must_pass] or known


def _no_case(required: tuple[str, ...]) -> _Compared:
    return _Compared(
        measured=("no case is known",),
        required=required,
        finding=_Finding(verdict=Verdict.INCONCLUSIVE, reasons=("no case was executed",)),
        figures={"n": 0},
    )


def _figures(known: Sequence[_Scored], found: Paired, policy: GoldenPolicy) -> JsonObject:
    """What both kinds of comparison have in common."""
    share = (found.better + found.worse) / found.n
    power_pt = stats.detectable(found.effective_n, share, policy.confidence)
    return {
        "n": found.n,
        "met": sum(each.score >= 1 for each in known),
        "clusters": found.clusters,
        "effective_n": _rounded(found.effective_n),
        "candidate_rate": _rounded(found.candidate),
        "confidence": policy.confidence,
        "power_pt": None if power_pt is None else _rounded(power_pt),
        "by_tag": _by_tag(known),
    }


def _by_tag(known: Sequence[_Scored]) -> JsonObject:
    tagged: dict[str, list[_Scored]] = {}
    for each in known:
        for tag in each.outcome.tags:
            tagged.setdefault(tag, []).append(each)
    return {
        tag: {
            "n": len(cases),
            "baseline": _rounded(sum(each.baseline for each in cases) / len(cases)),
            "candidate": _rounded(sum(each.score for each in cases) / len(cases)),
        }
        for tag, cases in sorted(tagged.items())
    }


def _weak_spot(known: Sequence[_Scored]) -> str:
    """How to run alone what got worse: by a tag that is part of the ids, else by the first id."""
    worse = [each.outcome for each in known if each.score < each.baseline]
    tags = Counter(tag for each in worse for tag in each.tags if tag in each.case)
    word, count = tags.most_common(1)[0] if tags else ("", 0)
    word = word if count > 1 else worse[0].case
    if not re.fullmatch(r"[\w.+-]+", word):
        return ""  # `-k` would not take it for one word
    return f"try the weak spot alone: `pytest --deploy-gates --gate=golden -k {word}`"


def _missed(known: Sequence[_Scored]) -> Iterator[str]:
    for each in known:
        if each.score < 1:
            yield f"{each.outcome.case}: {'; '.join(each.outcome.reasons)}"


# --- Words --------------------------------------------------------------------------------------


def _counted(known: Sequence[_Scored], found: Paired, *, has_baseline: bool) -> str:
    """`387 of 400, baseline 384`; as shares where cases weigh differently or are met in part."""
    is_plain = len({each.pair.weight for each in known}) == 1 and all(
        score in (0, 1) for each in known for score in (each.score, each.baseline)
    )
    if is_plain:
        met, before = f"{found.candidate * found.n:,.0f}", f"{found.baseline * found.n:,.0f}"
    else:
        met, before = _percent(found.candidate, places=1), _percent(found.baseline, places=1)
    return f"{met} of {found.n:,}" + (f", baseline {before}" if has_baseline else "")


def _would_decide(more: int | None, known: Sequence[_Scored] = ()) -> str:
    if more is None:
        return "no number of cases like these would decide: the loss is as large as the margin"
    step = 10 ** max(0, len(str(more)) - 2)  # two digits are all it is worth
    cases = f"about {_cases(-(-more // step) * step)} more like these would decide"
    samples = stats.samples_needed(len(known), more) if known else SAMPLES_MAX
    if samples >= SAMPLES_MAX or all(each.score == each.baseline for each in known):
        return cases  # where nothing varies, asking again teaches nothing
    more_samples = "1 sample" if samples == 1 else f"{samples} samples"
    return cases.replace(" more like these", f" more like these or {more_samples} more of each")


def _weigh_down(known: Sequence[_Scored], policy: GoldenPolicy) -> str:
    """What to do where nothing could be proved because a few weigh so much; if they did not, it could be."""
    pairs, margin = [each.pair for each in known], policy.margin_pt / 100
    weights: dict[str, float] = {}
    for each in known:
        name = each.pair.cluster or each.outcome.case
        weights[name] = weights.get(name, 0.0) + each.pair.weight
    even = [Pair(baseline=1, candidate=1)] * len(weights)
    hides, evenly = stats.hidden(pairs, policy.confidence), stats.hidden(even, policy.confidence)
    if hides <= margin or evenly > margin:
        return ""
    return (
        f"give what belongs to {max(weights, key=weights.__getitem__)} and its like less weight: "
        f"even if nothing changed, a loss of {100 * hides:.1f} pt could hide there"
    )


def _points(value: float, *, unlike: float | None = None) -> str:
    """`−0.6 pt`; with more places where it would read like the limit that it misses."""
    places = next((n for n in (1, 2, 3) if unlike is None or round(value, n) != round(unlike, n)), 4)
    return f"{round(value, places) + 0.0:+.{places}f} pt".replace("-", "−")


def _limit(value: float) -> str:
    """What the policy says, as exactly as it says it: `2.0`, `0.25`."""
    return f"{value:.1f}" if abs(value - round(value, 1)) < 1e-9 else f"{value:.6g}"


def _percent(share: float, *, unlike: float | None = None, places: int = 0) -> str:
    value = 100 * share
    while unlike is not None and places < 4 and round(value, places) == round(100 * unlike, places):
        places += 1
    return f"{value:.{places}f} %"


def _sure(policy: GoldenPolicy) -> str:
    return f"{100 * policy.confidence:.4g} % sure"


def _cases(count: int) -> str:
    return "1 case" if count == 1 else f"{count:,} cases"


def _named(ids: Sequence[str]) -> str:
    more = len(ids) - NAMED_MAX
    return ", ".join(ids[:NAMED_MAX]) + (f" and {more:,} more" if more > 0 else "")


def _number(value: Json) -> float:
    assert isinstance(value, int | float), value
    return float(value)


def _rounded(value: float) -> float:
    """Six digits that count: the same on every machine."""
    return float(f"{value:.6g}") + 0.0
