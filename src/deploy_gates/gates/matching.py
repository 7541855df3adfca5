"""What a golden case asks of an answer, and whether the answer meets it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from deploy_gates import documents
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import Case, CaseCheck, Comparison, Kind, ModelConfig
from deploy_gates.core.cost import Usage
from deploy_gates.core.instances import instances
from deploy_gates.core.question import Answer, ToolCall
from deploy_gates.documents import Valid
from deploy_gates.gates.comparing import (
    EVERY,
    NOTHING,
    Difference,
    below,
    clip,
    compared,
    differences,
    items,
    one_of,
    place,
    told,
    written,
)

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

PATTERN_MAX_CHARS = 100_000
"""Patterns are not tried on longer texts."""
PATTERN_TIMEOUT_S = 1.0
HUNG_MAX = 10
"""After so many patterns that did not come to an end, no other is tried."""
DIFFERENCES_MAX = 5
"""So many are told of one answer."""

Function: TypeAlias = "Callable[[Answer, Case], object]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """How well one answer meets one case."""

    score: float | None
    """1 where all holds, 0 where anything does not, between them what functions say; `None`: not known."""
    differences: tuple[Difference, ...] = ()
    """What does not hold, what matters most first."""
    why_unknown: str = ""

    @property
    def reasons(self) -> tuple[str, ...]:
        return (self.why_unknown,) if self.score is None else tuple(map(str, self.differences))


class Matcher:
    """One config's answers against cases; what is costly to make is made once.

    `comparison` stands in for the config's own, and `folder` is where `checks.py:polite` is looked for.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        comparison: Comparison | None = None,
        folder: str = ".",
        judged_by: ModelConfig | None = None,
    ) -> None:
        self.config = config
        self.judged_by = judged_by or config
        """Whose judge and embeddings are asked: one for both arms."""
        self.comparison = comparison or config.comparison
        self.folder = Path(folder)
        self.hung: set[str] = set()
        """Patterns that did not come to an end once, and are not tried again."""
        self._validators: dict[str, Validator] = {}
        self._compiled: dict[int, tuple[JsonObject, Valid]] = {}
        """By the identity of a schema, which is kept with it: to spell it costs more than to check."""
        self._functions: dict[str, Function] = {}

    def match(self, answer: Answer, case: Case) -> Match:
        """Whether all holds: the output schema where an answer is due, `expected`, and each check."""
        reading = self.reading(answer)
        asks = list(_asks(case))
        if self.config.output is not None and not _is_exempt(answer, case):
            asks.insert(0, _OUTPUT)
        if not asks and any(check.kind in ASKED_LATER for check in case.checks):
            return MET
        if not asks:
            return Match(score=None, why_unknown=ASKS_NOTHING)
        found = [self.met(ask, reading, case) for ask in asks]
        scores = [each.score for each in found if each.score is not None]
        unknown = next((each for each in found if each.score is None), None)
        if unknown is not None and 0 not in scores:
            return unknown
        told_once = dict.fromkeys(difference for each in found for difference in each.differences)
        return Match(score=min(scores), differences=_with_cause(list(told_once), reading, case))

    def met(self, ask: Ask, reading: Reading, case: Case) -> Match:
        """Whether one thing that is asked for holds."""
        try:
            return ask(self, reading, case)
        except Missed as miss:
            return Match(score=0.0, differences=(miss.difference,))
        except Unknown as unknown:
            return Match(score=None, why_unknown=str(unknown))
        except RecursionError:  # deeper than any expectation can be
            return Match(score=0.0, differences=(Difference(expected="an answer", got="endless nesting"),))

    def reading(self, answer: Answer) -> Reading:
        return Reading(answer, is_json_due=self.config.output is not None)

    def validator(self, schema: JsonObject) -> Validator:
        """The validator of `schema`, made once."""
        key = json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            from jsonschema import Draft202012Validator, SchemaError
            from referencing.jsonschema import EMPTY_REGISTRY

            try:
                Draft202012Validator.check_schema(schema)
            except SchemaError as error:
                raise Unknown(f"the schema is not valid: {clip(error.message)}") from error
            self._validators[key] = Draft202012Validator(
                schema,
                registry=EMPTY_REGISTRY,  # nothing is fetched
                format_checker=Draft202012Validator.FORMAT_CHECKER,
            )
        return self._validators[key]

    def is_valid(self, schema: JsonObject, value: Json) -> bool:
        """Whether the value is valid under `schema`, by a validator that was made of it once."""
        kept = self._compiled.get(id(schema))
        if kept is None or kept[0] is not schema:
            general: Valid = self.validator(schema).is_valid
            kept = self._compiled[id(schema)] = (schema, _validity(documents.quick(schema), general))
        return kept[1](value)

    def function(self, name: str) -> Function:
        """The function that `checks.py:polite` or `team.checks:polite` names, loaded once."""
        if name not in self._functions:
            self._functions[name] = _load(name, self.folder)
        return self._functions[name]


