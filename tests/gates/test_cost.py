"""The cost gate: known before anything is paid for, held to the baseline, limits, and budget."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from deploy_gates import prompt
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import (
    Case,
    ConfigChange,
    Environment,
    Limits,
    Message,
    ModelConfig,
    Profile,
    Traffic,
)
from deploy_gates.core.cost import Price, Tier, Usage
from deploy_gates.core.gate import Found, GateName, GateResult, Outcome, Verdict
from deploy_gates.core.policy import Context, CostPolicy, DeclaredModel, Policy
from deploy_gates.core.question import Answer
from deploy_gates.gates import cost
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

PRICE = Price(
    input_usd=Decimal(1), output_usd=Decimal(10), cached_input_usd=Decimal("0.1"), source="declared"
)
"""A token read costs 1,000 nano-dollars, a token written 10,000."""
POLICY = Policy(models={"our-7b": DeclaredModel(price=PRICE, context_window=8_192)})
ASK = Message(role="user", content="{{ body }}")
FRAME = (3 + 1) + (3 + 1) + 3
"""What two messages need beside the words in them."""


def a_model(system: str = "Sort the ticket.", **fields: object) -> ModelConfig:
    made: dict[str, object] = {
        "model": "our-7b",
        "output": None,
        "messages": (Message(role="system", content=system), ASK),
        "parameters": {"max_completion_tokens": 50},
    }
    return a_config(**(made | fields))


def words(*sizes: int) -> tuple[Case, ...]:
    """Cases whose request has that many input tokens where the system prompt has three words."""
    return tuple(
        a_case(f"case-{at}", inputs={"body": "word " * (size - 3 - FRAME)}) for at, size in enumerate(sizes)
    )


def recorded(config: ModelConfig, cases: Iterable[Case], *usages: Usage) -> dict[str, Answer]:
    """Recorded answers of `config` to the first cases."""
    return {
        prompt.ask(config, case.inputs).key: replace(an_answer("x"), usage=usage)
        for case, usage in zip(cases, usages, strict=False)
    }


def used(input_tokens: int, output_tokens: int, cached: int = 0) -> Usage:
    return Usage(input_tokens=input_tokens, output_tokens=output_tokens, cached_input_tokens=cached)


def changed(
    candidate: ModelConfig,
    baseline: ModelConfig | None,
    cases: Iterable[Case] = words(100, 100),
    recordings: Mapping[str, Answer] | None = None,
) -> ConfigChange:
    cases = tuple(cases)
    base = None if baseline is None else a_snapshot(baseline, cases)
    return a_change(a_snapshot(candidate, cases), base, recordings)


def outcomes(change: ConfigChange, context: Context | None = None) -> dict[str, Outcome]:
    checks = list(cost.checks(change, context or a_context(POLICY)))
    assert [each.id for each in checks] == [
        f"golden/ticket-triage/config.yaml::cost/{name}" for name in ("price", "request", "month")
    ]
    return {each.name.removeprefix("cost/"): run_check(each, never) for each in checks}


def judged(change: ConfigChange, context: Context | None = None, more: Sequence[Outcome] = ()) -> GateResult:
    context = context or a_context(POLICY)
    travelled = [Outcome.from_json(each.to_json()) for each in outcomes(change, context).values()]
    return cost.judge(change, [*travelled, *more], context)


def request(change: ConfigChange, context: Context | None = None) -> JsonObject:
    """The figures of what a request costs."""
    return outcomes(change, context)["request"].figures


def part(figures: JsonObject, *keys: str) -> Json:
    value: Json = figures
    for key in keys:
        assert isinstance(value, dict), keys
        value = value[key]
    return value


# --- The price ----------------------------------------------------------------------------------


def test_a_model_whose_price_nobody_knows_fails_and_says_how_to_declare_it() -> None:
    change = changed(a_model(model="their-7b", lines={"model": 4}), None)

    found = outcomes(change)
    result = judged(change)

    assert found["price"].reasons == (
        "golden/ticket-triage/config.yaml:4: `model` is `their-7b`, and nobody knows what that costs; "
        "declare `input_usd_per_mtok` and `output_usd_per_mtok` in "
        '[tool.deploy_gates.models."their-7b"] of pyproject.toml',
    )
    assert found["request"].found is Found.UNKNOWN
    assert (result.verdict, result.measured) == (Verdict.FAIL, ("no estimate",))


def test_a_misspelled_model_is_answered_with_the_right_one() -> None:
    reasons = outcomes(changed(a_model(model="our-7"), None))["price"].reasons

    assert "did you mean `our-7b`? Else declare" in reasons[0]


def test_without_the_baselines_price_nobody_can_compare() -> None:
    found = outcomes(changed(a_model(), a_model(model="their-7b")))["price"]

    assert found.found is Found.MISSED
    assert "the baseline's `their-7b`, and nobody knows" in found.reasons[0]


def test_a_price_nobody_knows_is_said_once_where_both_arms_share_it() -> None:
    found = outcomes(changed(a_model(model="their-7b"), a_model("Sort.", model="their-7b")))["price"]

    assert len(found.reasons) == 1


def test_a_service_tier_without_a_known_price_is_named() -> None:
    config = a_model(model="gpt-4.1-mini", parameters={"service_tier": "flex"})

    found = outcomes(changed(config, None))["price"]

    assert found.found is Found.MISSED
    assert "nobody knows what that costs in service tier `flex`" in found.reasons[0]


def test_what_a_price_is_and_where_it_is_from_is_on_record() -> None:
    found = outcomes(changed(a_model(), a_model(model="gpt-4.1-mini")))["price"]

    assert found.found is Found.MET
    assert part(found.figures, "candidate") == {
        "input_usd_per_mtok": "1",
        "output_usd_per_mtok": "10",
        "source": "declared",
    }
    assert str(part(found.figures, "baseline", "source")).startswith("genai-prices ")


def test_production_decides_whose_price_it_is() -> None:
    groq = Environment(name="production", base_url="https://api.groq.com/openai/v1")
    config = a_model(model="openai/gpt-oss-20b", environments=(groq,))

    found = outcomes(changed(config, None))["price"]

    assert ", groq " in str(part(found.figures, "candidate", "source"))


# --- Per request --------------------------------------------------------------------------------


def test_a_request_costs_its_input_and_the_longest_answer_where_no_more_is_known() -> None:
    figures = request(changed(a_model(), None, words(100, 200, 300)))

    assert part(figures, "candidate") == {
        "mean_nanousd": 200 * 1_000 + 50 * 10_000,
        "p50_nanousd": 200 * 1_000 + 50 * 10_000,
        "p95_nanousd": 300 * 1_000 + 50 * 10_000,
        "worst_nanousd": 300 * 1_000 + 50 * 10_000,
        "input_tokens": 200,
        "output_tokens": 50,
    }
    assert "3 of 3 answers are as long as the longest answer allowed" in str(figures["notes"])


def test_answers_are_as_long_as_recorded_and_input_as_billed() -> None:
    cases = words(100, 110)
    config = a_model()

    figures = request(changed(config, None, cases, recorded(config, cases, used(100, 7), used(102, 9))))

    assert part(figures, "candidate", "mean_nanousd") == (202 * 1_000 + 16 * 10_000) // 2
    assert part(figures, "recorded") == 2
    assert "answers are as long" not in str(figures["notes"])


def test_answers_never_recorded_are_as_long_as_the_baselines_to_the_same_case() -> None:
    cases = words(100, 110)
    base = a_model("Sort this ticket.")

    figures = request(changed(a_model(), base, cases, recorded(base, cases, used(100, 7), used(110, 90))))

    assert part(figures, "candidate", "output_tokens") == round((7 + 50) / 2), "no longer than allowed"
    assert part(figures, "baseline", "output_tokens") == round((7 + 90) / 2)
    assert "2 of 2 answers are as long as the other arm's answer" in str(figures["notes"])


def test_without_recordings_the_declared_profile_tells_how_long_answers_are() -> None:
    config = a_model(traffic=Traffic(output_tokens=Profile(p50=10, p95=30)))

    figures = request(changed(config, None, words(100)))

    assert part(figures, "candidate", "p50_nanousd") == 100_000 + 10 * 10_000
    assert part(figures, "candidate", "p95_nanousd") == 100_000 + 30 * 10_000
    assert part(figures, "candidate", "mean_nanousd") == 100_000 + 20 * 10_000
    assert part(figures, "candidate", "worst_nanousd") == 100_000 + 50 * 10_000


def test_reasoning_is_paid_as_output() -> None:
    cases = words(100)
    config = a_model()
    thought = Usage(input_tokens=100, output_tokens=40, reasoning_tokens=35)

    figures = request(changed(config, None, cases, recorded(config, cases, thought)))

    assert part(figures, "candidate", "mean_nanousd") == 100_000 + 40 * 10_000


def test_an_unbounded_answer_is_as_long_as_the_model_allows() -> None:
    declared = DeclaredModel(price=PRICE, context_window=8_192, max_output_tokens=1_000)
    context = a_context(Policy(models={"our-7b": declared}))

    figures = request(changed(a_model(parameters={}), None, words(100)), context)

    assert part(figures, "candidate", "worst_nanousd") == 100_000 + 1_000 * 10_000


def test_what_was_billed_corrects_what_is_counted_for_both_arms() -> None:
    cases = words(100, 200, 400)
    base, candidate = a_model("Sort this ticket."), a_model("Sort this ticket well.")
    billed = recorded(base, cases, used(150, 10), used(306, 10))

    change = changed(candidate, base, cases, billed)
    figures = request(change)

    ratio = 456 / 300
    assert part(figures, "calibration") == {
        "ratio": pytest.approx(ratio),
        "error_pct": pytest.approx(100 * (1 - 150 / (100 * ratio))),
        "answers": 2,
    }
    assert part(figures, "candidate", "input_tokens") == round(
        sum(math.ceil(size * ratio) for size in (101, 201, 401)) / 3
    )
    assert part(figures, "baseline", "input_tokens") == round((150 + 306 + math.ceil(400 * ratio)) / 3)
    assert "input × 1.52 as billed (± 1.3 %)" in judged(change).measured


def test_what_another_model_was_billed_corrects_nothing() -> None:
    other = Policy(models={**POLICY.models, "other-7b": DeclaredModel(price=PRICE, context_window=9)})
    cases = words(100)
    base = a_model("Sort this ticket.", model="other-7b")

    figures = request(changed(a_model(), base, cases, recorded(base, cases, used(900, 10))), a_context(other))

    assert figures["calibration"] is None
    assert part(figures, "candidate", "input_tokens") == 100


def test_usage_that_reads_nothing_is_no_usage() -> None:
    cases = words(100)
    config = a_model()

    figures = request(changed(config, None, cases, recorded(config, cases, used(0, 0))))

    assert (figures["recorded"], figures["calibration"]) == (0, None)
    assert part(figures, "candidate", "output_tokens") == 50


def test_cached_input_is_cheaper_only_as_far_as_traffic_declares_it_and_for_both_arms() -> None:
    cases = words(100)
    base = a_model("Sort this ticket.")
    recordings = recorded(base, cases, used(100, 10, cached=90))

    undeclared = request(changed(a_model(), base, cases, recordings))
    half = a_model(traffic=Traffic(cached_input_share=0.5))
    declared = request(changed(half, base, cases, recordings))

    assert part(undeclared, "baseline", "mean_nanousd") == 100 * 1_000 + 10 * 10_000
    assert part(declared, "baseline", "mean_nanousd") == 50 * 1_000 + 50 * 100 + 10 * 10_000
    assert part(declared, "candidate", "mean_nanousd") == 50 * 1_000 + 50 * 100 + 10 * 10_000
    assert part(declared, "candidate", "worst_nanousd") == 100 * 1_000 + 50 * 10_000, "nothing is cached"


def test_recorded_caching_that_nobody_declared_is_mentioned() -> None:
    cases = words(100)
    config = a_model()

    figures = request(changed(config, None, cases, recorded(config, cases, used(100, 10, cached=41))))

    assert "41% of recorded input was cached" in str(figures["notes"])


def test_a_long_prompt_is_priced_by_its_tier() -> None:
    dearer = Price(input_usd=Decimal(2), output_usd=Decimal(15))
    price = replace(PRICE, tiers=(Tier(above_input_tokens=150, price=dearer),))
    context = a_context(Policy(models={"our-7b": DeclaredModel(price=price, context_window=9)}))

    figures = request(changed(a_model(), None, words(100, 200)), context)

    assert part(figures, "candidate", "p50_nanousd") == 100 * 1_000 + 50 * 10_000
    assert part(figures, "candidate", "worst_nanousd") == 200 * 2_000 + 50 * 15_000


def test_without_cases_there_is_nothing_to_estimate_from() -> None:
    change = changed(a_model(), a_model(), ())

    found = outcomes(change)["request"]

    assert found.found is Found.UNKNOWN
    assert found.reasons == ("golden/ticket-triage/cases.jsonl holds no case to estimate from; add some",)
    assert judged(change).verdict is Verdict.INCONCLUSIVE


def test_a_case_that_cannot_be_rendered_leaves_the_estimate_unknown() -> None:
    found = outcomes(changed(a_model(), None, [*words(100), a_case("empty", inputs={})]))["request"]

    assert found.found is Found.UNKNOWN
    assert found.reasons == ("1 of 2 cases cannot be rendered",)


# --- Against the baseline -----------------------------------------------------------------------


def test_the_same_requests_cost_the_same() -> None:
    cases = words(100, 333)
    config = a_model()
    recordings = recorded(config, cases, used(117, 9))

    figures = request(changed(replace(config, limits=Limits(context_window=9)), config, cases, recordings))

    assert figures["increase_pct"] == 0
    assert figures["candidate"] == figures["baseline"]


@pytest.mark.parametrize(("allowed_pct", "found"), [(10.0, Found.MET), (9.99, Found.MISSED)])
def test_a_mean_may_rise_as_far_as_the_policy_allows_and_no_further(allowed_pct: float, found: Found) -> None:
    """60 more words of 100 + 50 × 10 tokens' worth are ten percent."""
    policy = replace(POLICY, cost=CostPolicy(max_increase_pct=allowed_pct))
    change = changed(a_model("Sort the ticket." + " now" * 60), a_model())

    made = outcomes(change, a_context(policy))["request"]

    assert made.figures["increase_pct"] == pytest.approx(10)
    assert made.found is found


