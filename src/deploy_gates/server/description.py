"""The API in OpenAPI 3.1, as it is published at /openapi.json."""

from __future__ import annotations

from collections.abc import Mapping

from deploy_gates import __version__
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.tally import BIN_MS, HIGHEST, LOWEST, METRICS_MAX, Arm, Unit
from deploy_gates.server import credits_description

_DIGEST: JsonObject = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_NAME: JsonObject = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[^\x00-\x1f/]+$"}
_ENVIRONMENT: JsonObject = {"type": "string", "enum": list(ENVIRONMENTS)}
_COUNT: JsonObject = {"type": "integer", "minimum": 0, "maximum": 2**53}
_TEXT: JsonObject = {"type": "string"}
_TIME: JsonObject = {"type": "string", "format": "date-time"}


def openapi() -> JsonObject:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "deploy-gates",
            "version": __version__,
            "description": "What every environment serves, who serves it, what came of it, moving it, "
            "and what organisations may spend. Amounts are micro-credits.",
        },
        "paths": {
            **_open(),
            **_reading(),
            **_reporting(),
            **_moving(),
            **credits_description.paths(_operation, _parameter),
            **_ofrep(),
        },
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "deploy-gates token create"}
            },
            "schemas": _schemas() | credits_description.schemas(),
        },
        "security": [{"token": []}, {}],
    }


def _open() -> JsonObject:
    status = _object({"status": _TEXT})
    return {
        "/healthz": {"get": _operation("health", "Whether the server answers.", status)},
        "/readyz": {"get": _operation("readiness", "Whether the store can be read.", status)},
        "/metrics": {"get": _operation("metrics", "Metrics for Prometheus.", _TEXT, media="text/plain")},
        "/openapi.json": {"get": _operation("description", "This document.", {"type": "object"})},
    }


def _reading() -> JsonObject:
    environment = _parameter("environment", "path", _ENVIRONMENT)
    one_of = _parameter("environment", "query", {"type": "string", "maxLength": 200})
    config = _parameter("config", "query", {"type": "string", "maxLength": 200})
    after = _parameter("after", "query", _COUNT)
    limit = _parameter("limit", "query", {"type": "integer", "minimum": 0, "maximum": 1_000})
    etag = _parameter("If-None-Match", "header", _TEXT)
    return {
        "/v1/environments/{environment}": {
            "get": _operation(
                "environment",
                "What an environment serves.",
                _ref("Environment"),
                parameters=[environment, etag],
                others={"304": "Nothing has changed."},
            )
        },
        "/v1/environments/{environment}/stream": {
            "get": _operation(
                "stream",
                "Server-sent events: `changed`, with the ETag of what is served now.",
                _TEXT,
                parameters=[environment],
                media="text/event-stream",
            )
        },
        "/v1/configs/{digest}": {
            "get": _operation(
                "config",
                "A config, spelled as its digest was taken.",
                {"type": "object"},
                parameters=[_parameter("digest", "path", _DIGEST)],
            )
        },
        "/v1/status": {
            "get": _operation(
                "status",
                "What runs where, and which clients have it.",
                _object({"standings": _list(_ref("Standing"))}),
                parameters=[one_of, config],
            )
        },
        "/v1/log": {
            "get": _operation(
                "log",
                "Who moved one config in one environment, when, why, and by which evidence.",
                _object({"events": _list(_ref("Event"))}),
                parameters=[
                    _parameter("environment", "query", _ENVIRONMENT, is_required=True),
                    _parameter("config", "query", _NAME, is_required=True),
                    after,
                    limit,
                ],
            )
        },
        **_promotion_paths(config),
    }


def _promotion_paths(config: JsonObject) -> JsonObject:
    return {
        "/v1/promotions": {
            "get": _operation(
                "promotions",
                "Releases on their way and those that have ended, the newest first.",
                _object({"promotions": _list(_ref("Promotion"))}),
                parameters=[
                    config,
                    _parameter("open", "query", {"type": "integer", "minimum": 0, "maximum": 1}),
                    _parameter("before", "query", {"type": "integer", "minimum": 0, "maximum": 2**53}),
                    _parameter("limit", "query", {"type": "integer", "minimum": 0, "maximum": 100}),
                ],
            )
        },
        "/v1/promotions/{id}": {
            "get": _operation(
                "promotion",
                "One release, with everything that was written to its journal.",
                _ref("Promotion"),
                parameters=[
                    _parameter("id", "path", {"type": "integer", "minimum": 1, "maximum": 10**15 - 1})
                ],
            )
        },
    }


