"""The API against its own description and OFREP's: schemathesis asks anything, and nothing breaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate
from ruamel.yaml import YAML
from serving import Server, a_token, promoted, serving

import engines
from deploy_gates.core.promotion import Scope
from deploy_gates.server.description import openapi
from deploy_gates.store import open_store
from deploy_gates.testing import a_release

HERE = Path(__file__).parent
OFREP = Path(os.environ.get("OFREP_DOCUMENT", HERE / "ofrep.json"))
"""What OFREP 0.3.0 says, in our words; or the published `service/openapi.yaml` itself, where one has it."""
PATCH = HERE / "ofrep.patch.json"
"""Without it, OFREP's document takes no answer with a value: every object is a `codeDefaultFlag`, too."""

OURS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)
"""All but `positive_data_acceptance`: what an envelope or a spelling holds is beyond a schema."""


@pytest.fixture(params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server whose environment has a canary under way, on each engine."""
    is_file = request.param == "sqlite"
    store = open_store(
        engines.fresh_sqlite(tmp_path)
        if is_file
        else engines.fresh_postgres(request.getfixturevalue("postgres"))
    )
    store.upgrade()
    promoted(store, a_release(store, 1))
    promoted(store, a_release(store, 2), weight_bp=5_000)
    with serving(store.url, a_token(store, *Scope)) as made:
        yield made
    store.close()


def test_the_description_is_openapi() -> None:
    validate(openapi())  # type: ignore[arg-type]  # it wants another name for the same


def test_nothing_that_is_asked_breaks_the_server_or_its_description(server: Server, tmp_path: Path) -> None:
    done = asked(
        server,
        tmp_path,
        f"{server.url}/openapi.json",
        *("--exclude-path", "/v1/environments/{environment}/stream"),
        *("--checks", ",".join(OURS), "--max-examples", "25"),
    )

    assert done.returncode == 0, done.stdout[-6_000:]
    assert server.ask("GET", "/healthz").status == 200


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)  # evaluated from memory, whatever the engine
def test_whatever_is_asked_over_ofrep_is_answered_as_its_document_says(
    server: Server, tmp_path: Path
) -> None:
    document = patched(YAML(typ="safe").load(OFREP.read_text("utf-8")), json.loads(PATCH.read_text("utf-8")))
    (tmp_path / "ofrep.json").write_text(json.dumps(document, default=str), "utf-8")

    # It demands a context, and the official client for Python leaves it out: so it may be left out here.
    done = asked(
        server,
        tmp_path,
        *("ofrep.json", "--url", server.url, "--header", f"X-API-Key: {server.token}"),
        *("--checks", "all", "--exclude-checks", "negative_data_rejection", "--max-examples", "100"),
    )

    assert done.returncode == 0, done.stdout[-6_000:]
    assert "2 selected / 2 total" in done.stdout


def asked(server: Server, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What schemathesis found."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", *arguments),
            *("--header", f"Authorization: Bearer {server.token}"),
            *("--phases", "examples,coverage,fuzzing", "--seed", "1"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def patched(document: Any, patch: list[dict[str, Any]]) -> Any:
    """The document after a JSON Patch (RFC 6902) that adds and moves."""
    for each in patch:
        value = _take(document, each["from"]) if each["op"] == "move" else each["value"]
        parent, name = _place(document, each["path"])
        if isinstance(parent, list):
            parent.append(value)
        else:
            parent[name] = value
    return document


def _take(document: Any, pointer: str) -> Any:
    parent, name = _place(document, pointer)
    return parent.pop(name)


def _place(document: Any, pointer: str) -> tuple[Any, str]:
    *path, name = pointer.removeprefix("/").split("/")
    for each in path:
        document = document[int(each) if isinstance(document, list) else each]
    return document, name
