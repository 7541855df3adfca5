"""The golden gate at speed: whole processes, beside the bare SDK, the physical limit, and the peers.

    python benchmarks/golden.py                      # 1,000 cases at 0, 50 and 300 ms, live and replayed
    python benchmarks/golden.py --peers              # promptfoo, inspect-ai, deepeval, pydantic-evals as well
    python benchmarks/golden.py --only scale         # 10,000 and 100,000 cases
    python benchmarks/golden.py --only faults        # 5 % of the calls fail, each way
    python benchmarks/golden.py --only crash         # kill -9 at half way

The work: support tickets, each one chat completion with a JSON schema of seven fields; the answer has to
keep to it and to name the right category. The model is wrong about 3.5 % of them. Everybody asks the same
server in a process of its own, 100 calls at once; rows run in turn. Ours runs in an environment with the base
product alone, made on first use. Wall and CPU time are of the whole process with all its children, from its
start to its end; what is counted at the server is said by the server.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import endpoint
import peers
from endpoint import CATEGORIES, FIELDS, Remote
from whole import Took, run

from deploy_gates.core.canonical import Json, JsonObject
from project import Project

ROOT = Path(__file__).resolve().parents[1]
LATENCIES_MS = (0, 50, 300)
IN_FLIGHT = 100
PEERS = {"promptfoo": 4.0, "inspect-ai": 7.0, "deepeval": 1.4, "pydantic-evals": 1.3}
"""How many times as fast as each of them we have to be."""
FAULTS_MAX_RATIO = 1.5
CASE_TIMEOUT_S = 20.0
DEADLINE_S = 900.0

SCHEMA: JsonObject = {
    "type": "object",
    "properties": {
        "category": {"type": "string", "enum": [*CATEGORIES]},
        "priority": {"type": "string", "enum": ["low", "normal", "high"]},
        "sentiment": {"type": "string", "enum": ["negative", "neutral", "positive"]},
        "product": {"type": "string"},
        "needs_human": {"type": "boolean"},
        "language": {"type": "string", "pattern": "^[a-z]{2}$"},
        "summary": {"type": "string", "maxLength": 200},
    },
    "required": [*FIELDS],
    "additionalProperties": False,
}
SYSTEM = (
    "You sort support tickets. Say which category a ticket belongs to, how urgent it is, in which mood it "
    "was written, which product it is about, and whether a person has to look at it."
)
CONFIG = f"""\
model: our-7b
messages:
  - role: system
    content: {SYSTEM}
  - role: user
    content: "{{{{ body }}}}"
inputs:
  type: object
  properties: {{body: {{type: string}}}}
  required: [body]
  additionalProperties: false
parameters: {{temperature: 0, max_completion_tokens: 200}}
output: output.schema.json
golden: {{exclude_paths: [priority, sentiment, product, needs_human, language, summary]}}
limits: {{cost_per_request: "0.01", context_window: 4096}}
environments:
  development: {{base_url: "http://127.0.0.1:9/v1", timeout_s: 60}}
"""
SETTINGS = f"""\
[project]
name = "triage"

[tool.deploy_gates]
in_flight = {IN_FLIGHT}

[tool.deploy_gates.golden]
margin_pt = 3.0
early_stop = false      # every case is asked, as by those it is compared with

