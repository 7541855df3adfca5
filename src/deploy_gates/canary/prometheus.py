"""Tallies from a Prometheus server: counters and histograms of both arms, as range queries show them.

Raw counters are asked for and subtracted here, series by series. `rate()` and `increase()` extrapolate to
the ends of their window, which invents parts of requests; the analysis counts whole ones. A counter that
falls was reset, and what it shows counts from zero; so does one that appears where none was for `BEFORE_S`.

Evidence lies in the bin in which a scrape saw it. Where scrapes are further apart than five seconds,
`scrape_s` says so, and several bins are taken as one. Targets are scraped at different moments, so up to
one interval of one arm's traffic may stand beside the next of the other's: drift within an interval is not
told apart from a difference.
"""

from __future__ import annotations

import base64
import json
import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from string import Template
from typing import Self, TypeAlias

from deploy_gates.core.canonical import Json
from deploy_gates.core.errors import SettingsError, StoreUnavailable
from deploy_gates.core.tally import BIN_MS, METRICS_MAX, Arm, Histogram, Tally, bucket_of

BEFORE_S = 300
"""So far back a series is looked for before the first bin: Prometheus remembers a sample as long."""
POINTS_MAX = 11_000
"""Prometheus answers with no more points of a series."""
ANSWER_MAX_BYTES = 64 << 20
_DURATION = "gen_ai_client_operation_duration_seconds"
_LABELS = 'deploy_gates_config="$config", deploy_gates_environment="$environment", deploy_gates_arm="$arm"'

Series: TypeAlias = Mapping[str, Json]


