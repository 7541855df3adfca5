"""The HTTP API: what is served, who serves it, what came of it, and moving it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from deploy_gates import runner
from deploy_gates.core import parsing
from deploy_gates.core.assignment import WHOLE_BP
from deploy_gates.core.canonical import Json, JsonObject, restored
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.cost import Price
from deploy_gates.core.promotion import Acknowledgement, Moved, Scope, Token
from deploy_gates.core.tally import Tally
from deploy_gates.server import metrics
from deploy_gates.server.asking import (
    allowed,
    answer,
    body,
    document,
    error,
    in_thread,
    member,
    refuse,
    text,
    whole,
)
from deploy_gates.server.names import name, number

if TYPE_CHECKING:
    from deploy_gates.server import Service

HEARTBEAT_S = 10
TALLIES_MAX = 1_000
SERVED_MAX = 10_000
ENVELOPE_MAX_BYTES = 4 << 20
LOG_MAX = 1_000
PROMOTIONS_MAX = 100
_DIGEST = re.compile(r"[0-9a-f]{64}")


def routes(service: Service) -> list[Route]:
    """The endpoints, for one service."""
    api = _Api(service)
    return [
        Route("/healthz", api.health, methods=["GET"]),
        Route("/readyz", api.readiness, methods=["GET"]),
        Route("/metrics", api.metrics, methods=["GET"]),
        Route("/openapi.json", api.description, methods=["GET"]),
        Route("/v1/environments/{environment}", api.environment, methods=["GET"]),
        Route("/v1/environments/{environment}/stream", api.stream, methods=["GET"]),
        Route("/v1/configs/{digest}", api.config, methods=["GET"]),
        Route("/v1/configs", api.put_config, methods=["PUT"]),
        Route("/v1/evidence", api.put_evidence, methods=["POST"]),
        Route("/v1/instances/{instance}", api.instance, methods=["PUT", "DELETE"]),
        Route("/v1/tallies", api.tallies, methods=["POST"]),
        Route("/v1/status", api.status, methods=["GET"]),
        Route("/v1/log", api.log, methods=["GET"]),
        Route("/v1/promotions", api.promotions, methods=["GET"]),
        Route("/v1/promotions/{id}", api.promotion, methods=["GET"]),
        Route("/v1/deployments/{config}/{environment}/promote", api.promote, methods=["POST"]),
        Route("/v1/deployments/{config}/{environment}/rollback", api.rollback, methods=["POST"]),
    ]


class _Api:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    # --- Open to everybody ----------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        return answer({"status": "ok"})

    async def readiness(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        stale = [name for name, each in self._service.mirrors.items() if each.is_stale]
        if stale:
            return error(f"the store cannot be read: {', '.join(stale)}", 503, headers={"Retry-After": "1"})
        return answer({"status": "ok"})

    # --- Reading --------------------------------------------------------------------------------

    async def metrics(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        standings = await in_thread(runner.status, self._store)
        lines = metrics.exposition(standings, self._service)
        return PlainTextResponse(lines, media_type="text/plain; version=0.0.4")

    async def description(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        return answer(self._service.description)

    async def environment(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        mirror = self._service.mirror(request)
        view = mirror.view
        if view is None:
            return error("the store could not be read yet", 503, headers={"Retry-After": "1"})
        headers = {"ETag": view.etag, "Cache-Control": "no-cache"}
        if mirror.is_stale:
            headers["Deploy-Gates-Stale"] = "true"
        if view.etag in _etags(request):
            return Response(status_code=304, headers=headers)
        return Response(view.body, headers=headers, media_type="application/json")

    async def stream(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        mirror = self._service.mirror(request)
        listener = mirror.listen()
        if listener is None:
            return error("too many streams are open", 503, headers={"Retry-After": "5"})

        async def events() -> AsyncIterator[ServerSentEvent]:
            told = ""
            try:
                while not mirror.is_closed:
                    listener.news.clear()
                    etag = mirror.view.etag if mirror.view else ""
                    if etag != told:
                        told = etag
                        yield ServerSentEvent(event="changed", data=json.dumps({"etag": etag}))
                    await listener.news.wait()
            finally:
                mirror.forget(listener)

        return EventSourceResponse(events(), ping=HEARTBEAT_S, send_timeout=30)

    async def config(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        digest = request.path_params["digest"]
        if not _DIGEST.fullmatch(digest):
            raise refuse("a digest has 64 hexadecimal digits", 404)
        found = await in_thread(self._service.config, digest)
        if found is None:
            raise refuse(f"the store keeps no config {digest[:7]}", 404)
        name, spelling = found
        headers = {
            "Deploy-Gates-Config": name.encode("ascii", "backslashreplace").decode(),
            "Cache-Control": "private, max-age=31536000, immutable",
            "ETag": f'"{digest}"',
        }
        return Response(spelling, headers=headers, media_type="application/json")

    async def status(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        environment, config = _query(request, "environment"), _query(request, "config")
        standings = await in_thread(runner.status, self._store, environment=environment, config=config)
        rows: list[Json] = []
        for each in standings:
            instances: list[Json] = [one.to_json() for one in each.instances]
            took_ms = None if each.took is None else round(each.took.total_seconds() * 1000, 3)
            rows.append(
                {
                    "deployment": each.deployment.to_json(),
                    "instances": instances,
                    "following": len(each.following),
                    "took_ms": took_ms,
                }
            )
        return answer({"standings": rows})

    async def log(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        environment, config = _query(request, "environment"), _query(request, "config")
        if not (environment and config):
            raise refuse("`config` and `environment` say whose log is wanted")
        environment, config = _environment(environment), name(config, "`config`")
        after, limit = number(request, "after", 0, 2**53), number(request, "limit", 100, LOG_MAX)
        events = await in_thread(self._store.history, config, environment, after=after, limit=limit)
        return answer({"events": [each.to_json() for each in events]})

    async def promotions(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        config = _query(request, "config")
        before, limit = number(request, "before", 0, 2**53), number(request, "limit", 20, PROMOTIONS_MAX)
        is_open = number(request, "open", 0, 1) == 1
        found = await in_thread(self._store.promotions, config, is_open=is_open, before=before, limit=limit)
        return answer({"promotions": [each.to_json() for each in found]})

    async def promotion(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        number = request.path_params["id"]
        is_number = re.fullmatch(r"[0-9]{1,15}", number) is not None
        found = await in_thread(self._store.promotion, int(number)) if is_number else None
        if found is None:
            raise refuse(f"there is no promotion {number[:100]!r}", 404)
        return answer(found.to_json())

    # --- Reporting ------------------------------------------------------------------------------

    async def instance(self, request: Request) -> Response:
        await _reports(request)
        instance = name(request.path_params["instance"], "the instance")
        if request.method == "DELETE":
            await in_thread(self._store.leave, instance)
            return Response(status_code=204)
        raw = await document(request)
        rows = member(raw, "served", list)
        if len(rows) > SERVED_MAX:
            raise refuse(f"`served` has more than {SERVED_MAX:,} rows")
        served = [_acknowledgement(each) for each in rows]
        if len({each.config for each in served}) != len(served):
            raise refuse("`served` names a config twice")
        await in_thread(
            self._store.acknowledge,
            instance,
            text(raw, "name", most=200),
            _environment(text(raw, "environment")),
            served,
        )
        return Response(status_code=204)

    async def tallies(self, request: Request) -> Response:
        await allowed(request, Scope.REPORT)
        raw = await document(request)
        rows = member(raw, "tallies", list)
        if len(rows) > TALLIES_MAX:
            raise refuse(f"more than {TALLIES_MAX:,} tallies at once")
        try:
            tallies = [Tally.from_json(each) for each in rows]
        except ValueError as wrong:
            raise refuse(f"a tally cannot be read: {wrong}") from wrong
        for each in tallies:
            name(each.config, "a config")
            _environment(each.environment)
        instance = name(text(raw, "instance"), "the instance")
        await in_thread(self._store.add_tallies, instance, whole(raw, "first"), tallies)
        return Response(status_code=204)

    # --- Moving ---------------------------------------------------------------------------------

    async def put_config(self, request: Request) -> Response:
        await _promotes(request)
        raw = await document(request)
        config = name(text(raw, "name"), "`name`")
        spelling = member(raw, "spelling", str).encode("utf-8", "surrogatepass")
        try:
            parsing.config(restored(spelling), config)
            price = None if raw.get("price") is None else Price.from_json(raw["price"])
        except (ValueError, RecursionError) as wrong:
            raise refuse(f"`spelling` or `price` cannot be read: {str(wrong)[:200]}") from wrong
        digest = await in_thread(runner.keep, self._store, config, spelling, price)
        return answer({"digest": digest})

    async def put_evidence(self, request: Request) -> Response:
        await _promotes(request)
        service = self._service
        record = await in_thread(
            runner.admit,
            self._store,
            await body(request, ENVELOPE_MAX_BYTES),
            keys=service.keys,
            require_signature=service.require_signature,
            policy=service.policy,
        )
        opened: JsonObject = {name: until.isoformat() for name, until in record.admitted_until.items()}
        return answer(
            {
                "id": record.id,
                "config": record.config,
                "digest": record.digest,
                "verdict": record.verdict,
                "admitted_until": opened,
            }
        )

    async def promote(self, request: Request) -> Response:
        token = await _promotes(request)
        config, environment = _place(request)
        raw = await document(request)
        moved = await in_thread(
            runner.promote,
            self._store,
            config=config,
            environment=environment,
            digest=_digest(raw),
            policy=text(raw, "policy", most=64),
            weight_bp=_weight(raw),
            adopt_policy=member(raw, "adopt_policy", bool, False),
            **_asked(raw, token),
        )
        return _moved(moved)

    async def rollback(self, request: Request) -> Response:
        token = await _promotes(request)
        config, environment = _place(request)
        raw = await document(request)
        moved = await in_thread(
            runner.rollback,
            self._store,
            config=config,
            environment=environment,
            digest=_digest(raw) if raw.get("digest") else "",
            **_asked(raw, token),
        )
        return _moved(moved)


async def _promotes(request: Request) -> Token:
    token = await allowed(request, Scope.PROMOTE)
    assert token is not None, "promoting is open to nobody"
    return token


async def _reports(request: Request) -> None:
    """Who reads may say what it serves; so may who reports."""
    try:
        await allowed(request, Scope.REPORT)
    except HTTPException:  # reading may do, and says what is wrong otherwise
        await allowed(request, Scope.READ)


def _asked(raw: JsonObject, token: Token) -> dict[str, object]:
    expected = None if raw.get("expected") is None else whole(raw, "expected")
    return {
        "actor": token.name,
        "reason": text(raw, "reason"),
        "key": text(raw, "key", default="", most=200),
        "expected": expected,
    }


def _moved(moved: Moved) -> Response:
    return answer({"deployment": moved.deployment.to_json(), "replayed": moved.replayed})


def _place(request: Request) -> tuple[str, str]:
    config = name(request.path_params["config"], "the config")
    return config, _environment(request.path_params["environment"])


def _environment(name: str) -> str:
    if name not in ENVIRONMENTS:
        raise refuse(f"there is no environment {name[:100]!r}", 404, hint=", ".join(ENVIRONMENTS))
    return name


def _digest(raw: JsonObject) -> str:
    digest = text(raw, "digest")
    if not _DIGEST.fullmatch(digest):
        raise refuse("`digest` has 64 hexadecimal digits")
    return digest


def _weight(raw: JsonObject) -> int | None:
    value = raw.get("weight_pct")
    if value is None:
        return None
    weight_bp = round(value * 100) if isinstance(value, int | float) and abs(value) < 1e9 else 0
    if isinstance(value, bool) or not 0 < weight_bp < WHOLE_BP or abs(weight_bp - float(value) * 100) > 1e-6:  # type: ignore[arg-type]
        raise refuse("`weight_pct` is more than 0 and less than 100, in steps of 0.01")
    return weight_bp


def _acknowledgement(value: Json) -> Acknowledgement:
    if not isinstance(value, dict):
        raise refuse("`served` holds something that is no object")
    return Acknowledgement(
        config=name(text(value, "config"), "a config"),
        revision=whole(value, "revision"),
        age_ms=whole(value, "age_ms", most=10**12),
        reloaded=member(value, "reloaded", bool, False),
        refused=whole(value, "refused", default=0),
        reason=text(value, "reason", default="")[:1_000],
    )


def _query(request: Request, key: str) -> str:
    value = request.query_params.get(key, "")
    return name(value, f"`{key}`") if value else ""


def _etags(request: Request) -> set[str]:
    sent = request.headers.get("if-none-match", "")
    return {each.strip().removeprefix("W/") for each in sent.split(",")}
