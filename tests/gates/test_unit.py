"""The unit gate: what holds of a config without asking anybody."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from deploy_gates import prompt
from deploy_gates.core.canonical import Json
from deploy_gates.core.config import Case, ConfigChange, Limits, Message, ModelConfig, Output
from deploy_gates.core.gate import Found, GateName, GateResult, Outcome, Verdict
from deploy_gates.core.policy import Context, DeclaredModel, Policy
from deploy_gates.core.question import Api
from deploy_gates.gates import unit
from deploy_gates.testing import (
    a_case,
    a_change,
    a_config,
    a_context,
    a_snapshot,
    an_answer,
    never,
    run_check,
)

OURS = Policy(models={"our-7b": DeclaredModel(context_window=100)})
SYSTEM = Message(role="system", content="Sort the ticket.")
ASK = Message(role="user", content="{{ body }}")


def outcomes(change: ConfigChange, context: Context | None = None) -> dict[str, Outcome]:
    """By name, what each check found."""
    checks = list(unit.checks(change, context or a_context()))
    assert all(each.id.startswith("golden/ticket-triage/config.yaml::unit/") for each in checks)
    return {each.name.removeprefix("unit/"): run_check(each, never) for each in checks}


def of(config: ModelConfig, *cases: Case) -> ConfigChange:
    return a_change(a_snapshot(config, cases or (a_case("refund"),)))


def shot(content: Json, role: str = "assistant") -> Message:
    return Message(role=role, content=content if isinstance(content, str | list) else json.dumps(content))


def few_shot(*answers: Message, **fields: object) -> ModelConfig:
    turns = [turn for answer in answers for turn in (Message(role="user", content="an example"), answer)]
    return a_config(messages=(SYSTEM, *turns, ASK), **fields)


# --- Cases render -------------------------------------------------------------------------------


def test_a_plain_config_passes_all_that_applies_to_it() -> None:
    found = outcomes(of(a_config()))

    assert {name: each.found for name, each in found.items()} == {
        "renders": Found.MET,
        "fits-context": Found.MET,
        "output-fits": Found.MET,
    }


def test_every_case_that_does_not_render_is_named_with_its_line() -> None:
    cases = [a_case("good"), a_case("no-body", inputs={}, line=2), a_case("nobody", inputs={"b": 1}, line=3)]

    found = outcomes(of(a_config(), *cases))["renders"]

    assert found.found is Found.MISSED
    assert [each.partition(": messages[1]")[0] for each in found.reasons] == [
        "golden/ticket-triage/cases.jsonl:2: case no-body",
        "golden/ticket-triage/cases.jsonl:3: case nobody",
    ]


def test_of_many_failing_cases_twenty_are_named_and_the_rest_is_counted() -> None:
    cases = [a_case(f"case-{number}", inputs={}) for number in range(57)]

    reasons = outcomes(of(a_config(), *cases))["renders"].reasons

    assert len(reasons) == 21
    assert reasons[-1] == "… and 37 more cases"


def test_without_a_case_nobody_knows_whether_the_config_renders() -> None:
    found = outcomes(a_change(a_snapshot(a_config())))

    assert found["renders"].found is Found.UNKNOWN
    assert found["fits-context"].found is Found.UNKNOWN
    assert found["renders"].reasons == (
        "golden/ticket-triage/cases.jsonl: holds no case that renders; add one",
    )


def test_a_config_that_does_not_parse_has_no_checks_here() -> None:
    change = of(a_config())
    unreadable = replace(change, candidate=replace(change.candidate, config=None))

    assert list(unit.checks(unreadable, a_context())) == []


# --- The context window -------------------------------------------------------------------------


def words(number: int) -> Case:
    return a_case(f"words-{number}", inputs={"body": "word " * number})


FRAME = (3 + 1 + 3) + (3 + 1) + 3
"""Tokens beside the words of the user: both messages framed, three words of the system, the reply."""


@pytest.mark.parametrize(("body", "found"), [(100 - 20 - FRAME, Found.MET), (101 - 20 - FRAME, Found.MISSED)])
def test_prompt_and_answer_must_fit_the_window_to_the_token(body: int, found: Found) -> None:
    config = a_config(model="our-7b", output=None, parameters={"max_completion_tokens": 20})

    made = outcomes(of(config, words(body)), a_context(OURS))["fits-context"]

    assert made.found is found
    assert made.figures == {
        "longest": f"words-{body}",
        "input_tokens": body + FRAME,
        "reserved": 20,
        "window": 100,
    }


def test_a_prompt_that_does_not_fit_says_what_is_too_much() -> None:
    config = a_config(model="our-7b", output=None, parameters={"max_completion_tokens": 20})

    made = outcomes(of(config, words(5), words(90)), a_context(OURS))["fits-context"]

    assert made.reasons == (
        "case words-90: 104 tokens and 20 for the answer are more than the context window of our-7b, 100",
    )


def test_the_limit_that_the_config_sets_itself_counts_if_it_is_tighter() -> None:
    config = a_config(model="our-7b", output=None, limits=Limits(context_window=50))

    made = outcomes(of(config, words(40)), a_context(OURS))["fits-context"]

    assert made.found is Found.MISSED
    assert "more than limits.context_window, 50" in made.reasons[0]


def test_a_window_that_nobody_knows_is_not_passed() -> None:
    made = outcomes(of(a_config(model="their-7b")))["fits-context"]

    assert made.found is Found.UNKNOWN
    assert made.reasons == ("nobody knows the context window of their-7b; declare limits.context_window",)


def test_where_the_answer_has_no_bound_room_is_kept_for_the_longest_expected_one() -> None:
    config = a_config(model="our-7b", output=None, parameters={})
    case = a_case("long", inputs={"body": "x"}, expected="word " * 30)

    made = outcomes(of(config, case), a_context(OURS))["fits-context"]

    assert made.figures["reserved"] == 30


def test_what_was_billed_before_corrects_what_is_counted_here() -> None:
    """A tokenizer that nobody has published makes 60 of what we count as 30, so 50 become 100."""
    config = a_config(model="our-7b", output=None, parameters={"max_completion_tokens": 20})
    base = a_config(
        model="our-7b", output=None, messages=(Message(role="system", content="Sort it, now."), ASK)
    )
    recorded = words(30 - FRAME)
    key = prompt.ask(base, recorded.inputs).key

    change = a_change(
        a_snapshot(config, [words(50 - FRAME)]),
        a_snapshot(base, [recorded]),
        {key: an_answer("x", input_tokens=60)},
    )
    uncorrected = replace(change, recordings={})
    both = replace(change, candidate=a_snapshot(config, [words(50 - FRAME), recorded]))

    assert outcomes(uncorrected, a_context(OURS))["fits-context"].found is Found.MET
    made = outcomes(both, a_context(OURS))["fits-context"]
    assert made.found is Found.MISSED
    assert made.figures["input_tokens"] == 100


# --- Few-shot examples --------------------------------------------------------------------------


def test_examples_that_keep_to_the_schema_pass() -> None:
    config = few_shot(
        shot({"category": "refund", "reason": "late"}),
        shot(
            [{"type": "text", "text": '{"category": "billing", '}, {"type": "text", "text": '"reason": "x"}'}]
        ),
    )

    assert outcomes(of(config))["few-shot"].found is Found.MET


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"category": "spam", "reason": "x"}, "breaks the output schema at $.category: 'spam' is not one of"),
        ({"category": "refund"}, "breaks the output schema at $: 'reason' is a required property"),
        ("refund", "is not JSON, which the output schema wants: Expecting value"),
        ("", "is not JSON, which the output schema wants: Expecting value"),
    ],
)
def test_an_example_that_breaks_the_schema_is_named_with_its_line(content: Json, said: str) -> None:
    good = shot({"category": "refund", "reason": "late"})
    config = few_shot(good, shot(content), lines={"messages[4].content": 31})

    made = outcomes(of(config))["few-shot"]

    assert made.found is Found.MISSED
    assert made.reasons[0].startswith("golden/ticket-triage/config.yaml:31: `messages[4].content` " + said)
    assert len(made.reasons) == 1


def test_an_example_made_from_inputs_is_checked_as_each_case_makes_it() -> None:
    config = few_shot(shot('{"category": "{{ body }}", "reason": "x"}'))
    cases = [a_case("refund"), a_case("billing"), a_case("spam"), a_case("again", inputs={"body": "spam"})]

    made = outcomes(of(config, *cases))["few-shot"]

    assert len(made.reasons) == 1
    assert "'spam' is not one of" in made.reasons[0]


def test_examples_are_found_in_both_protocols() -> None:
    config = few_shot(shot("no JSON"), api=Api.RESPONSES)

    assert outcomes(of(config))["few-shot"].found is Found.MISSED


NO_EXAMPLES = [
    ("no assistant", a_config()),
    ("a prefilled answer", a_config(messages=(SYSTEM, ASK, shot("{")))),
    ("no schema", few_shot(shot("anything"), output=None)),
    ("a call of a tool", few_shot(Message(role="assistant", content=None, extra={"tool_calls": []}))),
]


@pytest.mark.parametrize("config", [each[1] for each in NO_EXAMPLES], ids=[each[0] for each in NO_EXAMPLES])
def test_without_examples_there_is_nothing_to_check(config: ModelConfig) -> None:
    assert "few-shot" not in outcomes(of(config))


def test_a_schema_that_is_none_is_said_and_does_not_crash() -> None:
    config = few_shot(shot("{}"), output=Output(name="broken", schema={"type": "objekt"}))

    made = outcomes(of(config))["few-shot"]

    assert made.found is Found.MISSED
    assert "cannot be checked: the output schema is not one" in made.reasons[0]


# --- Expected answers ---------------------------------------------------------------------------


@pytest.mark.parametrize(("bound", "found"), [(7, Found.MET), (6, Found.MISSED)])
def test_the_longest_expected_answer_must_fit_the_bound_to_the_token(bound: int, found: Found) -> None:
    config = a_config(output=None, parameters={"max_completion_tokens": bound})
    cases = [a_case("short", expected="two words"), a_case("long", expected="a b c d e f g")]

    made = outcomes(of(config, *cases))["output-fits"]

    assert made.found is found
    assert made.figures == {"longest_tokens": 7, "bound": bound}


def test_an_answer_that_would_be_cut_off_says_whose_it_is() -> None:
    config = few_shot(shot("one two three four"), parameters={"max_tokens": 3}, output=None)
    cases = [a_case("long", expected={"text": "a b c d e"}), a_case("none", expects=False)]

    made = outcomes(of(config, *cases))["output-fits"]

    assert made.reasons == (
        "what case long expects has 5 tokens, and an answer may have 3: it would be cut off",
        "the example in messages[2] has 4 tokens, and an answer may have 3: it would be cut off",
    )


def test_where_nothing_is_bounded_or_expected_nothing_can_be_cut_off() -> None:
    unbounded = outcomes(of(a_config(parameters={})))
    unexpected = outcomes(of(a_config(), a_case("free", expects=False)))

    assert "output-fits" not in unbounded
    assert "output-fits" not in unexpected


# --- The verdict --------------------------------------------------------------------------------


def judged(*found: Found, policy: Policy | None = None, gate: GateName = GateName.UNIT) -> GateResult:
    made = [
        Outcome(
            check=f"check-{number}",
            gate=gate,
            config="ticket-triage",
            found=each,
            reasons=(f"reason {number}",) if each is not Found.MET else (),
        )
        for number, each in enumerate(found)
    ]
    return unit.judge(of(a_config()), made, a_context(policy))


MET, MISSED, UNKNOWN = Found.MET, Found.MISSED, Found.UNKNOWN
VERDICTS: list[tuple[Sequence[Found], Verdict, str]] = [
    ((MET, MET), Verdict.PASS, "2 of 2 checks"),
    ((MET, UNKNOWN), Verdict.INCONCLUSIVE, "1 of 2 checks"),
    ((MET, UNKNOWN, MISSED), Verdict.FAIL, "1 of 3 checks"),
    ((), Verdict.INCONCLUSIVE, "no check was executed"),
]


@pytest.mark.parametrize(("found", "verdict", "measured"), VERDICTS)
def test_all_checks_must_hold(found: Sequence[Found], verdict: Verdict, measured: str) -> None:
    result = judged(*found)

    assert (result.verdict, result.measured, result.required) == (verdict, (measured,), ("all",))
    assert (result.checks, result.missed) == (len(found), list(found).count(MISSED))


def test_reasons_for_failing_come_before_those_for_not_knowing() -> None:
    assert judged(UNKNOWN, MET, MISSED).reasons == ("reason 2", "reason 0")


def test_outcomes_of_other_gates_do_not_count() -> None:
    assert judged(MET, gate=GateName.TYPE).verdict is Verdict.INCONCLUSIVE


def test_a_gate_without_checks_is_skipped_only_if_the_policy_says_so() -> None:
    optional = Policy(optional=frozenset({GateName.UNIT}))

    assert judged(policy=optional).verdict is Verdict.SKIP
    assert judged(MISSED, policy=optional).verdict is Verdict.FAIL


def test_figures_of_the_own_checks_reach_the_evidence() -> None:
    change = of(a_config())
    context = a_context()

    result = unit.judge(change, list(outcomes(change, context).values()), context)

    assert result.figures["output-fits"] == {"longest_tokens": 1, "bound": 120}
    assert set(result.figures) == {"renders", "fits-context", "output-fits"}
