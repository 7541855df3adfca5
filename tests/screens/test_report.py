"""Reports say the same in every form, fit their place, and let nothing through that acts."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy_gates import report
from deploy_gates.core.errors import SettingsError, WorkspaceError
from deploy_gates.core.gate import GateName, Verdict
from deploy_gates.report import GateReport, RunReport

HERE = Path(__file__).parent

RUNS: dict[str, Callable[[], RunReport]] = {
    "pass": lambda: runs.run(runs.passing()),
    "blocked": lambda: runs.run(runs.blocked()),
    "inconclusive": lambda: runs.run(runs.undecided()),
    "new": lambda: runs.run(runs.new()),
    "chosen": lambda: runs.run(runs.chosen()),
    "two": lambda: runs.run(
        runs.passing(),
        runs.unreadable(),
        unchanged=("hello",),
        deleted=("old-one",),
        notes=("the baseline's answers of 12 cases were asked again: they were older than 7 days",),
    ),
    "nothing": lambda: runs.run(unchanged=("hello", "ticket-triage")),
}


def screen(run: RunReport, **options: Any) -> list[str]:
    return report.terminal(run, **({"color": False, "unicode": True, "verbose": 0} | options))


def columns(line: str) -> int:
    """How wide a terminal shows a line, counted without the code under test."""
    return sum(
        0 if unicodedata.combining(each) or unicodedata.category(each) in ("Mn", "Me", "Cf") else wide
        for each in line
        for wide in [2 if unicodedata.east_asian_width(each) in "WF" else 1]
    )


# --- Whole screens ------------------------------------------------------------------------------


def compare(file: str, text: str) -> None:
    """With UPDATE_SCREENS=1 the file is written instead: look at the difference before committing it."""
    path = HERE / file
    if os.environ.get("UPDATE_SCREENS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_the_screen_of(name: str) -> None:
    compare(f"{name}.txt", "\n".join(screen(RUNS[name]())) + "\n")


def test_the_blocked_screen_with_nothing_but_ascii() -> None:
    run = runs.run(runs.blocked(), runs.undecided(), runs.chosen())

    lines = screen(run, unicode=False)

    compare("ascii.txt", "\n".join(lines) + "\n")
    assert all(line.isascii() for line in lines)


def test_the_blocked_screen_with_v() -> None:
    run = runs.run(runs.blocked(), unchanged=("hello",))

    compare("verbose.txt", "\n".join(screen(run, verbose=1)) + "\n")


def test_the_passing_screen_with_v_tells_what_stands_out() -> None:
    golden = replace(runs.results()[3], reasons=("3 cases were answered from recordings of 5 days ago",))
    typed = replace(runs.results()[0], reasons=("gpt-4.1-mini goes away on 2027-04-14",))
    run = runs.run(replace(runs.passing(), results=runs.results(golden, typed)))

    assert "goes away" not in "\n".join(screen(run))
    assert "goes away" in "\n".join(screen(run, verbose=1))


def test_the_comment_on_a_pull_request() -> None:
    run = runs.run(runs.passing(), runs.blocked(), runs.new(), notes=("`hello` is new",))

    compare("comment.md", report.markdown(run))


# --- Color and width ----------------------------------------------------------------------------


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("verbose", [0, 1])
@pytest.mark.parametrize("name", RUNS)
def test_color_only_repeats_the_words(name: str, verbose: int, unicode: bool) -> None:
    run = RUNS[name]()

    plain = screen(run, verbose=verbose, unicode=unicode)
    colored = screen(run, verbose=verbose, unicode=unicode, color=True)

    assert [re.sub(r"\x1b\[\d+m", "", line) for line in colored] == plain
    assert colored != plain


def test_each_verdict_has_its_color() -> None:
    def marked(given: GateReport, gate: GateName) -> str:
        lines = screen(runs.run(given), color=True)
        return next(line for line in lines if f" {gate} " in line and "took" not in line)

    assert marked(runs.passing(), GateName.GOLDEN).startswith("  \x1b[32m✓\x1b[0m golden")
    assert marked(runs.blocked(), GateName.GOLDEN).startswith("  \x1b[31m✗\x1b[0m golden")
    assert marked(runs.undecided(), GateName.GOLDEN).startswith("  \x1b[33m?\x1b[0m golden")
    assert marked(runs.new(), GateName.UNIT).startswith("\x1b[2m  – unit")


@pytest.mark.parametrize("verbose", [0, 1])
@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("width", [72, 80, 96, 120])
def test_no_line_is_wider_than_the_screen(width: int, unicode: bool, verbose: int) -> None:
    run = runs.run(*(RUNS[name]().changes[0] for name in RUNS if RUNS[name]().changes))

    lines = screen(run, width=width, unicode=unicode, verbose=verbose)

    assert max(map(columns, lines)) <= width


# --- What users and models write ----------------------------------------------------------------

HOSTILE = (
    "\x1b[31mred\x1b]0;title\x07 \r\n\t\u202e\u2028\x9b2J \ud800 票票票 👩\u200d👧 a\u0301 | `x` `` *b* _i_ "
    "<script>alert(1)</script><img src=x onerror=alert(1)> &amp; @octocat #1 [x](https://evil.example) "
    "www.evil.example ${{ x }} ]]> --> ' \" \\"
)


def everywhere(value: Any, text: str) -> Any:
    """`value` with every string in it replaced, but for those that choose rather than say."""
    if isinstance(value, str) and not isinstance(value, GateName | Verdict):
        return text
    if isinstance(value, tuple):
        return tuple(everywhere(each, text) for each in value)
    if isinstance(value, list):
        return [everywhere(each, text) for each in value]
    if isinstance(value, dict):
        return {key: everywhere(each, text) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = ("config", "cases", "texts", "recordings", "problems")
        names = [field.name for field in dataclasses.fields(value) if field.name not in kept]
        return replace(value, **{name: everywhere(getattr(value, name), text) for name in names})
    return value


def hostile(text: str = HOSTILE) -> RunReport:
    made: RunReport = everywhere(
        runs.run(runs.blocked(), runs.undecided(), unchanged=("a",), deleted=("b",), notes=("c",)), text
    )
    return made


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("verbose", [0, 1])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80) | st.text("票 a\u0301\x1b", max_size=200) | st.just(HOSTILE))
def test_no_text_breaks_the_screen(verbose: int, unicode: bool, text: str) -> None:
    lines = screen(hostile(text), verbose=verbose, unicode=unicode)

    assert max(map(columns, lines)) <= 96
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\ud800-\udfff]", "".join(lines))


def test_a_model_that_talks_forever_does_not_scroll_the_verdict_away() -> None:
    golden = replace(runs.results()[3], verdict=Verdict.FAIL, reasons=("so on " * 100_000,) * 50)
    run = runs.run(replace(runs.passing(), results=runs.results(golden)))

    assert len(screen(run)) < 50
    assert len(screen(run, unicode=False)) < 50
    assert len(report.markdown(run)) < 10_000
    assert len(report.html(run)) < 300_000


def test_escapes_are_made_visible_and_not_dropped() -> None:
    text = "\n".join(screen(hostile(), verbose=1))

    assert r"\x1b[31mred\x1b]0;title\x07" in text
    assert r"\u202e" in text


def test_a_comment_holds_no_markup_but_its_own() -> None:
    text = report.markdown(hostile())

    tags = set(re.findall(r"<[^>]*>", text))
    assert tags <= {
        "<!-- deploy-gates -->",
        *("<code>", "</code>", "<br>", "<sub>", "</sub>"),
        *("<details>", "</details>", "<summary>", "</summary>"),
    }
    assert "@" not in text.replace("&#64;", "")
    assert "://" not in text
    assert not re.search(r"www\.", text)
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} <= {4, 5, 7}


def test_a_comment_spells_what_markdown_acts_on_as_entities() -> None:
    text = report.markdown(hostile())

    for acting in ("`", "*b*", "_i_", "[x]", " #1 ", "$", "\\", "&amp;"):
        assert acting not in text


class _Tags(HTMLParser):
    """Which tags a page has, and whether all that are opened are closed."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(f"@{name}" for name, _ in attrs)}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(f"@{name}" for name, _ in attrs)}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_holds_no_markup_but_its_own_and_loads_nothing() -> None:
    ours, theirs = _Tags(), _Tags()
    ours.feed(report.html(runs.run(runs.blocked(), runs.undecided(), deleted=("b",), notes=("`c`",))))
    theirs.feed(report.html(hostile()))

    assert theirs.seen <= ours.seen
    assert ours.open == theirs.open == []
    assert ours.seen.isdisjoint({"script", "link", "img", "iframe", "@src", "@href", "@onload", "@style"})


