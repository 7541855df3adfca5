"""What is known of models: what they can do, how much they take, what they cost, and when they go away.

What the team declares in `[tool.deploy_gates.models]` wins, field by field. Then comes `data/models.json`,
then the genai-prices package, which knows more models and all prices. It takes a quarter of a second to
import, so it is asked last and only for what is still missing.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from importlib import resources
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

from deploy_gates.core.cost import Price, Tier
from deploy_gates.core.policy import DeclaredModel, Policy
from deploy_gates.core.question import PROTOCOLS, Api

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

FEATURES: dict[str, str] = {
    "structured_output": "keeps to a JSON Schema given as response format",
    "json_mode": "can be told to answer some JSON object",
    "tools": "calls functions",
    "parallel_tools": "calls several functions at once; `parallel_tool_calls`",
    "streaming": "streams its answer",
    "vision": "sees images",
    "temperature": "takes a `temperature` other than 1",
    "top_p": "takes a `top_p` other than 1",
    "penalties": "takes `frequency_penalty` and `presence_penalty`",
    "stop": "takes `stop`",
    "seed": "takes `seed`",
    "logprobs": "takes `logprobs` and `top_logprobs`",
    "logit_bias": "takes `logit_bias`",
    "max_tokens": "takes the old name `max_tokens` for `max_completion_tokens`",
    "reasoning_effort": "takes `reasoning_effort`",
    "verbosity": "takes `verbosity`",
}
"""The words in `ModelFacts.features`, and what they say of a model."""

ASSUMED_ENCODING = "o200k_base"
"""Counted with this where a model's own tokenizer is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What is known of one model; `None` and empty are not known."""

    name: str
    context_window: int | None = None
    max_output_tokens: int | None = None
    features: frozenset[str] | None = None
    """Words of `FEATURES`. `None`: not known; otherwise what is not in it, the model lacks."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """Features that it does not always have, and when: `temperature` → `only with reasoning_effort none`."""
    efforts: tuple[str, ...] = ()
    """Values that its `reasoning_effort` takes."""
    apis: tuple[Api, ...] = PROTOCOLS
    """Through which it is served: both, unless somebody knows better."""
    deprecated: bool = False
    """Its provider has announced its end."""
    retires_on: date | None = None
    """From this day on it answers nothing."""
    retired: bool = False
    """That day has come."""
    replacement: str = ""
    encoding: str = ASSUMED_ENCODING
    encoding_is_exact: bool = False
    source: str = ""
    """Where this is from, for people."""


def facts(model: str, policy: Policy, on: date) -> ModelFacts | None:
    """What is known of `model` on that day; `None` if nobody knows it."""
    declared = policy.models.get(model)
    known = _catalogued(model, on)
    if known is None and (declared is None or declared.context_window is None):
        known = _priced(model)
    if declared is None:
        return known
    base = known or ModelFacts(name=model)
    return ModelFacts(
        name=model,
        context_window=declared.context_window or base.context_window,
        max_output_tokens=declared.max_output_tokens or base.max_output_tokens,
        features=base.features if declared.features is None else declared.features,
        conditions={} if declared.features is not None else base.conditions,
        efforts=base.efforts,
        apis=base.apis,
        deprecated=base.deprecated,
        retires_on=base.retires_on,
        retired=base.retired,
        replacement=base.replacement,
        encoding=declared.encoding or base.encoding,
        encoding_is_exact=base.encoding_is_exact and declared.encoding in ("", base.encoding),
        source=" and ".join(each for each in ("declared in pyproject.toml", base.source) if each),
    )


def suggest(model: str, policy: Policy) -> tuple[str, ...]:
    """Names of known models that come near: those that will go on answering first, then the nearest."""
    dates = {
        f"{name}-{day}": entry for name, entry in _entries().items() for day in entry.get("snapshots") or ()
    }
    known = _entries() | dates
    near = difflib.get_close_matches(model, {*policy.models, *known} - {model}, n=5, cutoff=0.75)
    return tuple(sorted(near, key=lambda name: "retires_on" in known.get(name, {}))[:3])


def price(
    model: str,
    policy: Policy,
    on: date,
    *,
    service_tier: str = "",
    batch: bool = False,
    base_url: str = "",
) -> Price | None:
    """What `model` costs on that day; `None` if nobody knows, also for a service tier without a known price.

    Where longer prompts cost more, the price has a tier for them. What a provider asks for writing its prompt
    cache is not in it: no protocol reports those tokens.
    """
    declared: DeclaredModel | None = policy.models.get(model)
    if declared is not None and declared.price is not None:
        return declared.price
    found = _lookup(model, base_url)
    if found is None:
        return None
    provider, info = found
    moment = on if isinstance(on, datetime) else datetime.combine(on, time(12), tzinfo=UTC)
    wanted = {} if service_tier in ("", "auto", "default") else {"service_tier": service_tier}
    if batch:
        wanted["processing"] = "batch"
    # For a word it does not know, the library would silently answer the standard price.
    for key, value in wanted.items():
        if not any(
            variant.when == {key: value} and (variant.constraint is None or variant.constraint.active(moment))
            for variant in info.price_variants or ()
        ):
            return None
    source = f"genai-prices {version('genai-prices')}, {provider.id} {info.id}"
    if wanted:
        source += f", {' '.join(wanted.values())}"
    if checked := _newest_date(info.price_comments or "", moment.date()):
        source += f", checked {checked}"
    return _from(info.get_prices(moment, wanted), source)


# --- data/models.json ---------------------------------------------------------------------------


Entry: TypeAlias = "dict[str, Any]"
"""One model of our own file, which a test holds to its shape."""


@functools.cache
def _data() -> dict[str, Any]:
    text = resources.files("deploy_gates").joinpath("data/models.json").read_text(encoding="utf-8")
    made: dict[str, Any] = json.loads(text)
    return made


def _entries() -> dict[str, Entry]:
    entries: dict[str, Entry] = _data()["models"]
    return entries


def _entry(model: str) -> tuple[Entry, str] | None:
    """The entry of a model and the date of the snapshot it names: `gpt-4.1-mini-2025-04-14`."""
    entries = _entries()
    name = model.removeprefix("ft:").partition(":")[0] if model.startswith("ft:") else model
    if name in entries:
        return entries[name], ""
    dated = re.fullmatch(r"(.+?)-(\d{4}-\d{2}-\d{2}|\d{4})", name)
    entry = entries.get(dated[1]) if dated else None
    if dated is None or entry is None:
        return None
    snapshots = entry.get("snapshots", ())
    return (entry, dated[2]) if snapshots is None or dated[2] in snapshots else None


def _catalogued(model: str, on: date) -> ModelFacts | None:
    found = _entry(model)
    if found is None:
        return None
    entry, snapshot = found
    features = entry.get("features")
    if isinstance(features, str):
        features = _data()["features"][features]
    retires = entry.get("retires_on") or (entry.get("snapshots_retire_on") if snapshot else None)
    retires_on = date.fromisoformat(retires) if retires else None
    day = on.date() if isinstance(on, datetime) else on
    return ModelFacts(
        name=model,
        context_window=entry.get("context_window"),
        max_output_tokens=entry.get("max_output_tokens"),
        features=None if features is None else frozenset(features),
        conditions=entry.get("conditions", {}),
        efforts=tuple(entry.get("efforts", ())),
        apis=tuple(map(Api, entry.get("apis", PROTOCOLS))),
        deprecated=bool(retires_on or entry.get("deprecated")),
        retires_on=retires_on,
        retired=retires_on is not None and retires_on <= day,
        replacement=entry.get("replacement", ""),
        encoding=entry.get("encoding") or ASSUMED_ENCODING,
        encoding_is_exact=bool(entry.get("encoding")),
        source=f"catalog of {_data()['checked']}",
    )


# --- genai-prices -------------------------------------------------------------------------------


def _lookup(model: str, base_url: str = "") -> tuple[Provider, ModelInfo] | None:
    """The model as genai-prices knows it: of the provider at `base_url`, or of the one its name points to."""
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    provider = "openai" if _entry(model) else None
    for place in [(None, base_url)] * bool(base_url) + [(provider, None)]:
        try:
            return snapshot.find_provider_model(model, None, *place)
        except LookupError:
            continue
    return None


def _priced(model: str) -> ModelFacts | None:
    found = _lookup(model)
    if found is None:
        return None
    provider, info = found
    return ModelFacts(
        name=model,
        context_window=info.context_window,
        deprecated=bool(info.deprecated),
        source=f"genai-prices {version('genai-prices')}, {provider.id} {info.id}",
    )


def _from(prices: ModelPrice, source: str) -> Price | None:
    """Their price as ours; `None` where it is not by the token."""
    given = (prices.input_mtok, prices.output_mtok, prices.cache_read_mtok)
    base = _at(given, 0, source)
    if base is None:
        return None
    starts = sorted({tier.start for each in given for tier in getattr(each, "tiers", ())})
    tiers = [
        Tier(above_input_tokens=start, price=at)
        for start in starts
        if (at := _at(given, start + 1, f"{source}, above {start:,} input tokens"))
    ]
    return Price(
        input_usd=base.input_usd,
        output_usd=base.output_usd,
        cached_input_usd=base.cached_input_usd,
        source=source,
        tiers=tuple(tiers),
    )


def _at(given: tuple[Decimal | TieredPrices | None, ...], input_tokens: int, source: str) -> Price | None:
    input_usd, output_usd, cached_usd = (_amount(each, input_tokens) for each in given)
    if input_usd is None or output_usd is None:
        return None
    return Price(input_usd=input_usd, output_usd=output_usd, cached_input_usd=cached_usd, source=source)


def _amount(given: Decimal | TieredPrices | None, input_tokens: int) -> Decimal | None:
    if given is None or isinstance(given, Decimal):
        return given
    return next((tier.price for tier in reversed(given.tiers) if input_tokens > tier.start), given.base)


def _newest_date(text: str, until: date) -> str:
    """The newest date that a comment on prices mentions, up to that day: when somebody last looked."""
    return max(
        (each for each in re.findall(r"\b\d{4}-\d\d-\d\d\b", text) if each <= until.isoformat()), default=""
    )
