"""How long a run of the gates takes, beside what pytest itself takes, in whole processes.

    python benchmarks/speed.py

The rows run in turn, so that a machine whose speed drifts is as slow for each of them; what counts is the
ratio to the first row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from project import Project, case

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One command, and where it runs."""

    name: str
    folder: Path
    arguments: tuple[str, ...]


def rows(scratch: Path) -> tuple[Row, ...]:
    bare = scratch / "bare"
    bare.mkdir()
    (bare / "test_one.py").write_text("def test_one():\n    pass\n")
    thousand = Project(scratch / "thousand", cases=0)
    thousand.cases([case(number) for number in range(1_000)])
    thousand.commit("a thousand cases")
    thousand.record()
    thousand.edit("Sort the ticket.", "Sort the ticket, please.")
    thousand.record()
    example = scratch / "example"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(example)], check=True)
    config = example / "golden/ticket-triage/config.yaml"
    config.write_text(config.read_text().replace("timeout_s: 30", "timeout_s: 29"))
    return (
        Row(name="pytest, one empty test", folder=bare, arguments=()),
        Row(
            name="type, unit and cost of the changed example",
            folder=example,
            arguments=("--deploy-gates", "--gate=type,unit,cost"),
        ),
        Row(name="five gates of the changed example", folder=example, arguments=("--deploy-gates",)),
        Row(
            name="five gates, 1,000 cases, 2,000 answers replayed",
            folder=thousand.root,
            arguments=("--deploy-gates",),
        ),
    )


def seconds(row: Row) -> float:
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "GITHUB_"))
    }
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *row.arguments],
        cwd=row.folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"{row.name}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return took


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each row (default: 5)")
    parser.add_argument("--json", action="store_true", help="print data for machines")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measured = rows(Path(scratch))
        for row in measured:
            seconds(row)  # fills what Python and the gates keep for the next run
        took: dict[str, list[float]] = {row.name: [] for row in measured}
        for _ in range(asked.runs):
            for row in measured:
                took[row.name].append(seconds(row))
    if asked.json:
        print(json.dumps(took, indent=2))
        return 0
    base = statistics.median(took[measured[0].name])
    print(f"{'':<50} median    min    max   ÷ pytest")
    for name, each in took.items():
        median = statistics.median(each)
        print(f"{name:<50} {median:5.2f} s {min(each):5.2f} {max(each):6.2f} {median / base:8.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