[tool.deploy_gates.models.our-7b]
input_usd_per_mtok = "0.10"
output_usd_per_mtok = "0.20"
context_window = 8192
encoding = "o200k_base"
features = ["structured_output", "streaming", "temperature", "seed", "stop"]
"""


def ticket(number: int) -> tuple[str, str]:
    """The text of a ticket, and its category."""
    category = CATEGORIES[number % len(CATEGORIES)]
    body = (
        f"ticket {number} about {category}: I bought a lamp three weeks ago, it arrived with a crack in its "
        "shade, and nobody has answered my last two letters. What happens now?"
    )
    return body, category


def case(number: int) -> JsonObject:
    body, category = ticket(number)
    return {"id": f"ticket-{number:06}", "inputs": {"body": body}, "expected": {"category": category}}


# --- Ours ---------------------------------------------------------------------------------------


class Ours:
    """A repository with so many cases and one config, which is new: one call a case, as the peers make."""

    def __init__(self, root: Path, cases: int, environments: Path) -> None:
        self.cases = cases
        self.python = str(peers.environment(environments / "ours", ["--editable", str(ROOT)]))
        self.project = Project(root, cases=0)
        for file, text in (
            ("pyproject.toml", SETTINGS),
            ("golden/triage/config.yaml", CONFIG),
            ("golden/triage/output.schema.json", json.dumps(SCHEMA)),
        ):
            self.project.write(file, text)
        self.project.cases(case(number) for number in range(cases))
        self.project.git("rm", "-rq", "--cached", "golden")
        self.project.git("commit", "-qm", "no config yet")
        self.folder = self.project.folder

    def forget(self) -> None:
        """Nothing is recorded, nothing is left of a run before."""
        (self.folder / "recordings.jsonl").unlink(missing_ok=True)
        shutil.rmtree(self.project.root / ".deploy-gates", ignore_errors=True)

    def change(self) -> None:
        """Make what is recorded the baseline's, and change the prompt: two answers a case from now on."""
        self.project.commit("the baseline")
        self.project.edit("You sort support tickets.", "You sort support tickets with care.")

    def command(self, *options: str) -> list[str]:
        budget = "--gate-budget=1000"
        return [self.python, "-m", "pytest", "-q", "--deploy-gates", budget, *options]

    def run(self, remote: Remote, *options: str, **behaviour: object) -> Took:
        return run(self.command(*options), cwd=self.project.root, remote=remote, **behaviour)  # type: ignore[arg-type]

    def verdict(self) -> str:
        """What the gates said, in a line that does not depend on times."""
        sealed = sorted((self.project.root / ".deploy-gates/evidence").glob("*.json"))
        if not sealed:
            return "no evidence"
        import base64

        payload = json.loads(base64.b64decode(json.loads(sealed[-1].read_text())["payload"]))
        gates = payload["predicate"]["gates"]
        found = {each["gate"]: each for each in gates} if isinstance(gates, list) else gates
        told = ", ".join(f"{name} {each['verdict']}" for name, each in sorted(found.items()))
        return f"{told}; {'; '.join(found['golden'].get('measured', []))}"


# --- Tables -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A figure: what it is, how it came out, and what it must be."""

    name: str
    took: Sequence[Took]
    must_s: float | None = None
    stretch_s: float | None = None
    must_mb: float | None = None
    cases: int = 1_000

    @property
    def wall_s(self) -> float:
        return statistics.median(each.wall_s for each in self.took)

    @property
    def cpu_s(self) -> float:
        return statistics.median(each.cpu_s for each in self.took)

    @property
    def peak_mb(self) -> float:
        return max(each.peak_mb for each in self.took)

    def line(self) -> str:
        last = self.took[-1]
        judged = ""
        if self.must_s is not None:
            judged = "misses" if self.wall_s > self.must_s else "meets"
            if self.stretch_s is not None and self.wall_s <= self.stretch_s:
                judged = "stretch"
        if self.must_mb is not None and self.peak_mb > self.must_mb:
            judged = f"misses {self.must_mb:.0f} MB"
        limits = f"{_limit(self.must_s)} / {_limit(self.stretch_s)}" if self.must_s is not None else ""
        return (
            f"{self.name:<52} {self.wall_s:8.2f} {1000 * self.cpu_s / self.cases:7.2f} {self.peak_mb:6.0f} "
            f"{last.requests:8,} {last.most:5} {last.first_s:6.2f} {last.status:3}  {limits:<12} {judged}"
        )


