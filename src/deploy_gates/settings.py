"""`[tool.deploy_gates]` in pyproject.toml, parsed once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

from deploy_gates import documents
from deploy_gates.core.canary import Better, Inconclusive, Kind, Metric, Plan, checked, declared_metric
from deploy_gates.core.canonical import Json, JsonObject, digest
from deploy_gates.core.cost import Price
from deploy_gates.core.errors import Problem, SettingsError
from deploy_gates.core.freezing import Window
from deploy_gates.core.gate import GateName
from deploy_gates.core.policy import CostPolicy, DeclaredModel, GoldenPolicy, Policy
from deploy_gates.core.tally import Unit
from deploy_gates.documents import Document

FILE = "pyproject.toml"
NUMBER_MAX = 10**15
"""Larger than anything that is settled, and exact as a float."""
POLICY_KEYS = ("optional", "type", "unit", "integration", "golden", "cost", "models")
"""What decides a verdict; the rest only says where things lie."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipping:
    """How a release travels to production."""

    weight_bp: int = 500
    """The share of production that a canary gets, in basis points."""
    smoke: bool = True
    hold_s: float = 3600.0
    """How long a canary that a person is to decide may stay."""
    low_traffic: bool = False
    """Whether a canary may begin that is not able to see its own margins."""
    approvals: Mapping[str, int] = field(default_factory=dict)
    """How many people have to approve, by environment."""
    freezes: tuple[Window, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a team has settled for its repository."""

    policy: Policy = field(default_factory=Policy)
    configs: tuple[str, ...] = ("golden/*/config.yaml",)
    store: str = ""
    """A database URL; empty: the default of the store."""
    default_branch: str = ""
    gate_all: bool = False
    environment: str = "development"
    testpaths: tuple[str, ...] = ()
    budget_usd: Decimal = Decimal("2.00")
    in_flight: int = 64
    mapped: Mapping[GateName, tuple[str, ...]] | None = None
    """Which test files belong to a gate without a mark."""
    key_file: str = ""
    key_env: str = ""
    public_keys: tuple[str, ...] = ()
    canary: Plan = field(default_factory=Plan)
    prometheus: Mapping[str, Json] = field(default_factory=dict)
    """Where the tallies of a canary come from if not from clients; empty: from clients."""
    canary_table: JsonObject = field(default_factory=dict)
    """The table `[tool.deploy_gates.canary]` as written: what a promotion keeps, to be read anywhere."""
    ship: Shipping = field(default_factory=Shipping)
    notify: Mapping[str, Json] = field(default_factory=dict)
    """Who is told of promotions: the table as it is, for `notify.Telling`; empty: nobody."""


def load(root: Path) -> Settings:
    """The settings of the repository at `root`; defaults where there are none. `SettingsError` otherwise."""
    path = root / FILE
    if not path.exists():
        return parse("")
    text, problem = documents.read(path, FILE, documents.CONFIG_MAX_BYTES)
    if problem is not None:
        raise SettingsError(str(problem))
    return parse(text)


def parse(text: str) -> Settings:
    """The settings in the text of a pyproject.toml, with every problem named at once."""
    try:
        toml = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise SettingsError(f"{FILE} is not TOML: {error}") from error
    raw = toml.get("tool", {}).get("deploy_gates", {})
    document = Document(file=FILE, value=raw, lines=_lines(text))
    problems = tuple(_no_numbers(raw, (), document))
    problems = problems or documents.validate(document, "settings", prefix="tool.deploy_gates.")
    if problems:
        raise SettingsError("\n".join(str(each) for each in problems))
    return _settings(raw, document)


def _no_numbers(value: Json, path: tuple[str | int, ...], document: Document) -> Iterator[Problem]:
    """What TOML takes for a number and no schema can see through: nan is neither too small nor too large."""
    if isinstance(value, dict | list):
        for part, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _no_numbers(each, (*path, part), document)
    elif isinstance(value, int | float) and not abs(value) <= NUMBER_MAX:
        key = documents.join(path)
        said = f"is {value}" if isinstance(value, float) else "is too large"
        yield Problem(
            message=f"{said}, and must be a finite number of at most {NUMBER_MAX:.0e}",
            file=FILE,
            line=document.line(key),
            key=f"tool.deploy_gates.{key}",
        )


def _lines(text: str) -> dict[str, int]:
    """On which line each key of [tool.deploy_gates] stands; tomllib does not say."""
    lines: dict[str, int] = {}
    counted: dict[str, int] = {}
    table: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]", line):
            name = re.sub(r"[\"']|\s", "", header[2])
            inside = name == "tool.deploy_gates" or name.startswith("tool.deploy_gates.")
            table = name.removeprefix("tool.deploy_gates").removeprefix(".") if inside else None
            if table is not None:
                lines.setdefault(table, number)
                table = _counted(table, counted, is_next=header[1] == "[[")
                lines.setdefault(table, number)
        elif table is not None and (key := re.match(r"\s*([\w.\"'-]+)\s*=", line)):
            name = re.sub(r"[\"']", "", key[1])
            lines.setdefault(f"{table}.{name}" if table else name, number)
    return lines


def _counted(table: str, counted: dict[str, int], *, is_next: bool) -> str:
    """The name of a table with the places of those it is in: `ship.freezes[1]` for the second of them."""
    if is_next:
        counted[table] = counted.get(table, -1) + 1
    parts = table.split(".")
    for size in range(len(parts), 0, -1):
        if (place := counted.get(".".join(parts[:size]))) is not None:
            parts[size - 1] += f"[{place}]"
    return ".".join(parts)


def _settings(raw: Mapping[str, Json], document: Document) -> Settings:
    evidence = _table(raw, "evidence")
    default = Settings()
    return Settings(
        policy=_policy(raw),
        configs=_strings(raw, "configs") or default.configs,
        store=str(raw.get("store", "")),
        default_branch=str(raw.get("default_branch", "")),
        gate_all=bool(raw.get("gate_all", False)),
        environment=str(raw.get("environment", default.environment)),
        testpaths=_strings(raw, "testpaths"),
        budget_usd=Decimal(str(raw.get("budget_usd", default.budget_usd))),
        in_flight=_int(raw, "in_flight") or default.in_flight,
        mapped={
            gate: _strings(_table(raw, gate.value), "paths")
            for gate in (GateName.UNIT, GateName.INTEGRATION)
            if gate.value in raw
        },
        key_file=str(evidence.get("key_file", "")),
        key_env=str(evidence.get("key_env", "")),
        public_keys=_strings(evidence, "public_keys"),
        canary=canary_plan(_table(raw, "canary")),
        prometheus=_table(_table(raw, "canary"), "prometheus"),
        canary_table=_jsonable_table(_table(raw, "canary")),
        ship=_shipping(_table(raw, "ship"), document),
        notify=_table(raw, "notify"),
    )


def _policy(raw: Mapping[str, Json]) -> Policy:
    golden, cost, typed = _table(raw, "golden"), _table(raw, "cost"), _table(raw, "type")
    models = _table(raw, "models")
    default = Policy()
    return Policy(
        golden=GoldenPolicy(
            margin_pt=_float(golden, "margin_pt", default.golden.margin_pt),
            confidence=_float(golden, "confidence", default.golden.confidence),
            min_cases=_int(golden, "min_cases") or default.golden.min_cases,
            min_pass_rate=_float(golden, "min_pass_rate", default.golden.min_pass_rate),
            samples=_int(golden, "samples") or default.golden.samples,
            unstable_samples=_int(golden, "unstable_samples") or default.golden.unstable_samples,
            baseline_samples=_int(golden, "baseline_samples") or 0,
            early_stop=bool(golden.get("early_stop", default.golden.early_stop)),
            tags=_strings(golden, "tags"),
        ),
        cost=CostPolicy(max_increase_pct=_float(cost, "max_increase_pct", default.cost.max_increase_pct)),
        optional=frozenset(GateName(each) for each in _strings(raw, "optional")),
        type_command=str(typed.get("command", "")),
        type_command_timeout_s=_float(typed, "timeout_s", default.type_command_timeout_s),
        models={name: _model(_table(models, name)) for name in models},
        digest=digest({key: _jsonable(raw[key]) for key in POLICY_KEYS if key in raw}),
    )


def canary_plan(raw: Mapping[str, Json]) -> Plan:
    """The plan that the table `[tool.deploy_gates.canary]` declares, past its schema. `SettingsError`."""
    default = Plan()
    metrics = _table(raw, "metrics")
    declared = {name: _table(metrics, name) for name in metrics}
    known = {each.name: each for each in default.metrics}
    return checked(
        Plan(
            false_rollback=_float(raw, "false_rollback", default.false_rollback),
            false_promotion=_float(raw, "false_promotion", default.false_promotion),
            unit=Unit(str(raw.get("unit", default.unit))),
            confidence=_float(raw, "confidence", default.confidence),
            mark_s=_float(raw, "mark_s", default.mark_s),
            warm_up_s=_float(raw, "warm_up_s", default.warm_up_s),
            missing_limit_s=_float(raw, "missing_limit_s", default.missing_limit_s),
            extensions=int(_float(raw, "extensions", default.extensions)),
            limit_errors=int(_float(raw, "limit_errors", default.limit_errors)),
            limit_requests=int(_float(raw, "limit_requests", default.limit_requests)),
            on_inconclusive=Inconclusive(str(raw.get("on_inconclusive", default.on_inconclusive))),
            then=Inconclusive(str(raw.get("then", default.then))),
            metrics=(
                *(_metric(each, declared.get(name, {})) for name, each in known.items()),
                *(
                    _metric(_kind_of(name, each), each)
                    for name, each in declared.items()
                    if name not in known
                ),
            ),
        )
    )


def _kind_of(name: str, raw: Mapping[str, Json]) -> Metric:
    if "kind" not in raw:
        raise SettingsError(
            f"{FILE}: tool.deploy_gates.canary.metrics.{name} does not say its `kind`: share or amount"
        )
    return declared_metric(name, Kind(str(raw["kind"])))


def _metric(known: Metric, raw: Mapping[str, Json]) -> Metric:
    if "kind" in raw and Kind(str(raw["kind"])) is not known.kind:
        raise SettingsError(f"{FILE}: the metric {known.name} is of kind {known.kind.value}, always")
    ratio, points = raw.get("margin_ratio"), raw.get("margin_pt")
    return replace(
        known,
        better=Better(str(raw.get("better", known.better))),
        margin_ratio=_float(raw, "margin_ratio", 0.0) if ratio else None if points else known.margin_ratio,
        margin_pt=_float(raw, "margin_pt", 0.0) if points else None if ratio else known.margin_pt,
        tail_ratio=_float(raw, "tail_ratio", known.tail_ratio),
        rollback_ratio=_float(raw, "rollback_ratio", known.rollback_ratio),
        weight=_float(raw, "weight", known.weight),
        dry_run=bool(raw.get("dry_run", known.dry_run)),
    )


def _shipping(raw: Mapping[str, Json], document: Document) -> Shipping:
    default = Shipping()
    weight = _float(raw, "weight", default.weight_bp / 100) * 100
    if abs(weight - round(weight)) > 1e-6 or not 1 <= round(weight) < 10_000:
        raise SettingsError(f"{FILE}: tool.deploy_gates.ship.weight goes in steps of 0.01 percent")
    freezes = raw.get("freezes", [])
    assert isinstance(freezes, list), freezes
    return Shipping(
        weight_bp=round(weight),
        smoke=bool(raw.get("smoke", default.smoke)),
        hold_s=_float(raw, "hold_s", default.hold_s),
        low_traffic=bool(raw.get("low_traffic", default.low_traffic)),
        approvals={name: int(str(count)) for name, count in _table(raw, "approvals").items()},
        freezes=tuple(_window(each, f"ship.freezes[{at}]", document) for at, each in enumerate(freezes)),
    )


def _window(raw: Json, place: str, document: Document) -> Window:
    assert isinstance(raw, dict), raw
    environment, reason = str(raw.get("environment", "production")), str(raw.get("reason", ""))
    if "weekly" not in raw:
        since, until = (_moment(str(raw[key]), f"{place}.{key}", document) for key in ("since", "until"))
        if since >= until:
            raise _wrong("ends before it begins", place, document)
        return Window(environment=environment, since=since, until=until, reason=reason)
    weekday, clock = str(raw["weekly"]).split(" ")
    timezone = str(raw.get("timezone", "UTC"))
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        said = f"{timezone!r} is not known; for example Europe/Berlin"
        raise _wrong(said, f"{place}.timezone", document) from error
    return Window(
        environment=environment,
        weekday=weekday,
        hour=int(clock[:2]),
        minute=int(clock[3:]),
        hours=_float(raw, "hours", 0.0),
        timezone=timezone,
        reason=reason,
    )


def _moment(text: str, key: str, document: Document) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise _wrong(f"{text!r} is no time: 2026-12-20T00:00:00Z", key, document) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _wrong(message: str, key: str, document: Document) -> SettingsError:
    """What the schema cannot see."""
    line = document.line(key)
    return SettingsError(str(Problem(message=message, file=FILE, line=line, key=f"tool.deploy_gates.{key}")))


def _model(raw: Mapping[str, Json]) -> DeclaredModel:
    price = None
    if "input_usd_per_mtok" in raw:
        cached = raw.get("cached_input_usd_per_mtok")
        price = Price(
            input_usd=Decimal(str(raw["input_usd_per_mtok"])),
            output_usd=Decimal(str(raw["output_usd_per_mtok"])),
            cached_input_usd=None if cached is None else Decimal(str(cached)),
            source="declared in pyproject.toml",
        )
    return DeclaredModel(
        price=price,
        context_window=_int(raw, "context_window"),
        max_output_tokens=_int(raw, "max_output_tokens"),
        encoding=str(raw.get("encoding", "")),
        features=frozenset(_strings(raw, "features")) if "features" in raw else None,
        served_as=_strings(raw, "served_as"),
    )


# The schema has checked every type below.


def _table(raw: Mapping[str, Json], key: str) -> JsonObject:
    value = raw.get(key, {})
    assert isinstance(value, dict), value
    return value


def _strings(raw: Mapping[str, Json], key: str) -> tuple[str, ...]:
    value = raw.get(key, [])
    assert isinstance(value, list), value
    return tuple(str(each) for each in value)


def _int(raw: Mapping[str, Json], key: str) -> int | None:
    value = raw.get(key)
    assert value is None or isinstance(value, int), value
    return value


def _float(raw: Mapping[str, Json], key: str, default: float) -> float:
    value = raw.get(key, default)
    assert isinstance(value, int | float), value
    return float(value)


def _jsonable_table(raw: Mapping[str, Json]) -> JsonObject:
    return {key: _jsonable(each) for key, each in raw.items()}


def _jsonable(value: object) -> Json:
    """TOML as JSON: the schema has left no dates and no times in it."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_jsonable(each) for each in value]
    assert value is None or isinstance(value, bool | int | float | str), value
    return value
