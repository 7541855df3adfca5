"""A paired replay: both configs are asked recorded prompts until the pairs decide, or the money is spent."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from pathlib import Path

from deploy_gates import catalog, clock, prompt, tokens
from deploy_gates.answers import BASE_URL
from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.config import ConfigChange, ModelConfig
from deploy_gates.core.cost import NANO, Price, Usage, nanousd
from deploy_gates.core.errors import (
    Cause,
    DeployGatesError,
    SettingsError,
    StoreUnavailable,
    Unanswered,
    WorkspaceError,
)
from deploy_gates.core.pairs import Answered, Pair
from deploy_gates.core.question import Question
from deploy_gates.model import Budget, Endpoint, Engine, Record
from deploy_gates.settings import Settings
from deploy_gates.workspace import STATE_FOLDER

IN_FLIGHT = 4
"""Pairs that are asked at once: more would measure how the endpoint fares under load."""
RETRIES = 2
"""As often as the official client tries again; what fails then is an error."""
SILENT_MAX = 3
"""So many pairs in a row of which neither side could be reached, and there is no endpoint."""
LINE_MAX = 1 << 20
"""Bytes of one line of a file of prompts or pairs."""
LINES_MAX = 100_000
NOBODYS_FAULT = (Cause.BUDGET, Cause.INTERRUPTED, Cause.UNAUTHORIZED, Cause.NOT_RECORDED)
"""Why a question has no answer though its config did nothing wrong."""
AWAY = (Cause.UNREACHABLE, Cause.OVERLOADED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Inputs that both configs are asked with."""

    id: str
    inputs: JsonObject


class Spent(DeployGatesError):
    """There is no money for another pair."""