def _limit(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


HEAD = (
    f"{'':<52} {'wall s':>8} {'CPU ms':>7} {'MB':>6} {'requests':>8} {'most':>5} {'first':>6} {'st':>3}  "
    "must/stretch"
)


def show(rows: Sequence[Row], title: str) -> None:
    print(f"\n{title}\n{HEAD}")
    for row in rows:
        print(row.line(), flush=True)


def in_turn(works: Mapping[str, Callable[[], Took]], runs: int) -> dict[str, list[Took]]:
    """Each of them `runs` times, in turn, so that a machine that drifts is as slow for all."""
    took: dict[str, list[Took]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            took[name].append(work())
    return took


# --- What is measured ---------------------------------------------------------------------------


def speed(scratch: Path, remote: Remote, asked: argparse.Namespace) -> list[Row]:
    """1,000 cases: live at each latency, replayed, and everybody else on the same."""
    cases = asked.cases
    ours = Ours(scratch / "ours", cases, Path(asked.environments))
    others = peers.bare(scratch / "bare", SCHEMA, SYSTEM, [ticket(at) for at in range(cases)])
    if asked.peers:
        others |= peers.installed(
            Path(asked.environments), scratch / "peers", SCHEMA, SYSTEM, [ticket(at) for at in range(cases)]
        )
    must = {0: (3.4, 1.8), 50: (3.4, 1.8), 300: (5.0, 4.0)}
    rows: list[Row] = []
    ours.run(remote)  # fills what Python keeps of its modules
    for latency in asked.latencies:
        delay_s = latency / 1000

        def live() -> Took:
            ours.forget()
            return ours.run(remote, delay_s=delay_s)  # noqa: B023  # called before the next round

        works: dict[str, Callable[[], Took]] = {"pytest --deploy-gates, all five gates": live}
        for name, other in others.items():
            works[name] = lambda other=other: other(remote, delay_s)  # type: ignore[misc]  # noqa: B023
        took = in_turn(works, asked.runs)
        for name, each in took.items():
            mine = name.startswith("pytest")
            limits = must.get(latency, (None, None)) if mine and cases == 1_000 else (None, None)
            row = Row(
                name=f"{latency} ms: {name}", took=each, must_s=limits[0], stretch_s=limits[1], cases=cases
            )
            rows.append(row)
        _say_ratios(took, latency)
    works = {"replayed, all five gates": lambda: ours.run(remote, "--gate-record=none")}
    works["replayed, -n 2"] = lambda: ours.run(remote, "--gate-record=none", "-n2")
    took = in_turn(works, asked.runs)
    rows += [
        Row(name=name, took=each, must_s=1.5, stretch_s=1.0, must_mb=200, cases=cases)
        for name, each in took.items()
    ]
    ours.change()
    changed = [_again(ours, remote) for _ in range(asked.runs)]
    rows.append(Row(name="0 ms: changed config, baseline replayed", took=changed, cases=cases))
    both = [ours.run(remote, "--gate-record=none") for _ in range(asked.runs)]
    rows.append(Row(name="replayed, changed config: two answers a case", took=both, cases=cases))
    return rows


def _again(ours: Ours, remote: Remote) -> Took:
    ours.project.git("checkout", "-q", "--", "golden/triage/recordings.jsonl")
    shutil.rmtree(ours.project.root / ".deploy-gates", ignore_errors=True)
    return ours.run(remote)


def _say_ratios(took: Mapping[str, Sequence[Took]], latency: int) -> None:
    mine = statistics.median(each.wall_s for each in took["pytest --deploy-gates, all five gates"])
    for name, must in PEERS.items():
        if name in took:
            ratio = statistics.median(each.wall_s for each in took[name]) / mine
            print(f"{latency} ms: {ratio:.1f} times as fast as {name} (must: {must:g})", flush=True)


def scale(scratch: Path, remote: Remote, asked: argparse.Namespace) -> list[Row]:
    """10,000 live at 300 ms and replayed; 100,000 collected and replayed."""
    rows = []
    ten = Ours(scratch / "ten", 10_000, Path(asked.environments))
    rows.append(
        Row(
            name="10,000 cases live at 300 ms",
            took=[ten.run(remote, delay_s=0.3)],
            must_s=36,
            stretch_s=33,
            must_mb=200,
            cases=10_000,
        )
    )
    replays = [ten.run(remote, "--gate-record=none") for _ in range(asked.runs)]
    rows.append(
        Row(name="10,000 cases replayed", took=replays, must_s=12, stretch_s=5, must_mb=200, cases=10_000)
    )
    if not asked.small:
        hundred = Ours(scratch / "hundred", 100_000, Path(asked.environments))
        hundred.project.record(lambda inputs, number: endpoint.answer(number, ticket(number)[1]))
        took = [hundred.run(remote, "--gate-record=none")]
        rows.append(
            Row(
                name="100,000 cases collected and replayed",
                took=took,
                must_s=150,
                stretch_s=60,
                must_mb=1024,
                cases=100_000,
            )
        )
    return rows


def faults(scratch: Path, remote: Remote, asked: argparse.Namespace) -> list[Row]:
    """5 % of the calls fail, each way: the same verdict, in at most 1.5 times the time."""
    ours = Ours(scratch / "faults", asked.cases, Path(asked.environments))
    ours.project.edit("timeout_s: 60", f"timeout_s: {asked.timeout_s:g}")
    ours.run(remote)
    ours.forget()
    healthy = ours.run(remote, delay_s=0.05)
    verdict, rows = ours.verdict(), [Row(name="50 ms: no fault", took=[healthy], cases=asked.cases)]
    print(verdict)
    for fault in endpoint.FAULTS:
        ours.forget()
        took = ours.run(remote, delay_s=0.05, fault=fault, share=0.05)
        is_same = ours.verdict() == verdict
        ratio = took.wall_s / healthy.wall_s
        rows.append(
            Row(
                name=f"50 ms: 5 % {fault}: {'same verdict' if is_same else 'ANOTHER VERDICT'}, {ratio:.2f} x",
                took=[took],
                must_s=FAULTS_MAX_RATIO * healthy.wall_s,
                cases=asked.cases,
            )
        )
    ours.forget()
    lost = ours.run(remote, delay_s=0.05, down_after=asked.cases // 2)
    rows.append(Row(name=f"provider lost half way: {_golden_word(ours)}", took=[lost], cases=asked.cases))
    resumed = ours.run(remote, delay_s=0.05)
    is_same = ours.verdict() == verdict
    rows.append(
        Row(
            name=f"and resumed: {'same verdict' if is_same else 'ANOTHER VERDICT'}",
            took=[resumed],
            cases=asked.cases,
        )
    )
    return rows


def _golden_word(ours: Ours) -> str:
    return ours.verdict().partition("golden ")[2].partition(",")[0]


def crash(scratch: Path, remote: Remote, asked: argparse.Namespace) -> list[Row]:
    """`kill -9` at half way, 50 ms: what is asked again were in flight, and nothing else."""
    ours = Ours(scratch / "crash", asked.cases, Path(asked.environments))
    rows = []
    for options in ((), ("-n2",)):
        ours.forget()
        half = asked.cases // 2
        killed = ours.run(remote, *options, delay_s=0.05, kill_after=half)
        resumed = ours.run(remote, *options, delay_s=0.05)
        twice = killed.requests + resumed.requests - asked.cases
        name = f"resumed after kill -9{' with -n 2' if options else ''}: {twice} paid twice"
        rows.append(Row(name=f"killed at {half}", took=[killed], cases=asked.cases))
        rows.append(Row(name=name, took=[resumed], cases=asked.cases))
    return rows


MEASURES: Mapping[str, Callable[[Path, Remote, argparse.Namespace], list[Row]]] = {
    "speed": speed,
    "scale": scale,
    "faults": faults,
    "crash": crash,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=MEASURES, action="append", help="measure only this; repeatable")
    parser.add_argument("--cases", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each row (default: 3)")
    parser.add_argument("--latencies", type=int, nargs="*", default=list(LATENCIES_MS), metavar="MS")
    parser.add_argument("--small", action="store_true", help="leave the 100,000 cases out")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="of a call, where some hang")
    parser.add_argument(
        "--peers", action="store_true", help="run the peers beside it, each in its environment"
    )
    parser.add_argument(
        "--environments",
        default=str(Path(tempfile.gettempdir()) / "deploy-gates-peers"),
        metavar="FOLDER",
        help="where the environments are, or are made: ours and one for each peer",
    )
    parser.add_argument("--json", action="store_true", help="print data for machines as well")
    asked = parser.parse_args()
    made: dict[str, Json] = {}
    with tempfile.TemporaryDirectory() as scratch, endpoint.running() as remote:
        for name in asked.only or MEASURES:
            rows = MEASURES[name](Path(scratch), remote, asked)
            show(rows, name)
            made[name] = [{"name": row.name, "took": [_plain(each) for each in row.took]} for row in rows]
    if asked.json:
        print(json.dumps(made, indent=1))
    return 0


def _plain(took: Took) -> Json:
    plain: JsonObject = asdict(took)
    plain.pop("said")
    return plain


if __name__ == "__main__":
    raise SystemExit(main())