def _validity(quick: Valid | None, general: Valid) -> Valid:
    """A yes of the quick one is a yes; of a no the general one has the last word."""
    return general if quick is None else lambda value: quick(value) or general(value)


class Missed(Exception):
    """The answer does not meet it."""

    def __init__(self, got: str, *, expected: str = "", at: str = "") -> None:
        self.difference = Difference(at=at, expected=expected, got=got)
        super().__init__(str(self.difference))


class Unknown(Exception):
    """Nobody can tell, for this reason."""


Ask: TypeAlias = "Callable[[Matcher, Reading, Case], Match]"
"""One thing that is asked of an answer. It may raise `Missed` and `Unknown`."""
MET = Match(score=1.0)
ASKS_NOTHING = "asks for nothing: give it `expected` or `checks`"


def _asks(case: Case) -> Iterator[Ask]:
    if case.expects:
        yield _expected
    for check in case.checks:
        if check.kind not in ASKED_LATER:
            yield functools.partial(KINDS[check.kind], check.spec)


def _unless(found: Iterable[Difference]) -> Match:
    """Met, unless there are differences."""
    given = tuple(itertools.islice(found, DIFFERENCES_MAX))
    return Match(score=0.0, differences=given) if given else MET


def _is_exempt(answer: Answer, case: Case) -> bool:
    """Whether the case asks for something other than an answer in the output's shape."""
    refused = any(each.kind is Kind.REFUSAL and each.spec.get("value", True) for each in case.checks)
    called = any(each.kind is Kind.TOOL_CALL and each.spec.get("count") != 0 for each in case.checks)
    return refused or (called and bool(answer.tool_calls) and not answer.text.strip())


def _with_cause(found: list[Difference], reading: Reading, case: Case) -> tuple[Difference, ...]:
    """What is behind all of them comes first; a refusal leaves nothing else to be said."""
    if found and reading.cause:
        is_said = reading.is_refused and not any(check.kind is Kind.REFUSAL for check in case.checks)
        found = [reading.cause, *([] if is_said else (each for each in found if each != reading.cause))]
    return tuple(found[:DIFFERENCES_MAX])


# --- Reading an answer --------------------------------------------------------------------------


class Reading:
    """An answer, and what can be read out of it."""

    def __init__(self, answer: Answer, *, is_json_due: bool) -> None:
        self.answer = answer
        self.is_json_due = is_json_due
        """Whether the config promises JSON: then a fence around it is wrong."""

    @property
    def is_refused(self) -> bool:
        return bool(self.answer.refusal) or self.answer.finish_reason == "content_filter"

    @property
    def cause(self) -> Difference | None:
        """What went wrong before anything could be right: a refusal, or an answer cut off."""
        if self.answer.refusal:
            return Difference(expected="an answer", got=f"a refusal: {clip(self.answer.refusal)}")
        if self.answer.finish_reason == "content_filter":
            return Difference(expected="an answer", got="one stopped by the content filter")
        if self.answer.finish_reason == "length":
            usage = self.answer.usage
            at = f" at {usage.output_tokens} tokens" if usage else ""
            return Difference(expected="a whole answer", got=f"one that was cut off{at}")
        return None

    @functools.cached_property
    def json(self) -> Json:
        text = self.answer.text.strip()
        fenced = re.fullmatch(r"```\w*\s*\n(.*?)\n?```", text, re.DOTALL)
        if fenced and self.is_json_due:
            raise Missed("JSON inside a Markdown fence", expected="JSON")
        try:
            return _parsed(fenced[1] if fenced else text)
        except ValueError as error:
            raise self._no_json(text) from error

    def _no_json(self, text: str) -> Missed:
        if self.cause is not None:
            return Missed(self.cause.got, expected=self.cause.expected)
        called = ", ".join(call.name for call in self.answer.tool_calls)
        return Missed(told(text) if text else f"a call of {called}" if called else NOTHING, expected="JSON")

    def at(self, spec: JsonObject) -> Json:
        """What stands where the check looks: the text, where it names no path."""
        if "path" not in spec:
            return self.answer.text
        at = self.json
        for part in _one_place(str(spec["path"])):
            match part, at:
                case str(), dict() if part in at:
                    at = at[part]
                case int(), list() if part < len(at):
                    at = at[part]
                case _:
                    raise Missed(NOTHING, expected="a value", at=_at(spec))
        return at

    def text_at(self, spec: JsonObject) -> str:
        """The same where it has to be text."""
        found = self.at(spec)
        if not isinstance(found, str):
            raise Missed(told(found), expected="text", at=_at(spec))
        return found