def _reporting() -> JsonObject:
    instance = _parameter("instance", "path", _NAME)
    return {
        "/v1/instances/{instance}": {
            "put": _operation(
                "acknowledge",
                "What a client serves now, and that it is alive.",
                None,
                parameters=[instance],
                body=_object(
                    {
                        "name": _text(200),
                        "environment": _ENVIRONMENT,
                        "served": {**_list(_ref("Acknowledgement")), "maxItems": 10_000},
                    }
                ),
            ),
            "delete": _operation("leave", "A client has ended.", None, parameters=[instance]),
        },
        "/v1/tallies": {
            "post": _operation(
                "report",
                "What users got, as sums; what is sent again under the same numbers is kept once.",
                None,
                body=_object(
                    {
                        "instance": _NAME,
                        "first": _COUNT,
                        "tallies": {**_list(_ref("Tally")), "maxItems": 1_000},
                    }
                ),
            )
        },
    }


def _moving() -> JsonObject:
    place = [_parameter("config", "path", _NAME), _parameter("environment", "path", _ENVIRONMENT)]
    asked: JsonObject = {
        "reason": _text(2_000),
        "key": _text(200),
        "expected": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**53},
    }
    moved = _object({"deployment": _ref("Deployment"), "replayed": {"type": "boolean"}})
    weight: JsonObject = {"type": ["number", "null"], "exclusiveMinimum": 0, "exclusiveMaximum": 100}
    promote: JsonObject = {
        "digest": _DIGEST,
        "policy": _text(64),
        "weight_pct": weight,
        "adopt_policy": {"type": "boolean"},
    }
    price: JsonObject = {"anyOf": [_ref("Price"), {"type": "null"}]}
    evidence: JsonObject = {
        "id": _DIGEST,
        "config": _TEXT,
        "digest": _DIGEST,
        "verdict": _TEXT,
        "admitted_until": {"type": "object", "additionalProperties": _TIME},
    }
    conflict = {"409": "Refused; the answer says why, and nothing was changed."}
    return {
        "/v1/configs": {
            "put": _operation(
                "keep",
                "Keep a config and what a call of it costs.",
                _object({"digest": _DIGEST}),
                body=_object(
                    {"name": _NAME, "spelling": _TEXT, "price": price}, required=["name", "spelling"]
                ),
            )
        },
        "/v1/evidence": {
            "post": _operation(
                "admit",
                "Hand in evidence: a DSSE envelope.",
                _object(evidence),
                body={"type": "object"},
                others={**conflict, "422": "Evidence that cannot be trusted."},
            )
        },
        "/v1/deployments/{config}/{environment}/promote": {
            "post": _operation(
                "promote",
                "Bring a digest into an environment, to everybody or to a share.",
                moved,
                parameters=[*place],
                body=_object({**promote, **asked}, required=["digest", "policy", "reason"]),
                others=conflict,
            )
        },
        "/v1/deployments/{config}/{environment}/rollback": {
            "post": _operation(
                "rollback",
                "End the canary, or bring back what was served before.",
                moved,
                parameters=[*place],
                body=_object(
                    {"digest": {"anyOf": [_DIGEST, {"type": "null"}]}, **asked}, required=["reason"]
                ),
                others=conflict,
            )
        },
    }


