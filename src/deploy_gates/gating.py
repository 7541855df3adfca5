"""One run of the gates under pytest: a change becomes items, outcomes become a verdict.

The controller (or the only process) finds out what changed, collects outcomes from the test reports, and
alone judges, prints, and seals. Workers of pytest-xdist run checks and report what they found.
"""

from __future__ import annotations

import fnmatch
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

import pytest
from _pytest.mark.structures import NodeKeywords
from _pytest.terminal import TerminalReporter

from deploy_gates import answers, baseline, clock, conclusion, documents, report, settings, workspace
from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.config import ConfigChange
from deploy_gates.core.errors import Cause, DeployGatesError, Unanswered
from deploy_gates.core.gate import Check, Found, GateName, Outcome
from deploy_gates.core.question import Answer
from deploy_gates.gates import GATES, golden
from deploy_gates.model import Totals

PROPERTY = "deploy_gates"
"""Under this name outcomes travel in test reports."""
SELDOM: Mapping[str, Callable[[pytest.Item], Any]] = {
    "keywords": NodeKeywords,
    "own_markers": lambda item: [],
    "extra_keyword_matches": lambda item: set(),
    "_report_sections": lambda item: [],
}
NO_KEYWORDS: dict[str, Literal[1]] = {}
BATCH_WAIT_MIN = 24 * 60
COLLECTED_AT = (20_000, 20, 20)
"""Items, answers and outcomes stay, so garbage is looked for more seldom than usual."""
PARTIAL = (
    "cases were left out (by `-k`, `--lf`, `-x`, Ctrl-C, or by name), and the rest is no sample of them: "
    "for a verdict, run all"
)
WATCHED = ("usepdb", "trace", "setuponly", "setupshow", "setupplan")
"""Options of pytest that look into how each item runs."""
TEAM_GATES = (GateName.UNIT, GateName.INTEGRATION)