def _parsed(text: str) -> Json:
    def refuse(name: str) -> Json:
        raise ValueError(f"{name} is no JSON")

    value: Json = json.loads(text, parse_constant=refuse)
    return value


def _one_place(path: str) -> tuple[str | int, ...]:
    try:
        parts = place(path)
    except ValueError as error:
        raise Unknown(str(error)) from error
    if EVERY in parts:
        raise Unknown(f"`{path}` is many places, and a check looks at one")
    return parts


def _at(spec: JsonObject) -> str:
    return written(_one_place(str(spec["path"]))) if "path" in spec else ""


# --- What can be asked --------------------------------------------------------------------------


def _expected(matcher: Matcher, reading: Reading, case: Case) -> Match:
    is_text = isinstance(case.expected, str) and not reading.is_json_due
    got = reading.answer.text.strip() if is_text else reading.json
    wanted = case.expected.strip() if is_text and isinstance(case.expected, str) else case.expected
    try:
        return _unless(compared(wanted, got, case.comparison or matcher.comparison))
    except ValueError as error:
        raise Unknown(str(error)) from error


def _schema(spec: JsonObject, matcher: Matcher, reading: Reading, case: Case) -> Match:
    from referencing.exceptions import Unresolvable

    schema = spec.get("schema", matcher.config.output.schema if matcher.config.output else None)
    if not isinstance(schema, dict):
        raise Unknown("checks a schema, and neither the check nor the config has one")
    try:
        if matcher.is_valid(schema, reading.json):
            return MET
        errors = matcher.validator(schema).iter_errors(reading.json)
        return _unless(difference for error in errors for difference in _broken(error))
    except Unresolvable as error:
        raise Unknown(f"the schema refers to {clip(error.ref)}, which is not in it") from error


_OUTPUT: Ask = functools.partial(_schema, {})


def _broken(error: ValidationError) -> Iterator[Difference]:
    at, rule, limit, given = (
        written(error.absolute_path),
        error.validator,
        error.validator_value,
        error.instance,
    )
    if rule == "required" and isinstance(limit, list) and isinstance(given, dict):
        missing = (name for name in limit if name not in given)
        yield from (Difference(at=below(at, name), expected="a value", got=NOTHING) for name in missing)
    elif rule == "additionalProperties" and limit is False and isinstance(given, dict):
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        extra = (name for name in given if name not in known)
        yield from (Difference(at=below(at, name), expected=NOTHING, got=told(given[name])) for name in extra)
    else:
        got = told(given)
        if str(rule).endswith("Length") and isinstance(given, str):
            got = f"{len(given)} characters"
        elif str(rule).endswith("Items") and isinstance(given, list):
            got = items(len(given))
        yield Difference(
            at=at, expected=_LIMITS.get(str(rule), lambda _: clip(f"what {rule} allows"))(limit), got=got
        )


