"""Commands about canaries: what one will see, what it says so far, what a recorded one would have said."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from deploy_gates.cli.frame import DONE, REFUSED, Commands, command, group, print_json
from deploy_gates.cli.record import _store, _stored, _terminal
from deploy_gates.core.canonical import Json
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.errors import SettingsError, WorkspaceError

if TYPE_CHECKING:
    from deploy_gates.canary.watching import Source
    from deploy_gates.core.canary import Decision, Metric, Plan
    from deploy_gates.core.tally import Tally
    from deploy_gates.report.record import Terminal

REDRAW_S = 0.1
"""A picture that changes faster is not read."""
BAR_COLUMNS = 30
REPORTS = (".html", ".svg")


def add(commands: Commands) -> None:
    """Add these commands to the parser."""
    canaries = group(
        commands,
        "canary",
        "watch a canary, or find out what one would say: live, recorded, simulated, or in pairs",
        "deploy-gates canary replay traffic.ndjson.gz",
    )
    _add_watch(canaries)
    _add_replay(canaries)


def _add_watch(canaries: Commands) -> None:
    watch = _stored(
        canaries,
        "watch",
        _watch,
        "watch a running canary until it is decided; this moves nothing",
        "deploy-gates canary watch ticket-triage --report canary.html",
    )
    watch.add_argument("config", metavar="NAME", help="the config")
    watch.add_argument("--env", default="production", choices=ENVIRONMENTS, help="default: production")
    _reports(watch)
    _plans(watch)


def _add_replay(canaries: Commands) -> None:
    replay = command(
        canaries,
        "replay",
        _replay,
        "judge a recorded stream of requests as if it were live",
        "deploy-gates canary replay traffic.ndjson.gz --report canary.html",
    )
    replay.add_argument(
        "file",
        metavar="FILE",
        help='one observation a line: {"t": 12.5, "arm": "candidate", "key": "user-17", "error": false, '
        '"latency_s": 0.83, "cost": 0.0021}; gzipped or not; - is standard input',
    )
    _reports(replay)
    _plans(replay)


def _reports(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", default="", metavar="FILE", help="write all looks as .html or .svg")


def _plans(parser: argparse.ArgumentParser) -> None:
    """The options that say how to judge; what they leave open, the settings say."""
    plan = parser.add_argument_group("how to judge (default: [tool.deploy_gates.canary] in pyproject.toml)")
    plan.add_argument(
        "--unit", choices=["request", "user"], help="what is counted (default: users, where they keep an arm)"
    )
    plan.add_argument("--share", default="", metavar="PCT", help="the candidate's declared share of traffic")
    plan.add_argument("--mark", type=float, metavar="S", help="when the fixed tests are run, in seconds")
    plan.add_argument("--warm-up", type=float, metavar="S", help="leave so much of latency and cost out")
    plan.add_argument(
        "--alpha", type=float, metavar="P", help="how often a candidate no worse is rolled back"
    )
    plan.add_argument("--inconclusive", choices=["extend", "hold", "rollback"], help="at an undecided mark")
    plan.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME:KIND[:higher][:MARGIN]",
        help="judge a further metric, a `share` or an `amount`: accepted:share:higher:2pt; repeatable",
    )
    plan.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="NAME=MARGIN",
        help="so much worse is refused: latency=1.1 times, errors=0.5pt; repeatable",
    )
    plan.add_argument(
        "--dry-run",
        action="append",
        default=[],
        metavar="NAME",
        help="show a metric, and do not judge it; repeatable",
    )


# --- The plan -----------------------------------------------------------------------------------


def _plan(asked: argparse.Namespace) -> Plan:
    """The plan of the settings, with what the command line says otherwise. `SettingsError`."""
    from deploy_gates import settings, workspace
    from deploy_gates.core.canary import Inconclusive, checked
    from deploy_gates.core.tally import Unit

    plan = settings.load(workspace.find_root(Path.cwd())).canary
    said: dict[str, object] = {}
    if asked.unit:
        said["unit"] = Unit(asked.unit)
    if asked.share:
        said["share"] = _percent("--share", asked.share)
    if asked.inconclusive:
        said["on_inconclusive"] = Inconclusive(asked.inconclusive)
    for option, field in (("mark", "mark_s"), ("warm_up", "warm_up_s"), ("alpha", "false_rollback")):
        if getattr(asked, option) is not None:
            said[field] = getattr(asked, option)
    metrics = {each.name: each for each in plan.metrics}
    for text in asked.metric:
        metric = _declared(text)
        metrics[metric.name] = metric
    for text in asked.margin:
        name, _, margin = text.partition("=")
        metrics[name] = _with_margin(_known(metrics, name, "--margin"), margin)
    for name in asked.dry_run:
        metrics[name] = replace(_known(metrics, name, "--dry-run"), dry_run=True)
    return checked(replace(plan, **said, metrics=tuple(metrics.values())))  # type: ignore[arg-type]  # by field


def _known(metrics: dict[str, Metric], name: str, option: str) -> Metric:
    if name not in metrics:
        raise SettingsError(
            f"{option} names {name!r}, which is no metric of this plan",
            hint=f"{', '.join(metrics)}; --metric {name or 'NAME'}:share adds one",
        )
    return metrics[name]


def _declared(text: str) -> Metric:
    from deploy_gates.core.canary import COST, ERRORS, LATENCY, Better, Kind, declared_metric

    name, *words = text.split(":")
    if not name or not words or words[0] not in (*Kind,):
        raise SettingsError(
            f"--metric {text!r} does not say what it is", hint="--metric accepted:share:higher:2pt"
        )
    if name in (ERRORS, LATENCY, COST):
        raise SettingsError(f"--metric {name}: every canary has it", hint=f"--margin {name}=1.1")
    metric = declared_metric(name, Kind(words[0]))
    for word in words[1:]:
        is_way = word in (*Better,)
        metric = replace(metric, better=Better(word)) if is_way else _with_margin(metric, word)
    return metric


def _with_margin(metric: Metric, text: str) -> Metric:
    is_points = text.endswith("pt")
    try:
        margin = float(text.removesuffix("pt"))
    except ValueError:
        margin = math.nan
    if not math.isfinite(margin):
        raise SettingsError(
            f"{text!r} is no margin of {metric.name}", hint="times: 1.1; or of a share, points: 0.5pt"
        )
    if is_points:
        return replace(metric, margin_pt=margin, margin_ratio=None)
    return replace(metric, margin_ratio=margin, margin_pt=None)


def _percent(option: str, text: str) -> float:
    try:
        share = float(text.removesuffix("%").strip()) / 100
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise SettingsError(f"{option} {text!r} is no share: more than 0 and less than 100 percent")
    return share


# --- Watching -----------------------------------------------------------------------------------


def _watch(asked: argparse.Namespace) -> int:
    from deploy_gates.core.canary import Action
    from deploy_gates.core.tally import Unit

    with _extra():
        from deploy_gates.canary import watching
        from deploy_gates.core.weighing import Sums

    plan, report, screen = _plan(asked), _report(asked), _Screen(asked.json)
    history: list[Decision] = []
    said = ""
    unit = Unit(asked.unit) if asked.unit else None
    with _store(asked) as store:
        for look in watching.watch(store, plan, asked.config, asked.env, _source(asked, plan), unit=unit):
            said = look.moved or (f"stale for {look.stale_s:.0f} s: {look.problem}" if look.problem else "")
            decision = look.decision
            if said:
                screen.remark(decision, said)
            if decision is None or said:
                continue
            if history and decision.at_ms <= history[-1].at_ms:
                history.clear()  # worked out anew, with users as the unit
            history.append(replace(decision, sums=Sums(metrics={})))
            screen.show(history[-1])
            is_undecided = decision.action is Action.HOLD and "undecided" in decision.cause
            if is_undecided:
                break
    return _conclude(history, screen, report, f"{asked.config} in {asked.env}", said)


def _source(asked: argparse.Namespace, plan: Plan) -> Source | None:
    """Where tallies come from if not from clients."""
    return None


# --- Replaying ----------------------------------------------------------------------------------


def _replay(asked: argparse.Namespace) -> int:
    from deploy_gates.core.tally import Unit

    with _extra():
        from deploy_gates.canary import stream
    plan, report = _plan(asked), _report(asked)
    screen = _Screen(asked.json)
    unit = Unit(asked.unit) if asked.unit else None
    history = _weighed(plan, stream.read(asked.file, unit=unit, progress=screen.progress), screen)
    name = "standard input" if asked.file == "-" else Path(asked.file).name
    return _conclude(history, screen, report, name)


def _weighed(plan: Plan, steps: Iterable[tuple[int, tuple[Tally, ...]]], screen: _Screen) -> list[Decision]:
    """All looks, up to the one that decides."""
    with _extra():
        from deploy_gates.core.weighing import Sums, weigh

    history: list[Decision] = []
    decision: Decision | None = None
    for at_ms, tallies in steps:
        if decision is None and tallies:
            plan = replace(plan, unit=tallies[0].unit)
        decision = weigh(plan, tallies, decision, at_ms=at_ms)
        history.append(replace(decision, sums=Sums(metrics={})))  # of use only to the next look
        screen.show(history[-1])
        if decision.has_ended:
            break
    return history


def _conclude(
    history: Sequence[Decision], screen: _Screen, report: Path | None, name: str, moved: str = ""
) -> int:
    """Show the last look, write the report; the exit status. `moved`: who ended it before it was decided."""
    from deploy_gates.core.canary import Action

    if not history:
        raise SettingsError(f"{name}: {moved or 'there is not one whole bin of requests to judge'}")
    screen.end(history, moved)
    if report is not None:
        _write_report(report, history, name)
    return DONE if history[-1].action is Action.PROMOTE else REFUSED


def _report(asked: argparse.Namespace) -> Path | None:
    """Where the report goes; what cannot be written is said before minutes are spent."""
    if not asked.report:
        return None
    path = Path(asked.report)
    if path.suffix not in REPORTS:
        raise SettingsError(f"--report {path} is neither .html nor .svg")
    if not path.parent.is_dir():
        raise SettingsError(f"--report {path}: there is no folder {path.parent}")
    return path


def _write_report(path: Path, history: Sequence[Decision], name: str) -> None:
    from deploy_gates.report import analysis, chart

    is_picture = path.suffix == ".svg"
    text = chart.svg(history) if is_picture else analysis.page(history, title=name)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise WorkspaceError(f"the report cannot be written to {path}: {error.strerror}") from error
    print(f"report: {path}", file=sys.stderr)


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    """One sentence where the statistics are imported and not installed."""
    try:
        yield
    except ImportError as error:
        raise SettingsError(
            f"the canary analysis needs {error.name}, which is not installed",
            hint="pip install 'pytest-deploy-gates[canary]'",
        ) from error


# --- The screen ---------------------------------------------------------------------------------


class _Screen:
    """Shows looks as they come: a picture that is redrawn on a terminal, a line an event elsewhere."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._is_live = sys.stdout.isatty() and not as_json
        self._terminal: Terminal = _terminal()
        self._bar = Bar(sys.stderr) if sys.stderr.isatty() and not self._is_live else None
        self._before: Decision | None = None
        self._drawn = 0
        self._drawn_at = -math.inf
        self._read = ""
        self._remarked = ""

    def progress(self, done: int, whole: int | None) -> None:
        """So much of the input is read."""
        self._read = bar(done, whole)
        if self._bar is not None:
            self._bar.draw(self._read)

    def show(self, decision: Decision, note: str = "") -> None:
        """Show one look, if there is anything new to see."""
        from deploy_gates.report import canary

        if self._as_json:
            return
        if self._is_live:
            self._draw(canary.picture(decision, self._terminal), note)
        elif canary.is_news(self._before, decision):
            self._clear_bar()
            print(self._terminal.said(canary.line(decision)), flush=True)
        self._before = decision

    def remark(self, decision: Decision | None, text: str) -> None:
        """Say what is no look, once, below the last one."""
        if self._is_live and decision is not None:
            self.show(decision, text)
        elif text.partition(":")[2] != self._remarked.partition(":")[2]:
            self._clear_bar()
            print(self._terminal.said(text), file=sys.stderr, flush=True)
            self._remarked = text

    def end(self, history: Sequence[Decision], moved: str = "") -> None:
        """The last look in full; `moved`: who ended the canary before it was decided."""
        from deploy_gates.report import canary

        self._clear_bar()
        last = history[-1]
        if self._as_json:
            looks: list[Json] = [each.to_json() for each in history]
            print_json(finite({"decision": last.to_json(), "looks": looks, "moved": moved or None}))
            return
        self._erase()
        for line in (*canary.picture(last, self._terminal), *canary.table(last, self._terminal)):
            print(line)

    def _draw(self, lines: Sequence[str], note: str) -> None:
        now = time.monotonic()
        if now - self._drawn_at < REDRAW_S:
            return
        self._drawn_at = now
        self._erase()
        below = self._terminal.said(note or self._read)
        room = os.get_terminal_size().lines - 1
        shown = [*lines, *([f"  {below}"] if below else [])][-room:]  # what scrolled away cannot be redrawn
        sys.stdout.write("".join(f"{each}\n" for each in shown))
        sys.stdout.flush()
        self._drawn = len(shown)

    def _erase(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def _clear_bar(self) -> None:
        if self._bar is not None:
            self._bar.clear()


class Bar:
    """One line of a terminal that is drawn over."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_drawn = False
        self._at = -math.inf

    def draw(self, text: str) -> None:
        """Show `text`, not more often than it can be read."""
        now = time.monotonic()
        if now - self._at >= REDRAW_S:
            self._at = now
            self._is_drawn = True
            self._stream.write(f"\r{text}\x1b[K")
            self._stream.flush()

    def clear(self) -> None:
        """Take it away."""
        if self._is_drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._is_drawn = False


def bar(done: int, whole: int | None) -> str:
    """How far something is, as a line."""
    if not whole:
        return f"{done:,}"
    part = min(done / whole, 1.0)
    filled = round(part * BAR_COLUMNS)
    return f"[{'#' * filled}{'.' * (BAR_COLUMNS - filled)}] {part * 100:3.0f} %"


def finite(value: Json) -> Json:
    """The same without infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return value
