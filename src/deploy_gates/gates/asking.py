"""A golden case is asked of both configs, as often as its history calls for, and what comes back is scored.

A sample is a question of its own, with an answer of its own: no recording is ever served twice. Where both
configs send the same request, its answers are those of both, and nothing can differ.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC

from deploy_gates import prompt
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import Case, ConfigChange, ModelConfig
from deploy_gates.core.errors import PromptError, Unanswered
from deploy_gates.core.gate import Asking, Check, Found
from deploy_gates.core.past import Past, short
from deploy_gates.core.policy import Context, GoldenPolicy
from deploy_gates.core.question import Answer, Question
from deploy_gates.gates import judging
from deploy_gates.gates.matching import Match, Matcher

SAMPLES_MAX = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Arms:
    """Both configs' matchers. Each answer keeps to its own config's output schema; all else that is asked of
    it comes from the candidate's case and the candidate's comparison.
    """

    candidate: Matcher
    baseline: Matcher | None
    inputs: Mapping[str, JsonObject]
    """What the baseline's own cases give to its templates, by id."""
    policy: GoldenPolicy
    past: Mapping[str, Past]
    recorded: Mapping[str, Answer]
    is_live: bool
    """Whether what is not recorded can be asked."""


def arms(change: ConfigChange, config: ModelConfig, context: Context, folder: str) -> Arms:
    """What all cases of a change have in common, made once."""
    before = change.baseline
    baseline = None
    if before is not None and before.config is not None:
        baseline = Matcher(before.config, comparison=config.comparison, folder=folder, judged_by=config)
    return Arms(
        candidate=Matcher(config, folder=folder),
        baseline=baseline,
        inputs={case.id: case.inputs for case in before.cases} if before else {},
        policy=context.policy.golden,
        past=context.history.get(change.name, {}),
        recorded=change.recordings,
        is_live=context.live,
    )


@dataclass(kw_only=True, slots=True)
class _Arm:
    """What one config answered to one case, sample by sample."""

    matcher: Matcher
    question: Question
    wanted: int
    matches: list[Match] = field(default_factory=list)
    answers: list[Json] = field(default_factory=list)
    """For the history: the key of each answer, when it was given, and its score."""

    @property
    def score(self) -> float | None:
        scores = [each.score for each in self.matches if each.score is not None]
        return sum(scores) / len(scores) if scores and len(scores) == len(self.matches) else None

    @property
    def worst(self) -> Match:
        """The sample that says most of what is wrong; one that is not known before all others."""
        return min(self.matches, key=lambda each: -1.0 if each.score is None else each.score)

    def keep(self, question: Question, answer: Answer, found: Match) -> None:
        self.matches.append(found)
        if found.score is not None and answer.asked_at is not None:
            self.answers.append([short(question.key), named(answer), found.score])


def compare(check: Check, *, case: Case, arms: Arms) -> Asking:
    """Ask both configs, or once where both send the same request; and match what they answer."""
    try:
        question = prompt.ask(arms.candidate.config, case.inputs, label=case.id)
    except PromptError as error:
        return check.outcome(Found.UNKNOWN, f"cannot be asked: {error.message}")
    figures: JsonObject = {"weight": case.weight, "cluster": case.cluster, "must_pass": case.must_pass}
    figures["same_request"] = False
    asked, cannot = _baseline_question(case, arms)
    is_same = asked is not None and asked.digest == question.digest
    own = _Arm(matcher=arms.candidate, question=question, wanted=_wanted(case, arms, question, asked))
    before = None
    if arms.baseline is not None and asked is not None and not is_same:
        before = _Arm(matcher=arms.baseline, question=asked, wanted=_wanted_of_baseline(own, asked, arms))
        cannot = yield from _ask_baseline(before, case, figures)
    try:
        answer = yield from _sampled(own, case)
    except Unanswered as error:
        figures |= {"unanswered": error.cause.value, "hint": error.hint}
        return check.outcome(Found.UNKNOWN, error.message, figures=figures)
    if is_same and arms.baseline is not None:
        figures["same_request"] = _schema(arms.baseline) == _schema(arms.candidate)
        before = own
        if not figures["same_request"]:
            before = _Arm(matcher=arms.baseline, question=question, wanted=1)
            before.matches = [(yield from judging.match(arms.baseline, answer, case))]
    figures |= _figures(own, before, cannot, answer)
    if own.score is None:
        return check.outcome(Found.UNKNOWN, *own.worst.reasons, figures=figures, usage=answer.usage)
    if cannot or (before is not None and before.score is None):
        why = f"the baseline's answer: {cannot or (before.worst.why_unknown if before else '')}"
        return check.outcome(Found.UNKNOWN, why, figures=figures, usage=answer.usage)
    verdict = Found.MET if own.score >= 1 else Found.MISSED
    return check.outcome(verdict, *own.worst.reasons, figures=figures, usage=answer.usage)


