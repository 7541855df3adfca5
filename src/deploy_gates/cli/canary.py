"""Commands about canaries: what one will see, what it says so far, what a recorded one would have said."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from deploy_gates.cli.frame import (
    DONE,
    REFUSED,
    Commands,
    command,
    decimal,
    group,
    opened,
    positive,
    print_json,
    stored,
    terminal,
)
from deploy_gates.core.canonical import Json
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.errors import SettingsError, WorkspaceError
from deploy_gates.core.tally import BIN_MS

if TYPE_CHECKING:
    from deploy_gates.canary.pairs import Asker, Prompt
    from deploy_gates.canary.traffic import Traffic
    from deploy_gates.core.canary import Action, Decision, Metric, Plan
    from deploy_gates.core.pairs import Pairing
    from deploy_gates.core.planning import Foresight
    from deploy_gates.core.tally import Tally
    from deploy_gates.report.record import Terminal

REDRAW_S = 0.1
"""A picture that changes faster is not read."""
BAR_COLUMNS = 30
LOOKS_MAX = 20_000
"""A day of looks; of more, every other one is forgotten."""
REPORTS = (".html", ".svg")
BOUNDS_CONFIDENCE = 0.95
"""Of each bound of how often simulated canaries end in some way."""
SHARE = 0.05
"""The share that is looked at where none is declared."""


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
    _add_simulate(canaries)
    _add_plan(canaries)
    _add_pair(canaries)


def _add_watch(canaries: Commands) -> None:
    watch = stored(
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


def _add_simulate(canaries: Commands) -> None:
    simulate = command(
        canaries,
        "simulate",
        _simulate,
        "make traffic of a canary, and judge it or write it down",
        "deploy-gates canary simulate --scenario lat10 --rate 200 --share 10 --runs 100",
    )
    simulate.add_argument(
        "--scenario",
        default="aa",
        metavar="NAME",
        help="what to start from (default: aa, no difference); lat10 and cost30 are so many percent worse, "
        "err2 and cost2 so many times",
    )
    simulate.add_argument("--seed", type=_seed, default=1, help="the same seed makes the same traffic")
    simulate.add_argument(
        "-o", "--output", default="", metavar="FILE", help="write observations; .gz packs them"
    )
    simulate.add_argument(
        "--runs", type=positive, metavar="N", help="judge so many, and tell how often each decision came"
    )
    traffic = simulate.add_argument_group("what differs from the scenario")
    for option, (_, kind, metavar, said) in _TRAFFIC.items():
        traffic.add_argument(f"--{option}", type=kind, metavar=metavar, help=said)
    traffic.add_argument(
        "--step",
        action="append",
        default=[],
        metavar="S:PCT",
        help="from so many seconds on the candidate gets another share: 100:25; repeatable",
    )
    _reports(simulate)
    _plans(simulate)


_TRAFFIC: dict[str, tuple[str, type, str, str]] = {
    "rate": ("rate_rps", float, "RPS", "requests a second"),
    "duration": ("duration_s", float, "S", "how long the canary runs"),
    "error-rate": ("error_rate", float, "P", "how often the baseline fails"),
    "errors": ("errors_ratio", float, "TIMES", "the candidate fails so many times as often"),
    "latency": ("latency_ratio", float, "TIMES", "it takes so many times as long"),
    "cost": ("cost_ratio", float, "TIMES", "it costs so many times as much"),
    "tail-share": ("tail_share", float, "P", "this part of its requests is slower ..."),
    "tail": ("tail_ratio", float, "TIMES", "... by so many times"),
    "cold": ("cold_s", float, "S", "so long its caches are cold"),
    "drift": ("drift", float, "P", "by so much both arms rise and fall"),
    "bursts": ("bursts", int, "N", "so many bursts of errors of both arms"),
    "users": ("requests_per_user", float, "N", "who comes keeps an arm, and makes so many requests"),
}
"""Options of `simulate`, and the fields of the traffic that they set."""


def _add_plan(canaries: Commands) -> None:
    plan = stored(
        canaries,
        "plan",
        _foresee,
        "tell what a canary will be able to see, before it starts",
        "deploy-gates canary plan ticket-triage --share 5",
    )
    plan.add_argument(
        "config", nargs="?", default="", metavar="NAME", help="the config, as clients report it"
    )
    plan.add_argument("--env", default="production", choices=ENVIRONMENTS, help="default: production")
    plan.add_argument("--from", dest="recorded", default="", metavar="FILE", help="take recorded traffic")
    plan.add_argument(
        "--rate", type=_some, metavar="RPS", help="requests (or users) a second (default: as it was)"
    )
    plan.add_argument(
        "--minutes", type=_some, default=10.0, metavar="N", help="take so much of the past (default: 10)"
    )
    _plans(plan)


def _add_pair(canaries: Commands) -> None:
    pair = command(
        canaries,
        "pair",
        _pair,
        "have both configs answer the same prompts, for teams with little traffic",
        "deploy-gates canary pair ticket-triage --base store:production --repeat 3 --budget 1.50",
    )
    pair.add_argument("config", nargs="?", default="", metavar="NAME", help="the config")
    pair.add_argument("--base", default="", metavar="REF", help="a commit, or store:production")
    pair.add_argument(
        "--prompts",
        default="",
        metavar="FILE",
        help='inputs, one JSON object a line: {"body": "…"} or {"id": "a", "inputs": {…}} '
        "(default: the golden cases)",
    )
    pair.add_argument("--repeat", type=positive, default=1, metavar="N", help="ask each so often (default 1)")
    pair.add_argument(
        "--budget", default="", metavar="USD", help="spend no more (default: as the settings say)"
    )
    pair.add_argument(
        "--in-flight", type=positive, default=4, metavar="N", help="so many pairs at once (default 4)"
    )
    pair.add_argument("--save", default="", metavar="FILE", help="keep the pairs, one a line")
    pair.add_argument(
        "--from", dest="recorded", default="", metavar="FILE", help="judge pairs that were kept; ask nobody"
    )
    _plans(pair)


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
    from deploy_gates import settings, workspace
    from deploy_gates.core.canary import Action
    from deploy_gates.core.tally import Unit

    with _extra():
        from deploy_gates.canary import watching

    source, delay_s = None, watching.REPORTING_S
    if settled := settings.load(workspace.find_root(Path.cwd())).prometheus:
        from deploy_gates.canary.prometheus import Prometheus

        server = Prometheus.of(settled, config=asked.config, environment=asked.env)
        source, delay_s = server.tallies, server.delay_s
    plan, report, screen = _plan(asked), _report(asked), _Screen(asked.json)
    history: list[Decision] = []
    settled_unit = settings.load(workspace.find_root(Path.cwd())).canary_table.get("unit")
    unit = Unit(str(asked.unit or settled_unit)) if asked.unit or settled_unit else None
    with opened(asked) as store:
        watched = watching.watch(store, plan, asked.config, asked.env, source, unit=unit, delay_s=delay_s)
        for look in watched:
            if look.problem:
                screen.remark(look.decision, f"stale for {look.stale_s:.0f} s: {look.problem}")
            if look.decision is None or look.problem or look.moved:
                continue
            if history and look.decision.at_ms < history[-1].at_ms:
                history.clear()  # worked out anew, with users as the unit
            _keep(history, look.decision)
            screen.show(history[-1])
            if look.decision.action is Action.HOLD and "undecided" in look.decision.cause:
                break  # from here on, a person decides
    status = _conclude(history, screen, report, f"{asked.config} in {asked.env}", look.moved)
    return DONE if look.is_promoted else status


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
    """The looks up to the one that decides. What comes after it is read all the same, and may be no traffic.

    Until the end is reached, nobody is told of a promotion.
    """
    with _extra():
        from deploy_gates.core.canary import Action
        from deploy_gates.core.weighing import weigh

    history: list[Decision] = []
    decision: Decision | None = None
    for at_ms, tallies in steps:
        if decision is not None and decision.has_ended:
            continue
        if decision is None and tallies:
            plan = replace(plan, unit=tallies[0].unit)
        decision = weigh(plan, tallies, decision, at_ms=at_ms)
        _keep(history, decision)
        if decision.action is not Action.PROMOTE:
            screen.show(history[-1])
    if history and history[-1].action is Action.PROMOTE:
        screen.show(history[-1])
    return history


def _keep(history: list[Decision], decision: Decision) -> None:
    """Add a look to those kept, without what only the next look needs."""
    from deploy_gates.core.weighing import Sums

    if len(history) >= LOOKS_MAX:
        del history[1::2]
    history.append(replace(decision, sums=Sums(metrics={})))


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


# --- Simulating ---------------------------------------------------------------------------------


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return int(text)


def _some(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _simulate(asked: argparse.Namespace) -> int:
    if asked.output and (asked.runs or asked.report):
        raise SettingsError(
            "--output writes the traffic of one canary, and judges none", hint="leave out --runs and --report"
        )
    if asked.runs and asked.report:
        raise SettingsError("--report shows one canary, and --runs judges many", hint="leave one out")
    with _extra():
        from deploy_gates.canary import traffic as simulated

    plan, report = _plan(asked), _report(asked)
    traffic = _traffic(asked)
    plan = replace(plan, unit=traffic.unit, share=None, shares=simulated.shares(traffic))
    if asked.output:
        return _write_traffic(Path(asked.output), simulated.observations(traffic, asked.seed), asked.json)
    if asked.runs:
        return _tell_runs(asked, plan, traffic)
    screen = _Screen(asked.json)
    history = _weighed(plan, simulated.steps(traffic, asked.seed), screen)
    return _conclude(history, screen, report, f"simulated: {asked.scenario}, seed {asked.seed}")


def _traffic(asked: argparse.Namespace) -> Traffic:
    with _extra():
        from deploy_gates.canary.traffic import SCENARIOS, checked

    if asked.scenario not in SCENARIOS:
        raise SettingsError(f"there is no scenario {asked.scenario!r}", hint=", ".join(SCENARIOS))
    said: dict[str, object] = {}
    for option, (field, *_) in _TRAFFIC.items():
        value = getattr(asked, option.replace("-", "_"))
        if value is not None:
            if not math.isfinite(value) or value < 0:
                raise SettingsError(f"--{option} {value}: a number from 0 on is needed")
            said[field] = value
    if asked.share:
        said["share"] = _percent("--share", asked.share)
    if asked.step:
        said["steps"] = tuple(_step(text) for text in asked.step)
    return checked(replace(SCENARIOS[asked.scenario], **said))  # type: ignore[arg-type]  # by field


def _step(text: str) -> tuple[float, float]:
    since, _, share = text.partition(":")
    try:
        since_s = float(since)
    except ValueError:
        since_s = math.nan
    if not 0 < since_s <= 86_400:
        raise SettingsError(f"--step {text!r} does not say from which second on", hint="--step 100:25")
    return since_s, _percent("--step", share)


def _write_traffic(path: Path, lines: Iterator[str], as_json: bool) -> int:
    """Write observations to a file, packed where its name says so; `-` is standard output."""
    import gzip

    count = 0
    try:
        with contextlib.ExitStack() as stack:
            if str(path) == "-":
                file: TextIO = sys.stdout
            elif path.suffix == ".gz":
                file = stack.enter_context(gzip.open(path, "wt", encoding="utf-8", compresslevel=3))
            else:
                file = stack.enter_context(path.open("w", encoding="utf-8"))
            for line in lines:
                file.write(line)
                count += 1
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WorkspaceError(f"traffic cannot be written to {path}: {error.strerror}") from error
    if str(path) != "-":
        if as_json:
            print_json({"file": str(path), "observations": count})
        else:
            print(f"{count:,} observations: {path}", file=sys.stderr)
    return DONE


class _Run(NamedTuple):
    """How one simulated canary ended."""

    action: Action
    """One that is taken back because its last mark found it undecided is held."""
    elapsed_s: float
    requests: int
    """Of the candidate."""


def _run(plan: Plan, traffic: Traffic, seed: int) -> _Run:
    """One simulated canary, to its end."""
    from deploy_gates.canary.traffic import steps
    from deploy_gates.core.canary import Action
    from deploy_gates.core.weighing import weigh

    decision: Decision | None = None
    for at_ms, tallies in steps(traffic, seed):
        decision = weigh(plan, tallies, decision, at_ms=at_ms, explain=False)
        if decision.has_ended:
            break
    assert decision is not None, "traffic that was checked has bins"
    action = Action.HOLD if decision.cause == ("undecided",) else decision.action
    return _Run(action, decision.elapsed_s, decision.arms.candidate)


def _tell_runs(asked: argparse.Namespace, plan: Plan, traffic: Traffic) -> int:
    """How often simulated canaries ended in which way, and when."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from statistics import median

    from deploy_gates.core.canary import Action
    from deploy_gates.core.stats import clopper_pearson

    progress = Bar(sys.stderr)
    found: list[_Run] = []
    cores = min(os.cpu_count() or 1, asked.runs)
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        seeds = range(asked.seed, asked.seed + asked.runs)
        one = functools.partial(_run, plan, traffic)
        for each in pool.map(one, seeds, chunksize=max(1, min(20, asked.runs // (4 * cores)))):
            found.append(each)
            progress.draw(bar(len(found), asked.runs))
    progress.clear()
    told = {
        "rolled back": [each for each in found if each.action is Action.ROLLBACK],
        "promoted": [each for each in found if each.action is Action.PROMOTE],
        "undecided": [each for each in found if each.action not in (Action.ROLLBACK, Action.PROMOTE)],
    }
    if asked.json:
        print_json({"runs": asked.runs, **{name: _outcome(each, asked.runs) for name, each in told.items()}})
        return DONE
    print(f"\n  {asked.runs:,} canaries: {asked.scenario}, {traffic.rate_rps:g} requests a second")
    print(f"\n  {'':<13}{'how often':>10}{'95 % bounds':>18}{'median time':>13}{'of candidate':>14}")
    for name, runs in told.items():
        bounds = clopper_pearson(len(runs), asked.runs, BOUNDS_CONFIDENCE)
        often = f"{len(runs) / asked.runs * 100:.1f} %"
        between = f"{bounds.low * 100:.1f} to {bounds.high * 100:.1f} %"
        when = f"{median(each.elapsed_s for each in runs):,.0f} s" if runs else "-"
        requests = f"{median(each.requests for each in runs):,.0f}" if runs else "-"
        print(f"  {name:<13}{often:>10}{between:>18}{when:>13}{requests:>14}")
    print()
    return DONE


def _outcome(runs: Sequence[_Run], whole: int) -> Json:
    from statistics import median

    from deploy_gates.core.stats import clopper_pearson

    bounds = clopper_pearson(len(runs), whole, BOUNDS_CONFIDENCE)
    return {
        "n": len(runs),
        "share": len(runs) / whole,
        "low": bounds.low,
        "high": bounds.high,
        "median_s": median(each.elapsed_s for each in runs) if runs else None,
        "median_requests": median(each.requests for each in runs) if runs else None,
    }


# --- Before it starts ---------------------------------------------------------------------------


def _foresee(asked: argparse.Namespace) -> int:
    with _extra():
        from deploy_gates.core.planning import foresee
    from deploy_gates.report import canary

    if asked.config and asked.recorded:
        raise SettingsError(
            f"the traffic of {asked.config}, or that of {asked.recorded}?", hint="leave one of them out"
        )
    plan = _plan(asked)
    baseline = _recorded_baseline(asked) if asked.recorded else _served_baseline(asked)
    if not baseline:
        raise SettingsError(
            "there is no traffic of a baseline to go by",
            hint="have clients report for some minutes, or give recorded traffic: --from FILE",
        )
    unit = baseline[0].unit
    span_ms = max(each.start_ms for each in baseline) - min(each.start_ms for each in baseline) + BIN_MS
    seen_rps = sum(max(each.started, each.finished) for each in baseline) / span_ms * 1000
    rate_rps = asked.rate or seen_rps
    plan = replace(plan, unit=unit)
    found = foresee(plan, baseline, rate_rps=rate_rps, share=plan.share or SHARE)
    if asked.json:
        print_json(finite(_foreseen(found)))
    else:
        for line in canary.sight(found, plan, terminal()):
            print(line)
    return DONE if found.is_enough else REFUSED


def _foreseen(found: Foresight) -> Json:
    return {
        "is_enough": found.is_enough,
        "rate_rps": found.rate_rps,
        "share": found.share,
        "mark_s": found.mark_s,
        "missing": list(found.missing),
        "share_enough": found.share_enough,
        "mark_enough_s": found.mark_enough_s,
        "metrics": [
            {
                "metric": each.metric,
                "aspect": each.aspect.value,
                "baseline": each.baseline,
                "margin_ratio": each.margin_ratio,
                "detectable_ratio": each.detectable_ratio,
                "needed": each.needed,
                "got": each.got,
                "needed_s": each.needed_s,
                "is_enough": each.is_enough,
                "dry_run": each.dry_run,
            }
            for each in found.sights
        ],
    }


def _recorded_baseline(asked: argparse.Namespace) -> list[Tally]:
    with _extra():
        from deploy_gates.canary import stream
    from deploy_gates.core.tally import Arm, Unit

    found: list[Tally] = []
    unit = Unit(asked.unit) if asked.unit else None
    for at_ms, tallies in stream.read(asked.recorded, unit=unit, needs_both=False):
        found += [each for each in tallies if each.arm is Arm.BASELINE]
        if found and at_ms - found[0].start_ms >= asked.minutes * 60_000:
            break
    return found


def _served_baseline(asked: argparse.Namespace) -> list[Tally]:
    from deploy_gates import clock
    from deploy_gates.core.tally import Arm, Unit

    if not asked.config:
        raise SettingsError("whose traffic?", hint="deploy-gates canary plan NAME, or --from FILE")
    until_ms = int(clock.now().timestamp() * 1000) // BIN_MS * BIN_MS
    since_ms = until_ms - int(asked.minutes * 60_000) // BIN_MS * BIN_MS
    with opened(asked) as store:
        found = list(store.tallies(asked.config, asked.env, since_ms=since_ms, until_ms=until_ms))
    unit = Unit(asked.unit or Unit.REQUEST)
    return [each for each in found if each.arm is Arm.BASELINE and each.unit is unit]


# --- Pairs --------------------------------------------------------------------------------------


def _pair(asked: argparse.Namespace) -> int:
    from deploy_gates.canary import pairs
    from deploy_gates.core.canary import Action
    from deploy_gates.core.pairs import Pairing
    from deploy_gates.report import pairs as screen

    pairing = Pairing(_plan(asked))
    spent: Json = None
    note = ""
    if asked.recorded:
        for each in tuple(pairs.read_pairs(Path(asked.recorded))):  # to the end: a line of them may be none
            if pairing.add(each).has_ended:
                break
    else:
        spent, note = _ask_pairs(asked, pairing)
    finding = pairing.finding()
    if asked.json:
        print_json(finite({"finding": finding.to_json(), "spent_nanousd": spent, "note": note or None}))
    else:
        for line in screen.table(finding, terminal()):
            print(line)
        if note:
            print(note, file=sys.stderr)
    return DONE if finding.action is Action.PROMOTE else REFUSED


def _ask_pairs(asked: argparse.Namespace, pairing: Pairing) -> tuple[int, str]:
    """Ask until it is decided; what that has cost, and why it ended early, if it did."""
    from deploy_gates.canary import pairs
    from deploy_gates.report import pairs as screen

    asker, prompts = _asker(asked)
    progress = Bar(sys.stderr)
    note = ""
    answered = asker.pairs(prompts, repeat=asked.repeat, in_flight=asked.in_flight)
    with pairs.saving(Path(asked.save) if asked.save else None) as save, contextlib.closing(answered):
        try:
            for each in answered:
                save(each)
                finding = pairing.add(each)
                progress.draw(screen.line(finding))
                if finding.has_ended:
                    break
        except pairs.Spent as error:
            note = error.message
        finally:
            progress.clear()
    return asker.spent_nanousd, note


def _asker(asked: argparse.Namespace) -> tuple[Asker, Sequence[Prompt]]:
    """Who asks both configs, and what."""
    from deploy_gates import baseline, settings, workspace
    from deploy_gates.canary import pairs

    if not asked.config:
        raise SettingsError("which config?", hint="deploy-gates canary pair NAME, or --from FILE")
    root = workspace.find_root(Path.cwd())
    settled = settings.load(root)
    changes = baseline.changes(root, settled, base=asked.base, names=[asked.config], gate_all=True)
    change = next(each for each in changes.changed if each.name == asked.config)
    budget_usd = _dollars(asked.budget) if asked.budget else settled.budget_usd
    prompts = pairs.read_prompts(Path(asked.prompts)) if asked.prompts else pairs.golden(change)
    if not prompts:
        raise SettingsError(f"{asked.config} has no golden cases", hint="--prompts FILE brings prompts")
    return pairs.Asker(change, settled, root=root, budget_usd=budget_usd), prompts


def _dollars(text: str) -> Decimal:
    amount = decimal(text.removeprefix("$"))
    if amount is None or amount <= 0:
        raise SettingsError(f"--budget {text!r} is no amount of dollars", hint="--budget 1.50")
    return amount


# --- The screen ---------------------------------------------------------------------------------


class _Screen:
    """Shows looks as they come: a picture that is redrawn on a terminal, a line an event elsewhere."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._is_live = sys.stdout.isatty() and not as_json
        self._terminal: Terminal = terminal()
        self._bar = Bar(sys.stderr)
        self._before: Decision | None = None
        self._drawn = 0
        self._drawn_at = -math.inf
        self._read = ""
        self._remarked = ""

    def progress(self, done: int, whole: int | None) -> None:
        """So much of the input is read."""
        self._read = bar(done, whole)
        if not self._is_live:
            self._bar.draw(self._read)

    def show(self, decision: Decision, note: str = "") -> None:
        """Show one look, if there is anything new to see."""
        from deploy_gates.report import canary

        if self._as_json:
            return
        if self._is_live:
            self._draw(canary.picture(decision, self._terminal), note)
        elif canary.is_news(self._before, decision):
            self._bar.clear()
            print(self._terminal.said(canary.line(decision)), flush=True)
        self._before = decision

    def remark(self, decision: Decision | None, text: str) -> None:
        """Say what is no look, once, below the last one."""
        if self._is_live and decision is not None:
            self.show(decision, text)
        elif text.partition(":")[2] != self._remarked.partition(":")[2]:
            self._bar.clear()
            print(self._terminal.said(text), file=sys.stderr, flush=True)
            self._remarked = text

    def end(self, history: Sequence[Decision], moved: str = "") -> None:
        """The last look in full; `moved`: who ended the canary before it was decided."""
        from deploy_gates.report import canary

        self._bar.clear()
        last = history[-1]
        if self._as_json:
            looks: list[Json] = [each.to_json() for each in history]
            print_json(finite({"decision": last.to_json(), "looks": looks, "moved": moved or None}))
            return
        self._erase()
        for line in (*canary.picture(last, self._terminal), *canary.table(last, self._terminal)):
            print(line)
        if moved or not last.has_ended:
            print(f"  {self._terminal.said(moved or 'it ends here, undecided')}\n")
        unknown = dict.fromkeys(each.metric for each in last.readings if not each.seen_candidate)
        if unknown and last.missing and not last.has_ended:
            options = " ".join(f"--dry-run {each}" for each in unknown)
            print(f"  hint: {options} judges it without\n")

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


class Bar:
    """One line of a terminal that is drawn over; elsewhere nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._is_drawn = False
        self._at = -math.inf

    def draw(self, text: str) -> None:
        """Show `text`, not more often than it can be read."""
        now = time.monotonic()
        if self._is_terminal and now - self._at >= REDRAW_S:
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
