"""One endpoint is asked, as many questions at once as it takes, on a thread of its own.

Bounds: a call takes at most `Endpoint.timeout_s`, a question at most `retries` calls more than one, and no
wait between two of them is longer than `WAIT_MAX_S`. A 429 counts as no try while others are answered: the
question waits for its turn, and fewer are asked at once; so they are where answers come dangerously late. A
call that takes far longer than all others is made a second time beside it, and the first answer counts. In
all, a question ends after `retries + 1` times `timeout_s + WAIT_MAX_S`. Where the endpoint is plainly dead,
the rest is not asked at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.cost import Usage, dollars
from deploy_gates.core.errors import Cause, WorkspaceError
from deploy_gates.core.question import Answer, Api, Question
from deploy_gates.model import failures, line, protocol
from deploy_gates.model.values import (
    INTERRUPTED,
    SPARED,
    Budget,
    Endpoint,
    Failed,
    Job,
    Journal,
    Price,
    Room,
    Settled,
)

WAIT_MAX_S = 60.0
"""An endpoint that asks for a longer wait is given up."""
BACKOFF_S = 0.25
BACKOFF_FACTOR = 3.0
BACKOFF_MAX_S = 20.0
TOGETHER = 5
"""So many questions are begun in one turn of the loop: of a hundred begun at once none is sent before all
are ready to be, again and again, since they are answered together as well."""
AFTER_MOST = 1.02
"""What an endpoint asks to wait is waited, and at most so many times that: not all begin again at once."""
REFUSED_MAX = 8
"""So many connections refused in a row, and there is no endpoint."""
DENIED_MAX = 3
"""So many keys refused before anything was answered, and the key is wrong for all."""
GIVEN_UP_MAX = 3
"""So many questions given up in a row with nothing answered, and nothing will be."""
SPEED_UP = 0.1
SLOW_DOWN = 1.0
"""Settles where one call in ten is throttled, so that a few 429s that load did not cause slow nothing."""
LATE_SHARE = 0.5
"""Answers that take more than this share of their timeout say that fewer should be asked at once."""
SECOND_AFTER = 6.0
"""So many times what 90 % of the answers took, and a call is made a second time."""
SECOND_MIN_S = 0.5
SECOND_MAX_SHARE = 0.1
"""Of all calls, and of those under way, so many at most are second ones."""
SECOND_AGAIN_S = 0.1
"""Where there is no room for a second call now, there may be in so long."""
MEASURED_MAX = 200
MEASURED_MIN = 20
STOP_WITHIN_S = 0.9


class Caller:
    """Asks questions, and delivers how each ended."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        journal: Journal | None,
        price: Price,
        budget: Budget,
        in_flight: int,
        retries: int,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] | None,
        deliver: Callable[[Settled | None], None],
    ) -> None:
        """`deliver` is called on the thread of the caller; with `None` once, when that ends."""
        self.problem: WorkspaceError | None = None
        """Why answers can no longer be kept."""
        self._endpoint = endpoint
        self._journal = journal
        self._price = price
        self._budget = budget
        self._retries = retries
        self._now = now
        self._clock = clock
        self._sleep = sleep or asyncio.sleep
        self._deliver = deliver
        self._line: line.Line | None = None
        self._queue: deque[Job] = deque()
        self._tasks: set[asyncio.Task[Answer | Failed]] = set()
        self._ended: Failed | None = None
        """Why nothing more is asked."""
        self._in_flight = max(1, in_flight)
        self._limit = float(self._in_flight)
        self._begun = 0
        """So many questions in this turn of the loop."""
        self._answered = 0
        self._refused = 0
        self._denied = 0
        self._given_up = 0
        self._took_s: deque[float] = deque(maxlen=MEASURED_MAX)
        self._measured = 0
        self._second_after_s: float | None = None
        self._seconds = self._seconds_now = 0
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="deploy-gates", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Ask these, in this order."""
        self._on_loop(self._enqueue, jobs)

    def withdraw(self, keys: Collection[str]) -> None:
        """Do not ask those of these that wait for their turn; they end as spared."""
        self._on_loop(self._withdraw, keys)

    def stop(self) -> None:
        """Leave everything unfinished, now; whatever has no answer is delivered as interrupted."""
        self._on_loop(self._stop)
        self._thread.join(STOP_WITHIN_S)

    def _on_loop(self, do: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(do, *arguments)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        finally:
            self._deliver(None)

    async def _serve(self) -> None:
        try:
            if self._journal is not None:
                self._journal.open()
            self._line = line.Line(self._endpoint)
        except WorkspaceError as error:
            self._cannot_keep(error)
        except Exception as error:  # noqa: BLE001  # a client that cannot be made reaches no endpoint
            self._end(self._failed(error))
        self._pump()
        await self._stopping.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._line is not None:
            await self._line.close()

    def _stop(self) -> None:
        self._end(INTERRUPTED)
        self._stopping.set()

    # --- Which question is next -----------------------------------------------------------------

    def _enqueue(self, jobs: Sequence[Job]) -> None:
        self._queue.extend(jobs)
        self._pump()

    def _withdraw(self, keys: Collection[str]) -> None:
        waiting, self._queue = self._queue, deque()
        for job in waiting:
            if job.question.key in keys:
                self._deliver(Settled(question=job.question, result=SPARED))
            else:
                self._queue.append(job)
        self._pump()

    def _pump(self) -> None:
        """Begin as many questions as may be under way; end those that will not be asked."""
        while self._queue:
            job = self._queue[0]
            refusal = self._ended or self._unpriced(job)
            if refusal is not None:
                self._queue.popleft()
                self._deliver(Settled(question=job.question, result=refusal))
            elif self._line is None or len(self._tasks) >= int(self._limit) or self._begun >= TOGETHER:
                return
            else:
                worst = job.worst_nanousd or 0
                room = self._budget.reserve(worst, lambda: self._on_loop(self._pump))
                if room is Room.LATER:
                    return
                if room is Room.NO:
                    self._end(self._over_budget(worst), cancel=False)
                else:
                    self._begin(self._queue.popleft())

    def _next_turn(self) -> None:
        self._begun = 0
        self._pump()

    def _begin(self, job: Job) -> None:
        if not self._begun:
            self._loop.call_soon(self._next_turn)
        self._begun += 1
        calls = _Calls(job=job, began=self._clock(), reserved_nanousd=job.worst_nanousd or 0)
        task = self._loop.create_task(self._ask(calls))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._finished, calls))

    def _finished(self, calls: _Calls, task: asyncio.Task[Answer | Failed]) -> None:
        """Deliver how a question ended. A task can be cancelled before its first step: so not within it."""
        self._tasks.discard(task)
        self._budget.settle(calls.reserved_nanousd)
        if task.cancelled():
            result: Answer | Failed = self._ended or INTERRUPTED
        elif isinstance(error := task.exception(), Exception):
            result = self._failed(error)
        else:
            result = task.result()
        if isinstance(result, Answer):
            self._keep(calls.job.question, result)
        self._deliver(
            Settled(
                question=calls.job.question,
                result=result,
                took_s=self._clock() - calls.began,
                spent_nanousd=calls.spent_nanousd,
                retried=calls.retried,
                is_unpriced=calls.is_unpriced,
            )
        )
        self._pump()

    def _end(self, why: Failed, *, cancel: bool = True) -> None:
        """Ask nothing more. With `cancel`, do not wait for what is under way either."""
        self._ended = self._ended or replace(why, can_retry=False, usage=None)
        if cancel:
            for task in self._tasks:
                task.cancel()
        self._pump()

    # --- One question ---------------------------------------------------------------------------

    async def _ask(self, calls: _Calls) -> Answer | Failed:
        """Call until there is an answer, or no use in calling."""
        timeout_s = self._endpoint.timeout_s
        until = calls.began + (self._retries + 1) * (timeout_s + WAIT_MAX_S)
        answered_at_first = answered_before = self._answered
        tries = 0
        while True:
            result = await self._call(calls, min(timeout_s, until - self._clock()))
            self._learn(result)
            if isinstance(result, Answer) or result.usage is not None:
                self._pay(calls, result.usage)
            if isinstance(result, Answer) or not result.can_retry:
                return result
            if not result.is_throttled or self._answered == answered_before:
                tries += 1
            answered_before = self._answered
            wait_s = _backoff_s(tries) if result.wait_s is None else _after_s(result.wait_s)
            if tries > self._retries or wait_s > WAIT_MAX_S or self._clock() + wait_s >= until:
                return self._give_up(result, calls, is_silent=self._answered == answered_at_first)
            await self._sleep(wait_s)
            if not self._reserve_again(calls):
                return self._over_budget(calls.job.worst_nanousd or 0)
            calls.retried += 1

    def _learn(self, result: Answer | Failed) -> None:
        """Adapt to how the endpoint fares: ask fewer at once, or nothing more."""
        if isinstance(result, Answer):
            self._answered += 1
            self._given_up = self._refused = 0
            is_late = result.latency_s > LATE_SHARE * self._endpoint.timeout_s
            change = -SLOW_DOWN if is_late else SPEED_UP
            self._limit = max(1.0, min(float(self._in_flight), self._limit + change))
            return
        if result.is_throttled or result.is_late:
            self._limit = max(1.0, self._limit - SLOW_DOWN)
        self._refused = self._refused + 1 if result.is_refused else 0
        self._denied += result.cause is Cause.UNAUTHORIZED
        is_denied = self._denied >= DENIED_MAX and not self._answered
        if self._refused >= REFUSED_MAX or is_denied:
            self._end(result)

    def _measure(self, took_s: float) -> None:
        """Learn from time to time what is far longer than usual."""
        self._took_s.append(took_s)
        self._measured += 1
        if self._measured % MEASURED_MIN == 0:
            usual_s = sorted(self._took_s)[len(self._took_s) * 9 // 10]
            self._second_after_s = max(SECOND_MIN_S, SECOND_AFTER * usual_s)

    def _give_up(self, last: Failed, calls: _Calls, *, is_silent: bool) -> Failed:
        self._given_up += 1
        message = last.message
        if last.wait_s is not None and last.wait_s > WAIT_MAX_S:
            message += f", and asks to wait {last.wait_s:,.0f} s"
        elif calls.retried:
            message += f", also after {calls.retried} {'retry' if calls.retried == 1 else 'retries'}"
        failed = replace(last, message=message, can_retry=False)
        if is_silent and self._given_up >= GIVEN_UP_MAX:
            self._end(failed)
        return failed

    # --- Money, and what is kept ----------------------------------------------------------------

    def _unpriced(self, job: Job) -> Failed | None:
        """Why a question cannot be asked under a budget: nobody knows what it may cost."""
        if job.worst_nanousd is not None or self._budget.limit_nanousd is None:
            return None
        model = job.question.model
        return Failed(
            cause=Cause.BUDGET,
            message=f"nobody knows what {model} costs, so the run could not keep to its budget",
            hint=f'declare its price under `[tool.deploy_gates.models."{model}"]`',
        )

    def _over_budget(self, worst_nanousd: int) -> Failed:
        limit, spent = self._budget.limit_nanousd or 0, self._budget.spent_nanousd
        return Failed(
            cause=Cause.BUDGET,
            message=f"one more call may cost {dollars(worst_nanousd)}, and {dollars(spent)} of the run's "
            f"{dollars(limit)} are spent",
            hint="raise `--gate-budget`; what was answered is not asked again",
        )

    def _pay(self, calls: _Calls, usage: Usage | None) -> None:
        """Post what a call cost; the worst it can, where nobody says what it used, or what that costs."""
        cost: int | None = None
        if usage is not None:
            with contextlib.suppress(Exception):  # whatever a price list raises, the price is not known
                cost = self._price(calls.job.question, usage)
        cost = calls.job.worst_nanousd if cost is None else cost
        calls.is_unpriced = calls.is_unpriced or cost is None
        calls.spent_nanousd += cost or 0
        self._budget.settle(calls.reserved_nanousd, cost or 0)
        calls.reserved_nanousd = 0

    def _reserve_again(self, calls: _Calls) -> bool:
        """Reserve for another call, if the last one was paid for though it failed."""
        worst = calls.job.worst_nanousd or 0
        if not calls.reserved_nanousd and self._budget.reserve(worst, lambda: None) is not Room.YES:
            return False
        calls.reserved_nanousd = worst
        return True

    def _keep(self, question: Question, answer: Answer) -> None:
        if self._journal is not None and self.problem is None:
            try:
                self._journal.append(question, answer)
            except WorkspaceError as error:
                self._cannot_keep(error)

    def _cannot_keep(self, error: WorkspaceError) -> None:
        """Answers that cannot be kept are not paid for; those under way are used all the same."""
        self.problem = error
        self._end(Failed(cause=Cause.INTERRUPTED, message=error.message, hint=error.hint), cancel=False)

    # --- One call -------------------------------------------------------------------------------

    async def _call(self, calls: _Calls, within_s: float) -> Answer | Failed:
        question, asked_at, began = calls.job.question, self._now(), self._clock()
        try:
            async with asyncio.timeout(within_s):
                answer = await self._first(calls, began)
        except TimeoutError:
            return failures.too_slow(self._endpoint, within_s)
        except Exception as error:  # noqa: BLE001  # whatever a network raises, there is no answer
            return self._failed(error)
        if not failures.is_served_by(question.model, answer.model, self._endpoint.served_as):
            return failures.wrong_model(question.model, answer)
        return replace(answer, latency_s=self._clock() - began, asked_at=asked_at)

    async def _first(self, calls: _Calls, began: float) -> Answer:
        """The answer of this call, or of a second one where this takes too long: whichever is first."""
        second = _Second(self, calls, began)
        try:
            answer = await self._post(calls.job.question, began)
            self._measure(self._clock() - began)  # not of second ones: by them nothing would be slow any more
            return answer
        except asyncio.CancelledError:
            if second.answer is None:
                raise
            second.asking.uncancel()
            return second.answer
        finally:
            second.end()

    def may_be_second(self, took_s: float) -> bool:
        """Whether a call takes too long by now, and there is room for a second one: they are to be few."""
        return (
            self._second_after_s is not None
            and took_s >= self._second_after_s
            and self._ended is None
            and self._seconds < SECOND_MAX_SHARE * (self._answered + MEASURED_MIN)
            and self._seconds_now < max(1.0, SECOND_MAX_SHARE * self._limit)
        )

    def _failed(self, error: Exception) -> Failed:
        return failures.read(error, self._endpoint, self._now)

    async def _post(self, question: Question, began: float) -> Answer:
        assert self._line is not None
        path = protocol.PATHS[question.api]
        if question.body.get("stream") is not True:
            return protocol.answer(question.api, line.decoded(await self._line.whole(path, question.body)))
        whole, events = await self._line.parts(path, _with_usage(question))
        if whole is not None:
            return protocol.answer(question.api, line.decoded(whole))
        made, first_token_s = protocol.Stream(question.api), None
        async for event in events:
            made.add(event)
            if made.has_begun and first_token_s is None:
                first_token_s = self._clock() - began
        return replace(made.answer(), first_token_s=first_token_s)


class _Second:
    """A second call for a question whose first one takes far longer than usual."""

    def __init__(self, caller: Caller, calls: _Calls, began: float) -> None:
        asking = asyncio.current_task()
        assert asking is not None, "made by whoever asks"
        self.asking = asking
        self.answer: Answer | None = None
        self._caller = caller
        self._calls = calls
        self._began = began
        self._task: asyncio.Task[Answer] | None = None
        self._is_over = False
        self._timer = caller._loop.call_later(SECOND_MIN_S, self._begin)

    def _begin(self) -> None:
        caller = self._caller
        if not caller.may_be_second(caller._clock() - self._began):
            self._timer = caller._loop.call_later(SECOND_AGAIN_S, self._begin)
            return
        caller._seconds += 1
        caller._seconds_now += 1
        self._calls.retried += 1
        self._task = caller._loop.create_task(caller._post(self._calls.job.question, self._began))
        self._task.add_done_callback(self._came)

    def _came(self, task: asyncio.Task[Answer]) -> None:
        self._caller._seconds_now -= 1
        if task.cancelled() or task.exception() is not None or self._is_over:
            return  # the first one goes on, or has come by now
        self.answer = task.result()
        self.asking.cancel()

    def end(self) -> None:
        self._is_over = True
        self._timer.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()


@dataclass(kw_only=True, slots=True)
class _Calls:
    """The calls of one question so far."""

    job: Job
    began: float
    reserved_nanousd: int
    spent_nanousd: int = 0
    retried: int = 0
    is_unpriced: bool = False


def _with_usage(question: Question) -> JsonObject:
    """The body of a streamed request: Chat Completions tells what a stream used only if asked to."""
    if question.api is not Api.CHAT:
        return question.body
    options = question.body.get("stream_options")
    given: JsonObject = options if isinstance(options, dict) else {}
    return question.body | {"stream_options": {"include_usage": True} | given}


def _backoff_s(tries: int) -> float:
    exact = BACKOFF_S * BACKOFF_FACTOR ** max(0, tries - 1)
    return min(BACKOFF_MAX_S, exact) * random.uniform(0.5, 1.0)


def _after_s(wait_s: float) -> float:
    return wait_s * random.uniform(1.0, AFTER_MOST)
