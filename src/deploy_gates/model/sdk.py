"""The official client, for endpoints behind a proxy or with credentials in their address; see `wire`.

Two of its habits matter: over aiohttp it reports a refused connection as a timeout, and a host that closes
without a word as well; so what happened is read from the whole chain of causes (`failures`). And it checks no
shapes, so none of its models is made.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import AsyncIterator

import httpx2
import openai

from deploy_gates.core.canonical import JsonObject
from deploy_gates.model import protocol
from deploy_gates.model.values import Endpoint


class Sdk:
    """One endpoint, asked by the official client."""

    def __init__(self, endpoint: Endpoint) -> None:
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
        try:
            # The client's own models are not made: they cost more than the call, and check nothing.
            response = await self._client.post(path, body=body, cast_to=httpx2.Response)
        except openai.OpenAIError as error:
            raise plain(error) from error
        return response.content

    async def parts(self, path: str, body: JsonObject) -> tuple[bytes | None, AsyncIterator[object]]:
        """The body, where the response is no stream; else its events."""
        try:
            stream = await self._client.post(
                path, body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
            )
            if not stream.response.headers.get("content-type", "").startswith("text/event-stream"):
                return await stream.response.aread(), _events(stream)
        except openai.OpenAIError as error:
            raise plain(error) from error
        return None, _events(stream)

    async def fetch(self, path: str) -> bytes:
        """What stands there."""
        try:
            return (await self._client.get(path, cast_to=httpx2.Response)).content
        except openai.OpenAIError as error:
            raise plain(error) from error

    async def upload(self, path: str, content: bytes, *, name: str, purpose: str) -> bytes:
        """Send a file; what is said of it."""
        given = [("file", (name, content, "application/jsonl"))]
        options = openai._types.RequestOptions(headers={"Content-Type": "multipart/form-data"})
        try:
            response = await self._client.post(
                path, body={"purpose": purpose}, files=given, options=options, cast_to=httpx2.Response
            )
        except openai.OpenAIError as error:
            raise plain(error) from error
        return response.content

    async def close(self) -> None:
        await self._client.close()


async def _events(stream: openai.AsyncStream[object]) -> AsyncIterator[object]:
    try:
        async for event in stream:
            yield event
    except openai.OpenAIError as error:
        raise plain(error) from error


def plain(error: Exception) -> Exception:
    """What an exception of the client says, in the words of `protocol`; itself, if it says nothing more."""
    if isinstance(error, openai.APIStatusError):
        return protocol.Refused(error.status_code, error.response.headers, error.body)
    if isinstance(error, openai.APIError) and isinstance(error.body, dict):
        return protocol.failure(error.body)
    return error


@functools.cache
def trust() -> ssl.SSLContext:
    """Whom to trust; reading that takes longer than anything else a client is made of."""
    return httpx2.create_ssl_context()
