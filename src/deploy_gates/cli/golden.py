"""Commands about golden sets: look at changed answers, check the set itself, bring cases from elsewhere."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from deploy_gates.cli.frame import DONE, REFUSED, Commands, command, group, print_json, terminal
from deploy_gates.core.canonical import Json, JsonObject, short
from deploy_gates.core.errors import PromptError, Refusal, Refused, SettingsError, WorkspaceError
from deploy_gates.report.text import counted

if TYPE_CHECKING:
    from deploy_gates.core.config import Case, ConfigChange, ModelConfig, Snapshot
    from deploy_gates.core.question import Answer
    from deploy_gates.report.review import Came, Review, Reviewed


NOT_RECORDED = "(not recorded)"


def add(commands: Commands) -> None:
    """Add these commands to the parser."""
    actions = group(
        commands,
        "golden",
        "look at changed answers, check a golden set, import cases",
        "deploy-gates golden review",
    )
    review = command(
        actions,
        "review",
        _review,
        "show changed answers side by side, and accept chosen ones as what is expected",
        "deploy-gates golden review ticket-triage --html review.html --accept refund-partial",
    )
    review.add_argument("config", nargs="*", help="only these configs (default: all that changed)")
    review.add_argument("--base", default="", help="compare with this commit (default: where HEAD left main)")
    review.add_argument("--all", action="store_true", help="show every case, and all of each answer")
    review.add_argument("--html", metavar="PATH", help="write it as one HTML page, too")
    review.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="CASE",
        help="what the candidate answers is what this case expects from now on; repeatable",
    )
    check = command(
        actions,
        "check",
        _check,
        "tell what is wrong with a golden set",
        "deploy-gates golden check ticket-triage --production last-week.jsonl",
    )
    check.add_argument("config", nargs="*", help="only these configs (default: all)")
    check.add_argument(
        "--production", metavar="PATH", help="inputs that production was sent, one JSON object a line"
    )
    brought = command(
        actions,
        "import",
        _import,
        "make golden cases of promptfoo YAML or CSV, or of OpenAI evals JSON Lines",
        "deploy-gates golden import promptfooconfig.yaml --to ticket-triage",
    )
    brought.add_argument("file", help="a .yaml, .csv, or .jsonl file")
    brought.add_argument(
        "--to", metavar="CONFIG", help="add them to the cases of this config (default: print)"
    )
    brought.add_argument(
        "--variable",
        default="input",
        help="what the text of an eval is called in the templates (default: input)",
    )


# --- review -------------------------------------------------------------------------------------


def _review(asked: argparse.Namespace) -> int:
    from deploy_gates import files, report
    from deploy_gates.report import review as page

    root, changes = _changes(asked)
    reviews = [made for change in changes if (made := _reviewed(change, root))]
    known = {each.case for made in reviews for each in made.cases if each.candidate != NOT_RECORDED}
    if unknown := [case for case in asked.accept if case not in known]:
        raise Refused(
            Refusal.UNKNOWN,
            f"not accepted: {', '.join(unknown)}; no changed config has such a case with a recorded answer",
        )
    accepted = [case for change in changes for case in _accept(root, change, asked.accept)]
    if asked.html:
        report.check(root / asked.html)
        files.replace(root / asked.html, page.html(reviews).encode("utf-8", "replace"))
    if asked.json:
        print_json({"reviews": [_review_json(each) for each in reviews], "accepted": list[Json](accepted)})
        return DONE
    screen = terminal()
    for each in reviews:
        print("\n".join(page.lines(each, screen, everything=asked.all)))
    if not reviews:
        print("no config changed: there is nothing to review")
    for case in accepted:
        print(f"accepted: {screen.said(case)} expects what the candidate answers")
    if asked.html:
        print(f"written: {asked.html}")
    return DONE


def _changes(asked: argparse.Namespace) -> tuple[Path, Sequence[ConfigChange]]:
    """The changed configs, with every recorded answer that may serve them."""
    from deploy_gates import answers, baseline, clock, settings, workspace

    root = workspace.find_root(Path.cwd())
    settled = settings.load(root)
    changes = baseline.changes(root, settled, base=asked.base, names=asked.config, gate_all=False)
    made = answers.Answers(
        root=root,
        settings=settled,
        changes=changes,
        record="none",
        budget_usd=Decimal(0),
        started=clock.now(),
        keeps=False,
    )
    return root, made.changes


def _reviewed(change: ConfigChange, root: Path) -> Review | None:
    from deploy_gates.gates.matching import Matcher
    from deploy_gates.report.review import Review

    config = change.candidate.config
    if config is None:
        return None
    folder = str(root / change.candidate.folder)
    own = Matcher(config, folder=folder)
    before = change.baseline.config if change.baseline else None
    other = Matcher(before, comparison=config.comparison, folder=folder) if before else None
    cases = []
    for case in change.candidate.cases:
        after = _recorded(change, config, case)
        earlier = _recorded(change, before, case) if before else None
        cases.append(
            _side_by_side(
                case,
                earlier,
                after,
                other.match(earlier, case).score if other and earlier else None,
                own.match(after, case) if after else None,
            )
        )
    return Review(
        config=change.name,
        baseline=short(before.digest) if before else "nothing",
        candidate=short(config.digest),
        cases=tuple(cases),
    )


def _recorded(change: ConfigChange, config: ModelConfig | None, case: Case) -> Answer | None:
    from deploy_gates import prompt

    if config is None:
        return None
    try:
        return change.recordings.get(prompt.ask(config, case.inputs).key)
    except PromptError:
        return None


def _side_by_side(
    case: Case, before: Answer | None, after: Answer | None, score: float | None, match: object
) -> Reviewed:
    from deploy_gates.gates.matching import Match
    from deploy_gates.report.review import Reviewed

    found = match if isinstance(match, Match) else None
    return Reviewed(
        case=case.id,
        came=_came(before, after, score, found.score if found else None),
        inputs=json.dumps(case.inputs, ensure_ascii=False),
        expected=json.dumps(case.expected, ensure_ascii=False) if case.expects else "",
        baseline=_told(before),
        candidate=_told(after),
        why="; ".join(found.reasons) if found else "",
        tags=case.tags,
    )


def _came(before: Answer | None, after: Answer | None, was: float | None, now: float | None) -> Came:
    from deploy_gates.report.review import Came

    if before is None or after is None or was is None or now is None:
        return Came.UNKNOWN
    if now != was:
        return Came.WORSE if now < was else Came.BETTER
    return Came.SAME if _told(before) == _told(after) else Came.OTHER


def _told(answer: Answer | None) -> str:
    """An answer as people read it: JSON with its fields below each other."""
    if answer is None:
        return NOT_RECORDED
    if answer.refusal:
        return f"(refused) {answer.refusal}"
    called = [f"{each.name}({each.arguments})" for each in answer.tool_calls]
    try:
        text = json.dumps(json.loads(answer.text), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        text = answer.text
    return "\n".join([*([text] if text else []), *called])


def _review_json(review: Review) -> JsonObject:
    from deploy_gates.report.review import Came

    return {
        "config": review.config,
        "baseline": review.baseline,
        "candidate": review.candidate,
        "cases": [
            asdict(each) | {"came": each.came.value, "tags": list(each.tags)}
            for each in review.cases
            if each.came is not Came.SAME
        ],
    }


# --- accept -------------------------------------------------------------------------------------


def _accept(root: Path, change: ConfigChange, wanted: Sequence[str]) -> Iterator[str]:
    """Write what the candidate answers as what these cases expect; nothing else in the file changes."""
    from deploy_gates import files

    path = root / change.candidate.cases_file
    cases = {case.id: case for case in change.candidate.cases if case.id in wanted}
    if not cases:
        return
    lines = path.read_text("utf-8").split("\n")
    for case in cases.values():
        answer = _recorded(change, change.candidate.config, case)
        if answer is None:
            continue
        raw = json.loads(lines[case.line - 1])
        assert raw["id"] == case.id, "the lines are those that were read"
        if not case.expects:
            raise Refused(
                Refusal.STATE,
                f"{case.id} has `checks` and no `expected`: change them by hand; nothing was accepted",
            )
        raw["expected"] = _expectation(case, answer)
        lines[case.line - 1] = json.dumps(raw, ensure_ascii=False)
        yield case.id
    files.replace(path, "\n".join(lines).encode())


def _expectation(case: Case, answer: Answer) -> Json:
    """The answer as it is to be expected: of an object, the fields that were expected so far."""
    if answer.refusal or not answer.text.strip():
        raise Refused(Refusal.STATE, f"{case.id} has no answer that could be expected; nothing was accepted")
    if isinstance(case.expected, str):
        try:
            json.loads(answer.text)
        except ValueError:
            return answer.text.strip()
    try:
        found: Json = json.loads(answer.text)
    except ValueError as error:
        raise Refused(
            Refusal.STATE, f"the answer to {case.id} is not JSON, as what it expects; nothing was accepted"
        ) from error
    if isinstance(case.expected, dict) and isinstance(found, dict):
        return {key: found[key] for key in case.expected if key in found}
    return answer.text.strip() if isinstance(case.expected, str) and not isinstance(found, str) else found


# --- check --------------------------------------------------------------------------------------


def _check(asked: argparse.Namespace) -> int:
    from deploy_gates import history, workspace
    from deploy_gates.core import hygiene

    root = workspace.find_root(Path.cwd())
    production = _samples(Path(asked.production)) if asked.production else ()
    found: dict[str, tuple[hygiene.Flaw, ...]] = {}
    sizes: dict[str, int] = {}
    for snapshot in _snapshots(root, asked.config):
        past = history.load(root / workspace.STATE_FOLDER / "history" / f"{snapshot.name}.jsonl").cases
        found[snapshot.name] = hygiene.flaws(snapshot.cases, past, production)
        sizes[snapshot.name] = len(snapshot.cases)
    if asked.json:
        print_json(
            {
                name: [asdict(each) | {"cases": list(each.cases)} for each in flaws]
                for name, flaws in found.items()
            }
        )
    elif not found:
        print("there is no config here, and so no golden set; deploy-gates init makes a first one")
    else:
        screen = terminal()
        for name, flaws in found.items():
            size = counted(sizes[name], "case")
            print(f"{screen.said(name)}: {size}, {len(flaws) or 'nothing'} to look at")
            for each in flaws:
                print(screen.said(f"  {each.kind.value}: {each.message}"))
    is_wrong = any(each.is_error for flaws in found.values() for each in flaws)
    return REFUSED if is_wrong else DONE


def _snapshots(root: Path, names: Sequence[str]) -> Iterator[Snapshot]:
    from deploy_gates import documents, settings, workspace

    snapshots = {
        each.name: each
        for file in workspace.config_files(root, settings.load(root))
        for each in (workspace.read_snapshot(root, file),)
    }
    for name in names or snapshots:
        if name not in snapshots:
            hint = documents.nearest(name, list(snapshots))
            raise SettingsError(f"there is no config `{name}` in this repository", hint=hint)
        yield snapshots[name]


def _samples(path: Path) -> tuple[JsonObject, ...]:
    from deploy_gates import documents

    text, problem = documents.read(path, str(path), documents.CASES_MAX_BYTES)
    if problem is not None:
        raise WorkspaceError(str(problem))
    made = []
    for line, document in documents.parse_json_lines(text, str(path)):
        value = document.value
        if document.problems or not isinstance(value, dict):
            raise WorkspaceError(f"{path}:{line} is no JSON object of inputs")
        inputs = value.get("inputs")
        made.append(inputs if isinstance(inputs, dict) else value)
    return tuple(made)


# --- import -------------------------------------------------------------------------------------


def _import(asked: argparse.Namespace) -> int:
    from deploy_gates import files, importing, workspace
    from deploy_gates.report.text import counted

    root = workspace.find_root(Path.cwd())
    made = importing.read(Path(asked.file), asked.variable)
    target = next(iter(_snapshots(root, [asked.to])), None) if asked.to else None
    taken = {case.id for case in target.cases} if target else set()
    new = [each for each in made.cases if each["id"] not in taken]
    left_out = dict(made.left_out)
    if len(new) < len(made.cases):
        left_out["cases whose id is there already"] = len(made.cases) - len(new)
    if target is not None and new:
        path = root / target.cases_file
        before = path.read_text("utf-8") if path.exists() else ""
        before += "" if not before or before.endswith("\n") else "\n"
        added = "".join(importing.spelled(each) + "\n" for each in new)
        files.replace(path, (before + added).encode())
    elif target is None and not asked.json:
        for each in new:
            print(importing.spelled(each))
    if asked.json:
        cases: list[Json] = list(new)
        print_json({"cases": cases, "left_out": dict[str, Json](left_out), "to": asked.to or None})
        return DONE
    print(f"{counted(len(new), 'case')}{f' added to {target.cases_file}' if target else ''}", file=sys.stderr)
    for what, count in sorted(left_out.items()):
        kind, _, rest = what.partition(" ")
        print(f"left out: {counted(count, kind.removesuffix('s'))} {rest}", file=sys.stderr)
    return DONE
