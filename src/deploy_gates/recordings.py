"""Recorded answers: plain lines in the repository, and a journal that loses nothing while a run asks.

`recordings.jsonl` lies beside the config, is committed, and diffs well: one line an answer, always the same
keys in the same order, no secret in it. It is only ever replaced as a whole.

While a run asks, each answer goes into a journal in the state folder the moment it arrives: one write of one
whole line, so that processes can share the file and `kill -9` loses nothing that was answered. `merge` puts
the journal into the recordings when the run ends. A run that finds a journal serves what is in it.

A run that asks everything again (`--gate-record=all`) may serve nothing older than itself, or it would not
ask. So its journal is another file, `<name>.again.jsonl`: only such runs write it, and what is in it was
asked by one that was interrupted. The next one serves that, if it is not older than `RESUMED_WITHIN`, and
asks the rest. Every other run serves both files.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deploy_gates import files
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.cost import Usage
from deploy_gates.core.errors import Problem, WorkspaceError
from deploy_gates.core.question import Answer, Question, ToolCall

RESUMED_WITHIN = timedelta(hours=24)
"""After this, asking everything again means everything, whatever an interrupted run has left."""
MAX_BYTES = 256 * 1024 * 1024
"""More than this is no recordings file."""
OPEN_TRIES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """Answers by the key of their question, in the order of the file."""

    answers: Mapping[str, Answer] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """What was left out, one sentence each."""


def load(path: Path) -> Recorded:
    """What is recorded in the file at `path`; nothing if there is none.

    A last line that was torn by a crash is left out. Any other line that is no answer is a `WorkspaceError`.
    """
    return parse(_read(path), str(path))


def parse(raw: bytes, file: str) -> Recorded:
    """The same for the bytes of a file; `file` is what messages call it."""
    lines = _parse(raw, file)
    return Recorded(answers={key: line.answer for key, line in lines.kept.items()}, warnings=lines.warnings)


class Journal:
    """The answers of one config as they arrive, kept in the folder `folder` until they are merged."""

    def __init__(self, folder: Path, name: str, *, now: datetime, again: bool = False) -> None:
        self.path = folder / (f"{name}.again.jsonl" if again else f"{name}.jsonl")
        self.lock = folder / f"{name}.lock"
        self._file: int | None = None
        lines, others = _parse_journal(self.path), _Lines()
        if not again:
            others = _parse_journal(folder / f"{name}.again.jsonl")
        kept = {key: line.answer for key, line in _newer(others.kept, lines.kept).items()}
        if again:
            kept = {key: each for key, each in kept.items() if _is_younger(each, now, RESUMED_WITHIN)}
        self.answers: Mapping[str, Answer] = kept
        """What earlier runs have left here and this run may serve."""

    def open(self) -> None:
        """Make sure that answers can be kept, before they are paid for. `WorkspaceError` if not."""
        if self._file is None:
            try:
                self._file = _open_shared(self.path)
            except OSError as error:
                raise WorkspaceError(
                    f"answers cannot be kept in {self.path}: {error.strerror or error}; nothing was asked",
                    hint="make room or give write access, or replay with `--gate-record=none`",
                ) from error

    def append(self, question: Question, answer: Answer) -> None:
        """Keep one answer. `WorkspaceError` if it cannot be kept; those before it are safe."""
        self.open()
        assert self._file is not None
        # The newline before keeps this line whole, should another process have torn its last one.
        line = b"\n" + _line(question.key, question.label, answer) + b"\n"
        try:
            while line:  # once, unless the disk is full: then the second try says so
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise WorkspaceError(
                f"an answer cannot be kept in {self.path}: {error.strerror or error}; "
                f"those that came before it are safe there",
                hint="make room, then run again: what was answered is not asked again",
            ) from error

    def close(self) -> None:
        """Let go of the file; it can be opened again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def merge(path: Path, journal: Journal, *, order: Iterable[str] = (), keep: bool = False) -> int:
    """Put what was journaled into the recordings at `path`; says how many lines are new or differ.

    Lines keep their place, and are replaced there by a newer answer. New ones follow at the end: first those
    in `order`, which are keys of questions, then the others as they came. The journal is removed unless
    another run is still writing it, or `keep` says that it will be resumed.
    """
    journal.close()
    if not journal.path.exists():
        return 0
    try:
        with _exclusive(journal.lock):
            return _merge(path, journal.path, tuple(order), keep)
    except WorkspaceError as error:
        raise WorkspaceError(
            f"{error.message}; what this run was answered is safe in {journal.path}",
            hint=error.hint or "put that right, then run again: it is merged then, and not asked again",
        ) from error


