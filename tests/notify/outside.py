"""Services on loopback that speak what the channels speak, remember what they were told, and fail as told."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema

DESCRIBED = json.loads((Path(__file__).parent / "github.json").read_text("utf-8"))["operations"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


@dataclass
class Service:
    """A service that takes everything."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    failing: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)
    """The next answers, before it works again."""
    hangs: threading.Event = field(default_factory=threading.Event)
    """While it is set, nobody is answered."""
    let_go: threading.Event = field(default_factory=threading.Event)
    came: threading.Condition = field(default_factory=threading.Condition)

    def answer(self, asked: Asked) -> tuple[int, Any]:
        return 200, {}

    def answered(self, asked: Asked) -> tuple[int, dict[str, str], Any]:
        with self.came:
            self.asked.append(asked)
            self.came.notify_all()
        if self.hangs.is_set():
            self.let_go.wait(30)
            return 500, {}, None
        if self.failing:
            return self.failing.pop(0)
        status, value = self.answer(asked)
        return status, {}, value

    def wait_for(self, count: int, timeout_s: float = 20.0) -> None:
        with self.came:
            assert self.came.wait_for(lambda: len(self.asked) >= count, timeout_s), len(self.asked)

    def writes(self) -> list[tuple[str, str]]:
        """What was changed, in order."""
        return [(each.method, each.path) for each in self.asked if each.method != "GET"]


