"""What an answer says it used, whatever SDK, protocol, or plain dictionary it came as."""

from __future__ import annotations

from collections.abc import Mapping

from deploy_gates.core.cost import Usage

TOKENS_MAX = 2**53
"""No answer is longer: what claims to be is no usage."""

_NAMES = (
    ("prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"),
    ("input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details"),
)
"""Of chat completions, and of responses."""


def usage_of(answer: object) -> Usage | None:
    """The usage that an answer states; `None` if it states none, or none that can be read.

    `answer` is a response of `openai` (of `chat.completions` or `responses`), the last chunk or event of a
    stream, a dictionary of either, or the usage alone.
    """
    if isinstance(answer, Usage):
        return answer
    stated = _member(_unwrapped(answer), "usage")
    if isinstance(stated, Usage):
        return stated
    return _read(answer if stated is None else stated)


def id_of(answer: object) -> str:
    """The id of an answer, which all chunks of a stream share; empty if it has none."""
    found = _member(_unwrapped(answer), "id")
    return found if isinstance(found, str) else ""


def _unwrapped(answer: object) -> object:
    """The answer inside of an event that ends a stream of responses."""
    inner = _member(answer, "response")
    return answer if inner is None else inner


def _read(stated: object) -> Usage | None:
    for sent, received, sent_details, received_details in _NAMES:
        tokens = _count(stated, sent), _count(stated, received)
        if tokens[0] is not None and tokens[1] is not None:
            cached = _count(_member(stated, sent_details), "cached_tokens") or 0
            reasoning = _count(_member(stated, received_details), "reasoning_tokens") or 0
            return Usage(
                input_tokens=tokens[0],
                output_tokens=tokens[1],
                # Some gateways count cached tokens apart from the prompt; more than all of it cannot be.
                cached_input_tokens=min(tokens[0], cached),
                reasoning_tokens=min(tokens[1], reasoning),
            )
    return None


def _count(value: object, name: str) -> int | None:
    count = _member(value, name)
    is_count = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= TOKENS_MAX
    return count if is_count and isinstance(count, int) else None


def _member(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