def test_the_picture_is_told_in_words_too_and_drawn_only_where_there_are_numbers() -> None:
    flat = {"change_pt": 0.0, "low_pt": -0.04, "high_pt": 0.0, "margin_pt": 2.0, "confidence": 0.95}

    def page(figures: dict[str, Any]) -> str:
        golden = replace(runs.results()[3], figures=figures)
        return report.html(runs.run(replace(runs.passing(), results=runs.results(golden))))

    assert "changed by ±0.0 pt, between ±0.0 pt and ±0.0 pt (each 95 % sure); the margin is −2.0 pt." in page(
        flat
    )
    assert "<svg" not in page(flat | {"low_pt": None})
    assert "<svg" not in page(flat | {"high_pt": float("nan")})
    assert "<svg" not in page({})


def test_every_form_can_be_written_whatever_the_text_is(tmp_path: Path) -> None:
    for form in ("md", "json", "html", "xml"):
        report.write(tmp_path / f"report.{form}", hostile())
        assert (tmp_path / f"report.{form}").read_text(encoding="utf-8")


# --- Comments -----------------------------------------------------------------------------------


def test_a_comment_begins_with_the_marker_by_which_it_is_found_again() -> None:
    assert report.markdown(RUNS["pass"]()).startswith("<!-- deploy-gates -->\n")