def test_what_makes_a_request_dearer_is_said() -> None:
    profile = Traffic(output_tokens=Profile(p50=50, p95=50))
    change = changed(a_model("Sort the ticket." + " now" * 400, traffic=profile), a_model())

    result = judged(change)

    assert result.verdict is Verdict.FAIL
    assert result.reasons == (
        "a request costs $0.0010 on average, 66.7 % more than the baseline's $0.00060, and 25 % more is "
        "allowed: input 100 → 500 tokens, output 50 → 50",
    )
    assert result.hint == "if it is worth that, raise `max_increase_pct` in [tool.deploy_gates.cost]"


def test_where_only_the_longest_answer_is_known_the_hint_is_to_know_more() -> None:
    change = changed(a_model(parameters={"max_completion_tokens": 500}), a_model())

    result = judged(change)

    assert result.verdict is Verdict.FAIL
    assert result.hint == (
        "answers are taken to be as long as allowed; record some, or declare `traffic.output_tokens`"
    )


def test_a_cheaper_request_is_a_smaller_number_and_no_problem() -> None:
    result = judged(changed(a_model(), a_model("Sort the ticket." + " now" * 400)))

    assert result.verdict is Verdict.PASS
    assert part(result.figures, "request", "increase_pct") == pytest.approx(-40)
    assert result.hint == ""


