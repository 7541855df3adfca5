"""The simulated model: how it answers, and the endpoint on loopback that the gates ask.

It repeats what SmolLM2-135M answered to the golden cases when they were recorded. What it makes of the
reviews of simulated users is drawn by chance: one in sixteen takes more tokens than any golden case.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from deploy_gates.core.canonical import Json, JsonObject

NAME = "smollm2-135m-instruct"
FINGERPRINT = "simulated (demo)"
"""Every answer says so."""
KEY_VARIABLE = "SIMULATED_MODEL_KEY"
BODY_MAX_BYTES = 1_000_000
ANSWER_TOKENS, LONG_TOKENS = 8, 14
"""What nearly all answers take, and what the long ones do."""
LONG_SHARE = 1 / 16
"""So many reviews of users need a long answer."""
FAILING_SHARE = 0.002
"""So many calls fail whatever the config."""
LATENCY_S, INPUT_TOKEN_S, OUTPUT_TOKEN_S = 0.03, 0.0002, 0.008
"""The median answer takes so long, and so much more for each token that is read or written."""
SPREAD = 0.45
"""Of the logarithm of latency."""
CHARS_PER_TOKEN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """What one simulated user gets."""

    latency_s: float
    input_tokens: int
    output_tokens: int
    fault: str = ""
    """Why it is of no use; empty: it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How the simulated model answers the users of one config."""

    prompt_tokens: int
    """Of the messages, the review left out."""
    output_max: int

    @classmethod
    def of(cls, document: JsonObject) -> Self:
        """What a config asks for decides it, and nothing else does."""
        parameters = document.get("parameters")
        limit = parameters.get("max_completion_tokens") if isinstance(parameters, dict) else None
        return cls(
            prompt_tokens=_tokens(document.get("messages")),
            output_max=limit if isinstance(limit, int) else LONG_TOKENS,
        )

    def answer(self, chance: random.Random) -> Answered:
        """One answer, by chance."""
        tokens = LONG_TOKENS if chance.random() < LONG_SHARE else ANSWER_TOKENS
        written = min(tokens, self.output_max)
        fault = "cut off before its end: no JSON" if written < tokens else ""
        if chance.random() < FAILING_SHARE:
            fault = "the model is overloaded"
        read = self.prompt_tokens + 4 + int(chance.expovariate(1 / 20))
        median_s = LATENCY_S + INPUT_TOKEN_S * read + OUTPUT_TOKEN_S * written
        return Answered(
            latency_s=median_s * chance.lognormvariate(0.0, SPREAD),
            input_tokens=read,
            output_tokens=written,
            fault=fault,
        )


class Endpoint:
    """The simulated model over HTTP, as `chat.completions` has it, until it is closed."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self._server = _Server(answers)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="simulated model", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """What configs name as their `base_url`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, answers: Mapping[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.answers = answers

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up is gone; nobody has to read of it."""


class _Asked(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30.0

    def do_POST(self) -> None:  # the name that http.server calls
        """Answer a request."""
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(min(length, BODY_MAX_BYTES)))
        assert isinstance(self.server, _Server), self.server
        prompt = _text(body.get("messages"))
        review = next((each for each in self.server.answers if prompt.endswith(each)), None)
        if not self.path.endswith("/chat/completions") or review is None:
            self._send(404, {"error": {"message": "the simulated model knows the golden cases only"}})
            return
        limit = body.get("max_completion_tokens") or ANSWER_TOKENS
        said = self.server.answers[review]
        is_cut = limit < ANSWER_TOKENS
        message: JsonObject = {"role": "assistant", "content": said[: 3 * limit] if is_cut else said}
        used = _tokens(body.get("messages"))
        written = min(limit, ANSWER_TOKENS)
        choice: JsonObject = {
            "index": 0,
            "message": message,
            "finish_reason": "length" if is_cut else "stop",
        }
        self._send(
            200,
            {
                "id": "chatcmpl-simulated",
                "object": "chat.completion",
                "created": 0,
                "model": body.get("model", NAME),
                "system_fingerprint": FINGERPRINT,
                "choices": [choice],
                "usage": {
                    "prompt_tokens": used,
                    "completion_tokens": written,
                    "total_tokens": used + written,
                },
            },
        )

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""

    def _send(self, status: int, value: JsonObject) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _text(messages: Json) -> str:
    """All that is said, in one."""
    turns = messages if isinstance(messages, list) else []
    return "\n".join(str(each.get("content", "")) for each in turns if isinstance(each, dict))


def _tokens(messages: Json) -> int:
    """About so many tokens: a simulated model needs no better count."""
    turns = messages if isinstance(messages, list) else []
    return len(_text(messages)) // CHARS_PER_TOKEN + 4 * len(turns)