def _figures(own: _Arm, before: _Arm | None, cannot: str, answer: Answer) -> JsonObject:
    made: JsonObject = {"score": own.score, "finish_reason": answer.finish_reason}
    made["baseline_score"] = before.score if before and not cannot else None
    if len(own.matches) > 1 or (before and len(before.matches) > 1):
        made["samples"] = len(own.matches)
        made["baseline_samples"] = len(before.matches) if before else 0
    made["answers"] = own.answers
    made["baseline_answers"] = before.answers if before and before is not own else []
    told = (*own.worst.differences, *(before.worst.differences if before and before.matches else ()))
    for difference in told[:1]:
        made |= {"field": difference.at, "expected": difference.expected, "got": difference.got}
    return made


def _sampled(arm: _Arm, case: Case) -> Generator[Question, Answer, Answer]:
    """Ask as often as is wanted; the first answer."""
    first: Answer | None = None
    for sample in range(arm.wanted):
        question = replace(arm.question, sample=sample) if sample else arm.question
        answer = yield question
        found = yield from judging.match(arm.matcher, answer, case)
        arm.keep(question, answer, found)
        first = first or answer
    assert first is not None, "every case is asked at least once"
    return first


def _baseline_question(case: Case, arms: Arms) -> tuple[Question | None, str]:
    """What the baseline is asked, or why it cannot be."""
    if arms.baseline is None:
        return None, ""
    config = arms.baseline.config
    try:
        try:
            return prompt.ask(config, case.inputs, label=case.id), ""
        except PromptError:  # its variables may have had other names
            return prompt.ask(config, arms.inputs.get(case.id, {}), label=case.id), ""
    except PromptError as error:
        return None, f"cannot be asked for, {error.message}"


def _ask_baseline(before: _Arm, case: Case, figures: JsonObject) -> Generator[Question, Answer, str]:
    """Have the baseline's answers scored; why that cannot be, else nothing."""
    try:
        yield from _sampled(before, case)
    except Unanswered as error:
        figures |= {"unanswered": error.cause.value, "hint": error.hint}
        return error.message
    return ""


# --- How often ----------------------------------------------------------------------------------


def _wanted(case: Case, arms: Arms, question: Question, asked: Question | None) -> int:
    """How often a case is asked: as it says itself, or more often where its history is unstable.

    What is recorded is used, so that a replay sees what the run saw; where nobody can be asked, no more than
    that can be wanted.
    """
    recorded = _recorded(arms.recorded, question)
    if recorded and not arms.is_live:
        return recorded
    return max(recorded, wanted(case, arms.policy, _earlier(case, arms, question, asked)))


def wanted(case: Case, policy: GoldenPolicy, past: Past) -> int:
    """How often the case is asked, given what is known of it."""
    if case.samples:
        return case.samples
    return max(policy.samples, policy.unstable_samples) if past.is_unstable else policy.samples


def _wanted_of_baseline(own: _Arm, asked: Question, arms: Arms) -> int:
    recorded = _recorded(arms.recorded, asked)
    if recorded and not arms.is_live:
        return recorded
    least = arms.policy.baseline_samples * (1 if own.wanted <= arms.policy.samples else 2)
    return max(recorded, own.wanted, least)


def _earlier(case: Case, arms: Arms, *questions: Question | None) -> Past:
    """The history of a case, less the answers that may be compared now."""
    past = arms.past.get(case.id)
    if past is None:
        return Past()
    compared = {
        (short(key), named(arms.recorded[key]))
        for question in questions
        if question is not None
        for sample in range(_recorded(arms.recorded, question))
        for key in (replace(question, sample=sample).key,)
    }
    return past.without(compared)


def _recorded(recorded: Mapping[str, Answer], question: Question) -> int:
    """How many samples in a row are recorded."""
    count = 0
    while count < SAMPLES_MAX and replace(question, sample=count).key in recorded:
        count += 1
    return count


def named(answer: Answer) -> str:
    """When an answer was given, as recordings say it."""
    return answer.asked_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if answer.asked_at else ""


def _schema(matcher: Matcher) -> JsonObject | None:
    return matcher.config.output.schema if matcher.config.output else None