@pytest.mark.parametrize(("configs", "cases"), [(1, 20_000), (1, 200), (30, 100), (300, 10), (300, 0)])
def test_a_comment_never_grows_beyond_what_github_takes(configs: int, cases: int) -> None:
    golden = runs.results()[3]
    worse = [
        {"case": f"{n}-" + "x" * 60, "field": "f", "expected": "|" * 99, "got": "`" * 99}
        for n in range(cases)
    ]
    crowded = replace(
        runs.blocked(),
        results=runs.results(replace(golden, verdict=Verdict.FAIL, figures={"worse": worse})),
    )

    text = report.markdown(runs.run(*[crowded] * configs, notes=("n" * 9_999,) * 50))

    assert len(text) <= 60_000
    assert "may not be merged" in text
    assert text.count("<details>") == text.count("</details>")


def test_a_comment_that_is_cut_shows_what_blocks_first() -> None:
    text = report.markdown(runs.run(*[runs.passing()] * 300, runs.blocked()))

    assert text.index("BLOCK: ticket-triage") < text.index("PASS: ticket-triage")
    assert re.search(r"\d+ more configs would not fit into a comment", text)


# --- For programs -------------------------------------------------------------------------------


def test_json_holds_everything_with_a_version() -> None:
    data = json.loads(report.json_report(RUNS["two"]()))

    assert data["version"] == 1
    assert data["verdict"] == "fail"
    assert [each["name"] for each in data["configs"]] == ["ticket-triage", "reply-draft"]
    assert [gate["gate"] for gate in data["configs"][0]["gates"]] == [*GateName]
    assert data["configs"][1]["candidate"] is None
    assert data["spent_nanousd"] == 310_000_000


def test_json_has_no_nan_for_no_program_reads_it() -> None:
    golden = replace(runs.results()[3], figures={"low_pt": float("nan")})

    text = report.json_report(runs.run(replace(runs.passing(), results=runs.results(golden))))

    assert json.loads(text)["configs"][0]["gates"][3]["figures"] == {"low_pt": None}


def test_half_a_surrogate_pair_survives_in_json() -> None:
    text = report.json_report(hostile("\ud800 票"))

    assert json.loads(text)["base"] == "\ud800 票"
    assert "票" in text


def test_junit_counts_a_failure_an_error_and_a_skip_as_what_they_are() -> None:
    run = runs.run(runs.blocked(), runs.undecided(), runs.new())

    root = ElementTree.fromstring(report.junit(run))

    counts = {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "15", "failures": "1", "errors": "1", "skipped": "1"}
    assert [suite.get("name") for suite in root] == ["ticket-triage", "ticket-triage", "hello"]
    assert [each.tag for each in root.iterfind(".//testcase/*")] == ["failure", "error", "skipped"]


