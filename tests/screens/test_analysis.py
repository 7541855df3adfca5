"""The analysis as SVG and HTML: well formed, without overlaps, and harmless whatever a metric is called."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from itertools import combinations, pairwise
from xml.etree import ElementTree

import canaries
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_gates.core.canary import Action, Aspect, Better, Decision, Kind, Metric, Plan
from deploy_gates.report import analysis, chart
from deploy_gates.report.chart import NARROW_PX, WIDE_PX, Panel
from deploy_gates.report.text import width

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "</svg></style><script>alert(1)</script> \" ' & \x1b[31m \u202e ]]> ￾"
PLANS = {
    "six": canaries.PLAN,
    "sixteen": Plan(
        metrics=tuple(
            Metric(
                name=f"a metric with quite a long name, number {at}",
                kind=Kind.SHARE if at % 3 else Kind.AMOUNT,
                better=Better.HIGHER if at % 2 else Better.LOWER,
                margin_ratio=1.02 if at % 5 else 40.0,
                warm_up=bool(at % 4),
                dry_run=at > 12,
            )
            for at in range(16)
        )
    ),
}


def none_yet() -> list[Decision]:
    return [canaries.waiting()]


def beyond_all() -> list[Decision]:
    """Ratios of nothing to something and the other way round."""
    found = canaries.history(20)
    last = found[-1]
    ratios = [(0.0, 0.0, 0.0), (math.inf, math.inf, math.inf), (0.0, 1.0, math.inf), (None, 1e9, None)]
    bad = [
        replace(each, low=low, ratio=ratio, high=high, baseline=0.0, candidate=1.0)
        for each, (low, ratio, high) in zip(last.readings, ratios * 2, strict=False)
    ]
    return [*found[:-1], replace(last, readings=tuple(bad), log_e=1e4)]


def rolled_back() -> list[Decision]:
    return canaries.history(
        60, worse=1.5, action=Action.ROLLBACK, cause=("errors",), reason="errors is worse"
    )


HISTORIES: dict[str, Callable[[], Sequence[Decision]]] = {
    "none": list,
    "none yet": none_yet,
    "one": lambda: canaries.history(1),
    "two": lambda: canaries.history(2),
    "sixty": rolled_back,
    "one hundred eighty": lambda: canaries.history(180, worse=1.02),
    "sixteen metrics": lambda: canaries.history(60, PLANS["sixteen"], worse=1.3),
    "beyond all": beyond_all,
    "by hand": lambda: [canaries.going(), canaries.rolled_back()],
    "proved": lambda: [canaries.going(), canaries.promoted()],
    "long": lambda: canaries.history(1500, worse=1.01),
}


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("width_px", [320, NARROW_PX, WIDE_PX])
def test_the_picture_is_well_formed_and_every_number_in_it_finite(name: str, width_px: int) -> None:
    drawn = chart.svg(HISTORIES[name](), width_px=width_px)

    root = ElementTree.fromstring(drawn)
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")
    for each in root.iter():
        for key, value in each.attrib.items():
            assert not re.search(r"\b(nan|inf)\b", value, re.I), (each.tag, key, value)


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("width_px", [320, NARROW_PX, WIDE_PX])
def test_no_label_overlaps_another_or_leaves_its_panel(name: str, width_px: int) -> None:
    for panel in panels(HISTORIES[name](), width_px):
        labels = list(labels_of(panel))
        for one in labels:
            assert -1 <= one.left <= one.right <= panel.width + 1, (panel.title, one)
            assert 0 <= one.top <= one.bottom <= panel.height, (panel.title, one)
        for one, other in combinations(labels, 2):
            assert not one.overlaps(other), (panel.title, one, other)


@pytest.mark.parametrize("name", HISTORIES)
def test_nothing_is_drawn_outside_of_its_panel(name: str) -> None:
    for panel in panels(HISTORIES[name](), NARROW_PX):
        for each in parsed(panel):
            for key, value in each.attrib.items():
                if key in ("x", "x1", "x2", "cx"):
                    assert -0.1 <= float(value) <= panel.width, (panel.title, each.attrib)
                if key in ("y", "y1", "y2", "cy"):
                    assert -0.1 <= float(value) <= panel.height, (panel.title, each.attrib)
                if key == "points":
                    for point in value.split():
                        x, y = map(float, point.split(","))
                        assert -0.1 <= x <= panel.width
                        assert -0.1 <= y <= panel.height


@pytest.mark.parametrize("name", HISTORIES)
def test_the_page_is_balanced_and_loads_nothing(name: str) -> None:
    written = analysis.page(HISTORIES[name](), title=EVIL, subtitle=EVIL, footer=EVIL)

    seen = Seen()
    seen.feed(written)
    seen.close()
    assert seen.open == []
    assert "script" not in seen.tags
    assert not [link for link in seen.links if not link.startswith("data:")]
    assert not re.search(r"@import|url\(", written)
    assert len(seen.ids) == len(set(seen.ids))


def test_a_name_that_looks_like_markup_is_nothing_but_text() -> None:
    plan = Plan(metrics=(Metric(name=EVIL, kind=Kind.SHARE, margin_ratio=2.0), *canaries.PLAN.metrics))
    history = canaries.history(12, plan, action=Action.ROLLBACK, cause=(EVIL,), reason=EVIL, missing=(EVIL,))

    drawn, written = chart.svg(history, name='"><b>'), analysis.page(history, title=EVIL)

    ElementTree.fromstring(drawn)
    for each in (drawn, written):
        assert not re.search("<script|\x1b|\u202e", each)
        assert "&lt;script&gt;" in each


@given(st.text(min_size=1, max_size=40))
def test_whatever_a_metric_is_called_the_picture_is_well_formed(name: str) -> None:
    plan = Plan(metrics=(Metric(name=name, kind=Kind.AMOUNT, margin_ratio=2.0),))

    ElementTree.fromstring(chart.svg(canaries.history(8, plan)))


def test_the_numbers_of_every_look_can_be_taken_along() -> None:
    history = canaries.history(30)

    written = analysis.page(history, title="ticket-triage")

    taken = dict(re.findall(r'download="([^"]+)" href="data:[^,]+,([^"]+)"', written))
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(taken["canary.csv"]).decode())))
    looks = json.loads(base64.b64decode(taken["canary.json"]))
    assert len(rows) == 30 * len(canaries.PLAN.metrics)
    assert len(looks) == 30
    assert (rows[-1]["metric"], float(rows[-1]["at_s"])) == ("tokens", 150)
    assert looks[-1]["arms"]["candidate"] == 1_500


def test_infinity_is_null_in_the_numbers_of_a_look() -> None:
    assert "Infinity" not in analysis.looks_json(beyond_all())


@pytest.mark.parametrize("better", list(Better))
def test_worse_lies_on_the_side_that_the_margin_refuses(better: Better) -> None:
    plan = Plan(metrics=(Metric(name="m", kind=Kind.AMOUNT, better=better, margin_ratio=1.2, warm_up=False),))

    heights = []
    for worse in (0.95, 1.0, 1.1, 1.25):
        history = canaries.history(40, plan, worse=worse)
        panel = chart.intervals(history, history[-1].readings[0])
        [now] = [each for each in parsed(panel) if each.get("class") == "now"]
        [margin] = [each for each in parsed(panel) if each.get("class") == "margin"]
        heights.append(float(now.get("cy", "")) - float(margin.get("y1", "")))

    is_beyond = [each < 0 for each in heights] if better is Better.LOWER else [each > 0 for each in heights]
    assert is_beyond == [False, False, False, True]


def test_the_end_of_a_canary_is_marked_with_time_and_cause() -> None:
    drawn = chart.svg(rolled_back())

    assert "5:00 rolled back: errors" in drawn


def test_what_promotion_has_to_prove_is_drawn_up_to_its_line() -> None:
    history = canaries.history(60)
    proved = [replace(each, log_e_safe=4.0) for each in history[-1].readings]

    panel = chart.proofs([*history[:-1], replace(history[-1], readings=tuple(proved))])

    kinds = [each.get("class", "").split()[0] for each in parsed(panel)]
    assert kinds.count("series") == kinds.count("crossed") == 4
    assert "4 of 4 are proved" in panel.told


def test_a_gap_between_looks_is_spread_over_its_bins() -> None:
    history = canaries.history(20)

    panel = chart.traffic([history[0], history[9], history[19]])

    bars = [each for each in parsed(panel) if each.get("class") == "bar candidate"]
    assert len(bars) == 3
    assert len({each.get("height") for each in bars}) == 1


@given(
    st.lists(st.floats(min_value=-50, max_value=300), max_size=16),
)
def test_labels_are_moved_apart_in_their_order(places: list[float]) -> None:
    found = chart.spread(places, 16, 0, 16 * 16)

    ordered = sorted(zip(places, found, strict=True))
    assert all(b - a >= 16 - 1e-6 for a, b in pairwise(sorted(found)))
    assert all(-1e-6 <= each <= 256 + 1e-6 for each in found)
    assert all(a[1] <= b[1] or a[0] == b[0] for a, b in pairwise(ordered))


# --- Reading a picture --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """About where a text lies."""

    text: str
    left: float
    right: float
    top: float
    bottom: float

    def overlaps(self, other: Label) -> bool:
        is_beside = self.right <= other.left or other.right <= self.left
        return not (is_beside or self.bottom <= other.top or other.bottom <= self.top)


def panels(history: Sequence[Decision], width_px: float) -> Iterator[Panel]:
    for each in chart.charted(history):
        yield chart.intervals(history, each, width_px)
    yield chart.evidence(history, width_px)
    yield chart.proofs(history, width_px)
    yield chart.traffic(history, width_px)


def parsed(panel: Panel) -> Iterator[ElementTree.Element]:
    yield from ElementTree.fromstring(f"<g>{''.join(panel.lines)}</g>")


def labels_of(panel: Panel) -> Iterator[Label]:
    sizes = {"name": 15, "tick": 12}
    for each in parsed(panel):
        if each.tag != "text":
            continue
        size = sizes.get(each.get("class", ""), 13)
        wide = width(each.text or "") * size * 0.54
        x, y = float(each.get("x", "")), float(each.get("y", ""))
        left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[each.get("text-anchor", "")]
        yield Label(text=each.text or "", left=left, right=left + wide, top=y - size * 0.75, bottom=y + 1)


class Seen(HTMLParser):
    """What a browser would meet."""

    VOID = ("meta", "br", "rect", "line", "circle", "polyline", "polygon")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for key, value in attrs if key in ("href", "src", "xlink:href")]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        assert not [key for key, _ in attrs if key.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_an_aspect_that_decided_has_a_panel() -> None:
    tail = canaries.reading("latency", aspect=Aspect.TAIL, margin_ratio=None, ratio=2.0)
    last = canaries.decision([*canaries.going().readings[:4], tail], cause=("latency.tail",))

    assert chart.charted([last])[-1] is tail
