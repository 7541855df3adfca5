"""What usage costs, exactly, and how people read it."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_gates.core.cost import Price, Tier, Usage, dollars, nanousd

MINI = Price(input_usd=Decimal("0.40"), output_usd=Decimal("1.60"), cached_input_usd=Decimal("0.10"))
LONG = Price(input_usd=Decimal("0.80"), output_usd=Decimal("2.40"), cached_input_usd=Decimal("0.20"))
HUGE = Price(input_usd=Decimal(2), output_usd=Decimal(4))
TIERED = Price(
    input_usd=Decimal("0.40"),
    output_usd=Decimal("1.60"),
    tiers=(Tier(above_input_tokens=1_000, price=LONG), Tier(above_input_tokens=2_000, price=HUGE)),
)
USAGES = st.builds(
    lambda fresh, cached, output: Usage(
        input_tokens=fresh + cached, cached_input_tokens=cached, output_tokens=output
    ),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)

COSTS = [
    (MINI, Usage(input_tokens=0, output_tokens=0), 0),
    (MINI, Usage(input_tokens=1_000_000, output_tokens=0), 400_000_000),
    (MINI, Usage(input_tokens=0, output_tokens=1_000_000), 1_600_000_000),
    (
        MINI,
        Usage(input_tokens=100, output_tokens=20, cached_input_tokens=60),
        40 * 400 + 60 * 100 + 20 * 1600,
    ),
    (MINI, Usage(input_tokens=0, output_tokens=20, reasoning_tokens=15), 20 * 1600),
    (HUGE, Usage(input_tokens=100, output_tokens=0, cached_input_tokens=60), 100 * 2000),
    (Price(input_usd=Decimal("0.0001"), output_usd=Decimal(0)), Usage(input_tokens=1, output_tokens=0), 1),
    (TIERED, Usage(input_tokens=1_000, output_tokens=1), 1_000 * 400 + 1600),
    (TIERED, Usage(input_tokens=1_001, output_tokens=1), 1_001 * 800 + 2400),
    (TIERED, Usage(input_tokens=2_001, output_tokens=1), 2_001 * 2000 + 4000),
]


@pytest.mark.parametrize(("price", "usage", "expected"), COSTS)
def test_usage_costs_what_the_price_says(price: Price, usage: Usage, expected: int) -> None:
    assert price.cost_nanousd(usage) == expected


@given(USAGES, USAGES)
def test_two_requests_cost_as_much_as_both_together_but_for_one_rounding(one: Usage, other: Usage) -> None:
    apart = MINI.cost_nanousd(one) + MINI.cost_nanousd(other)

    assert 0 <= apart - MINI.cost_nanousd(one + other) <= 1


@given(USAGES)
def test_reasoning_is_part_of_the_output_and_costs_nothing_on_top(usage: Usage) -> None:
    thought = Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        reasoning_tokens=usage.output_tokens,
    )

    assert MINI.cost_nanousd(thought) == MINI.cost_nanousd(usage)


def test_usages_add_up_in_every_field() -> None:
    one = Usage(input_tokens=1, output_tokens=2, cached_input_tokens=3, reasoning_tokens=4)
    other = Usage(input_tokens=10, output_tokens=20, cached_input_tokens=30, reasoning_tokens=40)

    both = one + other

    assert both == Usage(input_tokens=11, output_tokens=22, cached_input_tokens=33, reasoning_tokens=44)


@pytest.mark.parametrize(
    ("usd", "expected"), [("1", 10**9), ("0.0000000001", 1), (2, 2 * 10**9), (Decimal("0.01"), 10_000_000)]
)
def test_dollars_become_nano_dollars_rounded_up(usd: str | int | Decimal, expected: int) -> None:
    assert nanousd(usd) == expected


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "$0"),
        (770_000_000, "$0.77"),
        (640_000, "$0.00064"),
        (1_000_000_000, "$1.00"),
        (1_234_567_000_000, "$1,234.57"),
        (50_000_000, "$0.050"),
        (77, "$0.000000077"),
    ],
)
def test_people_read_cents_from_one_dollar_on_and_below_it_two_digits_that_count(
    amount: int, shown: str
) -> None:
    assert dollars(amount) == shown
