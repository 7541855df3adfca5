"""Tokens counted and priced before anything is paid for: against baseline, limits, and budget.

A request's input is what was billed for it, where that is recorded; else it is counted here, and corrected by
what was billed for the others. Its output is as long as its recorded answer, or as the other arm's answer to
the same case, or as the declared profile says, or as the config allows: the first that is known. Cached input
counts as cached only by the share that `traffic` declares, and for both arms alike: how much of a recorded
run was cached says little about production.

The mean over the cases is held to the baseline, for it is what the bill grows by. The worst case, the longest
prompt with the longest answer allowed, is held to `limits.cost_per_request`: no request may cost more.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from deploy_gates import catalog, prompt, tokens
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import Case, ConfigChange, ModelConfig, Profile
from deploy_gates.core.cost import Price, Usage, dollars
from deploy_gates.core.errors import Problem, PromptError
from deploy_gates.core.gate import Asking, Check, Found, GateName, GateResult, Outcome, Verdict
from deploy_gates.core.policy import Context
from deploy_gates.core.question import Answer, Question
from deploy_gates.tokens import Inputs

LONGEST = "the longest answer allowed"
"""Taken as the length of an answer of which nobody knows more."""


def checks(change: ConfigChange, context: Context) -> Iterator[Check]:
    """What the change will cost: whether anybody knows, per request, and per month."""
    config = change.candidate.config
    if config is None:
        return
    estimate = functools.cache(lambda: _estimate(change, config, context))
    finds: dict[str, Callable[[Check], Outcome]] = {
        "price": lambda check: _price_is_known(check, change, context),
        "request": lambda check: _request(check, estimate(), change, config, context),
        "month": lambda check: _month(check, estimate(), change, config),
    }
    for name, find in finds.items():
        yield _check(f"{change.candidate.config_file}::cost/{name}", change.name, find)


def judge(change: ConfigChange, outcomes: Sequence[Outcome], context: Context) -> GateResult:
    """All must hold. Where the golden cases were answered, the estimate stands beside what they used."""
    own = [each for each in outcomes if each.gate is GateName.COST]
    if not own:
        is_optional = GateName.COST in context.policy.optional
        return GateResult(
            gate=GateName.COST,
            verdict=Verdict.SKIP if is_optional else Verdict.INCONCLUSIVE,
            measured=("no check was executed",),
            reasons=() if is_optional else ("no check was executed",),
        )
    missed = [each for each in own if each.found is Found.MISSED]
    unknown = [each for each in own if each.found is Found.UNKNOWN]
    figures: JsonObject = {each.check.rpartition("cost/")[2]: each.figures for each in own if each.figures}
    lines = [*_request_lines(_object(figures.get("request"))), *_month_lines(_object(figures.get("month")))]
    if (error_pct := _error_pct(change, outcomes, _object(figures.get("request")), context)) is not None:
        figures["estimate_error_pct"] = error_pct
        lines.append((f"estimate {error_pct:.1f} % off actual usage", ""))
    return GateResult(
        gate=GateName.COST,
        verdict=Verdict.FAIL if missed else Verdict.INCONCLUSIVE if unknown else Verdict.PASS,
        measured=tuple(measured for measured, _ in lines) or ("no estimate",),
        required=tuple(required for _, required in lines),
        reasons=tuple(reason for each in missed + unknown for reason in each.reasons or (each.check,)),
        hint=_hint(_object(figures.get("request")), context),
        checks=len(own),
        missed=len(missed),
        unknown=len(unknown),
        figures=figures,
    )


def _check(id: str, config: str, find: Callable[[Check], Outcome]) -> Check:
    def begin() -> Asking:
        yield from ()
        return find(check)

    check = Check(id=id, gate=GateName.COST, config=config, begin=begin)
    return check


# --- Prices -------------------------------------------------------------------------------------


def _price(config: ModelConfig, context: Context) -> Price | None:
    """What production pays for this config's model today."""
    return catalog.price(
        config.model,
        context.policy,
        context.now,
        service_tier=str(config.parameters.get("service_tier", "")),
        base_url=config.environment("production").base_url,
    )


def _price_is_known(check: Check, change: ConfigChange, context: Context) -> Outcome:
    figures: JsonObject = {}
    problems: dict[str, Problem] = {}
    for arm, snapshot in (("candidate", change.candidate), ("baseline", change.baseline)):
        config = snapshot.config if snapshot else None
        if snapshot is None or config is None:
            continue
        price = _price(config, context)
        if price is None:
            problems.setdefault(config.model, _unknown_price(config, snapshot.config_file, arm, context))
            continue
        figures[arm] = {
            "input_usd_per_mtok": str(price.input_usd),
            "output_usd_per_mtok": str(price.output_usd),
            "source": price.source,
        }
    found = Found.MISSED if problems else Found.MET
    return check.outcome(found, *map(str, problems.values()), figures=figures)


