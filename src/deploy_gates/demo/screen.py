"""The screen of a demo: scenes as lines. The releases show themselves, as `deploy-gates ship` always does."""

from __future__ import annotations

from collections.abc import Iterator

from deploy_gates.core.canonical import short
from deploy_gates.core.eliminated import TOTAL
from deploy_gates.core.release import State
from deploy_gates.demo import story
from deploy_gates.demo.repository import BLOCKED, WARM_UP_S
from deploy_gates.demo.story import Carried, Ended, Judged, Opened, Scene, Waited
from deploy_gates.report.record import Terminal
from deploy_gates.report.text import pad, wrap

FIRST_LINE = "deploy-gates demo: the users and the model are simulated, everything else is real"
NAME_WIDTH = 13

_GREEN, _RED, _DIM, _BOLD = "32", "31", "2", "1"
_ASCII_MARKS = {"✓": "ok", "✗": "XX", "?": "?"}
_MARKS = {"pass": ("✓", _GREEN), "fail": ("✗", _RED)}
_WORDS = {State.SHIPPED: ("shipped", _GREEN), State.ROLLED_BACK: ("rolled back", _RED)}


def lines(scene: Scene, terminal: Terminal) -> Iterator[str]:
    """What is said of a scene."""
    match scene:
        case Opened():
            yield from _opened(scene, terminal)
        case story.Began(number=number, change=change):
            yield terminal.ink(f"{number}  {change.title}", _BOLD)
            yield from _told("", change.about, terminal, indent=3)
            yield ""
        case Judged():
            yield from _judged(scene, terminal)
        case Waited():
            said = f"{scene.rate_rps:,.0f} requests a second of simulated users to compare with"
            yield from _told("traffic", said, terminal)
        case story.Merged():
            yield f"  {terminal.ink('merged; $ deploy-gates ship', _DIM)}"
        case Carried(promotion=None):
            yield from _told("", story.said(scene), terminal, indent=4)
            yield ""
        case Carried():
            yield ""  # it has shown itself
        case Ended():
            yield from _ended(scene, terminal)


def _opened(scene: Opened, terminal: Terminal) -> Iterator[str]:
    rate = f"{story.RATE_RPS:,} requests a second"
    yield terminal.ink(terminal.said(FIRST_LINE), _BOLD)
    yield ""
    yield from _told("store", scene.store, terminal)
    if scene.dashboard:
        yield from _told("dashboard", scene.dashboard, terminal)
    yield from _told("users", f"{story.SERVICES} processes, {rate}: simulated users (demo)", terminal)
    settings = f"5 % of them see a canary, which warms up for {WARM_UP_S} s instead of 30"
    yield from _told("settings", settings, terminal)
    yield from _told("", "ctrl-c ends the demo and leaves nothing running", terminal)
    yield ""


def _judged(scene: Judged, terminal: Terminal) -> Iterator[str]:
    marks = []
    for name, verdict in scene.gated.gates:
        sign, color = _MARKS.get(verdict, ("?", _DIM))
        marks.append(f"{terminal.ink(sign if terminal.unicode else _ASCII_MARKS[sign], color)} {name}")
    yield f"  {terminal.ink('$ pytest --deploy-gates', _DIM)}"
    yield f"  {'   '.join(marks)}   {terminal.ink(f'{scene.took_s:.1f} s', _DIM)}"


def _ended(scene: Ended, terminal: Terminal) -> Iterator[str]:
    yield terminal.ink("what happened", _BOLD)
    yield ""
    for each in scene.carried:
        word, color = "blocked", _RED
        if each.promotion is not None:
            word, color = _WORDS.get(each.promotion.state, (each.promotion.state.value, _DIM))
        yield f"  {terminal.ink(pad(word, NAME_WIDTH), color)}{short(each.gated.digest)}  {each.change.title}"
        for text in _facts(each):
            yield from _told("", text, terminal)
    yield ""
    steps = max((each.steps for each in scene.carried), default=0)
    done = f"nothing after a merge; of the {TOTAL} steps of old, {steps} ran by themselves"
    yield from _told("by hand", done, terminal)
    yield from _told("took", f"{scene.took_s:.0f} s", terminal)
    if not scene.is_as_told:
        yield ""
        yield from _told("", "It did not go as told: chance has its part in it, see above.", terminal)


def _facts(carried: Carried) -> Iterator[str]:
    if carried.change is BLOCKED or carried.promotion is None or carried.followed_s is not None:
        yield story.said(carried)
    if carried.followed_s is not None:
        clients = f"{carried.clients} of {story.SERVICES} clients"
        yield f"{clients} served that {carried.followed_s * 1000:.0f} ms after the decision"


def _told(name: str, text: str, terminal: Terminal, indent: int = 2 + NAME_WIDTH) -> Iterator[str]:
    """A name and a text that is folded beside it."""
    folded = wrap(terminal.said(text), terminal.width - indent)
    first, *rest = folded or [""]
    yield (" " * 2 + pad(name, indent - 2) + first).rstrip()
    yield from (" " * indent + each for each in rest)