def _ofrep() -> JsonObject:
    """OFREP 0.3: other errors than elsewhere, in its own words."""
    context: JsonObject = {
        "type": ["object", "null"],
        "properties": {"targetingKey": {**_text(1_000), "type": ["string", "null"]}},
    }
    body = _object({"context": context}, required=[])
    evaluation = _object(
        {
            "key": _TEXT,
            "value": {"type": ["boolean", "string", "integer", "number", "object"]},
            "reason": {"type": "string", "enum": ["STATIC", "SPLIT", "UNKNOWN"]},
            "variant": {"type": "string", "enum": [each.value for each in Arm]},
            "metadata": {"type": "object"},
        }
    )
    failure = _object({"errorDetails": _TEXT, "errorCode": _TEXT, "key": _TEXT}, required=["errorDetails"])
    etag = _parameter("If-None-Match", "header", _TEXT)
    one = _operation(
        "evaluate",
        "What a flag is: a config, or what stands in one.",
        evaluation,
        parameters=[_parameter("flag", "path", {"type": "string", "minLength": 1})],
        body=body,
        is_lenient=True,
    )
    every = _operation(
        "evaluateAll",
        "Every flag there is.",
        _object({"flags": _list(evaluation)}),
        parameters=[etag],
        body=body,
        others={"304": "Nothing has changed."},
        is_lenient=True,
    )
    for operation in (one, every):
        responses = operation["responses"]
        assert isinstance(responses, dict)
        for status, response in responses.items():
            if status not in ("200", "304") and isinstance(response, dict):
                response["content"] = {"application/json": {"schema": failure}}
    return {
        "/ofrep/v1/evaluate/flags": {"post": every},
        "/ofrep/v1/evaluate/flags/{flag}": {"post": one},
    }


def _schemas() -> JsonObject:
    deployment: JsonObject = {
        "config": _TEXT,
        "environment": _TEXT,
        "revision": _COUNT,
        "kind": {"type": "string", "enum": ["", "promote", "canary", "rollback"]},
        "baseline": _TEXT,
        "candidate": _TEXT,
        "weight_bp": {"type": "integer", "minimum": 0, "maximum": 9_999},
        "salt": _TEXT,
        "expires_at": {"anyOf": [_TIME, {"type": "null"}]},
        "policy": _TEXT,
        "evidence": _TEXT,
        "actor": _TEXT,
        "reason": _TEXT,
        "changed_at": {"anyOf": [_TIME, {"type": "null"}]},
    }
    texts = dict.fromkeys(("kind", "actor", "reason", "key", "previous", "hash"), _TEXT)
    times = ("changed_at", "expires_at")
    event: JsonObject = {name: each for name, each in deployment.items() if name not in times}
    instance: JsonObject = {
        "id": _TEXT,
        "name": _TEXT,
        "environment": _TEXT,
        "config": _TEXT,
        "revision": _COUNT,
        "serving_since": _TIME,
        "reloaded": {"type": "boolean"},
        "refused": _COUNT,
        "reason": _TEXT,
        "seen_at": _TIME,
    }
    acknowledgement: JsonObject = {
        "config": _NAME,
        "revision": _COUNT,
        "age_ms": {"type": "integer", "minimum": 0, "maximum": 10**12},
        "reloaded": {"type": "boolean"},
        "refused": _COUNT,
        "reason": _text(2_000),
    }
    price: JsonObject = {
        "input_usd": _decimal(),
        "output_usd": _decimal(),
        "cached_input_usd": _decimal(),
        "source": _TEXT,
        "tiers": _list({"type": "object"}),
    }
    standing: JsonObject = {
        "deployment": _ref("Deployment"),
        "instances": _list(_ref("Instance")),
        "following": _COUNT,
        "took_ms": {"type": ["number", "null"]},
    }
    environment: JsonObject = {
        "environment": _TEXT,
        "deployments": _list(_ref("Deployment")),
        "prices": {"type": "object", "additionalProperties": _ref("Price")},
    }
    return {
        "Error": _object({"error": _TEXT, "hint": _TEXT, "refusal": _TEXT}, required=["error", "hint"]),
        "Deployment": _object(deployment),
        "Event": _object({**event, **texts, "fence": _COUNT, "at": _TIME, "expires_at_ms": _COUNT}),
        "Instance": _object(instance),
        "Standing": _object(standing),
        "Environment": _object(environment),
        "Price": _object(price, required=["input_usd", "output_usd"]),
        "Acknowledgement": _object(acknowledgement, required=["config", "revision", "age_ms"]),
        **_promotions(),
        **_tallies(),
    }


