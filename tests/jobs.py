"""CI on this machine: the shell steps of a workflow run as GitHub's runner runs them, against a server that
keeps comments as GitHub and GitLab do.

What is simulated is the runner and the service; the steps, their shell, and what they start are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

TOKEN = "the-token-of-the-job"
STEP_S = 120.0
"""No step takes longer."""
_EXPRESSION = re.compile(r"\$\{\{ ([a-zA-Z_.]+) \}\}")


def yaml(text: str) -> Any:
    """What a YAML text says, as plain values."""
    return YAML(typ="safe", pure=True).load(text)


# --- Comments -----------------------------------------------------------------------------------


@dataclass
class Reviews:
    """The comments on pull request 7, or the notes on merge request 7."""

    url: str = ""
    may_write: bool = True
    outages: int = 0
    """So many requests are answered 502 first."""
    comments: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def add(self, body: str, *, by: str = "stranger", robot: bool = False, role: str = "NONE") -> int:
        """A comment, with who wrote it in the words of both services."""
        number = 1_000 + len(self.comments)
        self.comments.append(
            {
                "id": number,
                "body": body,
                "user": {"login": by, "type": "Bot" if robot else "User"},
                "author": {"id": _id(by), "username": by},
                "author_association": role,
            }
        )
        return number

    @property
    def ours(self) -> list[str]:
        """What the robot says."""
        return [each["body"] for each in self.comments if each["author"]["username"] == "robot"]


def _id(name: str) -> int:
    return sum(map(ord, name))


@contextmanager
def reviews() -> Iterator[Reviews]:
    """A server for as long as the block runs."""
    kept = Reviews()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _speaking(kept))
    server.daemon_threads = False
    kept.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


_GITHUB = re.compile(r"/repos/ada/triage/issues/(7/comments|comments/\d+)")
_GITLAB = re.compile(r"/projects/42/merge_requests/7/notes(/\d+)?")


def _speaking(kept: Reviews) -> type[BaseHTTPRequestHandler]:
    class Speaking(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if not self._is_let_in(path):
                return
            if path == "/user":
                self._answer(200, {"id": _id("robot"), "username": "robot"})
                return
            asked = urllib.parse.parse_qs(query)
            size, page = int(asked["per_page"][0]), int(asked["page"][0])
            self._answer(200, kept.comments[(page - 1) * size : page * size])

        def do_POST(self) -> None:
            body = self._body()
            if self._is_let_in(self.path, writes=True):
                kept.add(body, by="robot", robot=True)
                self._answer(201, kept.comments[-1])

        def do_PATCH(self) -> None:
            body = self._body()
            if self._is_let_in(self.path, writes=True):
                (found,) = (each for each in kept.comments if self.path.endswith(f"/{each['id']}"))
                found["body"] = body
                self._answer(200, found)

        do_PUT = do_PATCH

        def _body(self) -> str:
            return str(json.loads(self.rfile.read(int(self.headers["content-length"])))["body"])

        def _is_let_in(self, path: str, *, writes: bool = False) -> bool:
            kept.requests.append(f"{self.command} {path}")
            if kept.outages:
                kept.outages -= 1
                self._answer(502, {"message": "Server Error"})
                return False
            is_github = _GITHUB.fullmatch(path) and self.headers["authorization"] == f"Bearer {TOKEN}"
            is_gitlab = (path == "/user" or _GITLAB.fullmatch(path)) and self.headers[
                "private-token"
            ] == TOKEN
            if not (is_github or is_gitlab):
                self._answer(404, {"message": "Not Found"})
                return False
            if writes and not kept.may_write:
                self._answer(403, {"message": "Resource not accessible by integration"})
                return False
            return True

        def _answer(self, status: int, value: object) -> None:
            raw = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Speaking


# --- Jobs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One job, as people see it afterwards."""

    is_green: bool
    steps: Mapping[str, int]
    """The exit status of each step that ran, by its name."""
    log: str
    summary: str


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs jobs in a checkout."""

    root: Path
    reviews_url: str
    secrets: Mapping[str, str] = field(default_factory=dict)

    def job(self, steps: list[dict[str, Any]], event: str, context: Mapping[str, str] | None = None) -> Ran:
        """Run the shell steps. An `if` or an expression that is not known here is an error."""
        summary = self.root.parent / "summary.md"
        summary.write_bytes(b"")
        ran: dict[str, int] = {}
        log, is_green = "", True
        for step in steps:
            if "run" not in step or not _runs(str(step.get("if", "success()")), event, is_green):
                continue
            said, status = finished(self.start(step, event, context))
            ran[step["name"]] = status
            log += f"$ {step['name']}\n{said}"
            is_green &= status == 0 or step.get("continue-on-error") is True
        return Ran(is_green=is_green, steps=ran, log=log, summary=summary.read_text())

    def start(
        self, step: Mapping[str, Any], event: str, context: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start one step; its process hears what the runner sends when a job is cancelled."""
        known = {
            "github.token": TOKEN,
            "github.event.before": "",
            "inputs.working-directory": ".",
            **{f"secrets.{name}": value for name, value in self.secrets.items()},
            **(context or {}),
        }
        env = {name: _filled(str(value), known) for name, value in step.get("env", {}).items()}
        return self.shell(str(step["run"]), {**self._github(event), **env})

    def shell(self, script: str, env: Mapping[str, str]) -> subprocess.Popen[str]:
        """A script, as `shell: bash` runs it."""
        path = self.root.parent / "step.sh"
        path.write_text(script)
        return subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(path)],
            cwd=self.root,
            env={**self.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    @property
    def environ(self) -> dict[str, str]:
        """What a fresh machine has; the package is the one under test, and pip fetches nothing."""
        passed = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        return {
            **passed,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "CI": "true",
        }

    def _github(self, event: str) -> dict[str, str]:
        told = self.root.parent / "event.json"
        told.write_text(json.dumps({"pull_request": {"number": 7}} if event == "pull_request" else {}))
        base = {"GITHUB_BASE_REF": "main"} if event == "pull_request" else {}
        return {
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTOR": "ada",
            "GITHUB_API_URL": self.reviews_url,
            "GITHUB_EVENT_NAME": event,
            "GITHUB_EVENT_PATH": str(told),
            "GITHUB_REPOSITORY": "ada/triage",
            "GITHUB_RUN_ID": "99",
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_STEP_SUMMARY": str(self.root.parent / "summary.md"),
            **base,
        }


def finished(process: subprocess.Popen[str]) -> tuple[str, int]:
    """What a step has said, and its exit status."""
    with process:
        try:
            said, _ = process.communicate(timeout=STEP_S)
        finally:
            end(process)
    return said, process.returncode


def end(process: subprocess.Popen[str]) -> None:
    """Leave nothing of a step behind, whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _runs(condition: str, event: str, is_green: bool) -> bool:
    holds = {
        "success()": is_green,
        "always()": True,
        "!cancelled()": True,
        "github.event_name == 'pull_request'": event == "pull_request",
        "inputs.comment == 'true'": True,
    }
    plain = condition.removeprefix("${{ ").removesuffix(" }}")
    return all(holds[each] for each in plain.split(" && "))


def _filled(text: str, known: Mapping[str, str]) -> str:
    """A secret that is not set is empty, as it is there; any other name has to be known."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        return known.get(name, "") if name.startswith("secrets.") else known[name]

    return _EXPRESSION.sub(value, text)
