"""Changed answers side by side: on a terminal, and as one HTML page without network or script."""

from __future__ import annotations

import difflib
import html as escaping
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from deploy_gates.report.page import POLICY, STYLE
from deploy_gates.report.record import Terminal
from deploy_gates.report.text import clip, counted, pad, width, wrap

_GREEN, _RED, _YELLOW, _DIM, _BOLD = "32", "31", "33", "2", "1"
SHOWN_MAX = 20
TEXT_MAX_LINES = 12
PAGE_MAX = 2_000
PAGE_TEXT_MAX = 20_000


class Came(StrEnum):
    """What became of a case, in the order in which one wants to look."""

    WORSE = "worse"
    BETTER = "better"
    OTHER = "other words"
    """Met or missed as before, in another way."""
    UNKNOWN = "not known"
    """No answer of one of the two is recorded."""
    SAME = "same"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reviewed:
    """One case under both configs."""

    case: str
    came: Came
    inputs: str
    expected: str
    baseline: str
    candidate: str
    why: str = ""
    """What the candidate's answer misses."""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """All cases of one config that were looked at."""

    config: str
    baseline: str
    """A digest, or what it is compared with; so is `candidate`."""
    candidate: str
    cases: tuple[Reviewed, ...]

    def of(self, came: Came) -> tuple[Reviewed, ...]:
        return tuple(each for each in self.cases if each.came is came)

    @property
    def counts(self) -> str:
        """`3 worse, 1 better, 12 in other words`."""
        said = {
            Came.WORSE: "{} worse",
            Came.BETTER: "{} better",
            Came.OTHER: "{} in other words",
            Came.UNKNOWN: "{} not known",
            Came.SAME: "{} the same",
        }
        told = [said[came].format(f"{n:,}") for came in Came if (n := len(self.of(came)))]
        return ", ".join(told) or "no cases"


# --- Terminal -----------------------------------------------------------------------------------

_INKS = {Came.WORSE: _RED, Came.BETTER: _GREEN, Came.OTHER: _YELLOW, Came.UNKNOWN: _DIM, Came.SAME: _DIM}


def lines(review: Review, terminal: Terminal, *, everything: bool = False) -> list[str]:
    """The changed answers, the worse ones first; all of them with `everything`."""
    made = [
        "",
        f"{terminal.ink(terminal.said(review.config), _BOLD)}  "
        + terminal.said(f"{review.baseline} → {review.candidate}"),
        f"  {review.counts}",
    ]
    wanted = [each for came in Came if came is not Came.SAME or everything for each in review.of(came)]
    shown = wanted if everything else wanted[:SHOWN_MAX]
    for each in shown:
        made += ["", *_case(each, terminal, everything)]
    if len(wanted) > len(shown):
        made += ["", terminal.said(f"  … {len(wanted) - len(shown):,} more with --all, or with --html")]
    return [*made, ""]


def _case(each: Reviewed, terminal: Terminal, everything: bool) -> Iterator[str]:
    title = f"  {terminal.said(each.case)}"
    word = terminal.ink(each.came.value, _INKS[each.came])
    tags = terminal.ink(terminal.said("  " + ", ".join(each.tags)), _DIM) if each.tags else ""
    yield f"{title}  {word}{tags}"
    room = terminal.width - 4
    for label, text in (("inputs", each.inputs), ("expected", each.expected), ("misses", each.why)):
        if text:
            told = clip(terminal.said(" ".join(text.split())), room - 10, ellipsis=terminal.said("…"))
            yield f"    {terminal.ink(pad(label, 10), _DIM)}{told}"
    column = (room - 3) // 2
    yield "    " + terminal.ink(pad("baseline", column) + "   candidate", _DIM)
    most = 1_000 if everything else TEXT_MAX_LINES
    left, right = (_wrapped(text, column, most, terminal) for text in (each.baseline, each.candidate))
    bar = "│" if terminal.unicode else "|"
    for at in range(max(len(left), len(right))):
        one = left[at] if at < len(left) else ""
        other = right[at] if at < len(right) else ""
        differs = one != other
        yield (
            "    "
            + terminal.ink(pad(one, column), _RED if differs else "")
            + f" {bar} "
            + terminal.ink(other, _GREEN if differs else "")
        ).rstrip()


