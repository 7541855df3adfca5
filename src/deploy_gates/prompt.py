"""A config and inputs make a question: templates, strictly.

Templates run in Jinja2's sandbox, and a variable nobody gave is an error rather than an empty string.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import jinja2
import jinja2.meta
import jinja2.sandbox

from deploy_gates.core.canonical import Json, JsonObject, digest_of, spelled
from deploy_gates.core.config import Message, ModelConfig
from deploy_gates.core.errors import PromptError
from deploy_gates.core.question import Api, Question, question

RENDERED_MAX_CHARS = 4_000_000
"""A loop in a template may not fill the memory."""

_jinja = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
)


def ask(config: ModelConfig, inputs: JsonObject, *, label: str = "", sample: int = 0) -> Question:
    """The request `config` makes of `inputs`. `PromptError` if a template cannot be rendered.

    The same inputs make the same question, not one like it: several gates ask for it, and it is made once.
    """
    return _asking(config).ask(inputs, label, sample)


def body(config: ModelConfig, inputs: JsonObject) -> JsonObject:
    """The JSON body of that request, in the words of the protocol the config speaks."""
    return _around(config, _turns(config, inputs, {}))


QUESTIONS_KEPT = 1 << 17
"""So many questions of one config are kept: a kilobyte each."""
_ASKING_KEPT = 8


class _Asking:
    """What all requests of one config have in common, made and spelled once."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._kept: dict[tuple[int, int], tuple[JsonObject, Question]] = {}
        self._shell = _shell(config)
        self._fixed = {
            at: _turn(message, {}, at)
            for at, message in enumerate(config.messages)
            if isinstance(message.content, str) and "{" not in message.content
        }

    def ask(self, inputs: JsonObject, label: str, sample: int) -> Question:
        key = (id(inputs), sample)
        kept = self._kept.get(key)
        if kept is not None and kept[0] is inputs and kept[1].label == label:
            return kept[1]
        if kept is not None and kept[0] is inputs:
            return replace(kept[1], label=label)
        made = self._question(inputs, label, sample)
        if len(self._kept) < QUESTIONS_KEPT:
            self._kept[key] = (inputs, made)  # with the inputs, so that their id stays theirs
        return made

    def _question(self, inputs: JsonObject, label: str, sample: int) -> Question:
        turns = _turns(self.config, inputs, self._fixed)
        if self._shell is None:
            return question(self.config.api, _around(self.config, turns), label=label, sample=sample)
        made = {**self._shell.body, self._shell.turns: turns}
        digest = digest_of(self._shell.before + spelled(turns) + self._shell.after)
        return Question(api=self.config.api, body=made, digest=digest, sample=sample, label=label)


_asked: dict[int, _Asking] = {}


def _asking(config: ModelConfig) -> _Asking:
    """By identity: to compare two configs costs more than to make a request."""
    found = _asked.get(id(config))
    if found is None or found.config is not config:
        while len(_asked) >= _ASKING_KEPT:
            del _asked[next(iter(_asked))]
        found = _asked[id(config)] = _Asking(config)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shell:
    """All of a request but its turns, and how that is spelled before and after them."""

    body: JsonObject
    turns: str
    """What the protocol calls them."""
    before: bytes
    after: bytes


def _shell(config: ModelConfig) -> _Shell | None:
    """What all requests of a config share; `None` where that is not to be told from their turns."""
    turns = "messages" if config.api is Api.CHAT else "input"
    if turns in config.parameters:
        return None
    hole = "the turns of deploy-gates go here"
    made = _around(config, [hole])
    before, found, after = spelled({"api": config.api.value, "body": made}).partition(f'["{hole}"]'.encode())
    if not found or hole.encode() in after:
        return None
    return _Shell(body=made, turns=turns, before=before, after=after)


def variables(config: ModelConfig) -> dict[str, list[str]]:
    """Which variables the templates use, and where: `{"subject": ["messages[1].content"]}`.

    `PromptError` for a template that does not parse, naming its place.
    """
    used: dict[str, list[str]] = {}
    for at, message in enumerate(config.messages):
        for template in _strings(message.content):
            for name in sorted(_undeclared(template, at)):
                used.setdefault(name, []).append(f"messages[{at}].content")
    return used


def _around(config: ModelConfig, turns: list[Json]) -> JsonObject:
    return (_chat if config.api is Api.CHAT else _responses)(config, turns)


def _turns(config: ModelConfig, inputs: JsonObject, fixed: Mapping[int, Json]) -> list[Json]:
    """`fixed` are those that are the same whatever the inputs are, by their place."""
    return [
        fixed[at] if at in fixed else _turn(message, inputs, at) for at, message in enumerate(config.messages)
    ]


def _chat(config: ModelConfig, messages: list[Json]) -> JsonObject:
    made: JsonObject = {"model": config.model, "messages": messages}
    if config.output is not None:
        made["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": config.output.name,
                "strict": config.output.strict,
                "schema": config.output.schema,
            },
        }
    if config.tools:
        made["tools"] = list(config.tools)
    return made | config.parameters


def _responses(config: ModelConfig, messages: list[Json]) -> JsonObject:
    made: JsonObject = {"model": config.model, "input": messages}
    if config.output is not None:
        made["text"] = {
            "format": {
                "type": "json_schema",
                "name": config.output.name,
                "strict": config.output.strict,
                "schema": config.output.schema,
            }
        }
    if config.tools:
        made["tools"] = [_flat(tool) for tool in config.tools]
    return made | config.parameters


def _flat(tool: JsonObject) -> Json:
    """The Responses API has the function's fields beside `type`, not below `function`."""
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    return {"type": "function"} | function


def _turn(message: Message, inputs: JsonObject, at: int) -> Json:
    made: JsonObject = {"role": message.role, "content": _render(message.content, inputs, at)}
    if message.name:
        made["name"] = message.name
    return made | message.extra


def _render(content: Json, inputs: JsonObject, at: int) -> Json:
    if isinstance(content, str):
        return _render_text(content, inputs, at)
    if isinstance(content, list):
        return [_render(each, inputs, at) for each in content]
    if isinstance(content, dict):
        return {key: _render(value, inputs, at) for key, value in content.items()}
    return content


def _render_text(template: str, inputs: JsonObject, at: int) -> str:
    if "{" not in template:
        return template
    try:
        made = _compiled(template).render(inputs)
    except jinja2.UndefinedError as error:
        raise PromptError(
            f"messages[{at}].content uses a variable that has no value: {error.message}"
        ) from error
    except jinja2.TemplateError as error:
        raise PromptError(_syntax(error, at)) from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise PromptError(f"messages[{at}].content cannot be rendered: {error}") from error
    if len(made) > RENDERED_MAX_CHARS:
        raise PromptError(
            f"messages[{at}].content renders to {len(made):,} characters, more than {RENDERED_MAX_CHARS:,}"
        )
    return made


@functools.lru_cache(maxsize=1024)
def _compiled(template: str) -> jinja2.Template:
    return _jinja.from_string(template)


def _undeclared(template: str, at: int) -> set[str]:
    try:
        return jinja2.meta.find_undeclared_variables(_jinja.parse(template))
    except jinja2.TemplateError as error:
        raise PromptError(_syntax(error, at)) from error


def _syntax(error: jinja2.TemplateError, at: int) -> str:
    line = f", line {error.lineno} of it" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"messages[{at}].content is not a valid template{line}: {error.message or error}"


def _strings(content: Json) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for each in content:
            yield from _strings(each)
    elif isinstance(content, dict):
        for each in content.values():
            yield from _strings(each)
