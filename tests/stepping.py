"""A clock that is set while processes run by it: libfaketime stands between them and the time of day."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SteppingClock:
    """The time of day of every process that has its `environment`; what counts seconds is left alone."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self.folder / "libfaketime.so.1"),
            "FAKETIME_TIMESTAMP_FILE": str(self.folder / "clock"),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead_s: int) -> None:
        """From now on it is so many seconds ahead of the true one."""
        (self.folder / "next").write_text(f"{ahead_s:+d}", "utf-8")
        (self.folder / "next").rename(self.folder / "clock")  # nobody reads half of it


@contextlib.contextmanager
def stepping_clock() -> Iterator[SteppingClock]:
    """A clock that is right until it is set."""
    spec = importlib.util.find_spec("libfaketime")
    assert spec is not None, "clocks cannot be set: pip install libfaketime"
    assert spec.origin is not None
    (library,) = Path(spec.origin).parent.rglob("libfaketime.so.1")
    folder = Path(tempfile.mkdtemp(prefix="clock-"))
    try:
        folder.chmod(
            0o755
        )  # PostgreSQL runs as somebody else, who may not be let into the virtual environment
        shutil.copy(library, folder)
        clock = SteppingClock(folder)
        clock.set(0)
        yield clock
    finally:
        shutil.rmtree(folder)
