"""What only SQLite can get wrong: full disks, other writers, clocks that step, forks, a log that grows."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from deploy_gates import runner
from deploy_gates.core.errors import Refusal, Refused, StoreError, StoreUnavailable
from deploy_gates.core.promotion import Acknowledgement, Kind, Move
from deploy_gates.store import sqlite
from deploy_gates.store.sqlite import SqliteStore
from deploy_gates.testing import NOW, POLICY, a_record, a_release

CONFIG = "ticket-triage"


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "store.db", now=clock)
    made.upgrade()
    yield made
    made.close()


def promoted(store: SqliteStore, digest: str) -> int:
    return runner.promote(
        store, config=CONFIG, environment="development", digest=digest, policy=POLICY, actor="ada", reason=""
    ).deployment.revision


# --- Clocks that step ---------------------------------------------------------------------------


def test_history_never_goes_back_in_time(store: SqliteStore, clock: Clock) -> None:
    digests = [a_release(store, 1), a_release(store, 2)]
    promoted(store, digests[0])

    clock.time -= timedelta(hours=1)
    promoted(store, digests[1])
    events = store.history(CONFIG, "development")
    (found,) = store.deployments("development")

    assert [each.at for each in events] == [NOW, NOW]
    assert list(runner.problems(store, found)) == []


def test_a_clock_set_forward_ends_a_lease_and_its_owner_is_refused(store: SqliteStore, clock: Clock) -> None:
    digest = a_release(store)
    lease = store.acquire(CONFIG, "development", "ada")

    clock.time += timedelta(minutes=1)
    later = store.acquire(CONFIG, "development", "lin")
    with pytest.raises(Refused) as late:
        store.move(
            Move(
                config=CONFIG,
                environment="development",
                kind=Kind.PROMOTE,
                digest=digest,
                expected=0,
                fence=lease.fence,
                policy=POLICY,
                actor="ada",
                reason="",
                key="late",
            )
        )

    assert later.fence == lease.fence + 1
    assert late.value.refusal is Refusal.FENCE


def test_a_clock_set_back_does_not_lock_an_environment_for_a_day(store: SqliteStore, clock: Clock) -> None:
    store.acquire(CONFIG, "development", "a runner that died")

    clock.time -= timedelta(days=1)

    assert store.acquire(CONFIG, "development", "lin").fence == 2


# --- What is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "REPLACE INTO evidence SELECT id, config, digest, policy, 'pass', finished_at_ms, signed_by, '', "
            "envelope FROM evidence WHERE verdict = 'fail'",
            "evidence that is kept stays",
        ),
        (
            "REPLACE INTO deployment (config, environment) VALUES ('ticket-triage', 'development')",
            "never deleted",
        ),
        ("REPLACE INTO config SELECT digest, 'other', spelling FROM config", "a config that is kept stays"),
        (
            "REPLACE INTO history SELECT config, environment, revision, kind, baseline, candidate, "
            "weight_bp, salt, policy, evidence, fence, 'mallory', reason, idempotency_key, at_ms, "
            "previous, hash, 0 FROM history",
            "history",
        ),
    ],
)
def test_what_is_kept_cannot_be_replaced(store: SqliteStore, statement: str, said: str) -> None:
    digest = a_release(store, 1)
    a_release(store, 2, verdict="fail")
    promoted(store, digest)
    before = (store.deployments(), store.evidence(CONFIG), store.history(CONFIG, "development"))

    with pytest.raises(StoreError, match=f"does not allow that: .*{said}"):
        store._run(statement, {})

    assert (store.deployments(), store.evidence(CONFIG), store.history(CONFIG, "development")) == before


# --- Disks and files ----------------------------------------------------------------------------

FULL = """
import json, os, resource, signal, sys
from pathlib import Path
from deploy_gates import runner
from deploy_gates.core.errors import Refused, StoreUnavailable
from deploy_gates.store.sqlite import SqliteStore
from deploy_gates.testing import POLICY, a_release
path, room = Path(sys.argv[1]), int(sys.argv[2])
store = SqliteStore(path)
digests = [a_release(store, 1), a_release(store, 2)]
made = store.deployments()[0].revision if store.deployments() else 0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = path.with_name(path.name + "-wal").stat().st_size + room
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
said = ""
while not said:
    try:
        made = runner.promote(store, config="ticket-triage", environment="development", policy=POLICY,
                              digest=digests[made % 2], actor="ada", reason="x" * 500,
                              key=str(made)).deployment.revision
    except (StoreUnavailable, Refused) as error:  # refused: the lease could not be given back
        said = error.message
