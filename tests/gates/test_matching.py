"""What a case asks of an answer: every kind can be met, can be missed, says why, and none guesses."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import Case, CaseCheck, Comparison, Kind, ModelConfig, Output
from deploy_gates.core.cost import Usage
from deploy_gates.core.question import Answer, ToolCall
from deploy_gates.gates import comparing
from deploy_gates.gates.matching import ASKED_LATER, ASKS_NOTHING, Match, Matcher, cannot_fail
from deploy_gates.testing import a_case, a_config, an_answer

TEXT = a_config(output=None)
"""A config that promises no shape: its answers are text."""
TICKET = a_config(comparison=Comparison(exclude_paths=("reason",)))
REFUND: JsonObject = {"category": "refund", "reason": "wants money back"}


def check(kind: str, **spec: Json) -> CaseCheck:
    return CaseCheck(kind=Kind(kind), spec=spec)


def case(*checks: CaseCheck, **fields: object) -> Case:
    return a_case("refund-partial", **({"expects": False, "expected": None, "checks": checks} | fields))


def match(answer: Answer | Json, asked: Case, config: ModelConfig = TEXT) -> Match:
    given = answer if isinstance(answer, Answer) else an_answer(answer)
    return Matcher(config).match(given, asked)


def calls(*given: tuple[str, str]) -> Answer:
    """An answer that calls tools and says nothing."""
    made = tuple(ToolCall(name=name, arguments=arguments) for name, arguments in given)
    return an_answer("", tool_calls=made, finish_reason="tool_calls")


# --- The kinds ----------------------------------------------------------------------------------

ITEMS: JsonObject = {"items": [{"name": "Desk", "price": 41.5}], "tags": ["a", "B"], "urgent": True, "a.b": 1}

KINDS: list[tuple[CaseCheck, Answer | Json, str]] = [
    (check("schema", schema={"type": "object"}), {}, ""),
    (check("schema", schema={"type": "object"}), [1], "expected object, got [1]"),
    (check("equals", value="yes"), " yes\n", ""),
    (check("equals", value="yes"), "yes!", "expected yes, got yes!"),
    (check("equals", value=1), "1.0", ""),
    (check("equals", value=1), "true", "expected 1, got true"),
    (check("equals", value={"a": [1]}), {"a": [2]}, "a[0]: expected 1, got 2"),
    (check("equals", path="urgent", value=True), ITEMS, ""),
    (check("equals", path="urgent", value=1), ITEMS, "urgent: expected 1, got true"),
    (check("equals", path="$.items[0].name", value="Desk"), ITEMS, ""),
    (check("equals", path="$['a.b']", value=2), ITEMS, "['a.b']: expected 2, got 1"),
    (
        check("equals", path="items[1].name", value="Desk"),
        ITEMS,
        "items[1].name: expected a value, got nothing",
    ),
    (check("equals", path="$", value=[]), "[]", ""),
    (check("equals", path="a", value=1), "a: 1", "expected JSON, got a: 1"),
    (check("contains", value="money"), "no money back", ""),
    (check("contains", value="Money"), "no money back", "expected Money in it, got no money back"),
    (check("contains", value="Money", ignore_case=True), "no money back", ""),
    (check("contains", path="tags", value="B"), ITEMS, ""),
    (check("contains", path="tags", value="b"), ITEMS, 'tags: expected b in it, got ["a", "B"]'),
    (check("contains", path="urgent", value="t"), ITEMS, "urgent: expected text, got true"),
    (check("not_contains", value="sorry"), "gladly", ""),
    (check("not_contains", value="sorry"), "so sorry", "expected no sorry in it, got so sorry"),
    (check("not_contains", path="note", value="sorry"), ITEMS, "note: expected a value, got nothing"),
    (check("regex", pattern=r"\d{4}-\d\d"), "in 2026-11", ""),
    (check("regex", pattern=r"^\d+$"), "some", r"expected a match of ^\d+$, got some"),
    (check("regex", path="items[0].name", pattern="^D"), ITEMS, ""),
    (check("range", path="items[0].price", min=41.5, max=50), ITEMS, ""),
    (check("range", path="items[0].price", min=42), ITEMS, "items[0].price: expected at least 42, got 41.5"),
    (check("range", path="items[0].price", max=41), ITEMS, "items[0].price: expected at most 41, got 41.5"),
    (check("range", path="urgent", min=0), ITEMS, "urgent: expected a number, got true"),
    (check("choice", path="items[0].name", values=["Chair", "Desk"]), ITEMS, ""),
    (
        check("choice", path="urgent", values=[1, "true"]),
        ITEMS,
        'urgent: expected one of 1, "true", got true',
    ),
    (check("tool_call", name="lookup"), calls(("lookup", "{}")), ""),
    (check("tool_call", name="lookup"), "in words", "expected a call of lookup, got none"),
    (check("tool_call", name="lookup"), calls(("pay", "{}")), "expected a call of lookup, got calls of pay"),
    (check("tool_call", name="pay", arguments={"sum": 3}), calls(("pay", '{"sum": 3, "to": "ada"}')), ""),
    (
        check("tool_call", name="pay", arguments={"sum": 3}),
        calls(("pay", "{}")),
        "pay.sum: expected 3, got nothing",
    ),
    (
        check("tool_call", name="pay", arguments={"to": {"id": 7}}),
        calls(("pay", '{"to": {"id": 8, "name": "ada"}}')),
        "pay.to.id: expected 7, got 8",
    ),
    (
        check("tool_call", name="pay", arguments={"a": 1}),
        calls(("pay", "{")),
        'pay: expected arguments in JSON, got "{"',
    ),
    (check("tool_call", name="pay", count=0), "in words", ""),
    (check("tool_call", name="pay", count=0), calls(("pay", "{}")), "expected 0 calls of pay, got 1"),
    (check("tool_call", name="pay", count=2), calls(("pay", "{}"), ("pay", "{}")), ""),
    (
        check("tool_call", name="pay", count=2, arguments={"sum": 3}),
        calls(("pay", '{"sum": 3}'), ("pay", '{"sum": 4}')),
        "expected 2 calls of pay with such arguments, got 1",
    ),
    (check("refusal"), an_answer("", refusal="I cannot"), ""),
    (check("refusal"), an_answer("", finish_reason="content_filter"), ""),
    (check("refusal", value=True), "Gladly", "expected a refusal, got Gladly"),
    (check("refusal", value=False), "Gladly", ""),
    (
        check("refusal", value=False),
        an_answer("", refusal="I cannot"),
        "expected an answer, got a refusal: I cannot",
    ),
]


@pytest.mark.parametrize(
    ("asked", "answer", "reason"), KINDS, ids=[f"{at}-{each[0].kind}" for at, each in enumerate(KINDS)]
)
def test_each_kind_of_check_is_met_or_says_in_one_sentence_why_not(
    asked: CaseCheck, answer: Answer | Json, reason: str
) -> None:
    found = match(answer, case(asked))

    assert found.reasons == ((reason,) if reason else ())
    assert found.score == (0 if reason else 1)


def test_every_kind_is_tried_above_or_below() -> None:
    assert {asked.kind for asked, _, _ in KINDS} | {Kind.CALLABLE, *ASKED_LATER} == set(Kind)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (check("regex", pattern="("), "the pattern ( is not valid: missing ) at position 1"),
        (check("equals", path="a..b", value=1), "`a..b` is no path; write it like `items[0].price`"),
        (check("equals", path="a[*]", value=1), "`a[*]` is many places, and a check looks at one"),
        (check("schema"), "checks a schema, and neither the check nor the config has one"),
        (check("schema", schema={"type": "nonsense"}), "the schema is not valid: "),
        (
            check("schema", schema={"$ref": "https://example.com/a.json"}),
            "the schema refers to https://example.com/a.json",
        ),
        (
            check("callable", function="nowhere.py:polite"),
            "nowhere.py:polite cannot be loaded: FileNotFoundError",
        ),
        (
            check("callable", function="no_such_package.checks:polite"),
            "no_such_package.checks:polite cannot be loaded",
        ),
    ],
    ids=str,
)
def test_a_check_that_cannot_be_made_is_not_known_rather_than_missed(asked: CaseCheck, why: str) -> None:
    found = match({"a": 1}, case(asked))

    assert found.score is None
    assert found.why_unknown.startswith(why)


def test_a_pattern_that_backtracks_is_given_up_and_not_tried_again() -> None:
    matcher = Matcher(TEXT)
    asked = case(check("regex", pattern=r"^(a|a)*$"))
    endless = an_answer("a" * 40 + "!")

    first = matcher.match(endless, asked)
    began = time.perf_counter()
    others = [matcher.match(endless, asked) for _ in range(100)]

    assert first.score is None
    assert first.why_unknown == "the pattern ^(a|a)*$ takes more than 1 s: it backtracks"
    assert set(others) == {first}
    assert time.perf_counter() - began < 0.5


def test_a_pattern_is_not_tried_on_a_text_of_any_length() -> None:
    found = match("x" * 100_001, case(check("regex", pattern="x")))

    assert (found.score, found.why_unknown) == (None, "100,001 characters are too long a text for a pattern")


# --- All of a case ------------------------------------------------------------------------------


def test_all_that_is_asked_must_hold_and_each_miss_is_told() -> None:
    asked = case(
        check("contains", value="money"), check("contains", value="back"), check("contains", value="please")
    )

    found = match("money", asked)

    assert found.score == 0
    assert found.reasons == ("expected back in it, got money", "expected please in it, got money")


def test_a_known_miss_counts_beside_something_unknown_and_a_known_hit_does_not() -> None:
    unknown = check("regex", pattern="(")

    missed = match("a", case(check("contains", value="b"), unknown))
    met = match("a", case(check("contains", value="a"), unknown))

    assert missed.score == 0
    assert met.score is None


def test_a_case_that_asks_for_nothing_is_not_met() -> None:
    found = match("anything", case())

    assert found == Match(score=None, why_unknown=ASKS_NOTHING)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (an_answer(REFUND), ""),
        (
            an_answer({"category": "other", "reason": ""}),
            "category: expected one of billing, refund, technical, got other",
        ),
        (an_answer({"category": "refund"}), "reason: expected a value, got nothing"),
        (an_answer(REFUND | {"note": "x"}), "note: expected nothing, got x"),
        (
            an_answer(REFUND | {"reason": "x" * 212}),
            "reason: expected at most 120 characters, got 212 characters",
        ),
        (an_answer(REFUND | {"reason": 3}), "reason: expected string, got 3"),
        (an_answer("Sure! Here it is"), "expected JSON, got Sure! Here it is"),
        (an_answer("[NaN]"), 'expected JSON, got "[NaN]"'),
        (an_answer(""), "expected JSON, got nothing"),
        (an_answer("", tool_calls=(ToolCall(name="pay", arguments=""),)), "expected JSON, got a call of pay"),
        (an_answer(f"```json\n{json.dumps(REFUND)}\n```"), "expected JSON, got JSON inside a Markdown fence"),
        (
            an_answer(
                '{"category": "re', finish_reason="length", usage=Usage(input_tokens=9, output_tokens=120)
            ),
            "expected a whole answer, got one that was cut off at 120 tokens",
        ),
        (
            an_answer("{", finish_reason="length", usage=None),
            "expected a whole answer, got one that was cut off",
        ),
        (an_answer("", refusal="I cannot\nhelp"), "expected an answer, got a refusal: I cannot help"),
        (
            an_answer("", finish_reason="content_filter"),
            "expected an answer, got one stopped by the content filter",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_must_have_the_shape_that_the_config_promises(answer: Answer, reason: str) -> None:
    found = Matcher(TICKET).match(answer, case())

    assert found.reasons == ((reason,) if reason else ())
    assert found.score == (0 if reason else 1)


def test_a_cut_off_answer_says_so_before_what_it_lacks() -> None:
    answer = an_answer("The first half", finish_reason="length")

    found = match(answer, case(check("contains", value="second")))

    assert found.reasons == (
        "expected a whole answer, got one that was cut off at 20 tokens",
        "expected second in it, got The first half",
    )


def test_a_refusal_leaves_nothing_else_to_be_said() -> None:
    found = match(
        an_answer("", refusal="No."), case(check("contains", value="a"), check("regex", pattern="b"))
    )

    assert found.reasons == ("expected an answer, got a refusal: No.",)


def test_a_wanted_refusal_or_call_needs_no_answer_in_shape() -> None:
    refused = Matcher(TICKET).match(an_answer("", refusal="No."), case(check("refusal")))
    called = Matcher(TICKET).match(calls(("pay", "{}")), case(check("tool_call", name="pay")))
    chatted = Matcher(TICKET).match(an_answer("Hello"), case(check("tool_call", name="pay")))

    assert (refused.score, called.score) == (1, 1)
    assert chatted.reasons == ("expected JSON, got Hello", "expected a call of pay, got none")


def test_json_in_a_fence_is_read_where_no_shape_is_promised() -> None:
    found = match('```json\n{"a": 1}\n```', case(check("equals", path="a", value=1)))

    assert found.score == 1


def test_a_broken_output_schema_is_not_known() -> None:
    broken = a_config(output=Output(name="ticket", schema={"type": "object", "$ref": "#/$defs/gone"}))

    found = Matcher(broken).match(an_answer({}), case())

    assert found.why_unknown == "the schema refers to /$defs/gone, which is not in it"


@pytest.mark.parametrize("config", [TEXT, TICKET])
def test_nesting_without_end_is_a_miss(config: ModelConfig) -> None:
    found = match("[" * 100_000, case(check("equals", value=1)), config)

    assert found.score == 0
    assert found.reasons == ("expected an answer, got endless nesting",)


# --- Expected answers ---------------------------------------------------------------------------


def expects(expected: Json, **comparison: object) -> Case:
    made = Comparison(**comparison)  # type: ignore[arg-type]  # a builder for tests takes any field
    return a_case("refund-partial", expected=expected, comparison=made if comparison else None)


@pytest.mark.parametrize(
    ("expected", "got", "options", "reasons"),
    [
        ({"a": 1}, {"a": 1.0}, {}, ()),
        ({"a": True}, {"a": 1}, {}, ("a: expected true, got 1",)),
        ({"a": None}, {}, {}, ("a: expected null, got nothing",)),
        ({}, {"a": None}, {}, ("a: expected nothing, got null",)),
        ({"a": "1"}, {"a": 1}, {}, ('a: expected "1", got 1',)),
        ({"a": "nothing"}, {"a": ""}, {}, ('a: expected "nothing", got ""',)),
        ([1, 2], [1, 2, 3], {}, ("expected 2 items, got 3 items",)),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, {}, ("a[0].b: expected 1, got 2",)),
        ({"a": {"b": 1}}, {"a": 3}, {}, ('a: expected {"b": 1}, got 3',)),
        ({"a": 1}, {"a": 1, "why": "x"}, {"exclude_paths": ("why",)}, ()),
        ({"a": 1, "why": "y"}, {"a": 2}, {"exclude_paths": ("$.why",)}, ("a: expected 1, got 2",)),
        (
            {"items": [{"price": 1, "id": 1}, {"id": 2}]},
            {"items": [{"price": 9, "id": 1}, {"price": 8, "id": 2}]},
            {"exclude_paths": ("items[*].price",)},
            (),
        ),
        ({"items": [1, 2]}, {"items": [1, 3]}, {"exclude_paths": ("items[1]",)}, ()),
        ({"it's": 1, "b": 2}, {"b": 2}, {"exclude_paths": ("it's",)}, ()),
        ([1, 2, 3], [3, 1, 2], {"ignore_order": True}, ()),
        ([1, 1, 2], [1, 2, 2], {"ignore_order": True}, ...),
        ([1, 2], [True, 2], {"ignore_order": True}, ...),
        ([{"a": 1}, {"a": 2}], [{"a": 2}, {"a": 1.0}], {"ignore_order": True}, ()),
        ({"a": 1.004}, {"a": 1}, {"significant_digits": 2}, ()),
        ({"a": 1.006}, {"a": 1}, {"significant_digits": 2}, ("a: expected 1.006, got 1",)),
        ({"a": True}, {"a": 1.0}, {"significant_digits": 2}, ("a: expected true, got 1.0",)),
        ({"a": "Refund"}, {"a": "refund"}, {"ignore_string_case": True}, ()),
        (
            {"a": "Refund"},
            {"a": "billing"},
            {"ignore_string_case": True},
            ("a: expected refund, got billing",),
        ),
        ({"a": 1}, {"b": 1}, {"ignore_string_case": True}, ...),
    ],
    ids=str,
)
def test_expected_answers_are_compared_by_value_and_by_what_is_forgiven(
    expected: Json, got: Json, options: dict[str, object], reasons: tuple[str, ...]
) -> None:
    found = match(json.dumps(got), expects(expected, **options))

    assert found.score == (1 if reasons == () else 0)
    assert reasons is ... or found.reasons == reasons


def test_a_hundred_differences_are_never_taken_for_none() -> None:
    expected: Json = [{"id": at, "name": f"a{at}"} for at in range(100)]
    got: Json = [{"id": at, "name": f"b{at}"} for at in range(100)]

    found = match(json.dumps(got), expects(expected, ignore_order=True))

    assert found.score == 0
    assert len(found.reasons) == 5


def test_an_expected_text_is_compared_with_the_text_but_for_space_around_it() -> None:
    assert match(" yes \n", expects("yes")).score == 1
    assert match("Yes", expects("yes", ignore_string_case=True)).score == 1
    assert match("no", expects("yes")).reasons == ("expected yes, got no",)


def test_an_expected_null_is_an_expectation() -> None:
    assert match("null", expects(None)).score == 1
    assert match("0", expects(None)).reasons == ("expected null, got 0",)


def test_a_case_overrides_how_its_config_compares() -> None:
    strict = expects({"category": "refund"}, ignore_order=True)

    assert Matcher(TICKET).match(an_answer(REFUND), a_case("x")).score == 1
    assert Matcher(TICKET).match(an_answer(REFUND), strict).reasons == (
        "reason: expected nothing, got wants money back",
    )


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("$", ()),
        ("category", ("category",)),
        ("$.a.b[0]", ("a", "b", 0)),
        ("a.b[0]", ("a", "b", 0)),
        ("[2].a", (2, "a")),
        ("$[2]", (2,)),
        ("a['b.c'][1]", ("a", "b.c", 1)),
        ("a[*].b", ("a", comparing.EVERY, "b")),
        ("$ref", ("$ref",)),
    ],
)
def test_paths_are_read_in_one_way_only(path: str, parts: tuple[str | int, ...]) -> None:
    assert comparing.place(path) == parts


@pytest.mark.parametrize(
    "path", ["", ".", "a.", "a..b", "a[", "a[-1]", "a[x]", "a]b", "$a.[0]", "['a'", "$..a"]
)
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is no path"):
        comparing.place(path)


# --- The team's own functions -------------------------------------------------------------------

FUNCTIONS = """
from dataclasses import dataclass

