"""The golden gate: cases decide together, not knowing is not passing, nothing goes missing quietly."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pytest

from deploy_gates import prompt
from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.config import (
    Case,
    CaseCheck,
    Comparison,
    ConfigChange,
    Kind,
    Message,
    ModelConfig,
    Output,
)
from deploy_gates.core.errors import Cause, Unanswered
from deploy_gates.core.gate import Found, GateName, GateResult, Outcome, Verdict
from deploy_gates.core.past import Past, Scored, short
from deploy_gates.core.policy import GoldenPolicy, Policy
from deploy_gates.core.question import Answer, Question
from deploy_gates.gates import golden
from deploy_gates.testing import (
    TICKET_SCHEMA,
    a_case,
    a_change,
    a_config,
    a_context,
    a_snapshot,
    an_answer,
    run_check,
)

COMPARISON = Comparison(exclude_paths=("reason",))
CANDIDATE = a_config(comparison=COMPARISON)
BASELINE = a_config(comparison=COMPARISON, model="gpt-4.1-nano")

Endpoint = Callable[[Question], Answer | Unanswered]


def cases(n: int, **fields: object) -> list[Case]:
    return [a_case(f"case-{at:03}", **fields) for at in range(n)]


def endpoint(
    *, worse: Iterable[str] = (), better: Iterable[str] = (), missed: Iterable[str] = ()
) -> Endpoint:
    """Both models answer `refund`, but for the cases named; `missed` are those that both miss."""
    wrong = {CANDIDATE.model: {*worse, *missed}, BASELINE.model: {*better, *missed}}

    def answer(question: Question) -> Answer:
        category = "billing" if question.label in wrong[question.model] else "refund"
        return an_answer({"category": category, "reason": "says so"}, model=question.model)

    return answer


def a_change_of(
    given: Sequence[Case], before: Sequence[Case] | None = None, **fields: object
) -> ConfigChange:
    baseline = a_snapshot(BASELINE, given if before is None else before)
    return a_change(a_snapshot(CANDIDATE, given, **fields), baseline)


def run(change: ConfigChange, answer: Endpoint, policy: GoldenPolicy | None = None) -> list[Outcome]:
    context = a_context(Policy(golden=policy or GoldenPolicy()))
    return [run_check(check, answer) for check in golden.checks(change, context)]


def judge(
    change: ConfigChange, outcomes: Sequence[Outcome], policy: GoldenPolicy | None = None
) -> GateResult:
    return golden.judge(change, outcomes, a_context(Policy(golden=policy or GoldenPolicy())))


def judged(change: ConfigChange, answer: Endpoint, policy: GoldenPolicy | None = None) -> GateResult:
    return judge(change, run(change, answer, policy), policy)


def prompted(config: ModelConfig, case: str = "refund-partial") -> str:
    """The key of the question that a config makes of this case."""
    return prompt.ask(config, {"body": case}).key


def ids(*numbers: int) -> list[str]:
    return [f"case-{number:03}" for number in numbers]


# --- Against a baseline -------------------------------------------------------------------------


def test_a_change_that_loses_nothing_beyond_the_margin_passes_with_its_numbers() -> None:
    change = a_change_of(cases(400))

    result = judged(
        change, endpoint(worse=ids(0, 1, 2, 3), better=ids(*range(10, 17)), missed=ids(*range(20, 29)))
    )

    assert result.verdict is Verdict.PASS
    assert result.measured == ("387 of 400, baseline 384", "+0.8 pt, at worst −0.8 pt (95 % sure)")
    assert result.required == ("", "≥ −2.0 pt")
    assert (result.checks, result.missed, result.unknown) == (401, 13, 0)
    assert result.reasons == ()


def test_a_proved_loss_fails_and_names_each_case_that_got_worse() -> None:
    change = a_change_of(cases(400, tags=("refund",)))

    result = judged(change, endpoint(worse=ids(*range(15)), better=ids(20, 21, 22)))

    assert result.verdict is Verdict.FAIL
    assert result.measured == ("385 of 400, baseline 397", "−3.0 pt, at worst −5.0 pt (95 % sure)")
    assert result.reasons == (
        "the loss is proved: by chance alone it would be as large in 0.22 % of such comparisons",
    )
    worse = result.figures["worse"]
    assert isinstance(worse, list)
    assert worse[0] == {
        "case": "case-000",
        "field": "category",
        "expected": "refund",
        "got": "billing",
        "tags": ["refund"],
    }
    assert len(worse) == 15
    assert result.hint == "try the weak spot alone: `pytest --deploy-gates --gate=golden -k case-000`"


def test_what_neither_is_proved_is_inconclusive_and_says_what_would_decide() -> None:
    change = a_change_of(cases(60))

    result = judged(change, endpoint(worse=ids(0)))

    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.measured == ("59 of 60, baseline 60", "−1.7 pt, at worst −7.7 pt (95 % sure)")
    assert result.reasons == ("60 cases cannot tell a loss of 2.0 pt from none",)
    assert result.hint.startswith("about ")
    assert result.hint.endswith(" cases more like these or 2 samples more of each would decide")


def test_no_miss_at_all_among_too_few_cases_proves_too_little() -> None:
    few, enough = judged(a_change_of(cases(148)), endpoint()), judged(a_change_of(cases(149)), endpoint())

    assert few.verdict is Verdict.INCONCLUSIVE
    assert few.hint == "about 1 case more like these would decide"
    assert enough.verdict is Verdict.PASS


def test_a_bound_just_short_of_the_margin_is_not_shown_as_if_it_met_it() -> None:
    result = judged(a_change_of(cases(148)), endpoint())

    assert result.measured[1] == "+0.0 pt, at worst −2.004 pt (95 % sure)"
    assert result.required[1] == "≥ −2.0 pt"


@pytest.mark.parametrize(
    ("margin_pt", "required"), [(2.0, "≥ −2.0 pt"), (0.25, "≥ −0.25 pt"), (10, "≥ −10.0 pt")]
)
def test_the_limit_is_shown_as_exactly_as_the_policy_says_it(margin_pt: float, required: str) -> None:
    result = judged(a_change_of(cases(20)), endpoint(), GoldenPolicy(margin_pt=margin_pt))

    assert result.required == ("", required)


def test_two_configs_that_meet_nothing_cannot_be_told_apart() -> None:
    given = cases(300)

    result = judged(a_change_of(given), endpoint(missed=[case.id for case in given]))

    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.reasons == ("neither config meets a single case, so these cannot tell the two apart",)


def test_a_tag_in_the_ids_of_what_got_worse_is_the_weak_spot() -> None:
    given = [a_case(f"refund-{at}", tags=("refund", "en")) for at in range(200)]

    result = judged(a_change_of(given), endpoint(worse=[case.id for case in given[:20]]))

    assert result.hint == "try the weak spot alone: `pytest --deploy-gates --gate=golden -k refund`"


def test_weights_and_fractions_are_shown_as_shares() -> None:
    given = [a_case("heavy", weight=3.0), *cases(197)]

    result = judged(a_change_of(given), endpoint(worse=["heavy"]))

    assert result.measured[0] == "98.5 % of 198, baseline 100.0 %"


def test_the_figures_are_plain_json_and_do_not_depend_on_who_reported_first() -> None:
    given = [
        a_case(f"case-{at:03}", tags=("even",) if at % 2 == 0 else (), cluster=f"{at // 3}")
        for at in range(90)
    ]
    change = a_change_of(given)
    outcomes = run(change, endpoint(worse=ids(3, 8), better=ids(5)))
    chance = random.Random(1)

    first = judge(change, outcomes)
    others = [judge(change, chance.sample(outcomes, k=len(outcomes))) for _ in range(5)]

    assert all(other == first for other in others)
    assert json.loads(json.dumps(first.figures)) == first.figures
    assert set(first.figures) == {
        "n", "met", "clusters", "effective_n", "candidate_rate", "confidence", "power_pt", "by_tag",
        "baseline_rate", "change_pt", "low_pt", "high_pt", "margin_pt", "p_worse", "conclusion",
        "same_requests", "more_cases", "worse", "better",
    }  # fmt: skip
    assert first.figures["clusters"] == 30
    assert first.figures["by_tag"] == {"even": {"n": 45, "baseline": 1.0, "candidate": 0.977778}}
    assert first.figures["better"] == [
        {"case": "case-005", "field": "category", "expected": "refund", "got": "refund", "tags": []}
    ]


def test_outcomes_cross_process_borders_and_are_judged_the_same() -> None:
    change = a_change_of(cases(40))
    outcomes = run(change, endpoint(worse=ids(3)))

    back = [Outcome.from_json(each.to_json()) for each in outcomes]

    assert back == outcomes
    assert judge(change, back) == judge(change, outcomes)


# --- A case -------------------------------------------------------------------------------------


def one(change: ConfigChange, answer: Endpoint) -> Outcome:
    """The outcome of the only case."""
    outcome = run(change, answer)[-1]
    assert outcome.case
    return outcome


def test_a_case_is_named_after_its_line_and_carries_what_the_gate_decides_on() -> None:
    change = a_change_of(
        [a_case("refund-partial", tags=("smoke",), cluster="glass", weight=2.0, must_pass=True)]
    )

    checks = list(golden.checks(change, a_context()))
    outcome = run_check(checks[1], endpoint(worse=["refund-partial"]))

    assert [check.id for check in checks] == [
        "golden/ticket-triage/config.yaml::golden/dataset",
        "golden/ticket-triage/cases.jsonl::refund-partial",
    ]
    assert (checks[1].case, checks[1].tags, checks[1].gate) == ("refund-partial", ("smoke",), GateName.GOLDEN)
    assert outcome.found is Found.MISSED
    assert outcome.reasons == ("category: expected refund, got billing",)
    assert outcome.usage is not None
    assert outcome.figures == {
        "score": 0.0,
        "baseline_score": 1.0,
        "same_request": False,
        "weight": 2.0,
        "cluster": "glass",
        "must_pass": True,
        "finish_reason": "stop",
        "field": "category",
        "expected": "refund",
        "got": "billing",
        "answers": [[short(prompted(CANDIDATE)), "2026-11-23T09:14:02Z", 0.0]],
        "baseline_answers": [[short(prompted(BASELINE)), "2026-11-23T09:14:02Z", 1.0]],
    }


def test_the_same_request_is_asked_once_and_differs_by_nothing() -> None:
    unlike = replace(CANDIDATE, document={"limits": {}})
    change = a_change(a_snapshot(CANDIDATE, cases(3)), a_snapshot(unlike, cases(3)))
    asked: list[str] = []

    def answer(question: Question) -> Answer:
        asked.append(question.label)
        return an_answer({"category": "billing", "reason": ""})

    outcomes = run(change, answer, GoldenPolicy(min_cases=1))
    result = judge(change, outcomes)

    assert asked == ids(0, 1, 2)
    assert all(each.figures["same_request"] for each in outcomes[1:])
    assert result.verdict is Verdict.PASS
    assert result.measured == ("0 of 3, baseline 0", "+0.0 pt, at worst +0.0 pt (95 % sure)")


def test_each_answer_keeps_to_its_own_output_schema_and_both_to_the_candidates_case() -> None:
    wider = TICKET_SCHEMA | {"required": ["category"]}
    change = a_change(
        a_snapshot(CANDIDATE, cases(1)),
        a_snapshot(
            replace(BASELINE, output=Output(name="ticket", schema=wider), comparison=Comparison()), []
        ),
    )

    def answer(question: Question) -> Answer:
        return an_answer({"category": "refund"})

    outcome = one(change, answer)

    assert (outcome.figures["baseline_score"], outcome.figures["score"]) == (1.0, 0.0)
    assert outcome.reasons == ("reason: expected a value, got nothing",)


def test_a_baseline_whose_variables_had_other_names_is_asked_with_its_own_inputs() -> None:
    renamed = replace(CANDIDATE, messages=(Message(role="user", content="{{ ticket }}"),))
    now, was = a_case("a", inputs={"ticket": "hello"}), a_case("a", inputs={"body": "hello"})
    change = a_change(a_snapshot(renamed, [now]), a_snapshot(BASELINE, [was]))

    outcome = one(change, endpoint())

    assert outcome.found is Found.MET
    assert outcome.figures["baseline_score"] == 1.0


@pytest.mark.parametrize(
    ("messages", "baseline_messages", "reason"),
    [
        ("{{ gone }}", "{{ body }}", "cannot be asked: messages[0].content uses a variable"),
        ("{{ body }}", "{{ gone }}", "the baseline's answer: cannot be asked for, messages[0].content uses"),
    ],
)
def test_a_request_that_cannot_be_made_is_not_known(
    messages: str, baseline_messages: str, reason: str
) -> None:
    change = a_change(
        a_snapshot(replace(CANDIDATE, messages=(Message(role="user", content=messages),)), cases(1)),
        a_snapshot(replace(BASELINE, messages=(Message(role="user", content=baseline_messages),)), cases(1)),
    )

    outcome = one(change, endpoint())

    assert outcome.found is Found.UNKNOWN
    assert outcome.reasons[0].startswith(reason)


@pytest.mark.parametrize(
    ("silent", "reason"),
    [
        ({CANDIDATE.model}, "case-000 was never recorded"),
        ({BASELINE.model}, "the baseline's answer: case-000 was never recorded"),
        ({CANDIDATE.model, BASELINE.model}, "case-000 was never recorded"),
    ],
    ids=["candidate", "baseline", "both"],
)
def test_a_missing_answer_is_not_known_and_the_other_is_asked_for_all_the_same(
    silent: set[str], reason: str
) -> None:
    asked: list[str] = []

    def answer(question: Question) -> Answer | Unanswered:
        asked.append(question.model)
        if question.model in silent:
            return Unanswered(Cause.NOT_RECORDED, f"{question.label} was never recorded", hint="record it")
        return endpoint()(question)

    outcome = one(a_change_of(cases(1)), answer)

    assert asked == [BASELINE.model, CANDIDATE.model]
    assert (outcome.found, outcome.reasons) == (Found.UNKNOWN, (reason,))
    assert (outcome.figures["unanswered"], outcome.figures["hint"]) == ("not recorded", "record it")


def test_a_check_that_nobody_can_make_is_not_known() -> None:
    asked = a_case("a", expects=False, checks=(CaseCheck(kind=Kind.REGEX, spec={"pattern": "("}),))

    outcome = one(a_change_of([asked]), endpoint())

    assert outcome.found is Found.UNKNOWN
    assert outcome.reasons == ("the pattern ( is not valid: missing ) at position 1",)


# --- What else bears on the verdict -------------------------------------------------------------


def test_an_unknown_case_is_inconclusive_whatever_the_others_say() -> None:
    change = a_change_of(cases(400))
    outcomes = run(change, endpoint(worse=ids(*range(30))))
    outcomes[-1] = replace(outcomes[-1], found=Found.UNKNOWN, reasons=("no recorded answer for case-399",))

    result = judge(change, outcomes)

    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.measured[0] == "369 of 399, baseline 399, 1 not known"
    assert result.reasons == ("case-399 is not known: no recorded answer",)
    assert result.unknown == 1


def test_a_case_that_its_judge_leaves_unknown_is_told_in_whole_words() -> None:
    change = a_change_of(cases(400))
    outcomes = run(change, endpoint())
    why = "no recorded answer for judge of case-399"
    outcomes[-1] = replace(outcomes[-1], found=Found.UNKNOWN, reasons=(why,))

    result = judge(change, outcomes)

    assert result.reasons == ("case-399 is not known: no recorded answer for judge",)


def test_unknown_cases_are_counted_by_their_reason_and_bring_its_remedy() -> None:
    change = a_change_of(cases(30))

    def answer(question: Question) -> Answer | Unanswered:
        if question.model == BASELINE.model:
            return endpoint()(question)
        if question.label in ids(3, 4):
            return Unanswered(Cause.OVERLOADED, "the endpoint kept answering 429", hint="run again later")
        return Unanswered(Cause.NOT_RECORDED, f"no recorded answer for {question.label}", hint="record it")

    result = judged(change, answer)

    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.measured == ("no case is known",)
    assert result.reasons == (
        "28 cases are not known: no recorded answer",
        "2 cases are not known: the endpoint kept answering 429",
    )
    assert result.hint == "record it"


def test_a_case_that_must_pass_fails_the_gate_alone() -> None:
    given = [a_case("safety", must_pass=True), *cases(400)]

    met = judged(a_change_of(given), endpoint(worse=ids(1)))
    missed = judged(a_change_of(given), endpoint(worse=["safety"]))
    missed_by_both = judged(a_change_of(given), endpoint(missed=["safety"]))

    assert met.verdict is Verdict.PASS
    assert missed.verdict is missed_by_both.verdict is Verdict.FAIL
    assert missed.reasons == ("safety must pass: category: expected refund, got billing",)


def test_a_case_that_must_pass_is_no_part_of_the_comparison() -> None:
    """With early stop or without: nobody draws it from others like it."""
    few = [a_case("safety", must_pass=True), *cases(400)]
    many = [a_case("safety", must_pass=True), *cases(600)]

    results = [judged(a_change_of(given), endpoint(worse=["safety"])) for given in (few, many)]

    assert [
        result.figures["planned"] if "planned" in result.figures else result.figures["n"]
        for result in results
    ] == [400, 600]
    assert [result.figures["change_pt"] for result in results] == [0, 0]
    assert [[each["case"] for each in result.figures["worse"]] for result in results] == [["safety"]] * 2


def test_clusters_that_weigh_too_much_to_prove_anything_are_named() -> None:
    plain = cases(400)
    large = [replace(case, cluster="shoes" if at < 40 else "") for at, case in enumerate(plain)]
    pairs = [replace(case, cluster=f"{at // 4}") for at, case in enumerate(plain)]
    weighed = [replace(case, weight=0.05 if case.cluster else 1.0) for case in large]

    results = [judged(a_change_of(given), endpoint()) for given in (large, pairs, weighed)]

    assert [each.verdict for each in results] == [Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE, Verdict.PASS]
    assert results[0].hint == (
        "give what belongs to shoes and its like less weight: "
        "even if nothing changed, a loss of 9.5 pt could hide there"
    )
    assert results[1].hint == "about 200 cases more like these would decide"


def test_where_every_case_must_pass_they_are_the_comparison_too() -> None:
    given = cases(200, must_pass=True)

    result = judged(a_change_of(given), endpoint())

    assert (result.verdict, result.figures["n"]) == (Verdict.PASS, 200)


def test_a_case_that_must_pass_fails_also_where_others_are_not_known() -> None:
    change = a_change_of([a_case("safety", must_pass=True), *cases(20)])
    outcomes = run(change, endpoint(worse=["safety"]))
    outcomes[-1] = replace(outcomes[-1], found=Found.UNKNOWN, reasons=("did not run",))

    result = judge(change, outcomes)

    assert result.verdict is Verdict.FAIL
    assert result.reasons == (
        "safety must pass: category: expected refund, got billing",
        "case-019 is not known: did not run",
    )


@pytest.mark.parametrize("optional", [True, False])
def test_where_nothing_ran_only_the_policy_can_excuse_it(optional: bool) -> None:
    policy = Policy(optional=frozenset({GateName.GOLDEN} if optional else ()))
    other = Outcome(check="x", gate=GateName.TYPE, config="ticket-triage", found=Found.MET)

    result = golden.judge(a_change_of(cases(20)), [other], a_context(policy))

    assert result.verdict is (Verdict.SKIP if optional else Verdict.INCONCLUSIVE)
    assert result.measured == ("no check was executed",)


def test_a_config_that_cannot_be_read_has_no_checks() -> None:
    change = a_change_of(cases(20))

    checks = list(
        golden.checks(replace(change, candidate=replace(change.candidate, config=None)), a_context())
    )

    assert checks == []


# --- A new config -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "missed", "verdict", "measured"),
    [
        (20, 0, Verdict.PASS, "20 of 20, at worst 86 % (95 % sure)"),
        (13, 0, Verdict.INCONCLUSIVE, "13 of 13, at worst 79 % (95 % sure)"),
        (14, 0, Verdict.PASS, "14 of 14, at worst 81 % (95 % sure)"),
        (40, 4, Verdict.INCONCLUSIVE, "36 of 40, at worst 79 % (95 % sure)"),
        (40, 9, Verdict.FAIL, "31 of 40, at worst 64 % (95 % sure)"),
    ],
)
def test_a_new_config_has_to_prove_its_pass_rate(
    n: int, missed: int, verdict: Verdict, measured: str
) -> None:
    change = a_change(a_snapshot(CANDIDATE, cases(n)))

    result = judged(change, endpoint(missed=ids(*range(missed))))

    assert result.verdict is verdict
    assert (result.measured, result.required) == ((measured,), ("≥ 80 %",))
    assert (verdict is Verdict.INCONCLUSIVE) == ("would decide" in result.hint)
    assert len(result.reasons) == (0 if verdict is Verdict.PASS else 1 + missed)


def test_a_config_whose_baseline_cannot_be_read_is_judged_like_a_new_one() -> None:
    broken = replace(a_snapshot(BASELINE, cases(20)), config=None)

    result = judged(a_change(a_snapshot(CANDIDATE, cases(20)), broken), endpoint())

    assert result.verdict is Verdict.PASS
    assert result.required == ("≥ 80 %",)


# --- The dataset --------------------------------------------------------------------------------


def dataset(now: Sequence[Case], before: Sequence[Case] | None, config: ModelConfig = CANDIDATE) -> Outcome:
    baseline = None if before is None else a_snapshot(BASELINE, before)
    return run(a_change(a_snapshot(config, now), baseline), endpoint())[0]


CHECKS = tuple(CaseCheck(kind=Kind.CONTAINS, spec={"value": word}) for word in ("a", "b"))


@pytest.mark.parametrize(
    ("now", "before", "reason"),
    [
        (cases(20), cases(20), ""),
        (cases(25), cases(20), ""),
        (cases(20), None, ""),
        ([], None, "holds 0 cases, and the policy wants at least 10; add cases"),
        (cases(9), cases(9), "holds 9 cases, and the policy wants at least 10; add cases"),
        (cases(20), cases(22), "lacks 2 cases of main: case-020, case-021; put them back, or name those"),
        (
            cases(20, expects=False, checks=CHECKS),
            cases(1, checks=CHECKS),
            "asks for less than main does: case-000 (no `expected`); ask for as much, or retire the case",
        ),
        (
            cases(20, checks=CHECKS[:1]),
            cases(1, checks=CHECKS),
            "asks for less than main does: case-000 (1 of 2 checks); ask for as much",
        ),
        (
            cases(20),
            cases(1, must_pass=True),
            "asks for less than main does: case-000 (no `must_pass`); ask for as much",
        ),
    ],
)
def test_a_dataset_may_not_quietly_ask_for_less(
    now: Sequence[Case], before: Sequence[Case] | None, reason: str
) -> None:
    outcome = dataset(now, before)

    assert outcome.found is (Found.MISSED if reason else Found.MET)
    assert len(outcome.reasons) == (1 if reason else 0)
    assert "".join(outcome.reasons).startswith(
        f"golden/ticket-triage/cases.jsonl: {reason}" if reason else ""
    )


def test_a_case_may_be_retired_on_purpose() -> None:
    document: JsonObject = {"golden": {"retired": ["case-020", "case-021"]}}

    outcome = dataset(cases(20), cases(22), replace(CANDIDATE, document=document))

    assert outcome.found is Found.MET


def test_another_expectation_is_allowed_and_told() -> None:
    now = [a_case("case-000", expected={"category": "billing"}), *cases(20)[1:]]

    outcome = dataset(now, cases(20))

    assert outcome.found is Found.MET
    assert outcome.reasons == ("another answer is expected of 1 case: case-000",)


def test_many_missing_cases_are_counted_rather_than_listed() -> None:
    outcome = dataset(cases(20), cases(120))

    assert "case-039 and 80 more" in outcome.reasons[0]


def test_a_dataset_that_lost_cases_fails_the_gate_however_good_the_answers_are() -> None:
    change = a_change_of(cases(300), cases(301))

    result = judged(change, endpoint())

    assert result.verdict is Verdict.FAIL
    assert result.reasons[0].startswith("golden/ticket-triage/cases.jsonl: lacks 1 case of main: case-300")


def test_a_dataset_nobody_looked_at_is_inconclusive() -> None:
    change = a_change_of(cases(300))
    outcomes = run(change, endpoint())
    outcomes[0] = replace(outcomes[0], found=Found.UNKNOWN, reasons=("golden/dataset did not run",))

    result = judge(change, outcomes)

    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.reasons == ("golden/dataset did not run",)


# --- Speed --------------------------------------------------------------------------------------


def test_a_thousand_replayed_cases_take_a_fraction_of_a_second() -> None:
    change = a_change_of(cases(1000))
    answer = endpoint(worse=ids(*range(0, 1000, 40)), better=ids(*range(7, 1000, 60)))
    judged(a_change_of(cases(20)), answer)

    began = time.process_time()
    result = judged(change, answer)

    assert result.checks == 1001
    assert time.process_time() - began < 1.0


# --- Samples, history, quarantine, tags ---------------------------------------------------------


def swinging(*cases_: str) -> dict[str, dict[str, Past]]:
    """A history in which these cases are unstable."""
    past = Past(
        scored=tuple(
            Scored(key=f"earlier-{at}", asked_at=f"2026-10-0{at + 1}T00:00:00Z", score=at % 2)
            for at in range(4)
        )
    )
    return {"ticket-triage": dict.fromkeys(cases_, past)}


def asked_of(change: ConfigChange, **context: object) -> tuple[list[Question], list[Outcome]]:
    """What is asked, and what is found, where every second sample is missed."""
    asked: list[Question] = []

    def answer(question: Question) -> Answer:
        asked.append(question)
        return an_answer({"category": "billing" if question.sample % 2 else "refund", "reason": ""})

    checks = golden.checks(change, a_context(**context))
    return asked, [run_check(check, answer) for check in checks]


def test_only_cases_whose_history_is_unstable_are_asked_more_often() -> None:
    change = a_change_of(cases(3))

    asked, outcomes = asked_of(change, history=swinging("case-001"), live=True)

    times = {case: sum(each.label == case for each in asked) for case in ids(0, 1, 2)}
    assert times == {"case-000": 2, "case-001": 10, "case-002": 2}
    assert len({each.key for each in asked}) == len(asked), "each sample is a question of its own"
    flaky = outcomes[2].figures
    assert (flaky["score"], flaky["baseline_score"], flaky["samples"]) == (0.6, 0.6, 5)
    assert outcomes[2].found is Found.MISSED


def test_a_case_may_say_itself_how_often_it_is_asked() -> None:
    asked, outcomes = asked_of(a_change_of(cases(1, samples=3)), live=True)

    assert len(asked) == 6
    assert outcomes[1].figures["score"] == pytest.approx(2 / 3)


def test_the_baseline_may_be_asked_more_often_than_the_candidate() -> None:
    policy = Policy(golden=GoldenPolicy(baseline_samples=4))

    _, outcomes = asked_of(a_change_of(cases(1)), policy=policy, live=True)

    assert (outcomes[1].figures["samples"], outcomes[1].figures["baseline_samples"]) == (1, 4)
    assert outcomes[1].figures["baseline_score"] == 0.5


def test_a_replay_uses_the_samples_that_are_recorded_and_wants_no_others() -> None:
    change = a_change_of(cases(1))
    keys = [prompted(CANDIDATE, "case-000"), prompted(BASELINE, "case-000")]
    answers = {
        f"{key}{sample}": an_answer({"category": "refund"}) for key in keys for sample in ("", "#1", "#2")
    }

    asked, outcomes = asked_of(replace(change, recordings=answers), history=swinging("case-000"))

    assert len(asked) == 6
    assert outcomes[1].figures["samples"] == 3


def test_the_answers_that_are_compared_do_not_make_their_own_case_unstable() -> None:
    change = a_change_of(cases(1))
    key = prompted(BASELINE, "case-000")
    recorded = {key: an_answer({"category": "refund"})}
    past = Past(
        scored=(
            Scored(key=short(key), asked_at="2026-10-01T00:00:00Z", score=1),
            Scored(key=short(key), asked_at="2026-11-23T09:14:02Z", score=0),
        )
    )

    asked, _ = asked_of(
        replace(change, recordings=recorded), history={"ticket-triage": {"case-000": past}}, live=True
    )

    assert len(asked) == 2


def test_a_missed_sample_is_never_made_up_for_by_one_that_is_met() -> None:
    given = [a_case("safety", must_pass=True, samples=3), *cases(20)]
    change = a_change_of(given)

    _, outcomes = asked_of(change, live=True)

    assert judge(change, outcomes).verdict is Verdict.FAIL


def quarantined(until: str, case: str = "case-000") -> ConfigChange:
    listed: JsonObject = {"golden": {"quarantine": [{"case": case, "until": until, "reason": "flaky"}]}}
    candidate = replace(CANDIDATE, document=listed)
    given = cases(300)
    return a_change(a_snapshot(candidate, given), a_snapshot(BASELINE, given))


def test_a_case_in_quarantine_is_asked_and_does_not_count_until_its_day_is_over() -> None:
    held, over = quarantined("2026-11-23"), quarantined("2026-11-22")
    answer = endpoint(worse=ids(0))

    during, after = judged(held, answer), judged(over, answer)

    assert during.measured[0] == "299 of 299, baseline 299"
    assert during.figures["quarantined"] == {"case-000": {"until": "2026-11-23", "score": 0.0}}
    assert after.measured[0] == "299 of 300, baseline 300"
    assert "in quarantine, asked and not counted: case-000 (until 2026-11-23)" in during.reasons
    assert "the quarantine of case-000 is over: they count again" in after.reasons


def test_a_quarantine_of_no_case_is_told() -> None:
    result = judged(quarantined("2026-12-31", "case-00"), endpoint())

    assert result.verdict is Verdict.PASS
    assert result.reasons == ("the quarantine names case-00, which no case is called: it sets nothing apart",)


def test_what_must_pass_cannot_hide_in_quarantine() -> None:
    change = quarantined("2026-12-31")
    given = [replace(case, must_pass=case.id == "case-000") for case in change.candidate.cases]
    change = replace(change, candidate=replace(change.candidate, cases=tuple(given)))

    assert judged(change, endpoint(worse=ids(0))).verdict is Verdict.FAIL


def tagged(worse: int) -> tuple[ConfigChange, Endpoint]:
    """Forty of 400 cases are tagged `vip`; so many of those get worse, as many of the others better."""
    given = [*cases(360, tags=("other",)), *(a_case(f"vip-{at}", tags=("vip",)) for at in range(40))]
    return a_change_of(given), endpoint(worse=[f"vip-{at}" for at in range(worse)], better=ids(*range(worse)))


def test_a_tag_that_got_worse_is_named_and_blocks_only_where_that_was_declared() -> None:
    change, answer = tagged(10)

    told = judged(change, answer)
    blocked = judged(change, answer, GoldenPolicy(tags=("vip",)))

    assert told.verdict is not Verdict.FAIL
    assert list(told.figures["worse_tags"]) == ["vip"]  # type: ignore[arg-type]  # it is an object
    assert any(reason.startswith("worse where tagged vip") for reason in told.reasons)
    assert blocked.verdict is Verdict.FAIL


def test_tags_that_are_many_are_not_named_by_luck() -> None:
    """Each of 20 tags lost 3 and won 0: alone that would be 6 %, of twenty it says nothing."""
    assert "worse_tags" not in judged(*tagged(3)).figures


# --- Early stop ---------------------------------------------------------------------------------


def test_the_verdict_is_certain_before_all_are_asked_and_the_rest_is_spared() -> None:
    change, context = a_change_of(cases(1000)), a_context()
    order = golden.in_order(change, context)
    by_case = {each.case: each for each in run(change, endpoint(worse=ids(*range(0, 1000, 8))))}
    looks = golden.looks(change, context)

    at = next(
        look for look in looks if golden.is_certain(change, [by_case[c] for c in order[:look]], context)
    )
    spared = [
        replace(by_case[case], found=Found.UNKNOWN, figures={"unanswered": Cause.SPARED.value})
        for case in order[at:]
    ]
    result = judge(change, [by_case[""], *(by_case[case] for case in order[:at]), *spared])
    whole = judge(change, list(by_case.values()))

    assert at < 200
    assert result.verdict is whole.verdict is Verdict.FAIL
    assert result.measured[-1] == whole.measured[-1] == f"certain after {at} of 1,000 cases"
    assert result.unknown == 0


def test_what_was_spared_without_being_certain_is_not_known() -> None:
    change, context = a_change_of(cases(600)), a_context()
    order = golden.in_order(change, context)
    outcomes = {each.case: each for each in run(change, endpoint())}
    for case in order[40:]:
        outcomes[case] = replace(
            outcomes[case], found=Found.UNKNOWN, reasons=("spared",), figures={"unanswered": "spared"}
        )

    result = judge(change, list(outcomes.values()))

    assert result.verdict is Verdict.INCONCLUSIVE


def test_early_stop_has_one_switch_and_leaves_few_cases_alone() -> None:
    many, few = a_change_of(cases(600)), a_change_of(cases(400))
    off = a_context(Policy(golden=GoldenPolicy(early_stop=False)))

    assert golden.in_order(many, a_context())
    assert golden.in_order(many, off) == golden.in_order(few, a_context()) == ()


def test_the_power_is_told_before_the_run() -> None:
    line = golden.power(a_change_of(cases(400)), a_context())
    flaky = golden.power(a_change_of(cases(400)), a_context(history=swinging("case-001")))
    given = [replace(each, cluster=f"{at // 2}") for at, each in enumerate(cases(400))]
    in_pairs = golden.power(a_change_of(given), a_context())
    given = [replace(each, weight=10.0 if at % 4 else 1.0) for at, each in enumerate(cases(400))]
    uneven = golden.power(a_change_of(given), a_context())
    apart = golden.power(a_change_of([*cases(1), *cases(400, must_pass=True)[1:]]), a_context())

    assert line == "deploy-gates: ticket-triage: 400 cases can see a loss of 2.8 pt"
    assert in_pairs == "deploy-gates: ticket-triage: 400 cases in 200 clusters can see a loss of 3.4 pt"
    assert uneven == "deploy-gates: ticket-triage: 400 cases can see a loss of 3.1 pt"
    assert apart == "deploy-gates: ticket-triage: 1 case can see no loss at all"
    assert "400 cases × 1 samples" in flaky
    assert flaky.endswith("; flaky: case-001")
