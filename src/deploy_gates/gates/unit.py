"""Every case renders and fits, every example keeps to the schema; and what the team's fast tests found."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from deploy_gates import catalog, prompt, tokens
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import Case, ConfigChange, Message, ModelConfig
from deploy_gates.core.errors import Problem, PromptError
from deploy_gates.core.gate import Asking, Check, Found, GateName, GateResult, Outcome, Verdict
from deploy_gates.core.policy import Context
from deploy_gates.core.question import Question

NAMED_MAX = 20
"""So many failing cases are named; the rest is counted."""


def checks(change: ConfigChange, context: Context) -> Iterator[Check]:
    """What holds of a config without asking anybody."""
    config = change.candidate.config
    if config is None:
        return
    prompts = functools.cache(lambda: _rendered(config, change.candidate.cases))
    finds: dict[str, Callable[[Check], Outcome]] = {
        "renders": lambda check: _renders(check, prompts(), change),
        "fits-context": lambda check: _fits_context(check, prompts(), change, config, context),
    }
    if config.output is not None and _few_shot(config):
        finds["few-shot"] = lambda check: _examples_valid(check, prompts(), change, config)
    if config.max_output_tokens and (
        _few_shot(config) or any(each.expects for each in change.candidate.cases)
    ):
        finds["output-fits"] = lambda check: _output_fits(check, prompts(), change, config, context)
    for name, find in finds.items():
        yield _check(f"{change.candidate.config_file}::unit/{name}", change.name, find)


def judge(change: ConfigChange, outcomes: Sequence[Outcome], context: Context) -> GateResult:
    """All must hold: these, and the team's own."""
    own = [each for each in outcomes if each.gate is GateName.UNIT]
    missed = [each for each in own if each.found is Found.MISSED]
    unknown = [each for each in own if each.found is Found.UNKNOWN]
    if not own:
        is_optional = GateName.UNIT in context.policy.optional
        return GateResult(
            gate=GateName.UNIT,
            verdict=Verdict.SKIP if is_optional else Verdict.INCONCLUSIVE,
            measured=("no check was executed",),
            required=("all",),
            reasons=() if is_optional else ("no check was executed",),
        )
    verdict = Verdict.FAIL if missed else Verdict.INCONCLUSIVE if unknown else Verdict.PASS
    return GateResult(
        gate=GateName.UNIT,
        verdict=verdict,
        measured=(f"{len(own) - len(missed) - len(unknown)} of {len(own)} checks",),
        required=("all",),
        reasons=tuple(reason for each in missed + unknown for reason in each.reasons or (each.check,)),
        checks=len(own),
        missed=len(missed),
        unknown=len(unknown),
        figures={
            each.check.rpartition("unit/")[2]: each.figures for each in own if each.figures and not each.case
        },
    )


def _check(id: str, config: str, find: Callable[[Check], Outcome]) -> Check:
    def begin() -> Asking:
        yield from ()
        return find(check)

    check = Check(id=id, gate=GateName.UNIT, config=config, begin=begin)
    return check


# --- The prompts --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """The requests that the cases make, and the cases that make none."""

    asked: tuple[tuple[Case, Question], ...]
    failed: tuple[tuple[Case, str], ...]


def _rendered(config: ModelConfig, cases: Sequence[Case]) -> Prompts:
    asked, failed = [], []
    for case in cases:
        try:
            asked.append((case, prompt.ask(config, case.inputs, label=case.id)))
        except PromptError as error:
            failed.append((case, error.message))
    return Prompts(asked=tuple(asked), failed=tuple(failed))


def _renders(check: Check, prompts: Prompts, change: ConfigChange) -> Outcome:
    if prompts.failed:
        file = change.candidate.cases_file
        return check.outcome(
            Found.MISSED,
            *_named([f"{file}:{case.line}: case {case.id}: {why}" for case, why in prompts.failed]),
        )
    if not prompts.asked:
        return check.outcome(Found.UNKNOWN, _no_case(change))
    return check.outcome(Found.MET, figures={"cases": len(prompts.asked)})


def _no_case(change: ConfigChange) -> str:
    return str(
        Problem(message="holds no case that renders", file=change.candidate.cases_file, hint="add one")
    )


def _named(reasons: Sequence[str]) -> tuple[str, ...]:
    rest = len(reasons) - NAMED_MAX
    return (*reasons[:NAMED_MAX], *([f"… and {rest} more cases"] if rest > 0 else []))


# --- The context window -------------------------------------------------------------------------


