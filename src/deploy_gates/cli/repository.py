"""Commands about the repository: start one, compare, comment, describe, and check evidence."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploy_gates.cli.frame import DONE, UNAVAILABLE, Commands, command, existing, group, print_json
from deploy_gates.core.canonical import Json, short
from deploy_gates.core.errors import DeployGatesError

if TYPE_CHECKING:
    from deploy_gates.core.config import Case, Snapshot
    from deploy_gates.workspace import Changes


def add(commands: Commands) -> None:
    """Add these commands to the parser."""
    init = command(commands, "init", _init, "add a config, golden cases, settings, a CI workflow, and a hook")
    init.add_argument("folder", nargs="?", default=".", help="the repository (default: this folder)")

    diff = command(commands, "diff", _diff, "tell what changed in each config", "deploy-gates diff main")
    diff.add_argument(
        "base",
        nargs="?",
        default="",
        help="compare with this commit, or with store:production (default: where HEAD left main)",
    )
    diff.add_argument(
        "--config", action="append", default=[], metavar="NAME", help="only this config; repeatable"
    )
    diff.add_argument("--full", action="store_true", help="show changed texts line by line")

    comment = command(
        commands,
        "comment",
        _comment,
        "in CI, put the report of the gates on the pull request, once",
        "deploy-gates comment .deploy-gates/report.md",
    )
    comment.add_argument(
        "report",
        nargs="?",
        default=".deploy-gates/report.md",
        help="what --gate-report wrote (default: .deploy-gates/report.md); where it is missing, that is said",
    )

    schema = command(
        commands, "schema", _schema, "print a JSON Schema for editors", "deploy-gates schema config"
    )
    schema.add_argument("name", choices=["config", "case", "settings"])

    actions = group(
        commands,
        "evidence",
        "verify evidence, or make a key to sign it with",
        "deploy-gates evidence keygen gates",
    )
    verify = command(
        actions,
        "verify",
        _verify,
        "check an evidence file: its form, its signature, and what it says",
        "deploy-gates evidence verify ticket-triage-8a41d07.json --key gates.pub.pem",
    )
    verify.add_argument("file", type=existing, help="an evidence file")
    verify.add_argument(
        "--key", action="append", default=[], metavar="PEM", help="a public key that is trusted; repeatable"
    )
    keygen = command(
        actions, "keygen", _keygen, "make an Ed25519 key pair", "deploy-gates evidence keygen gates"
    )
    keygen.add_argument("name", help="NAME.pem is the private key, NAME.pub.pem the public one")


# --- init ---------------------------------------------------------------------------------------


def _init(asked: argparse.Namespace) -> int:
    from deploy_gates import scaffold

    made = scaffold.scaffold(Path(asked.folder))
    if asked.json:
        print_json([asdict(each) for each in made])
        return DONE
    print()
    for each in made:
        print(f"  {each.action:<8} {each.file:<36} {each.about}".rstrip())
    for each in made:
        if each.lines:
            print(f"\n{each.file} cannot be added to safely; these lines belong under its `repos`:\n")
            print(each.lines.rstrip("\n"))
    print("\nnext: `pip install pytest-deploy-gates`, then `pytest --deploy-gates`")
    return DONE


# --- diff ---------------------------------------------------------------------------------------


def _diff(asked: argparse.Namespace) -> int:
    from deploy_gates import baseline, settings, workspace

    root = workspace.find_root(Path.cwd())
    found = baseline.changes(root, settings.load(root), base=asked.base, names=asked.config)
    if asked.json:
        print_json(_diff_json(found))
        return DONE
    for line in _diff_lines(found, is_full=asked.full):
        print(line)
    return DONE


def _diff_json(found: Changes) -> Json:
    return {
        "base": found.base,
        "changed": [
            {
                "config": change.name,
                "baseline": _digest(change.baseline),
                "candidate": _digest(change.candidate),
                "renamed_from": change.renamed_from,
                "fields": [
                    {"key": each.key, "baseline": each.baseline, "candidate": each.candidate}
                    for each in change.fields
                ],
                "problems": [str(each) for each in change.candidate.problems],
            }
            for change in found.changed
        ],
        "unchanged": list(found.unchanged),
        "deleted": list(found.deleted),
    }


def _digest(snapshot: Snapshot | None) -> str:
    return snapshot.config.digest if snapshot and snapshot.config else ""


def _diff_lines(found: Changes, *, is_full: bool) -> list[str]:
    from deploy_gates import difference

    lines: list[str] = []
    for change in found.changed:
        was, now = short(_digest(change.baseline)), short(_digest(change.candidate))
        moved = f"{was or 'new'} → {now or 'cannot be read'}"
        renamed = f" (was {change.renamed_from})" if change.renamed_from else ""
        lines += ["", f"{change.name}{renamed}  {moved}", ""]
        lines += [f"  {problem}" for problem in change.candidate.problems]
        width = max((len(each.key) for each in change.fields), default=0)
        for each in change.fields:
            arrow = f"{each.baseline} → {each.candidate}" if each.baseline else each.candidate
            lines.append(f"  {each.key:<{width}}   {arrow}")
        if was and was == now and not change.fields:
            files = "" if change.renamed_from else "; other bytes of its files differ"
            lines.append(f"  says the same{files}")
        lines += _cases_lines(change.baseline.cases if change.baseline else (), change.candidate.cases)
        if is_full and change.baseline:
            for file, text in sorted(change.candidate.texts.items()):
                before = change.baseline.texts.get(file, "")
                if before != text:
                    lines += ["", f"  {file}"] + [f"    {line}" for line in difference.lines(before, text)]
    if found.unchanged:
        lines += ["", f"unchanged since {found.base}: {', '.join(found.unchanged)}"]
    if found.deleted:
        lines += ["", f"deleted since {found.base}: {', '.join(found.deleted)}"]
    return lines or [f"no config here, and none at {found.base}"]


def _cases_lines(baseline: Sequence[Case], candidate: Sequence[Case]) -> list[str]:
    before = {case.id: replace(case, line=0) for case in baseline}
    after = {case.id: replace(case, line=0) for case in candidate}
    added, removed = len(after.keys() - before.keys()), len(before.keys() - after.keys())
    edited = sum(before[key] != case for key, case in after.items() if key in before)
    if not (added or removed or edited):
        return []
    return [f"  cases.jsonl   +{added} −{removed} cases, {edited} edited"]


# --- comment ------------------------------------------------------------------------------------


def _comment(asked: argparse.Namespace) -> int:
    from deploy_gates.notify import review
    from deploy_gates.notify.web import Undelivered

    place = review.place(os.environ)
    if place is None:
        if asked.json:
            print_json({"place": None, "done": review.Done.KEPT.value})
        else:
            print("this run is for no pull request: there is nothing to comment on")
        return DONE
    try:
        done = review.post(place, _report(Path(asked.report)))
    except Undelivered as error:
        said = f"the report did not get to {place.name}: {error.message}"
        if asked.json:
            print_json({"error": said})
        else:
            print(f"deploy-gates: {said}", file=sys.stderr)
        return UNAVAILABLE
    if asked.json:
        print_json({"place": place.name, "done": done.value})
    elif done is review.Done.FORBIDDEN:
        print(f"this token may not write to {place.name}, as that of a fork may not: no comment")
    else:
        print(f"the comment on {place.name}: {done}")
    return DONE


def _report(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DeployGatesError(f"{path} cannot be read: {error}") from error


# --- schema -------------------------------------------------------------------------------------


def _schema(asked: argparse.Namespace) -> int:
    from deploy_gates import documents

    print_json(documents.schema(asked.name))
    return DONE


# --- evidence -----------------------------------------------------------------------------------


def _verify(asked: argparse.Namespace) -> int:
    from deploy_gates import envelope, settings, workspace

    root = workspace.find_root(Path.cwd())
    names = asked.key or [str(root / each) for each in settings.load(root).public_keys]
    verified = envelope.verify(asked.file, envelope.public_keys(root, names), require_signature=bool(names))
    evidence = verified.evidence
    if asked.json:
        print_json({"signed_by": verified.signed_by, "statement": evidence.to_statement()})
        return DONE
    signed = f"signed by {verified.signed_by}" if verified.signed_by else "no trusted signature"
    print(f"{evidence.config}  {short(evidence.digest)}  {evidence.verdict}  ({signed})")
    for result in evidence.gates:
        print(f"  {result.gate:<12} {result.verdict:<13} {result.measured[0] if result.measured else ''}")
    return DONE


def _keygen(asked: argparse.Namespace) -> int:
    from deploy_gates import envelope

    private, public = Path(f"{asked.name}.pem"), Path(f"{asked.name}.pub.pem")
    for path in (private, public):
        if path.exists():
            raise DeployGatesError(f"{path} exists already, and is not overwritten")
    pair = envelope.generate()
    try:
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(pair.private_pem)
        public.write_text(pair.public_pem)
    except OSError as error:
        raise DeployGatesError(f"{error.filename or private} cannot be written: {error.strerror}") from error
    if asked.json:
        print_json({"private": str(private), "public": str(public)})
    else:
        width = len(str(public))
        print(f"{private!s:<{width}}   the private key: keep it out of git, give it to CI as a secret")
        print(f"{public}   the public key: commit it, and name it under `evidence.public_keys`")
    return DONE