@dataclass
class Tone:
    polite: bool

def polite(answer, case):
    return Tone("please" in answer.text).polite

def half(answer, case):
    return 0.5

def named(answer, case):
    assert case.id in answer.text, f"names {case.id}"

def asserts(answer, case):
    assert "please" in answer.text, "is too rude\\nand more"
    return True

def breaks(answer, case):
    return {}["missing"]

def strange(answer, case):
    return 7

class Rules:
    @staticmethod
    def short(answer, case):
        return len(answer.text) < 100

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checks.py").write_text(FUNCTIONS)
    return tmp_path


@pytest.mark.parametrize(
    ("function", "text", "score", "reason"),
    [
        ("checks.py:polite", "yes please", 1, ""),
        ("checks.py:polite", "no", 0, "checks.py:polite: expected true, got false"),
        ("checks.py:half", "any", 0.5, "checks.py:half: expected 1.0, got 0.5"),
        ("checks.py:asserts", "please", 1, ""),
        ("checks.py:asserts", "no", 0, "checks.py:asserts: is too rude"),
        ("checks.py:Rules.short", "no", 1, ""),
        ("checks.py:named", "refund-partial", None, "checks.py:named returned null, and must return"),
        ("checks.py:breaks", "any", None, "checks.py:breaks raised KeyError: 'missing'"),
        ("checks.py:strange", "any", None, "checks.py:strange returned 7, and must return"),
        ("checks.py:gone", "any", None, "checks.py:gone cannot be loaded: AttributeError: module"),
        ("checks.py:number", "any", None, "checks.py:number is not a function"),
    ],
)
def test_a_function_says_yes_no_or_how_well_and_its_mistakes_are_nobodys_misses(
    folder: Path, function: str, text: str, score: float | None, reason: str
) -> None:
    asked = case(check("callable", function=function))

    found = Matcher(TEXT, folder=str(folder)).match(an_answer(text), asked)

    assert found.score == score
    assert "; ".join(found.reasons).startswith(reason)
    assert bool(found.reasons) == bool(reason)