def _fits_context(
    check: Check, prompts: Prompts, change: ConfigChange, config: ModelConfig, context: Context
) -> Outcome:
    """Each prompt, with room for the answer, fits what the config allows itself and what the model takes."""
    facts = catalog.facts(config.model, context.policy, context.now.date())
    windows = [
        (config.limits.context_window, "limits.context_window"),
        (facts.context_window if facts else None, f"the context window of {config.model}"),
    ]
    known = [(size, whose) for size, whose in windows if size is not None]
    if not known:
        return check.outcome(
            Found.UNKNOWN, f"nobody knows the context window of {config.model}; declare limits.context_window"
        )
    if not prompts.asked:
        return check.outcome(Found.UNKNOWN, _no_case(change))
    window, whose = min(known)
    encoding = facts.encoding if facts else catalog.ASSUMED_ENCODING
    is_exact = facts.encoding_is_exact if facts else False
    questions = [question for _, question in prompts.asked]
    base = change.baseline.config if change.baseline else None
    if base is not None and base.model == config.model and not is_exact:
        # What was billed for the baseline's requests corrects what is counted for ours.
        questions += [question for _, question in _rendered(base, change.candidate.cases).asked]
    inputs = tokens.measure(
        questions,
        change.recordings,
        context.count_tokens,
        encoding=encoding,
        encoding_is_exact=is_exact,
    )
    answers = (context.count_tokens(encoding, text) for _, text in _answers(prompts, change, config))
    reserved = config.max_output_tokens or max(answers, default=0)
    sized = sorted(((inputs.tokens[each.key], case.id) for case, each in prompts.asked), reverse=True)
    too_long = [
        f"case {case}: {size:,} tokens and {reserved:,} for the answer are more than {whose}, {window:,}"
        for size, case in sized
        if size + reserved > window
    ]
    return check.outcome(
        Found.MISSED if too_long else Found.MET,
        *(_named(too_long) if too_long or inputs.calibration else inputs.notes),
        figures={"longest": sized[0][1], "input_tokens": sized[0][0], "reserved": reserved, "window": window},
    )


# --- Examples and expectations ------------------------------------------------------------------


def _few_shot(config: ModelConfig) -> tuple[tuple[int, Message], ...]:
    """The assistant's turns that show what to answer: those that somebody goes on from."""
    turns = enumerate(config.messages[:-1])
    return tuple((at, each) for at, each in turns if each.role == "assistant" and each.content is not None)


def _examples(prompts: Prompts, config: ModelConfig) -> Iterator[tuple[int, str]]:
    """Each few-shot answer as the model sees it, with its place in `messages`; each text once."""
    seen = set()
    for _, question in prompts.asked:
        turns = question.body.get("messages", question.body.get("input"))
        assert isinstance(turns, list), "every request has messages"
        for at, _ in _few_shot(config):
            turn = turns[at]
            assert isinstance(turn, dict), turn
            text = _text(turn.get("content"))
            if (at, text) not in seen:
                seen.add((at, text))
                yield at, text


def _text(content: Json) -> str:
    """What a message says, whether it is written as one string or in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _examples_valid(check: Check, prompts: Prompts, change: ConfigChange, config: ModelConfig) -> Outcome:
    if not prompts.asked:
        return check.outcome(Found.UNKNOWN, _no_case(change))
    assert config.output is not None, "asked only of configs that have an output"
    violation = _violations(config.output.schema)
    problems = [
        Problem(
            message=wrong,
            file=change.candidate.config_file,
            line=config.lines.get(f"messages[{at}].content", config.lines.get(f"messages[{at}]", 0)),
            key=f"messages[{at}].content",
            hint="an example that breaks the schema teaches the model to break it",
        )
        for at, text in _examples(prompts, config)
        if (wrong := violation(text))
    ]
    return check.outcome(Found.MISSED if problems else Found.MET, *_named([str(each) for each in problems]))


def _violations(schema: JsonObject) -> Callable[[str], str]:
    """What is wrong with a text that should be JSON of that schema; empty if nothing is."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError, best_match

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        cannot = f"cannot be checked: the output schema is not one: {error.message[:200]}"
        return lambda text: cannot
    validator = Draft202012Validator(schema)

    def violation(text: str) -> str:
        try:
            value = json.loads(text)
        except ValueError as error:
            return f"is not JSON, which the output schema wants: {error}"
        found = best_match(validator.iter_errors(value))
        return f"breaks the output schema at {found.json_path}: {found.message[:200]}" if found else ""

    return violation


def _answers(prompts: Prompts, change: ConfigChange, config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Every answer that somebody wrote down as right, and who says so."""
    for at, text in _examples(prompts, config):
        yield f"the example in messages[{at}]", text
    for case in change.candidate.cases:
        if case.expects:
            text = case.expected if isinstance(case.expected, str) else _compact(case.expected)
            yield f"what case {case.id} expects", text


def _compact(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _output_fits(
    check: Check, prompts: Prompts, change: ConfigChange, config: ModelConfig, context: Context
) -> Outcome:
    """The answer may be as long as what is expected of it; otherwise it would be cut off."""
    facts = catalog.facts(config.model, context.policy, context.now.date())
    encoding = facts.encoding if facts else catalog.ASSUMED_ENCODING
    bound = config.max_output_tokens
    assert bound is not None, "asked only of configs that bound their answers"
    sized = [(context.count_tokens(encoding, text), who) for who, text in _answers(prompts, change, config)]
    cut = [
        f"{who} has {size:,} tokens, and an answer may have {bound:,}: it would be cut off"
        for size, who in sorted(sized, reverse=True)
        if size > bound
    ]
    return check.outcome(
        Found.MISSED if cut else Found.MET,
        *_named(cut),
        figures={"longest_tokens": max(size for size, _ in sized), "bound": bound} if sized else {},
    )
