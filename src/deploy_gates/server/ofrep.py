"""OFREP: how OpenFeature clients of any language read configs.

Evaluations are answered from memory. A flag is a config, or what stands in one; see `flags`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json

from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy_gates import flags
from deploy_gates.client import ConfigClient
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.errors import ConfigUnavailable
from deploy_gates.core.promotion import Scope
from deploy_gates.server.asking import allowed, answer, body, parsed

BODY_MAX_BYTES = 64 << 10
KEY_MAX_CHARS = 1_000
FRACTIONS = {"temperature", "top_p", "frequency_penalty", "presence_penalty"}
"""Spelled `1.0` also where they are whole: typed clients refuse `1` when they ask for a float."""
NO_CACHE = {"Cache-Control": "no-cache"}


def routes(client: ConfigClient) -> list[Route]:
    """The two endpoints, for what one environment serves."""
    ofrep = _Ofrep(client)
    return [
        Route("/ofrep/v1/evaluate/flags", ofrep.every, methods=["POST"]),
        Route("/ofrep/v1/evaluate/flags/{flag:any}", ofrep.one, methods=["POST"]),
    ]


class _Any(Convertor[str]):
    """Whatever stands there, line breaks too: a flag nobody knows is answered in the words of OFREP."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _Any())


class _Ofrep:
    def __init__(self, client: ConfigClient) -> None:
        self._client = client

    async def one(self, request: Request) -> Response:
        flag = request.path_params["flag"]
        try:
            await allowed(request, Scope.READ)
            key = await _targeting_key(request)
        except HTTPException as refused:
            return _refused(refused, flag)
        try:
            return answer(self._evaluated(flag, key), headers=NO_CACHE)
        except flags.FlagNotFound as error:
            return answer({"key": flag, "errorCode": "FLAG_NOT_FOUND", "errorDetails": error.message}, 404)
        except ConfigUnavailable as error:
            return answer({"errorDetails": error.message}, 503, {"Retry-After": "1"})

    async def every(self, request: Request) -> Response:
        try:
            await allowed(request, Scope.READ)
            key = await _targeting_key(request)
        except HTTPException as refused:
            return _refused(refused)
        content, etag = await run_in_threadpool(self._everything, key)
        sent = {
            each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")
        }
        headers = NO_CACHE | {"ETag": etag}
        if etag in sent:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type="application/json")

    def _everything(self, key: str | None) -> tuple[bytes, str]:
        found: list[Json] = []
        for flag in flags.flags(self._client, key):
            with contextlib.suppress(flags.FlagNotFound, ConfigUnavailable):  # a list, or gone meanwhile
                found.append(self._evaluated(flag, key))
        content = json.dumps({"flags": found}, ensure_ascii=False).encode("utf-8", "backslashreplace")
        return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    def _evaluated(self, flag: str, key: str | None) -> JsonObject:
        found = flags.evaluate(self._client, flag, key)
        metadata: JsonObject = dict(found.metadata)
        value = found.value
        if isinstance(value, list):
            raise flags.FlagNotFound(
                f"{flag} is a list, which OFREP has no type for: read the object around it"
            )
        reason = found.reason.value
        if found.reason is flags.Reason.STALE:
            reason, metadata["stale"] = "UNKNOWN", True  # OFREP has no word for it
        if isinstance(value, int) and not isinstance(value, bool) and flag.rpartition(".")[2] in FRACTIONS:
            value = float(value)
        return {
            "key": flag,
            "value": value,
            "reason": reason,
            "variant": found.variant.value,
            "metadata": metadata,
        }


async def _targeting_key(request: Request) -> str | None:
    """Who asks. The document of OFREP demands a context, and official clients leave it out."""
    content = await body(request, BODY_MAX_BYTES)
    raw = parsed(content) if content.strip() else {}
    context = raw.get("context")
    if context is None:
        return None
    if not isinstance(context, dict):
        raise HTTPException(400, detail="`context` is no object\0")
    key = context.get("targetingKey")
    if key is None:
        return None
    if not isinstance(key, str) or len(key) > KEY_MAX_CHARS:
        raise HTTPException(
            400, detail=f"`targetingKey` is no text of at most {KEY_MAX_CHARS:,} characters\0"
        )
    return key


def _refused(refused: HTTPException, flag: str = "") -> Response:
    message = str(refused.detail).partition("\0")[0]
    said: JsonObject = {"errorDetails": message}
    if refused.status_code in (400, 408, 413):
        code = "INVALID_CONTEXT" if "context" in message or "targetingKey" in message else "PARSE_ERROR"
        said |= {"errorCode": code} | ({"key": flag} if flag else {})
    return answer(said, 400 if "errorCode" in said else refused.status_code, refused.headers)
