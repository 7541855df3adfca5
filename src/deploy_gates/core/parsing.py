"""A config document, past its JSON Schema, as a value."""

from __future__ import annotations

from collections.abc import Mapping

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import (
    ENVIRONMENTS,
    Comparison,
    Environment,
    Limits,
    Message,
    ModelConfig,
    Output,
    Profile,
    Traffic,
)
from deploy_gates.core.cost import nanousd
from deploy_gates.core.question import Api


def config(document: Json, name: str, lines: Mapping[str, int] | None = None) -> ModelConfig:
    """The document as a value. `ValueError` where it is not what the schema of configs demands."""
    raw = object_(document)
    environments = object_(raw.get("environments", {}))
    return ModelConfig(
        name=name,
        document=raw,
        model=str(_member(raw, "model")),
        api=Api(str(raw.get("api", Api.CHAT.value))),
        messages=tuple(_message(object_(each)) for each in list_(_member(raw, "messages"))),
        inputs=object_(
            raw.get("inputs", {"type": "object", "properties": {}, "additionalProperties": False})
        ),
        parameters=object_(raw.get("parameters", {})),
        output=_output(raw["output"], name) if "output" in raw else None,
        tools=tuple(object_(each) for each in list_(raw.get("tools", []))),
        consumers=tuple(str(each) for each in list_(raw.get("consumers", []))),
        comparison=comparison(object_(raw.get("golden", {})), Comparison()),
        limits=_limits(object_(raw.get("limits", {}))),
        traffic=_traffic(object_(raw.get("traffic", {}))),
        environments=tuple(
            _environment(each, object_(environments[each])) for each in ENVIRONMENTS if each in environments
        ),
        lines=lines or {},
    )


def comparison(raw: JsonObject, default: Comparison) -> Comparison:
    """How answers are compared: what `raw` says, and `default` for the rest."""
    digits = raw.get("significant_digits", default.significant_digits)
    return Comparison(
        exclude_paths=tuple(str(each) for each in list_(raw["exclude_paths"]))
        if "exclude_paths" in raw
        else default.exclude_paths,
        ignore_order=bool(raw.get("ignore_order", default.ignore_order)),
        significant_digits=digits if isinstance(digits, int) else None,
        ignore_string_case=bool(raw.get("ignore_string_case", default.ignore_string_case)),
    )


def object_(value: Json) -> JsonObject:
    """The value, which has to be an object."""
    if not isinstance(value, dict):
        raise ValueError(f"{str(value)[:100]!r} stands where an object belongs")
    return value


def list_(value: Json) -> list[Json]:
    """The value, which has to be a list."""
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:100]!r} stands where a list belongs")
    return value


def number(value: Json) -> float:
    """The value, which has to be a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{str(value)[:100]!r} stands where a number belongs")
    return float(value)


def _member(raw: JsonObject, key: str) -> Json:
    if key not in raw:
        raise ValueError(f"the config has no `{key}`")
    return raw[key]


def _message(raw: JsonObject) -> Message:
    return Message(
        role=str(_member(raw, "role")),
        content=_member(raw, "content"),
        name=str(raw.get("name", "")),
        extra={key: raw[key] for key in ("tool_calls", "tool_call_id") if key in raw},
    )


def _output(raw: Json, name: str) -> Output:
    declared = object_(raw)
    return Output(
        name=str(declared.get("name", name.replace("-", "_"))),
        schema=object_(_member(declared, "schema")),
        strict=bool(declared.get("strict", True)),
        allow_breaking=tuple(str(each) for each in list_(declared.get("allow_breaking", []))),
    )


def _limits(raw: JsonObject) -> Limits:
    return Limits(
        context_window=_integer(raw.get("context_window")),
        cost_per_request_nanousd=_money(raw.get("cost_per_request")),
        monthly_budget_nanousd=_money(raw.get("monthly_budget")),
    )


def _traffic(raw: JsonObject) -> Traffic:
    return Traffic(
        requests_per_month=_integer(raw.get("requests_per_month")),
        input_tokens=_profile(raw.get("input_tokens")),
        output_tokens=_profile(raw.get("output_tokens")),
        cached_input_share=number(raw.get("cached_input_share", 0)),
    )


def _profile(raw: Json) -> Profile | None:
    if not isinstance(raw, dict):
        return None
    return Profile(p50=int(number(_member(raw, "p50"))), p95=int(number(_member(raw, "p95"))))


def _environment(name: str, raw: JsonObject) -> Environment:
    default = Environment(name=name)
    return Environment(
        name=name,
        base_url=str(raw.get("base_url", default.base_url)),
        api_key_env=str(raw.get("api_key_env", default.api_key_env)),
        timeout_s=number(raw.get("timeout_s", default.timeout_s)),
    )


def _integer(value: Json) -> int | None:
    return int(value) if isinstance(value, int | float) else None


def _money(value: Json) -> int | None:
    return None if value is None else nanousd(str(value))