def test_a_function_is_found_in_a_package_too() -> None:
    found = match("x", case(check("callable", function="operator:eq")))

    assert found.reasons == ("operator:eq: expected true, got false",)


# --- What cannot fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        check("regex", pattern=".*"),
        check("regex", pattern=r"^[\s\S]*$"),
        check("regex", pattern="x?"),
        check("callable", function="checks.py:Rules.always"),
    ],
    ids=str,
)
def test_what_accepts_any_text_is_found_out(asked: CaseCheck, folder: Path) -> None:
    (folder / "checks.py").write_text(
        "class Rules:\n    @staticmethod\n    def always(answer, case):\n        return True\n"
    )

    said = cannot_fail(case(asked), TEXT, folder=str(folder))

    assert said == [f"checks[0] ({asked.kind}) accepts any answer"]


@pytest.mark.parametrize(
    "asked",
    [
        *[each[0] for each in KINDS],
        check("callable", function="checks.py:polite"),
        check("callable", function="checks.py:breaks"),
        check("callable", function="checks.py:gone"),
        check("regex", pattern="^(?!.*sorry)"),
        check("regex", pattern="("),
        check("schema", schema={}),
        check("not_contains", path="items[3].note", value="sorry"),
    ],
    ids=str,
)
def test_a_check_that_some_answer_misses_is_left_alone(asked: CaseCheck, folder: Path) -> None:
    assert cannot_fail(case(asked), TEXT, folder=str(folder)) == []


