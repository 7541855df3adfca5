"""Questions get answers, or one of our own causes: from recordings, from endpoints, from what misbehaves."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import httpx2
import openai
import pytest
from tests.servers import Breaks, Drops, Fails, Hangs, Raw, Reply, Request, Says, Server, refused_url, serve

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.cost import Usage
from deploy_gates.core.errors import Cause, Unanswered, WorkspaceError
from deploy_gates.core.gate import Asking, Check, Found, GateName, Outcome
from deploy_gates.core.question import Answer, Api, Question, ToolCall, question
from deploy_gates.model import Budget, Endpoint, Engine, Record, Totals, failures, line
from deploy_gates.testing import NOW, an_answer

KEY = "sk-proj-not-a-real-key"
MODEL = "gpt-4.1-mini"
TRIES = 5


class Naps:
    """Waits between calls: remembered, and not slept."""

    def __init__(self) -> None:
        self.waited_s: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.waited_s.append(seconds)
        await asyncio.sleep(0)


class Kept:
    """A journal in memory, full after `room` answers."""

    def __init__(self, answers: Mapping[str, Answer] | None = None, room: int = 1_000_000) -> None:
        self.answers: Mapping[str, Answer] = answers or {}
        self.room = room
        self.lines: list[tuple[str, str]] = []

    def open(self) -> None:
        if not self.room:
            raise WorkspaceError("answers cannot be kept: no space left on device")

    def append(self, question: Question, answer: Answer) -> None:
        if len(self.lines) == self.room:
            raise WorkspaceError("an answer cannot be kept: no space left on device")
        self.lines.append((question.key, answer.text))

    def close(self) -> None:
        pass


def a_question(text: str = "hello", *, api: Api = Api.CHAT, sample: int = 0, **body: object) -> Question:
    turns = "messages" if api is Api.CHAT else "input"
    made: JsonObject = {"model": MODEL, turns: [{"role": "user", "content": text}]}
    return question(api, made | body, label=text, sample=sample)  # type: ignore[arg-type]  # tests send anything


def a_check(id: str, *questions: Question) -> Check:
    """Met if every answer says `refund`."""

    def begin() -> Asking:
        is_met = True
        for each in questions or (a_question(id),):
            answer = yield each
            is_met = is_met and "refund" in answer.text
        return check.outcome(Found.MET if is_met else Found.MISSED)

    check = Check(id=f"cases.jsonl::{id}", gate=GateName.GOLDEN, config="triage", begin=begin)
    return check


def failing(begin: Callable[[], object]) -> Check:
    return Check(id="cases.jsonl::broken", gate=GateName.GOLDEN, config="triage", begin=begin)  # type: ignore[arg-type]


@contextmanager
def engine(server: Server | str | None = None, **fields: object) -> Iterator[Engine]:
    """An engine that may ask `server`, or an address, and is closed at the end."""
    base_url = server.base_url if isinstance(server, Server) else server
    timeout_s = fields.pop("timeout_s", 10.0)
    made: dict[str, object] = {
        "recorded": {},
        "endpoint": base_url and Endpoint(base_url=base_url, api_key=KEY, timeout_s=timeout_s),  # type: ignore[arg-type]
        "record": Record.NEW,
        "journal": None,
        "price": lambda question, usage: usage.input_tokens + usage.output_tokens,
        "estimate": lambda question: Usage(input_tokens=100, output_tokens=900),
        "now": lambda: NOW,
        "sleep": Naps(),
    }
    running = Engine(**(made | fields))  # type: ignore[arg-type]  # a builder for tests takes any field
    try:
        yield running
    finally:
        running.close()


def why_not(running: Engine, question: Question) -> Unanswered:
    with pytest.raises(Unanswered) as caught:
        running.ask(question)
    return caught.value


# --- Recorded answers ---------------------------------------------------------------------------


REPLAY = """
import sys, threading
from deploy_gates.core.gate import Check, Found, GateName
from deploy_gates.core.question import Api, question
from deploy_gates.model import Endpoint, Engine, Record
from deploy_gates.testing import NOW, an_answer

asked = question(Api.CHAT, {"model": "m", "messages": []})

def begin():
    answer = yield asked
    return check.outcome(Found.MET, answer.text)

check = Check(id="f::a", gate=GateName.GOLDEN, config="c", begin=begin)
engine = Engine(recorded={asked.key: an_answer("hi")}, endpoint=Endpoint(base_url="http://127.0.0.1:1"),
                record=Record.NEW, journal=None, price=None, estimate=None, now=lambda: NOW)
engine.ask_ahead([check])
print(engine.outcome(check).found, engine.totals.replayed, threading.active_count(),
      sorted({"openai", "httpx2", "asyncio", "ssl", "aiohttp"} & set(sys.modules)))