def _unknown_price(config: ModelConfig, file: str, arm: str, context: Context) -> Problem:
    tier = config.parameters.get("service_tier")
    near = catalog.suggest(config.model, context.policy) if not tier else ()
    whose = f"the baseline's `{config.model}`" if arm == "baseline" else f"`{config.model}`"
    declare = (
        "declare `input_usd_per_mtok` and `output_usd_per_mtok` in "
        f'[tool.deploy_gates.models."{config.model}"] of pyproject.toml'
    )
    return Problem(
        message=f"is {whose}, and nobody knows what that costs"
        + (f" in service tier `{tier}`" if tier else ""),
        file=file,
        line=config.lines.get("model", 0),
        key="model",
        hint=f"did you mean `{near[0]}`? Else {declare}" if near else declare,
    )


# --- The estimate -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a config asks in one case, and what that takes."""

    input_tokens: int
    used: Usage | None
    """As its recorded answer says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A config, its price, and its requests by case."""

    config: ModelConfig
    price: Price
    output_bound: int
    requests: Mapping[str, Request]


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """How long an answer is: half of the time at most `usual`, in 95 % at most `high`."""

    usual: int
    high: int
    source: str = ""
    """Where this is from; empty where the answer to this very request was recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """What a request costs over the cases, in nano-dollars."""

    mean: int
    p50: int
    p95: int
    worst: int
    """The longest prompt with the longest answer that the config allows."""
    uncached: int
    """All cases once, with nothing cached: what a golden run over them uses."""
    input_tokens: int
    output_tokens: int
    """Both on average."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a request costs in both arms, and what the figures rest on."""

    candidate: Spread
    baseline: Spread | None
    """`None`: there is nothing to compare with."""
    compared_mean: int
    """The candidate's mean over the cases that the baseline renders, too."""
    cases: int
    compared: int
    recorded: int
    """So many of the candidate's answers say what they used."""
    assumed_longest: int
    """Of so many nothing is known, so they are taken to be as long as allowed."""
    calibration: tokens.Calibration | None
    notes: tuple[str, ...]

    @property
    def increase_pct(self) -> float | None:
        """By how much the candidate is dearer; `None` where nobody can say."""
        if self.baseline is None or not self.baseline.mean:
            return None
        return 100 * (self.compared_mean / self.baseline.mean - 1)


def _estimate(change: ConfigChange, config: ModelConfig, context: Context) -> Estimate | str:
    """What a request will cost; or a sentence on why nobody can tell."""
    cases = change.candidate.cases
    price = _price(config, context)
    asked = _asked(config, cases)
    if not cases:
        return f"{change.candidate.cases_file} holds no case to estimate from; add some"
    if price is None:
        return f"without a price of `{config.model}` there is no estimate"
    if len(asked) < len(cases):
        return f"{len(cases) - len(asked)} of {len(cases)} cases cannot be rendered"
    base = change.baseline.config if change.baseline else None
    base_price = _price(base, context) if base else None
    base_asked = _asked(base, cases) if base else {}
    inputs = _inputs([*asked.values(), *base_asked.values()], change.recordings, context)
    candidate = _arm(config, price, asked, inputs, change.recordings, context)
    baseline = None
    if base is not None and base_price is not None and base_asked:
        baseline = _arm(base, base_price, base_asked, inputs, change.recordings, context)
    own = inputs[config.model]
    spread = _spread(candidate, baseline, asked, config)
    common = _spread(candidate, baseline, base_asked, config) if baseline else spread
    return Estimate(
        candidate=spread,
        baseline=_spread(baseline, candidate, base_asked, config) if baseline else None,
        compared_mean=common.mean,
        cases=len(asked),
        compared=len(base_asked) if baseline else 0,
        recorded=sum(each.used is not None for each in candidate.requests.values()),
        assumed_longest=_sources(candidate, baseline).count(LONGEST),
        calibration=own.calibration,
        notes=(*own.notes, *_notes(change, candidate, baseline)),
    )


def _asked(config: ModelConfig, cases: Sequence[Case]) -> dict[str, Question]:
    """By case, the request that `config` makes of it, for those that it can render."""
    asked = {}
    for case in cases:
        with contextlib.suppress(PromptError):
            asked[case.id] = prompt.ask(config, case.inputs, label=case.id)
    return asked