@pytest.mark.parametrize(
    "asked",
    [
        check("choice", path="category", values=["refund", "billing", "technical", "other"]),
        check("contains", value="category"),
        check("regex", path="category", pattern="^[a-z]+$"),
        check("not_contains", path="category", value="sorry"),
        check("equals", path="extra", value=None),
        check("range", path="category", min=0),
    ],
    ids=str,
)
def test_what_every_valid_answer_meets_is_found_out(asked: CaseCheck) -> None:
    said = cannot_fail(case(asked), TICKET)

    is_met_by_all = asked.spec.get("path") == "category" and asked.kind is not Kind.RANGE
    is_met_by_all |= asked.kind is Kind.CONTAINS
    wanted = [f"checks[0] ({asked.kind}) accepts any answer that the output schema allows"]
    assert said == (wanted if is_met_by_all else [])


@pytest.mark.parametrize(
    "asked",
    [
        check("choice", path="category", values=["refund", "billing"]),
        check("not_contains", path="reason", value="sorry"),
        check("not_contains", value="sorry"),
        check("contains", path="reason", value="money"),
        check("equals", path="category", value="refund"),
        check("schema"),
        check("tool_call", name="pay", count=0),
        check("refusal", value=False),
    ],
    ids=str,
)
def test_what_some_valid_answer_misses_is_left_alone(asked: CaseCheck) -> None:
    assert cannot_fail(case(asked), TICKET) == []