"""


def test_recorded_answers_need_no_client_no_loop_and_no_thread() -> None:
    said = subprocess.run([sys.executable, "-c", REPLAY], capture_output=True, text=True, check=True)

    assert said.stdout == "met 1 1 []\n"


def test_what_is_recorded_is_not_asked_and_the_rest_is() -> None:
    recorded = {a_question("a").key: an_answer("refund a", asked_at=NOW - timedelta(days=3))}
    checks = [a_check("a"), a_check("b")]

    with serve(Says("refund b")) as server, engine(server, recorded=recorded) as running:
        running.ask_ahead(checks)
        outcomes = [running.outcome(each) for each in checks]

    assert [each.found for each in outcomes] == [Found.MET, Found.MET]
    assert [(each.asked, each.replayed) for each in outcomes] == [(0, 1), (1, 0)]
    assert [each.oldest_answer for each in outcomes] == ["2026-11-20T09:14:02Z", "2026-11-23T09:14:02Z"]
    assert [request.prompt for request in server.requests] == ["b"]


@pytest.mark.parametrize(
    ("record", "is_there"), [(Record.NONE, True), (Record.NEW, False), (Record.ALL, False)]
)
def test_what_may_not_be_asked_is_unknown(record: Record, is_there: bool) -> None:
    with serve(Says("refund")) as server, engine(server if is_there else None, record=record) as running:
        outcome = running.outcome(a_check("refund-partial"))

    assert outcome.found is Found.UNKNOWN
    assert outcome.reasons == ("no recorded answer for refund-partial",)
    assert outcome.figures["unanswered"] == Cause.NOT_RECORDED
    assert "--gate-record=new" in str(outcome.figures["hint"])
    assert server.asked == 0


def test_asking_everything_serves_only_what_an_interrupted_run_has_left() -> None:
    recorded = {a_question(name).key: an_answer(f"recorded {name}") for name in "abc"}
    journal = Kept({a_question("b").key: an_answer("resumed b")})

    with (
        serve(Says("live")) as server,
        engine(server, recorded=recorded, journal=journal, record=Record.ALL) as running,
    ):
        texts = [running.ask(a_question(name)).text for name in "abc"]

    assert texts == ["live", "resumed b", "live"]
    assert [text for _, text in journal.lines] == ["live", "live"]


# --- Live answers -------------------------------------------------------------------------------

PROTOCOLS = [(api, is_streamed) for api in (Api.CHAT, Api.RESPONSES) for is_streamed in (False, True)]


@pytest.mark.parametrize(("api", "is_streamed"), PROTOCOLS)
def test_the_same_answer_comes_out_of_either_protocol_whole_or_streamed(api: Api, is_streamed: bool) -> None:
    body: dict[str, object] = {"stream": True} if is_streamed else {}
    says = Says("Grüße, 😀 refund", tool_calls=[("book", '{"days": 3}')], finish_reason="tool_calls")

    with serve(says) as server, engine(server) as running:
        answer = running.ask(a_question(api=api, **body))  # type: ignore[arg-type]  # a builder

    assert replace(answer, latency_s=0, first_token_s=None) == Answer(
        text="Grüße, 😀 refund",
        tool_calls=(ToolCall(name="book", arguments='{"days": 3}'),),
        finish_reason="tool_calls",
        usage=Usage(input_tokens=100, output_tokens=20, cached_input_tokens=10, reasoning_tokens=5),
        model=MODEL,
        asked_at=NOW,
    )
    assert 0 < answer.latency_s < 10
    assert (answer.first_token_s is not None) is is_streamed


@pytest.mark.parametrize(("api", "is_streamed"), PROTOCOLS)
@pytest.mark.parametrize("finish_reason", ["length", "content_filter"])
def test_how_an_answer_ended_is_told_in_the_same_words(
    api: Api, is_streamed: bool, finish_reason: str
) -> None:
    says = Says("cut", finish_reason=finish_reason, refusal="I will not", usage=None)

    with serve(says) as server, engine(server) as running:
        answer = running.ask(a_question(api=api, stream=is_streamed))

    assert answer.finish_reason == finish_reason
    assert answer.refusal == "I will not"
    assert answer.usage is None


def test_a_request_is_sent_exactly_as_it_was_asked() -> None:
    asked = a_question(temperature=0, response_format={"type": "json_object"})

    with serve(Says("refund")) as server, engine(server) as running:
        running.ask(asked)

    (request,) = server.requests
    assert request.body == asked.body
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"


def test_a_stream_is_asked_what_it_used_and_stays_the_same_question() -> None:
    asked = a_question(stream=True)

    with serve(Says("refund")) as server, engine(server) as running:
        answer = running.ask(asked)

    (request,) = server.requests
    assert request.body == asked.body | {"stream_options": {"include_usage": True}}
    assert answer.usage is not None
    assert asked == a_question(stream=True)


def test_an_endpoint_that_does_not_stream_is_seen_by_its_first_token() -> None:
    whole = {"model": MODEL, "choices": [{"message": {"content": "refund"}, "finish_reason": "stop"}]}

    with serve(Raw(json.dumps(whole))) as server, engine(server) as running:
        answer = running.ask(a_question(stream=True))

    assert (answer.text, answer.first_token_s) == ("refund", None)


def test_a_question_of_two_checks_is_asked_and_paid_once() -> None:
    shared = a_question("shared")
    checks = [a_check("a", shared), a_check("b", shared, a_question("b")), a_check("c", shared)]

    with serve(Says("refund", after_s=0.02)) as server, engine(server) as running:
        running.ask_ahead(checks)
        outcomes = [running.outcome(each) for each in checks]

    assert server.asked == 2
    assert [each.asked for each in outcomes] == [1, 1, 0]
    assert [each.spent_nanousd for each in outcomes] == [120, 120, 0]
    assert running.totals == Totals(asked=2, spent_nanousd=240)
    assert all(each.took_s > 0.02 for each in outcomes)


def test_each_sample_is_a_question_of_its_own() -> None:
    with serve(lambda request: Says(f"refund {request.number}")) as server, engine(server) as running:
        texts = {running.ask(a_question(sample=sample)).text for sample in (0, 1, 2, 0)}

    assert len(texts) == server.asked == 3


def test_what_is_spared_is_not_asked_and_what_is_under_way_is_kept() -> None:
    journal = Kept()
    checks = [a_check(str(at)) for at in range(200)]

    with (
        serve(Says("refund", after_s=0.005)) as server,
        engine(server, in_flight=4, journal=journal) as running,
    ):
        running.ask_ahead(checks)
        first = [running.outcome(check) for check in checks[:3]]
        running.spare(checks[3:])
        rest = [running.outcome(check) for check in checks[3:]]

        totals = running.totals

    spared = [each for each in rest if each.figures.get("unanswered") == Cause.SPARED.value]
    assert all(each.found is not Found.UNKNOWN for each in first)
    assert len(spared) > 150
    assert server.asked == totals.asked == len(journal.lines)
    assert server.asked < 50
    assert (totals.waiting, totals.unanswered) == (0, 0)


@pytest.mark.parametrize("in_flight", [1, 7])
def test_no_more_are_asked_at_once_than_allowed(in_flight: int) -> None:
    checks = [a_check(str(at)) for at in range(30)]

    with serve(Says("refund", after_s=0.005)) as server, engine(server, in_flight=in_flight) as running:
        running.ask_ahead(checks)
        found = [running.outcome(each).found for each in checks]

    assert found == [Found.MET] * 30
    assert server.most_in_flight == in_flight


def test_tests_of_a_team_may_ask_from_threads() -> None:
    def script(request: Request) -> Reply:
        return Says(request.prompt)

    with serve(script) as server, engine(server) as running, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda name: running.ask(a_question(name)).text, "abcdabcd"))

    assert answers == list("abcdabcd")
    assert server.asked == 4


def test_progress_is_told_after_each_answer() -> None:
    told: list[Totals] = []
    checks = [a_check(str(at)) for at in range(3)]

    with serve(Says("refund")) as server, engine(server, on_progress=told.append) as running:
        running.ask_ahead(checks)
        for each in checks:
            running.outcome(each)

    assert [each.asked for each in told] == [1, 2, 3]
    assert [each.waiting for each in told] == [2, 1, 0]
    assert [each.spent_nanousd for each in told] == [120, 240, 360]


def test_an_embedding_is_asked_and_comes_as_its_numbers() -> None:
    embedding = Raw(
        json.dumps(
            {
                "model": MODEL,
                "data": [{"index": 0, "embedding": [0.123456789, -1, 2e-9]}],
                "usage": {"prompt_tokens": 3, "total_tokens": 3},
            }
        )
    )
    asked = question(Api.EMBEDDINGS, {"model": MODEL, "input": "refund"})

    with serve(embedding) as server, engine(server) as running:
        answer = running.ask(asked)

    assert json.loads(answer.text) == [0.123457, -1, 2e-9]
    assert answer.usage == Usage(input_tokens=3, output_tokens=0)


@pytest.mark.parametrize("data", [[], [{"embedding": []}], [{"embedding": ["a"]}], "none"])
def test_what_is_no_embedding_is_no_answer(data: object) -> None:
    broken = Raw(json.dumps({"model": MODEL, "data": data}))

    with serve(broken) as server, engine(server) as running:
        why = why_not(running, question(Api.EMBEDDINGS, {"model": MODEL, "input": "refund"}))

    assert why.cause is Cause.MALFORMED


# --- What misbehaves ----------------------------------------------------------------------------


def chat(**fields: object) -> Raw:
    """A chat completion with some fields wrong; `...` leaves one out."""
    good: dict[str, object] = {
        "model": MODEL,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "refund"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    return Raw(json.dumps({key: value for key, value in (good | fields).items() if value is not ...}))


def message(**fields: object) -> Raw:
    return chat(choices=[{"message": fields, "finish_reason": "stop"}])


def events(*data: object) -> Raw:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in data]
    return Raw("".join(f"data: {line}\n\n" for line in lines), content_type="text/event-stream")


def response(**fields: object) -> Raw:
    good = {"model": MODEL, "status": "completed", "output": []}
    return Raw(json.dumps(good | fields))


DELTA = {"model": MODEL, "choices": [{"index": 0, "delta": {"content": "refund"}, "finish_reason": None}]}

ONCE: dict[str, tuple[Reply, Cause]] = {
    "400": (Fails(400, "Invalid schema for response_format"), Cause.REFUSED),
    "404": (Fails(404, "The model does not exist"), Cause.REFUSED),
    "405": (Raw("<html>", status=405, content_type="text/html"), Cause.REFUSED),
    "413": (Fails(413), Cause.REFUSED),
    "422": (Raw('{"detail": [{"loc": "body"}]}', status=422), Cause.REFUSED),
    "a redirect to nowhere": (Raw("", status=302), Cause.REFUSED),
    "401": (Fails(401, "Incorrect API key"), Cause.UNAUTHORIZED),
    "403": (Fails(403), Cause.UNAUTHORIZED),
    "no credit left": (Fails(429, code="insufficient_quota"), Cause.UNAUTHORIZED),
    "another model": (Says("refund", model="gpt-3.5-turbo"), Cause.WRONG_MODEL),
    "a smaller sibling": (Says("refund", model=f"{MODEL}-nano"), Cause.WRONG_MODEL),
    "a hidden refusal": (Raw('{"error": {"message": "no such model", "code": 404}}'), Cause.REFUSED),
}
AGAIN: dict[str, tuple[Reply, Cause]] = {
    "408": (Fails(408), Cause.OVERLOADED),
    "409": (Fails(409), Cause.OVERLOADED),
    "429": (Fails(429), Cause.OVERLOADED),
    "500": (Fails(500), Cause.OVERLOADED),
    "502 with a page": (
        Raw("<html>Bad Gateway</html>", status=502, content_type="text/html"),
        Cause.OVERLOADED,
    ),
    "503": (Fails(503), Cause.OVERLOADED),
    "a hidden 429": (Raw('{"error": {"message": "slow down", "code": 429}}'), Cause.OVERLOADED),
    "a dropped connection": (Drops(), Cause.UNREACHABLE),
    "half a body": (Breaks(), Cause.UNREACHABLE),
    "no body": (Raw(""), Cause.MALFORMED),
    "half of its JSON": (Raw('{"choices": ['), Cause.MALFORMED),
    "a page": (Raw("<html>hello</html>", content_type="text/html"), Cause.MALFORMED),
    "bytes": (Raw(b"\xff\xfe\x00"), Cause.MALFORMED),
    "too deep": (Raw("[" * 100_000), Cause.MALFORMED),
    "null": (Raw("null"), Cause.MALFORMED),
    "a list": (Raw("[]"), Cause.MALFORMED),
    "nothing in it": (Raw("{}"), Cause.MALFORMED),
    "garbage for choices": (chat(choices="garbage"), Cause.MALFORMED),
    "no choices": (chat(choices=[]), Cause.MALFORMED),
    "numbers for choices": (chat(choices=[1]), Cause.MALFORMED),
    "no message": (chat(choices=[{"finish_reason": "stop"}]), Cause.MALFORMED),
    "no content": (message(role="assistant"), Cause.MALFORMED),
    "a number for content": (message(content=7), Cause.MALFORMED),
    "a tool without a name": (message(content=None, tool_calls=[{"function": {}}]), Cause.MALFORMED),
    "an unknown end": (
        chat(choices=[{"message": {"content": ""}, "finish_reason": "tired"}]),
        Cause.MALFORMED,
    ),
    "no end": (chat(choices=[{"message": {"content": ""}}]), Cause.MALFORMED),
    "no model": (chat(model=...), Cause.MALFORMED),
    "an empty model": (chat(model=""), Cause.MALFORMED),
    "garbage for usage": (chat(usage="lots"), Cause.MALFORMED),
    "negative usage": (chat(usage={"prompt_tokens": -1, "completion_tokens": 0}), Cause.MALFORMED),
    "usage without output": (chat(usage={"prompt_tokens": 1}), Cause.MALFORMED),
}
STREAMS: dict[str, tuple[Reply, Cause]] = {
    "cut off": (Says("refund refund", cut_after=2), Cause.UNREACHABLE),
    "empty": (events(), Cause.UNREACHABLE),
    "no JSON": (events("{"), Cause.MALFORMED),
    "a number": (events(7), Cause.MALFORMED),
    "garbage": (events(DELTA | {"choices": "garbage"}), Cause.MALFORMED),
    "a number for a delta": (events(DELTA | {"choices": [{"delta": 7}]}), Cause.MALFORMED),
    "broken off by an error": (events(DELTA, {"error": {"message": "oops", "code": None}}), Cause.OVERLOADED),
    "without a model": (events({"choices": []}), Cause.MALFORMED),
    "503": (Fails(503), Cause.OVERLOADED),
}
RESPONSES: dict[str, tuple[Reply, Cause]] = {
    "nothing in it": (Raw("{}"), Cause.MALFORMED),
    "still going": (response(status="in_progress"), Cause.MALFORMED),
    "garbage for output": (response(output="garbage"), Cause.MALFORMED),
    "garbage for content": (response(output=[{"type": "message", "content": 7}]), Cause.MALFORMED),
    "an unknown end": (response(status="incomplete"), Cause.MALFORMED),
    "failed": (response(status="failed", error={"code": "server_error", "message": "x"}), Cause.OVERLOADED),
    "failed for nothing": (response(status="failed", error=None), Cause.OVERLOADED),
}


def asked_of(reply: Reply, **body: object) -> tuple[Unanswered, int, list[float]]:
    """What comes of a question when the endpoint always replies so, how often it was asked, and the waits."""
    naps = Naps()
    with serve(reply) as server, engine(server, sleep=naps) as running:
        error = why_not(running, a_question(**body))  # type: ignore[arg-type]
    return error, server.asked, naps.waited_s


@pytest.mark.parametrize("name", ONCE)
def test_what_will_not_change_is_asked_once(name: str) -> None:
    reply, cause = ONCE[name]

    error, asked, waited_s = asked_of(reply)

    assert (error.cause, asked, waited_s) == (cause, 1, [])


@pytest.mark.parametrize("name", AGAIN)
def test_what_may_pass_is_asked_again_and_not_for_ever(name: str) -> None:
    reply, cause = AGAIN[name]

    error, asked, waited_s = asked_of(reply)

    assert (error.cause, asked) == (cause, TRIES), error.message
    assert "also after 4 retries" in error.message
    assert all(
        low <= wait <= 2 * low for low, wait in zip((0.125, 0.375, 1.125, 3.375), waited_s, strict=True)
    )


@pytest.mark.parametrize("name", STREAMS)
def test_a_broken_stream_is_no_answer(name: str) -> None:
    reply, cause = STREAMS[name]

    error, asked, _ = asked_of(reply, stream=True)

    assert (error.cause, asked) == (cause, TRIES), error.message


@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_broken_response_is_no_answer(name: str, is_streamed: bool) -> None:
    reply, cause = RESPONSES[name]
    if is_streamed:
        whole = json.loads(reply.body)  # type: ignore[union-attr]
        reply = events({"type": "response.completed", "response": whole}, "[DONE]")

    error, asked, _ = asked_of(reply, api=Api.RESPONSES, stream=is_streamed)

    assert (error.cause, asked) == (cause, TRIES), error.message


def test_a_refused_prompt_is_the_fault_of_the_config() -> None:
    reply = response(status="failed", error={"code": "invalid_prompt", "message": "Flagged by policy."})

    error, asked, _ = asked_of(reply, api=Api.RESPONSES)

    assert (error.cause, asked) == (Cause.REFUSED, 1)
    assert error.message.endswith("failed to answer: Flagged by policy")


@pytest.mark.parametrize(
    "reply", [Hangs(), Says("refund" * 20, parts=100, pause_s=0.02)], ids=["hangs", "a slow stream"]
)
def test_a_call_ends_after_its_time_whatever_still_comes(reply: Reply) -> None:
    with serve(reply) as server, engine(server, timeout_s=0.1, retries=1) as running:
        began = time.monotonic()
        error = why_not(running, a_question(stream=True))
        took_s = time.monotonic() - began

    assert error.cause is Cause.UNREACHABLE
    assert "gave no whole answer within 0.1 s, also after 1 retry" in error.message
    assert 0.2 <= took_s < 3.0


@pytest.mark.parametrize("name", AGAIN)
def test_a_fault_that_passes_changes_nothing(name: str) -> None:
    reply, _ = AGAIN[name]
    checks = [a_check(str(at)) for at in range(3)]

    def script(request: Request) -> Reply:
        return reply if request.attempt == 1 else Says("refund")

    with serve(script) as server, engine(server) as running:
        running.ask_ahead(checks)
        outcomes = [running.outcome(each) for each in checks]

    assert [each.found for each in outcomes] == [Found.MET] * 3
    assert running.totals.retried == 3


def test_hundreds_of_answers_are_the_same_with_a_fault_in_twenty() -> None:
    faults: list[Reply] = [Fails(429, retry_after="0.05"), Fails(500), Raw("{"), Drops(), Hangs()]
    checks = [a_check(f"case {at}") for at in range(400)]

    def script(request: Request) -> Reply:
        at = int(request.prompt.split()[1])
        if at % 20 == 0 and request.attempt == 1:
            return faults[at // 20 % len(faults)]
        return Says("billing" if at % 29 == 0 else "refund")

    with serve(script) as server, engine(server, timeout_s=1.0, in_flight=50) as running:
        running.ask_ahead(checks)
        found = [running.outcome(each).found for each in checks]

    assert found == [Found.MISSED if at % 29 == 0 else Found.MET for at in range(400)]
    assert running.totals.retried >= 20


WAITS = {
    "seconds": ({"retry-after": "7"}, 7.0),
    "a fraction": ({"retry-after": "0.25"}, 0.25),
    "milliseconds": ({"retry-after-ms": "350"}, 0.35),
    "milliseconds first": ({"retry-after-ms": "350", "retry-after": "9"}, 0.35),
    "a date": ({"retry-after": "Mon, 23 Nov 2026 09:14:12 GMT"}, 10.0),
    "a date by the server's clock": (
        {"retry-after": "Mon, 23 Nov 2026 12:00:05 GMT", "date": "Mon, 23 Nov 2026 12:00:00 GMT"},
        5.0,
    ),
    "a date gone by": ({"retry-after": "Mon, 23 Nov 2020 09:14:12 GMT"}, 0.0),
}


@pytest.mark.parametrize("name", WAITS)
def test_the_endpoint_says_how_long_to_wait(name: str) -> None:
    headers, seconds = WAITS[name]
    naps = Naps()

    def script(request: Request) -> Reply:
        return Fails(429, headers=headers) if request.attempt == 1 else Says("refund")

    with serve(script) as server, engine(server, sleep=naps) as running:
        running.ask(a_question())

    (waited_s,) = naps.waited_s
    assert seconds <= waited_s <= seconds * 1.1


@pytest.mark.parametrize("value", ["soon", "", "-3", "nan", "inf", "1e999"])
def test_a_wait_that_makes_no_sense_is_left_out(value: str) -> None:
    assert failures.retry_after_s({"retry-after": value}, lambda: NOW) is None


def test_an_endpoint_that_wants_an_hour_is_given_up_at_once() -> None:
    error, asked, waited_s = asked_of(Fails(429, "Rate limit reached", retry_after="3600"))

    assert (error.cause, asked, waited_s) == (Cause.OVERLOADED, 1, [])
    assert error.message.endswith("answered 429: Rate limit reached, and asks to wait 3,600 s")


def test_who_is_throttled_waits_for_its_turn() -> None:
    checks = [a_check(str(at)) for at in range(120)]
    server: Server

    def script(request: Request) -> Reply:
        return Fails(429, retry_after="0.01") if server.in_flight > 5 else Says("refund", after_s=0.004)

    with serve(script) as server, engine(server, in_flight=60, sleep=None) as running:
        running.ask_ahead(checks)
        found = {running.outcome(each).found for each in checks}

    assert found == {Found.MET}
    assert running.totals.retried > 4 * 5


def test_a_call_that_hangs_where_all_others_are_answered_is_made_a_second_time() -> None:
    def script(request: Request) -> Reply:
        hangs = int(request.prompt) % 20 == 19 and int(request.prompt) > 40 and request.attempt == 1
        return Hangs() if hangs else Says("refund", after_s=0.002)

    with serve(script) as server, engine(server, in_flight=10, sleep=None, timeout_s=60.0) as running:
        began = time.monotonic()
        outcomes = run_all(running, 200)
        took_s = time.monotonic() - began

    assert {each.found for each in outcomes} == {Found.MET}
    assert server.asked == 200 + 8
    assert took_s < 30


def test_an_answer_that_comes_late_is_waited_for_all_the_same() -> None:
    def script(request: Request) -> Reply:
        is_slow = request.prompt == "150"
        return Says("refund", after_s=(1.0 if request.attempt == 1 else 9.0) if is_slow else 0.0)

    with serve(script) as server, engine(server, in_flight=10, sleep=None, timeout_s=60.0) as running:
        outcomes = run_all(running, 200)

    assert {each.found for each in outcomes} == {Found.MET}
    assert server.asked == 201


def test_who_is_always_throttled_is_given_up_in_the_end() -> None:
    now_s = [0.0]

    async def sleep(seconds: float) -> None:
        now_s[0] += seconds
        await asyncio.sleep(0.005)  # time enough for others to be answered

    def script(request: Request) -> Reply:
        return Fails(429, retry_after="30") if request.prompt == "0" else Says("refund")

    with (
        serve(script) as server,
        engine(server, in_flight=8, sleep=sleep, clock=lambda: now_s[0], timeout_s=10.0) as running,
    ):
        outcomes = run_all(running, 200)

    assert [each.found for each in outcomes] == [Found.UNKNOWN] + [Found.MET] * 199
    # Longer than four waits of at most 33 s; no longer than five calls of 10 s and 60 s of waiting for each.
    assert 4 * 33 < outcomes[0].took_s <= 5 * (10 + 60)


def test_the_key_is_never_repeated() -> None:
    for reply in (Fails(400, f"your key {KEY} may not"), Raw(json.dumps({"error": {"message": KEY}}))):
        error, _, _ = asked_of(reply)

        assert KEY not in str(error)
        assert "***" in str(error)
    assert KEY not in repr(Endpoint(api_key=KEY))


def test_a_key_that_no_header_can_hold_is_said_to_be_at_fault() -> None:
    endpoint = Endpoint(base_url=refused_url(), api_key="sk-\u201cquoted\u201d")

    with engine(endpoint.base_url, endpoint=endpoint) as running:
        error = why_not(running, a_question())

    assert error.cause is Cause.UNAUTHORIZED


@pytest.mark.parametrize("base_url", ["localhost:1", "ftp://localhost/v1", "http://", "http://[::", "::"])
def test_an_address_that_is_none_is_not_tried_again(base_url: str) -> None:
    naps = Naps()

    with engine(base_url, sleep=naps) as running:
        error = why_not(running, a_question())

    assert error.cause is Cause.UNREACHABLE
    assert naps.waited_s == []


SERVED = [
    ("gpt-4.1-mini", True),
    ("gpt-4.1-mini-2025-04-14", True),
    ("gpt-4.1-mini-0613", True),
    ("gpt-4.1-mini-1106-preview", True),
    ("my-deployment", True),
    ("my-deployment-20250414", True),
    ("gpt-4.1-mini-nano", False),
    ("gpt-4.1-mini-32k", False),
    ("gpt-4.1", False),
    ("GPT-4.1-mini", False),
    ("gpt-4.1-mini-", False),
    ("my-deployment-2", False),
]


@pytest.mark.parametrize(("served", "is_same"), SERVED)
def test_a_model_answers_under_its_own_name_a_snapshot_or_a_declared_name(served: str, is_same: bool) -> None:
    assert failures.is_served_by(MODEL, served, {MODEL: ("my-deployment",)}) is is_same


def test_who_answered_instead_is_told_with_the_way_to_allow_it() -> None:
    error, _, _ = asked_of(Says("refund", model="llama-3"))

    assert error.message == f"llama-3 answered, where {MODEL} was asked"
    assert f'served_as = ["llama-3"]` under `[tool.deploy_gates.models."{MODEL}"]' in error.hint


# --- What is plainly dead -----------------------------------------------------------------------


def run_all(running: Engine, count: int) -> list[Outcome]:
    checks = [a_check(str(at)) for at in range(count)]
    running.ask_ahead(checks)
    return [running.outcome(each) for each in checks]


def causes(outcomes: list[Outcome]) -> set[object]:
    assert {each.found for each in outcomes} == {Found.UNKNOWN}
    return {each.figures["unanswered"] for each in outcomes}


def test_where_nobody_listens_a_thousand_questions_end_at_once() -> None:
    with engine(refused_url(), sleep=None) as running:
        began = time.monotonic()
        outcomes = run_all(running, 1_000)
        took_s = time.monotonic() - began

    assert causes(outcomes) == {Cause.UNREACHABLE}
    assert outcomes[-1].reasons[0].endswith("cannot be reached: nobody listens there")
    assert took_s < 5.0
    assert running.totals.retried < 100


def test_a_key_that_is_wrong_is_not_tried_a_thousand_times() -> None:
    with serve(Fails(401, "Incorrect API key provided")) as server, engine(server, in_flight=4) as running:
        outcomes = run_all(running, 500)

    assert causes(outcomes) == {Cause.UNAUTHORIZED}
    assert server.asked <= 7


def test_an_endpoint_that_answers_nobody_is_given_up() -> None:
    with serve(Fails(503)) as server, engine(server, in_flight=2) as running:
        outcomes = run_all(running, 200)

    assert causes(outcomes) == {Cause.OVERLOADED}
    assert server.asked <= 4 * TRIES


def test_a_question_the_endpoint_cannot_take_does_not_end_the_others() -> None:
    def script(request: Request) -> Reply:
        return Fails(500) if int(request.prompt) < 3 else Says("refund")

    with serve(script) as server, engine(server, in_flight=5) as running:
        outcomes = run_all(running, 20)

    assert [each.found for each in outcomes] == [Found.UNKNOWN] * 3 + [Found.MET] * 17


# --- Money --------------------------------------------------------------------------------------


def costs(nanousd: int) -> Callable[[Question, Usage], int]:
    """A price by which the worst case costs ten times what a call does."""
    return lambda question, usage: 10 * nanousd if usage.output_tokens > 20 else nanousd


def test_a_run_never_spends_more_than_its_budget() -> None:
    budget = Budget(100)

    with serve(Says("refund")) as server, engine(server, budget=budget, price=costs(3)) as running:
        outcomes = run_all(running, 60)

    # Worst cases cost 30: after 24 answers 72 are spent, and one call more might make it 102.
    assert [each.found for each in outcomes] == [Found.MET] * 24 + [Found.UNKNOWN] * 36
    assert sum(each.spent_nanousd for each in outcomes) == budget.spent_nanousd == 72
    assert causes(outcomes[24:]) == {Cause.BUDGET}
    assert "--gate-budget" in str(outcomes[-1].figures["hint"])
    assert server.asked == 24
    assert server.most_in_flight <= 3


def test_a_budget_is_shared() -> None:
    budget = Budget(100)

    with (
        serve(Says("refund", after_s=0.002)) as server,
        engine(server, budget=budget, price=costs(3)) as one,
        engine(server, budget=budget, price=costs(3)) as other,
    ):
        checks = [a_check(str(at)) for at in range(30)]
        one.ask_ahead(checks)
        other.ask_ahead(checks)
        found = [running.outcome(each).found for running in (one, other) for each in checks]

    assert found.count(Found.MET) == 24
    assert budget.spent_nanousd == 72
    assert server.asked == 24


@pytest.mark.timeout(20)  # a bug here is a wait without an end
def test_what_was_reserved_for_a_question_that_was_never_begun_is_free_again() -> None:
    budget = Budget(1_000)

    with serve(Says("refund")) as server:
        with engine(server, budget=budget) as gone:
            gone.ask_ahead([a_check("a")])
        with engine(server, budget=budget) as running:
            found = running.outcome(a_check("b")).found

    assert found is Found.MET
    assert gone.outcome(a_check("a")).found is Found.UNKNOWN


def test_without_a_price_a_budget_lets_nothing_through() -> None:
    with (
        serve(Says("refund")) as server,
        engine(server, budget=Budget(10**9), price=lambda question, usage: None) as running,
    ):
        error = why_not(running, a_question())

    assert error.cause is Cause.BUDGET
    assert error.message == f"nobody knows what {MODEL} costs, so the run could not keep to its budget"
    assert f'`[tool.deploy_gates.models."{MODEL}"]`' in error.hint
    assert server.asked == 0


def test_without_a_budget_what_has_no_price_is_asked_and_counted() -> None:
    def price(question: Question, usage: Usage) -> int:
        raise LookupError(question.model)

    with serve(Says("refund")) as server, engine(server, price=price) as running:
        running.ask(a_question())

    assert (running.totals.asked, running.totals.unpriced, running.totals.spent_nanousd) == (1, 1, 0)
    assert server.asked == 1


def test_an_answer_that_does_not_tell_its_usage_counts_as_the_worst() -> None:
    budget = Budget(100)

    with (
        serve(Says("refund", usage=None)) as server,
        engine(server, budget=budget, price=costs(3)) as running,
    ):
        outcomes = run_all(running, 9)

    assert [each.found for each in outcomes] == [Found.MET] * 3 + [Found.UNKNOWN] * 6
    assert budget.spent_nanousd == 90
    assert server.asked == 3


def test_calls_that_failed_cost_nothing_but_those_of_another_model_do() -> None:
    failed, other = Budget(10**6), Budget(10**6)

    with serve(Fails(500)) as server, engine(server, budget=failed) as running:
        why_not(running, a_question())
    with serve(Says("refund", model="other")) as server, engine(server, budget=other) as running:
        why_not(running, a_question())

    assert (failed.spent_nanousd, other.spent_nanousd) == (0, 120)


# --- What is kept, and interruptions ------------------------------------------------------------


def test_an_answer_is_kept_before_any_check_sees_it() -> None:
    journal = Kept()
    asked = a_question()

    with serve(Says("refund")) as server, engine(server, journal=journal) as running:
        running.ask(asked)

    assert journal.lines == [(asked.key, "refund")]


@pytest.mark.parametrize("room", [0, 3])
def test_what_cannot_be_kept_is_not_paid_for(room: int) -> None:
    journal = Kept(room=room)

    with serve(Says("refund")) as server, engine(server, journal=journal, in_flight=1) as running:
        outcomes = run_all(running, 10)

    used = room + 1 if room else 0
    assert [each.found for each in outcomes] == [Found.MET] * used + [Found.UNKNOWN] * (10 - used)
    assert causes(outcomes[used:]) == {Cause.INTERRUPTED}
    assert "no space left on device" in outcomes[-1].reasons[0]
    assert isinstance(running.problem, WorkspaceError)
    assert server.asked == used


def test_ctrl_c_ends_everything_at_once_and_keeps_what_was_answered() -> None:
    journal = Kept()
    checks = [a_check(str(at)) for at in range(50)]

    def script(request: Request) -> Reply:
        if request.number == 23:  # four hang: all that was said before has arrived
            os.kill(os.getpid(), signal.SIGINT)
        return Says("refund") if request.number < 20 else Hangs()

    with serve(script) as server, engine(server, journal=journal, in_flight=4, timeout_s=60.0) as running:
        running.ask_ahead(checks)
        with pytest.raises(KeyboardInterrupt):
            deque(map(running.outcome, checks))
        began = time.monotonic()
        running.close()
        outcomes = [running.outcome(each) for each in checks]
        took_s = time.monotonic() - began

    assert took_s < 1.5
    assert len(journal.lines) == 19
    # The one that was just being taken when the signal came may be in the journal alone.
    assert [each.found for each in outcomes].count(Found.MET) in (18, 19)
    assert causes([each for each in outcomes if each.found is not Found.MET]) == {Cause.INTERRUPTED}
    assert server.asked < 30


def test_after_the_end_nothing_is_asked_and_nothing_hangs() -> None:
    with serve(Says("refund")) as server, engine(server) as running:
        running.close()
        running.close()
        error = why_not(running, a_question())

    assert error.cause is Cause.INTERRUPTED
    assert server.asked == 0


# --- Checks that are wrong ----------------------------------------------------------------------


def raises(error: BaseException) -> Callable[[], Asking]:
    def begin() -> Asking:
        yield a_question()
        raise error

    return begin


def asks_for_ever() -> Asking:
    at = 0
    while True:
        yield a_question(sample=at)
        at += 1


BROKEN: dict[str, tuple[Callable[[], object], str]] = {
    "raises": (raises(ZeroDivisionError("division by zero")), "ZeroDivisionError: division by zero"),
    "fails": (lambda: pytest.fail("no good"), "Failed: no good"),
    "exits": (raises(SystemExit(3)), "SystemExit: 3"),
    "returns nothing": (lambda: iter(()), "TypeError: it returns NoneType where an Outcome is expected"),
    "yields a string": (lambda: iter(["?"]), "TypeError: it yields str where a Question is expected"),
    "is no generator": (lambda: 7, "TypeError: 'int' object is not an iterator"),
    "asks for ever": (asks_for_ever, "RuntimeError: it asks more than 1,000 questions"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_check_that_is_wrong_is_unknown_and_ends_no_other(name: str) -> None:
    begin, why = BROKEN[name]
    recorded = {a_question(sample=at).key: an_answer("refund") for at in range(1_001)}
    checks = [failing(begin), a_check("good", a_question())]

    with engine(recorded=recorded) as running:
        running.ask_ahead(checks)
        broken, good = (running.outcome(each) for each in checks)

    assert (broken.found, good.found) == (Found.UNKNOWN, Found.MET)
    assert broken.reasons == (f"the check itself failed: {why}",)


def test_a_check_may_make_something_of_not_being_answered() -> None:
    def begin() -> Asking:
        try:
            yield a_question()
        except Unanswered as error:
            return check.outcome(Found.MISSED, str(error.cause))
        return check.outcome(Found.MET)

    check = failing(begin)

    with engine() as running:
        outcome = running.outcome(check)

    assert (outcome.found, outcome.reasons) == (Found.MISSED, ("not recorded",))


# --- Nothing of the client gets past ------------------------------------------------------------


def tree(root: type[BaseException]) -> Iterator[type[BaseException]]:
    yield root
    for each in root.__subclasses__():
        yield from tree(each)


REQUEST = httpx2.Request("POST", "http://127.0.0.1/v1")
ARGUMENTS: dict[str, object] = {
    "message": "oops",
    "request": REQUEST,
    "body": {"message": "oops", "code": "server_error"},
    "completion": None,
    "unsent_messages": [],
    "symbol": "oops",
}


def made(kind: type[BaseException]) -> Exception:
    status = getattr(kind, "status_code", 500)
    reply = httpx2.Response(status if isinstance(status, int) else 500, request=REQUEST)
    if kind.__init__ is Exception.__init__:
        return kind("oops")  # type: ignore[return-value]
    wanted = [
        each
        for each in inspect.signature(kind.__init__).parameters.values()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ][1:]
    given = {each.name: {**ARGUMENTS, "response": reply}[each.name] for each in wanted}
    if kind is openai.LengthFinishReasonError:
        given["completion"] = type("Completion", (), {"usage": None})()
    error = kind(**given)
    assert isinstance(error, Exception)
    return error


RAISED = sorted({*tree(openai.OpenAIError), *tree(httpx2.HTTPError)}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_every_exception_of_the_client_becomes_a_cause_of_ours(kind: type[BaseException]) -> None:
    failed = failures.read(line.plain(made(kind)), Endpoint(base_url="http://127.0.0.1/v1"), lambda: NOW)

    assert isinstance(failed.cause, Cause)
    assert failed.message.startswith("127.0.0.1 ")


BY_PROXY = """
import sys
if sys.argv[2] == "without":
    sys.modules["aiohttp"] = None
