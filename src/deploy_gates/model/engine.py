"""Checks are driven with answers: recorded ones at once, the others as they arrive.

Checks run on the thread that wants their outcomes. Only waiting for an endpoint happens on another one: so a
team's own checks never run beside themselves, and a slow one does not spoil what is measured of the endpoint.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeAlias

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.errors import Cause, DeployGatesError, Unanswered, WorkspaceError
from deploy_gates.core.gate import Asking, Check, Found, Outcome
from deploy_gates.core.question import Answer, Question
from deploy_gates.model.values import (
    INTERRUPTED,
    SPARED,
    Asker,
    Batches,
    Budget,
    Endpoint,
    Estimate,
    Failed,
    Job,
    Journal,
    Price,
    Settled,
)

QUESTIONS_MAX = 1_000
"""So many questions may one check ask."""
SAID_MAX_CHARS = 300
"""So much of an exception goes into a reason."""


class Record(StrEnum):
    """Which questions may be asked."""

    NONE = "none"
    """None: recorded answers only."""
    NEW = "new"
    """Those that have no recorded answer."""
    ALL = "all"
    """All, whatever is recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What an engine has done so far, each question counted once."""

    asked: int = 0
    """Answered live."""
    replayed: int = 0
    """Answered from a recording."""
    unanswered: int = 0
    """Were to be asked, and have no answer."""
    waiting: int = 0
    """Are being asked, or will be."""
    retried: int = 0
    """Calls that had to be made again."""
    unpriced: int = 0
    """Answers of which nobody knows what they cost: `spent_nanousd` is without them."""
    spent_nanousd: int = 0


Progress: TypeAlias = Totals
"""What `on_progress` is told whenever a question that was asked has ended."""


class Engine:
    """Answers the questions of checks; each is asked once, however many checks have it."""

    def __init__(
        self,
        *,
        recorded: Mapping[str, Answer],
        endpoint: Endpoint | None,
        record: Record,
        journal: Journal | None,
        price: Price,
        estimate: Estimate,
        now: Callable[[], datetime],
        budget: Budget | None = None,
        in_flight: int = 100,
        retries: int = 4,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        batches: Batches | None = None,
    ) -> None:
        """With `Record.ALL` nothing in `recorded` is served; what an interrupted run left in `journal` is."""
        self._known: dict[str, Answer | Failed] = {} if record is Record.ALL else dict(recorded)
        self._known.update(journal.answers if journal else {})
        self._endpoint = endpoint if record is not Record.NONE else None
        self._journal = journal
        self._price = price
        self._estimate = estimate
        self._now = now
        self._budget = budget or Budget()
        self._in_flight = in_flight
        self._retries = retries
        self._clock = clock
        self._sleep = sleep
        self._on_progress = on_progress
        self._batches = batches
        self._is_batched = False
        self._askers: dict[bool, Asker] = {}
        """Who asks, by whether that is in batches; made with the first question."""
        self._runs: dict[tuple[str, str], _Run] = {}
        self._waiting: dict[str, list[_Run]] = {}
        """Who waits for a question that is being asked, by its key."""
        self._owing: dict[str, _Run] = {}
        """Who pays for a question that is under way though nobody waits for it any more, by its key."""
        self._to_ask: list[Job] = []
        self._settled: queue.SimpleQueue[Settled | None] = queue.SimpleQueue()
        self._totals = Totals()
        self._replayed: set[str] = set()
        self._is_closed = False
        self._lock = threading.RLock()

    @property
    def totals(self) -> Totals:
        return replace(self._totals, replayed=len(self._replayed), waiting=len(self._waiting))

    @property
    def problem(self) -> WorkspaceError | None:
        """Why answers could no longer be kept, if that happened; nothing is asked after it."""
        return next((each.problem for each in self._askers.values() if each.problem), None)

    def ask_ahead(self, checks: Sequence[Check]) -> None:
        """Drive all of them as far as recorded answers lead, and have asked at once what else they want."""
        with self._lock:
            for check in checks:
                self._run(check)
            self._send()

    @contextlib.contextmanager
    def batching(self, questions: Iterable[Question]) -> Iterator[None]:
        """Within it, what is asked is asked in batches, where that is allowed; `questions` with the first."""
        if self._batches is None:
            yield
            return
        with self._lock:
            self._is_batched = True
            for question in questions:
                if self._reply(question) is None:
                    self._want(question)
        try:
            yield
        finally:
            self._is_batched = False

    def outcome(self, check: Check) -> Outcome:
        """What the check found, once it has all its answers."""
        with self._lock:
            run = self._run(check)
            while run.outcome is None:
                self._take()
            return run.outcome

    def replayed(self, check: Check) -> Outcome | None:
        """What the check found, if nobody has to be asked for it; nobody is."""
        with self._lock:
            return self._run(check).outcome

    def spare(self, checks: Sequence[Check]) -> None:
        """End these as spared; of their questions only those that are under way still get an answer."""
        with self._lock:
            runs = [self._run(check) for check in checks]
            for run in runs:
                run.spare()
            spared = {id(run): run for run in runs if run.outcome is None}
            wanted = {
                key for key, runs in self._waiting.items() if runs and all(id(run) in spared for run in runs)
            }
            self._owing |= {key: self._waiting[key][0] for key in wanted}
            self._waiting |= {key: [] for key in wanted}
            for job in [job for job in self._to_ask if job.question.key in wanted]:
                self._to_ask.remove(job)
                del self._waiting[job.question.key]
            for run in spared.values():
                while run.outcome is None:
                    run.receive(SPARED)
                    run.next()
            for asker in self._askers.values():
                asker.withdraw(wanted)
            while self._askers and any(key in self._waiting for key in wanted):
                self._take()

    def known(self, check: Check) -> Outcome | None:
        """What the check found, if it has ended."""
        run = self._runs.get((check.config, check.id))
        return run.outcome if run else None

    def ask(self, question: Question) -> Answer:
        """The answer to one question. `Unanswered` if there is none."""
        with self._lock:
            while (reply := self._reply(question)) is None:
                self._want(question)
                self._take()
            if isinstance(reply, Failed):
                raise reply.unanswered()
            return reply

    def close(self) -> None:
        """Stop asking at once. What was answered is kept; what was not ends as interrupted."""
        self._is_closed = True
        for each in self._askers.values():
            each.stop()
        if self._journal is not None:
            self._journal.close()

    def _run(self, check: Check) -> _Run:
        run = self._runs.get((check.config, check.id))
        if run is None:
            run = self._runs[check.config, check.id] = _Run(check)
            self._advance(run)
        return run

    def _advance(self, run: _Run) -> None:
        """Drive a check until it ends, or wants to know what has to be asked."""
        while (question := run.next()) is not None:
            reply = self._reply(question)
            if reply is None:
                self._want(question).append(run)
                return
            run.receive(reply)

    def _reply(self, question: Question) -> Answer | Failed | None:
        """What is known without asking; `None` if the question is to be asked."""
        reply = self._known.get(question.key)
        if reply is None and self._endpoint is None:
            return _not_recorded(question)
        if reply is None and self._is_closed:
            return INTERRUPTED
        if isinstance(reply, Answer) and reply.recorded:
            self._replayed.add(question.key)
        return reply

    def _want(self, question: Question) -> list[_Run]:
        """Have the question asked, if it is not already; who waits for it."""
        if question.key not in self._waiting:
            self._waiting[question.key] = []
            self._to_ask.append(Job(question=question, worst_nanousd=self._worst_nanousd(question)))
        return self._waiting[question.key]

    def _worst_nanousd(self, question: Question) -> int | None:
        if self._budget.limit_nanousd is None:
            return None
        try:
            return self._price(question, self._estimate(question))
        except Exception:  # noqa: BLE001  # whatever a price list raises, the price is not known
            return None

    def _send(self) -> None:
        """Hand over all that is to be asked."""
        jobs, self._to_ask = self._to_ask, []
        if not jobs:
            return
        if self._is_batched not in self._askers:
            self._askers[self._is_batched] = self._new_batcher() if self._is_batched else self._new_caller()
        self._askers[self._is_batched].submit(jobs)

    def _new_batcher(self) -> Asker:
        from deploy_gates.model.batch import Batcher, Register

        assert self._endpoint is not None, "without an endpoint nothing is to be asked"
        assert self._batches is not None, "asked in batches only where that is allowed"
        return Batcher(
            endpoint=self._endpoint,
            register=Register(self._batches.register),
            patience_s=self._batches.patience_s,
            journal=self._journal,
            price=self._batches.price,
            budget=self._budget,
            now=self._now,
            deliver=self._settled.put,
            clock=self._clock,
            sleep=self._sleep,
            tell=self._batches.tell,
        )

    def _new_caller(self) -> Asker:
        from deploy_gates.model.caller import Caller

        assert self._endpoint is not None, "without an endpoint nothing is to be asked"
        return Caller(
            endpoint=self._endpoint,
            journal=self._journal,
            price=self._price,
            budget=self._budget,
            in_flight=self._in_flight,
            retries=self._retries,
            now=self._now,
            clock=self._clock,
            sleep=self._sleep,
            deliver=self._settled.put,
        )

    def _take(self) -> None:
        """Wait for the next question to end, and drive the checks that wanted to know."""
        self._send()
        settled = None if self._is_closed and self._settled.empty() else self._settled.get()
        if settled is None:
            self._give_up()
            return
        if settled.result is SPARED:
            self._waiting.pop(settled.question.key, None)
            return
        self._count(settled)
        self._known[settled.question.key] = settled.result
        if (payer := self._owing.pop(settled.question.key, None)) is not None:
            payer.pay(settled)
        for at, run in enumerate(self._waiting.pop(settled.question.key, [])):
            run.receive(settled.result, settled, has_paid=at == 0)
            self._advance(run)
        self._send()
        if self._on_progress is not None:
            self._on_progress(self.totals)

    def _give_up(self) -> None:
        """Nobody asks any more: whatever still waits is interrupted."""
        self._is_closed = True
        waiting, self._waiting = self._waiting, {}
        for key, runs in waiting.items():
            self._known[key] = INTERRUPTED
            for run in runs:
                run.receive(INTERRUPTED)
                self._advance(run)

    def _count(self, settled: Settled) -> None:
        before, is_answered = self._totals, isinstance(settled.result, Answer)
        self._totals = replace(
            before,
            asked=before.asked + is_answered,
            unanswered=before.unanswered + (not is_answered),
            retried=before.retried + settled.retried,
            unpriced=before.unpriced + settled.is_unpriced,
            spent_nanousd=before.spent_nanousd + settled.spent_nanousd,
        )


class _Run:
    """One check on its way: what it was told, and what that took."""

    __slots__ = (
        "_asked",
        "_asking",
        "_oldest",
        "_questions",
        "_replayed",
        "_reply",
        "_spent_nanousd",
        "_took_s",
        "check",
        "outcome",
    )

    def __init__(self, check: Check) -> None:
        self.check = check
        self.outcome: Outcome | None = None
        self._asking: Asking | None = None
        self._reply: Answer | Failed | None = None
        self._questions = 0
        self._took_s = 0.0
        self._asked = 0
        self._replayed = 0
        self._spent_nanousd = 0
        self._oldest: datetime | None = None

    def receive(
        self, reply: Answer | Failed, asked: Settled | None = None, *, has_paid: bool = False
    ) -> None:
        """Take what the check is told next. Of all that wait for a question, one has paid for it."""
        self._reply = reply
        if asked is not None:
            self._took_s += asked.took_s
        if asked is not None and has_paid:
            self.pay(asked)
        if isinstance(reply, Answer):
            self._replayed += reply.recorded
            if reply.asked_at is not None:
                self._oldest = min(self._oldest or reply.asked_at, reply.asked_at)

    def pay(self, asked: Settled) -> None:
        """Count what a question cost, be it only now that it is known."""
        self._asked += isinstance(asked.result, Answer)
        self._spent_nanousd += asked.spent_nanousd
        if self.outcome is not None:
            self.outcome = replace(self.outcome, asked=self._asked, spent_nanousd=self._spent_nanousd)

    def spare(self) -> None:
        """Nobody needs it: that it has no answer is no matter any more."""
        if self.outcome is not None and "unanswered" in self.outcome.figures:
            self._end(self._unknown(SPARED.unanswered()), time.perf_counter())

    def next(self) -> Question | None:
        """Tell the check what was received; its next question, or `None` when it has ended."""
        began = time.perf_counter()
        try:
            question = self._step()
        except StopIteration as end:
            self._end(end.value, began)
        except KeyboardInterrupt:
            self._end(self._unknown(INTERRUPTED.unanswered()), began)
            raise
        # pytest.fail() and sys.exit() are no Exceptions, and one check must not end the others.
        except BaseException as error:  # noqa: BLE001
            self._end(self._unknown(error), began)
        else:
            self._took_s += time.perf_counter() - began
            return question
        return None

    def _step(self) -> Question:
        reply, self._reply = self._reply, None
        if self._asking is None:
            self._asking = self.check.begin()
        if isinstance(reply, Answer):
            question = self._asking.send(reply)
        elif reply is not None:
            question = self._asking.throw(reply.unanswered())
        else:
            question = next(self._asking)
        if not isinstance(question, Question):
            raise TypeError(f"it yields {type(question).__name__} where a Question is expected")
        self._questions += 1
        if self._questions > QUESTIONS_MAX:
            raise RuntimeError(f"it asks more than {QUESTIONS_MAX:,} questions")
        return question

    def _end(self, outcome: object, began: float) -> None:
        self._asking = self._reply = None
        if not isinstance(outcome, Outcome):
            wrong = TypeError(f"it returns {type(outcome).__name__} where an Outcome is expected")
            outcome = self._unknown(wrong)
        self.outcome = replace(
            outcome,
            took_s=self._took_s + time.perf_counter() - began,
            asked=self._asked,
            replayed=self._replayed,
            spent_nanousd=self._spent_nanousd,
            oldest_answer=self._oldest.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if self._oldest else "",
        )

    def _unknown(self, error: BaseException) -> Outcome:
        if isinstance(error, Unanswered):
            figures: JsonObject = {"unanswered": error.cause.value, "hint": error.hint}
            return self.check.outcome(Found.UNKNOWN, error.message, figures=figures)
        if isinstance(error, DeployGatesError):
            return self.check.outcome(Found.UNKNOWN, error.message)
        said = " ".join(str(error).split())[:SAID_MAX_CHARS]
        return self.check.outcome(Found.UNKNOWN, f"the check itself failed: {type(error).__name__}: {said}")


def _not_recorded(question: Question) -> Failed:
    return Failed(
        cause=Cause.NOT_RECORDED,
        message=f"no recorded answer for {question.label or question.digest[:7]}",
        hint="`--gate-record=new` asks for it, with OPENAI_API_KEY set",
    )