def _promotions() -> JsonObject:
    texts = ("config", "digest", "actor", "reason", "commit", "until", "baseline", "policy", "held")
    entry = _object(
        {
            "promotion": _COUNT,
            "number": _COUNT,
            "act": _TEXT,
            "environment": _TEXT,
            "status": {"enum": ["begun", "done", "failed", "held"]},
            "at": _TIME,
            "owner": _TEXT,
            "data": {"type": "object"},
        }
    )
    states: list[Json] = ["queued", "running", "shipped", "blocked", "rolled back", "superseded", "aborted"]
    promotion = _object(
        {
            "id": _COUNT,
            **dict.fromkeys(texts, _TEXT),
            "state": {"enum": states},
            "conclusion": _TEXT,
            "proposed_at": _TIME,
            "concluded_at": {"anyOf": [_TIME, {"type": "null"}]},
            "owner": _TEXT,
            "journal": _list(entry),
        }
    )
    return {"Promotion": promotion}


def _tallies() -> JsonObject:
    bucket: JsonObject = {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST}
    pair: JsonObject = {
        "type": "array",
        "prefixItems": [bucket, {"type": "integer", "minimum": 1, "maximum": 2**53}],
        "minItems": 2,
        "maxItems": 2,
    }
    histogram = _object({"counts": {**_list(pair), "maxItems": 1_500}, "total": {"type": "number"}})
    histogram["additionalProperties"] = False
    tally = _object(
        {
            "config": _NAME,
            "environment": _ENVIRONMENT,
            "revision": {"type": "integer", "minimum": 1, "maximum": 2**53},
            "arm": {"type": "string", "enum": [each.value for each in Arm]},
            "start_ms": {"type": "integer", "minimum": 0, "maximum": 2**53, "multipleOf": BIN_MS},
            "unit": {"type": "string", "enum": [each.value for each in Unit]},
            "started": _COUNT,
            "finished": _COUNT,
            "errors": _COUNT,
            "latency_s": _ref("Histogram"),
            "cost_usd": _ref("Histogram"),
            "metrics": {
                "type": "object",
                "maxProperties": METRICS_MAX,
                "propertyNames": {"minLength": 1, "maxLength": 200},
                "additionalProperties": _ref("Histogram"),
            },
            "dropped": _COUNT,
        }
    )
    tally["additionalProperties"] = False
    return {"Histogram": histogram, "Tally": tally}


# --- Words of OpenAPI ---------------------------------------------------------------------------


def _operation(
    name: str,
    summary: str,
    answered: JsonObject | None,
    *,
    parameters: list[Json] | None = None,
    body: JsonObject | None = None,
    media: str = "application/json",
    others: dict[str, str] | None = None,
    is_lenient: bool = False,
) -> JsonObject:
    """One operation; what it may answer besides is the same everywhere."""
    done: JsonObject = {"description": "Done."}
    if answered is not None:
        done["content"] = {media: {"schema": answered}}
    errors = {
        "400": "A request that cannot be read.",
        "401": "No token, or one that nobody knows.",
        "403": "A token for something else.",
        "404": "There is no such thing.",
        "408": "A body that took too long.",
        "413": "A body that is too large.",
        "503": "The store is away, or too much is asked at a time.",
    } | (others or {})
    responses: JsonObject = {"200" if answered is not None else "204": done}
    for status, description in errors.items():
        content: JsonObject = {"application/json": {"schema": _ref("Error")}}
        responses[status] = {"description": description} | ({} if status == "304" else {"content": content})
    made: JsonObject = {"operationId": name, "summary": summary, "responses": responses}
    if parameters:
        made["parameters"] = parameters
    if body is not None:
        made["requestBody"] = {"required": not is_lenient, "content": {"application/json": {"schema": body}}}
    return made


def _parameter(name: str, place: str, schema: JsonObject, *, is_required: bool = False) -> JsonObject:
    return {"name": name, "in": place, "required": is_required or place == "path", "schema": schema}


def _object(properties: Mapping[str, Json], *, required: list[str] | None = None) -> JsonObject:
    names: list[Json] = list(properties) if required is None else list(required)
    return {"type": "object", "properties": dict(properties), "required": names}


def _list(items: JsonObject) -> JsonObject:
    return {"type": "array", "items": items}


def _text(most: int) -> JsonObject:
    return {"type": "string", "maxLength": most}


def _decimal() -> JsonObject:
    return {"type": "string", "pattern": r"^[0-9]{1,12}(\.[0-9]{1,12})?$"}


def _ref(name: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{name}"}
