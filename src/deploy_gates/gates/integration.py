"""The endpoint takes this request, in time and in shape.

A few golden cases are asked, those tagged `smoke` or else the first ones: the same questions that the golden
gate asks, so nothing is paid for twice. What a change would do to answers is also read off the recorded
answers of the baseline, without asking anybody.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from deploy_gates import documents, prompt
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import Case, ConfigChange, Kind, ModelConfig
from deploy_gates.core.errors import Cause, Problem, PromptError, Unanswered
from deploy_gates.core.gate import Asking, Check, Found, GateName, GateResult, Outcome, Verdict
from deploy_gates.core.policy import Context
from deploy_gates.core.question import Answer, Question

ASKED_WITHOUT_TAGS = 3
"""So many cases are asked where none is tagged `smoke`."""
NAMED_MAX = 5
"""So many cases are named in a reason; the rest is counted."""
SAID_MAX_CHARS = 200
OUR_FAULT = (Cause.REFUSED, Cause.WRONG_MODEL)
"""Why there is no answer where the config is to blame, and not the day."""


def checks(change: ConfigChange, context: Context) -> Iterator[Check]:
    """One round trip for each smoke case, and what else the config declares of its answers."""
    config = change.candidate.config
    if config is None:
        return
    cases = tuple(case for case in change.candidate.cases if case.is_smoke)
    cases = cases or change.candidate.cases[:ASKED_WITHOUT_TAGS]
    verifiers: dict[str, tuple[object, Verify]] = {
        "round-trip": (True, _round_trip),
        "deadline": (True, _deadline),
        "structured-output": (config.output, _structured_output),
        "output-limit": (config.max_output_tokens, _output_limit),
        "stop": (_stops(config), _stop),
        "tools": (config.tools, _tools),
        "streaming": (config.parameters.get("stream") is True, _streaming),
    }
    applicable = {name: verify for name, (applies, verify) in verifiers.items() if applies}
    for at, (name, verify) in enumerate(applicable.items()):
        trial = Trial(config=config, change=change, cases=cases, begins=at)
        yield _check(f"{change.candidate.config_file}::integration/{name}", trial, verify)


def judge(change: ConfigChange, outcomes: Sequence[Outcome], context: Context) -> GateResult:
    """All must hold: these, and the team's own."""
    own = [each for each in outcomes if each.gate is GateName.INTEGRATION]
    if not own:
        is_optional = GateName.INTEGRATION in context.policy.optional
        return GateResult(
            gate=GateName.INTEGRATION,
            verdict=Verdict.SKIP if is_optional else Verdict.INCONCLUSIVE,
            measured=("no check was executed",),
            required=("all",),
            reasons=() if is_optional else ("no check was executed",),
        )
    missed = [each for each in own if each.found is Found.MISSED]
    unknown = [each for each in own if each.found is Found.UNKNOWN]
    blocking = missed + _not_repeating(unknown, own)
    lines = [*_call_lines(own, context.now), *_check_lines(own, len(missed) + len(unknown))]
    return GateResult(
        gate=GateName.INTEGRATION,
        verdict=Verdict.FAIL if missed else Verdict.INCONCLUSIVE if unknown else Verdict.PASS,
        measured=tuple(measured for measured, _ in lines),
        required=tuple(required for _, required in lines),
        reasons=tuple(dict.fromkeys(reason for each in blocking for reason in each.reasons or (each.check,))),
        hint=next((str(each.figures["hint"]) for each in blocking if each.figures.get("hint")), ""),
        checks=len(own),
        missed=len(missed),
        unknown=len(unknown),
        figures={
            each.check.rpartition("integration/")[2]: {
                key: value for key, value in each.figures.items() if key != "hint"
            }
            for each in own
            if each.figures
        },
    )


# --- What was measured --------------------------------------------------------------------------


def _of(outcomes: Sequence[Outcome], name: str) -> Outcome | None:
    return next((each for each in outcomes if each.check.endswith(f"::integration/{name}")), None)


def _not_repeating(unknown: Sequence[Outcome], own: Sequence[Outcome]) -> list[Outcome]:
    """Where the round trips failed, the other checks have nothing to add but the same."""
    trips = _of(own, "round-trip")
    if trips is None or trips.found is Found.MET:
        return list(unknown)
    return [each for each in unknown if each is trips or "unanswered" not in each.figures]