def test_junit_is_xml_whatever_a_model_says() -> None:
    root = ElementTree.fromstring(report.junit(hostile()))

    assert "\\x1b[31mred" in "".join(root.itertext())


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("report.md", "<!-- deploy-gates -->"),
        ("report.json", "{"),
        ("report.html", "<!doctype html>"),
        ("report.xml", "<?xml"),
    ],
)
def test_the_suffix_chooses_the_form(tmp_path: Path, name: str, begins: str) -> None:
    report.write(tmp_path / "made" / name, RUNS["pass"]())

    assert (tmp_path / "made" / name).read_text(encoding="utf-8").startswith(begins)


@pytest.mark.parametrize("name", ["report.txt", "report", ".md", "report.md.gz"])
def test_a_suffix_without_a_form_is_refused_before_the_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"has to end in \.md, \.json, \.html, or \.xml"):
        report.check(tmp_path / name)


def test_a_report_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file where a folder should be")
    (tmp_path / "report.md").mkdir()

    with pytest.raises(WorkspaceError, match=r"report\.md cannot be written"):
        report.write(tmp_path / "folder" / "report.md", RUNS["pass"]())
    with pytest.raises(SettingsError, match="is a folder"):
        report.write(tmp_path / "report.md", RUNS["pass"]())


# --- The same sentence everywhere ---------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_every_form_comes_to_the_same_conclusion(name: str) -> None:
    run = RUNS[name]()
    said = [each.conclusion for each in run.changes] or [run.conclusion]

    def letters(text: str) -> str:
        return re.sub(r"\s+", " ", text)

    for text in ("\n".join(screen(run)), report.markdown(run), report.html(run), report.json_report(run)):
        assert all(sentence in letters(text) for sentence in said)


@pytest.mark.parametrize(
    ("given", "conclusion"),
    [
        (runs.passing(), "may be promoted"),
        (runs.new(), "may go to development and staging"),
        (runs.chosen(), "passes type and cost; unit, integration, and golden were skipped"),
        (replace(runs.passing(), open_to=()), "passes the five gates"),
        (runs.blocked(), "may not be merged: golden fails"),
        (runs.undecided(), "may not be merged: golden is inconclusive"),
        (
            runs.unreadable(),
            "reply-draft may not be merged: type fails; unit, integration, golden, and cost are inconclusive",
        ),
    ],
)
def test_the_last_line_says_what_is_true_now(given: GateReport, conclusion: str) -> None:
    assert given.conclusion.endswith(conclusion)


def test_a_config_whose_gates_were_all_skipped_passes_nothing() -> None:
    skipped = tuple(replace(each, verdict=Verdict.SKIP) for each in runs.results())

    given = replace(runs.passing(), results=skipped)

    assert given.word == "SKIP"
    assert given.conclusion.endswith("was not gated: every gate was skipped")


# --- Progress -----------------------------------------------------------------------------------


def progress(**numbers: Any) -> str:
    made = {"answered": 124, "total": 320, "in_flight": 12, "spent_nanousd": 12_000_000, "elapsed_s": 9.0}
    return report.progress("golden", **(made | numbers))


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        ({}, "golden  124 of 320 answers  39 %  ▕█████▍        ▏  12 in flight, $0.012, about 14 s left"),
        (
            {"unicode": False},
            "golden  124 of 320 answers  39 %  [#####         ]  12 in flight, $0.012, about 14 s left",
        ),
        ({"answered": 0}, "golden  0 of 320 answers   0 %  ▕              ▏  12 in flight, $0.012"),
        (
            {"answered": 319, "in_flight": 1},
            "golden  319 of 320 answers  99 %  ▕█████████████▉▏  1 in flight, $0.012, about 1 s left",
        ),
        (
            {"answered": 320, "in_flight": 0},
            "golden  320 of 320 answers  100 %  ▕██████████████▏  0 in flight, $0.012",
        ),
        (
            {"answered": 0, "total": 0},
            "golden  0 of 0 answers  100 %  ▕██████████████▏  12 in flight, $0.012",
        ),
        (
            {"elapsed_s": 900.0},
            "golden  124 of 320 answers  39 %  ▕█████▍        ▏  12 in flight, $0.012, about 24 min left",
        ),
    ],
)
def test_progress_is_one_line(numbers: dict[str, Any], line: str) -> None:
    assert progress(**numbers) == line


def test_progress_never_wraps() -> None:
    assert columns(progress(total=10**9, in_flight=10**6, spent_nanousd=10**15, width=72)) <= 72