def _inputs(
    questions: Sequence[Question], recordings: Mapping[str, Answer], context: Context
) -> dict[str, Inputs]:
    """By model, the input tokens of all its requests: one arm's recorded usage calibrates both."""
    made = {}
    for model in {each.model for each in questions}:
        facts = catalog.facts(model, context.policy, context.now)
        made[model] = tokens.measure(
            [each for each in questions if each.model == model],
            recordings,
            context.count_tokens,
            encoding=facts.encoding if facts else catalog.ASSUMED_ENCODING,
            encoding_is_exact=facts.encoding_is_exact if facts else False,
        )
    return made


def _arm(
    config: ModelConfig,
    price: Price,
    asked: Mapping[str, Question],
    inputs: Mapping[str, Inputs],
    recordings: Mapping[str, Answer],
    context: Context,
) -> Arm:
    facts = catalog.facts(config.model, context.policy, context.now)
    of_model = facts.max_output_tokens if facts else None
    return Arm(
        config=config,
        price=price,
        output_bound=config.max_output_tokens or of_model or tokens.ASSUMED_MAX_OUTPUT_TOKENS,
        requests={
            case: Request(
                input_tokens=inputs[config.model].tokens[each.key],
                used=tokens.used(recordings.get(each.key)),
            )
            for case, each in asked.items()
        },
    )


def _length(case: str, arm: Arm, other: Arm | None, profile: Profile | None) -> Length:
    """How long the answer in this case will be, from the best that is known."""
    own = arm.requests[case].used
    if own is not None:
        return Length(usual=own.output_tokens, high=own.output_tokens)
    theirs = other.requests[case].used if other and case in other.requests else None
    if theirs is not None:
        length = min(theirs.output_tokens, arm.output_bound)
        return Length(usual=length, high=length, source="the other arm's answer")
    if profile is not None:
        return Length(usual=profile.p50, high=profile.p95, source="traffic.output_tokens")
    return Length(usual=arm.output_bound, high=arm.output_bound, source=LONGEST)


def _spread(arm: Arm, other: Arm | None, cases: Iterable[str], candidate: ModelConfig) -> Spread:
    """What a request of `arm` costs over `cases`, in the traffic that the candidate declares."""
    traffic = candidate.traffic

    @functools.cache
    def cost(input_tokens: int, output_tokens: int, share: float = traffic.cached_input_share) -> int:
        return arm.price.cost_nanousd(
            Usage(
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                cached_input_tokens=int(share * input_tokens),
            )
        )

    sized = [
        (arm.requests[case].input_tokens, _length(case, arm, other, traffic.output_tokens)) for case in cases
    ]
    usual = sorted(cost(size, length.usual) for size, length in sized)
    high = sorted(cost(size, length.high) for size, length in sized)
    return Spread(
        # Of a profile, half and 95 % are known; the mean of such lengths lies between.
        mean=math.ceil((sum(usual) + sum(high)) / (2 * len(sized))),
        p50=_percentile(usual, 50),
        p95=_percentile(high, 95),
        worst=cost(max(size for size, _ in sized), arm.output_bound, 0),
        uncached=sum(cost(size, length.usual, 0) for size, length in sized),
        input_tokens=round(sum(size for size, _ in sized) / len(sized)),
        output_tokens=round(sum(length.usual + length.high for _, length in sized) / (2 * len(sized))),
    )


def _sources(candidate: Arm, baseline: Arm | None) -> list[str]:
    """Where the lengths of the candidate's answers are from."""
    profile = candidate.config.traffic.output_tokens
    return [_length(case, candidate, baseline, profile).source for case in candidate.requests]


def _percentile(values: Sequence[int], percent: int) -> int:
    """The smallest of the sorted `values` that `percent` of them do not exceed."""
    return values[math.ceil(len(values) * percent / 100) - 1]


def _notes(change: ConfigChange, candidate: Arm, baseline: Arm | None) -> Iterator[str]:
    """What the figures rest on, as far as it is not plain usage."""
    sources = _sources(candidate, baseline)
    for source in dict.fromkeys(filter(None, sources)):
        yield f"{sources.count(source)} of {len(sources)} answers are as long as {source}"
    used = [each.used for each in candidate.requests.values() if each.used is not None]
    cached = sum(each.cached_input_tokens for each in used)
    if cached and not candidate.config.traffic.cached_input_share:
        share = cached / sum(each.input_tokens for each in used)
        yield f"{share:.0%} of recorded input was cached; `traffic.cached_input_share` would count on it"
    if change.baseline is not None and baseline is None:
        yield "the baseline has no request or no price to compare with: only limits apply"
    elif baseline is not None and len(baseline.requests) < len(candidate.requests):
        yield f"compared over the {len(baseline.requests)} cases that the baseline renders"