def test_a_dearer_model_is_dearer_for_the_same_words() -> None:
    double = Price(input_usd=Decimal(2), output_usd=Decimal(20))
    policy = Policy(models={**POLICY.models, "our-70b": DeclaredModel(price=double, context_window=9)})

    made = outcomes(changed(a_model(model="our-70b"), a_model()), a_context(policy))["request"]

    assert made.found is Found.MISSED
    assert made.figures["increase_pct"] == pytest.approx(100)


def test_what_cost_nothing_may_not_begin_to_cost_unseen() -> None:
    free = Price(input_usd=Decimal(0), output_usd=Decimal(0))
    policy = Policy(models={**POLICY.models, "free-7b": DeclaredModel(price=free, context_window=9)})
    context = a_context(policy)

    dearer = outcomes(changed(a_model(), a_model(model="free-7b")), context)["request"]
    still_free = outcomes(changed(a_model("Sort.", model="free-7b"), a_model(model="free-7b")), context)[
        "request"
    ]

    assert dearer.found is Found.MISSED
    assert dearer.reasons[0].startswith("a request costs $0.00060 on average, more than the baseline's $0")
    assert still_free.found is Found.MET


def test_only_cases_that_both_arms_render_are_compared() -> None:
    """The new case leaves out what only the baseline needs; it is long, and no fault of the change."""
    base = a_model(messages=(Message(role="system", content="Sort the {{ kind }}."), ASK))
    cases = [
        a_case("both", inputs={"body": "word " * 86, "kind": "ticket"}),
        a_case("new", inputs={"body": "word " * 5_000}),
    ]

    made = outcomes(changed(a_model(), base, cases))["request"]
    figures = made.figures

    assert made.found is Found.MET
    assert (figures["increase_pct"], figures["compared"], figures["cases"]) == (0, 1, 2)
    assert "compared over the 1 cases that the baseline renders" in str(figures["notes"])