def _merge(path: Path, journal: Path, order: tuple[str, ...], keep: bool) -> int:
    with contextlib.ExitStack() as held:
        others = False
        try:
            file = os.open(journal, os.O_RDONLY)
            held.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return 0
        except OSError:
            others = True
        before = _parse(_read(path), str(path), whole=False).kept
        new = _parse_journal(journal, whole=False).kept
        places = {key: at for at, key in enumerate(order)}
        new = dict(sorted(new.items(), key=lambda item: places.get(item[0], len(places))))
        after = _newer(before, new)
        changed = [key for key, line in after.items() if key not in before or before[key].raw != line.raw]
        if changed:
            files.replace(path, b"".join(line.raw + b"\n" for line in after.values()))
        if not keep and not others:
            journal.unlink(missing_ok=True)
        return len(changed)


def _newer(before: Mapping[str, _Line], after: Mapping[str, _Line]) -> dict[str, _Line]:
    """Both, in the order of `before`; of two answers to one question the newer one, or that of `after`."""
    made = dict(before)
    for key, line in after.items():
        there = made.get(key)
        if there is None or _asked_at(there.answer) <= _asked_at(line.answer):
            made[key] = line
    return made


def _asked_at(answer: Answer) -> datetime:
    return answer.asked_at or datetime.min.replace(tzinfo=UTC)


def _is_younger(answer: Answer, now: datetime, age: timedelta) -> bool:
    return answer.asked_at is not None and now - answer.asked_at <= age


# --- Files and locks ----------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise WorkspaceError(f"{path} is larger than {MAX_BYTES // 1024 // 1024} MB")
    return raw


def _open_shared(path: Path) -> int:
    """Open a journal for appending. Who holds it shared may write; who merges wants it alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(OPEN_TRIES):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(file, fcntl.LOCK_SH)
        if _is_still_there(file, path):
            return file
        os.close(file)  # merged and removed while we waited for it
    raise OSError(f"{path} is removed again and again")


def _is_still_there(file: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), there)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """One merge at a time."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


# --- Lines --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    raw: bytes
    answer: Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lines:
    kept: Mapping[str, _Line] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def _parse(raw: bytes, file: str, *, whole: bool = True) -> _Lines:
    """The lines of recordings. Those that are only merged need no more of an answer than when it came."""
    kept: dict[str, _Line] = {}
    lines = raw.split(b"\n")
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            key, answer = _answer(line)
        except ValueError as error:
            if at == len(lines):
                warning = f"{file}:{at}: the last line was torn while it was written, and is left out"
                return _Lines(kept=kept, warnings=(warning,))
            raise WorkspaceError(str(_problem(file, at, line, error))) from error
        kept[key] = _kept(line, answer, whole=whole)
    return _Lines(kept=kept)


def _kept(line: bytes, answer: Answer, *, whole: bool) -> _Line:
    return _Line(raw=line.strip(), answer=answer if whole else Answer(text="", asked_at=answer.asked_at))


def _problem(file: str, at: int, line: bytes, error: ValueError) -> Problem:
    if line.startswith((b"<<<<<<<", b"=======", b">>>>>>>")):
        return Problem(
            message="a merge conflict is not resolved",
            file=file,
            line=at,
            hint="keep the lines of both sides, without the markers",
        )
    return Problem(
        message=f"this line is no recorded answer: {error}",
        file=file,
        line=at,
        hint="restore it, or remove it and record it again with `--gate-record=new`",
    )