class Gating:
    """The plugin that is registered when pytest runs with `--deploy-gates`."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        try:
            self._start()
        except DeployGatesError as error:
            raise pytest.UsageError(str(error)) from error

    def _start(self) -> None:
        config = self.config
        self.root = workspace.find_root(config.rootpath)
        self.settings = settings.load(self.root)
        self.started = self._now()
        self.chosen = _chosen_gates(config.getoption("gate"))
        self.changes = baseline.changes(
            self.root,
            self.settings,
            base=config.getoption("gate_base") or "",
            names=config.getoption("gate_config"),
            gate_all=config.getoption("gate_all"),
        )
        self.answers = answers.Answers(
            root=self.root,
            settings=self.settings,
            changes=self.changes,
            record=config.getoption("gate_record"),
            budget_usd=_budget(config.getoption("gate_budget"), self.settings),
            started=self.started,
            processes=self.worker["workercount"] if self.worker else 1,
            on_progress=None if self.worker else self._show_progress,
            batch_wait_s=_batch_wait_s(config),
        )
        conclusion.check_reports(self.root, config.getoption("gate_report"))
        self.checks: dict[str, Check] = {}
        self.by_file: dict[str, list[Check]] = {}
        for change in self.answers.changes:
            for check in self._checks(change):
                self.checks[check.id] = check
                self.by_file.setdefault(check.file, []).append(check)
        self.outcomes: dict[tuple[str, str], Outcome] = {}
        self.is_plain = not any(config.getoption(name, False) for name in WATCHED)
        self.has_team_items = False
        self.lost: set[str] = set()
        self.lines: list[str] = []
        self.shown_at = self.began_at = 0.0
        self._add_arguments()
        gc.freeze()  # what was read stays until the end: no use in looking for garbage in it
        self.collected_at = gc.get_threshold()
        gc.set_threshold(*COLLECTED_AT)

    def _now(self) -> datetime:
        if self.worker is not None:
            return datetime.fromisoformat(self.worker["deploy_gates_started"])
        return clock.now()

    def _checks(self, change: ConfigChange) -> Iterator[Check]:
        for name in self.chosen:
            yield from GATES[name].checks(change, self.answers.context)

    def _add_arguments(self) -> None:
        """Have pytest visit the gated files, also where it would not look by itself."""
        config = self.config
        if config.args_source is config.ArgsSource.ARGS:
            return
        arguments = list(config.args)
        if not set(TEAM_GATES) & set(self.chosen):
            arguments = []
        elif self.settings.testpaths:
            arguments = [str(self.root / path) for path in self.settings.testpaths]
        folders = [Path(each).resolve() for each in arguments]
        for file in self.by_file:
            path = (self.root / file).absolute()
            if not any(folder in path.parents for folder in folders):
                arguments.append(str(path))
        config.args[:] = arguments

    # --- Collection -----------------------------------------------------------------------------

    def pytest_report_header(self) -> list[str]:
        lines = self.answers.header(self.chosen)
        if GateName.GOLDEN in self.chosen:
            lines += [golden.power(change, self.answers.context) for change in self.answers.changes]
        return [line for line in lines if line]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> bool | None:
        """Where nothing is to be gated, nothing is collected either."""
        if self.changes.changed:
            return None
        session.items = []
        return True

    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        try:
            file = file_path.absolute().relative_to(self.root).as_posix()
        except ValueError:
            return None
        if file not in self.by_file:
            return None
        return GateFile.from_parent(parent, path=file_path, checks=self.by_file[file], gating=self)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "change" not in metafunc.fixturenames:
            return
        wanted = _mark_config(metafunc.definition)
        changes = [each for each in self.answers.changes if wanted in ("", each.name)]
        metafunc.parametrize("change", changes, ids=[each.name for each in changes], indirect=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept: list[pytest.Item] = []
        others: list[pytest.Item] = []
        for item in items:
            belongs = isinstance(item, GateItem) or self._team_gate(item) in self.chosen
            if belongs and not isinstance(item, GateItem):
                belongs = bool(self._team_configs(item))
            (kept if belongs else others).append(item)
        self.has_team_items = not all(isinstance(item, GateItem) for item in kept)
        if others:
            self.config.hook.pytest_deselected(items=others)
            items[:] = kept

    def _team_gate(self, item: pytest.Item) -> GateName | None:
        """The gate a test of the team belongs to, by its mark or by where it lies."""
        mark = item.get_closest_marker("gate")
        if mark is None:
            for gate, patterns in (self.settings.mapped or {}).items():
                file = _relative(item.path, self.root)
                if any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns):
                    return gate
            return None
        name = mark.args[0] if mark.args else mark.kwargs.get("name")
        if name not in [each.value for each in TEAM_GATES]:
            raise pytest.UsageError(
                f"{item.nodeid}: a test belongs to the gate `unit` or `integration`, not to {name!r}"
            )
        return GateName(name)

    def _team_configs(self, item: pytest.Item) -> tuple[str, ...]:
        """The changed configs for which a test of the team counts."""
        callspec = getattr(item, "callspec", None)
        if callspec is not None and isinstance(given := callspec.params.get("change"), ConfigChange):
            return (given.name,)
        wanted = _mark_config(item)
        return tuple(each.name for each in self.answers.changes if wanted in ("", each.name))

    # --- Running --------------------------------------------------------------------------------

    def asker(self, change: ConfigChange) -> Callable[[JsonObject], Answer]:
        """What the fixture `ask` gives to tests of the team."""
        return self.answers.asker(change)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """A case whose outcome is known by now has nothing to run: it is told, without what running takes.

        The last one of a file goes the long way, which ends what pytest has begun for the file.
        """
        if not isinstance(item, GateItem) or nextitem is None or nextitem.parent is not item.parent:
            return None
        if not item.check.case or not self.is_plain or not item.know():
            return None
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for each in item.reports():
            hook.pytest_runtest_logreport(report=each)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        self._forget_ends()
        return True

    def _forget_ends(self) -> None:
        """The terminal keeps reports that it never shows: those of 100,000 ends fill memory."""
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.stats.get("", []).clear()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        result: Any = yield
        report: pytest.TestReport = result.get_result()
        if isinstance(item, GateItem):
            item.tell(report)
        else:
            self._tell_team(item, report, call)

    def _tell_team(self, item: pytest.Item, report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
        if report.when != "call" and report.passed:
            return
        gate = self._team_gate(item)
        assert gate is not None, "tests without a gate were deselected"
        found, reason = _found(report, call)
        if report.failed and found is Found.UNKNOWN:
            report.outcome, report.longrepr = "skipped", (str(item.path), 0, reason)
            report.user_properties.append(("unknown", reason))
        for name in self._team_configs(item):
            outcome = Outcome(
                check=item.nodeid,
                gate=gate,
                config=name,
                found=found,
                reasons=(reason,) if reason else (),
                took_s=report.duration,
            )
            report.user_properties.append((PROPERTY, outcome.to_json()))

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, Any] | None:
        """A golden miss is `m`, for the gate decides and not the case; not knowing is `?`."""
        for name, _ in report.user_properties if report.when == "call" else ():
            if name == "missed":
                return "missed", "m", ("MISSED", {"yellow": True})
            if name == "spared":
                return "spared", "-", ("SPARED", {"yellow": False})
            if name == "unknown":
                return "inconclusive", "?", ("INCONCLUSIVE", {"yellow": True})
        return None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.worker is not None:
            return
        if report.when not in ("setup", "call", "teardown"):
            self.lost.add(report.nodeid)
        for name, value in report.user_properties:
            if name == PROPERTY:
                outcome = Outcome.from_json(str(value))
                self.outcomes[outcome.config, outcome.check] = outcome
            elif name == "missed" and report.when == "call":
                self._remember_missed(report.nodeid)

    def _remember_missed(self, nodeid: str) -> None:
        """`--lf` finds a golden miss again and `-x` stops at it, as if it were a failure."""
        last_failed = self.config.pluginmanager.get_plugin("lfplugin")
        if last_failed is not None and hasattr(last_failed, "lastfailed"):
            last_failed.lastfailed[nodeid] = True
        session = self.config.pluginmanager.get_plugin("session")
        if isinstance(session, pytest.Session) and self.config.getoption("maxfail", 0) == 1:
            session.shouldfail = f"stopping after {nodeid} was missed"

    def _show_progress(self, totals: Totals) -> None:
        """A line that moves while answers arrive; where nobody watches, only its end."""
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        moment = time.monotonic()
        is_over = totals.waiting == 0
        is_watched = terminal is not None and terminal._tw.hasmarkup
        if terminal is None or not (is_over or (is_watched and moment - self.shown_at > 0.1)):
            return
        if self.shown_at == 0.0:
            terminal.ensure_newline()
            self.began_at = moment
        self.shown_at = moment
        ended = totals.asked + totals.unanswered
        line = report.progress(
            "asking",
            answered=ended,
            total=ended + totals.waiting,
            in_flight=min(totals.waiting, self.settings.in_flight),
            spent_nanousd=totals.spent_nanousd,
            elapsed_s=moment - self.began_at,
            width=min(terminal._tw.fullwidth, 96) - 1,
            unicode=_can_say_unicode(terminal._tw),
        )
        terminal.write(f"\r{line}\x1b[K" if is_watched else line, flush=True)
        if is_over:
            terminal.write("\n")
            terminal.currentfspath = None

    # --- xdist ----------------------------------------------------------------------------------

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["deploy_gates_started"] = self.started.isoformat()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """A config and its cases stay in one worker: it asks them all at once, and nobody asks twice."""
        from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # ships no types

        configs = {file: check.config for file, checks in self.by_file.items() for check in checks}

        class ByConfig(LoadFileScheduling):  # type: ignore[misc]  # its base ships no types
            def _split_scope(self, nodeid: str) -> str:
                file = str(super()._split_scope(nodeid))
                return configs.get(file, file)

        return ByConfig(config, log)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        if error:
            self.lost.add(f"worker {node.gateway.id}")
        self.answers.asking_s.update(getattr(node, "workeroutput", {}).get("deploy_gates_asking_s", {}))

    # --- The end --------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int | pytest.ExitCode) -> None:
        self.answers.close()
        if self.worker is not None:
            output: dict[str, Any] = self.config.workeroutput  # type: ignore[attr-defined]  # of xdist
            output["deploy_gates_asking_s"] = self.answers.asking_s
        if self.worker is not None or self.config.option.collectonly:
            return
        try:
            made = conclusion.conclude(
                conclusion.Run(
                    root=self.root,
                    settings=self.settings,
                    changes=self.changes,
                    answers=self.answers,
                    chosen=self.chosen,
                    outcomes=self._complete(),
                    finished=clock.now(),
                    reports=tuple(self.config.getoption("gate_report")),
                )
            )
        except DeployGatesError as error:
            self.lines = ["", *str(error).splitlines()]
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            return
        self.made = made
        session.exitstatus = _exit_status(exitstatus, any(each.blocks for each in made.changes))

    def _complete(self) -> tuple[Outcome, ...]:
        """Every outcome, and for each check without one that it is not known."""
        outcomes = list(self.outcomes.values())
        outcomes += [
            self._not_run(check)
            for check in self.checks.values()
            if (check.config, check.id) not in self.outcomes
        ]
        outcomes += [
            Outcome(
                check=nodeid,
                gate=gate,
                config=change.name,
                found=Found.UNKNOWN,
                reasons=(f"{nodeid} crashed",),
            )
            for nodeid in sorted(self.lost - set(self.checks))
            for change in self.answers.changes
            for gate in TEAM_GATES
            if gate in self.chosen
        ]
        return tuple(outcomes)

    def _not_run(self, check: Check) -> Outcome:
        if check.id in self.lost:
            return check.outcome(Found.UNKNOWN, f"{check.name} its worker crashed")
        figures: JsonObject = {"hint": PARTIAL} if check.case else {}
        return check.outcome(Found.UNKNOWN, f"{check.name} did not run in this session", figures=figures)

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        if self.worker is not None or self.config.option.collectonly:
            return
        terminalreporter.write_sep("=", "deploy gates")
        writer = terminalreporter._tw
        lines = self.lines or report.terminal(
            self.made,
            color=writer.hasmarkup,
            unicode=_can_say_unicode(writer),
            verbose=self.config.get_verbosity(),
        )
        for line in lines:
            terminalreporter.write_line(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_unconfigure(self) -> None:
        """Where no test of a team ran, nothing is left whose end could raise: pytest need not look for it."""
        gc.set_threshold(*self.collected_at)
        if not self.has_team_items:
            gc.freeze()


class GateFile(pytest.File):
    """A config or a dataset, as pytest collects it."""

    def __init__(self, *, checks: Sequence[Check], gating: Gating, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.checks = checks
        self.gating = gating

    def collect(self) -> Iterable[pytest.Item]:
        for check in self.checks:
            yield GateItem.from_parent(self, name=check.name, check=check)


class Missed(Exception):
    """A check of a gate was missed; its text is all there is to show."""


class GateItem(pytest.Item):
    """One check of a gate, as pytest runs it."""

    def __init__(self, *, check: Check, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check = check
        self.outcome: Outcome | None = None
        for name in SELDOM:  # of 100,000 items these would be sixty megabytes
            self.__dict__.pop(name, None)

    def __getattr__(self, name: str) -> Any:
        """What pytest gives each item, and hardly ever looks at: made when it is looked at."""
        if name not in SELDOM:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        made = self.__dict__[name] = SELDOM[name](self)
        return made

    @property
    def gating(self) -> Gating:
        assert isinstance(self.parent, GateFile)
        return self.parent.gating

    def runtest(self) -> None:
        self._take(self.gating.answers.outcome(self.check, self._together))

    def know(self) -> bool:
        """Whether its outcome is known without running anything; it has it then."""
        outcome = self.gating.answers.known(self.check)
        if outcome is None:
            return False
        self._take(outcome)
        return True

    def reports(self) -> Iterator[pytest.TestReport]:
        """What running it would have told, apart from how long that takes."""
        moment = clock.now().timestamp()
        for when in ("call", "teardown"):
            report = pytest.TestReport(
                nodeid=getattr(self, "id", self.nodeid),  # where pytest has it, it need not be parsed again
                location=self.location,
                keywords=NO_KEYWORDS,
                outcome="passed",
                longrepr=None,
                when=when,
                user_properties=self.user_properties,
                start=moment,
                stop=moment,
            )
            self.tell(report)
            yield report

    def _take(self, outcome: Outcome) -> None:
        self.outcome = outcome
        if outcome.figures.get("unanswered") == Cause.SPARED.value:
            self.user_properties.append(("spared", "; ".join(outcome.reasons)))
        elif outcome.found is Found.UNKNOWN:
            self.user_properties.append(("unknown", "; ".join(outcome.reasons)))
        elif outcome.found is Found.MISSED and self.check.case:
            self.user_properties.append(("missed", "; ".join(outcome.reasons)))
        elif outcome.found is Found.MISSED:
            raise Missed("\n".join(outcome.reasons))

    def _together(self) -> list[Check]:
        """All selected checks of this config: they are asked at once."""
        return [
            each.check
            for each in self.session.items
            if isinstance(each, GateItem) and each.check.config == self.check.config
        ]

    def tell(self, report: pytest.TestReport) -> None:
        """Put what was found into the report, which travels as it is."""
        outcome = self.outcome
        if report.when != "call" or outcome is None:
            return
        if self.gating.worker is None:
            self.gating.outcomes[outcome.config, outcome.check] = outcome
        else:
            report.user_properties.append((PROPERTY, outcome.to_json()))
        if outcome.found is Found.UNKNOWN:
            report.outcome = "skipped"
            report.longrepr = (str(self.path), 0, "; ".join(outcome.reasons))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, Missed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name


# --- Small questions ----------------------------------------------------------------------------


def _chosen_gates(names: str | None) -> tuple[GateName, ...]:
    if names is None:
        return tuple(GateName)
    known = [each.value for each in GateName]
    chosen = [each.strip() for each in names.split(",") if each.strip()]
    for name in chosen:
        if name not in known:
            hint = documents.nearest(name, known)
            raise pytest.UsageError(f"--gate: there is no gate `{name}`; {hint}")
    if not chosen:
        raise pytest.UsageError(f"--gate names no gate; known are {', '.join(known)}")
    return tuple(each for each in GateName if each.value in chosen)


def _budget(text: str | None, settled: settings.Settings) -> Decimal:
    if text is None:
        return settled.budget_usd
    try:
        amount = Decimal(text.removeprefix("$"))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise pytest.UsageError(f"--gate-budget={text} is no amount of dollars; write --gate-budget=2.50")
    return amount


def _batch_wait_s(config: pytest.Config) -> float | None:
    """How long a batch is waited for; `None` where questions are asked one by one."""
    text = config.getoption("gate_batch_wait")
    if not config.getoption("gate_batch"):
        if text is not None:
            raise pytest.UsageError("--gate-batch-wait says how long a batch is waited for: add --gate-batch")
        return None
    try:
        minutes = float(text or BATCH_WAIT_MIN)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes <= BATCH_WAIT_MIN:
        raise pytest.UsageError(
            f"--gate-batch-wait={text} is no number of minutes up to {BATCH_WAIT_MIN:,}, which is a day"
        )
    return 60 * minutes


def _mark_config(node: pytest.Item | Any) -> str:
    mark = node.get_closest_marker("gate")
    return str(mark.kwargs.get("config") or "") if mark is not None else ""


def _relative(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()


def _found(report: pytest.TestReport, call: pytest.CallInfo[None]) -> tuple[Found, str]:
    """What a test of the team found. A skipped one was not executed, and a gate does not guess."""
    if report.passed or (report.skipped and hasattr(report, "wasxfail")):
        return Found.MET, ""
    if report.skipped:
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else "skipped"
        return Found.UNKNOWN, f"{report.nodeid}: {why}"
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, Unanswered):
        return Found.UNKNOWN, f"{report.nodeid}: {error.message}"
    said = str(error).strip().splitlines() if error else []
    return Found.MISSED, f"{report.nodeid}: {said[0] if said else type(error).__name__}"


def _exit_status(status: int | pytest.ExitCode, blocks: bool) -> int | pytest.ExitCode:
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        return status
    return (
        pytest.ExitCode.TESTS_FAILED
        if blocks or status == pytest.ExitCode.TESTS_FAILED
        else pytest.ExitCode.OK
    )


def _can_say_unicode(writer: Any) -> bool:
    encoding = getattr(writer._file, "encoding", None) or sys.getdefaultencoding()
    try:
        "✓✗●─→−≥".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