@contextlib.contextmanager
def listening(service: Service) -> Iterator[Any]:
    """The service on a free port, until the block ends."""

    class Speaking(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            length = int(self.headers.get("content-length") or 0)
            asked = Asked(
                method=self.command,
                path=parts.path,
                query=dict(urllib.parse.parse_qsl(parts.query)),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self.rfile.read(length),
            )
            status, headers, value = service.answered(asked)
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            body = b"" if value is None else body
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, each in headers.items():
                    self.send_header(name, each)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_PUT = do

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Speaking)
    server.daemon_threads = False  # joined at the end: nothing is left behind
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield service
    finally:
        service.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class GitHub(Service):
    """A repository. What is sent is checked against GitHub's own description of its API."""

    token: str = "ghs_secret"
    pulls: dict[str, list[int]] = field(default_factory=dict)
    """By commit."""
    deployments: list[dict[str, Any]] = field(default_factory=list)
    statuses: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Of each deployment, the oldest first."""
    commits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    comments: list[dict[str, Any]] = field(default_factory=list)
    issues: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def answer(self, asked: Asked) -> tuple[int, Any]:
        if asked.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"message": "Bad credentials"}
        assert asked.path.startswith("/repos/acme/triage/"), asked.path
        operation, values = _described(asked)
        if operation is None:
            self.problems.append(f"no such operation: {asked.method} {asked.path}")
            return 404, {"message": "Not Found"}
        described = DESCRIBED[operation]
        self.problems += [f"{operation}: ?{each}" for each in set(asked.query) - set(described["query"])]
        if described["body"] is not None:
            validator = jsonschema.Draft4Validator(described["body"])
            self.problems += [f"{operation}: {each.message}" for each in validator.iter_errors(asked.json)]
            known = set(described["body"]["properties"])
            self.problems += [f"{operation}: {each}" for each in set(asked.json) - known]
        given = self.done(operation, values, asked)
        if isinstance(given, list):
            return described["status"], [described["example"] | each for each in given]
        return described["status"], described["example"] | given

    def done(self, operation: str, values: dict[str, str], asked: Asked) -> Any:
        """The state after it, as far as anybody reads it."""
        match operation.replace("/repos/{owner}/{repo}", ""):
            case "GET /deployments":
                wanted = [(name, is_) for name, is_ in asked.query.items() if name != "per_page"]
                found = [each for each in self.deployments if all(each[name] == is_ for name, is_ in wanted)]
                return found[::-1][: int(asked.query["per_page"])]
            case "POST /deployments":
                made = {**asked.json, "sha": asked.json["ref"], "id": len(self.deployments) + 1}
                self.deployments.append(made)
                self.statuses[made["id"]] = []
                return made
            case "GET /deployments/{deployment_id}/statuses":
                return self.statuses[int(values["deployment_id"])][::-1]
            case "POST /deployments/{deployment_id}/statuses":
                self.statuses[int(values["deployment_id"])].append(asked.json)
                return asked.json
            case "POST /statuses/{sha}":
                self.commits.setdefault(values["sha"], []).append(asked.json)
                return asked.json
            case "GET /commits/{commit_sha}/pulls":
                return [{"number": each} for each in self.pulls.get(values["commit_sha"], [])]
            case "GET /issues/{issue_number}/comments":
                at = (int(asked.query["page"]) - 1) * int(asked.query["per_page"])
                ours = [each for each in self.comments if each["issue"] == int(values["issue_number"])]
                return ours[at : at + int(asked.query["per_page"])]
            case "POST /issues/{issue_number}/comments":
                made = {**asked.json, "id": len(self.comments) + 1, "issue": int(values["issue_number"])}
                self.comments.append(made)
                return made
            case "PATCH /issues/comments/{comment_id}":
                return _changed(self.comments, "id", values["comment_id"], asked.json)
            case "GET /issues":
                return self.issues[::-1]
            case "POST /issues":
                self.issues.append({**asked.json, "number": len(self.issues) + 1, "state": "open"})
                return self.issues[-1]
            case "GET /issues/{issue_number}":
                return _changed(self.issues, "number", values["issue_number"], {})
            case "PATCH /issues/{issue_number}":
                return _changed(self.issues, "number", values["issue_number"], asked.json)
        raise AssertionError(operation)


@dataclass
class Statuspage(Service):
    """One component, and the incidents of its page."""

    status: str = "operational"
    turned: list[str] = field(default_factory=list)
    incidents: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, asked: Asked) -> tuple[int, Any]:
        if asked.headers.get("authorization") != "OAuth sp_secret":
            return 401, {"error": "Could not authenticate"}
        match asked.method, asked.path:
            case "GET", "/v1/pages/abc/components/def":
                return 200, {"id": "def", "page_id": "abc", "status": self.status}
            case "PATCH", "/v1/pages/abc/components/def":
                self.status = asked.json["component"]["status"]
                self.turned.append(self.status)
                return 200, {"id": "def", "page_id": "abc", "status": self.status}
            case "GET", "/v1/pages/abc/incidents":
                return 200, self.incidents
            case "POST", "/v1/pages/abc/incidents":
                self.incidents.append({**asked.json["incident"], "id": f"i{len(self.incidents) + 1}"})
                return 201, self.incidents[-1]
        return 404, {"error": "not found"}


@dataclass
class Jira(Service):
    """One project, with the workflow it comes with."""

    issues: dict[str, dict[str, Any]] = field(default_factory=dict)

    def answer(self, asked: Asked) -> tuple[int, Any]:
        if asked.headers.get("authorization") != "Basic YWRhQGFjbWUuZGV2OmpfdG9rZW4=":  # ada@acme.dev:j_token
            return 401, {"errorMessages": ["Client must be authenticated"]}
        path = asked.path.removeprefix("/rest/api/3")
        if (asked.method, path) == ("POST", "/search/jql"):
            found = re.fullmatch(r'project = "OPS" AND labels = "([\w-]+)"', asked.json["jql"])
            assert found, asked.json
            keys = [key for key, each in self.issues.items() if found[1] in each["labels"]]
            return 200, {"issues": [{"id": "1", "key": key, "fields": {}} for key in keys], "isLast": True}
        if (asked.method, path) == ("POST", "/issue"):
            fields = asked.json["fields"]
            assert fields["description"]["type"] == "doc", fields
            key = f"OPS-{len(self.issues) + 1}"
            self.issues[key] = {**fields, "comments": [], "status": "new"}
            return 201, {"id": "10001", "key": key, "self": f"{self.url}/rest/api/3/issue/10001"}
        _, _, key, *rest = path.split("/")
        issue = self.issues[key]
        match asked.method, rest:
            case "GET", []:
                return 200, {"key": key, "fields": {"status": {"statusCategory": {"key": issue["status"]}}}}
            case "GET", ["comment"]:
                return 200, {"comments": [{"body": each} for each in issue["comments"]]}
            case "POST", ["comment"]:
                issue["comments"].append(asked.json["body"])
                return 201, {"id": "1"}
            case "GET", ["transitions"]:
                return 200, {"transitions": [_transition(*each) for each in WORKFLOW]}
            case "POST", ["transitions"]:
                ids = {each[0]: each[3] for each in WORKFLOW}
                issue["status"] = ids[asked.json["transition"]["id"]]
                return 204, None
        return 404, {"errorMessages": ["not found"]}


WORKFLOW = (("11", "Start", "In Progress", "indeterminate"), ("31", "Resolve", "Done", "done"))


def _transition(id: str, name: str, to: str, category: str) -> dict[str, Any]:
    return {"id": id, "name": name, "to": {"name": to, "statusCategory": {"key": category}}}


def _described(asked: Asked) -> tuple[str | None, dict[str, str]]:
    """The operation that GitHub describes for a path, and the values in it."""
    for operation in sorted(DESCRIBED, key=lambda each: each.count("{")):
        method, template = operation.split(" ")
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template)
        found = re.fullmatch(pattern, asked.path)
        if method == asked.method and found:
            return operation, found.groupdict()
    return None, {}


def _changed(rows: list[dict[str, Any]], key: str, value: str, fields: dict[str, Any]) -> dict[str, Any]:
    (row,) = [each for each in rows if str(each[key]) == value]
    row.update(fields)
    return row