def _call_lines(own: Sequence[Outcome], now: datetime) -> Iterator[tuple[str, str]]:
    """What was measured of the calls beside what is required, and how fresh that is."""
    trips, deadline = _of(own, "round-trip"), _of(own, "deadline")
    if trips is None:
        return
    figures = trips.figures
    calls, answered = _number(figures, "calls"), _number(figures, "answered")
    slowest = f", slowest {_number(figures, 'slowest_s'):.1f} s" if answered else ""
    limit_s = _number(deadline.figures, "limit_s") if deadline else 0
    limit = f", ≤ {limit_s:.1f} s" if limit_s else ""
    yield f"{answered:.0f} of {calls:.0f} calls{slowest}", f"all{limit}"
    replayed = _number(figures, "replayed")
    if replayed:
        which = "" if replayed == answered else f"{replayed:.0f} "
        oldest = str(figures.get("oldest") or "")
        yield f"{which}replayed, {_age(oldest, now)}", ""


def _check_lines(own: Sequence[Outcome], blocking: int) -> Iterator[tuple[str, str]]:
    """How many checks hold, where that is more than the calls tell."""
    if blocking or _of(own, "round-trip") is None:
        yield f"{len(own) - blocking} of {len(own)} checks", "all"


def _number(figures: Mapping[str, Json], key: str) -> float:
    value = figures.get(key)
    return value if isinstance(value, (int, float)) else 0.0


def _age(oldest: str, now: datetime) -> str:
    if not oldest:
        return "nobody knows when they were given"
    age = max(now - datetime.fromisoformat(oldest), timedelta())
    for unit, one in (
        ("day", timedelta(days=1)),
        ("hour", timedelta(hours=1)),
        ("minute", timedelta(minutes=1)),
    ):
        count = age // one
        if count:
            return f"answers {count:,} {unit}{'s' if count > 1 else ''} old"
    return "answers of this minute"


# --- The trial ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A config, and the cases to try it with."""

    config: ModelConfig
    change: ConfigChange
    cases: tuple[Case, ...]
    begins: int = 0
    """With which case: checks that begin with different ones have them asked at once."""

    def question(self, case: Case) -> Question:
        return prompt.ask(self.config, case.inputs, label=case.id)

    def recorded(self, config: ModelConfig) -> list[Answer]:
        """The recorded answers of `config`, baseline or candidate, to the golden cases."""
        found = []
        for case in self.change.candidate.cases:
            try:
                answer = self.change.recordings.get(prompt.ask(config, case.inputs).key)
            except PromptError:
                continue
            if answer is not None:
                found.append(answer)
        return found

    def problem(self, key: str, message: str, hint: str = "") -> str:
        """What is wrong at that key of the config."""
        near = key
        while near and near not in self.config.lines:
            near = documents.parent(near)
        file, line = self.change.candidate.config_file, self.config.lines.get(near, 0)
        return str(Problem(message=message, file=file, line=line, key=key, hint=hint))

    @property
    def baseline(self) -> ModelConfig | None:
        return self.change.baseline.config if self.change.baseline else None


Answered: TypeAlias = "tuple[tuple[Case, Answer], ...]"
Verify: TypeAlias = Callable[[Check, Trial], Asking]


def _check(id: str, trial: Trial, verify: Verify) -> Check:
    def begin() -> Asking:
        if not trial.cases:
            yield from ()
            return check.outcome(Found.UNKNOWN, str(_no_case(trial.change)))
        return (yield from verify(check, trial))

    check = Check(id=id, gate=GateName.INTEGRATION, config=trial.change.name, begin=begin)
    return check


def _no_case(change: ConfigChange) -> Problem:
    return Problem(
        message="holds no case to try the endpoint with", file=change.candidate.cases_file, hint="add one"
    )


def _ask(trial: Trial) -> Generator[Question, Answer, Answered]:
    """Every case answered; `Unanswered` passes."""
    found: dict[str, Answer] = {}
    for at in range(len(trial.cases)):
        case = trial.cases[(trial.begins + at) % len(trial.cases)]
        found[case.id] = yield trial.question(case)
    return tuple((case, found[case.id]) for case in trial.cases)


def _concluded(check: Check, problems: Sequence[str], figures: JsonObject | None = None) -> Outcome:
    return check.outcome(Found.MISSED if problems else Found.MET, *_named(problems), figures=figures)


