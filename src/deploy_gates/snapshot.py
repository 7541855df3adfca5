"""One config folder, read into a `Snapshot`: from the work tree or from a commit, by the same code."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from deploy_gates import documents
from deploy_gates.core import parsing
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import Case, CaseCheck, Comparison, Kind, ModelConfig, Snapshot
from deploy_gates.core.errors import Problem
from deploy_gates.documents import Document

LABELS = "judge.labels.jsonl"
"""Answers that people have judged, to compare the judge with."""

Reading: TypeAlias = "Callable[[str, int], tuple[str, Problem | None]]"
"""Path from the root and a bound in bytes, to the text or what is wrong with the file."""


def snapshot(config_file: str, reading: Reading) -> Snapshot:
    """Everything that can be known of the config in `config_file`; what is wrong is in its `problems`."""
    folder = posixpath.dirname(config_file)
    files = _Files(reading)
    document = _config_document(files, config_file)
    document = _inlined(document, files, folder)
    problems = list(document.problems)
    if document.value is not None:
        problems += documents.validate(document, "config")
    config = None if problems else parsing.config(document.value, posixpath.basename(folder), document.lines)
    cases_file = posixpath.join(folder, "cases.jsonl")
    cases, case_problems = _cases(files, cases_file, config.comparison if config else Comparison())
    _consumer_texts(files, folder, config)
    files.read(posixpath.join(folder, LABELS), documents.CASES_MAX_BYTES)
    return Snapshot(
        folder=folder,
        config_file=config_file,
        cases_file=cases_file,
        config=config,
        cases=cases,
        problems=tuple(sorted(problems, key=lambda each: (each.file, each.line))) + case_problems,
        texts=files.texts,
        cases_digest=hashlib.sha256(files.texts.get(cases_file, "").encode()).hexdigest(),
    )


@dataclass
class _Files:
    """Remembers every text that was read: what changed, and what may hold a secret, is asked of them."""

    reading: Reading
    texts: dict[str, str] = field(default_factory=dict)

    def read(self, file: str, max_bytes: int = documents.CONFIG_MAX_BYTES) -> tuple[str, Problem | None]:
        text, problem = self.reading(file, max_bytes)
        if problem is None:
            self.texts[file] = text
        return text, problem


def _config_document(files: _Files, file: str) -> Document:
    text, problem = files.read(file)
    if problem is not None:
        return Document(file=file, problems=(problem,))
    document = documents.parse_yaml(text, file)
    if document.problems or isinstance(document.value, dict):
        return document
    return replace(document, value=None, problems=(Problem(message="is not a mapping", file=file, line=1),))


# --- Referenced files ---------------------------------------------------------------------------


def _inlined(document: Document, files: _Files, folder: str) -> Document:
    """The document with each referenced file in place of its name, and without `x-` keys."""
    if not isinstance(document.value, dict):
        return document
    value = {key: each for key, each in document.value.items() if not key.startswith("x-")}
    value.pop("$schema", None)
    problems: list[Problem] = []

    def load(name: str, key: str) -> tuple[str, str] | None:
        path = posixpath.normpath(posixpath.join(folder, name))
        place = Problem(message="", file=document.file, line=document.line(key), key=key)
        if name.startswith("/") or path.startswith("../"):
            problems.append(replace(place, message=f"names {name}, which lies outside the repository"))
            return None
        text, problem = files.read(path)
        if problem is not None:
            problems.append(replace(place, message=f"names {path}, which {problem.message}"))
            return None
        return path, text

    def load_json(name: str, key: str) -> Json:
        loaded = load(name, key)
        if loaded is None:
            return {}
        path, text = loaded
        parsed = (
            documents.parse_yaml(text, path)
            if path.endswith((".yaml", ".yml"))
            else documents.parse_json(text, path)
        )
        problems.extend(parsed.problems)
        if not parsed.problems and not isinstance(parsed.value, dict):
            problems.append(Problem(message="is not a JSON object", file=path, line=1))
        return parsed.value if isinstance(parsed.value, dict) else {}

    output = value.get("output")
    if isinstance(output, str):
        value["output"] = {"schema": load_json(output, "output")}
    elif isinstance(output, dict) and isinstance(output.get("schema"), str):
        value["output"] = output | {"schema": load_json(str(output["schema"]), "output.schema")}
    golden = value.get("golden")
    if isinstance(golden, dict) and isinstance(golden.get("judge"), str):
        value["golden"] = golden | {"judge": load_json(str(golden["judge"]), "golden.judge")}
    messages = value.get("messages")
    if isinstance(messages, list):
        value["messages"] = [_with_content(each, at, load) for at, each in enumerate(messages)]
    return replace(document, value=value, problems=document.problems + tuple(problems))


def _with_content(message: Json, at: int, load: Callable[[str, str], tuple[str, str] | None]) -> Json:
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if not isinstance(content, dict) or not isinstance(content.get("file"), str):
        return message
    loaded = load(str(content["file"]), f"messages[{at}].content")
    return message | {"content": loaded[1].replace("\r\n", "\n") if loaded else ""}


def _consumer_texts(files: _Files, folder: str, config: ModelConfig | None) -> None:
    """Read the consumers that lie beside the config: a change to them is a change to what is promised."""
    for consumer in config.consumers if config else ():
        name = consumer.rpartition(":")[0]
        if name.endswith(".py"):
            files.read(posixpath.normpath(posixpath.join(folder, name)))


# --- The config ---------------------------------------------------------------------------------


# --- The cases ----------------------------------------------------------------------------------

_COMPARED_BY = ("exclude_paths", "ignore_order", "significant_digits", "ignore_string_case")


def _cases(files: _Files, file: str, comparison: Comparison) -> tuple[tuple[Case, ...], tuple[Problem, ...]]:
    text, problem = files.read(file, documents.CASES_MAX_BYTES)
    if problem is not None:
        return (), (problem,)
    cases: dict[str, Case] = {}
    problems: list[Problem] = []
    for line, document in documents.parse_json_lines(text, file):
        found = document.problems or documents.validate(document, "case", line=line)
        if found:
            problems += found
            continue
        case = _case(parsing.object_(document.value), line, comparison)
        if (twin := cases.get(case.id)) is not None:
            message = f"has the id `{case.id}`, which line {twin.line} has already"
            problems.append(Problem(message=message, file=file, line=line, hint="give it an id of its own"))
            continue
        cases[case.id] = case
    return tuple(cases.values()), tuple(problems)


def _case(raw: JsonObject, line: int, comparison: Comparison) -> Case:
    return Case(
        id=str(raw["id"]),
        inputs=parsing.object_(raw["inputs"]),
        expects="expected" in raw,
        expected=raw.get("expected"),
        comparison=parsing.comparison(raw, comparison) if any(key in raw for key in _COMPARED_BY) else None,
        checks=tuple(_check(parsing.object_(each)) for each in parsing.list_(raw.get("checks", []))),
        weight=parsing.number(raw.get("weight", 1)),
        tags=tuple(str(each) for each in parsing.list_(raw.get("tags", []))),
        cluster=str(raw.get("cluster", "")),
        must_pass=bool(raw.get("must_pass", False)),
        samples=int(parsing.number(raw.get("samples", 0))),
        line=line,
    )


def _check(raw: JsonObject) -> CaseCheck:
    return CaseCheck(
        kind=Kind(str(raw["kind"])), spec={key: value for key, value in raw.items() if key != "kind"}
    )