# --- Per request --------------------------------------------------------------------------------


def _request(
    check: Check, estimate: Estimate | str, change: ConfigChange, config: ModelConfig, context: Context
) -> Outcome:
    """What a request costs is held to the baseline on average, and to its limit in the worst case."""
    if isinstance(estimate, str):
        return check.outcome(Found.UNKNOWN, estimate)
    allowed_pct = context.policy.cost.max_increase_pct
    problems = [*_dearer(estimate, allowed_pct), *_above_limit(estimate, change, config)]
    limits = list(_limits_of_mean(estimate, config, allowed_pct))
    limit, by = min(limits, default=(None, ""))
    figures: JsonObject = {
        "candidate": _json(estimate.candidate),
        "baseline": _json(estimate.baseline) if estimate.baseline else None,
        "increase_pct": estimate.increase_pct,
        "limit_nanousd": limit,
        "limit": by,
        "worst_limit_nanousd": config.limits.cost_per_request_nanousd,
        "cases": estimate.cases,
        "compared": estimate.compared,
        "recorded": estimate.recorded,
        "assumed_longest": estimate.assumed_longest,
        "uncached_nanousd": estimate.candidate.uncached,
        "calibration": asdict(estimate.calibration) if estimate.calibration else None,
    }
    notes = list(estimate.notes)
    if not limits:
        notes.append("there is neither a baseline nor a limit to hold this to")
    figures["notes"] = [*notes]
    found = Found.MISSED if problems else Found.MET
    return check.outcome(found, *(problems or notes), figures=figures)


def _json(spread: Spread) -> JsonObject:
    return {
        "mean_nanousd": spread.mean,
        "p50_nanousd": spread.p50,
        "p95_nanousd": spread.p95,
        "worst_nanousd": spread.worst,
        "input_tokens": spread.input_tokens,
        "output_tokens": spread.output_tokens,
    }


def _limits_of_mean(estimate: Estimate, config: ModelConfig, allowed_pct: float) -> Iterator[tuple[int, str]]:
    """What the mean must not exceed, and by whose word."""
    if estimate.baseline is not None:
        yield math.floor(estimate.baseline.mean * (1 + allowed_pct / 100)), f"+{allowed_pct:g} %"
    if config.limits.cost_per_request_nanousd is not None:
        yield config.limits.cost_per_request_nanousd, "limit"
    if config.limits.monthly_budget_nanousd is not None and config.traffic.requests_per_month:
        yield config.limits.monthly_budget_nanousd // config.traffic.requests_per_month, "budget"


def _dearer(estimate: Estimate, allowed_pct: float) -> Iterator[str]:
    candidate, baseline = estimate.candidate, estimate.baseline
    if baseline is None or estimate.compared_mean <= baseline.mean * (1 + allowed_pct / 100):
        return
    more = "more" if estimate.increase_pct is None else f"{estimate.increase_pct:.1f} % more"
    yield (
        f"a request costs {dollars(estimate.compared_mean)} on average, {more} than the baseline's "
        f"{dollars(baseline.mean)}, and {allowed_pct:g} % more is allowed: "
        f"input {baseline.input_tokens:,} → {candidate.input_tokens:,} tokens, "
        f"output {baseline.output_tokens:,} → {candidate.output_tokens:,}"
    )


def _above_limit(estimate: Estimate, change: ConfigChange, config: ModelConfig) -> Iterator[str]:
    limit = config.limits.cost_per_request_nanousd
    spread = estimate.candidate
    if limit is None or spread.worst <= limit:
        return
    over = "on average" if spread.mean > limit else "in 1 of 20 cases" if spread.p95 > limit else "at worst"
    cost = spread.mean if spread.mean > limit else spread.p95 if spread.p95 > limit else spread.worst
    yield str(
        Problem(
            message=f"is {dollars(limit)}, and a request costs {dollars(cost)} {over}",
            file=change.candidate.config_file,
            line=config.lines.get("limits.cost_per_request", 0),
            key="limits.cost_per_request",
            hint="" if over != "at worst" else "`max_completion_tokens` bounds the longest answer",
        )
    )


