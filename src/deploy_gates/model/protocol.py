"""What an endpoint said, in either protocol, whole or as a stream, becomes an Answer or is refused.

The official client checks no shapes: `"choices": "garbage"` passes it. Everything is checked here, so that
what is no answer never looks like one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from deploy_gates.core.cost import Usage
from deploy_gates.core.question import Answer, Api, ToolCall

PATHS: Mapping[Api, str] = {
    Api.CHAT: "/chat/completions",
    Api.RESPONSES: "/responses",
    Api.EMBEDDINGS: "/embeddings",
}

_T = TypeVar("_T")
_FINISH_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_INCOMPLETE = {"max_output_tokens": "length", "content_filter": "content_filter"}


class Malformed(Exception):
    """What came is no answer of the protocol; `usage` is what it cost, if it says so."""

    def __init__(self, message: str, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.usage = usage


class BrokeOff(Malformed):
    """A stream ended before its answer did."""


class Failed(Exception):
    """The endpoint says, where an answer was due, that it failed."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Refused(Exception):
    """A status that is no success, with what was said of it."""

    def __init__(self, status: int, headers: Mapping[str, str], body: object) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers
        said = body.get("error", body) if isinstance(body, Mapping) else body
        self.said = said

    @property
    def code(self) -> object:
        return self.said.get("code") if isinstance(self.said, Mapping) else None


def answer(api: Api, body: object) -> Answer:
    """The answer in the decoded body of a response. `Malformed` or `Failed` if there is none."""
    if not isinstance(body, dict):
        raise Malformed(f"the body is {_kind(body)}, not an object")
    if isinstance(body.get("error"), dict) and not body.get("choices") and not body.get("output"):
        raise failure(body["error"])
    usage = _usage(api, body.get("usage"))
    try:
        made = _WHOLE[api](body)
    except Malformed as error:
        raise Malformed(str(error), usage) from None
    return replace(made, usage=usage)


def failure(error: Mapping[str, object]) -> Failed:
    """What an `error` object of the protocol says."""
    code = error.get("code")
    return Failed(str(error.get("message") or "no reason given"), "" if code is None else str(code))