def _parse_journal(path: Path, *, whole: bool = True) -> _Lines:
    """A journal, without the lines that a crash or a full disk tore."""
    kept: dict[str, _Line] = {}
    for line in io.BytesIO(_read(path)):  # and not all of them at once: a large journal fills memory
        with contextlib.suppress(ValueError):
            if line.strip():
                key, answer = _answer(line)
                kept[key] = _kept(line, answer, whole=whole)
    return _Lines(kept=kept)


def _line(key: str, case: str, answer: Answer) -> bytes:
    made: JsonObject = {
        "key": key,
        "case": case,
        "model": answer.model,
        "asked_at": _rfc3339(answer.asked_at) if answer.asked_at else None,
        "latency_s": round(answer.latency_s, 3),
    }
    if answer.first_token_s is not None:
        made["first_token_s"] = round(answer.first_token_s, 3)
    made["text"] = answer.text
    if answer.tool_calls:
        made["tool_calls"] = [{"name": each.name, "arguments": each.arguments} for each in answer.tool_calls]
    if answer.refusal is not None:
        made["refusal"] = answer.refusal
    made["finish_reason"] = answer.finish_reason
    if answer.usage is not None:
        made["usage"] = _usage_json(answer.usage)
    try:
        return json.dumps(made, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair: an answer cut off within an emoji
        return json.dumps(made).encode()


def _usage_json(usage: Usage) -> JsonObject:
    made: JsonObject = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    if usage.cached_input_tokens:
        made["cached_input_tokens"] = usage.cached_input_tokens
    if usage.reasoning_tokens:
        made["reasoning_tokens"] = usage.reasoning_tokens
    return made


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _answer(line: bytes) -> tuple[str, Answer]:
    """The answer on a line. `ValueError` for anything else."""
    try:
        raw = json.loads(line)
    except RecursionError:
        raw = None
    if not isinstance(raw, dict):
        raise ValueError("it is not an object")
    key, text = raw.get("key"), raw.get("text")
    if not isinstance(key, str) or not key:
        raise ValueError("it has no `key`")
    if not isinstance(text, str):
        raise ValueError("it has no `text`")
    return key, Answer(
        text=text,
        tool_calls=_tool_calls(raw.get("tool_calls")),
        refusal=_text(raw, "refusal"),
        finish_reason=sys.intern(_text(raw, "finish_reason") or "stop"),
        usage=_usage(raw.get("usage")),
        model=sys.intern(_text(raw, "model") or ""),
        latency_s=_seconds(raw, "latency_s") or 0.0,
        first_token_s=_seconds(raw, "first_token_s"),
        asked_at=_time(raw.get("asked_at")),
        recorded=True,
    )


def _text(raw: JsonObject, key: str) -> str | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"`{key}` is not a string")
    return value


def _seconds(raw: JsonObject, key: str) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise ValueError(f"`{key}` is not a number of seconds")
    return float(value)


def _time(value: Json) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("`asked_at` is not a time")
    time = datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError("`asked_at` has no time zone")
    return time


def _usage(value: Json) -> Usage | None:
    if value is None:
        return None
    names = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")
    counts = [value.get(name, 0) if isinstance(value, dict) else None for name in names]
    whole = [each for each in counts if isinstance(each, int) and not isinstance(each, bool) and each >= 0]
    if len(whole) != len(names) or not isinstance(value, dict) or not value.keys() <= set(names):
        raise ValueError("`usage` is not a number of tokens each")
    return Usage(
        input_tokens=whole[0],
        output_tokens=whole[1],
        cached_input_tokens=whole[2],
        reasoning_tokens=whole[3],
    )


def _tool_calls(value: Json) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    made: list[ToolCall] = []
    for each in value if isinstance(value, list) else [None]:
        name = each.get("name") if isinstance(each, dict) else None
        arguments = each.get("arguments") if isinstance(each, dict) else None
        if not isinstance(name, str) or not isinstance(arguments, str):
            raise ValueError("`tool_calls` is not a list of names and arguments")
        made.append(ToolCall(name=name, arguments=arguments))
    return tuple(made)
