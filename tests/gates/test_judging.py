"""Checks that ask again: one judge for both arms, either order of two answers, and what people say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import CaseCheck, ConfigChange, Kind, ModelConfig
from deploy_gates.core.errors import Cause, Unanswered
from deploy_gates.core.gate import Found, Outcome
from deploy_gates.core.question import Answer, Api, Question
from deploy_gates.gates import golden, judging
from deploy_gates.gates.matching import cannot_fail
from deploy_gates.testing import (
    a_case,
    a_change,
    a_config,
    a_context,
    a_snapshot,
    an_answer,
    run_check,
)

JUDGE: JsonObject = {"model": "gpt-judge"}
Judge = Callable[[Question], Answer | Unanswered]


def config(judge: JsonObject | None = None, model: str = "gpt-4.1-mini", **golden_: Json) -> ModelConfig:
    document: JsonObject = {"model": model, "golden": {"judge": judge or JUDGE, **golden_}}
    return a_config(document=document, model=model, output=None)


def change(check: CaseCheck, candidate: ModelConfig | None = None, **case: object) -> ConfigChange:
    given = [a_case("refund", **({"expects": False, "checks": (check,)} | case))]
    own = candidate or config()
    return a_change(a_snapshot(own, given), a_snapshot(config({"model": "other"}, "gpt-4.1-nano"), given))


def asked(
    of: ConfigChange, judge: Judge, said: str = "Sorry, you get it back."
) -> tuple[list[Question], Outcome]:
    questions: list[Question] = []

    def answer(question: Question) -> Answer | Unanswered:
        questions.append(question)
        if question.model == "gpt-judge" or question.api is Api.EMBEDDINGS:
            return judge(question)
        return an_answer(said if question.model == "gpt-4.1-mini" else "No.")

    check = next(each for each in golden.checks(of, a_context(live=True)) if each.case)
    return questions, run_check(check, answer)


def rubric(**spec: Json) -> CaseCheck:
    return CaseCheck(kind=Kind.JUDGE, spec={"rubric": "It is polite.", **spec})


def polite(question: Question) -> Answer:
    """Likes what says sorry."""
    score = 1.0 if "Sorry" in json.dumps(question.body) else 0.2
    return an_answer({"reason": "the tone", "score": score})


def test_one_judge_judges_both_arms_by_a_rubric() -> None:
    questions, outcome = asked(change(rubric()), polite)

    judged = [each for each in questions if each.model == "gpt-judge"]
    assert len(judged) == 2
    assert all("It is polite." in json.dumps(each.body) for each in judged)
    assert (outcome.figures["score"], outcome.figures["baseline_score"]) == (1.0, 0.2)
    assert outcome.found is Found.MET


def test_a_score_counts_as_it_is_or_by_the_least_that_is_wanted() -> None:
    halfway: Judge = lambda question: an_answer({"reason": "so so", "score": 0.6})  # noqa: E731

    _, graded = asked(change(rubric()), halfway)
    _, enough = asked(change(rubric(min=0.5)), halfway)
    _, short = asked(change(rubric(min=0.7)), halfway)

    assert [each.figures["score"] for each in (graded, enough, short)] == [0.6, 1.0, 0.0]
    assert graded.reasons == ("judge: expected It is polite., got so so",)


def test_votes_are_samples_of_their_own_and_their_mean_counts() -> None:
    def torn(question: Question) -> Answer:
        return an_answer({"reason": "", "score": question.sample % 2})

    questions, outcome = asked(change(rubric(), config({"model": "gpt-judge", "votes": 4})), torn)

    keys = [each.key for each in questions if each.model == "gpt-judge"]
    assert len(keys) == len(set(keys)) == 8
    assert outcome.figures["score"] == 0.5


def pairwise(choose: Callable[[str, str], str]) -> Judge:
    def judge(question: Question) -> Answer:
        text = str(question.body["messages"][1]["content"])  # type: ignore[index,call-overload]  # it is a chat
        first, second = text.partition("First answer:")[2].split("Second answer:")
        return an_answer({"reason": "", "better": choose(first, second)})

    return judge


@pytest.mark.parametrize(
    ("choose", "score"),
    [
        (lambda first, second: "first" if "Sorry" in first else "second", 1.0),
        (lambda first, second: "second" if "Sorry" in first else "first", 0.0),
        (lambda first, second: "first", 0.5),
        (lambda first, second: "same", 0.5),
    ],
    ids=["prefers it", "prefers the other", "follows the order", "sees no difference"],
)
def test_two_answers_are_compared_in_either_order(choose: Callable[[str, str], str], score: float) -> None:
    check = CaseCheck(kind=Kind.JUDGE, spec={"mode": "pairwise", "reference": "You may keep it."})

    questions, outcome = asked(change(check), pairwise(choose))

    assert outcome.figures["score"] == score
    assert sum(each.model == "gpt-judge" for each in questions) == 4


def test_a_judge_is_not_asked_about_what_is_missed_anyway() -> None:
    wrong = CaseCheck(kind=Kind.CONTAINS, spec={"value": "voucher"})

    questions, outcome = asked(change(rubric(), checks=(wrong, rubric())), polite)

    assert [each.model for each in questions] == ["gpt-4.1-nano", "gpt-4.1-mini"]
    assert outcome.found is Found.MISSED


@pytest.mark.parametrize(
    "said",
    [
        an_answer("not JSON"),
        an_answer({"reason": "no score"}),
        an_answer({"reason": "", "score": 7}),
        an_answer({"reason": "", "score": True}),
        Unanswered(Cause.UNREACHABLE, "nobody there"),
    ],
    ids=["no JSON", "no score", "out of range", "a boolean", "no answer"],
)
def test_a_judge_that_gives_no_judgement_is_not_known(said: Answer | Unanswered) -> None:
    _, outcome = asked(change(rubric()), lambda question: said)

    assert outcome.found is Found.UNKNOWN


def test_a_config_without_a_judge_cannot_be_judged() -> None:
    bare = a_config(document={}, output=None)

    _, outcome = asked(change(rubric(), bare), polite)

    assert outcome.found is Found.UNKNOWN
    assert "golden: {judge: judge.yaml}" in outcome.reasons[0]


def test_a_case_that_only_a_judge_decides_can_fail() -> None:
    case = a_case("refund", expects=False, checks=(rubric(),))

    assert cannot_fail(case, config()) == []


# --- Similarity ---------------------------------------------------------------------------------


def test_similarity_asks_the_endpoint_for_both_vectors() -> None:
    check = CaseCheck(kind=Kind.SIMILARITY, spec={"reference": "You get it back.", "min": 0.9})

    def embeds(question: Question) -> Answer:
        return an_answer(json.dumps([1.0, 0.1] if "back" in str(question.body["input"]) else [0.0, 1.0]))

    questions, outcome = asked(change(check, config(embeddings="text-embedding-3-small")), embeds)

    assert {each.model for each in questions if each.api is Api.EMBEDDINGS} == {"text-embedding-3-small"}
    assert (outcome.figures["score"], outcome.figures["baseline_score"]) == (1.0, 0.0)


def test_the_offline_model_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"No.": (0.0, 1.0)}
    monkeypatch.setattr(judging.embedding, "is_installed", lambda: True)
    monkeypatch.setattr(judging.embedding, "embed", lambda text: vectors.get(text, (1.0, 0.0)))
    check = CaseCheck(kind=Kind.SIMILARITY, spec={"reference": "You get it back.", "min": 0.9})

    questions, outcome = asked(change(check), polite)

    assert len(questions) == 2
    assert (outcome.figures["score"], outcome.figures["baseline_score"]) == (1.0, 0.0)


# --- The judge against people -------------------------------------------------------------------


def labelled(*scores: float) -> ConfigChange:
    lines = [
        json.dumps({"rubric": "It is polite.", "answer": "Sorry" if score > 0.5 else "No.", "score": score})
        for score in scores
    ]
    of = change(rubric())
    texts = {f"{of.candidate.folder}/judge.labels.jsonl": "\n".join(lines)}
    return replace(of, candidate=replace(of.candidate, texts=texts))


def test_a_judge_is_compared_with_people_and_the_gap_is_told() -> None:
    of = labelled(1, 1, 1, 0, 0)

    def generous(question: Question) -> Answer:
        return an_answer({"reason": "", "score": 1.0})

    outcomes = [run_check(each, generous) for each in golden.checks(of, a_context(live=True))]
    found = judging.agreement(outcomes)
    result = golden.judge(of, outcomes, a_context())

    assert str(found) == (
        "the judge agrees with people in 3 of 5 answers (at least 27 %, 95 % sure), and finds 100 % good "
        "where they find 60 %"
    )
    assert str(found) in result.reasons
    assert result.figures["judge"] == {
        "labels": 5,
        "agreed": 3,
        "judge_rate": 1.0,
        "people_rate": 0.6,
        "gap": 0.4,
    }


def test_a_judge_that_nobody_compared_with_people_is_said_to_be_so() -> None:
    of = change(rubric())
    outcomes = [run_check(each, polite) for each in golden.checks(of, a_context(live=True))]

    assert any(
        "nobody has compared the judge" in each for each in golden.judge(of, outcomes, a_context()).reasons
    )


def test_a_label_that_is_none_is_not_known() -> None:
    of = labelled(1)
    texts = dict.fromkeys(of.candidate.texts, '{"answer": "x", "score": 3}')
    of = replace(of, candidate=replace(of.candidate, texts=texts))

    outcome = next(run_check(each, polite) for each in golden.checks(of, a_context()) if "/judge/" in each.id)

    assert outcome.found is Found.UNKNOWN
    assert "is no score" in outcome.reasons[0]
