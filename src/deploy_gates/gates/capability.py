"""Whether the protocol knows each parameter of a config, and the model can do what the config asks of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta

from deploy_gates import catalog, documents
from deploy_gates.catalog import ModelFacts
from deploy_gates.core.canonical import Json
from deploy_gates.core.config import ModelConfig
from deploy_gates.core.policy import Policy
from deploy_gates.core.question import PROTOCOLS, Api
from deploy_gates.gates.findings import Findings

NOTICE = timedelta(days=30)
"""A model that goes away sooner is not worth a promotion."""

_BOTH = (
    "temperature", "top_p", "stream", "stream_options", "top_logprobs", "tool_choice", "parallel_tool_calls",
    "service_tier", "store", "metadata", "user", "safety_identifier", "moderation",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
)  # fmt: skip
PARAMETERS: dict[Api, frozenset[str]] = {
    Api.CHAT: frozenset(_BOTH) | {
        "max_completion_tokens", "max_tokens", "n", "seed", "stop", "logprobs", "logit_bias",
        "frequency_penalty", "presence_penalty", "reasoning_effort", "verbosity",
        "modalities", "audio", "prediction", "web_search_options",
    },
    Api.RESPONSES: frozenset(_BOTH) | {
        "max_output_tokens", "max_tool_calls", "reasoning", "truncation", "include", "instructions",
        "access_programs", "background", "background_options", "context_management", "conversation",
        "image", "previous_response_id", "prompt",
    },
}  # fmt: skip
"""What each protocol takes besides model, messages, output, and tools."""

INSTEAD: dict[tuple[Api, str], str] = {
    (Api.CHAT, "max_output_tokens"): "write `max_completion_tokens`",
    (Api.CHAT, "reasoning"): "write `reasoning_effort`",
    (Api.CHAT, "instructions"): "write a message of the role `developer`",
    (Api.CHAT, "functions"): "declare `tools`",
    (Api.CHAT, "function_call"): "write `tool_choice`",
    (Api.RESPONSES, "max_completion_tokens"): "write `max_output_tokens`",
    (Api.RESPONSES, "max_tokens"): "write `max_output_tokens`",
    (Api.RESPONSES, "reasoning_effort"): "write `reasoning: {effort: …}`",
    (Api.RESPONSES, "logprobs"): "write `top_logprobs`",
}
"""What the other protocol, or an older one, calls otherwise."""


def parameters(findings: Findings, config: ModelConfig) -> None:
    """The protocol knows each parameter, and they go together."""
    known = PARAMETERS[config.api]
    other = next(api for api in PROTOCOLS if api is not config.api)
    for name in config.parameters:
        key = f"parameters.{name}"
        if name in known:
            continue
        if (instead := INSTEAD.get((config.api, name))) is not None:
            findings.miss(f"is not known to {config.api}", key=key, hint=instead)
        elif name in PARAMETERS[other]:
            findings.miss(
                f"is a parameter of {other}, and the config speaks {config.api}", key=key, hint="remove it"
            )
        elif (hint := documents.nearest(name, sorted(known))) or not _is_served_elsewhere(config):
            findings.miss(f"is not known to {config.api}", key=key, hint=hint or "remove it")
        else:
            findings.note("is no parameter of OpenAI's; only the endpoint knows it", key=key)
    given = config.parameters
    if "max_tokens" in given and "max_completion_tokens" in given:
        findings.miss(
            "stands beside `max_completion_tokens`", key="parameters.max_tokens", hint="keep one of the two"
        )
    if config.api is Api.CHAT and given.get("top_logprobs") is not None and given.get("logprobs") is not True:
        findings.miss("needs `logprobs: true` beside it", key="parameters.top_logprobs")
    if "stream_options" in given and given.get("stream") is not True:
        findings.miss("needs `stream: true` beside it", key="parameters.stream_options")
    if "tool_choice" in given and not config.tools:
        findings.miss("chooses a tool, and the config has none", key="parameters.tool_choice")


def _is_served_elsewhere(config: ModelConfig) -> bool:
    """Whether no environment is OpenAI's own endpoint, which refuses what it does not know."""
    urls = [each.base_url for each in config.environments]
    return bool(urls) and all(url and "api.openai.com" not in url for url in urls)


# --- The model ----------------------------------------------------------------------------------


def model(findings: Findings, config: ModelConfig, policy: Policy, on: date) -> None:
    """The model is known, stays for a while, and can do what is asked of it."""
    facts = catalog.facts(config.model, policy, on)
    if facts is None:
        near = " or ".join(f"`{each}`" for each in catalog.suggest(config.model, policy))
        declare = f'declare it under `[tool.deploy_gates.models."{config.model}"]`'
        findings.miss(
            f"is {config.model}, which nobody knows",
            key="model",
            hint=f"did you mean {near}? Otherwise {declare}" if near else declare,
        )
        return
    _lifetime(findings, facts, on)
    _bounds(findings, config, facts)
    if config.api not in facts.apis:
        served = ", ".join(facts.apis)
        findings.miss(f"is {config.api}, and {facts.name} is served by {served} only", key="api")
    _features(findings, config, facts)


