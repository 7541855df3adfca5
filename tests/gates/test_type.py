"""The type gate: what it must stop, what it must let pass, and in which words."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses

from deploy_gates import catalog
from deploy_gates.core.config import (
    Case,
    CaseCheck,
    Comparison,
    ConfigChange,
    Environment,
    Kind,
    Limits,
    Message,
    ModelConfig,
    Output,
    Snapshot,
)
from deploy_gates.core.errors import Problem
from deploy_gates.core.gate import Check, Found, GateName, Outcome, Verdict
from deploy_gates.core.policy import DeclaredModel, Policy
from deploy_gates.core.question import Api
from deploy_gates.gates import capability
from deploy_gates.gates import type as gate
from deploy_gates.testing import (
    NOW,
    TICKET_SCHEMA,
    a_case,
    a_change,
    a_config,
    a_context,
    a_snapshot,
    never,
    run_check,
)

FILE = "golden/ticket-triage/config.yaml"
LINES = {
    "model": 1,
    "messages": 3,
    "messages[1].content": 7,
    "inputs": 9,
    "parameters": 20,
    "parameters.temperature": 21,
    "output": 30,
    "tools": 40,
    "consumers": 50,
    "environments": 60,
}
KEY = "sk-proj-" + "aB3dE5gH7jK9mN1pQ2sT4vW6" * 2  # opens nothing


def config(**fields: object) -> ModelConfig:
    return a_config(lines=LINES, **fields)


def checked(name: str, change: ConfigChange, **context: Any) -> Outcome:
    """What the check `type/<name>` finds."""
    found = [each for each in gate.checks(change, a_context(**context)) if each.name == f"type/{name}"]
    assert found, f"there is no check type/{name}"
    return run_check(found[0], never)


def reasons(name: str, candidate: ModelConfig | Snapshot, **context: Any) -> list[str]:
    """Why that check does not let the config pass; nothing if it does."""
    snapshot = a_snapshot(candidate) if isinstance(candidate, ModelConfig) else candidate
    outcome = checked(name, a_change(snapshot), **context)
    return [] if outcome.found is Found.MET else list(outcome.reasons)


def notes(name: str, change: ConfigChange, **context: Any) -> list[str]:
    outcome = checked(name, change, **context)
    assert outcome.found is Found.MET, outcome.reasons
    return list(outcome.reasons)


def closed(**properties: object) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# --- The gate -----------------------------------------------------------------------------------


def names(checks: Iterator[Check]) -> list[str]:
    return [each.id for each in checks]


def test_only_what_the_config_has_is_checked() -> None:
    small = a_change(a_snapshot(config(output=None, parameters={})))
    tool = {"type": "function", "function": {"name": "find"}}
    full = config(
        tools=(tool,), consumers=("consumer.py:Ticket",), environments=(Environment(name="production"),)
    )
    large = a_change(a_snapshot(full, [a_case("refund")]), a_snapshot(config()))
    policy = Policy(type_command="mypy src")

    assert names(gate.checks(small, a_context())) == [
        f"{FILE}::type/{name}" for name in ("config", "secrets", "templates", "model")
    ]
    assert names(gate.checks(large, a_context(policy))) == [
        f"{FILE}::type/{name}"
        for name in (
            "config",
            "secrets",
            "templates",
            "cases",
            "output",
            "tools",
            "parameters",
            "model",
            "environments",
            "consumers",
            "compatibility",
            "command",
        )
    ]


def test_a_config_that_cannot_be_read_is_missed_with_every_problem() -> None:
    problems = (
        Problem(message="is not YAML", file=FILE, line=3),
        Problem(message="stands here twice", file=FILE, line=9, key="model"),
    )
    change = a_change(a_snapshot(problems=problems, texts={FILE: f"token: {KEY}\n"}))
    change = replace(change, candidate=replace(change.candidate, config=None))

    assert names(gate.checks(change, a_context())) == [f"{FILE}::type/config", f"{FILE}::type/secrets"]
    assert checked("config", change).reasons == (
        f"{FILE}:3: is not YAML",
        f"{FILE}:9: `model` stands here twice",
    )
    assert checked("secrets", change).found is Found.MISSED


def an_outcome(found: Found, name: str = "output", *reasons: str) -> Outcome:
    return Outcome(
        check=f"{FILE}::type/{name}",
        gate=GateName.TYPE,
        config="ticket-triage",
        found=found,
        reasons=reasons,
    )


@pytest.mark.parametrize(
    ("outcomes", "verdict", "measured", "said"),
    [
        (
            [an_outcome(Found.MET), an_outcome(Found.MET, "model", "a note")],
            Verdict.PASS,
            "2 of 2 checks",
            (),
        ),
        (
            [an_outcome(Found.UNKNOWN, "model", "nobody knows"), an_outcome(Found.MISSED, "output", "wrong")],
            Verdict.FAIL,
            "0 of 2 checks",
            ("wrong", "nobody knows"),
        ),
        (
            [an_outcome(Found.MET), an_outcome(Found.UNKNOWN, "model", "nobody knows")],
            Verdict.INCONCLUSIVE,
            "1 of 2 checks",
            ("nobody knows",),
        ),
        ([], Verdict.INCONCLUSIVE, "no check was executed", ("no check was executed",)),
    ],
)
def test_all_checks_must_hold(
    outcomes: list[Outcome], verdict: Verdict, measured: str, said: tuple[str, ...]
) -> None:
    other = replace(an_outcome(Found.MISSED), gate=GateName.UNIT)

    result = gate.judge(a_change(a_snapshot()), [*outcomes, other], a_context())

    assert (result.verdict, result.measured, result.required) == (verdict, (measured,), ("all",))
    assert result.reasons == said
    assert result.checks == len(outcomes)


def test_no_check_is_a_skip_where_the_policy_says_so() -> None:
    policy = Policy(optional=frozenset({GateName.TYPE}))

    assert gate.judge(a_change(a_snapshot()), [], a_context(policy)).verdict is Verdict.SKIP


def test_twenty_reasons_are_named_and_the_rest_is_counted() -> None:
    many = a_snapshot(problems=tuple(Problem(message=f"problem {at}") for at in range(25)))

    found = reasons("config", many)

    assert len(found) == 21
    assert found[-1] == "… and 5 more"


def test_what_is_nested_too_deeply_is_not_known_to_be_right() -> None:
    deep: dict[str, Any] = TEXT
    for _ in range(400):
        deep = closed(a=deep)
    change = a_change(a_snapshot(answers(deep), [a_case("refund")]), a_snapshot(config()))

    found = {each.name: run_check(each, never).found for each in gate.checks(change, a_context())}

    for name in ("cases", "output", "compatibility"):
        assert found[f"type/{name}"] is not Found.MET


# --- Templates ----------------------------------------------------------------------------------


def asks(template: str, **inputs: object) -> ModelConfig:
    schema = inputs.pop("inputs", closed(**inputs))
    return config(
        messages=(Message(role="system", content="Sort."), Message(role="user", content=template)),
        inputs=schema,
    )


TEXT = {"type": "string"}
TEMPLATES: dict[str, tuple[ModelConfig, list[str]]] = {
    "misspelt": (
        asks("{{ boddy }}", body=TEXT),
        [f"{FILE}:7: `messages[1].content` uses `boddy`, which no input declares; did you mean `body`?"],
    ),
    "not declared": (
        asks("{{ body }}{{ x }}", body=TEXT),
        [f"{FILE}:7: `messages[1].content` uses `x`, which no input declares; known are `body`"],
    ),
    "not closed": (
        asks("{{ body }", body=TEXT),
        [f"{FILE}:7: messages[1].content is not a valid template, line 1 of it: unexpected '}}'"],
    ),
    "an unknown filter": (
        asks("{{ body | shorten }}", body=TEXT),
        [f"{FILE}:7: messages[1].content is not a valid template, line 1 of it: No filter named 'shorten'."],
    ),
    "required and not declared": (
        asks("{{ body }}", inputs=closed(body=TEXT) | {"required": ["body", "locale"]}),
        [f"{FILE}:9: `inputs.required` names `locale`, which no input declares; known are `body`"],
    ),
    "optional and used": (
        asks("{{ body }}{{ locale }}", inputs=closed(body=TEXT, locale=TEXT) | {"required": ["body"]}),
        [
            f"{FILE}:7: messages[1].content uses a variable that has no value: 'locale' is undefined; "
            '`inputs` allows {"body": ""}; require it in `inputs.required`, or write `{% if … is defined %}`'
        ],
    ),
    "more than the inputs promise": (
        asks("{{ items[0] }}", items={"type": "array", "items": TEXT}),
        [
            f"{FILE}:7: messages[1].content uses a variable that has no value: list object has no element 0; "
            '`inputs` allows {"items": []}; have `inputs` allow less, or the template take more'
        ],
    ),
    "inputs that are no schema": (
        asks("{{ body }}", inputs={"type": "object", "properties": {"body": {"type": "text"}}}),
        [
            f"{FILE}:9: `inputs.properties.body.type` is no valid JSON Schema: 'text' is not valid under "
            "any of the given schemas"
        ],
    ),
    "optional and guarded": (
        asks(
            "{{ body }}{% if locale is defined %}{{ locale }}{% endif %}",
            inputs=closed(body=TEXT, locale=TEXT) | {"required": ["body"]},
        ),
        [],
    ),
    "a loop": (
        asks("{% for each in items %}{{ each }}{% endfor %}", items={"type": "array", "items": TEXT}),
        [],
    ),
}


@pytest.mark.parametrize(("given", "expected"), TEMPLATES.values(), ids=TEMPLATES)
def test_templates_use_what_is_declared_and_render_whatever_is_allowed(
    given: ModelConfig, expected: list[str]
) -> None:
    assert reasons("templates", given) == expected


def test_an_input_that_no_template_uses_is_noted() -> None:
    assert notes("templates", a_change(a_snapshot(asks("{{ body }}", body=TEXT, locale=TEXT)))) == [
        f"{FILE}:9: `inputs.properties.locale` is declared and never used"
    ]


# --- Cases --------------------------------------------------------------------------------------

FOUND = {"type": "function", "function": {"name": "find_order", "parameters": closed(id=TEXT)}}
TICKET = config(comparison=Comparison(exclude_paths=("reason",)), tools=(FOUND,))


def a_check(kind: str, **spec: Any) -> CaseCheck:
    return CaseCheck(kind=Kind(kind), spec=spec)


def checking(*checks: CaseCheck) -> Case:
    return a_case("refund", expects=False, expected=None, checks=checks, line=4)


CASES: dict[str, tuple[Case, str]] = {
    "expected": (a_case("refund", line=4), ""),
    "another category": (
        a_case("refund", line=4, expected={"category": "reimbursement"}),
        "`expected.category` of case refund: no answer can be that: "
        "'reimbursement' is not one of ['billing', 'refund', 'technical']",
    ),
    "a field that no answer has": (
        a_case("refund", line=4, expected={"category": "refund", "categry": "refund"}),
        "`expected` of case refund: no answer can be that: "
        "Additional properties are not allowed ('categry' was unexpected)",
    ),
    "a field that every answer has": (
        a_case("refund", line=4, expected={}),
        "`expected` of case refund: no answer can be that: 'category' is a required property",
    ),
    "what is left out may be anything": (
        a_case("refund", line=4, expected={"category": "refund", "reason": 5}),
        "",
    ),
    "what is left out by the case itself": (
        a_case(
            "refund", line=4, expected={"reason": "x"}, comparison=Comparison(exclude_paths=("$.category",))
        ),
        "",
    ),
    "another spelling, forgiven": (
        a_case(
            "refund",
            line=4,
            expected={"category": "Refund"},
            comparison=Comparison(exclude_paths=("reason",), ignore_string_case=True),
        ),
        "",
    ),
    "a place that cannot be read": (
        a_case("refund", line=4, comparison=Comparison(exclude_paths=("reason[",))),
        "`exclude_paths` of case refund: `reason[` is no path; write it like `items[0].price`",
    ),
    "inputs that are not allowed": (
        a_case("refund", line=4, inputs={"body": 7}),
        "`inputs` of case refund: body: 7 is not of type 'string'",
    ),
    "a check of a place that is not there": (
        checking(a_check("contains", path="reasn", value="refund")),
        "`checks[0].path` of case refund: no answer has `reasn`; did you mean `reason`?",
    ),
    "a check of many places": (
        checking(a_check("contains", path="items[*]", value="refund")),
        "`checks[0].path` of case refund: is many places, and a check looks at one",
    ),
    "a choice that is none": (
        checking(a_check("choice", path="category", values=["refund", "money back"])),
        '`checks[0].values` of case refund: `category` is never "money back"',
    ),
    "a value that is none": (
        checking(a_check("equals", path="category", value="money back")),
        '`checks[0].value` of case refund: `category` is never "money back"',
    ),
    "a pattern that is none": (
        checking(a_check("regex", path="reason", pattern="(")),
        "`checks[0].pattern` of case refund: is no valid pattern: missing ) at position 1",
    ),
    "a tool that is none": (
        checking(a_check("tool_call", name="find_ordr")),
        "`checks[0].name` of case refund: `find_ordr` is no tool of the config; did you mean `find_order`?",
    ),
    "an argument that is none": (
        checking(a_check("tool_call", name="find_order", arguments={"id": 7})),
        "`checks[0].arguments` of case refund: `id` is never 7",
    ),
    "a function that is not there": (
        checking(a_check("callable", function="no_such_module:polite")),
        "`checks[0].function` of case refund: no_such_module:polite cannot be loaded: "
        "ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "a check that accepts anything": (
        checking(a_check("regex", path="reason", pattern=".*")),
        "case refund: checks[0] (regex) accepts any answer that the output schema allows",
    ),
    "checks that can hold and can fail": (
        checking(
            a_check("choice", path="category", values=["refund", "billing"]),
            a_check("contains", path="reason", value="money"),
            a_check("tool_call", name="find_order", arguments={"id": "7"}),
            a_check("schema", schema={"required": ["nobody"]}),
        ),
        "",
    ),
}


@pytest.mark.parametrize(("case", "problem"), CASES.values(), ids=CASES)
def test_a_case_can_be_asked_can_be_met_and_can_be_missed(case: Case, problem: str) -> None:
    found = reasons("cases", a_snapshot(TICKET, [case]))

    assert found == ([f"golden/ticket-triage/cases.jsonl:4: {problem}"] if problem else [])


def test_cases_are_not_held_to_a_schema_that_is_not_valid() -> None:
    wrong = config(output=Output(name="ticket", schema={"type": "objekt"}))

    outcome = checked("cases", a_change(a_snapshot(wrong, [a_case("refund")])))

    assert (outcome.found, outcome.reasons) == (
        Found.UNKNOWN,
        (f"{FILE}: the cases cannot be held to a schema that is not valid",),
    )


# --- Output and tools ---------------------------------------------------------------------------


def answers(schema: dict[str, Any], **fields: Any) -> ModelConfig:
    return config(output=Output(**({"name": "ticket", "schema": schema} | fields)))


def test_the_output_schema_is_one_and_of_the_subset_that_is_taken() -> None:
    loose = {"type": "object", "properties": {"a": {"oneOf": [TEXT]}}}

    assert reasons("output", answers(TICKET_SCHEMA)) == []
    assert reasons("output", answers(loose, strict=False)) == []
    assert reasons("output", answers({"type": "objekt"})) == [
        f"{FILE}:30: `output.schema.type` is no valid JSON Schema: "
        "'objekt' is not valid under any of the given schemas"
    ]
    assert reasons("output", answers({"$ref": "#/$defs/gone"}, strict=False)) == [
        f"{FILE}:30: `output.schema.$ref` names #/$defs/gone, which is not in this schema"
    ]
    assert reasons("output", answers(loose))[1:] == [
        f"{FILE}:30: `output.schema.required` lacks `a`: every property is required; "
        'write `"type": ["string", "null"]` for what may be missing',
        f"{FILE}:30: `output.schema.properties.a.oneOf` is not supported; write `anyOf`",
        f"{FILE}:30: `output.schema.properties.a` has no `type`; say what it may be",
    ]
    assert reasons("output", answers(TICKET_SCHEMA, name="the ticket")) == [
        f'{FILE}:30: `output.name` is "the ticket", and must be 1 to 64 letters, digits, dashes or '
        "underscores"
    ]


def test_a_fine_tuned_model_takes_less() -> None:
    tuned = replace(config(), model="ft:gpt-4.1-mini:team::1")

    assert [each for each in reasons("output", tuned) if "fine-tuned" in each]


def tool(name: str = "find", parameters: object = None, **fields: object) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "parameters": parameters or closed(id=TEXT)} | fields,
    }


TOOLS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "two": ([tool("find"), tool("close", strict=True)], {"tool_choice": "auto"}, ""),
    "one without arguments": ([{"type": "function", "function": {"name": "find"}}], {}, ""),
    "no schema": (
        [tool(parameters={"type": "objekt"})],
        {},
        "`tools[0].function.parameters.type` is no valid JSON Schema: 'objekt' is not valid under any of "
        "the given schemas",
    ),
    "no names": (
        [tool(parameters={"type": "array"})],
        {},
        "`tools[0].function.parameters.type` must be `object`: arguments have names",
    ),
    "strict and open": (
        [tool(parameters={"type": "object", "properties": {}}, strict=True)],
        {},
        "`tools[0].function.parameters` lacks `additionalProperties: false`",
    ),
    "two of one name": ([tool(), tool()], {}, "`tools[1].function.name` is `find`, as `tools[0]` is"),
    "a name with a blank": (
        [tool("find it")],
        {},
        '`tools[0].function.name` is "find it", and must be 1 to 64 letters, digits, dashes or underscores',
    ),
    "another one is chosen": (
        [tool("find")],
        {"tool_choice": {"type": "function", "function": {"name": "fnd"}}},
        "`parameters.tool_choice` names `fnd`, which is no tool; did you mean `find`?",
    ),
}


@pytest.mark.parametrize(("tools", "parameters", "problem"), TOOLS.values(), ids=TOOLS)
def test_tools_have_names_and_schemas(
    tools: list[dict[str, Any]], parameters: dict[str, Any], problem: str
) -> None:
    found = reasons("tools", config(tools=tuple(tools), parameters=parameters))

    line = 20 if problem.startswith("`parameters") else 40
    assert found == ([f"{FILE}:{line}: {problem}"] if problem else [])


# --- Parameters ---------------------------------------------------------------------------------

LOCAL = (Environment(name="production", base_url="http://llm:8080/v1"),)
PARAMETERS: list[tuple[Api, dict[str, Any], tuple[Environment, ...], str]] = [
    (
        Api.CHAT,
        {
            "temperature": 0,
            "seed": 1,
            "stop": ["x"],
            "max_completion_tokens": 9,
            "logprobs": True,
            "top_logprobs": 2,
        },
        (),
        "",
    ),
    (
        Api.RESPONSES,
        {"temperature": 0, "max_output_tokens": 9, "reasoning": {"effort": "low"}, "truncation": "auto"},
        (),
        "",
    ),
    (
        Api.CHAT,
        {"temprature": 0},
        (),
        "`parameters.temprature` is not known to chat.completions; did you mean `temperature`?",
    ),
    (
        Api.CHAT,
        {"temprature": 0},
        LOCAL,
        "`parameters.temprature` is not known to chat.completions; did you mean `temperature`?",
    ),
    (
        Api.CHAT,
        {"cache_prompt": True},
        (),
        "`parameters.cache_prompt` is not known to chat.completions; remove it",
    ),
    (Api.CHAT, {"cache_prompt": True}, LOCAL, ""),
    (
        Api.CHAT,
        {"truncation": "auto"},
        LOCAL,
        "`parameters.truncation` is a parameter of responses, and the config speaks chat.completions; "
        "remove it",
    ),
    (
        Api.CHAT,
        {"max_output_tokens": 9},
        (),
        "`parameters.max_output_tokens` is not known to chat.completions; write `max_completion_tokens`",
    ),
    (
        Api.RESPONSES,
        {"max_tokens": 9},
        (),
        "`parameters.max_tokens` is not known to responses; write `max_output_tokens`",
    ),
    (
        Api.RESPONSES,
        {"seed": 9},
        (),
        "`parameters.seed` is a parameter of chat.completions, and the config speaks responses; remove it",
    ),
    (
        Api.CHAT,
        {"max_tokens": 9, "max_completion_tokens": 9},
        (),
        "`parameters.max_tokens` stands beside `max_completion_tokens`; keep one of the two",
    ),
    (Api.CHAT, {"top_logprobs": 2}, (), "`parameters.top_logprobs` needs `logprobs: true` beside it"),
    (Api.CHAT, {"stream_options": {}}, (), "`parameters.stream_options` needs `stream: true` beside it"),
    (
        Api.CHAT,
        {"tool_choice": "auto"},
        (),
        "`parameters.tool_choice` chooses a tool, and the config has none",
    ),
]


@pytest.mark.parametrize(("api", "parameters", "environments", "problem"), PARAMETERS)
def test_the_protocol_knows_every_parameter(
    api: Api, parameters: dict[str, Any], environments: tuple[Environment, ...], problem: str
) -> None:
    found = reasons("parameters", config(api=api, parameters=parameters, environments=environments))

    assert found == ([f"{FILE}:20: {problem}"] if problem else [])


def test_parameters_are_those_of_the_official_client() -> None:
    made_elsewhere = {"model", "messages", "input", "tools", "response_format", "text"}
    replaced = {"functions", "function_call"}
    official = {
        Api.CHAT: set(chat.CompletionCreateParamsBase.__annotations__),
        Api.RESPONSES: set(responses.ResponseCreateParamsBase.__annotations__),
    }

    for api, known in capability.PARAMETERS.items():
        assert known == official[api] - made_elsewhere - replaced | {"stream"}
    for api, name in capability.INSTEAD:
        assert name not in capability.PARAMETERS[api]


# --- The model ----------------------------------------------------------------------------------


def modelled(model: str, api: Api = Api.CHAT, **parameters: Any) -> ModelConfig:
    return config(model=model, api=api, parameters=parameters, output=None)


IMAGE = (Message(role="user", content=[{"type": "image_url", "image_url": {"url": "{{ body }}"}}]),)
MODELS: dict[str, tuple[ModelConfig, list[str]]] = {
    "all it has": (modelled("gpt-4.1-mini", temperature=0, seed=1, stop="x", logprobs=True), []),
    "what is neutral": (modelled("o3", temperature=1, top_p=1, frequency_penalty=0), []),
    "unknown": (
        modelled("gpt-4.1-minni"),
        [
            f"{FILE}:1: `model` is gpt-4.1-minni, which nobody knows; did you mean `gpt-4.1-mini` or"
            " `gpt-4o-mini` or `gpt-5.4-mini`? Otherwise declare it under"
            ' `[tool.deploy_gates.models."gpt-4.1-minni"]`'
        ],
    ),
    "unlike any other": (
        modelled("llamalpha"),
        [
            f"{FILE}:1: `model` is llamalpha, which nobody knows; declare it under "
            '`[tool.deploy_gates.models."llamalpha"]`'
        ],
    ),
    "gone": (
        modelled("gpt-4"),
        [f"{FILE}:1: `model` is gpt-4, which is gone since 2026-10-23; change to `gpt-6.1-sol`"],
    ),
    "going": (
        modelled("gpt-5-mini"),
        [
            f"{FILE}:1: `model` is gpt-5-mini, which goes away on 2026-12-11, in 18 days; change to "
            "`gpt-6.1-terra`"
        ],
    ),
    "a temperature for a model that reasons": (
        modelled("o3", temperature=0),
        [
            f"{FILE}:21: `parameters.temperature` needs a model that takes a `temperature` other than 1, "
            "and o3 is none; remove it, or change the model"
        ],
    ),
    "no structured output": (
        replace(modelled("our-7b"), output=Output(name="ticket", schema=TICKET_SCHEMA)),
        [
            f"{FILE}:30: `output` needs a model that keeps to a JSON Schema given as response format, and "
            "our-7b is none; remove it, or change the model"
        ],
    ),
    "no tools": (
        replace(modelled("our-7b"), tools=(tool(),)),
        [
            f"{FILE}:40: `tools` needs a model that calls functions, and our-7b is none; remove it, or "
            "change the model"
        ],
    ),
    "no eyes": (
        replace(modelled("our-7b"), messages=IMAGE),
        [
            f"{FILE}:3: `messages` needs a model that sees images, and our-7b is none; remove it, or "
            "change the model"
        ],
    ),
    "the other protocol": (
        modelled("o3-pro"),
        [f"{FILE}: `api` is chat.completions, and o3-pro is served by responses only"],
    ),
    "an effort it does not know": (
        modelled("o3", reasoning_effort="minimal"),
        [f"{FILE}:20: `parameters.reasoning_effort` is minimal, and o3 takes low, medium, high"],
    ),
    "a temperature while it reasons": (
        modelled("gpt-5.2", temperature=0, reasoning_effort="high"),
        [
            f"{FILE}:21: `parameters.temperature` is taken by gpt-5.2 not always: only with "
            "reasoning_effort none; `reasoning_effort` is high: remove one of the two"
        ],
    ),
    "a temperature while it does not": (modelled("gpt-5.2", temperature=0, reasoning_effort="none"), []),
    "a larger window": (
        replace(modelled("our-7b"), limits=Limits(context_window=9_000)),
        [f"{FILE}: `limits.context_window` is 9,000, and our-7b takes 8,192 tokens"],
    ),
    "a longer answer": (
        modelled("our-7b", max_completion_tokens=5_000),
        [
            f"{FILE}:20: `parameters.max_completion_tokens` is 5,000, and our-7b answers with at most "
            "4,096 tokens"
        ],
    ),
}
OURS = Policy(
    models={
        "our-7b": DeclaredModel(context_window=8_192, max_output_tokens=4_096, features=frozenset()),
        "our-13b": DeclaredModel(context_window=8_192),
    }
)


@pytest.mark.parametrize(("given", "expected"), MODELS.values(), ids=MODELS)
def test_the_model_is_known_stays_and_has_what_is_used(given: ModelConfig, expected: list[str]) -> None:
    on = datetime(2026, 6, 1, tzinfo=UTC) if given.model.startswith("o3") else NOW  # o3 is going as well

    assert reasons("model", given, policy=OURS, now=on) == expected


def test_a_model_of_unknown_features_is_not_known_to_have_them() -> None:
    quiet, asking = modelled("our-13b"), replace(modelled("our-13b", seed=1), tools=(tool(),))

    outcome = checked("model", a_change(a_snapshot(asking)), policy=OURS)

    assert reasons("model", quiet, policy=OURS) == []
    assert (outcome.found, outcome.reasons) == (
        Found.UNKNOWN,
        (
            f"{FILE}:1: `model` is our-13b, and nobody knows whether it has what this config uses; if it "
            "has, "
            'say so under `[tool.deploy_gates.models."our-13b"]`: `features = ["tools", "seed"]`',
        ),
    )


def test_what_is_worth_knowing_of_a_model_is_noted() -> None:
    deprecated = a_change(a_snapshot(modelled("gpt-4.1-mini")))
    conditional = a_change(a_snapshot(modelled("gpt-5.2", temperature=0)))

    assert notes("model", deprecated) == [
        f"{FILE}:1: `model` is gpt-4.1-mini, which is deprecated; change to `gpt-6-luna`"
    ]
    assert notes("model", conditional) == [
        f"{FILE}:21: `parameters.temperature` is taken by gpt-5.2 not always: only with reasoning_effort none"
    ]


def test_every_condition_in_the_catalog_is_one_that_is_understood() -> None:
    entries = catalog._entries()
    conditions = {said for entry in entries.values() for said in entry.get("conditions", {}).values()}

    on_reasoning = {
        said for said in conditions if "reasoning_effort none" in said or "while the model reasons" in said
    }

    assert conditions - on_reasoning == {"not documented"}
    assert {each.value for each in Api} >= {
        said.split()[1] for said in conditions if said.startswith("through ")
    }


def test_every_feature_is_one_that_a_config_can_use() -> None:
    assert set(capability.USES) == set(catalog.FEATURES) - {"json_mode"}


# --- Environments and secrets -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"base_url": "https://api.example.com/v1", "api_key_env": "OUR_KEY_2"}, ""),
        ({"base_url": "http://localhost:8080"}, ""),
        (
            {"base_url": "https://ada:pw@example.com/v1"},
            "`environments.staging.base_url` holds a user or a password; name a key in `api_key_env`",
        ),
        (
            {"base_url": "https://example.com/v1?key=x"},
            "`environments.staging.base_url` is not the plain URL of an endpoint; write it like "
            "https://api.example.com/v1",
        ),
        (
            {"base_url": "https://"},
            "`environments.staging.base_url` is not the plain URL of an endpoint; write it like "
            "https://api.example.com/v1",
        ),
        (
            {"api_key_env": "AKIA" + "Q7ZP2MX4T6RB3WLD"},
            "`environments.staging.api_key_env` must be the name of an environment variable, and never a "
            "key; write it like OPENAI_API_KEY",
        ),
        (
            {"api_key_env": KEY},
            "`environments.staging.api_key_env` must be the name of an environment variable, and never a "
            "key; write it like OPENAI_API_KEY",
        ),
    ],
)
def test_endpoints_are_plain_urls_and_keys_are_named(environment: dict[str, str], problem: str) -> None:
    found = reasons("environments", config(environments=(Environment(name="staging", **environment),)))

    assert found == ([f"{FILE}:60: {problem}"] if problem else [])


def test_an_endpoint_that_is_not_encrypted_is_noted() -> None:
    open_wire = config(environments=(Environment(name="staging", base_url="http://llm.example.com/v1"),))

    assert notes("environments", a_change(a_snapshot(open_wire))) == [
        f"{FILE}:60: `environments.staging.base_url` is not encrypted: "
        "the key and all prompts can be read on their way"
    ]


def test_a_key_is_found_in_any_file_and_not_shown() -> None:
    cases_file = "golden/ticket-triage/cases.jsonl"
    texts = {
        FILE: f"model: x\n# works with {KEY}\n",
        cases_file: f'{{"body": "x"}}\n{{"body": "my key is {KEY}"}}\n{{"body": "api_key: '
        '\\"aB3dE5gH7jK9mN1pQ2sT4vW6\\""}}\n',
    }

    found = reasons("secrets", a_snapshot(config(), texts=texts))

    hint = "take it out, revoke it, and name an environment variable in `api_key_env`"
    assert found == [
        f"{FILE}:2: holds what looks like an OpenAI key: sk-p…; {hint}",
        f"{cases_file}:2: holds what looks like an OpenAI key: sk-p…; {hint}",
    ]


# --- Consumers ----------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "golden/ticket-triage").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def consumer(root: Path) -> Callable[[str], None]:
    """Write the consumer beside the config."""
    return lambda code: (root / "golden/ticket-triage/consumer.py").write_text(textwrap.dedent(code)) and None


READING = config(consumers=("consumer.py:Ticket",))
CONSUMERS: dict[str, tuple[str, list[str]]] = {
    "a Pydantic model": (
        """
        from typing import Literal
        from pydantic import BaseModel
        class Ticket(BaseModel):
            category: Literal["billing", "refund", "technical", "other"]
            reason: str
        """,
        [],
    ),
    "a dataclass": (
        """
        from __future__ import annotations
        import dataclasses
        @dataclasses.dataclass
        class Ticket:
            category: str
            reason: str | None = None
        """,
        [],
    ),
    "a TypedDict": (
        """
        from typing_extensions import TypedDict
        class Ticket(TypedDict, total=False):
            category: str
        """,
        [],
    ),
    "one that prints and warns": (
        """
        import warnings
        print("hello")
        warnings.warn("old", DeprecationWarning)
        Ticket = dict[str, str]
        """,
        [],
    ),
    "fewer categories": (
        """
        from typing import Literal
        from pydantic import BaseModel
        class Ticket(BaseModel):
            category: Literal["billing", "refund"]
        """,
        ["`$.category` may be `technical`, which consumer.py:Ticket does not know"],
    ),
    "another type, and one more field": (
        """
        from pydantic import BaseModel
        class Ticket(BaseModel):
            category: str
            reason: list[str]
            priority: int
        """,
        [
            "`$.priority` is never there, and consumer.py:Ticket requires it",
            "`$.reason` is string, and consumer.py:Ticket takes array",
        ],
    ),
    "no other fields": (
        """
        from pydantic import BaseModel, ConfigDict
        class Ticket(BaseModel):
            model_config = ConfigDict(extra="forbid")
            category: str
        """,
        ["`$.reason` may be there, and consumer.py:Ticket refuses what it does not know"],
    ),
    "a validator of its own": (
        """
        from pydantic import BaseModel, field_validator
        class Ticket(BaseModel):
            category: str
            reason: str
            @field_validator("reason")
            @classmethod
            def says_something(cls, reason: str) -> str:
                if not reason.strip():
                    raise ValueError("a reason says something")
                return reason
        """,
        ['`$.reason` may be "", which consumer.py:Ticket refuses: Value error, a reason says something'],
    ),
    "a validator that breaks": (
        """
        from pydantic import BaseModel, field_validator
        class Ticket(BaseModel):
            category: str
            @field_validator("category")
            @classmethod
            def looked_up(cls, category: str) -> str:
                return {}[category]
        """,
        ["`$` may be an answer on which consumer.py:Ticket raises KeyError: 'billing'"],
    ),
    "one that raises": (
        'raise RuntimeError("no database")',
        ["consumer.py:Ticket cannot be imported: RuntimeError: no database"],
    ),
    "one that exits": ("import sys; sys.exit(3)", ["consumer.py:Ticket cannot be imported: SystemExit: 3"]),
    "one that is no Python": (
        "class Ticket(:",
        ["consumer.py:Ticket cannot be imported: SyntaxError: invalid syntax (consumer.py, line 1)"],
    ),
    "one of another name": (
        "Tickets = dict",
        ["consumer.py:Ticket is not there: consumer.py has no `Ticket`"],
    ),
    "a function": ("def Ticket(): ...", ["consumer.py:Ticket is a function or a module, and no type"]),
}


@pytest.mark.parametrize(("code", "expected"), CONSUMERS.values(), ids=CONSUMERS)
def test_every_consumer_reads_every_answer(
    root: Path, consumer: Callable[[str], None], code: str, expected: list[str]
) -> None:
    consumer(code)

    found = reasons("consumers", READING, root=str(root))

    assert found == [f"{FILE}:50: `consumers[0]` {each}" for each in expected]


def test_a_consumer_can_be_a_class_in_a_package_of_the_repository(root: Path) -> None:
    package = root / "src/triage_desk"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text("class Desk:\n    Ticket = dict[str, str]\n")

    there = reasons("consumers", config(consumers=("triage_desk.models:Desk.Ticket",)), root=str(root))
    gone = reasons("consumers", config(consumers=("triage_desk.views:Ticket",)), root=str(root))

    assert there == []
    assert gone == [
        f"{FILE}:50: `consumers[0]` triage_desk.views:Ticket cannot be imported: "
        "ModuleNotFoundError: No module named 'triage_desk.views'"
    ]


def test_a_consumer_of_an_answer_without_a_shape_reads_nothing(
    root: Path, consumer: Callable[[str], None]
) -> None:
    consumer("Ticket = dict[str, str]")

    assert reasons("consumers", replace(READING, output=None), root=str(root)) == [
        f"{FILE}:50: `consumers[0]` consumer.py:Ticket reads answers of a shape, and the config promises "
        "none; "
        "declare the `output` schema"
    ]


def test_a_pattern_that_cannot_be_compared_is_not_known_to_fit(
    root: Path, consumer: Callable[[str], None]
) -> None:
    consumer(
        """
        from typing import Annotated
        from pydantic import BaseModel, StringConstraints
        class Ticket(BaseModel):
            id: Annotated[str, StringConstraints(pattern="^T-[0-9]+$")]
        """
    )
    schema = closed(id=TEXT | {"pattern": "^T-[0-9]{4}$"})

    outcome = checked(
        "consumers",
        a_change(a_snapshot(replace(READING, output=Output(name="t", schema=schema)))),
        root=str(root),
    )

    assert outcome.found is Found.UNKNOWN
    assert outcome.reasons[0].startswith(f"{FILE}:50: `consumers[0]` `$.id` cannot be compared with")


# --- Compatibility ------------------------------------------------------------------------------


def schema_without(name: str) -> dict[str, Any]:
    properties = {key: value for key, value in TICKET_SCHEMA["properties"].items() if key != name}
    return closed(**properties)


def schema_with(**properties: object) -> dict[str, Any]:
    return closed(**(TICKET_SCHEMA["properties"] | properties))


ALLOW = "; if all who use it are ready, name the place in `output.allow_breaking`"
CATEGORY = {"type": "string", "enum": ["billing", "refund", "technical"]}
COMPATIBILITY: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": (TICKET_SCHEMA, []),
    "a field more": (schema_with(priority=TEXT), []),
    "a shorter reason": (schema_with(reason=TEXT | {"maxLength": 20}), []),
    "a field less": (schema_without("reason"), ["`$.reason` is gone, and consumers may read it"]),
    "an optional field": (
        TICKET_SCHEMA | {"required": ["category"]},
        ["`$.reason` was required and may now be missing"],
    ),
    "another type": (schema_with(reason={"type": "integer"}), ["`$.reason` was string and is now integer"]),
    "a longer reason": (
        schema_with(reason=TEXT),
        ["`$.reason` may now be any string, and was a string of at most 120 characters"],
    ),
    "a category more": (
        schema_with(category={"enum": ["billing", "refund", "technical", "spam"]}),
        ["`$.category` may now be `spam`, which consumers do not know"],
    ),
    "a category less": (
        schema_with(category={"enum": ["billing", "refund"]}),
        ["`$.category` may no longer be `technical`, which consumers may wait for"],
    ),
    "a category renamed": (
        schema_with(category={"enum": ["billing", "refund", "bug"]}),
        [
            "`$.category` may now be `bug`, which consumers do not know",
            "`$.category` may no longer be `technical`, which consumers may wait for",
        ],
    ),
}


@pytest.mark.parametrize(("schema", "expected"), COMPATIBILITY.values(), ids=COMPATIBILITY)
def test_answers_keep_what_the_baseline_promised(schema: dict[str, Any], expected: list[str]) -> None:
    change = a_change(a_snapshot(answers(schema)), a_snapshot(config()))

    outcome = checked("compatibility", change)

    said = [] if outcome.found is Found.MET else list(outcome.reasons)
    assert said == [f"{FILE}:30: {each}{ALLOW}" for each in expected]


def test_a_break_names_the_consumers_that_read_it(root: Path, consumer: Callable[[str], None]) -> None:
    consumer("import dataclasses\n@dataclasses.dataclass\nclass Ticket:\n    category: str\n")
    changed = answers(schema_with(category={"enum": ["billing"]}, reason={"type": "integer"}))
    change = a_change(a_snapshot(replace(changed, consumers=READING.consumers)), a_snapshot(config()))

    outcome = checked("compatibility", change, root=str(root))

    assert outcome.reasons == (
        f"{FILE}:30: `$.reason` was string and is now integer{ALLOW}",
        f"{FILE}:30: `$.category` may no longer be `refund` or `technical`, which consumers may wait for; "
        f"read by consumer.py:Ticket{ALLOW}",
    )


def test_a_break_that_somebody_allowed_is_noted_and_so_is_one_that_is_none() -> None:
    schema = schema_with(category={"enum": ["billing", "refund"]}, lines={"type": "array", "items": TEXT})
    baseline = answers(schema_with(lines={"type": "array", "items": {"type": "integer"}}))
    allowed = answers(schema, allow_breaking=("$.category", "$.lines[*]", "$.reason"))

    said = notes("compatibility", a_change(a_snapshot(allowed), a_snapshot(baseline)))

    assert said == [
        f"{FILE}:30: `$.lines[]` was integer and is now string; allowed by `output.allow_breaking`",
        f"{FILE}:30: `$.category` may no longer be `technical`, which consumers may wait for; "
        "allowed by `output.allow_breaking`",
        f"{FILE}:30: `output.allow_breaking` `$.reason` is allowed to break and does not",
    ]


def test_what_is_new_and_what_is_less_strict_is_noted() -> None:
    change = a_change(a_snapshot(answers(schema_with(priority=TEXT), strict=False)), a_snapshot(config()))
    text = a_change(a_snapshot(config()), a_snapshot(config(output=None)))

    assert notes("compatibility", change) == [
        f"{FILE}:30: `output.strict` is no longer strict: answers may leave the schema",
        f"{FILE}:30: `output` `$.priority` is new",
    ]
    assert notes("compatibility", text) == [f"{FILE}:30: `output` answers were text and are JSON now"]


def test_an_output_that_is_gone_is_a_break_that_cannot_be_allowed() -> None:
    assert checked(
        "compatibility", a_change(a_snapshot(config(output=None)), a_snapshot(config()))
    ).reasons == (
        f"{FILE}:30: `output` is gone: answers were JSON and may now be any text; "
        "put it back, or give what answers in text a config of its own",
    )


INPUTS = closed(body=TEXT)
CALLS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": (INPUTS, []),
    "one more, that may be left out": (closed(body=TEXT, locale=TEXT) | {"required": ["body"]}, []),
    "one more": (
        closed(body=TEXT, locale=TEXT),
        ["`$inputs.locale` is new and required, and callers do not send it"],
    ),
    "one less": (
        closed(text=TEXT),
        [
            "`$inputs.text` is new and required, and callers do not send it",
            "`$inputs.body` is no longer taken, and callers may send it",
        ],
    ),
    "another type": (
        closed(body={"type": "integer"}),
        ["`$inputs.body` was string and must now be integer, which callers may not send"],
    ),
    "shorter": (
        closed(body=TEXT | {"maxLength": 9}),
        ["`$inputs.body` may have been any string, and must now be a string of at most 9 characters"],
    ),
}


@pytest.mark.parametrize(("inputs", "expected"), CALLS.values(), ids=CALLS)
def test_calls_of_the_baseline_are_still_taken(inputs: dict[str, Any], expected: list[str]) -> None:
    outcome = checked("compatibility", a_change(a_snapshot(config(inputs=inputs)), a_snapshot(config())))

    said = [] if outcome.found is Found.MET else list(outcome.reasons)
    assert said == [f"{FILE}:9: {each}{ALLOW}" for each in expected]


def test_a_new_input_can_be_allowed() -> None:
    ready = replace(
        answers(TICKET_SCHEMA, allow_breaking=("$inputs.locale",)), inputs=closed(body=TEXT, locale=TEXT)
    )

    assert notes("compatibility", a_change(a_snapshot(ready), a_snapshot(config()))) == [
        f"{FILE}:9: `$inputs.locale` is new and required, and callers do not send it; "
        "allowed by `output.allow_breaking`"
    ]


def test_a_baseline_that_cannot_be_read_promised_nobody_knows_what() -> None:
    unreadable = replace(a_snapshot(), config=None)

    unsure = checked("compatibility", a_change(a_snapshot(config()), unreadable))
    sure = answers(TICKET_SCHEMA, allow_breaking=("$",))

    assert unsure.found is Found.UNKNOWN
    assert "--gate-base" in unsure.reasons[0]
    assert len(notes("compatibility", a_change(a_snapshot(sure), unreadable))) == 1


# --- The team's type checker --------------------------------------------------------------------


def command(code: str, timeout_s: float = 20.0) -> Policy:
    return Policy(type_command=f'{sys.executable} -c "{code}"', type_command_timeout_s=timeout_s)


def now() -> datetime:
    """Another moment each time: within a run, a command is run once."""
    now.minute = (getattr(now, "minute", 0) + 1) % 60  # type: ignore[attr-defined]
    return datetime(2026, 11, 23, 9, now.minute, tzinfo=UTC)  # type: ignore[attr-defined]


def test_a_type_checker_that_finds_nothing_lets_pass(tmp_path: Path) -> None:
    writes = command("import os; print(os.getcwd(), file=open('seen', 'w'))")

    assert reasons("command", config(), policy=writes, root=str(tmp_path), now=now()) == []
    assert (tmp_path / "seen").read_text().strip() == str(tmp_path)


def test_a_type_checker_that_finds_something_is_quoted_by_its_end(tmp_path: Path) -> None:
    finds = command("import sys; print(*range(5000), sep=chr(10)); print('app.py:3: error'); sys.exit(2)")

    found = reasons("command", config(), policy=finds, root=str(tmp_path), now=now())

    assert found[0].startswith("pyproject.toml: `tool.deploy_gates.type.command`")
    assert "ended with status 2" in found[0]
    assert found[-1] == "app.py:3: error"
    assert len(found) == 13


def test_a_command_that_hangs_is_ended_with_all_it_has_started(tmp_path: Path) -> None:
    (tmp_path / "hang.py").write_text(
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "import time; time.sleep(60)\n"
    )
    hangs = Policy(type_command=f"{sys.executable} hang.py", type_command_timeout_s=0.5)

    found = reasons("command", config(), policy=hangs, root=str(tmp_path), now=now())

    assert "took more than 0.5 s and was ended" in found[0]


@pytest.mark.parametrize("wrong", ["no-such-command --strict", "mypy 'src", " "])
def test_a_command_that_is_not_there_is_told_in_one_sentence(tmp_path: Path, wrong: str) -> None:
    found = reasons("command", config(), policy=Policy(type_command=wrong), root=str(tmp_path), now=now())

    assert len(found) == 1
    assert "cannot be" in found[0]