def _named(reasons: Sequence[str]) -> tuple[str, ...]:
    rest = len(reasons) - NAMED_MAX
    return (*reasons[:NAMED_MAX], *([f"… and {rest} more like it"] if rest > 0 else []))


# --- Calls, and how long they take --------------------------------------------------------------


def _round_trip(check: Check, trial: Trial) -> Asking:
    """The endpoint takes every request, and the model that was asked answers."""
    answers: list[Answer] = []
    failures: list[Unanswered] = []
    for case in trial.cases:
        try:
            answers.append((yield trial.question(case)))
        except Unanswered as error:
            failures.append(error)
    failures.sort(key=lambda error: error.cause not in OUR_FAULT)
    dates = [each.asked_at for each in answers if each.asked_at]
    figures: JsonObject = {
        "calls": len(trial.cases),
        "answered": len(answers),
        "slowest_s": max((each.latency_s for each in answers), default=None),
        "replayed": sum(each.recorded for each in answers),
        "oldest": _rfc3339(min(dates)) if len(dates) == len(answers) and dates else None,
    }
    if not failures:
        return check.outcome(Found.MET, figures=figures)
    figures |= {"unanswered": failures[0].cause.value, "hint": failures[0].hint}
    found = Found.MISSED if failures[0].cause in OUR_FAULT else Found.UNKNOWN
    return check.outcome(found, *_told(failures), figures=figures)


def _told(failures: Sequence[Unanswered]) -> Iterator[str]:
    """One sentence for each cause."""
    counts = Counter(error.cause for error in failures)
    for cause, count in counts.items():
        first = next(error.message for error in failures if error.cause is cause)
        yield first + (f", and {count - 1} more like it" if count > 1 else "")


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _deadline(check: Check, trial: Trial) -> Asking:
    """Answers come within the timeout of every environment; those that are recorded did so as well."""
    environments = trial.config.environments or (trial.config.environment("production"),)
    tightest = min(environments, key=lambda each: each.timeout_s)
    limit_s, answered = tightest.timeout_s, (yield from _ask(trial))
    slowest, answer = max(answered, key=lambda each: each[1].latency_s)
    figures: JsonObject = {"limit_s": limit_s, "environment": tightest.name, "slowest_s": answer.latency_s}
    late = []
    if answer.latency_s > limit_s:
        late.append(f"the answer to {slowest.id} took {answer.latency_s:.1f} s")
    for arm, config in (("candidate", trial.config), ("baseline", trial.baseline)):
        times_s = [each.latency_s for each in trial.recorded(config)] if config else []
        if not times_s:
            continue
        p95_s = sorted(times_s)[math.ceil(0.95 * len(times_s)) - 1]
        figures[f"{arm}_p95_s"] = p95_s
        if p95_s > limit_s:
            late.append(f"one in twenty recorded answers of the {arm} took {p95_s:.1f} s or longer")
    key = f"environments.{tightest.name}.timeout_s"
    problems = [trial.problem(key, f"is {limit_s:g} s, and {what}") for what in late]
    return _concluded(check, problems, figures)


# --- The shape of answers -----------------------------------------------------------------------


def _structured_output(check: Check, trial: Trial) -> Asking:
    """Every answer is JSON of the output schema, unless its case wants something else."""
    assert trial.config.output is not None
    violation = _violation(trial.config.output.schema)
    problems = []
    for case, answer in (yield from _ask(trial)):
        why = _no_output(case, answer) or violation(answer.text)
        if why and not _is_exempt(case, answer):
            problems.append(f"the answer to {case.id} {why}")
    return _concluded(check, problems)


def _no_output(case: Case, answer: Answer) -> str:
    if answer.refusal is not None:
        return f"is a refusal: {_short(answer.refusal)}"
    return "was stopped by the content filter" if answer.finish_reason == "content_filter" else ""


def _is_exempt(case: Case, answer: Answer) -> bool:
    """Whether the case asks for a refusal or a tool call, and got that instead of an output."""
    kinds = {each.kind for each in case.checks if each.spec.get("value", True)}
    is_refused = answer.refusal is not None or answer.finish_reason == "content_filter"
    return (Kind.REFUSAL in kinds and is_refused) or (bool(answer.tool_calls) and not answer.text.strip())


_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