from datetime import UTC, datetime
from deploy_gates.core.question import Api, question
from deploy_gates.model import Endpoint, Engine, Record
engine = Engine(recorded={}, endpoint=Endpoint(base_url="http://model.example/v1", api_key="x"), retries=0,
                record=Record.NEW, journal=None, price=lambda *_: 0, estimate=None,
                now=lambda: datetime.now(UTC))
for extra in ({}, {"stream": True}, {"seed": 1}, {"seed": 2}):
    try:
        print(engine.ask(question(Api.CHAT, {"model": "m", "messages": []} | extra)).text)
    except Exception as error:
        print(error.cause, "|", error.message)
engine.close()
"""


@pytest.mark.parametrize("aiohttp", ["with", "without"])
def test_a_proxy_is_asked_through_with_and_without_aiohttp(aiohttp: str) -> None:
    if aiohttp == "with":
        pytest.importorskip("aiohttp")

    def script(request: Request) -> Reply:
        assert request.path == "http://model.example/v1/chat/completions"
        return {1: Breaks(), 2: Fails(429, "slow down")}.get(request.body.get("seed", 0), Says("refund"))

    with serve(script) as server:
        run = [sys.executable, "-W", "error", "-c", BY_PROXY, server.base_url, aiohttp]
        proxies = {"http_proxy": server.base_url.removesuffix("/v1"), "no_proxy": ""}
        said = subprocess.run(run, capture_output=True, text=True, check=True, env=os.environ | proxies)

    first, streamed, broken, throttled = said.stdout.splitlines()
    assert (first, streamed) == ("refund", "refund")
    assert broken.startswith("unreachable |")
    assert throttled == "overloaded | model.example answered 429: slow down"