def _lifetime(findings: Findings, facts: ModelFacts, on: date) -> None:
    instead = f"change to `{facts.replacement}`" if facts.replacement else "change to another model"
    if facts.retired:
        findings.miss(f"is {facts.name}, which is gone since {facts.retires_on}", key="model", hint=instead)
    elif facts.retires_on is not None and facts.retires_on - on <= NOTICE:
        days = (facts.retires_on - on).days
        findings.miss(
            f"is {facts.name}, which goes away on {facts.retires_on}, in {days} days",
            key="model",
            hint=instead,
        )
    elif facts.deprecated:
        when = f" and goes away on {facts.retires_on}" if facts.retires_on else ""
        findings.note(f"is {facts.name}, which is deprecated{when}", key="model", hint=instead)


def _bounds(findings: Findings, config: ModelConfig, facts: ModelFacts) -> None:
    window, longest = config.limits.context_window, config.max_output_tokens
    if window is not None and facts.context_window is not None and window > facts.context_window:
        findings.miss(
            f"is {window:,}, and {facts.name} takes {facts.context_window:,} tokens",
            key="limits.context_window",
        )
    if longest is not None and facts.max_output_tokens is not None and longest > facts.max_output_tokens:
        names = ("max_completion_tokens", "max_output_tokens", "max_tokens")
        name = next(each for each in names if config.parameters.get(each) == longest)
        findings.miss(
            f"is {longest:,}, and {facts.name} answers with at most {facts.max_output_tokens:,} tokens",
            key=f"parameters.{name}",
        )


# --- Features -----------------------------------------------------------------------------------


def _effort(config: ModelConfig) -> str:
    """How hard the model is told to think; empty where nothing is said."""
    reasoning = config.parameters.get("reasoning")
    nested = reasoning.get("effort") if isinstance(reasoning, dict) else None
    return str(config.parameters.get("reasoning_effort") or nested or "")


def _holds_image(content: Json) -> bool:
    if isinstance(content, list):
        return any(map(_holds_image, content))
    return isinstance(content, dict) and content.get("type") in ("image_url", "input_image")


def _given(name: str, *neutral: Json) -> Callable[[ModelConfig], bool]:
    """Whether the parameter is there and says something."""
    return lambda config: config.parameters.get(name) not in (None, *neutral)


USES: dict[str, tuple[tuple[str, Callable[[ModelConfig], bool]], ...]] = {
    "structured_output": (("output", lambda config: config.output is not None),),
    "tools": (("tools", lambda config: bool(config.tools)),),
    "parallel_tools": (("parameters.parallel_tool_calls", _given("parallel_tool_calls", False)),),
    "streaming": (("parameters.stream", _given("stream", False)),),
    "vision": (("messages", lambda config: any(_holds_image(each.content) for each in config.messages)),),
    "temperature": (("parameters.temperature", _given("temperature", 1)),),
    "top_p": (("parameters.top_p", _given("top_p", 1)),),
    "penalties": (
        ("parameters.frequency_penalty", _given("frequency_penalty", 0)),
        ("parameters.presence_penalty", _given("presence_penalty", 0)),
    ),
    "stop": (("parameters.stop", _given("stop")),),
    "seed": (("parameters.seed", _given("seed")),),
    "logprobs": (
        ("parameters.logprobs", _given("logprobs", False)),
        ("parameters.top_logprobs", _given("top_logprobs", 0)),
    ),
    "logit_bias": (("parameters.logit_bias", _given("logit_bias")),),
    "max_tokens": (("parameters.max_tokens", _given("max_tokens")),),
    "reasoning_effort": (
        ("parameters.reasoning_effort", _given("reasoning_effort")),
        ("parameters.reasoning", lambda config: bool(_effort(config)) and "reasoning" in config.parameters),
    ),
    "verbosity": (("parameters.verbosity", _given("verbosity")),),
}
"""By what a config asks a feature of its model, and where it says so. No config can ask for `json_mode`."""


def _features(findings: Findings, config: ModelConfig, facts: ModelFacts) -> None:
    used = {
        feature: [key for key, is_used in ways if is_used(config)]
        for feature, ways in USES.items()
        if any(is_used(config) for _, is_used in ways)
    }
    if facts.features is None:
        if used:
            declare = f'`[tool.deploy_gates.models."{facts.name}"]`: `features = {json.dumps(list(used))}`'
            findings.doubt(
                f"is {facts.name}, and nobody knows whether it has what this config uses",
                key="model",
                hint=f"if it has, say so under {declare}",
            )
        return
    for feature, keys in used.items():
        for key in keys:
            if feature not in facts.features:
                findings.miss(
                    f"needs a model that {catalog.FEATURES[feature]}, and {facts.name} is none",
                    key=key,
                    hint="remove it, or change the model",
                )
            elif condition := facts.conditions.get(feature):
                _conditional(findings, config, facts, key, condition)
    effort = _effort(config)
    if effort and facts.efforts and effort not in facts.efforts and "reasoning_effort" in facts.features:
        key = used["reasoning_effort"][0]
        findings.miss(f"is {effort}, and {facts.name} takes {', '.join(facts.efforts)}", key=key)


def _conditional(
    findings: Findings, config: ModelConfig, facts: ModelFacts, key: str, condition: str
) -> None:
    """A feature that a model has only while it does not reason: broken where the config has it reason."""
    if condition.startswith("through ") and not condition.startswith(f"through {config.api} "):
        return
    effort = _effort(config)
    is_about_reasoning = "reasoning_effort none" in condition or "while the model reasons" in condition
    said = f"is taken by {facts.name} not always: {condition}"
    if is_about_reasoning and effort not in ("", "none"):
        findings.miss(said, key=key, hint=f"`reasoning_effort` is {effort}: remove one of the two")
    elif not is_about_reasoning or not effort:
        findings.note(said, key=key)
