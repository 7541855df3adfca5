"""Templates, cases, output, and tools fit the schemas that stand beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from deploy_gates import documents, prompt
from deploy_gates.core import strict
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import Case, CaseCheck, Comparison, Kind, ModelConfig
from deploy_gates.core.contract import may_be, may_hold
from deploy_gates.core.errors import PromptError
from deploy_gates.core.instances import instances
from deploy_gates.gates import matching
from deploy_gates.gates.comparing import EVERY, Place, place, written
from deploy_gates.gates.findings import Findings
from deploy_gates.gates.matching import Matcher

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

SHOWN_CHARS = 120
RENDERED_MAX = 32
"""So many inputs that the schema allows are rendered."""


# --- Templates ----------------------------------------------------------------------------------


def templates(findings: Findings, config: ModelConfig) -> None:
    """Every variable is declared, and whatever inputs are allowed can be rendered."""
    try:
        used = prompt.variables(config)
    except PromptError as error:
        findings.miss(error.message, line=_line_of(error, findings))
        return
    declared, required = _properties(config.inputs), _required(config.inputs)
    for name, places in used.items():
        if name not in declared:
            hint = documents.nearest(name, list(declared)) or "declare it in `inputs.properties`"
            findings.miss(f"uses `{name}`, which no input declares", key=places[0], hint=hint)
    for name in required:
        if name not in declared:
            hint = documents.nearest(name, list(declared)) or "declare it in `inputs.properties`"
            findings.miss(f"names `{name}`, which no input declares", key="inputs.required", hint=hint)
    for name in declared:
        if name not in used:
            findings.note("is declared and never used", key=f"inputs.properties.{name}")
    if is_schema(findings, config.inputs, "inputs") and not findings.wrong:
        _renders(findings, config)


def _renders(findings: Findings, config: ModelConfig) -> None:
    validator = Matcher(config).validator(config.inputs)
    failed: dict[str, tuple[PromptError, JsonObject]] = {}
    for inputs in instances(config.inputs, RENDERED_MAX):
        if not isinstance(inputs, dict) or not validator.is_valid(inputs):
            continue
        try:
            prompt.body(config, inputs)
        except PromptError as error:
            failed.setdefault(error.message, (error, inputs))
    for message, (failure, inputs) in failed.items():
        guard = "require it in `inputs.required`, or write `{% if … is defined %}`"
        findings.miss(
            f"{message}; `inputs` allows {_shown(inputs)}",
            line=_line_of(failure, findings),
            hint=guard if "undefined" in message else "have `inputs` allow less, or the template take more",
        )


def _line_of(error: PromptError, findings: Findings) -> int:
    found = re.match(r"messages\[\d+\]\.content", error.message)
    return findings.line(found[0]) if found else 0


# --- Cases --------------------------------------------------------------------------------------


def cases(findings: Findings, config: ModelConfig, given: Sequence[Case], *, file: str, folder: str) -> None:
    """Every case can be asked, can be met, and can be missed."""
    if not is_usable(config.inputs) or (config.output is not None and not is_usable(config.output.schema)):
        findings.doubt("the cases cannot be held to a schema that is not valid")
        return
    matcher = Matcher(config, folder=folder)
    inputs = matcher.validator(config.inputs)
    expected: dict[tuple[str, Comparison | None], list[tuple[str, str]]] = {}
    """By what is expected, why no answer can be that: many cases expect the same."""
    for case in given:
        problems = []
        if not matcher.is_valid(config.inputs, case.inputs):
            problems += [("inputs", each) for each in _broken(inputs, case.inputs)]
        if case.expects and config.output is not None:
            key = (json.dumps(case.expected), case.comparison)
            if key not in expected:
                expected[key] = list(_never_expected(case, config, matcher))
            problems += expected[key]
        for at, check in enumerate(case.checks):
            problems += [
                (f"checks[{at}].{field}", said) for field, said in _never_met(check, config, matcher)
            ]
        problems += [("", each) for each in matching.cannot_fail(case, config, folder=folder)]
        for where, said in problems:
            findings.miss(
                f"of case {case.id}: {said}" if where else f"case {case.id}: {said}",
                key=where,
                file=file,
                line=case.line,
            )


def _broken(validator: Validator, value: Json) -> Iterator[str]:
    for error in [] if validator.is_valid(value) else validator.iter_errors(value):
        at = documents.join(error.absolute_path)
        yield f"{at}{': ' if at else ''}{_clipped(error.message)}"


def _never_expected(case: Case, config: ModelConfig, matcher: Matcher) -> Iterator[tuple[str, str]]:
    """Where `expected` is what no answer can be, beside what the comparison leaves out and forgives."""
    comparison = case.comparison or config.comparison
    try:
        left_out = [place(each) for each in comparison.exclude_paths]
    except ValueError as unreadable:
        yield "exclude_paths", str(unreadable)
        return
    schema = config.output.schema if config.output else {}
    if matcher.is_valid(schema, case.expected):
        return
    for wrong in matcher.validator(schema).iter_errors(case.expected):
        if comparison.ignore_string_case and _differs_in_case_only(wrong):
            continue
        if not all(any(_covers(each, at) for each in left_out) for at in _places(wrong, left_out)):
            key = documents.join(["expected", *wrong.absolute_path])
            yield key, f"no answer can be that: {_clipped(wrong.message)}"


def _places(error: ValidationError, left_out: Sequence[Place]) -> list[Place]:
    """Which places the error is about: what is missing or too much lies below where it was found."""
    at = tuple(error.absolute_path)
    if error.validator == "required":
        return [(*at, error.message.split("'")[1])]
    if error.validator == "additionalProperties" and isinstance(error.schema, dict):
        instance: Any = error.instance
        return [(*at, name) for name in instance if name not in _properties(error.schema)]
    if error.context:
        # None of the alternatives fits, and it may be for what is left out that none does.
        return [each for each in left_out if _covers(at, each)] or [at]
    return [at]


def _covers(above: Place, at: Place) -> bool:
    """Whether the place `at` is `above` or lies in it."""
    return len(above) <= len(at) and all(
        step == own or (step == EVERY and isinstance(own, int)) for step, own in zip(above, at, strict=False)
    )


def _differs_in_case_only(error: ValidationError) -> bool:
    limit: Any = error.validator_value
    values = limit if error.validator == "enum" else [limit]
    return (
        error.validator in ("enum", "const")
        and isinstance(error.instance, str)
        and error.instance.casefold() in [each.casefold() for each in values if isinstance(each, str)]
    )


def _never_met(check: CaseCheck, config: ModelConfig, matcher: Matcher) -> Iterator[tuple[str, str]]:
    """By which of its fields a check can never hold, or can never be tried."""
    spec, schema = check.spec, config.output.schema if config.output else None
    if "path" in spec:
        try:
            at = place(str(spec["path"]))
        except ValueError as error:
            yield "path", str(error)
            return
        if EVERY in at:
            yield "path", "is many places, and a check looks at one"
            return
        if schema is not None:
            yield from _never_there(check, schema, at)
    match check.kind:
        case Kind.TOOL_CALL:
            yield from _never_called(spec, config)
        case Kind.SCHEMA if isinstance(own := spec.get("schema"), dict):
            yield from (("schema", said) for said in _tried(lambda: matcher.validator(own)))
        case Kind.CALLABLE:
            yield from (
                ("function", said) for said in _tried(lambda: matcher.function(str(spec["function"])))
            )
        case Kind.REGEX:
            yield from (("pattern", said) for said in _pattern_problem(str(spec["pattern"])))


def _tried(make: Callable[[], object]) -> Iterator[str]:
    try:
        make()
    except matching.Unknown as error:
        yield str(error)


def _pattern_problem(pattern: str) -> Iterator[str]:
    import regex  # type: ignore[import-untyped]  # by which golden checks are matched

    try:
        regex.compile(pattern)
    except regex.error as error:
        yield f"is no valid pattern: {error}"


def _never_there(check: CaseCheck, schema: JsonObject, at: Place) -> Iterator[tuple[str, str]]:
    where = _rooted(at)
    if not may_hold(schema, where):
        hint = documents.nearest(at[0], list(_properties(schema)))
        yield "path", f"no answer has `{written(at)}`{f'; {hint}' if hint else ''}"
        return
    value, values = check.spec.get("value"), check.spec.get("values")
    if check.kind is Kind.EQUALS and not may_be(schema, where, value):
        yield "value", f"`{written(at)}` is never {_shown(value)}"
    if check.kind is Kind.CHOICE and isinstance(values, list):
        for each in values:
            if not may_be(schema, where, each):
                yield "values", f"`{written(at)}` is never {_shown(each)}"


def _never_called(spec: JsonObject, config: ModelConfig) -> Iterator[tuple[str, str]]:
    functions = {str(each.get("name")): each for each in _functions(config)}
    name, arguments = str(spec["name"]), spec.get("arguments")
    if name not in functions:
        hint = documents.nearest(name, list(functions))
        yield "name", f"`{name}` is no tool of the config{f'; {hint}' if hint else ''}"
        return
    parameters = functions[name].get("parameters")
    if isinstance(parameters, dict) and isinstance(arguments, dict):
        for key, value in arguments.items():
            if not may_be(parameters, _rooted((key,)), value):
                yield "arguments", f"`{key}` is never {_shown(value)}"


# --- Output and tools ---------------------------------------------------------------------------


def output(findings: Findings, config: ModelConfig) -> None:
    """The output schema is one, and the endpoint takes it."""
    if config.output is None:
        return
    _name(findings, config.output.name, "output.name")
    if is_schema(findings, config.output.schema, "output.schema") and config.output.strict:
        _strict(findings, config.output.schema, "output.schema", config)


def tools(findings: Findings, config: ModelConfig) -> None:
    """Each tool has a name of its own and a schema of its arguments, and the one to choose is there."""
    names: list[str] = []
    for at, function in enumerate(_functions(config)):
        key, name, parameters = (
            f"tools[{at}].function",
            str(function.get("name", "")),
            function.get("parameters"),
        )
        _name(findings, name, f"{key}.name")
        if name in names:
            findings.miss(f"is `{name}`, as `tools[{names.index(name)}]` is", key=f"{key}.name")
        names.append(name)
        if not isinstance(parameters, dict) or not is_schema(findings, parameters, f"{key}.parameters"):
            continue
        if parameters.get("type") != "object":
            findings.miss("must be `object`: arguments have names", key=f"{key}.parameters.type")
        elif function.get("strict") is True:
            _strict(findings, parameters, f"{key}.parameters", config)
    choice = config.parameters.get("tool_choice")
    chosen = choice.get("function", choice) if isinstance(choice, dict) else None
    if isinstance(chosen, dict) and "name" in chosen and chosen["name"] not in names:
        hint = documents.nearest(chosen["name"], names)
        findings.miss(f"names `{chosen['name']}`, which is no tool", key="parameters.tool_choice", hint=hint)


def is_usable(schema: JsonObject) -> bool:
    """Whether values can be held to it."""
    return is_schema(Findings(file=""), schema, "")


def is_schema(findings: Findings, schema: JsonObject, key: str) -> bool:
    """Whether it is a JSON Schema of draft 2020-12 whose references lead somewhere; says it where not."""
    from jsonschema import Draft202012Validator, SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        findings.miss(
            f"is no valid JSON Schema: {_clipped(error.message)}", key=documents.join([key, *error.path])
        )
        return False
    resource = DRAFT202012.create_resource(schema)
    resolver = Registry().with_resource("", resource).resolver()
    for at, ref in _references(schema, key):
        try:
            resolver.lookup(ref)
        except Unresolvable:
            findings.miss(f"names {ref}, which is not in this schema", key=at)
            return False
    return True


def _references(part: Json, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(part, dict):
        if isinstance(ref := part.get("$ref"), str):
            yield f"{key}.$ref", ref
        for name, each in part.items():
            if name not in ("const", "enum", "default", "examples"):
                yield from _references(each, f"{key}.{name}")
    elif isinstance(part, list):
        for at, each in enumerate(part):
            yield from _references(each, f"{key}[{at}]")


def _strict(findings: Findings, schema: JsonObject, key: str, config: ModelConfig) -> None:
    for each in strict.problems(schema, is_fine_tuned=config.model.startswith("ft:")):
        findings.miss(each.message, key=f"{key}.{each.key}" if each.key else key, hint=each.hint)


def _name(findings: Findings, name: str, key: str) -> None:
    if not strict.NAME.match(name):
        findings.miss(
            f"is {_shown(name)}, and must be 1 to 64 letters, digits, dashes or underscores", key=key
        )


# --- Small questions ----------------------------------------------------------------------------


def _properties(schema: JsonObject) -> JsonObject:
    found = schema.get("properties")
    return found if isinstance(found, dict) else {}


def _required(schema: JsonObject) -> list[str]:
    found = schema.get("required")
    return [str(each) for each in found] if isinstance(found, list) else []


def _functions(config: ModelConfig) -> list[JsonObject]:
    found = (each.get("function") for each in config.tools)
    return [each for each in found if isinstance(each, dict)]


def _rooted(at: Place) -> str:
    path = written(at)
    return f"${path}" if path.startswith("[") or not path else f"$.{path}"


def _shown(value: Json) -> str:
    return _clipped(json.dumps(value, ensure_ascii=False))


def _clipped(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