def _request_lines(figures: JsonObject) -> Iterator[tuple[str, str]]:
    """What to show of the check's figures: what was measured, beside what is required."""
    if not figures:
        return
    candidate, baseline = _object(figures["candidate"]), _object(figures["baseline"])
    measured = f"{_per_1k(candidate)} per 1k requests"
    if baseline:
        measured += f", baseline {_per_1k(baseline)}"
    limit = figures["limit_nanousd"]
    yield measured, f"≤ {dollars(1000 * _integer(limit))} ({figures['limit']})" if limit is not None else ""
    if figures["worst_limit_nanousd"] is not None:
        worst, allowed = _integer(candidate["worst_nanousd"]), _integer(figures["worst_limit_nanousd"])
        yield f"{dollars(worst)} a request at worst", f"≤ {dollars(allowed)} (limit)"
    calibration = _object(figures["calibration"])
    if calibration and figures["recorded"] != figures["cases"]:
        yield f"input × {calibration['ratio']:.2f} as billed (± {calibration['error_pct']:.1f} %)", ""


def _hint(figures: JsonObject, context: Context) -> str:
    increase_pct = figures.get("increase_pct")
    if not isinstance(increase_pct, float) or increase_pct <= context.policy.cost.max_increase_pct:
        return ""
    if figures["assumed_longest"]:
        return "answers are taken to be as long as allowed; record some, or declare `traffic.output_tokens`"
    return "if it is worth that, raise `max_increase_pct` in [tool.deploy_gates.cost]"


def _per_1k(spread: JsonObject) -> str:
    return dollars(1000 * _integer(spread["mean_nanousd"]))


# --- Per month ----------------------------------------------------------------------------------


def _month(check: Check, estimate: Estimate | str, change: ConfigChange, config: ModelConfig) -> Outcome:
    """What a month's requests cost together is held to the budget."""
    requests, budget = config.traffic.requests_per_month, config.limits.monthly_budget_nanousd
    if requests is None and budget is None:
        return check.outcome(Found.MET, "no traffic is declared, so there is no estimate of a month")
    if requests is None:
        problem = Problem(
            message=f"is {dollars(budget or 0)}, and nobody knows how many requests a month has",
            file=change.candidate.config_file,
            line=config.lines.get("limits.monthly_budget", 0),
            key="limits.monthly_budget",
            hint="declare `traffic.requests_per_month`",
        )
        return check.outcome(Found.MISSED, str(problem))
    if isinstance(estimate, str):
        return check.outcome(Found.UNKNOWN, estimate)
    month = estimate.candidate.mean * requests
    figures: JsonObject = {"month_nanousd": month, "budget_nanousd": budget, "requests": requests}
    if budget is None or month <= budget:
        return check.outcome(Found.MET, figures=figures)
    problem = Problem(
        message=f"is {dollars(budget)}, and {requests:,} requests cost {dollars(month)}",
        file=change.candidate.config_file,
        line=config.lines.get("limits.monthly_budget", 0),
        key="limits.monthly_budget",
    )
    return check.outcome(Found.MISSED, str(problem), figures=figures)


def _month_lines(figures: JsonObject) -> Iterator[tuple[str, str]]:
    if figures:
        budget = figures["budget_nanousd"]
        required = f"≤ {dollars(_integer(budget))} (budget)" if budget is not None else ""
        yield f"{dollars(_integer(figures['month_nanousd']))} a month", required


# --- Afterwards ---------------------------------------------------------------------------------


def _error_pct(
    change: ConfigChange, outcomes: Sequence[Outcome], request: JsonObject, context: Context
) -> float | None:
    """How far the estimate was from what the golden cases used; `None` where that says nothing.

    An estimate that rests on recorded answers to the very same requests proves nothing by agreeing with them.
    """
    config = change.candidate.config
    price = _price(config, context) if config else None
    used = [each for each in outcomes if each.gate is GateName.GOLDEN and each.case and each.usage]
    if (
        price is None
        or not request
        or request["recorded"] == request["cases"]
        or len(used) != request["cases"]
    ):
        return None
    actual = sum(_uncached(each, price) for each in used)
    return 100 * abs(_integer(request["uncached_nanousd"]) / actual - 1) if actual else None


def _uncached(outcome: Outcome, price: Price) -> int:
    """What one answer of a golden case costs with nothing cached, on average over its samples."""
    samples = outcome.figures.get("samples", 1)
    count = samples if isinstance(samples, int) and samples > 0 else 1
    assert outcome.usage is not None, outcome
    return price.cost_nanousd(
        Usage(
            input_tokens=math.ceil(outcome.usage.input_tokens / count),
            output_tokens=math.ceil(outcome.usage.output_tokens / count),
        )
    )


def _object(value: Json) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _integer(value: Json) -> int:
    assert isinstance(value, int), value
    return value