class Stream:
    """Puts the events of a streamed answer together."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.has_begun = False
        """Whether the first token came."""
        self._whole: Answer | None = None
        self._model = ""
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._tools: dict[int, tuple[list[str], list[str]]] = {}
        self._finish_reason = ""
        self._usage: Usage | None = None

    def add(self, event: object) -> None:
        """Take the next event, decoded. `Malformed` or `Failed` as for `answer`."""
        if not isinstance(event, dict):
            raise Malformed(f"an event of the stream is {_kind(event)}, not an object")
        if self.api is Api.CHAT:
            self._add_chunk(event)
        else:
            self._add_event(event)

    def answer(self) -> Answer:
        """The whole answer, once the stream has ended."""
        if self._whole is not None:
            return self._whole
        if not self._finish_reason:
            raise BrokeOff("the stream ended before the answer did", self._usage)
        return Answer(
            text="".join(self._text),
            tool_calls=tuple(
                ToolCall(name="".join(name), arguments="".join(arguments))
                for _, (name, arguments) in sorted(self._tools.items())
            ),
            refusal="".join(self._refusal) or None,
            finish_reason=self._finish_reason,
            usage=self._usage,
            model=self._model,
        )

    def _add_chunk(self, chunk: dict[str, object]) -> None:
        self._model = self._model or _get(chunk, "model", str, "the chunk")
        self._usage = _usage(Api.CHAT, chunk.get("usage")) or self._usage
        for choice in _objects(chunk, "choices", "the chunk"):
            if choice.get("index", 0) != 0:
                continue
            self._add_delta(_get(choice, "delta", dict, "choices[0]"))
            if choice.get("finish_reason") is not None:
                self._finish_reason = _finish_reason(choice)

    def _add_delta(self, delta: dict[str, object]) -> None:
        text = _maybe(delta, "content", str, "the delta")
        refusal = _maybe(delta, "refusal", str, "the delta")
        tools = _objects(delta, "tool_calls", "the delta") if delta.get("tool_calls") else ()
        self.has_begun = self.has_begun or bool(text or refusal or tools)
        self._text.append(text or "")
        self._refusal.append(refusal or "")
        for tool in tools:
            name, arguments = self._tools.setdefault(_get(tool, "index", int, "the tool call"), ([], []))
            function = _get(tool, "function", dict, "the tool call")
            name.append(_maybe(function, "name", str, "the function") or "")
            arguments.append(_maybe(function, "arguments", str, "the function") or "")

    def _add_event(self, event: dict[str, object]) -> None:
        kind = _get(event, "type", str, "the event")
        if kind == "error":
            raise failure(event)
        self.has_begun = self.has_begun or kind.endswith(".delta")
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self._whole = answer(Api.RESPONSES, event.get("response"))


# --- Chat Completions ---------------------------------------------------------------------------


def _chat(body: dict[str, object]) -> Answer:
    choices = _objects(body, "choices", "the body")
    if not choices:
        raise Malformed("`choices` is empty")
    message = _get(choices[0], "message", dict, "choices[0]")
    if "content" not in message and not message.get("tool_calls"):
        raise Malformed("choices[0].message has no `content`")
    tools = _objects(message, "tool_calls", "the message") if message.get("tool_calls") else ()
    return Answer(
        text=_maybe(message, "content", str, "the message") or "",
        tool_calls=tuple(_tool_call(each) for each in tools),
        refusal=_maybe(message, "refusal", str, "the message") or None,
        finish_reason=_finish_reason(choices[0]),
        model=_model(body),
    )


def _tool_call(raw: dict[str, object]) -> ToolCall:
    function = _get(raw, "function", dict, "the tool call")
    return ToolCall(
        name=_get(function, "name", str, "the function"),
        arguments=_get(function, "arguments", str, "the function"),
    )


def _finish_reason(choice: dict[str, object]) -> str:
    said = choice.get("finish_reason")
    if not isinstance(said, str) or said not in _FINISH_REASONS:
        raise Malformed(f"`finish_reason` is {said!r}, which the protocol does not know")
    return _FINISH_REASONS[said]


# --- Responses ----------------------------------------------------------------------------------


def _response(body: dict[str, object]) -> Answer:
    status = _get(body, "status", str, "the body")
    if status == "failed":
        error = body.get("error")
        raise failure(error) if isinstance(error, dict) else Failed("no reason given")
    text: list[str] = []
    refusal: list[str] = []
    tools: list[ToolCall] = []
    for item in _objects(body, "output", "the body"):
        if item.get("type") == "function_call":
            name = _get(item, "name", str, "the function call")
            tools.append(ToolCall(name=name, arguments=_get(item, "arguments", str, "the function call")))
        elif item.get("type") == "message":
            for part in _objects(item, "content", "the message"):
                if part.get("type") == "output_text":
                    text.append(_get(part, "text", str, "the content"))
                elif part.get("type") == "refusal":
                    refusal.append(_get(part, "refusal", str, "the content"))
    return Answer(
        text="".join(text),
        tool_calls=tuple(tools),
        refusal="".join(refusal) or None,
        finish_reason=_end(body, status, bool(tools)),
        model=_model(body),
    )


def _end(body: dict[str, object], status: str, has_tools: bool) -> str:
    if status == "completed":
        return "tool_calls" if has_tools else "stop"
    details = body.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    if status != "incomplete" or reason not in _INCOMPLETE:
        raise Malformed(f"`status` is {status!r} because of {reason!r}, which is no end of an answer")
    return _INCOMPLETE[str(reason)]


# --- Embeddings ---------------------------------------------------------------------------------


def _embedding(body: dict[str, object]) -> Answer:
    """The vector as JSON, to as many digits as are worth keeping."""
    vectors = _objects(body, "data", "the body")
    if len(vectors) != 1:
        raise Malformed(f"`data` holds {len(vectors)} embeddings where one was asked for")
    vector = _get(vectors[0], "embedding", list, "data[0]")
    if not vector or not all(isinstance(each, int | float) for each in vector):
        raise Malformed("`embedding` of data[0] is no list of numbers")
    return Answer(text=json.dumps([float(f"{each:.6g}") for each in vector]), model=_model(body))


_WHOLE: Mapping[Api, Callable[[dict[str, object]], Answer]] = {
    Api.CHAT: _chat,
    Api.RESPONSES: _response,
    Api.EMBEDDINGS: _embedding,
}


# --- Both ---------------------------------------------------------------------------------------


def _model(body: dict[str, object]) -> str:
    model = _get(body, "model", str, "the body")
    if not model:
        raise Malformed("`model` is empty: nobody knows who answered")
    return model


_USAGE = {
    Api.CHAT: ("prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"),
    Api.RESPONSES: ("input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details"),
    Api.EMBEDDINGS: ("prompt_tokens", "total_tokens", "", ""),
}


def _usage(api: Api, raw: object) -> Usage | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise Malformed(f"`usage` is {_kind(raw)}, not an object")
    sent, received, sent_details, received_details = _USAGE[api]
    tokens = _count(raw, sent), 0 if api is Api.EMBEDDINGS else _count(raw, received)
    return Usage(
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        # Some gateways count cached tokens apart from the prompt; more than all of it cannot be cached.
        cached_input_tokens=min(tokens[0], _detail(raw, sent_details, "cached_tokens")),
        reasoning_tokens=min(tokens[1], _detail(raw, received_details, "reasoning_tokens")),
    )


def _count(raw: dict[str, object], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Malformed(f"`usage.{key}` is {value!r}, not a number of tokens")
    return value


def _detail(raw: dict[str, object], key: str, name: str) -> int:
    details = raw.get(key)
    return _count(details, name) if isinstance(details, dict) and details.get(name) is not None else 0


def _get(raw: Mapping[str, object], key: str, kind: type[_T], where: str) -> _T:
    value = raw.get(key)
    if not isinstance(value, kind):
        raise Malformed(f"`{key}` of {where} is {_kind(value)}")
    return value


def _maybe(raw: Mapping[str, object], key: str, kind: type[_T], where: str) -> _T | None:
    return None if raw.get(key) is None else _get(raw, key, kind, where)


def _objects(raw: Mapping[str, object], key: str, where: str) -> Sequence[dict[str, object]]:
    made: Sequence[dict[str, object]] = _get(raw, key, list, where)
    for at, each in enumerate(made):
        if not isinstance(each, dict):
            raise Malformed(f"`{key}[{at}]` of {where} is {_kind(each)}")
    return made


def _kind(value: object) -> str:
    """What a JSON value is, for people."""
    if value is None:
        return "missing"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