def test_a_new_config_is_held_to_limits_alone() -> None:
    figures = request(changed(a_model(), None))

    assert (figures["baseline"], figures["increase_pct"], figures["limit_nanousd"]) == (None, None, None)
    assert "there is neither a baseline nor a limit to hold this to" in str(figures["notes"])


def test_a_baseline_that_cannot_be_read_is_said() -> None:
    change = changed(a_model(), a_model())
    assert change.baseline is not None
    unreadable = replace(change, baseline=replace(change.baseline, config=None))

    figures = request(unreadable)

    assert figures["baseline"] is None
    assert "only limits apply" in str(figures["notes"])


# --- Against limits -----------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "found"), [(600_000, Found.MET), (599_999, Found.MISSED)])
def test_no_request_may_cost_more_than_its_limit(limit: int, found: Found) -> None:
    config = a_model(limits=Limits(cost_per_request_nanousd=limit))

    assert outcomes(changed(config, None))["request"].found is found


def test_an_answer_that_may_blow_up_is_caught_even_if_answers_are_short_today() -> None:
    limits = Limits(cost_per_request_nanousd=1_000_000)
    cases = words(100, 100)
    base = a_model(limits=limits)
    candidate = a_model(
        limits=limits, parameters={"max_completion_tokens": 5_000}, lines={"limits.cost_per_request": 19}
    )

    result = judged(changed(candidate, base, cases, recorded(base, cases, used(100, 9), used(100, 9))))

    assert result.verdict is Verdict.FAIL
    assert result.reasons == (
        "golden/ticket-triage/config.yaml:19: `limits.cost_per_request` is $0.0010, and a request costs "
        "$0.050 at worst; `max_completion_tokens` bounds the longest answer",
    )


