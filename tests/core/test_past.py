"""What a case did before says whether it is flaky; what is compared has no say in it."""

from __future__ import annotations

import pytest

from deploy_gates.core.past import KEPT_MAX, Past, Scored, merged, short


def answers(*scores: float, key: str = "a") -> tuple[Scored, ...]:
    return tuple(
        Scored(key=key, asked_at=f"2026-11-01T00:00:{at:02}Z", score=score) for at, score in enumerate(scores)
    )


def across(*scores: float) -> tuple[Scored, ...]:
    """One answer each of as many configs."""
    return tuple(
        Scored(key=f"k{at}", asked_at=f"2026-11-01T00:00:{at:02}Z", score=score)
        for at, score in enumerate(scores)
    )


@pytest.mark.parametrize(
    ("scored", "is_unstable"),
    [
        ((), False),
        (answers(1), False),
        (answers(1, 1, 1), False),
        (answers(1, 0), True),
        (answers(0.8, 0.4), True),
        (across(1, 0), False),
        (across(1, 1, 0, 0), False),
        (across(1, 0, 1), True),
        ((*answers(1, key="a#1"), *answers(0, key="a")), True),
    ],
)
def test_unequal_answers_to_equal_questions_and_scores_that_go_up_and_down_are_unstable(
    scored: tuple[Scored, ...], is_unstable: bool
) -> None:
    assert Past(scored=scored).is_unstable is is_unstable


def test_an_answer_that_is_compared_does_not_choose_how_often_its_case_is_asked() -> None:
    past = Past(scored=answers(1, 0))

    assert past.is_unstable
    assert not past.without({("a", "2026-11-01T00:00:01Z")}).is_unstable


def test_each_answer_is_remembered_once_and_the_oldest_are_forgotten() -> None:
    before = answers(1, 0, 1)

    assert merged(before, before) == before
    many = tuple(Scored(key=f"{at}", asked_at=f"{at:04}", score=1) for at in range(KEPT_MAX + 10))
    assert merged(many, ()) == many[10:]


def test_keys_are_shortened_with_their_sample() -> None:
    assert short("0123456789abcdef0123") == "0123456789abcdef"
    assert short("0123456789abcdef0123#4") == "0123456789abcdef#4"
