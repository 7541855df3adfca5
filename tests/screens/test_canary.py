"""What a canary shows on a terminal, as text files to compare with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import canaries
import pytest

from deploy_gates.core.canary import Action, Aspect, Better, Decision, Kind, Metric, Plan, Word
from deploy_gates.core.planning import Foresight, Sight
from deploy_gates.core.tally import Unit
from deploy_gates.report import canary
from deploy_gates.report.record import Terminal
from deploy_gates.report.text import width

HERE = Path(__file__).parent
DECISIONS: dict[str, Callable[[], Decision]] = {
    "going": canaries.going,
    "rolled-back": canaries.rolled_back,
    "promoted": canaries.promoted,
    "waiting": canaries.waiting,
    "held": canaries.held,
    "many": lambda: canaries.decision(
        [canaries.reading(each.name, plan=MANY, ratio=1.1) for each in MANY.metrics], plan=MANY
    ),
}
MANY = Plan(
    metrics=tuple(
        Metric(
            name=f"a metric with a name that is 長い, \x1b[31mred\x1b[0m and № {at}",
            kind=Kind.AMOUNT,
            margin_ratio=1.2,
            dry_run=at > 14,
        )
        for at in range(16)
    )
)


@pytest.mark.parametrize("name", ["going", "rolled-back", "promoted", "waiting", "held"])
def test_the_picture_is_the_text_in_its_file(name: str) -> None:
    lines = canary.picture(DECISIONS[name](), Terminal())

    assert "\n".join(lines) + "\n" == (HERE / f"canary-{name}.txt").read_text("utf-8")


def test_a_terminal_of_ascii_gets_the_same_picture_in_ascii() -> None:
    lines = canary.picture(canaries.going(), Terminal(width=80, unicode=False), verbose=True)

    assert "\n".join(lines) + "\n" == (HERE / "canary-ascii.txt").read_text("utf-8")


def test_the_table_is_the_text_in_its_file() -> None:
    lines = canary.table(canaries.going(), Terminal())

    assert "\n".join(lines) + "\n" == (HERE / "canary-table.txt").read_text("utf-8")


@pytest.mark.parametrize("name", DECISIONS)
@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("verbose", [True, False])
def test_every_picture_fits_and_shows_no_control_characters(name: str, unicode: bool, verbose: bool) -> None:
    found = DECISIONS[name]()

    for columns in range(80, 141, 4):
        terminal = Terminal(width=columns, unicode=unicode)
        lines = [*canary.picture(found, terminal, verbose=verbose), *canary.table(found, terminal)]
        assert [line for line in lines if width(line) > columns] == []
        assert all(line.isprintable() for line in lines)
        assert unicode or all(line.isascii() for line in lines)


@pytest.mark.parametrize("name", DECISIONS)
def test_color_only_repeats_the_words(name: str) -> None:
    found = DECISIONS[name]()
    plain = canary.picture(found, Terminal())

    colored = canary.picture(found, Terminal(color=True))

    assert [re.sub(r"\x1b\[\d+m", "", line) for line in colored] == plain
    assert colored != plain


@pytest.mark.parametrize(
    ("low", "ratio", "high", "drawn"),
    [
        (0.9, 1.0, 1.1, "      ╎    ├───●─────┤     "),
        (1.3, 1.4, 1.5, "◂──┤  ╎        ┊           "),
        (2.5, 3.0, 4.0, "◂     ╎        ┊           "),
        (0.3, 0.4, 0.5, "      ╎        ┊          ▸"),
        (None, 1.0, None, "◂─────┼────────●──────────▸"),
        (None, None, None, "        no data yet        "),
        (0.0, 1.0, math.inf, "◂─────┼────────●──────────▸"),
    ],
)
def test_a_bar_stands_where_its_ratio_lies_in_margins(
    low: float | None, ratio: float | None, high: float | None, drawn: str
) -> None:
    reading = canaries.reading("cost", low=low, ratio=ratio, high=high)

    bar = canary.bar_of(reading, 1.22, 27)

    assert bar == drawn


@pytest.mark.parametrize("columns", [12, 27, 48])
def test_a_worse_candidate_never_lies_further_right(columns: int) -> None:
    places = [
        canary.bar_of(canaries.reading("cost", low=r, ratio=r, high=r), 1.22, columns).find("●")
        for r in (0.9, 0.95, 1.0, 1.1, 1.22, 1.3)
    ]

    assert places == sorted(places, reverse=True)
    assert len(set(places)) > 3


def test_an_aspect_that_says_worse_than_its_metric_has_a_row_of_its_own() -> None:
    rows = canary.shown(canaries.going())

    assert [(each.metric, each.aspect.value) for each in rows if each.metric == "latency"] == [
        ("latency", "shape"),
        ("latency", "p99"),
    ]


def test_a_look_that_changes_only_numbers_is_no_news() -> None:
    before = replace(canaries.held(), missing=("the candidate got no request for 15 s",))
    now = replace(
        before,
        at_ms=before.at_ms + 5_000,
        missing=("the candidate got no request for 20 s",),
        readings=tuple(replace(each, ratio=1.07) for each in before.readings),
    )

    assert not canary.is_news(before, now)


@pytest.mark.parametrize(
    "now",
    [
        replace(canaries.going(), action=Action.HOLD),
        replace(canaries.going(), marks=1),
        replace(canaries.going(), missing=("nothing is known of cost in both arms",)),
        replace(
            canaries.going(),
            readings=tuple(replace(each, word=Word.HARMFUL) for each in canaries.going().readings),
        ),
    ],
)
def test_what_a_reader_would_want_to_hear_of_is_news(now: Decision) -> None:
    assert canary.is_news(canaries.going(), now)
    assert canary.is_news(None, now)


def test_a_line_says_the_time_the_words_and_the_reason_of_an_end() -> None:
    said = canary.line(canaries.rolled_back())

    assert said == (
        "   3:05  rollback  600 of 12,000 requests; harmful accepted; undecided errors, valid output; "
        "safe latency, cost: accepted is worse, proved 216 to 1; 143 were needed"
    )


def test_what_a_dry_run_says_is_no_news() -> None:
    before = canaries.going()
    now = replace(
        before,
        readings=tuple(replace(e, word=Word.HARMFUL) if e.dry_run else e for e in before.readings),
    )

    assert not canary.is_news(before, now)


def test_a_margin_in_points_is_told_in_points_and_the_way_the_metric_moves() -> None:
    lines = canary.table(canaries.going(), Terminal(width=120))

    [row] = [line for line in lines if "accepted" in line]
    assert "−2.0 pt" in row
    assert canaries.ACCEPTED.better is Better.HIGHER


def foreseen(**fields: object) -> Foresight:
    """A plan that sees too little of some metrics."""
    made: dict[str, object] = {
        "rate_rps": 20.0,
        "share": 0.05,
        "mark_s": 300.0,
        "sights": (
            a_sight("errors", Aspect.RATE, 0.0101, 2.0, 3.6, 1_234),
            a_sight("valid output", Aspect.RATE, 0.0062, 3.0, None, 678, got=270),
            a_sight("latency", Aspect.P95, 0.806, 1.22, 1.24, None, got=270),
            a_sight("cost", Aspect.SHAPE, 0.000592, 1.22, 1.13, 58, got=270),
            a_sight("tokens", Aspect.SHAPE, 412.0, 1.5, 1.06, 92, got=270, dry_run=True),
        ),
        "missing": ("accepted",),
        "share_enough": 0.5,
        "mark_enough_s": 1_190.0,
    }
    return Foresight(**(made | fields))  # type: ignore[arg-type]


def a_sight(
    metric: str,
    aspect: Aspect,
    baseline: float,
    margin: float,
    detectable: float | None,
    needed: int | None,
    *,
    got: int = 300,
    dry_run: bool = False,
) -> Sight:
    return Sight(
        metric=metric,
        aspect=aspect,
        kind=Kind.SHARE if aspect is Aspect.RATE else Kind.AMOUNT,
        baseline=baseline,
        margin_ratio=margin,
        detectable_ratio=detectable,
        needed=needed,
        got=got,
        needed_s=None,
        dry_run=dry_run,
    )


def test_what_a_plan_can_see_is_the_text_in_its_file() -> None:
    lines = canary.sight(foreseen(), canaries.PLAN, Terminal())

    assert "\n".join(lines) + "\n" == (HERE / "canary-sight.txt").read_text("utf-8")


@pytest.mark.parametrize("unicode", [True, False])
def test_what_a_plan_can_see_fits(unicode: bool) -> None:
    short, enough = foreseen(), foreseen(sights=foreseen().sights[3:], missing=())

    for columns in range(80, 141, 4):
        for each in (short, enough):
            lines = canary.sight(each, canaries.PLAN, Terminal(width=columns, unicode=unicode))
            assert [line for line in lines if width(line) > columns] == []
            assert unicode or all(line.isascii() for line in lines)


def test_a_plan_that_sees_all_its_margins_says_so_and_asks_for_nothing() -> None:
    lines = canary.sight(foreseen(sights=foreseen().sights[3:], missing=()), canaries.PLAN, Terminal())

    said = "\n".join(lines)
    assert "ENOUGH" in said
    assert "would help" not in said


def test_where_users_are_the_unit_it_is_users_that_are_counted() -> None:
    found = [
        replace(each, plan=replace(each.plan, unit=Unit.USER))
        for each in (canaries.going(), canaries.promoted())
    ]

    told = [
        text for each in found for text in (canary.line(each), "\n".join(canary.picture(each, Terminal())))
    ]

    assert [each for each in told if "requests" in each or " users" not in each] == []
