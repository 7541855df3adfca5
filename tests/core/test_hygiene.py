"""A golden set tells what is wrong with it, and says nothing of one that is in order."""

from __future__ import annotations

import random

import pytest

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import Case
from deploy_gates.core.hygiene import Flaw, Kind, flaws
from deploy_gates.core.past import Past, Scored
from deploy_gates.testing import a_case

WORDS = [f"word{at}" for at in range(400)]


def texts(n: int, seed: int, words: list[str] = WORDS, length: int = 12) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(words, k=length)) for _ in range(n)]


def cases(given: list[str], expected: Json = None) -> list[Case]:
    labels = ("refund", "billing", "technical")
    return [
        a_case(
            f"case-{at:03}",
            inputs={"body": text},
            expected=expected or {"category": labels[at % len(labels)]},
        )
        for at, text in enumerate(given)
    ]


def kinds(found: tuple[Flaw, ...]) -> list[Kind]:
    return [each.kind for each in found]


def test_a_set_in_order_has_no_flaws() -> None:
    assert flaws(cases(texts(200, 1)), {}, [{"body": each} for each in texts(100, 2)]) == ()


def test_the_same_inputs_twice_are_told_and_are_wrong_where_they_contradict() -> None:
    twin = texts(1, 3)[0]
    alike = [
        a_case("a", inputs={"body": twin}, expected={"category": "refund"}),
        a_case("b", inputs={"body": twin}, expected={"category": "refund"}),
    ]
    against = [*alike, a_case("c", inputs={"body": twin}, expected={"category": "billing"})]
    together = [a_case(name, inputs={"body": twin}, cluster="one") for name in "ab"]

    assert kinds(flaws(alike)) == [Kind.DUPLICATE]
    (contradiction,) = flaws(against)
    assert contradiction.is_error
    assert contradiction.cases == ("a", "b", "c")
    assert flaws(together) == ()


def test_texts_that_are_nearly_the_same_are_found_unless_they_are_one_cluster() -> None:
    given = texts(300, 4, length=40)
    given[7] = given[200].replace(given[200].split()[0], "other", 1)

    (found,) = flaws(cases(given))
    clustered = [
        a_case(f"{at}", inputs={"body": text}, cluster="same" if at in (7, 200) else "")
        for at, text in enumerate(given)
    ]

    assert (found.kind, set(found.cases)) == (Kind.NEAR_DUPLICATE, {"case-007", "case-200"})
    assert Kind.NEAR_DUPLICATE not in kinds(flaws(clustered))


def test_labels_that_nearly_all_or_hardly_any_cases_have_are_told() -> None:
    given = texts(100, 5)
    lopsided = [
        a_case(f"{at}", inputs={"body": text}, expected={"category": "refund" if at < 97 else "billing"})
        for at, text in enumerate(given)
    ]

    told = [each.message for each in flaws(lopsided)]

    assert told == [
        "`category` is refund in 97 of 100 cases: the others hardly count",
        "`category` is billing in fewer than 5 cases each",
    ]


def test_a_set_that_nothing_ever_fails_is_told() -> None:
    given = cases(texts(50, 6))
    always = Past(scored=tuple(Scored(key=f"{at}", asked_at=f"{at:02}", score=1) for at in range(10)))
    once = Past(scored=(*always.scored[1:], Scored(key="x", asked_at="99", score=0)))

    easy = flaws(given, {case.id: always for case in given})
    mixed = flaws(given, {case.id: once if at % 3 == 0 else always for at, case in enumerate(given)})

    assert kinds(easy) == [Kind.NEVER_MISSED]
    assert mixed == ()


@pytest.mark.parametrize(("new", "drifts"), [(0, False), (10, False), (60, True), (100, True)])
def test_production_that_asks_something_else_is_drift(new: int, drifts: bool) -> None:
    """So many of 100 samples are about things that no case is about."""
    foreign = texts(new, 7, words=[f"other{at}" for at in range(400)])
    production: list[JsonObject] = [{"body": each} for each in [*texts(100 - new, 8), *foreign]]

    found = flaws(cases(texts(200, 1)), {}, production)

    assert (Kind.DRIFT in kinds(found)) is drifts


def test_production_that_is_far_longer_is_drift() -> None:
    production: list[JsonObject] = [{"body": each} for each in texts(100, 9, length=60)]

    found = flaws(cases(texts(200, 1)), {}, production)

    assert any("words in the middle" in each.message for each in found)