def test_a_limit_that_is_exceeded_on_average_says_so() -> None:
    config = a_model(limits=Limits(cost_per_request_nanousd=1_000))

    assert "a request costs $0.00060 on average" in outcomes(changed(config, None))["request"].reasons[0]


LIMITS: list[tuple[str, ModelConfig, ModelConfig | None, str]] = [
    ("nothing", a_model(), None, ""),
    ("the baseline", a_model(), a_model("Sort this ticket."), "≤ $0.75 (+25 %)"),
    ("the limit", a_model(limits=Limits(cost_per_request_nanousd=700_000)), a_model(), "≤ $0.70 (limit)"),
    (
        "the budget",
        a_model(
            limits=Limits(monthly_budget_nanousd=650 * 10**9), traffic=Traffic(requests_per_month=1_000_000)
        ),
        a_model(),
        "≤ $0.65 (budget)",
    ),
]


@pytest.mark.parametrize(
    ("candidate", "baseline", "required"), [each[1:] for each in LIMITS], ids=[each[0] for each in LIMITS]
)
def test_the_tightest_limit_is_shown_beside_the_mean(
    candidate: ModelConfig, baseline: ModelConfig | None, required: str
) -> None:
    result = judged(changed(candidate, baseline))

    assert result.verdict is Verdict.PASS
    assert result.required[0] == required
    assert result.measured[0] == "$0.60 per 1k requests" + (", baseline $0.60" if baseline else "")


# --- Per month ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "found"), [(600_000 * 3_000, Found.MET), (600_000 * 3_000 - 1, Found.MISSED)]
)
def test_a_months_requests_together_stay_within_the_budget(budget: int, found: Found) -> None:
    config = a_model(limits=Limits(monthly_budget_nanousd=budget), traffic=Traffic(requests_per_month=3_000))

    made = outcomes(changed(config, None))["month"]

    assert made.found is found
    assert made.figures == {"month_nanousd": 1_800_000_000, "budget_nanousd": budget, "requests": 3_000}


def test_a_budget_that_is_exceeded_says_by_what() -> None:
    config = a_model(
        limits=Limits(monthly_budget_nanousd=10**9),
        traffic=Traffic(requests_per_month=3_000),
        lines={"limits.monthly_budget": 12},
    )

    result = judged(changed(config, None))

    assert result.reasons == (
        "golden/ticket-triage/config.yaml:12: `limits.monthly_budget` is $1.00, "
        "and 3,000 requests cost $1.80",
    )
    assert (result.measured[1], result.required[1]) == ("$1.80 a month", "≤ $1.00 (budget)")


def test_a_budget_without_traffic_fails_for_nobody_can_hold_it() -> None:
    made = outcomes(changed(a_model(limits=Limits(monthly_budget_nanousd=10**9)), None))["month"]

    assert made.found is Found.MISSED
    assert made.reasons[0].endswith("; declare `traffic.requests_per_month`")