_LIMITS: dict[str, Callable[[Any], str]] = {
    "enum": one_of,
    "const": told,
    "type": lambda names: names if isinstance(names, str) else " or ".join(names),
    "pattern": lambda pattern: f"a match of {clip(pattern)}",
    "format": lambda name: f"the format {name}",
    "minimum": lambda least: f"at least {least}",
    "maximum": lambda most: f"at most {most}",
    "exclusiveMinimum": lambda least: f"more than {least}",
    "exclusiveMaximum": lambda most: f"less than {most}",
    "minLength": lambda least: f"at least {least} characters",
    "maxLength": lambda most: f"at most {most} characters",
    "minItems": lambda least: f"at least {items(least)}",
    "maxItems": lambda most: f"at most {items(most)}",
}
"""What a schema asks for, in words."""


def _equals(spec: JsonObject, matcher: Matcher, reading: Reading, case: Case) -> Match:
    value = spec["value"]
    if "path" in spec:
        return _unless(differences(value, reading.at(spec), _at(spec)))
    if isinstance(value, str):
        return _unless(differences(value.strip(), reading.answer.text.strip()))
    return _unless(differences(value, reading.json))


def _contains(spec: JsonObject, matcher: Matcher, reading: Reading, case: Case) -> Match:
    if _holds(spec, reading):
        return MET
    raise Missed(told(reading.at(spec)), expected=f"{told(spec['value'])} in it", at=_at(spec))


def _not_contains(spec: JsonObject, matcher: Matcher, reading: Reading, case: Case) -> Match:
    if not _holds(spec, reading):
        return MET
    raise Missed(told(reading.at(spec)), expected=f"no {told(spec['value'])} in it", at=_at(spec))


def _holds(spec: JsonObject, reading: Reading) -> bool:
    """Whether the value is part of that text, or one of that list."""
    fold = str.casefold if spec.get("ignore_case") else str
    found, value = reading.at(spec), fold(str(spec["value"]))
    if isinstance(found, list):
        return value in [fold(each) for each in found if isinstance(each, str)]
    return value in fold(reading.text_at(spec))


def _regex(spec: JsonObject, matcher: Matcher, reading: Reading, case: Case) -> Match:
    import regex  # type: ignore[import-untyped]  # it can give up in time, which `re` cannot

    pattern, text = str(spec["pattern"]), reading.text_at(spec)
    if len(text) > PATTERN_MAX_CHARS:
        raise Unknown(f"{len(text):,} characters are too long a text for a pattern")
    if pattern not in matcher.hung and len(matcher.hung) < HUNG_MAX:
        try:
            if regex.search(pattern, text, timeout=PATTERN_TIMEOUT_S):
                return MET
            raise Missed(told(text), expected=f"a match of {clip(pattern)}", at=_at(spec))
        except TimeoutError:
            matcher.hung.add(pattern)
        except regex.error as error:
            raise Unknown(f"the pattern {clip(pattern)} is not valid: {error}") from error
    if pattern not in matcher.hung:
        raise Unknown(f"the pattern {clip(pattern)} was not tried, since {HUNG_MAX} others backtrack")
    raise Unknown(f"the pattern {clip(pattern)} takes more than {PATTERN_TIMEOUT_S:g} s: it backtracks")


def _range(spec: JsonObject, matcher: Matcher, reading: Reading, case: Case) -> Match:
    found, least, most = reading.at(spec), spec.get("min"), spec.get("max")
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise Missed(told(found), expected="a number", at=_at(spec))
    if isinstance(least, int | float) and found < least:
        raise Missed(told(found), expected=f"at least {least}", at=_at(spec))
    if isinstance(most, int | float) and found > most:
        raise Missed(told(found), expected=f"at most {most}", at=_at(spec))
    return MET


def _choice(spec: JsonObject, matcher: Matcher, reading: Reading, case: Case) -> Match:
    found, values = reading.at(spec), spec["values"]
    assert isinstance(values, list), "the schema of cases says so"
    if any(not list(differences(each, found)) for each in values):
        return MET
    raise Missed(told(found), expected=one_of(values), at=_at(spec))


def _tool_call(spec: JsonObject, matcher: Matcher, reading: Reading, case: Case) -> Match:
    name, count, calls = str(spec["name"]), spec.get("count"), reading.answer.tool_calls
    wrong = [list(_wrong_arguments(call, spec.get("arguments", {}))) for call in calls if call.name == name]
    right = sum(not found for found in wrong)
    if right == count or (count is None and right):
        return MET
    if wrong and count is None:
        return _unless(wrong[0])
    with_arguments = " with such arguments" if "arguments" in spec else ""
    others = ", ".join(call.name for call in calls)
    raise Missed(
        str(right) if count is not None else clip(f"calls of {others}") if others else "none",
        expected=f"{'a call' if count is None else f'{count} calls'} of {name}{with_arguments}",
    )