def golden(change: ConfigChange) -> tuple[Prompt, ...]:
    """The golden cases of the candidate, as prompts."""
    return tuple(Prompt(id=case.id, inputs=case.inputs) for case in change.candidate.cases)


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts in a file, one a line: inputs, or an object with `inputs` and perhaps an `id`.

    `WorkspaceError` names the line that is none.
    """
    found = []
    for number, value in _lines(path):
        inputs = value.get("inputs", value)
        if not isinstance(inputs, dict):
            raise WorkspaceError(f"{path}, line {number}: `inputs` is no object")
        named = value.get("id") if "inputs" in value else None
        found.append(Prompt(id=str(named) if named else f"line-{number}", inputs=inputs))
    if not found:
        raise WorkspaceError(f"{path} holds no prompts")
    return tuple(found)


def read_pairs(path: Path) -> Iterator[Pair]:
    """Yield the pairs that were saved to a file. `WorkspaceError` names the line that is none."""
    is_empty = True
    for number, value in _lines(path):
        is_empty = False
        try:
            yield Pair.from_json(value)
        except ValueError as error:
            raise WorkspaceError(f"{path}, line {number}: {error}") from error
    if is_empty:
        raise WorkspaceError(f"{path} holds no pairs")


def _lines(path: Path) -> Iterator[tuple[int, JsonObject]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_MAX + 1):
                number += 1
                if len(line) > LINE_MAX:
                    raise WorkspaceError(f"{path}, line {number} is longer than {LINE_MAX:,} bytes")
                if number > LINES_MAX:
                    raise WorkspaceError(f"{path} has more than {LINES_MAX:,} lines")
                if line.strip():
                    yield number, _object(line, f"{path}, line {number}")
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be read: {error.strerror}") from error


def _object(line: bytes, place: str) -> JsonObject:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else "packed, no UTF-8, or nested deeply"
        raise WorkspaceError(f"{place} is no JSON: {said}") from error
    if not isinstance(value, dict):
        raise WorkspaceError(f"{place} is no JSON object")
    return value


def is_candidate_first(id: str, repeat: int) -> bool:
    """Whether the candidate is asked first: drawn, since a server is warmer for whoever comes second."""
    return bool(sha256(f"{repeat}:{id}".encode()).digest()[0] & 1)


class Asker:
    """Asks both configs of a change; to be closed."""

    def __init__(self, change: ConfigChange, settings: Settings, *, root: Path, budget_usd: Decimal) -> None:
        """`SettingsError` where one of both is no config, or has no key to ask with."""
        self._baseline = _config(change, is_candidate=False)
        self._candidate = _config(change, is_candidate=True)
        self._settings = settings
        self._started: datetime = clock.now()
        self._count_tokens = tokens.Tokenizer(root / STATE_FOLDER)
        self._budget = Budget(nanousd(budget_usd))
        self._lock = threading.Lock()
        self._engines: list[Engine] = []
        self._endpoints = tuple(self._endpoint(each) for each in (self._baseline, self._candidate))
        self._is_closed = False

    @property
    def spent_nanousd(self) -> int:
        """What all answers have cost so far."""
        return self._budget.spent_nanousd

    def pairs(
        self, prompts: Sequence[Prompt], *, repeat: int = 1, in_flight: int = IN_FLIGHT
    ) -> Generator[Pair, None, None]:
        """Yield a pair for each prompt, `repeat` times over, as they are answered.

        `Spent` where money runs out, `StoreUnavailable` where no endpoint answers, `Unanswered` where the key
        is refused, `PromptError`. Closing the iterator ends what is under way.
        """
        jobs = iter([(each, at) for at in range(repeat) for each in prompts])
        done: queue.SimpleQueue[Pair | DeployGatesError | None] = queue.SimpleQueue()
        workers = [
            threading.Thread(target=self._work, args=(jobs, done), name=f"pairs-{at}", daemon=True)
            for at in range(max(1, in_flight))
        ]
        for each in workers:
            each.start()
        silent, working = 0, len(workers)
        spent: Spent | None = None
        try:
            while working:
                found = done.get()
                if found is None:
                    working -= 1
                elif isinstance(found, Pair):
                    silent = 0
                    yield found
                elif isinstance(found, Unanswered) and found.cause in AWAY:
                    silent += 1
                    if silent >= SILENT_MAX:
                        raise StoreUnavailable(
                            f"neither config gets an answer: {found.message}", hint=found.hint
                        ) from found
                elif isinstance(found, Spent):
                    spent = found  # what the others have paid for still comes
                else:
                    raise found
            if spent is not None:
                raise spent
        finally:
            self.close()
            for each in workers:
                each.join()
            self._count_tokens.save()

    def close(self) -> None:
        """Stop asking."""
        with self._lock:
            self._is_closed = True
            engines = list(self._engines)
        for each in engines:
            each.close()

    # --- One worker: one pair at a time ----------------------------------------------------------

    def _work(
        self,
        jobs: Iterator[tuple[Prompt, int]],
        done: queue.SimpleQueue[Pair | DeployGatesError | None],
    ) -> None:
        engines = [self._engine(each) for each in self._endpoints]
        try:
            while (job := self._next(jobs)) is not None:
                try:
                    done.put(self._pair(*job, engines))
                except DeployGatesError as error:
                    done.put(error)
                    if not (isinstance(error, Unanswered) and error.cause in AWAY):
                        break
        finally:
            done.put(None)

    def _next(self, jobs: Iterator[tuple[Prompt, int]]) -> tuple[Prompt, int] | None:
        with self._lock:
            return None if self._is_closed else next(jobs, None)

    def _pair(self, asked: Prompt, repeat: int, engines: Sequence[Engine]) -> Pair:
        both: dict[bool, Answered] = {}
        first = is_candidate_first(asked.id, repeat)
        away: dict[bool, Unanswered] = {}
        for is_candidate in (first, not first):
            config = self._candidate if is_candidate else self._baseline
            # Two configs may send the same: each of the pair is a question of its own all the same.
            question = prompt.ask(config, asked.inputs, label=asked.id, sample=2 * repeat + is_candidate)
            try:
                both[is_candidate] = self._answered(engines[is_candidate], question)
            except Unanswered as error:
                if error.cause is Cause.BUDGET:
                    raise Spent(error.message, hint=error.hint) from error
                if error.cause in NOBODYS_FAULT:
                    raise
                if error.cause in AWAY:
                    away[is_candidate] = error
                both[is_candidate] = Answered(error=True)
        if len(away) == len(both):
            raise away[first]
        return Pair(id=asked.id, baseline=both[False], candidate=both[True])

    def _answered(self, engine: Engine, question: Question) -> Answered:
        answer = engine.ask(question)
        cost = None if answer.usage is None else self._cost_nanousd(question, answer.usage)
        return Answered(
            error=False, latency_s=answer.latency_s, cost_usd=None if cost is None else cost / NANO
        )

    # --- Whom to ask, and what it costs ----------------------------------------------------------

    def _endpoint(self, config: ModelConfig) -> Endpoint:
        environment = config.environment(self._settings.environment)
        key = os.environ.get(environment.api_key_env, "")
        if not key:
            raise SettingsError(
                f"this asks the endpoint of {config.name}, and {environment.api_key_env} is not set",
                hint=f"set {environment.api_key_env} (to anything, for a server that wants no key)",
            )
        declared = self._settings.policy.models
        return Endpoint(
            base_url=os.environ.get(BASE_URL) or environment.base_url,
            api_key=key,
            timeout_s=environment.timeout_s,
            served_as={name: each.served_as for name, each in declared.items()},
        )

    def _engine(self, endpoint: Endpoint) -> Engine:
        engine = Engine(
            recorded={},
            endpoint=endpoint,
            record=Record.ALL,
            journal=None,
            price=self._cost_nanousd,
            estimate=self._worst_case,
            now=clock.now,
            budget=self._budget,
            in_flight=1,
            retries=RETRIES,
        )
        with self._lock:
            self._engines.append(engine)
        return engine

    def _cost_nanousd(self, question: Question, usage: Usage) -> int | None:
        price = self._price(question.model, str(question.body.get("service_tier", "")))
        return None if price is None else price.cost_nanousd(usage)

    @functools.cache  # noqa: B019  # lives as long as the replay
    def _price(self, model: str, service_tier: str) -> Price | None:
        return catalog.price(model, self._settings.policy, self._started, service_tier=service_tier)

    def _worst_case(self, question: Question) -> Usage:
        facts = catalog.facts(question.model, self._settings.policy, self._started.date())
        return tokens.worst_case(
            question,
            self._count_tokens,
            encoding=facts.encoding if facts else catalog.ASSUMED_ENCODING,
            max_output_tokens=facts.max_output_tokens if facts else None,
        )


def _config(change: ConfigChange, *, is_candidate: bool) -> ModelConfig:
    snapshot = change.candidate if is_candidate else change.baseline
    if snapshot is None:
        raise SettingsError(
            f"{change.name} is new: there is no baseline to compare it with", hint="--base names another one"
        )
    if snapshot.config is None:
        which = "candidate" if is_candidate else "baseline"
        problems = "\n".join(str(each) for each in snapshot.problems)
        raise SettingsError(f"the {which} of {change.name} cannot be read:\n{problems}")
    return snapshot.config


@contextlib.contextmanager
def saving(path: Path | None) -> Iterator[Callable[[Pair], None]]:
    """Keeps each pair in a file as it comes. `WorkspaceError` where it cannot be written."""
    if path is None:
        yield lambda pair: None
        return
    try:
        with path.open("w", encoding="utf-8") as file:

            def save(pair: Pair) -> None:
                file.write(json.dumps(pair.to_json(), ensure_ascii=False) + "\n")
                file.flush()

            yield save
    except OSError as error:
        raise WorkspaceError(f"pairs cannot be saved to {path}: {error.strerror}") from error
