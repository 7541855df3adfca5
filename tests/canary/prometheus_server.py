"""A real Prometheus server, with a history that is known to the last request."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import debian


def program(name: str = "prometheus") -> Path:
    """`prometheus` or `promtool`: installed, or unpacked from Debian's package, which installs nothing."""
    if found := shutil.which(name):
        return Path(found)
    try:
        return debian.unpacked("prometheus") / "usr" / "bin" / name
    except OSError as error:
        raise RuntimeError(
            "these tests ask a real Prometheus server: put `prometheus` and `promtool` on the PATH"
        ) from error


@dataclass(slots=True)
class Server:
    """One that runs."""

    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """As the kernel would."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving(
    folder: Path, *, history: str = "", scrape: int | None = None, options: Sequence[str] = ()
) -> Iterator[Server]:
    """A server with a history in OpenMetrics text, or one that scrapes a port every second."""
    data = folder / "data"
    if history:
        text = folder / "history.txt"
        text.write_text(history)
        subprocess.run(
            [program("promtool"), "tsdb", "create-blocks-from", "openmetrics", text, data],
            check=True,
            capture_output=True,
        )
    targets = (
        ""
        if scrape is None
        else f"""
scrape_configs:
  - job_name: tests
    scrape_interval: 1s
    static_configs: [{{targets: ["127.0.0.1:{scrape}"]}}]
"""
    )
    config = folder / "prometheus.yml"
    config.write_text(f"global: {{scrape_interval: 1s}}\n{targets}")
    port = _free_port()
    process = subprocess.Popen(
        [
            program(),
            f"--config.file={config}",
            f"--storage.tsdb.path={data}",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address=127.0.0.1:{port}",
            *options,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = Server(url=f"http://127.0.0.1:{port}", process=process)
    try:
        _wait(server)
        yield server
    finally:
        server.kill()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(server: Server) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{server.url}/-/ready", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            assert server.process.poll() is None, "prometheus did not start"
    raise AssertionError("prometheus is not ready")
