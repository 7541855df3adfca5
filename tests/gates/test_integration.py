"""The integration gate: what an endpoint does becomes a verdict, and never a pass by mistake."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.servers import Breaks, Drops, Fails, Hangs, Raw, Reply, Request, Says, Server, refused_url, serve

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.config import Case, CaseCheck, ConfigChange, Environment, Kind, ModelConfig
from deploy_gates.core.errors import Cause, Unanswered
from deploy_gates.core.gate import Found, GateName, GateResult, Outcome, Verdict
from deploy_gates.core.policy import Context, Policy
from deploy_gates.core.question import Answer, Question, ToolCall
from deploy_gates.gates import integration
from deploy_gates.model import Endpoint, Engine, Record
from deploy_gates.prompt import ask
from deploy_gates.testing import (
    NOW,
    a_case,
    a_change,
    a_config,
    a_context,
    a_snapshot,
    an_answer,
    never,
    run_check,
)

GOOD: JsonObject = {"category": "refund", "reason": "wants money back"}
CASES = tuple(a_case(name) for name in ("a", "b", "c", "d"))
BOOK: JsonObject = {
    "type": "function",
    "function": {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer"}},
            "required": ["days"],
        },
    },
}


def of(
    config: ModelConfig | None = None,
    cases: Sequence[Case] = CASES,
    baseline: ModelConfig | None = None,
    **recorded: Answer,
) -> ConfigChange:
    """A change with answers recorded of the baseline, by case."""
    before = a_snapshot(baseline, cases) if baseline else None
    recordings = {
        ask(baseline or a_config(), case.inputs).key: recorded[case.id]
        for case in cases
        if case.id in recorded
    }
    return a_change(a_snapshot(config or a_config(), cases), before, recordings)


Answering = Callable[[Question], "Answer | Unanswered"]


def good(question: Question) -> Answer:
    return an_answer(GOOD)


def judged(
    change: ConfigChange, answer: Answering = good, context: Context | None = None
) -> tuple[GateResult, dict[str, Outcome]]:
    """The verdict with answers written by hand, and what each check found."""
    context = context or a_context()
    outcomes = [run_check(each, answer) for each in integration.checks(change, context)]
    named = {each.check.partition("integration/")[2]: each for each in outcomes}
    return integration.judge(change, outcomes, context), named


def live(change: ConfigChange, server: Server | str, timeout_s: float = 5.0) -> GateResult:
    """The verdict over a real socket."""

    async def no_nap(seconds: float) -> None:
        pass

    running = Engine(
        recorded=change.recordings,
        endpoint=Endpoint(
            base_url=server if isinstance(server, str) else server.base_url, api_key="x", timeout_s=timeout_s
        ),
        record=Record.NEW,
        journal=None,
        price=lambda question, usage: 1,
        estimate=lambda question: None,  # type: ignore[arg-type,return-value]  # without a budget nobody asks
        now=lambda: NOW,
        sleep=no_nap,
        retries=2,
    )
    try:
        checks = list(integration.checks(change, a_context(live=True)))
        running.ask_ahead(checks)
        return integration.judge(change, [running.outcome(each) for each in checks], a_context())
    finally:
        running.close()


# --- Over a real socket -------------------------------------------------------------------------


def test_an_endpoint_that_behaves_passes() -> None:
    with serve(Says(GOOD)) as server:
        result = live(of(), server)

    assert result.verdict is Verdict.PASS
    assert [each.partition(", slowest")[0] for each in result.measured] == ["3 of 3 calls"]
    assert result.required == ("all, ≤ 60.0 s",)
    assert server.asked == 3


def test_all_cases_are_asked_at_once_and_none_twice() -> None:
    config = a_config(parameters={"max_completion_tokens": 100, "stop": "END"}, tools=(BOOK,))

    with serve(Says(GOOD, after_s=0.05)) as server:
        result = live(of(config), server)

    assert (result.verdict, result.checks) == (Verdict.PASS, 6)
    assert (server.asked, server.most_in_flight) == (3, 3)


MISBEHAVING: dict[str, tuple[Reply, Verdict, str]] = {
    "refuses the schema": (
        Fails(400, "Invalid schema for response_format 'ticket'."),
        Verdict.FAIL,
        "answered 400: Invalid schema for response_format 'ticket', and 2 more like it",
    ),
    "knows no such model": (Fails(404, "The model does not exist"), Verdict.FAIL, "The model does not exist"),
    "says 422": (Fails(422), Verdict.FAIL, "answered 422"),
    "lets another model answer": (
        Says(GOOD, model="gpt-3.5"),
        Verdict.FAIL,
        "gpt-3.5 answered, where gpt-4.1-mini",
    ),
    "knows no such key": (
        Fails(401, "Incorrect API key"),
        Verdict.INCONCLUSIVE,
        "answered 401: Incorrect API",
    ),
    "is overloaded": (Fails(429), Verdict.INCONCLUSIVE, "answered 429"),
    "is down": (Fails(503), Verdict.INCONCLUSIVE, "answered 503"),
    "drops connections": (Drops(), Verdict.INCONCLUSIVE, "broke off"),
    "breaks off": (Breaks(), Verdict.INCONCLUSIVE, "broke off"),
    "hangs": (Hangs(), Verdict.INCONCLUSIVE, "gave no whole answer within 0.2 s"),
    "says no JSON": (Raw("<html>"), Verdict.INCONCLUSIVE, "the body is not JSON"),
    "says garbage": (
        Raw('{"choices": "garbage", "model": "m"}'),
        Verdict.INCONCLUSIVE,
        "`choices` of the body",
    ),
    "answers nothing": (Says(""), Verdict.FAIL, "the answer to a is empty"),
    "answers prose": (Says("It is a refund."), Verdict.FAIL, "is not JSON: 'It is a refund.'"),
    "breaks the schema": (Says({"category": "refund"}), Verdict.FAIL, "'reason' is a required property"),
    "refuses to answer": (Says("", refusal="I cannot help"), Verdict.FAIL, "is a refusal: I cannot help"),
    "filters": (Says("", finish_reason="content_filter"), Verdict.FAIL, "was stopped by the content filter"),
    "cuts off": (Says('{"cat', finish_reason="length"), Verdict.FAIL, "is 120, and cut off the answer to"),
}


@pytest.mark.parametrize("name", MISBEHAVING)
def test_an_endpoint_that_misbehaves_does_not_pass(name: str) -> None:
    reply, verdict, why = MISBEHAVING[name]

    with serve(reply) as server:
        result = live(of(), server, timeout_s=0.2)

    assert result.verdict is verdict
    assert any(why in reason for reason in result.reasons), result.reasons
    assert "Traceback" not in str(result)


def test_where_nobody_listens_it_is_said_once() -> None:
    result = live(of(), refused_url())

    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.measured == ("0 of 3 calls", "0 of 4 checks")
    assert len(result.reasons) == 1
    assert "cannot be reached: nobody listens there" in result.reasons[0]


@pytest.mark.parametrize("reply", [Fails(500), Drops(), Raw("{"), Breaks()])
def test_a_fault_that_passes_changes_nothing(reply: Reply) -> None:
    def script(request: Request) -> Reply:
        return reply if request.attempt == 1 else Says(GOOD)

    with serve(script) as server:
        result = live(of(), server)

    assert result.verdict is Verdict.PASS


@pytest.mark.parametrize("streams", [True, False])
def test_a_stream_that_was_asked_for_has_to_come_as_one(streams: bool) -> None:
    config = a_config(parameters={"stream": True})
    whole = {
        "model": config.model,
        "choices": [{"message": {"content": json.dumps(GOOD)}, "finish_reason": "stop"}],
    }

    with serve(Says(GOOD) if streams else Raw(json.dumps(whole))) as server:
        result = live(of(config), server)

    assert result.verdict is (Verdict.PASS if streams else Verdict.FAIL)
    assert streams or result.reasons[0].endswith("was asked for as a stream, and came in one piece")


# --- Which cases --------------------------------------------------------------------------------


def test_smoke_cases_are_asked_else_the_first_three() -> None:
    smoke = (*CASES, a_case("e", tags=("smoke",)), a_case("f", tags=("smoke", "hard")))
    asked: dict[int, set[str]] = {}

    for cases in (CASES, smoke):

        def answer(question: Question) -> Answer:
            asked.setdefault(len(cases), set()).add(question.label)  # noqa: B023  # called at once
            return good(question)

        judged(of(cases=cases), answer)

    assert asked == {4: {"a", "b", "c"}, 6: {"e", "f"}}


def test_the_questions_are_those_of_the_golden_cases() -> None:
    change = of()
    keys = {ask(a_config(), case.inputs).key for case in CASES}
    asked: list[Question] = []

    judged(change, lambda question: asked.append(question) or good(question))  # type: ignore[func-returns-value]

    assert {question.key for question in asked} <= keys


def test_without_a_case_nothing_is_known() -> None:
    result, _ = judged(of(cases=()))

    assert result.verdict is Verdict.INCONCLUSIVE
    assert "golden/ticket-triage/cases.jsonl: holds no case to try the endpoint with" in result.reasons[0]


def test_a_config_that_cannot_be_read_has_no_checks() -> None:
    change = of()
    unreadable = replace(change, candidate=replace(change.candidate, config=None))

    assert list(integration.checks(unreadable, a_context())) == []


@pytest.mark.parametrize(
    ("optional", "verdict"), [(frozenset(), Verdict.INCONCLUSIVE), ({GateName.INTEGRATION}, Verdict.SKIP)]
)
def test_a_gate_that_executed_nothing_says_so(optional: frozenset[GateName], verdict: Verdict) -> None:
    result = integration.judge(of(), [], a_context(Policy(optional=frozenset(optional))))

    assert result.verdict is verdict
    assert result.measured == ("no check was executed",)


def test_only_what_the_config_declares_is_checked() -> None:
    plain = a_config(output=None, parameters={})
    full = a_config(parameters={"max_tokens": 9, "stop": ["END"], "stream": True}, tools=(BOOK,))

    names = [[each.name for each in integration.checks(of(config), a_context())] for config in (plain, full)]

    assert names == [
        ["integration/round-trip", "integration/deadline"],
        [
            "integration/round-trip",
            "integration/deadline",
            "integration/structured-output",
            "integration/output-limit",
            "integration/stop",
            "integration/tools",
            "integration/streaming",
        ],
    ]


# --- Recorded answers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "told"),
    [
        (timedelta(days=3, hours=2), "replayed, answers 3 days old"),
        (timedelta(hours=1), "replayed, answers 1 hour old"),
        (timedelta(minutes=7), "replayed, answers 7 minutes old"),
        (timedelta(seconds=-5), "replayed, answers of this minute"),
        (None, "replayed, nobody knows when they were given"),
    ],
)
def test_how_old_replayed_answers_are_is_told(age: timedelta | None, told: str) -> None:
    asked_at = NOW - age if age is not None else None

    result, _ = judged(of(), lambda question: an_answer(GOOD, asked_at=asked_at))

    assert result.verdict is Verdict.PASS
    assert result.measured == ("3 of 3 calls, slowest 0.4 s", told)


def test_live_answers_are_told_apart_from_replayed_ones() -> None:
    result, _ = judged(of(), lambda question: an_answer(GOOD, recorded=question.label == "b"))

    assert result.measured[1] == "1 replayed, answers of this minute"


def test_what_was_never_recorded_is_told_once_with_what_to_do() -> None:
    def unanswered(question: Question) -> Unanswered:
        error = never(question)
        assert isinstance(error, Unanswered)
        return Unanswered(error.cause, error.message, hint="`--gate-record=new` asks for it")

    result, _ = judged(of(), unanswered)

    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.measured[0] == "0 of 3 calls"
    assert "a was never recorded, and 2 more like it" in result.reasons
    assert result.hint == "`--gate-record=new` asks for it"


def test_one_refused_case_blocks_even_if_others_are_not_known() -> None:
    causes = {"a": Cause.UNREACHABLE, "b": Cause.REFUSED}

    def answer(question: Question) -> Answer | Unanswered:
        cause = causes.get(question.label)
        return Unanswered(cause, f"{question.label} is {cause}") if cause else good(question)

    result, found = judged(of(), answer)

    assert result.verdict is Verdict.FAIL
    assert found["round-trip"].reasons == ("b is refused", "a is unreachable")


@pytest.mark.parametrize(("longest", "found"), [(120, Found.MET), (121, Found.MISSED)])
def test_a_limit_that_would_cut_off_the_baselines_answers_is_seen_without_asking(
    longest: int, found: Found
) -> None:
    change = of(
        a_config(lines={"parameters.max_completion_tokens": 31}),
        baseline=a_config(parameters={}),
        a=an_answer(GOOD, output_tokens=20),
        b=an_answer(GOOD, output_tokens=longest),
        c=an_answer(GOOD, usage=None),
    )
    check = next(each for each in integration.checks(change, a_context()) if "output-limit" in each.id)

    outcome = run_check(check, good if found is Found.MET else never)

    assert outcome.found is found
    assert outcome.figures["baseline_longest_tokens"] == longest
    assert found is Found.MET or outcome.reasons == (
        "golden/ticket-triage/config.yaml:31: `parameters.max_completion_tokens` is 120, and would cut off "
        "1 of 2 recorded answers of the baseline; the longest has 121 tokens",
    )


def test_a_stop_sequence_may_not_stand_in_an_answer() -> None:
    config = a_config(output=None, parameters={"stop": ["END", "\n\n"]})
    prose = a_config(output=None, parameters={})
    within = of(config, baseline=prose, a=an_answer("one\n\ntwo"), b=an_answer("one"))

    of_baseline, _ = judged(within, lambda question: an_answer("fine"))
    of_answers, _ = judged(of(config), lambda question: an_answer("the END is near"))
    none, _ = judged(of(config), lambda question: an_answer("fine"))

    assert [of_baseline.verdict, of_answers.verdict, none.verdict] == [
        Verdict.FAIL,
        Verdict.FAIL,
        Verdict.PASS,
    ]
    assert of_baseline.reasons[0].endswith(
        "`parameters.stop` holds '\\n\\n', which stands in 1 of 2 recorded answers of the baseline "
        "and would end them there"
    )
    assert "holds 'END', and the answer to a goes on after it" in of_answers.reasons[0]


def environments(*timeouts_s: float) -> tuple[Environment, ...]:
    return tuple(
        Environment(name=name, timeout_s=timeout_s)
        for name, timeout_s in zip(("development", "production"), timeouts_s, strict=False)
    )


@pytest.mark.parametrize(("latency_s", "verdict"), [(3.0, Verdict.PASS), (3.1, Verdict.FAIL)])
def test_every_answer_comes_within_the_tightest_timeout(latency_s: float, verdict: Verdict) -> None:
    change = of(a_config(environments=environments(30, 3)))

    result, _ = judged(change, lambda question: an_answer(GOOD, latency_s=latency_s))

    assert result.verdict is verdict
    assert result.required[0] == "all, ≤ 3.0 s"
    assert verdict is Verdict.PASS or result.reasons[0].endswith(
        "`environments.production.timeout_s` is 3 s, and the answer to a took 3.1 s"
    )


@pytest.mark.parametrize(("slow", "verdict"), [(1, Verdict.PASS), (2, Verdict.FAIL)])
def test_what_the_baseline_took_has_to_fit_as_well(slow: int, verdict: Verdict) -> None:
    cases = [a_case(f"case-{at}") for at in range(20)]
    times_s = [9.0] * slow + [1.0] * (20 - slow)
    recorded = {
        case.id: an_answer(GOOD, latency_s=time_s) for case, time_s in zip(cases, times_s, strict=True)
    }
    baseline = a_config(parameters={"temperature": 1})

    result, found = judged(of(a_config(environments=environments(3)), cases, baseline, **recorded))

    assert result.verdict is verdict
    assert found["deadline"].figures["baseline_p95_s"] == (9.0 if slow == 2 else 1.0)


# --- The shape of answers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("called", "why"),
    [
        (ToolCall(name="book", arguments='{"days": 3}'), ""),
        (ToolCall(name="cancel", arguments="{}"), "calls `cancel`, which is no declared tool"),
        (
            ToolCall(name="book", arguments='{"days": "3"}'),
            "calls `book` with what breaks the schema at $.days",
        ),
        (ToolCall(name="book", arguments=""), "'days' is a required property"),
        (ToolCall(name="book", arguments="{days: 3}"), "calls `book` with what is not JSON"),
    ],
)
def test_tools_are_called_as_they_are_declared(called: ToolCall, why: str) -> None:
    answer = an_answer("", tool_calls=(called,), finish_reason="tool_calls")

    result, found = judged(of(a_config(tools=(BOOK,))), lambda question: answer)

    assert result.verdict is (Verdict.FAIL if why else Verdict.PASS)
    assert found["structured-output"].found is Found.MET
    assert not why or why in result.reasons[0]


def test_a_case_that_wants_a_refusal_is_content_with_one() -> None:
    wants = a_case("harmful", checks=(CaseCheck(kind=Kind.REFUSAL, spec={}),))
    refusal = an_answer("", refusal="I will not")

    results = [judged(of(cases=[case]), lambda question: refusal)[0] for case in (wants, a_case("harmless"))]

    assert [each.verdict for each in results] == [Verdict.PASS, Verdict.FAIL]


DEEP = "[" * 100_000


@pytest.mark.parametrize("schema", [{"type": 7}, {"$ref": "https://127.0.0.1/x.json"}])
def test_a_schema_that_cannot_be_checked_lets_nothing_pass(schema: JsonObject) -> None:
    output = replace(a_config().output, schema=schema)  # type: ignore[type-var]  # it has one

    result, _ = judged(of(a_config(output=output)))

    assert result.verdict is Verdict.FAIL
    assert "cannot be checked" in result.reasons[0]


def test_an_answer_nested_beyond_all_bounds_is_just_no_json() -> None:
    result, _ = judged(of(), lambda question: an_answer(DEEP))

    assert result.verdict is Verdict.FAIL


# --- The team's own tests -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "verdict"),
    [(Found.MET, Verdict.PASS), (Found.MISSED, Verdict.FAIL), (Found.UNKNOWN, Verdict.INCONCLUSIVE)],
)
def test_tests_of_the_team_count(found: Found, verdict: Verdict) -> None:
    change, context = of(), a_context()
    outcomes = [run_check(each, good) for each in integration.checks(change, context)]
    team = Outcome(
        check="tests/test_triage.py::test_it",
        gate=GateName.INTEGRATION,
        config=change.name,
        found=found,
        reasons=("it rains",),
    )

    result = integration.judge(change, [*outcomes, team], context)
    alone = integration.judge(change, [team], context)

    assert (result.verdict, alone.verdict) == (verdict, verdict)
    assert (result.checks, alone.checks) == (5, 1)
    assert alone.measured == (f"{1 if found is Found.MET else 0} of 1 checks",)
    assert found is Found.MET or "it rains" in result.reasons
