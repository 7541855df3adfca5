"""Facts about models: declared first, then ours, then those of genai-prices; and prices, never guessed."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib import resources
from importlib.metadata import version

import pytest

from deploy_gates import catalog
from deploy_gates.core.cost import Price, Usage
from deploy_gates.core.policy import DeclaredModel, Policy
from deploy_gates.core.question import Api
from deploy_gates.tokens import ENCODINGS

TODAY = date(2026, 11, 23)
NOTHING_DECLARED = Policy()
MILLION = 1_000_000


def facts(model: str, policy: Policy = NOTHING_DECLARED, on: date = TODAY) -> catalog.ModelFacts:
    found = catalog.facts(model, policy, on)
    assert found is not None, model
    return found


def price(model: str, on: date = TODAY, **kind: str | bool) -> Price:
    found = catalog.price(model, NOTHING_DECLARED, on, **kind)  # type: ignore[arg-type]  # by keyword
    assert found is not None, model
    return found


# --- Facts --------------------------------------------------------------------------------------


def test_a_dated_snapshot_has_the_facts_of_its_family() -> None:
    snapshot, family = facts("gpt-4.1-mini-2025-04-14"), facts("gpt-4.1-mini")

    assert (snapshot.context_window, snapshot.max_output_tokens) == (1_047_576, 32_768)
    assert snapshot.features == family.features
    assert snapshot.encoding_is_exact


def test_a_fine_tuned_model_has_the_facts_of_what_it_was_tuned_from() -> None:
    tuned = facts("ft:gpt-4o-mini-2024-07-18:acme:triage:A1b2")

    assert tuned.name == "ft:gpt-4o-mini-2024-07-18:acme:triage:A1b2"
    assert tuned.features == facts("gpt-4o-mini").features
    assert tuned.retires_on == date(2027, 1, 14)


@pytest.mark.parametrize(
    "model",
    ["gpt-4.1-mini-2025-04-15", "gpt-4.1-minni", "our-7b", "", "gpt-4-9999", "gpt-oss-20b-2026-01-01"],
)
def test_what_nobody_knows_is_unknown(model: str) -> None:
    assert catalog.facts(model, NOTHING_DECLARED, TODAY) is None
    assert catalog.price(model, NOTHING_DECLARED, TODAY) is None


RETIREMENTS = [
    ("gpt-4-32k", date(2025, 6, 6)),
    ("gpt-3.5-turbo-0613", date(2024, 9, 13)),
    ("text-davinci-003", date(2024, 1, 4)),
    ("gpt-4-vision-preview", date(2024, 12, 6)),
    ("gpt-4.5-preview", date(2025, 7, 14)),
    ("o1-preview", date(2025, 7, 28)),
    ("o1-mini", date(2025, 10, 27)),
    ("gpt-4-0314", date(2026, 3, 26)),
    ("chatgpt-4o-latest", date(2026, 2, 17)),
    ("gpt-4.1-nano", date(2026, 10, 23)),
    ("gpt-4o-mini-2024-07-18", date(2027, 1, 14)),
]


@pytest.mark.parametrize(("model", "day"), RETIREMENTS)
def test_a_model_is_retired_from_its_shutdown_on_and_says_what_to_use(model: str, day: date) -> None:
    before = facts(model, on=date.fromordinal(day.toordinal() - 1))
    on_the_day = facts(model, on=datetime(day.year, day.month, day.day, tzinfo=UTC))

    assert (before.retires_on, before.retired, before.deprecated) == (day, False, True)
    assert on_the_day.retired
    assert not facts(on_the_day.replacement).deprecated


def test_a_family_whose_snapshots_all_end_is_deprecated_without_a_day_of_its_own() -> None:
    family = facts("gpt-4.1-mini")

    assert (family.deprecated, family.retires_on, family.replacement) == (True, None, "gpt-6-luna")


def test_what_the_team_declares_wins_field_by_field() -> None:
    declared = DeclaredModel(context_window=8_192, features=frozenset({"tools"}), encoding="cl100k_base")
    policy = Policy(models={"gpt-4.1-mini": declared})

    found = facts("gpt-4.1-mini", policy)

    assert (found.context_window, found.max_output_tokens) == (8_192, 32_768)
    assert found.features == {"tools"}
    assert (found.encoding, found.encoding_is_exact) == ("cl100k_base", False)
    assert found.source.startswith("declared in pyproject.toml and catalog of ")


def test_declaring_what_the_catalog_says_leaves_counts_exact() -> None:
    policy = Policy(models={"gpt-4.1-mini": DeclaredModel(encoding="o200k_base")})

    assert facts("gpt-4.1-mini", policy).encoding_is_exact


def test_a_model_that_only_the_team_knows_has_what_it_declares_and_no_more() -> None:
    policy = Policy(models={"smollm2": DeclaredModel(context_window=8_192)})

    found = facts("smollm2", policy)

    assert (found.context_window, found.features, found.max_output_tokens) == (8_192, None, None)
    assert (found.encoding, found.encoding_is_exact) == ("o200k_base", False)
    assert found.source == "declared in pyproject.toml"


def test_a_model_of_another_provider_is_known_as_far_as_genai_prices_knows_it() -> None:
    found = facts("claude-sonnet-4-5")

    assert found.context_window == 200_000
    assert found.features is None
    assert not found.encoding_is_exact
    assert found.source == f"genai-prices {version('genai-prices')}, anthropic claude-sonnet-4-5"


@pytest.mark.parametrize(
    ("model", "has", "lacks"),
    [
        ("gpt-4.1-mini", "structured_output", "reasoning_effort"),
        ("gpt-4o-2024-05-13", "json_mode", "structured_output"),
        ("gpt-5-mini", "verbosity", "temperature"),
        ("gpt-5-mini", "parallel_tools", "stop"),
        ("gpt-5.4-mini", "temperature", "max_tokens"),
        ("o3", "tools", "parallel_tools"),
    ],
)
def test_features_say_what_a_model_has_and_lacks(model: str, has: str, lacks: str) -> None:
    found = facts(model).features

    assert found is not None
    assert has in found
    assert lacks not in found


def test_a_feature_that_works_only_sometimes_says_when() -> None:
    assert facts("gpt-5.4-mini").conditions["temperature"] == "only with reasoning_effort none"
    assert facts("gpt-4.1-mini").conditions == {}


def test_a_model_that_one_api_serves_says_which() -> None:
    assert facts("gpt-5-pro").apis == (Api.RESPONSES,)
    assert facts("gpt-4.1-mini").apis == (Api.CHAT, Api.RESPONSES)


def test_a_misspelled_model_is_answered_with_near_ones_that_still_work() -> None:
    assert catalog.suggest("gpt-4.1-minni", NOTHING_DECLARED)[0] == "gpt-4.1-mini"
    assert catalog.suggest("gpt-4.1-mini-2025-04-15", NOTHING_DECLARED)[0] == "gpt-4.1-mini-2025-04-14"
    assert "gpt-6-luna" in catalog.suggest("gpt6-luna", NOTHING_DECLARED)
    assert catalog.suggest("our-7", Policy(models={"our-7b": DeclaredModel()})) == ("our-7b",)
    assert catalog.suggest("xyzzy", NOTHING_DECLARED) == ()


def test_our_own_file_keeps_its_shape() -> None:
    text = resources.files("deploy_gates").joinpath("data/models.json").read_text(encoding="utf-8")
    data = json.loads(text)
    entry_keys = {
        "snapshots", "context_window", "max_output_tokens", "features", "conditions", "efforts", "apis",
        "encoding", "deprecated", "retires_on", "snapshots_retire_on", "replacement",
    }  # fmt: skip

    assert date.fromisoformat(data["checked"]) <= TODAY
    for name, entry in data["models"].items():
        features = entry["features"]
        listed = data["features"][features] if isinstance(features, str) else features or []
        assert set(entry) <= entry_keys, name
        assert set(listed) <= set(catalog.FEATURES), name
        assert set(entry.get("conditions", {})) <= set(listed), name
        assert entry.get("encoding") in {None, "", *ENCODINGS}, name
        assert isinstance(entry["context_window"], int | None), name
        assert isinstance(entry.get("max_output_tokens"), int | None), name
        for key in ("retires_on", "snapshots_retire_on"):
            assert key not in entry or date.fromisoformat(entry[key]), name
        assert ("efforts" in entry) <= (entry["features"] is None or "reasoning_effort" in listed), name
        assert not entry.get("replacement") or entry["replacement"] in data["models"], name


# --- Prices -------------------------------------------------------------------------------------


def test_a_price_says_where_it_is_from_and_when_somebody_looked() -> None:
    found = price("gpt-4.1-mini")

    assert (found.input_usd, found.cached_input_usd, found.output_usd) == (
        Decimal("0.4"),
        Decimal("0.1"),
        Decimal("1.6"),
    )
    assert found.source == f"genai-prices {version('genai-prices')}, openai gpt-4.1-mini, checked 2026-10-14"


def test_a_declared_price_wins_and_needs_no_library() -> None:
    script = (
        "import sys\n"
        "from datetime import date\n"
        "from decimal import Decimal\n"
        "from deploy_gates import catalog\n"
        "from deploy_gates.core.cost import Price\n"
        "from deploy_gates.core.policy import DeclaredModel, Policy\n"
        "price = Price(input_usd=Decimal(1), output_usd=Decimal(2), source='declared')\n"
        "policy = Policy(models={'our-7b': DeclaredModel(price=price, context_window=8)})\n"
        "assert catalog.price('our-7b', policy, date(2026, 11, 23), service_tier='flex') == price\n"
        "assert catalog.facts('our-7b', policy, date(2026, 11, 23))\n"
        "assert catalog.facts('gpt-4.1-mini', policy, date(2026, 11, 23))\n"
        "print('genai_prices' in sys.modules, 'pydantic' in sys.modules)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False False"


TIERS = [
    ("", False, "5.25"),
    ("auto", False, "5.25"),
    ("default", False, "5.25"),
    ("flex", False, "2.625"),
    ("priority", False, "10.5"),
    ("", True, "2.625"),
]


@pytest.mark.parametrize(("service_tier", "batch", "usd"), TIERS)
def test_a_service_tier_has_its_own_price(service_tier: str, batch: bool, usd: str) -> None:
    found = price("gpt-5.4-mini", service_tier=service_tier, batch=batch)

    assert found.cost_nanousd(Usage(input_tokens=MILLION, output_tokens=MILLION)) == Decimal(usd) * 10**9


@pytest.mark.parametrize(
    ("model", "service_tier", "day"),
    [
        ("gpt-5.4-mini", "flexx", TODAY),
        ("gpt-5.4-mini", "scale", TODAY),
        ("gpt-4.1-mini", "flex", TODAY),
        ("gpt-5.4-mini", "flex", date(2026, 10, 11)),
    ],
)
def test_a_tier_without_a_known_price_has_none_rather_than_the_standard_one(
    model: str, service_tier: str, day: date
) -> None:
    assert catalog.price(model, NOTHING_DECLARED, day, service_tier=service_tier) is None


def test_cached_input_is_cheaper_where_the_provider_says_so() -> None:
    usage = Usage(input_tokens=MILLION, output_tokens=0, cached_input_tokens=900_000)

    assert price("gpt-5.4-mini").cost_nanousd(usage) == Decimal("0.1425") * 10**9


def test_a_prompt_above_the_long_context_mark_is_billed_by_its_tier() -> None:
    found = price("gpt-6-luna")

    short = found.cost_nanousd(Usage(input_tokens=272_000, output_tokens=MILLION))
    long = found.cost_nanousd(Usage(input_tokens=272_001, output_tokens=MILLION))

    assert short == 27_200_000 + 500_000_000
    assert long == 54_400_200 + 750_000_000


def test_a_price_is_that_of_the_day() -> None:
    assert price("gpt-5.6-luna", date(2026, 7, 29)).input_usd == 1
    assert price("gpt-5.6-luna", datetime(2026, 7, 30, 12, tzinfo=UTC)).input_usd == Decimal("0.2")


def test_the_endpoint_decides_whose_price_it_is() -> None:
    groq = price("openai/gpt-oss-20b", base_url="https://api.groq.com/openai/v1")
    elsewhere = price("gpt-4.1-mini", base_url="http://llm.internal:8080/v1")

    assert ", groq " in groq.source
    assert ", openai gpt-4.1-mini" in elsewhere.source


def test_every_model_that_still_answers_has_a_price() -> None:
    data = json.loads(
        resources.files("deploy_gates").joinpath("data/models.json").read_text(encoding="utf-8")
    )
    alive = [name for name in data["models"] if not facts(name).retired]

    without = [name for name in alive if catalog.price(name, NOTHING_DECLARED, TODAY) is None]

    assert without == []
    assert len(alive) > 20
