"""Config, cases, and consumers fit their schemas; nothing that was promised is gone; no key is in the files.

Nothing here asks a model. What the checks look at is read already; only consumers are imported, and the
team's own type checker is run where the settings name one.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from deploy_gates.core.config import ConfigChange, ModelConfig, Snapshot
from deploy_gates.core.gate import Asking, Check, Found, GateName, GateResult, Outcome, Verdict
from deploy_gates.core.leaks import find_secrets
from deploy_gates.core.policy import Context
from deploy_gates.gates import capability, fitting, promises
from deploy_gates.gates.findings import Findings

TAIL_LINES = 12
TAIL_BYTES = 8_000
"""So much of what a type checker says is looked at, from its end."""


def checks(change: ConfigChange, context: Context) -> Iterator[Check]:
    """Whatever the config has is held to what it says of it; what it has not is not checked."""
    snapshot, config = change.candidate, change.candidate.config
    finds: dict[str, Callable[[Findings], None]] = {
        "config": functools.partial(_config, snapshot=snapshot),
        "secrets": functools.partial(_secrets, snapshot=snapshot),
    }
    if config is not None:
        finds |= dict(_finds(change, config, context))
    for name, find in finds.items():
        yield _check(f"{snapshot.config_file}::type/{name}", change, find)


def judge(change: ConfigChange, outcomes: Sequence[Outcome], context: Context) -> GateResult:
    """All must hold."""
    own = [each for each in outcomes if each.gate is GateName.TYPE]
    missed = [each for each in own if each.found is Found.MISSED]
    unknown = [each for each in own if each.found is Found.UNKNOWN]
    if not own:
        is_optional = GateName.TYPE in context.policy.optional
        return GateResult(
            gate=GateName.TYPE,
            verdict=Verdict.SKIP if is_optional else Verdict.INCONCLUSIVE,
            measured=("no check was executed",),
            required=("all",),
            reasons=() if is_optional else ("no check was executed",),
        )
    return GateResult(
        gate=GateName.TYPE,
        verdict=Verdict.FAIL if missed else Verdict.INCONCLUSIVE if unknown else Verdict.PASS,
        measured=(f"{len(own) - len(missed) - len(unknown)} of {len(own)} checks",),
        required=("all",),
        reasons=tuple(reason for each in missed + unknown for reason in each.reasons or (each.check,)),
        checks=len(own),
        missed=len(missed),
        unknown=len(unknown),
        figures={each.check.rpartition("type/")[2]: each.figures for each in own if each.figures},
    )


def _check(id: str, change: ConfigChange, find: Callable[[Findings], None]) -> Check:
    config = change.candidate.config

    def begin() -> Asking:
        yield from ()
        findings = Findings(file=change.candidate.config_file, lines=config.lines if config else {})
        try:
            find(findings)
        except RecursionError:
            findings.doubt("is nested too deeply to be checked")
        return findings.outcome(check)

    check = Check(id=id, gate=GateName.TYPE, config=change.name, begin=begin)
    return check


def _finds(
    change: ConfigChange, config: ModelConfig, context: Context
) -> Iterator[tuple[str, Callable[[Findings], None]]]:
    """The checks for which the config has a subject."""
    snapshot, policy, root = change.candidate, context.policy, Path(context.root)
    folder = root / snapshot.folder
    readers = functools.cache(lambda: promises.readers(config, folder=folder, root=root))
    yield "templates", functools.partial(fitting.templates, config=config)
    if snapshot.cases:
        yield (
            "cases",
            functools.partial(
                fitting.cases,
                config=config,
                given=snapshot.cases,
                file=snapshot.cases_file,
                folder=str(folder),
            ),
        )
    if config.output is not None:
        yield "output", functools.partial(fitting.output, config=config)
    if config.tools:
        yield "tools", functools.partial(fitting.tools, config=config)
    if config.parameters:
        yield "parameters", functools.partial(capability.parameters, config=config)
    yield (
        "model",
        functools.partial(capability.model, config=config, policy=policy, on=context.now.date()),
    )
    if config.environments:
        yield "environments", functools.partial(_environments, config=config)
    if config.consumers:
        yield "consumers", lambda findings: promises.consumed(findings, config, readers())
    if change.baseline is not None:
        yield "compatibility", lambda findings: promises.compatible(findings, change, config, readers())
    if policy.type_command:
        yield "command", functools.partial(_command, context=context)


# --- The files ----------------------------------------------------------------------------------


def _config(findings: Findings, *, snapshot: Snapshot) -> None:
    """Config and cases can be read."""
    findings.wrong += map(str, snapshot.problems)
    if snapshot.config is None and not snapshot.problems:
        findings.miss("cannot be read")


def _secrets(findings: Findings, *, snapshot: Snapshot) -> None:
    """No key stands in any of the files. Cases may be about keys: there only certain ones count."""
    for file, text in snapshot.texts.items():
        for leak in find_secrets(text, only_certain=file == snapshot.cases_file):
            findings.miss(
                f"holds what looks like {leak.kind}: {leak.masked}",
                file=file,
                line=leak.line,
                hint="take it out, revoke it, and name an environment variable in `api_key_env`",
            )


_URL = re.compile(r"https?://[^/?#\s@]+(/[^?#\s]*)?\Z")


def _environments(findings: Findings, *, config: ModelConfig) -> None:
    """Endpoints are plain URLs, and keys are named and not given."""
    for each in config.environments:
        key = f"environments.{each.name}"
        if find_secrets(each.api_key_env, only_certain=True) or not _VARIABLE.match(each.api_key_env):
            findings.miss(
                "must be the name of an environment variable, and never a key",
                key=f"{key}.api_key_env",
                hint="write it like OPENAI_API_KEY",
            )
        if "@" in each.base_url:
            findings.miss(
                "holds a user or a password", key=f"{key}.base_url", hint="name a key in `api_key_env`"
            )
        elif each.base_url and not _URL.match(each.base_url):
            findings.miss(
                "is not the plain URL of an endpoint",
                key=f"{key}.base_url",
                hint="write it like https://api.example.com/v1",
            )
        elif each.base_url.startswith("http://") and not _LOCAL.match(each.base_url):
            findings.note(
                "is not encrypted: the key and all prompts can be read on their way", key=f"{key}.base_url"
            )


_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*\Z")
_LOCAL = re.compile(r"http://(localhost|127\.|\[::1\]|10\.|192\.168\.|[^./:]+(:|/|\Z))")


# --- The team's type checker --------------------------------------------------------------------


def _command(findings: Findings, *, context: Context) -> None:
    """The command that the settings name ends with status 0."""
    command = context.policy.type_command
    status, said = _ran(command, context.root, context.policy.type_command_timeout_s, context.now)
    if status == 0:
        return
    key = "tool.deploy_gates.type.command"
    ended = f"ended with status {status}" if isinstance(status, int) else status
    findings.miss(f"`{command}` {ended}", file="pyproject.toml", key=key)
    findings.wrong += said


@functools.lru_cache(maxsize=4)
def _ran(command: str, root: str, timeout_s: float, run: datetime) -> tuple[int | str, tuple[str, ...]]:
    """Status and last lines of a command, or why there is no status; once for all configs of a run."""
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        return f"cannot be read as a command: {error}", ()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                arguments,
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except (OSError, IndexError, ValueError) as error:
            return f"cannot be started: {error}", ()
        try:
            status: int | str = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = f"took more than {timeout_s:g} s and was ended"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = output.read().decode(errors="replace").splitlines()
    return status, tuple(line.strip() for line in lines if line.strip())[-TAIL_LINES:]