print(json.dumps([made, said]))
os._exit(0)  # as if killed: nothing is tidied up with the room that is left
"""


def test_a_full_disk_refuses_a_promotion_and_loses_none(tmp_path: Path) -> None:
    told = []
    for room in range(40_000, 96_000, 4_000):  # each is used up at another write
        store = SqliteStore(tmp_path / f"{room}.db")
        store.upgrade()
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(store.path), str(room)],
            capture_output=True,
            text=True,
            check=True,
        )
        made, said = json.loads(done.stdout)
        (found,) = store.deployments("development")
        problems = list(runner.problems(store, found))
        store.acquire(CONFIG, "development", found.owner)  # there is room again, and it goes on
        store.close()
        told.append((made > 0, found.revision - made, problems, said))

    assert [each[:3] for each in told] == [(True, 0, [])] * 14
    assert {"the store at" in each[3] or "is moving" in each[3] for each in told} == {True}


def test_a_store_that_may_not_grow_says_that_its_disk_is_full(store: SqliteStore) -> None:
    digest = a_release(store)
    pages = store._read(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    store._read(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}"))

    def fill() -> None:
        for number in range(100):
            store.put_evidence(a_record(digest, envelope=bytes([number]) * 3_000))

    with pytest.raises(StoreUnavailable, match="is full, and nothing was changed"):
        fill()

    assert promoted(store, digest) == 1  # there is room for so little


def write_megabytes(store: SqliteStore, megabytes: int) -> int:
    """Write so much; the size of the write-ahead log then."""
    for at in range(20 * megabytes):
        served = Acknowledgement(config="c", revision=at, age_ms=0, reason=f"{at} " * 12_500)
        store.acknowledge("i", "n", "development", [served])
    return store.path.with_name(f"{store.path.name}-wal").stat().st_size


def test_the_write_ahead_log_stays_bounded_though_nobody_checkpoints_on_the_side(store: SqliteStore) -> None:
    assert write_megabytes(store, 20) < 3 * sqlite.WAL_MAX_BYTES


def test_while_one_process_checkpoints_no_other_one_does(store: SqliteStore) -> None:
    with store.path.with_name(f"{store.path.name}-checkpoint").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        meanwhile = write_megabytes(store, 20)
    pages = store._read(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    write_megabytes(store, 4)  # the lock is free again: what is in the log moves to the file

    assert meanwhile > 16 * 2**20
    assert store.path.stat().st_size >= pages * 4_096


@pytest.mark.parametrize(("version", "warned"), [((3, 40, 1), 1), ((3, 51, 2), 1), ((3, 51, 3), 0)])
def test_an_sqlite_that_may_corrupt_files_is_warned_of(
    store: SqliteStore, version: tuple[int, ...], warned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlite3.sqlite_version_info", version)

    assert ["fixed in 3.51.3" in each for each in store.warnings()] == [True] * warned


@pytest.mark.parametrize("content", [b"no database at all " * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_file_that_is_no_store_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)

    with pytest.raises(StoreError, match=r"store\.db is damaged or no SQLite file"):
        SqliteStore(path).check()

    assert path.read_bytes() == content


def test_another_database_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    store = SqliteStore(path)

    with pytest.raises(StoreError, match="version 0"):
        store.check()
    with pytest.raises(StoreError, match="no tables yet"):
        store.deployments()

    store.close()


def test_a_store_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="there is no store at"):
        SqliteStore(tmp_path / "none.db").deployments()

    assert list(tmp_path.iterdir()) == []


def test_whoever_holds_the_file_too_long_is_told_of(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_MAX_S", 0.1)
    with sqlite3.connect(store.path, isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreUnavailable, match="was busy"):
            store.leave("nobody")

        holder.execute("ROLLBACK")
    holder.close()


# --- Other processes ----------------------------------------------------------------------------


def test_a_child_opens_a_connection_of_its_own_and_leaves_the_parents_alone(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from deploy_gates.store.sqlite import SqliteStore
        from deploy_gates.testing import a_release
        store = SqliteStore(Path(sys.argv[1]))
        store.upgrade()
        a_release(store, 1)
        if os.fork() == 0:
            a_release(store, 2)
            store.close()
            os._exit(0)
        assert os.wait()[1] == 0
        a_release(store, 3)
        print(len(store.evidence("ticket-triage")))
        """
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "store.db")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("3\n", "")


