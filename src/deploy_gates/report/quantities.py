"""A metric's numbers in its own words: `99.91 %`, `1.42 s`, `$0.00064`, `−2.9 pt`, `+20 %`.

A ratio says how many times worse the candidate is, of a share the odds of the bad outcome; people want to
hear by how much the metric itself rose or fell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deploy_gates.core.canary import COST, LATENCY, Aspect, Better, Decision, Kind, Metric, Reading

_SPELLED = {Aspect.RATE: "", Aspect.SHAPE: "", Aspect.TAIL: "worst 5 %", Aspect.MEAN: "mean"}
_RATIO_MAX = 1e6
"""Beyond this a ratio is as good as infinite."""
_CLOSE, _FAR = 1.1, 10.0
"""How many times apart two values are for which other digits count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Both arms and their difference, to as many digits as tell them apart."""

    baseline: str
    candidate: str
    change: str


def figures(reading: Reading) -> Figures:
    """What both arms have; `–` where there is nothing yet."""
    baseline, candidate = reading.baseline, reading.candidate
    if reading.kind is Kind.SHARE:
        digits = max((_share_digits(each) for each in (baseline, candidate) if each is not None), default=2)
        change = "–"
        if baseline is not None and candidate is not None:
            moved = (candidate - baseline) * 100
            change = _signed(moved, 1 if abs(moved) >= 9.95 else digits, "pt")
        return Figures(baseline=_share(baseline, digits), candidate=_share(candidate, digits), change=change)
    known = [abs(each) for each in (baseline, candidate) if each]
    in_ms = reading.metric == LATENCY and max(known, default=1.0) < 0.9995
    factor = 1000.0 if in_ms else 1.0
    digits = _digits([each * factor for each in known], is_coarse=reading.metric == COST)
    unit = ("ms" if in_ms else "s") if reading.metric == LATENCY else "$" if reading.metric == COST else ""
    change = "–"
    if baseline is not None and candidate is not None and reading.metric == LATENCY:
        change = _signed((candidate - baseline) * factor, digits, unit)
    elif baseline and candidate is not None:
        change = _percent(candidate / baseline)
    return Figures(
        baseline=_amount(baseline, factor, digits, unit),
        candidate=_amount(candidate, factor, digits, unit),
        change=change,
    )


def change_words(reading: Reading, ratio: float | None) -> str:
    """What `ratio` times worse means for the metric: `−2.9 pt`, `+20 %`; `×1.5 odds` without a baseline."""
    if ratio is None:
        return "–"
    if reading.kind is Kind.AMOUNT:
        return _percent(factor_of(reading, ratio))
    change = points(reading, ratio)
    if change is None:
        return f"{_times(factor_of(reading, ratio))} odds"
    return _signed(change, 1 if abs(change) >= 0.995 else 2 if abs(change) >= 0.00995 else 3, "pt")


def estimate_words(reading: Reading) -> str:
    """The change as estimated: of a share what both arms have, of an amount of its whole law."""
    if reading.kind is Kind.SHARE and reading.baseline is not None:
        return figures(reading).change
    return change_words(reading, reading.ratio)


def points(reading: Reading, ratio: float) -> float | None:
    """By how many percentage points a share changes; `None` where the baseline is nothing to start from."""
    if reading.baseline is None:
        return None
    bad = reading.baseline if reading.better is Better.LOWER else 1 - reading.baseline
    if not 0 < bad < 1:
        return None
    odds = min(ratio, _RATIO_MAX) * bad / (1 - bad)
    worse = (odds / (1 + odds) - bad) * 100
    return worse if reading.better is Better.LOWER else -worse


def factor_of(reading: Reading, ratio: float) -> float:
    """So many times as much, whichever way is better."""
    if reading.better is Better.LOWER:
        return ratio
    return 1 / ratio if ratio > 0 else math.inf


def planned(decision: Decision, reading: Reading) -> Metric | None:
    """The metric of the plan that a reading is of."""
    return next((each for each in decision.plan.metrics if each.name == reading.metric), None)


def scale(decision: Decision, reading: Reading) -> float | None:
    """The ratio that a picture of the reading takes for its unit: its margin, or that of its metric."""
    if reading.margin_ratio is not None:
        return reading.margin_ratio if reading.margin_ratio > 1 else None
    metric = planned(decision, reading)
    if metric is None:
        return None
    margin = metric.tail_ratio if reading.aspect in (Aspect.P99, Aspect.TAIL) else metric.margin_ratio
    return margin if margin is not None and margin > 1 else None


def margin_words(decision: Decision, reading: Reading) -> str:
    """The change that is refused: `+22 %`, `−2.0 pt`; `–` where the aspect is only shown."""
    metric = planned(decision, reading)
    if reading.margin_ratio is None and reading.kind is Kind.AMOUNT:
        return "–"
    if metric is not None and metric.margin_pt is not None and metric.margin_ratio is None:
        return _signed(metric.margin_pt if metric.better is Better.LOWER else -metric.margin_pt, 1, "pt")
    return change_words(reading, reading.margin_ratio)


def interval_words(reading: Reading) -> str:
    """`+4.1 to +18 %`, the lesser change first."""
    if reading.low is None and reading.high is None:
        return "no data yet" if reading.candidate is None else "not bounded yet"
    ends = [change_words(reading, reading.low), change_words(reading, reading.high)]
    if reading.better is Better.HIGHER:
        ends.reverse()
    low, high = ends
    if low == "–":
        return f"up to {high}"
    if high == "–":
        return f"from {low}"
    unit = low.rpartition(" ")[2]
    return f"{low.removesuffix(f' {unit}')} to {high}" if high.endswith(f" {unit}") else f"{low} to {high}"


def title(reading: Reading) -> str:
    """`latency`, `latency p95`."""
    aspect = aspect_words(reading.aspect)
    return f"{reading.metric} {aspect}" if aspect else reading.metric


def aspect_words(aspect: Aspect) -> str:
    """Nothing for the aspect that speaks for its metric."""
    return _SPELLED.get(aspect, aspect.value)


def caused(decision: Decision) -> Reading | None:
    """The reading that decided, if a metric did."""
    for cause in decision.cause:
        for each in decision.readings:
            short = each.metric if not aspect_words(each.aspect) else f"{each.metric}.{each.aspect.value}"
            if cause == short:
                return each
    return None


def explained(decision: Decision) -> str:
    """`accepted fell 8.2 pt, at best 2.9 pt; 2.0 pt are allowed (95 % sure, at any time)`, or nothing."""
    reading = caused(decision)
    metric = planned(decision, reading) if reading else None
    if reading is None or metric is None or reading.ratio is None:
        return ""
    change = estimate_words(reading)
    said = f"{title(reading)} {'rose' if (reading.ratio > 1) is (reading.better is Better.LOWER) else 'fell'}"
    said += f" {_unsigned(change)}"
    if reading.low is not None and reading.low > 1:
        said += f", at best {_unsigned(change_words(reading, reading.low))}"
        said += f" ({decision.plan.confidence * 100:g} % sure, at any time)"
    if metric.rollback_ratio > 1:
        return f"{said}; {_unsigned(change_words(reading, metric.rollback_ratio))} would have been let pass"
    margin = margin_words(decision, reading)
    if reading.margin_ratio is None or margin == "–":
        return said
    if reading.ratio >= reading.margin_ratio:
        return f"{said}; the margin is {_unsigned(margin)}"
    return f"{said}; what is proved to be worse is rolled back, even within the margin of {_unsigned(margin)}"


def odds(log_e: float) -> str:
    """An e-value as people bet: `3.2 to 1`, `1,200 to 1`, `10^9 to 1`."""
    if math.isnan(log_e):
        return "–"
    log10 = log_e / math.log(10)
    if log10 >= 7:
        return f"10^{math.floor(min(log10, 999))} to 1"
    if log10 < -2:
        return "<0.01 to 1"
    e = 10**log10
    return f"{e:,.0f} to 1" if e >= 9.5 else f"{e:.1f} to 1" if e >= 0.95 else f"{e:.2f} to 1"


def span(seconds: float) -> str:
    """`45 s`, `3 min 05 s`, `1 h 02 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def clock(seconds: float) -> str:
    """`1:25`, `1:02:05`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, seconds_ = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds_:02}" if hours else f"{minutes}:{seconds_:02}"


# --- Digits -------------------------------------------------------------------------------------


def _share_digits(share: float) -> int:
    """After the point, of a percentage: the nearer to all or nothing, the more of them."""
    distance = min(share, 1 - share) * 100
    return 1 if distance >= 2 else 2 if distance >= 0.02 or distance <= 0 else 3


def _share(share: float | None, digits: int) -> str:
    return "–" if share is None else f"{share * 100:.{digits}f} %"


def _digits(known: Sequence[float], *, is_coarse: bool) -> int:
    """After the point: three that count, or two of prices that lie well apart."""
    if not known or not all(map(math.isfinite, known)):
        return 0
    least, most = min(known), max(known)
    apart = most / least
    if is_coarse and apart > _CLOSE:
        return _decimals(least, 2)
    return _decimals(most, 3) if apart < _FAR else _decimals(least, 2)


def _decimals(number: float, significant: int) -> int:
    return max(0, significant - 1 - math.floor(math.log10(float(f"{number:.{significant}g}"))))


def _amount(value: float | None, factor: float, digits: int, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    number = f"{value * factor:,.{digits}f}"
    return f"${number}" if unit == "$" else f"{number} {unit}".rstrip()


def _signed(number: float, digits: int, unit: str) -> str:
    if not math.isfinite(number):
        return "–"
    size = f"{abs(number):,.{digits}f}"
    sign = "±" if float(size.replace(",", "")) == 0 else "+" if number > 0 else "−"
    return f"{sign}{size} {unit}"


def _unsigned(words: str) -> str:
    return words.lstrip("+−±")


def _percent(factor: float) -> str:
    if factor >= 10 or factor <= 0:
        return _times(factor)
    change = (factor - 1) * 100
    return _signed(change, 0 if abs(change) >= 9.95 else 1, "%")


def _times(factor: float) -> str:
    if factor > _RATIO_MAX:
        return "×∞"
    return f"×{factor:,.0f}" if factor >= 10 else f"×{factor:.2g}"