def _wrong_arguments(call: ToolCall, expected: Json) -> Iterator[Difference]:
    try:
        given = _parsed(call.arguments or "{}")
    except ValueError:
        yield Difference(at=call.name, expected="arguments in JSON", got=told(call.arguments))
    else:
        yield from differences(expected, given, call.name, partly=True)


def _refusal(spec: JsonObject, matcher: Matcher, reading: Reading, case: Case) -> Match:
    is_wanted = spec.get("value", True)
    if reading.is_refused is is_wanted:
        return MET
    if is_wanted:
        raise Missed(told(reading.answer.text), expected="a refusal")
    return _unless([reading.cause] if reading.cause else [])


def _callable(spec: JsonObject, matcher: Matcher, reading: Reading, case: Case) -> Match:
    name = str(spec["function"])
    function = matcher.function(name)
    try:
        said = function(reading.answer, case)
    except AssertionError as error:
        raise Missed(clip(str(error).partition("\n")[0]) or "an assertion that fails", at=name) from error
    except Exception as error:  # the team's code may raise anything, and it is told
        raise Unknown(f"{name} raised {type(error).__name__}: {clip(str(error))}") from error
    if not isinstance(said, int | float) or not 0 <= said <= 1:
        raise Unknown(f"{name} returned {told(said)}, and must return true, false, or a number from 0 to 1")
    if said == 1:
        return MET
    got = told(said) if isinstance(said, bool) else f"{said:.4g}"
    return Match(score=float(said), differences=(Difference(at=name, expected=told(type(said)(1)), got=got),))


KINDS: dict[Kind, Callable[[JsonObject, Matcher, Reading, Case], Match]] = {
    Kind.SCHEMA: _schema,
    Kind.EQUALS: _equals,
    Kind.CONTAINS: _contains,
    Kind.NOT_CONTAINS: _not_contains,
    Kind.REGEX: _regex,
    Kind.RANGE: _range,
    Kind.CHOICE: _choice,
    Kind.TOOL_CALL: _tool_call,
    Kind.REFUSAL: _refusal,
    Kind.CALLABLE: _callable,
}


ASKED_LATER = (Kind.JUDGE, Kind.SIMILARITY)
"""What has to ask somebody before it knows: `judging` does."""


def _load(name: str, folder: Path) -> Function:
    where, _, attributes = name.rpartition(":")
    try:
        module = _load_file(folder / where) if where.endswith(".py") else importlib.import_module(where)
        found: object = module
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except Exception as error:  # importing the team's code may raise anything, and it is told
        raise Unknown(f"{name} cannot be loaded: {type(error).__name__}: {clip(str(error))}") from error
    if not callable(found):
        raise Unknown(f"{name} is not a function")
    return found


def _load_file(path: Path) -> ModuleType:
    name = f"deploy_gates checks in {path.resolve()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "the name ends with .py"
    assert spec.loader is not None, "and so there is a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    spec.loader.exec_module(module)
    return module


# --- What cannot fail ---------------------------------------------------------------------------

GARBAGE = (
    "",
    "null",
    "{}",
    "[]",
    "true",
    "0",
    '""',
    "plum harbor seventeen",
    "".join(map(chr, range(32, 127))),
    "Größe 世界 🙂\n\n\ttabs, and a second line",
    "x" * 5_000,
)


def cannot_fail(case: Case, config: ModelConfig, *, folder: str = ".") -> list[str]:
    """What of this case accepts any answer, a sentence each: it is tried on garbage.

    Where the config has an output schema, invalid answers are missed anyway, and every kind of valid one is
    tried. What only repeats the schema is redundant, but can fail. A function that raises can fail.
    """
    matcher, trials = _trials(_Same(config), folder)
    asks = list(_asks(case))
    if not asks and config.output is None and not any(each.kind in ASKED_LATER for each in case.checks):
        return [ASKS_NOTHING]
    if not trials:
        return []
    names = ["`expected`"] if case.expects else []
    checks = [(at, check) for at, check in enumerate(case.checks) if check.kind not in ASKED_LATER]
    names += [f"checks[{at}] ({check.kind})" for at, check in checks]
    kinds = [None] if case.expects else []
    return [
        f"{name} accepts any answer{' that the output schema allows' if config.output else ''}"
        for name, ask, check in zip(names, asks, [*kinds, *(check for _, check in checks)], strict=True)
        if not _is_beyond_trial(check, config)
        and all(
            matcher.met(ask, reading, case).score == 1
            for reading in itertools.chain(trials, _tempting(check, trials, matcher))
        )
    ]


