"""Many questions answered in batches, by the Batch API: at half the price, within a day.

What is under way stands in a file before it is submitted: which questions, under which token. So a run that
is killed at any point is resumed by the next one, which looks for its batches at the endpoint, and submits
nothing twice. The answers of a batch go where all answers go; what has none is asked again by the next run.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from deploy_gates import files
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.errors import Cause, WorkspaceError
from deploy_gates.core.question import Answer, Api, Question
from deploy_gates.model import failures, line, protocol
from deploy_gates.model.values import (
    INTERRUPTED,
    Budget,
    Endpoint,
    Failed,
    Job,
    Journal,
    Price,
    Room,
    Settled,
)

QUESTIONS_MAX = 50_000
BYTES_MAX = 190 << 20
"""The API takes so many questions in one batch, and 200 MB."""
LINGER_S = 0.3
"""What is asked within this time goes into one batch."""
POLL_S = 1.0
POLL_FACTOR = 1.5
POLL_MAX_S = 30.0
TRIES = 5
"""So often is one request of the API tried."""
LISTED_MAX = 100
"""Among so many of the newest batches is one looked for whose name was not heard."""
STOP_WITHIN_S = 2.0
METADATA = "deploy-gates"
ENDED = frozenset({"completed", "expired", "cancelled", "failed"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """A batch that was submitted, or was about to be."""

    token: str
    """Ours; the endpoint keeps it with the batch."""
    place: str
    api: str
    keys: tuple[str, ...]
    id: str = ""
    """Theirs; empty: it is not known whether there is one."""
    submitted_at: str = ""


class Register:
    """The batches of one config that are under way, in a file that one run at a time may use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def open(self) -> None:
        """Take it. `WorkspaceError` if another run has it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            held = self.path.with_suffix(".lock")
            self._lock = os.open(held, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkspaceError("another run is waiting for batches of this config") from error
        except OSError as error:
            raise WorkspaceError(f"{self.path} cannot be used: {error.strerror or error}") from error

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> tuple[Pending, ...]:
        """What is under way. `WorkspaceError` if the file is not ours."""
        try:
            raw = json.loads(self.path.read_bytes())
            return tuple(Pending(**each | {"keys": tuple(each["keys"])}) for each in raw)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WorkspaceError(
                f"{self.path} cannot be read: {error}",
                hint="remove it to forget the batches that are under way",
            ) from error

    def put(self, pending: Pending) -> None:
        """Keep it, in place of what had its token."""
        self._write([*(each for each in self.read() if each.token != pending.token), pending])

    def remove(self, pending: Pending) -> None:
        self._write([each for each in self.read() if each.token != pending.token])

    def _write(self, kept: Sequence[Pending]) -> None:
        if kept:
            files.replace(self.path, json.dumps([asdict(each) for each in kept]).encode())
        else:
            self.path.unlink(missing_ok=True)


class Batcher:
    """Answers questions in batches, and delivers how each ended: what `Caller` does one by one."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        register: Register,
        patience_s: float,
        journal: Journal | None,
        price: Price,
        budget: Budget,
        now: Callable[[], datetime],
        deliver: Callable[[Settled | None], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] | None = None,
        tell: Callable[[str], None] = lambda said: None,
    ) -> None:
        self.problem: WorkspaceError | None = None
        self._endpoint = endpoint
        self._register = register
        self._patience_s = patience_s
        self._journal = journal
        self._price = price
        self._budget = budget
        self._now = now
        self._deliver = deliver
        self._clock = clock
        self._sleep = sleep or asyncio.sleep
        self._tell = tell
        self._line: line.Line | None = None
        self._queue: list[Job] = []
        self._waiting: dict[str, Job] = {}
        """By its key: what has no answer yet. Without a reservation where an earlier run has submitted it."""
        self._reserved: dict[str, int] = {}
        self._ended: Failed | None = None
        self._loop = asyncio.new_event_loop()
        self._arrived = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="deploy-gates-batch", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        self._on_loop(self._enqueue, jobs)

    def withdraw(self, keys: Collection[str]) -> None:
        """Nothing: what is submitted is paid for, and its answers are welcome."""

    def stop(self) -> None:
        """Wait no longer. What is submitted goes on at the endpoint, and is collected by the next run."""
        self._on_loop(self._stop)
        self._thread.join(STOP_WITHIN_S)

    def _on_loop(self, do: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(do, *arguments)

    def _enqueue(self, jobs: Sequence[Job]) -> None:
        self._queue += jobs
        self._arrived.set()

    def _stop(self) -> None:
        self._ended = self._ended or INTERRUPTED
        if self._main is not None:
            self._main.cancel()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        finally:
            self._register.close()
            self._deliver(None)

    async def _serve(self) -> None:
        self._main = asyncio.current_task()
        try:
            await self._work()
        except asyncio.CancelledError:
            pass
        finally:
            self._give_up(self._ended or INTERRUPTED)
            if self._line is not None:
                await self._line.close()

    async def _work(self) -> None:
        try:
            if self._journal is not None:
                self._journal.open()
            self._register.open()
            self._line = line.Line(self._endpoint)
        except WorkspaceError as error:
            self._cannot_keep(error)
        except Exception as error:  # noqa: BLE001  # a client that cannot be made reaches no endpoint
            self._ended = failures.read(error, self._endpoint, self._now)
        while True:
            await self._arrived.wait()
            await asyncio.sleep(LINGER_S)
            self._arrived.clear()
            jobs, self._queue = self._queue, []
            for job in jobs:
                self._waiting[job.question.key] = job
            if self._ended is None:
                try:
                    await self._answer()
                except WorkspaceError as error:
                    self._cannot_keep(error)
                except Exception as error:  # noqa: BLE001  # whatever a network raises, there is no answer
                    self._ended = failures.read(error, self._endpoint, self._now)
            self._give_up(self._ended or _NO_ANSWER)

    def _give_up(self, why: Failed) -> None:
        """Deliver all that still waits without an answer."""
        for job in [*self._waiting.values(), *self._queue]:
            self._settle(job, why)
        self._waiting.clear()
        self._queue.clear()

    def _cannot_keep(self, error: WorkspaceError) -> None:
        self.problem = error
        self._ended = Failed(cause=Cause.INTERRUPTED, message=error.message, hint=error.hint)

    # --- Batches --------------------------------------------------------------------------------

    async def _answer(self) -> None:
        """Collect what earlier runs have submitted, submit the rest, and collect that."""
        for pending in self._register.read():
            if pending.place == self._endpoint.place and not self._waiting.keys().isdisjoint(pending.keys):
                await self._resume(pending)
        submitted = [await self._submit(chunk) for chunk in self._chunks()]
        for pending in submitted:
            await self._collect(pending)

    async def _resume(self, pending: Pending) -> None:
        if not pending.id:
            found = await self._look_for(pending.token)
            if not found:
                self._register.remove(pending)
                return
            pending = replace(pending, id=found)
            self._register.put(pending)
        self._tell(f"{pending.id} is resumed: {len(pending.keys):,} questions")
        await self._collect(pending)

    async def _look_for(self, token: str) -> str:
        """The batch that was created with `token`; empty if there is none."""
        listed = _object(await self._get(f"/batches?limit={LISTED_MAX}"))
        data = listed.get("data")
        for each in data if isinstance(data, list) else []:
            if isinstance(each, dict) and _object(each.get("metadata")).get(METADATA) == token:
                return str(each.get("id", ""))
        return ""

    def _chunks(self) -> Iterator[tuple[Api, list[Job]]]:
        """What still waits, less what there is no money for, in parts that one batch takes."""
        for api in Api:
            chunk: list[Job] = []
            size = 0
            for job in [each for each in self._waiting.values() if each.question.api is api]:
                refusal = self._refusal(job)
                if refusal is not None:
                    del self._waiting[job.question.key]
                    self._settle(job, refusal)
                    continue
                length = len(_line(job.question))
                if chunk and (len(chunk) == QUESTIONS_MAX or size + length > BYTES_MAX):
                    yield api, chunk
                    chunk, size = [], 0
                chunk.append(job)
                size += length
            if chunk:
                yield api, chunk

    def _refusal(self, job: Job) -> Failed | None:
        if self._budget.limit_nanousd is None:
            return None
        if job.worst_nanousd is None:
            return Failed(cause=Cause.BUDGET, message=f"nobody knows what {job.question.model} costs")
        if self._budget.reserve(job.worst_nanousd, lambda: None) is not Room.YES:
            return Failed(
                cause=Cause.BUDGET,
                message="the batch may cost all that the run may spend without it",
                hint="raise `--gate-budget`; what was answered is not asked again",
            )
        self._reserved[job.question.key] = job.worst_nanousd
        return None

    async def _submit(self, chunk: tuple[Api, list[Job]]) -> Pending:
        api, jobs = chunk
        assert self._line is not None
        pending = Pending(
            token=secrets.token_hex(16),
            place=self._endpoint.place,
            api=api.value,
            keys=tuple(job.question.key for job in jobs),
            submitted_at=self._now().astimezone(UTC).isoformat(timespec="seconds"),
        )
        content = b"".join(_line(job.question) for job in jobs)
        file = _object(
            await self._tried(lambda: _line_of(self._line).upload(content, name=f"{pending.token}.jsonl"))
        )
        self._register.put(pending)
        body: JsonObject = {
            "input_file_id": str(file.get("id", "")),
            "endpoint": f"/v1{protocol.PATHS[api]}",
            "completion_window": "24h",
            "metadata": {METADATA: pending.token},
        }
        made = _object(await self._tried(lambda: self._created(pending.token, body)))
        pending = replace(pending, id=str(made.get("id", "")))
        self._register.put(pending)
        self._tell(f"{pending.id} is submitted: {len(jobs):,} questions")
        return pending

    async def _created(self, token: str, body: JsonObject) -> bytes:
        """Create the batch; where nobody knows whether that worked, look first: it is not created twice."""
        try:
            return await _line_of(self._line).whole("/batches", body)
        except protocol.Refused:
            raise
        except Exception:
            found = await self._look_for(token)
            if found:
                return json.dumps({"id": found}).encode()
            raise

    async def _collect(self, pending: Pending) -> None:
        """Wait until it has ended, and deliver its answers."""
        batch = await self._awaited(pending)
        if batch is None:
            return
        for name in ("output_file_id", "error_file_id"):
            if file := batch.get(name):
                for each in (await self._get(f"/files/{file}/content")).split(b"\n"):
                    self._take(each, pending)
        status = str(batch.get("status"))
        why = f"{pending.id} has {status} before this was answered"
        cause, hint = Cause.OVERLOADED, "run again: what was answered is not asked again"
        if status == "failed":
            cause, why, hint = Cause.REFUSED, f"{pending.id} was refused: {_why(batch)}", ""
        for key in pending.keys:
            if job := self._waiting.pop(key, None):
                self._settle(job, Failed(cause=cause, message=why, hint=hint))
        self._register.remove(pending)
        self._tell(f"{pending.id} has {status} and is collected")

    async def _awaited(self, pending: Pending) -> JsonObject | None:
        """The batch once it has ended; `None` where patience has ended before."""
        until, wait_s = self._clock() + self._patience_s, POLL_S
        while True:
            batch = _object(await self._get(f"/batches/{pending.id}"))
            if batch.get("status") in ENDED:
                return batch
            if self._clock() + wait_s > until:
                self._leave(pending, batch)
                return None
            await self._sleep(wait_s)
            wait_s = min(POLL_MAX_S, wait_s * POLL_FACTOR)

    def _leave(self, pending: Pending, batch: JsonObject) -> None:
        counts = _object(batch.get("request_counts"))
        why = Failed(
            cause=Cause.INTERRUPTED,
            message=f"{pending.id} is under way: {counts.get('completed', 0):,} of {len(pending.keys):,} "
            "are answered",
            hint="run again with `--gate-batch`: it is collected then, and nothing is asked twice",
        )
        for key in pending.keys:
            if job := self._waiting.pop(key, None):
                self._settle(job, why)

    # --- Answers --------------------------------------------------------------------------------

    def _take(self, raw: bytes, pending: Pending) -> None:
        """One line of an output or of an error file."""
        if not raw.strip():
            return
        try:
            told = _object(raw)
        except protocol.Malformed:
            return  # whose line it is, nobody can tell: its question is told to have no answer
        job = self._waiting.pop(str(told.get("custom_id", "")), None)
        if job is None:
            return
        try:
            answer = self._read(told, job.question)
        except Exception as error:  # noqa: BLE001  # whatever it says, it is no answer
            self._settle(job, failures.read(error, self._endpoint, self._now))
            return
        if not failures.is_served_by(job.question.model, answer.model, self._endpoint.served_as):
            self._settle(job, failures.wrong_model(job.question.model, answer))
            return
        asked_at = datetime.fromisoformat(pending.submitted_at)
        self._settle(job, replace(answer, asked_at=asked_at))

    def _read(self, told: JsonObject, question: Question) -> Answer:
        response = told.get("response")
        if isinstance(told.get("error"), dict) or not isinstance(response, dict):
            raise protocol.failure(_object(told.get("error")))
        status = response.get("status_code")
        if not isinstance(status, int) or not 200 <= status < 300:
            raise protocol.Refused(status if isinstance(status, int) else 500, {}, response.get("body"))
        return protocol.answer(question.api, response.get("body"))

    def _settle(self, job: Job, result: Answer | Failed) -> None:
        usage = result.usage
        cost: int | None = None
        if usage is not None:
            with contextlib.suppress(Exception):  # whatever a price list raises, the price is not known
                cost = self._price(job.question, usage)
        reserved = self._reserved.pop(job.question.key, 0)
        if isinstance(result, Answer) and cost is None:
            cost = job.worst_nanousd
        self._budget.settle(reserved, cost or 0)
        if isinstance(result, Answer) and self._journal is not None and self.problem is None:
            try:
                self._journal.append(job.question, result)
            except WorkspaceError as error:
                self._cannot_keep(error)
        self._deliver(
            Settled(
                question=job.question,
                result=result,
                spent_nanousd=cost or 0,
                is_unpriced=isinstance(result, Answer) and cost is None,
            )
        )

    # --- The API --------------------------------------------------------------------------------

    async def _get(self, path: str) -> bytes:
        return await self._tried(lambda: _line_of(self._line).fetch(path))

    async def _tried(self, call: Callable[[], Awaitable[bytes]]) -> bytes:
        """What a request of the API says; tried again where that may help."""
        for attempt in range(1, TRIES + 1):
            try:
                async with asyncio.timeout(self._endpoint.timeout_s):
                    return await call()
            except Exception as error:
                failed = failures.read(error, self._endpoint, self._now)
                if not failed.can_retry or attempt == TRIES:
                    raise
                await self._sleep(failed.wait_s or POLL_S * attempt)
        raise AssertionError("the last attempt returns or raises")


_NO_ANSWER = Failed(
    cause=Cause.OVERLOADED,
    message="the batch has no answer to this",
    hint="run again: what was answered is not asked again",
)


def _line_of(there: line.Line | None) -> line.Line:
    assert there is not None, "opened before anything is asked"
    return there


def _line(question: Question) -> bytes:
    """A question as a line of the input file."""
    made: JsonObject = {
        "custom_id": question.key,
        "method": "POST",
        "url": f"/v1{protocol.PATHS[question.api]}",
        "body": {key: each for key, each in question.body.items() if key not in ("stream", "stream_options")},
    }
    return json.dumps(made, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _why(batch: Mapping[str, Json]) -> str:
    errors = _object(batch.get("errors")).get("data")
    first = errors[0] if isinstance(errors, list) and errors else None
    return str(first.get("message")) if isinstance(first, dict) else "no reason given"


def _object(raw: object) -> JsonObject:
    value = line.decoded(raw) if isinstance(raw, bytes) else raw
    return value if isinstance(value, dict) else {}
