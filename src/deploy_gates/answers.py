"""Where the answers of one run come from: recordings, the journals of killed runs, and endpoints.

One engine a config, one budget for all of them. What is asked is journaled as it is answered; when the run
ends, one process merges the journals into the recordings.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from deploy_gates import catalog, clock, history, prompt, recordings, tokens, workspace
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import ConfigChange, ModelConfig
from deploy_gates.core.cost import Price, Usage, dollars, nanousd
from deploy_gates.core.errors import PromptError, SettingsError, WorkspaceError
from deploy_gates.core.gate import Check, Found, GateName, Outcome
from deploy_gates.core.past import Past
from deploy_gates.core.policy import Context
from deploy_gates.core.question import Answer, Question
from deploy_gates.gates import golden
from deploy_gates.model import Batches, Budget, Endpoint, Engine, Record, Totals
from deploy_gates.recordings import Journal
from deploy_gates.settings import Settings
from deploy_gates.workspace import STATE_FOLDER, Changes

OFFLINE = (GateName.TYPE, GateName.UNIT, GateName.COST)
"""These ask nobody. Where one of them blocks, no question is paid for."""
BASE_URL = "OPENAI_BASE_URL"
"""Overrides the endpoint of every config, as it does in the official client."""


class Answers:
    """Answers to the checks of one process, for all changed configs."""

    def __init__(
        self,
        *,
        root: Path,
        settings: Settings,
        changes: Changes,
        record: str | None,
        budget_usd: Decimal,
        started: datetime,
        processes: int = 1,
        on_progress: Callable[[Totals], None] | None = None,
        keeps: bool = True,
        batch_wait_s: float | None = None,
    ) -> None:
        """`processes` share the budget in equal parts: none knows what the others spend.

        With `keeps` false nothing that is asked is written anywhere. With `batch_wait_s`, golden cases are
        asked in batches, and a batch is waited for that long.
        """
        self.root = root
        self.settings = settings
        self.budget_usd = budget_usd
        self.notes: list[str] = []
        self._asked_for = record
        self._on_progress = on_progress
        self._keeps = keeps
        self._batch_wait_s = batch_wait_s
        self._count_tokens = tokens.Tokenizer(root / STATE_FOLDER)
        self._budget = Budget(nanousd(budget_usd) // processes)
        self._engines: dict[tuple[str, bool], Engine] = {}
        """By config, and by whether they may ask."""
        self._blocking: dict[str, tuple[GateName, ...]] = {}
        """By config: the offline gates that block it already, once its first question is due."""
        self.asking_s: dict[str, float] = {}
        """By config: how long it took until all its questions were answered."""
        self._records = {each.name: self._record(each) for each in changes.changed}
        self._journals = {each.name: self._journal(each, started) for each in changes.changed}
        self.changes = tuple(self._with_recordings(each) for each in changes.changed)
        self.notes += self._left_under_way()
        self.context = Context(
            policy=settings.policy,
            now=started,
            root=str(root),
            live=any(record is not Record.NONE for record in self._records.values()),
            budget_usd=budget_usd,
            count_tokens=self._count_tokens,
            history={each.name: self._past(each) for each in changes.changed},
        )

    # --- What is recorded -----------------------------------------------------------------------

    def _journal(self, change: ConfigChange, started: datetime) -> Journal:
        folder = self.root / STATE_FOLDER / "journal"
        return Journal(folder, change.name, now=started, again=self._records[change.name] is Record.ALL)

    def _past(self, change: ConfigChange) -> Mapping[str, Past]:
        remembered = history.load(self._history_file(change))
        self.notes += remembered.notes
        return remembered.cases

    def _history_file(self, change: ConfigChange) -> Path:
        return self.root / STATE_FOLDER / "history" / f"{change.name}.jsonl"

    def _with_recordings(self, change: ConfigChange) -> ConfigChange:
        """The change with every recorded answer that may serve it: its own, and the baseline's."""
        kept = recordings.load(self._file(change))
        self.notes += kept.warnings
        before = workspace.baseline_recordings(self.root, change)
        older = recordings.parse(before, f"{change.name}'s recordings at {change.base}").answers
        journaled = self._journals[change.name].answers
        return replace(change, recordings={**older, **kept.answers, **journaled})

    def _file(self, change: ConfigChange) -> Path:
        return self.root / change.candidate.folder / workspace.RECORDINGS

    def _batches(self, change: ConfigChange) -> Batches | None:
        if self._batch_wait_s is None or not self._keeps:
            return None
        return Batches(
            register=self._register(change),
            patience_s=self._batch_wait_s,
            price=functools.partial(self._cost_nanousd, batch=True),
            tell=self.notes.append,
        )

    def _register(self, change: ConfigChange) -> Path:
        return self.root / STATE_FOLDER / "batches" / f"{change.name}.json"

    def _left_under_way(self) -> Iterator[str]:
        """Batches that this run would not collect, and may ask for again."""
        for change in self.changes if self._batch_wait_s is None else ():
            if self._register(change).exists():
                yield f"batches of {change.name} are under way: `--gate-batch` collects them"

    # --- Whom to ask ----------------------------------------------------------------------------

    def _record(self, change: ConfigChange) -> Record:
        """What may be asked of this config: as told, or what is missing where a key is at hand."""
        config = change.candidate.config
        name = config.environment(self.settings.environment).api_key_env if config else ""
        has_key = bool(name and os.environ.get(name))
        if self._asked_for is None:
            return Record.NEW if has_key else Record.NONE
        record = Record(self._asked_for)
        if record is not Record.NONE and config and not has_key:
            raise SettingsError(
                f"--gate-record={record} asks the endpoint of {change.name}, and {name} is not set",
                hint=f"set {name} (to anything, for a server that wants no key), or replay with "
                "--gate-record=none",
            )
        return record

    def _endpoint(self, config: ModelConfig) -> Endpoint:
        environment = config.environment(self.settings.environment)
        declared = self.settings.policy.models
        return Endpoint(
            base_url=os.environ.get(BASE_URL) or environment.base_url,
            api_key=os.environ.get(environment.api_key_env, ""),
            timeout_s=environment.timeout_s,
            served_as={name: each.served_as for name, each in declared.items()},
        )

    def _engine(self, change: ConfigChange, *, may_ask: bool) -> Engine:
        engine = self._engines.get((change.name, may_ask))
        if engine is None:
            config, record = change.candidate.config, self._records[change.name]
            may = may_ask and config is not None and record is not Record.NONE
            engine = self._engines[change.name, may_ask] = Engine(
                recorded=change.recordings,
                endpoint=self._endpoint(config) if may and config else None,
                record=record if may else Record.NONE,
                journal=self._journals[change.name] if may and self._keeps else None,
                price=self._cost_nanousd,
                estimate=self._worst_case,
                now=clock.now,
                budget=self._budget,
                in_flight=self.settings.in_flight,
                on_progress=self._on_progress,
                batches=self._batches(change) if may else None,
            )
        return engine

    def _cost_nanousd(self, question: Question, usage: Usage, *, batch: bool = False) -> int | None:
        price = self._price(question.model, "", batch=True) if batch else None
        if price is None:
            price = self._price(question.model, str(question.body.get("service_tier", "")))
        return None if price is None else price.cost_nanousd(usage)

    @functools.cache  # noqa: B019  # lives as long as the run
    def _price(self, model: str, service_tier: str, *, batch: bool = False) -> Price | None:
        policy, now = self.settings.policy, self.context.now
        return catalog.price(model, policy, now, service_tier=service_tier, batch=batch)

    def _worst_case(self, question: Question) -> Usage:
        facts = catalog.facts(question.model, self.settings.policy, self.context.now.date())
        return tokens.worst_case(
            question,
            self._count_tokens,
            encoding=facts.encoding if facts else catalog.ASSUMED_ENCODING,
            max_output_tokens=facts.max_output_tokens if facts else None,
        )

    # --- Answers --------------------------------------------------------------------------------

    def outcome(self, check: Check, together: Callable[[], Sequence[Check]]) -> Outcome:
        """What a check found. The first of a config has all that are `together` with it asked at once."""
        change = next(each for each in self.changes if each.name == check.config)
        if check.gate in OFFLINE:
            return self._engine(change, may_ask=False).outcome(check)
        if change.name not in self._blocking:
            self._ask_ahead(change, together())
        blocking = self._blocking[change.name]
        outcome = self._engine(change, may_ask=not blocking).outcome(check)
        if blocking and outcome.found is Found.UNKNOWN and self._records[change.name] is not Record.NONE:
            said = f"not asked, since the {' and the '.join(blocking)} gate already blocks"
            return replace(outcome, reasons=(said,))
        return outcome

    def known(self, check: Check) -> Outcome | None:
        """What a check found, if all that bears on it is known by now; nothing is run for it."""
        if check.gate in OFFLINE or self._blocking.get(check.config, OFFLINE):
            return None
        engine = self._engines.get((check.config, True))
        return engine.known(check) if engine else None

    def _ask_ahead(self, change: ConfigChange, checks: Sequence[Check]) -> None:
        """Have everything asked at once; nothing, where the config cannot pass whatever is answered."""
        offline = self._engine(change, may_ask=False)
        self._blocking[change.name] = blocking = tuple(
            gate
            for gate in OFFLINE
            if any(offline.outcome(each).found is not Found.MET for each in checks if each.gate is gate)
        )
        if len(self._blocking) == len(self.changes):
            tokens.forget_vocabularies()
        began = time.perf_counter()
        engine = self._engine(change, may_ask=not blocking)
        asking = [check for check in checks if check.gate not in OFFLINE]
        places = {case: at for at, case in enumerate(golden.in_order(change, self.context))}
        asking.sort(key=lambda check: places.get(check.case, -1) if check.gate is GateName.GOLDEN else -1)
        if self._batch_wait_s is not None:
            # How soon the endpoint answers is not to be learned from a batch.
            engine.ask_ahead([check for check in asking if check.gate is GateName.INTEGRATION])
            for check in asking:
                if check.gate is GateName.INTEGRATION:
                    engine.outcome(check)
        with engine.batching(_questions(change)):
            self._until_certain(change, engine, asking)
        self.asking_s[change.name] = time.perf_counter() - began

    def _until_certain(self, change: ConfigChange, engine: Engine, asking: Sequence[Check]) -> None:
        """Wait for all outcomes in order; what the cases before it decide is not asked any more.

        Where asking may end early, it runs ahead of the looks by no more than keeps the endpoint busy, and
        not at all where what is recorded decides.
        """
        looks = frozenset(golden.looks(change, self.context) if self._batch_wait_s is None else ())
        may_ask = self._records[change.name] is not Record.NONE
        if looks and may_ask and (enough := self._recorded_enough(change, engine, asking, looks)):
            engine.spare(asking[enough:])
            asking, looks = asking[:enough], frozenset()
        ahead = self.settings.in_flight * 3 // 2 if looks else len(asking)
        cases: list[Outcome] = []
        sent = 0
        for at, check in enumerate(asking, start=1):
            if sent < min(len(asking), at + ahead // 2):
                engine.ask_ahead(asking[sent : at + ahead])
                sent = min(len(asking), at + ahead)
            outcome = engine.outcome(check)
            if check.gate is GateName.GOLDEN and check.case:
                cases.append(outcome)
                if len(cases) in looks and golden.is_certain(change, cases, self.context):
                    engine.spare(asking[at:])
                    return

    def _recorded_enough(
        self, change: ConfigChange, engine: Engine, asking: Sequence[Check], looks: frozenset[int]
    ) -> int:
        """After how many checks in order recorded answers decide; 0 if they do not."""
        cases: list[Outcome] = []
        for at, check in enumerate(asking, start=1):
            if check.gate is not GateName.GOLDEN or not check.case:
                continue
            outcome = engine.replayed(check)
            if outcome is None:
                break
            cases.append(outcome)
            if len(cases) in looks and golden.is_certain(change, cases, self.context):
                return at
        return 0

    def asker(self, change: ConfigChange) -> Callable[[JsonObject], Answer]:
        """Asks the candidate of `change` with these inputs."""

        def ask(inputs: JsonObject) -> Answer:
            config = change.candidate.config
            assert config is not None, "the fixture `candidate` has refused before"
            return self._engine(change, may_ask=True).ask(prompt.ask(config, inputs))

        return ask

    # --- Told and kept --------------------------------------------------------------------------

    def header(self, gates: Sequence[GateName]) -> list[str]:
        """What is about to happen, before anything is paid for."""
        if not self.changes:
            return []
        count = f"{len(self.changes)} config{'s' if len(self.changes) > 1 else ''}"
        bases = " and ".join(sorted({each.base for each in self.changes}))
        line = f"deploy-gates: {count} to gate, compared with {bases}"
        if {GateName.GOLDEN, GateName.INTEGRATION} & set(gates):
            recorded, missing = self._counted()
            line += f"; {recorded:,} answers recorded, {missing:,} missing"
            if self.context.live:
                line += ", in batches" if self._batch_wait_s is not None else ""
                line += f", budget {dollars(nanousd(self.budget_usd))}"
            else:
                line += ", nobody is asked"
        return [line]

    def _counted(self) -> tuple[int, int]:
        recorded = missing = 0
        for change in self.changes:
            keys = set(_keys(change))
            known = {} if self._records[change.name] is Record.ALL else change.recordings
            recorded += sum(key in known for key in keys)
            missing += sum(key not in known for key in keys)
        return recorded, missing

    @property
    def price_source(self) -> str:
        """Where the prices of the candidates are from."""
        sources = set()
        for change in self.changes:
            if change.candidate.config and (price := self._price(change.candidate.config.model, "")):
                sources.add(price.source)
        return "; ".join(sorted(sources))

    def close(self) -> None:
        """Stop asking; what was answered is in the journals."""
        for engine in self._engines.values():
            engine.close()
            if engine.problem is not None:
                self.notes.append(engine.problem.message)
        self._count_tokens.save()

    def keep(self) -> list[str]:
        """Merge what was asked into the recordings; what stands in the way of it, as notes."""
        notes = list(dict.fromkeys(self.notes))
        for change in self.changes:
            try:
                recordings.merge(
                    self._file(change),
                    self._journals[change.name],
                    order=_keys(change),
                    keep=self._will_resume(change),
                )
            except WorkspaceError as error:
                notes.append(error.message)
        return notes

    def remember(self, outcomes: Iterable[Outcome]) -> list[str]:
        """Add to the history how each case fared; what stands in the way of it, as notes."""
        answers: dict[str, dict[str, list[Json]]] = {}
        for each in outcomes:
            for arm in ("answers", "baseline_answers"):
                given = each.figures.get(arm)
                if isinstance(given, list):
                    answers.setdefault(each.config, {}).setdefault(each.case, []).extend(given)
        notes = []
        for change in self.changes if self._keeps else ():
            past = self.context.history[change.name]
            try:
                history.keep(self._history_file(change), past, answers.get(change.name, {}))
            except WorkspaceError as error:
                notes.append(error.message)
        return notes

    def _will_resume(self, change: ConfigChange) -> bool:
        """Whether asking everything was broken off: the next such run asks only the rest."""
        engine = self._engines.get((change.name, True))
        if engine is None or self._records[change.name] is not Record.ALL:
            return False
        return bool(engine.totals.unanswered or engine.totals.waiting)


def _keys(change: ConfigChange) -> Iterator[str]:
    """The keys of all golden questions of both arms, in the order of the cases."""
    return (question.key for question in _questions(change))


def _questions(change: ConfigChange) -> Iterator[Question]:
    """All golden questions of both arms, in the order of the cases."""
    for snapshot in (change.baseline, change.candidate):
        if snapshot is None or snapshot.config is None:
            continue
        for case in change.candidate.cases:
            try:
                yield prompt.ask(snapshot.config, case.inputs, label=case.id)
            except PromptError:
                continue