def test_an_expectation_that_leaves_everything_out_cannot_fail() -> None:
    asked = expects({"category": "refund"}, exclude_paths=("category", "reason"))

    assert cannot_fail(asked, TICKET) == ["`expected` accepts any answer that the output schema allows"]
    assert cannot_fail(expects({"category": "refund"}), TICKET) == []


def test_each_of_several_is_named_by_its_place() -> None:
    asked = a_case("x", checks=(check("contains", value="{"), check("contains", value="refund")))

    said = cannot_fail(asked, TICKET)

    assert said == ["checks[0] (contains) accepts any answer that the output schema allows"]


def test_a_case_without_anything_to_check_cannot_fail_unless_a_schema_does() -> None:
    assert cannot_fail(case(), TEXT) == [ASKS_NOTHING]
    assert cannot_fail(case(), TICKET) == []


def test_where_no_valid_answer_can_be_made_nothing_is_claimed() -> None:
    odd = a_config(output=Output(name="odd", schema={"type": "string", "pattern": r"^(?=a)\w$"}))

    assert cannot_fail(case(check("regex", pattern=".*")), odd) == []


def test_a_thousand_cases_are_matched_and_tried_in_a_fraction_of_a_second() -> None:
    cases = [a_case(f"case-{at}") for at in range(1000)]
    answers = [an_answer(REFUND if at % 30 else REFUND | {"category": "billing"}) for at in range(1000)]
    matcher = Matcher(TICKET)
    matcher.match(answers[0], cases[0])

    began = time.process_time()
    scores = [matcher.match(*each).score for each in zip(answers, cases, strict=True)]
    claims = [cannot_fail(each, TICKET) for each in cases]

    assert time.process_time() - began < 1.0
    assert scores.count(0) == 34
    assert claims == [[]] * 1000