class MetricsUnavailable(StoreUnavailable):
    """The server of the metrics cannot be asked, or does not answer what was asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Queries:
    """Selectors of the series of one arm. `$config`, `$environment` and `$arm` are replaced in each of them.

    Those of histograms name the histogram: `_bucket` and `_sum` are added where it is a classic one.
    """

    requests: str = f"{_DURATION}_count{{{_LABELS}}}"
    errors: str = f'{_DURATION}_count{{{_LABELS}, error_type!=""}}'
    latency: str = f'{_DURATION}{{{_LABELS}, error_type=""}}'
    cost: str = f"deploy_gates_cost_usd{{{_LABELS}}}"
    """A histogram in dollars; empty: not known."""
    amounts: Mapping[str, str] = field(default_factory=dict)
    """Further amounts: histograms."""
    shares: Mapping[str, str] = field(default_factory=dict)
    """Further shares: counters of those that are true."""
    shares_of: Mapping[str, str] = field(default_factory=dict)
    """Of how many; a share without one is a share of the requests."""
    baseline: str = Arm.BASELINE.value
    candidate: str = Arm.CANDIDATE.value
    """What `$arm` stands for."""
    scrape_s: float = 5.0
    """How often targets are scraped."""

    @classmethod
    def of(cls, raw: Mapping[str, Json]) -> Self:
        """From `[tool.deploy_gates.canary.prometheus]`, without what belongs to the connection."""
        known = {each.name: each for each in fields(cls)}
        given: dict[str, object] = {}
        for name, value in raw.items():
            if name in CONNECTION:
                continue
            if name not in known:
                raise SettingsError(
                    f"tool.deploy_gates.canary.prometheus.{name} is not known; these are: "
                    f"{', '.join([*CONNECTION, *known])}"
                )
            wanted = type(getattr(cls(), name))
            is_number = wanted is float and isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number or isinstance(value, wanted)):
                raise SettingsError(f"tool.deploy_gates.canary.prometheus.{name} is no {_KINDS[wanted]}")
            given[name] = float(value) if is_number else value  # type: ignore[arg-type]
        queries = cls(**given)  # type: ignore[arg-type]
        for template in queries.templates():
            try:
                Template(template).substitute(config="", environment="", arm="")
            except (KeyError, ValueError) as error:
                raise SettingsError(
                    f"tool.deploy_gates.canary.prometheus: {template} names something other than $config, "
                    f"$environment and $arm (a plain dollar sign is $$)"
                ) from error
        if not 1 <= queries.scrape_s <= 300:
            raise SettingsError("tool.deploy_gates.canary.prometheus.scrape_s lies outside 1 to 300")
        if len(queries.amounts) + len(queries.shares) > METRICS_MAX:
            raise SettingsError(f"tool.deploy_gates.canary.prometheus names more than {METRICS_MAX} metrics")
        return queries

    def templates(self) -> Iterator[str]:
        """All of them."""
        yield from (self.requests, self.errors, self.latency, self.cost)
        for each in (self.amounts, self.shares, self.shares_of):
            yield from map(str, each.values())


CONNECTION = ("url", "token_env", "user_env", "password_env", "timeout_s")
_KINDS = {str: "text", float: "number", dict: "table"}


class Prometheus:
    """A server that is asked for the tallies of one config in one environment."""

    def __init__(
        self,
        url: str,
        queries: Queries | None = None,
        *,
        config: str,
        environment: str,
        revision: int = 1,
        timeout_s: float = 10.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._queries = queries or Queries()
        self._names = {"config": _quoted(config), "environment": _quoted(environment)}
        self._place = {"config": config, "environment": environment, "revision": revision}
        self._timeout_s = timeout_s
        self._headers = dict(headers or {})
        self._asked: dict[str, None] = {}

    @classmethod
    def of(cls, raw: Mapping[str, Json], *, config: str, environment: str) -> Self:
        """As `[tool.deploy_gates.canary.prometheus]` says. Secrets come from the variables it names."""
        url = raw.get("url")
        if not isinstance(url, str) or urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise SettingsError("tool.deploy_gates.canary.prometheus.url is no http or https URL")
        if urllib.parse.urlsplit(url).password:
            raise SettingsError(
                "tool.deploy_gates.canary.prometheus.url holds a password: name variables in `user_env` and "
                "`password_env` instead"
            )
        timeout_s = raw.get("timeout_s", 10.0)
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= 300:
            raise SettingsError("tool.deploy_gates.canary.prometheus.timeout_s lies outside 0 to 300")
        return cls(
            url,
            Queries.of(raw),
            config=config,
            environment=environment,
            timeout_s=float(timeout_s),
            headers=_authorization(raw),
        )

    @property
    def resolved(self) -> tuple[str, ...]:
        """What was asked, as it was sent."""
        return tuple(self._asked)

    @property
    def delay_s(self) -> float:
        """How long after its end a bin is complete: the next scrape has come, and been written."""
        return 2 * self._queries.scrape_s

    def tallies(self, since_ms: int, until_ms: int) -> tuple[Tally, ...]:
        """The tallies of both arms from `since_ms` to before `until_ms`, each a multiple of the bin.

        `MetricsUnavailable` if anything that was asked for could not be answered; never zeros in its place.
        """
        step_ms = math.ceil(self._queries.scrape_s * 1000 / BIN_MS) * BIN_MS
        first_ms = since_ms - since_ms % step_ms
        ends = range(first_ms + step_ms, until_ms + 1, step_ms)
        if not ends:
            return ()
        window = _Window(
            start_ms=first_ms - math.ceil(BEFORE_S * 1000 / step_ms) * step_ms,
            first_ms=first_ms,
            end_ms=ends[-1],
            step_ms=step_ms,
        )
        if window.points > POINTS_MAX:
            raise MetricsUnavailable(f"{window.points:,} points of a series are more than Prometheus gives")
        made = [tally for arm in Arm for tally in self._arm(arm, window)]
        if not made:
            raise MetricsUnavailable(
                f"no series matches `{self._selector(self._queries.requests, Arm.BASELINE)}`, and none is "
                "the candidate's",
                hint="look at what the applications export, and at [tool.deploy_gates.canary.prometheus]",
            )
        return tuple(made)

    def _arm(self, arm: Arm, window: _Window) -> Iterator[Tally]:
        queries = self._queries
        requests = self._counted(queries.requests, arm, window)
        if requests is None:
            return
        errors = self._counted(queries.errors, arm, window) or [0.0] * window.bins
        latency = self._histograms(queries.latency, arm, window)
        cost = self._histograms(queries.cost, arm, window) if queries.cost else None
        metrics = {name: self._histograms(each, arm, window) for name, each in queries.amounts.items()}
        for name, each in queries.shares.items():
            good = self._counted(each, arm, window)
            of = queries.shares_of.get(name)
            every = self._counted(of, arm, window) if of else requests
            if good is not None and every is not None:
                metrics[name] = [_votes(a, b) for a, b in zip(good, every, strict=True)]
        for at in range(window.bins):
            n = round(requests[at])
            yield Tally(
                arm=arm,
                start_ms=window.first_ms + (at + 1) * window.step_ms - BIN_MS,
                started=n,
                finished=n,
                errors=min(round(errors[at]), n),
                latency_s=latency[at] if latency else Histogram(),
                cost_usd=cost[at] if cost else Histogram(),
                metrics={name: each[at] for name, each in metrics.items() if each and each[at].counts},
                **self._place,  # type: ignore[arg-type]
            )

    def _selector(self, template: str, arm: Arm) -> str:
        name = self._queries.baseline if arm is Arm.BASELINE else self._queries.candidate
        return Template(template).substitute(self._names, arm=_quoted(name))

    def _counted(self, template: str, arm: Arm, window: _Window) -> list[float] | None:
        """What the counters of a selector rose by, bin by bin, all together; `None`: there are none."""
        found = self._range(self._selector(template, arm), window)
        if not found:
            return None
        rises = [window.rises(_values(each)) for each in found]
        return [sum(each) for each in zip(*rises, strict=True)]

    def _histograms(self, template: str, arm: Arm, window: _Window) -> list[Histogram] | None:
        selector = self._selector(template, arm)
        found = self._range(_suffixed(selector, "_bucket"), window)
        if found:
            return self._classic(found, _suffixed(selector, "_sum"), window)
        found = [each for each in self._range(selector, window) if each.get("histograms")]
        return [
            _added(each) for each in zip(*(_native(s, window, selector) for s in found), strict=True)
        ] or None

    def _classic(self, found: Sequence[Series], sums: str, window: _Window) -> list[Histogram]:
        instances: dict[str, dict[float, list[float]]] = {}
        for each in found:
            labels = dict(_labels(each))
            edge = float(labels.pop("le", "nan").replace("+Inf", "inf"))
            if math.isnan(edge):
                raise MetricsUnavailable(f"a series of `{sums.replace('_sum', '_bucket')}` has no label `le`")
            instances.setdefault(json.dumps(labels, sort_keys=True), {})[edge] = window.rises(_values(each))
        totals = [window.rises(_values(each)) for each in self._range(sums, window)]
        bins: list[dict[int, int]] = [{} for _ in range(window.bins)]
        for edges in instances.values():
            lower, below = 0.0, [0.0] * window.bins
            for edge in sorted(edges):
                bucket = bucket_of(_middle(lower, edge))
                for at, (upto, before) in enumerate(zip(edges[edge], below, strict=True)):
                    count = round(upto - before)
                    if count > 0:
                        bins[at][bucket] = bins[at].get(bucket, 0) + count
                lower, below = edge, [max(pair) for pair in zip(edges[edge], below, strict=True)]
        return [
            Histogram(counts=counts, total=sum(each[at] for each in totals)) for at, counts in enumerate(bins)
        ]

    def _range(self, query: str, window: _Window) -> list[Series]:
        self._asked[query] = None
        asked = {
            "query": query,
            "start": f"{window.start_ms / 1000:.3f}",
            "end": f"{window.end_ms / 1000:.3f}",
            "step": f"{window.step_ms / 1000:g}",
            "timeout": f"{self._timeout_s:g}s",
        }
        answer = self._ask("/api/v1/query_range", asked, query)
        data = answer.get("data")
        result = data.get("result") if isinstance(data, dict) else None
        if not isinstance(result, list) or not all(isinstance(each, dict) for each in result):
            raise MetricsUnavailable(f"{self._url} did not answer `{query}` as Prometheus does")
        return [each for each in result if isinstance(each, dict)]

    def _ask(self, path: str, asked: Mapping[str, str], query: str) -> Mapping[str, Json]:
        request = urllib.request.Request(
            self._url + path, data=urllib.parse.urlencode(asked).encode(), headers=self._headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                body = response.read(ANSWER_MAX_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                said = _said(error.read(65_536)) or error.reason
            raise MetricsUnavailable(
                f"{self._url} refuses `{query}`: {said} (status {error.code})", hint=_HINT
            ) from error
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or error
            raise MetricsUnavailable(f"{self._url} cannot be asked: {why}", hint=_HINT) from error
        if len(body) > ANSWER_MAX_BYTES:
            raise MetricsUnavailable(f"the answer to `{query}` is larger than {ANSWER_MAX_BYTES >> 20} MiB")
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise MetricsUnavailable(f"{self._url} did not answer with JSON", hint=_HINT) from error
        if not isinstance(answer, dict) or answer.get("status") != "success":
            raise MetricsUnavailable(f"{self._url} refuses `{query}`: {_said(body)}", hint=_HINT)
        if answer.get("warnings"):
            raise MetricsUnavailable(f"{self._url} answers `{query}` in part only: {answer['warnings']}")
        return answer


_HINT = "ask again, or look at url and the queries in [tool.deploy_gates.canary.prometheus]"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    """The moments that are asked for: each `step_ms` from `start_ms` on, to `end_ms`."""

    start_ms: int
    first_ms: int
    """Where the first bin begins."""
    end_ms: int
    step_ms: int

    @property
    def points(self) -> int:
        return (self.end_ms - self.start_ms) // self.step_ms + 1

    @property
    def bins(self) -> int:
        return (self.end_ms - self.first_ms) // self.step_ms

    def rises(self, values: Mapping[int, float]) -> list[float]:
        """How much a counter rose in each bin, from its values at the moments that have one."""
        found = [0.0] * self.bins
        last: float | None = None
        for at in range(self.points):
            moment = self.start_ms + at * self.step_ms
            value = values.get(moment)
            if value is None:
                continue
            if last is None and at == 0:
                rise = 0.0  # it was there before the window, and nobody knows since when
            else:
                rise = value if last is None or value < last else value - last
            last = value
            if moment > self.first_ms:
                found[(moment - self.first_ms) // self.step_ms - 1] += rise
        return found


def _authorization(raw: Mapping[str, Json]) -> dict[str, str]:
    def secret(key: str) -> str:
        name = raw.get(key)
        if not isinstance(name, str):
            raise SettingsError(f"tool.deploy_gates.canary.prometheus.{key} is the name of a variable")
        if name not in os.environ:
            raise SettingsError(
                f"the variable {name}, which tool.deploy_gates.canary.prometheus names, is not set"
            )
        return os.environ[name]

    if "token_env" in raw:
        return {"Authorization": f"Bearer {secret('token_env')}"}
    if "user_env" in raw or "password_env" in raw:
        both = f"{secret('user_env')}:{secret('password_env')}"
        return {"Authorization": "Basic " + base64.b64encode(both.encode()).decode()}
    return {}


def _quoted(text: str) -> str:
    """As it stands within double quotes of PromQL."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _suffixed(selector: str, suffix: str) -> str:
    """The selector of a classic histogram's series: its name has a suffix."""
    name, brace, labels = selector.partition("{")
    return f"{name.rstrip()}{suffix}{brace}{labels}"