class _Same:
    """A config as a key: the very same object, for to compare two of them is costly."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def __hash__(self) -> int:
        return id(self.config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.config is self.config


@functools.lru_cache(maxsize=16)
def _trials(key: _Same, folder: str) -> tuple[Matcher, tuple[Reading, ...]]:
    """Answers to try: valid ones where the config has an output schema, garbage where it has none."""
    matcher = Matcher(key.config, folder=folder)
    if key.config.output is None:
        return matcher, tuple(matcher.reading(Answer(text=text)) for text in GARBAGE)
    made = (_reading(matcher, value) for value in instances(key.config.output.schema))
    return matcher, tuple(reading for reading in made if _is_valid(matcher, reading))


def _reading(matcher: Matcher, value: Json) -> Reading:
    return matcher.reading(Answer(text=json.dumps(value, ensure_ascii=False)))


def _is_valid(matcher: Matcher, reading: Reading) -> bool:
    return matcher.met(_OUTPUT, reading, Case(id="", inputs={})).score == 1


def _is_beyond_trial(check: CaseCheck | None, config: ModelConfig) -> bool:
    """Whether trying says nothing of it: what repeats the schema, and what only forbids."""
    if check is None:
        return False
    if check.kind is Kind.REGEX:
        return "(?!" in str(check.spec["pattern"]) or "(?<!" in str(check.spec["pattern"])
    return check.kind is Kind.SCHEMA and config.output is not None


def _tempting(check: CaseCheck | None, trials: tuple[Reading, ...], matcher: Matcher) -> Iterator[Reading]:
    """Answers that this very check should not accept."""
    unlike = Answer(text="", refusal="I cannot help with that.")
    made: Iterable[Answer] = ()
    if check is None:
        return
    if check.kind is Kind.REFUSAL:
        made = (unlike,)
    elif check.kind is Kind.TOOL_CALL:
        call = ToolCall(name=str(check.spec["name"]), arguments=json.dumps(check.spec.get("arguments", {})))
        made = (Answer(text="", tool_calls=(call,) * times) for times in (1, 2, 3))
    elif check.kind is Kind.CALLABLE:
        usage = Usage(input_tokens=10**9, output_tokens=10**9)
        slow = replace(
            trials[0].answer, latency_s=1e6, first_token_s=1e6, usage=usage, finish_reason="length"
        )
        made = (unlike, slow)
    elif check.kind is Kind.NOT_CONTAINS:
        yield from _planted_everywhere(check.spec, trials, matcher)
    yield from map(matcher.reading, made)


def _planted_everywhere(spec: JsonObject, trials: tuple[Reading, ...], matcher: Matcher) -> Iterator[Reading]:
    """Answers that hold the forbidden text wherever the schema lets them."""
    text = str(spec["value"])
    if matcher.config.output is not None:
        planted = (_reading(matcher, value) for trial in trials for value in _planted(trial.json, text))
        yield from (reading for reading in planted if _is_valid(matcher, reading))
        return
    value: Json = text
    for part in reversed(_one_place(str(spec["path"]))) if "path" in spec else ():
        value = {part: value} if isinstance(part, str) else [value] * (min(part, 1_000) + 1)
    yield _reading(matcher, value) if "path" in spec else matcher.reading(Answer(text=text))


def _planted(value: Json, text: str) -> Iterator[Json]:
    """`value` with `text` in place of one of its strings, or beside what it holds."""
    if isinstance(value, str):
        yield text
    elif isinstance(value, list):
        yield [*value, text]
        for at, each in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in _planted(each, text))
    elif isinstance(value, dict):
        yield value | {text: text}
        for key, each in value.items():
            yield from (value | {key: other} for other in _planted(each, text))
