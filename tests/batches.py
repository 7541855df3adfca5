"""The Batch API over a real socket: files, batches that end when told, output and error files.

    with serve_batches(answer) as server:
        ...                       # submit
        server.finish()           # from now on batches are completed

`answer(body)` gives the text of an answer to the body of a request, or an int: the status it fails with.
Single questions are answered as well, at once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class BatchServer:
    """What was submitted, and how it stands."""

    answer: Callable[[Body], str | int]
    base_url: str = ""
    is_finished: bool = True
    status: str = "completed"
    """How batches end."""
    answered_max: int = 1_000_000
    """So many of a batch are answered before it ends; the others are told to have expired."""
    deaf_creates: int = 0
    """So many creations are done, and not confirmed."""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, Body] = field(default_factory=dict)
    singles: list[Body] = field(default_factory=list)
    polls: int = 0
    created: threading.Event = field(default_factory=threading.Event)

    def finish(self) -> None:
        self.is_finished = True

    @property
    def questions(self) -> list[str]:
        """The `custom_id` of every question in every batch."""
        return [
            json.loads(line)["custom_id"]
            for batch in self.batches.values()
            for line in self.files[batch["input_file_id"]].splitlines()
        ]

    def create(self, body: Body) -> Body:
        made = body | {"id": f"batch_{len(self.batches) + 1}", "object": "batch", "status": "validating"}
        self.batches[made["id"]] = made
        self.created.set()
        return made

    def look(self, id: str) -> Body:
        self.polls += 1
        batch = self.batches[id]
        if self.is_finished and batch["status"] == "validating":
            self._end(batch)
        return batch

    def _end(self, batch: Body) -> None:
        outputs, errors = [], []
        for at, line in enumerate(self.files[batch["input_file_id"]].splitlines()):
            request = json.loads(line)
            assert request["method"] == "POST"
            assert request["url"] == batch["endpoint"]
            if at >= self.answered_max:
                error = {"code": "batch_expired", "message": "This request could not be executed in time."}
                errors.append({"custom_id": request["custom_id"], "response": None, "error": error})
                continue
            said = self.answer(request["body"])
            status = said if isinstance(said, int) else 200
            body = (
                {"error": {"message": "no"}} if isinstance(said, int) else completion(request["body"], said)
            )
            response = {"status_code": status, "request_id": "r", "body": body}
            (errors if isinstance(said, int) else outputs).append(
                {"id": f"r{at}", "custom_id": request["custom_id"], "response": response, "error": None}
            )
        batch["status"] = self.status
        if self.status == "failed":
            batch["errors"] = {"data": [{"code": "invalid", "message": "line 1 is not JSON"}]}
            return
        for name, lines in (("output_file_id", outputs[::-1]), ("error_file_id", errors)):
            if lines:  # in another order than they were asked
                batch[name] = self.keep("".join(json.dumps(each) + "\n" for each in lines).encode())
        batch["request_counts"] = {"total": len(outputs) + len(errors), "completed": len(outputs)}

    def keep(self, content: bytes) -> str:
        name = f"file-{len(self.files) + 1}"
        self.files[name] = content
        return name


def completion(body: Body, text: str) -> Body:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


@contextmanager
def serve_batches(answer: Callable[[Body], str | int], **fields: Any) -> Iterator[BatchServer]:
    """A server until the block ends."""
    kept = BatchServer(answer=answer, **fields)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _speaking(kept))
    server.daemon_threads = True
    kept.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _speaking(kept: BatchServer) -> type[BaseHTTPRequestHandler]:
    class Speaking(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/files":
                self._answer({"id": kept.keep(_file(raw, self.headers["content-type"])), "object": "file"})
            elif self.path == "/v1/batches":
                made = kept.create(json.loads(raw))
                if kept.deaf_creates:
                    kept.deaf_creates -= 1
                    self.close_connection = True
                    return
                self._answer(made)
            else:
                body = json.loads(raw)
                kept.singles.append(body)
                said = kept.answer(body)
                assert isinstance(said, str)
                self._answer(completion(body, said))

        def do_GET(self) -> None:
            path, _, _ = self.path.partition("?")
            if path == "/v1/batches":
                self._answer({"object": "list", "data": list(kept.batches.values())[::-1]})
            elif path.startswith("/v1/batches/"):
                self._answer(kept.look(path.rpartition("/")[2]))
            else:
                self._send(kept.files[path.split("/")[3]], "application/octet-stream")

        def _answer(self, value: object) -> None:
            self._send(json.dumps(value).encode(), "application/json")

        def _send(self, raw: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Speaking


def _file(raw: bytes, content_type: str) -> bytes:
    """The file in a form, whose purpose has to be a batch."""
    mark = content_type.partition("boundary=")[2].strip('"').encode()
    parts = {}
    for part in raw.split(b"--" + mark)[1:-1]:
        head, _, content = part.strip(b"\r\n").partition(b"\r\n\r\n")
        parts[head.partition(b'name="')[2].partition(b'"')[0]] = content
    assert parts[b"purpose"] == b"batch"
    return parts[b"file"]