def test_eight_processes_that_write_all_get_their_turn(store: SqliteStore) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from deploy_gates.core.promotion import Acknowledgement
        from deploy_gates.store.sqlite import SqliteStore
        store = SqliteStore(Path(sys.argv[1]), durable=False)
        print("ready", flush=True)
        sys.stdin.readline()
        end, made = time.monotonic() + 1.5, 0
        while time.monotonic() < end:
            served = [Acknowledgement(config="c", revision=1, age_ms=0)]
            store.acknowledge(sys.argv[2], "n", "development", served)
            made += 1
        print(made)
        """
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(store.path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for each in processes:
        assert each.stdout is not None
        each.stdout.readline()

    for each in processes:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    made = [int(each.communicate()[0]) for each in processes]

    assert min(made) > 0.3 * sum(made) / len(made), made


def test_a_reader_sees_no_half_of_a_migration(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    a_release(store, 1)
    slow = """
        CREATE TABLE big AS
        WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 300000) SELECT x FROM n;
    """
    now = len(sqlite._migrations())
    known = [*sqlite._migrations(), "CREATE TABLE later (x INTEGER) STRICT;\n" + slow]
    reader = SqliteStore(store.path)
    seen: set[int] = set()
    failed: list[StoreError] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                reader.serving("development")
                seen.add(reader._read(sqlite._version))
            except StoreError as error:
                failed.append(error)

    monkeypatch.setattr(sqlite, "_migrations", lambda: known)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        _until(lambda: now in seen)
        upgraded = store.upgrade()
        _until(lambda: now + 1 in seen)
    finally:
        done.set()
        thread.join()
        reader.close()

    assert (upgraded.before, upgraded.after) == (now, now + 1)
    assert failed == []
    assert seen == {now, now + 1}


# --- Watching -----------------------------------------------------------------------------------


def test_a_watcher_tells_of_changes_by_others_and_can_be_woken(store: SqliteStore) -> None:
    with store.watch() as watcher:
        nothing = watcher.wait(0.01)
        a_release(store, 1)
        something = watcher.wait(5)
        threading.Timer(0.05, watcher.wake).start()
        began = time.monotonic()
        woken = watcher.wait(30)

    assert (nothing, something, woken) == (False, True, False)
    assert time.monotonic() - began < 10


def test_a_watcher_notices_that_the_store_is_gone(store: SqliteStore) -> None:
    with store.watch() as watcher:
        os.rename(store.path, store.path.with_name("moved.db"))

        with pytest.raises(StoreUnavailable, match="is gone"):
            watcher.wait(1)


def _until(holds: object, deadline_s: float = 30.0) -> None:
    assert callable(holds)
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)
