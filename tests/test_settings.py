"""[tool.deploy_gates] is parsed once; what is wrong in it is said with its line."""

from __future__ import annotations

from decimal import Decimal

import pytest

from deploy_gates import settings
from deploy_gates.core.errors import SettingsError
from deploy_gates.core.gate import GateName


def test_without_a_table_the_defaults_hold() -> None:
    settled = settings.parse("[project]\nname = 'x'\n")

    assert settled.configs == ("golden/*/config.yaml",)
    assert settled.policy.golden.margin_pt == 2.0
    assert settled.budget_usd == Decimal("2.00")


def test_everything_that_can_be_settled_arrives() -> None:
    settled = settings.parse(
        """
        [tool.deploy_gates]
        optional = ["integration"]
        budget_usd = "0.50"
        [tool.deploy_gates.golden]
        margin_pt = 4
        [tool.deploy_gates.unit]
        paths = ["tests/unit/*.py"]
        [tool.deploy_gates.models."our-7b"]
        input_usd_per_mtok = "0.10"
        output_usd_per_mtok = 0.2
        context_window = 8192
        """
    )

    assert settled.policy.optional == {GateName.INTEGRATION}
    assert settled.policy.golden.margin_pt == 4.0
    assert settled.mapped == {GateName.UNIT: ("tests/unit/*.py",)}
    model = settled.policy.models["our-7b"]
    assert model.price is not None
    assert (model.price.input_usd, model.price.output_usd) == (Decimal("0.10"), Decimal("0.2"))
    assert model.context_window == 8192


def frozen(*lines: str) -> str:
    """Settings with two freezes, of which the second one says this."""
    table = "[[tool.deploy_gates.ship.freezes]]"
    return "\n".join((table, 'weekly = "sat 08:00"', "hours = 8", "", table, *lines))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[tool.deploy_gates]\nconfgs = []",
            "pyproject.toml:2: `tool.deploy_gates.confgs` is not known here; did you",
        ),
        (
            "[tool.deploy_gates.golden]\nmargin_pt = 0",
            "pyproject.toml:2: `tool.deploy_gates.golden.margin_pt` is 0",
        ),
        (
            "[tool.deploy_gates]\ngolden.confidence = 2",
            "pyproject.toml:2: `tool.deploy_gates.golden.confidence`",
        ),
        ("[tool.deploy_gates]\noptional = ['typo']", "must be one of"),
        ('[tool.deploy_gates.models."x"]\ninput_usd_per_mtok = 1', "`output_usd_per_mtok` is a dependency"),
        ("[tool.deploy_gates\n", "pyproject.toml is not TOML"),
        (
            frozen('weekly = "fri 25:00"', "hours = 64"),
            'pyproject.toml:6: `tool.deploy_gates.ship.freezes[1].weekly` is "fri 25:00", and must look like '
            "`fri 16:00`",
        ),
        (
            frozen('weekly = "fri 16:00"', "hours = 64", 'timezone = "Mars/Base"'),
            "pyproject.toml:8: `tool.deploy_gates.ship.freezes[1].timezone` 'Mars/Base' is not known",
        ),
        (
            frozen('until = "2026-12-20"', 'since = "in ten days"'),
            "pyproject.toml:7: `tool.deploy_gates.ship.freezes[1].since` 'in ten days' is no time",
        ),
        (
            frozen('since = "2026-12-20"', 'until = "never"'),
            "`tool.deploy_gates.ship.freezes[1].until` 'never' is no time: 2026-12-20T00:00:00Z",
        ),
        (
            frozen('since = "2026-12-20"', 'until = "2026-12-19"'),
            "pyproject.toml:5: `tool.deploy_gates.ship.freezes[1]` ends before it begins",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.parse(text)

    assert sentence in str(caught.value)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e400", "1" + "0" * 400])
@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("", "budget_usd"),
        ("", "in_flight"),
        ("golden", "margin_pt"),
        ("golden", "confidence"),
        ("golden", "min_cases"),
        ("cost", "max_increase_pct"),
        ("type", "timeout_s"),
        ("ship", "weight"),
        ("ship", "hold_s"),
        ("canary", "mark_s"),
        ("models.our-7b", "input_usd_per_mtok"),
        ("models.our-7b", "context_window"),
    ],
)
def test_what_is_no_finite_number_is_said_with_its_line(table: str, key: str, number: str) -> None:
    place = f"tool.deploy_gates.{table}".removesuffix(".")

    with pytest.raises(SettingsError) as refused:
        settings.parse(f"[{place}]\n{key} = {number}\n")

    (said,) = str(refused.value).splitlines()
    assert said.startswith("pyproject.toml:2")
    assert f"{place}.{key}" in said


def test_a_number_of_thousands_of_digits_is_no_toml() -> None:
    with pytest.raises(SettingsError, match="is not TOML"):
        settings.parse(f"[tool.deploy_gates]\nin_flight = {'9' * 5_000}\n")


def test_the_policy_digest_changes_with_the_policy_and_with_nothing_else() -> None:
    base = settings.parse("[tool.deploy_gates.golden]\nmargin_pt = 2.5\n").policy.digest
    elsewhere = settings.parse(
        "[tool.deploy_gates]\nin_flight = 8\ngolden = {margin_pt = 2.5}\n"
    ).policy.digest
    looser = settings.parse("[tool.deploy_gates.golden]\nmargin_pt = 9\n").policy.digest

    assert base == elsewhere
    assert base != looser
