"""A server as a process of its own, on a real store, and who asks it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from deploy_gates import clock, runner
from deploy_gates.core.promotion import Scope
from deploy_gates.store import Store, tokens
from deploy_gates.testing import POLICY


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """Where it listens, and a token that may do everything."""

    url: str
    token: str
    process: subprocess.Popen[str]

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request; a body that is not bytes is sent as JSON."""
        sent = dict(headers or {})
        token = self.token if token is None else token
        if token:
            sent["Authorization"] = f"Bearer {token}"
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        try:
            connection.request(method, path, body=content, headers=sent)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(status=response.status, headers=found, body=response.read())
        finally:
            connection.close()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def a_token(store: Store, *scopes: Scope, name: str = "ada") -> str:
    """A token the store knows."""
    secret, token = tokens.issue(name, frozenset(scopes), created_by="tests", now=clock.now())
    store.put_token(token)
    return secret


@contextlib.contextmanager
def serving(store_url: str, token: str = "", *arguments: str, port: int = 0) -> Iterator[Server]:
    """`deploy-gates serve`, until the block ends; then it has to end by itself when told to."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "deploy_gates", "serve", "--environment=development"),
            *(f"--port={port}", "--store", store_url, *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": os.devnull},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        said = process.stdout.readline()
        assert "http://" in said, process.stderr.read()
        yield Server(url=said.split()[-1], token=token, process=process)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def promoted(store: Store, digest: str, weight_bp: int | None = None) -> int:
    """Promote in development; the revision."""
    return runner.promote(
        store,
        config="ticket-triage",
        environment="development",
        digest=digest,
        policy=POLICY,
        actor="ada",
        reason="calmer tone",
        weight_bp=weight_bp,
    ).deployment.revision