def test_traffic_without_a_budget_is_shown_and_held_to_nothing() -> None:
    result = judged(changed(a_model(traffic=Traffic(requests_per_month=3_000)), None))

    assert (result.verdict, result.measured[1], result.required[1]) == (Verdict.PASS, "$1.80 a month", "")


def test_without_traffic_and_budget_there_is_no_month() -> None:
    made = outcomes(changed(a_model(), None))["month"]

    assert (made.found, made.figures) == (Found.MET, {})


def test_a_month_of_an_unknown_price_is_unknown() -> None:
    config = a_model(model="their-7b", traffic=Traffic(requests_per_month=3_000))

    assert outcomes(changed(config, None))["month"].found is Found.UNKNOWN


# --- The verdict, and afterwards ----------------------------------------------------------------


def test_without_a_check_the_gate_is_inconclusive_or_skipped_if_optional() -> None:
    change = changed(a_model(), None)
    optional = replace(POLICY, optional=frozenset({GateName.COST}))

    assert cost.judge(change, [], a_context(POLICY)).verdict is Verdict.INCONCLUSIVE
    assert cost.judge(change, [], a_context(optional)).verdict is Verdict.SKIP


def test_a_check_that_did_not_run_leaves_the_gate_inconclusive() -> None:
    change = changed(a_model(), None)
    found = outcomes(change)
    lost = replace(found["request"], found=Found.UNKNOWN, reasons=("cost/request did not run",), figures={})

    result = cost.judge(change, [found["price"], lost, found["month"]], a_context(POLICY))

    assert (result.verdict, result.measured) == (Verdict.INCONCLUSIVE, ("no estimate",))
    assert (result.checks, result.unknown) == (3, 1)


def test_a_config_that_does_not_parse_has_no_checks_here() -> None:
    change = changed(a_model(), a_model())
    unreadable = replace(change, candidate=replace(change.candidate, config=None))

    assert list(cost.checks(unreadable, a_context(POLICY))) == []
    assert cost.judge(unreadable, [], a_context(POLICY)).verdict is Verdict.INCONCLUSIVE


def golden(case: str, usage: Usage | None, **figures: Json) -> Outcome:
    return Outcome(
        check=f"cases.jsonl::{case}",
        gate=GateName.GOLDEN,
        config="ticket-triage",
        found=Found.MET,
        case=case,
        usage=usage,
        figures=figures,
    )


def test_after_the_golden_run_the_estimate_stands_beside_what_was_used() -> None:
    base = a_model("Sort this ticket.")
    cases = words(100, 100)
    change = changed(a_model(), base, cases, recorded(base, cases, used(100, 10), used(100, 10)))

    result = judged(
        change, more=[golden("case-0", used(100, 12)), golden("case-1", used(300, 36), samples=3)]
    )

    estimated, actual = 2 * (100 * 1_000 + 10 * 10_000), 2 * (100 * 1_000 + 12 * 10_000)
    assert result.figures["estimate_error_pct"] == pytest.approx(100 * (1 - estimated / actual))
    assert result.measured[-1] == "estimate 9.1 % off actual usage"
    assert len(result.measured) == len(result.required)


INCOMPARABLE = [
    ("a part of the cases", [golden("case-0", used(100, 12))]),
    ("answers that say nothing", [golden("case-0", used(100, 12)), golden("case-1", None)]),
    ("no golden run", []),
]


@pytest.mark.parametrize("more", [each[1] for each in INCOMPARABLE], ids=[each[0] for each in INCOMPARABLE])
def test_an_estimate_is_held_against_all_cases_or_none(more: list[Outcome]) -> None:
    assert "estimate_error_pct" not in judged(changed(a_model(), None), more=more).figures


def test_an_estimate_made_of_the_same_answers_is_no_proof_of_itself() -> None:
    cases = words(100, 100)
    config = a_model()
    change = changed(config, None, cases, recorded(config, cases, used(100, 12), used(100, 12)))

    result = judged(change, more=[golden("case-0", used(100, 12)), golden("case-1", used(100, 12))])

    assert "estimate_error_pct" not in result.figures


def test_figures_stay_small_however_many_cases_there_are() -> None:
    few, many = (
        judged(changed(a_model(), a_model("Sort this ticket."), words(*range(60, 60 + number))))
        for number in (10, 500)
    )

    assert len(json.dumps(many.figures)) < len(json.dumps(few.figures)) + 100 < 2_000
