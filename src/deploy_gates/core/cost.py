"""Tokens and what they cost, in nano-dollars."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation

from deploy_gates.core.canonical import Json, JsonObject

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""
PER_MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a call used. Cached tokens are part of the input, reasoning tokens part of the output."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cached_input_tokens=self.cached_input_tokens + other.cached_input_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """Dollars per million tokens, and where the figures are from."""

    input_usd: Decimal
    output_usd: Decimal
    cached_input_usd: Decimal | None = None
    """`None`: cached input costs what input costs."""
    source: str = ""
    tiers: tuple[Tier, ...] = ()
    """What longer prompts cost, the shortest first."""

    def of(self, input_tokens: int) -> Price:
        """The price of a request with a prompt of that length: all of it is billed by its tier."""
        return next(
            (tier.price for tier in reversed(self.tiers) if input_tokens > tier.above_input_tokens), self
        )

    def cost_nanousd(self, usage: Usage) -> int:
        """What one request that used `usage` costs, in nano-dollars, rounded up once."""
        price = self.of(usage.input_tokens)
        cached_usd = price.input_usd if price.cached_input_usd is None else price.cached_input_usd
        fresh = usage.input_tokens - usage.cached_input_tokens
        usd = (
            price.input_usd * fresh
            + cached_usd * usage.cached_input_tokens
            + price.output_usd * usage.output_tokens
        ) / PER_MILLION
        return int((usd * NANO).to_integral_value(rounding=ROUND_CEILING))

    def to_json(self) -> JsonObject:
        made: JsonObject = {"input_usd": str(self.input_usd), "output_usd": str(self.output_usd)}
        if self.cached_input_usd is not None:
            made["cached_input_usd"] = str(self.cached_input_usd)
        if self.tiers:
            made["tiers"] = [
                {"above_input_tokens": tier.above_input_tokens, "price": tier.price.to_json()}
                for tier in self.tiers
            ]
        return made | {"source": self.source}

    @classmethod
    def from_json(cls, value: Json) -> Price:
        """The price written so. `ValueError` for anything else."""
        try:
            if not isinstance(value, dict):
                raise KeyError("price")
            cached = value.get("cached_input_usd")
            tiers = value.get("tiers", [])
            if not isinstance(tiers, list):
                raise KeyError("tiers")
            return cls(
                input_usd=Decimal(str(value["input_usd"])),
                output_usd=Decimal(str(value["output_usd"])),
                cached_input_usd=None if cached is None else Decimal(str(cached)),
                source=str(value.get("source", "")),
                tiers=tuple(Tier.from_json(each) for each in tiers),
            )
        except (KeyError, InvalidOperation) as error:
            raise ValueError("this is no price: dollars per million tokens, as text") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """The price of prompts above a length."""

    above_input_tokens: int
    price: Price

    @classmethod
    def from_json(cls, value: Json) -> Tier:
        """The tier written so. `ValueError` for anything else."""
        if not isinstance(value, dict) or not isinstance(above := value.get("above_input_tokens"), int):
            raise ValueError("this is no tier of a price")
        return cls(above_input_tokens=above, price=Price.from_json(value.get("price")))


def nanousd(usd: Decimal | str | int) -> int:
    """Dollars as nano-dollars, rounded up."""
    return int((Decimal(usd) * NANO).to_integral_value(rounding=ROUND_CEILING))


def dollars(amount_nanousd: int) -> str:
    """Nano-dollars as people read them: cents from one dollar on, below it two digits that count."""
    usd = Decimal(amount_nanousd) / NANO
    if usd == 0:
        return "$0"
    if abs(usd) >= 1:
        return f"${usd:,.2f}"
    places = max(2, -usd.adjusted() + 1)
    return f"${usd:.{places}f}"