def _wrapped(text: str, columns: int, most: int, terminal: Terminal) -> list[str]:
    made: list[str] = []
    for line in (text or "(nothing)").splitlines():
        indent = " " * min(len(line) - len(line.lstrip(" ")), columns // 2)
        said = terminal.said(line.strip())
        made += [indent + each for each in wrap(said, columns - len(indent))] if said else [""]
    if len(made) > most:
        made = [*made[: most - 1], terminal.said(f"… {len(made) - most + 1:,} more lines")]
    assert all(width(line) <= columns for line in made), "wrapped lines fit their column"
    return made


# --- A page -------------------------------------------------------------------------------------


def html(reviews: Sequence[Review]) -> str:
    """All of it as one self-contained page."""
    names = ", ".join(review.config for review in reviews) or "nothing"
    made = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>Review of {_said(names)} – deploy gates</title>",
        f"<style>{STYLE}{_STYLE}</style>",
        "</head>",
        "<body>",
        "<header><h1>deploy gates: changed answers</h1></header>",
        "<main>",
        *(line for review in reviews for line in _section(review)),
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(made) + "\n"


def _section(review: Review) -> Iterator[str]:
    yield f"<section><h2>{_said(review.config)}</h2>"
    yield f"<p>{_said(review.baseline)} → {_said(review.candidate)}: {_said(review.counts)}</p>"
    kept = [each for came in Came if came is not Came.SAME for each in review.of(came)]
    yield '<nav aria-label="kinds">'
    for came in Came:
        found = review.of(came)
        if found and came is not Came.SAME:
            yield f'<a href="#{_anchor(review, found[0])}">{_said(came.value)} ({len(found):,})</a>'
    yield "</nav>"
    for each in kept[:PAGE_MAX]:
        yield from _article(review, each)
    if len(kept) > PAGE_MAX:
        yield f"<p>… {counted(len(kept) - PAGE_MAX, 'case')} more are not shown.</p>"
    yield "</section>"


def _anchor(review: Review, each: Reviewed) -> str:
    return _said(f"{review.config}/{each.case}".replace(" ", "_"))


def _article(review: Review, each: Reviewed) -> Iterator[str]:
    kind = each.came.name.lower()
    yield f'<article id="{_anchor(review, each)}" class="case {kind}">'
    tags = "".join(f' <span class="tag">{_said(tag)}</span>' for tag in each.tags)
    yield f'<h3>{_said(each.case)} <span class="came">{_said(each.came.value)}</span>{tags}</h3>'
    yield "<dl>"
    for label, text in (("inputs", each.inputs), ("expected", each.expected), ("misses", each.why)):
        if text:
            yield f"<dt>{label}</dt><dd><pre>{_said(text[:PAGE_TEXT_MAX])}</pre></dd>"
    yield "</dl>"
    before, after = _marked(each.baseline[:PAGE_TEXT_MAX], each.candidate[:PAGE_TEXT_MAX])
    yield '<div class="sides">'
    yield f"<div><h4>baseline</h4><pre>{before}</pre></div>"
    yield f"<div><h4>candidate</h4><pre>{after}</pre></div>"
    yield "</div></article>"


def _marked(before: str, after: str) -> tuple[str, str]:
    """Both texts, with the words that differ marked."""
    one, other = _pieces(before), _pieces(after)
    left: list[str] = []
    right: list[str] = []
    matcher = difflib.SequenceMatcher(a=one, b=other, autojunk=False)
    if len(one) * len(other) > 4_000_000:  # a picture of it is not worth the wait
        return _said(before), _said(after)
    for kind, a, b, c, d in matcher.get_opcodes():
        was, now = _said("".join(one[a:b])), _said("".join(other[c:d]))
        left.append(was if kind == "equal" or not was else f"<del>{was}</del>")
        right.append(now if kind == "equal" or not now else f"<ins>{now}</ins>")
    return "".join(left), "".join(right)


def _pieces(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def _said(text: str) -> str:
    """`text` as it can stand in a page: escaped, and without signs that no page shows."""
    shown = "".join(char if char in "\n\t" or char.isprintable() else "\ufffd" for char in text)
    return escaping.escape(shown)


_STYLE = """
nav a { margin-right: 1rem; }
.case { border-left: 4px solid #8888; padding: .1rem 0 .4rem 1rem; margin: 1.6rem 0; }
.case.worse { border-color: #c62828; } .case.better { border-color: #2e7d32; }
.case.other { border-color: #b26a00; }
.case h3 { margin: .2rem 0 .4rem; font-size: 1.05rem; overflow-wrap: anywhere; }
.came { font-weight: normal; opacity: .75; margin-left: .6rem; }
.tag { font-size: .8rem; font-weight: normal; border: 1px solid #8888; border-radius: 4px; padding: 0 .4rem; }
.case dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0 0 .5rem; }
.case dt { opacity: .7; } .case dd { margin: 0; min-width: 0; }
.case pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.sides > div { border: 1px solid #8886; border-radius: 6px; padding: .4rem .7rem; min-width: 0; }
.sides h4 { margin: 0 0 .3rem; font-size: .85rem; opacity: .7; font-weight: normal; }
del { background: #ff525240; text-decoration: none; border-bottom: 2px solid #c62828; }
ins { background: #4caf5040; text-decoration: none; border-bottom: 2px solid #2e7d32; }
@media (max-width: 40rem) { .sides { grid-template-columns: 1fr; } }
"""