def _output_limit(check: Check, trial: Trial) -> Asking:
    """No answer is cut off, and the baseline's recorded ones would not be either."""
    limit = trial.config.max_output_tokens
    assert limit is not None
    key = next(f"parameters.{name}" for name in _LIMITS if name in trial.config.parameters)
    recorded = trial.recorded(trial.baseline) if trial.baseline else []
    used = [each.usage.output_tokens for each in recorded if each.usage]
    longer = [tokens for tokens in used if tokens > limit]
    figures: JsonObject = {"limit_tokens": limit, "baseline_longest_tokens": max(used, default=None)}
    if longer:
        return check.outcome(
            Found.MISSED,
            trial.problem(
                key,
                f"is {limit:,}, and would cut off {len(longer):,} of {len(used):,} recorded answers of the "
                "baseline",
                f"the longest has {max(longer):,} tokens",
            ),
            figures=figures,
        )
    problems = [
        trial.problem(key, f"is {limit:,}, and cut off the answer to {case.id}")
        for case, answer in (yield from _ask(trial))
        if answer.finish_reason == "length"
    ]
    return _concluded(check, problems, figures)


def _stops(config: ModelConfig) -> tuple[str, ...]:
    """The declared stop sequences."""
    stop = config.parameters.get("stop")
    return tuple(str(each) for each in (stop if isinstance(stop, list) else [stop] if stop else []))


def _stop(check: Check, trial: Trial) -> Asking:
    """No stop sequence stands in an answer: there it would end one that was not at its end."""
    recorded = trial.recorded(trial.baseline) if trial.baseline else []
    texts = [each.text for each in recorded]
    counts = {stop: sum(stop in text for text in texts) for stop in _stops(trial.config)}
    if any(counts.values()):
        return check.outcome(
            Found.MISSED,
            *(
                trial.problem(
                    "parameters.stop",
                    f"holds {stop!r}, which stands in {count:,} of {len(texts):,} recorded answers of the "
                    "baseline and would end them there",
                )
                for stop, count in counts.items()
                if count
            ),
        )
    problems = [
        trial.problem("parameters.stop", f"holds {stop!r}, and the answer to {case.id} goes on after it")
        for case, answer in (yield from _ask(trial))
        for stop in counts
        if stop in answer.text
    ]
    return _concluded(check, problems)


def _tools(check: Check, trial: Trial) -> Asking:
    """Every tool that is called is declared, with arguments that its schema allows."""
    declared = {}
    for tool in trial.config.tools:
        function = tool.get("function")
        if isinstance(function, dict):
            schema = function.get("parameters")
            declared[str(function.get("name"))] = _violation(schema if isinstance(schema, dict) else {})
    problems, calls = [], 0
    for case, answer in (yield from _ask(trial)):
        for call in answer.tool_calls:
            calls += 1
            if call.name not in declared:
                problems.append(f"the answer to {case.id} calls `{call.name}`, which is no declared tool")
            elif why := declared[call.name](call.arguments or "{}"):
                problems.append(f"the answer to {case.id} calls `{call.name}` with what {why}")
    return _concluded(check, problems, {"tool_calls": calls})


def _streaming(check: Check, trial: Trial) -> Asking:
    """Answers come in parts, as they were asked for."""
    answered = yield from _ask(trial)
    firsts_s = [answer.first_token_s for _, answer in answered if answer.first_token_s is not None]
    problems = [
        f"the answer to {case.id} was asked for as a stream, and came in one piece"
        for case, answer in answered
        if answer.first_token_s is None
    ]
    return _concluded(check, problems, {"slowest_first_token_s": max(firsts_s, default=None)})


def _violation(schema: JsonObject) -> Callable[[str], str]:
    """What is wrong with a text that should be JSON of that schema; empty if nothing is."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError, best_match
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import EMPTY_REGISTRY

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        cannot = f"cannot be checked: the schema is not one: {_short(error.message)}"
        return lambda text: cannot
    validator = Draft202012Validator(schema, registry=EMPTY_REGISTRY)  # nothing is fetched

    @functools.cache
    def violation(text: str) -> str:
        try:
            found = best_match(validator.iter_errors(json.loads(text)))
        except (ValueError, RecursionError):
            return f"is not JSON: {_short(text)!r}" if text else "is empty"
        except Unresolvable as error:
            return f"cannot be checked: the schema refers to {error.ref}, which is not in it"
        return f"breaks the schema at {found.json_path}: {_short(found.message)}" if found else ""

    return violation


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SAID_MAX_CHARS else text[: SAID_MAX_CHARS - 1] + "…"