def _labels(series: Series) -> Iterator[tuple[str, str]]:
    labels = series.get("metric")
    if isinstance(labels, dict):
        yield from ((name, str(value)) for name, value in labels.items() if name != "__name__")


def _values(series: Series) -> dict[int, float]:
    """The values by moment, in milliseconds; NaN is no value."""
    found = {}
    for moment, value in _pairs(series.get("values")):
        number = float(value) if isinstance(value, str) else math.nan
        if not math.isnan(number):
            found[moment] = number
    return found


def _pairs(points: Json) -> Iterator[tuple[int, Json]]:
    for point in points if isinstance(points, list) else ():
        if not isinstance(point, list) or len(point) != 2 or not isinstance(point[0], int | float):
            raise MetricsUnavailable("a point of a series is no [moment, value]")
        yield round(point[0] * 1000), point[1]


def _middle(lower: float, upper: float) -> float:
    """Where the values of a classic bucket are taken to lie: the same for both arms."""
    if math.isinf(upper):
        return lower * 1.5
    return math.sqrt(lower * upper) if lower > 0 else upper * 0.7


def _native(series: Series, window: _Window, selector: str) -> list[Histogram]:
    """What a native histogram rose by, bin by bin."""
    buckets: dict[tuple[str, str], dict[int, float]] = {}
    counts: dict[int, float] = {}
    sums: dict[int, float] = {}
    for moment, value in _pairs(series.get("histograms")):
        if not isinstance(value, dict):
            raise MetricsUnavailable(f"`{selector}` was answered with a histogram that is none")
        counts[moment], sums[moment] = (float(str(value.get(key, "nan"))) for key in ("count", "sum"))
        listed = value.get("buckets") or []
        for bucket in listed if isinstance(listed, list) else ():
            if not isinstance(bucket, list) or len(bucket) != 4:
                raise MetricsUnavailable(f"`{selector}` was answered with a bucket that is none")
            buckets.setdefault((str(bucket[1]), str(bucket[2])), {})[moment] = float(str(bucket[3]))
    rises = window.rises(counts)
    bins: list[dict[int, int]] = [{} for _ in range(window.bins)]
    for (left, right), values in buckets.items():
        place = bucket_of(_middle(max(float(left), 0.0), max(float(right), 1e-12)))
        # A bucket is not there while it is empty, which is no reset of it.
        for at, rise in enumerate(window.rises({moment: values.get(moment, 0.0) for moment in counts})):
            if round(rise) > 0:
                bins[at][place] = bins[at].get(place, 0) + round(rise)
    if any(sum(each.values()) > rise + 1 for each, rise in zip(bins, rises, strict=True)):
        raise MetricsUnavailable(
            f"the buckets of `{selector}` changed their width within the canary: values cannot be compared"
        )
    totals = window.rises(sums)
    return [Histogram(counts=each, total=total) for each, total in zip(bins, totals, strict=True)]


def _added(histograms: Iterable[Histogram]) -> Histogram:
    return sum(histograms, Histogram())


def _votes(good: float, every: float) -> Histogram:
    """A share as clients count it: 1 and 0."""
    n = round(every)
    true = min(round(good), n)
    counts = {bucket_of(1.0): true, bucket_of(0.0): n - true}
    return Histogram(counts={bucket: count for bucket, count in counts.items() if count}, total=float(true))


def _said(body: bytes) -> str:
    try:
        answer = json.loads(body)
    except ValueError:
        return ""
    return str(answer.get("error", "")) if isinstance(answer, dict) else ""
