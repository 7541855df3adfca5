"""An endpoint reached by the official client, whose authentication, proxies and certificates are kept.

Its own models are not made: they cost more than the call, and check no shapes. Two of its habits matter: over
aiohttp it reports a refused connection as a timeout, and a host that closes without a word as well; so what
happened is read from the whole chain of causes (`failures`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import httpx2

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.errors import Cause, Unanswered
from deploy_gates.model import lazily, protocol
from deploy_gates.model.values import Endpoint

with lazily.packages("openai.types"):
    import openai


class Line:
    """One endpoint. What is no success raises `protocol.Refused`, or whatever went wrong."""

    def __init__(self, endpoint: Endpoint) -> None:
        """`Unanswered` where there is no way to it."""
        _check(endpoint)
        http_client: httpx2.AsyncClient
        try:
            http_client = openai.DefaultAioHttpClient(verify=trust())  # half the CPU time of the other
        except RuntimeError:
            http_client = openai.DefaultAsyncHttpxClient(verify=trust())
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.base_url or None,
            api_key=endpoint.api_key.strip() or "none",
            max_retries=0,
            timeout=None,  # ours bounds the whole call, not each of its parts
            http_client=http_client,
        )

    async def whole(self, path: str, body: JsonObject) -> bytes:
        """The body of the response."""
        with _in_our_words():
            return (await self._client.post(path, body=body, cast_to=httpx2.Response)).content

    async def parts(self, path: str, body: JsonObject) -> tuple[bytes | None, AsyncIterator[object]]:
        """The body, where the response is no stream; else its events."""
        with _in_our_words():
            stream = await self._client.post(
                path, body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
            )
            if not stream.response.headers.get("content-type", "").startswith("text/event-stream"):
                return await stream.response.aread(), _events(stream)
        return None, _events(stream)

    async def fetch(self, path: str) -> bytes:
        """What stands there."""
        with _in_our_words():
            return (await self._client.get(path, cast_to=httpx2.Response)).content

    async def upload(self, content: bytes, *, name: str) -> bytes:
        """Send a file for a batch; what is said of it."""
        file = (name, content, "application/jsonl")
        with _in_our_words():
            made = await self._client.files.with_raw_response.create(file=file, purpose="batch")
        return made.content

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()


async def _events(stream: openai.AsyncStream[object]) -> AsyncIterator[object]:
    with _in_our_words():
        async for event in stream:
            yield event


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """What the client raises, in the words of `protocol` where it says more than that it failed."""
    try:
        yield
    except openai.OpenAIError as error:
        told = plain(error)
        if told is error:
            raise  # as it is: its chain of causes is all there is to read
        raise told from error


def plain(error: Exception) -> Exception:
    """What an exception of the client says, in the words of `protocol`; itself, if it says nothing more."""
    if isinstance(error, openai.APIStatusError):
        return protocol.Refused(error.status_code, error.response.headers, error.body)
    if isinstance(error, openai.APIError) and isinstance(error.body, dict):
        return protocol.failure(error.body)
    return error


def _check(endpoint: Endpoint) -> None:
    """Refuse what cannot be asked before the client makes a timeout of it."""
    key = endpoint.api_key.strip()
    if not (key.isascii() and key.isprintable()):
        raise Unanswered(Cause.UNAUTHORIZED, "the API key holds characters that no HTTP header can hold")
    if not endpoint.base_url:
        return
    try:
        parts = urlsplit(endpoint.base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_address = False
    if not is_address:
        raise Unanswered(
            Cause.UNREACHABLE,
            f"{endpoint.place} cannot be reached: it is no address of HTTP",
            hint="write `base_url` like https://api.example.com/v1",
        )


@functools.cache
def trust() -> ssl.SSLContext:
    """Whom to trust; reading that takes longer than anything else a client is made of."""
    return httpx2.create_ssl_context()


def decoded(raw: bytes) -> object:
    """The JSON of a body. `Malformed` if it is none."""
    try:
        made: object = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise protocol.Malformed("the body is not JSON") from error
    return made
