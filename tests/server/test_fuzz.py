"""The API against its own description: schemathesis asks what nobody would, and nothing breaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from openapi_spec_validator import validate
from serving import a_token, promoted, serving

import engines
from deploy_gates.core.promotion import Scope
from deploy_gates.server.description import openapi
from deploy_gates.store import open_store
from deploy_gates.testing import a_release

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)
"""All but `positive_data_acceptance`: what an envelope or a spelling holds is beyond a schema."""


def test_the_description_is_openapi() -> None:
    validate(openapi())  # type: ignore[arg-type]  # it wants another name for the same


def test_nothing_that_is_asked_breaks_the_server_or_its_description(tmp_path: Path) -> None:
    store = open_store(engines.fresh_sqlite(tmp_path))
    store.upgrade()
    promoted(store, a_release(store))
    with serving(store.url, a_token(store, *Scope)) as server:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
                *("--header", f"Authorization: Bearer {server.token}"),
                *("--exclude-path", "/v1/environments/{environment}/stream"),
                *("--checks", ",".join(CHECKS), "--max-examples", "25", "--seed", "1"),
                *("--phases", "examples,coverage,fuzzing"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        healthy = server.ask("GET", "/healthz").status
    store.close()

    assert done.returncode == 0, done.stdout[-6_000:]
    assert healthy == 200
