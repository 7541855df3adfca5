"""Golden cases from what teams have: promptfoo's YAML and CSV, and the JSON Lines of OpenAI evals.

What has no counterpart here is left out and told, one line a kind; nothing is guessed.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy_gates import documents
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.errors import WorkspaceError

SIMILAR_DEFAULT = 0.75
"""promptfoo's own threshold where none is given."""


@dataclass(kw_only=True)
class Imported:
    """Cases as they are written, and what was left out."""

    cases: list[JsonObject] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, case: JsonObject, wanted: str, at: int) -> None:
        """Take a case under an id of its own; one that asks for nothing is no case."""
        if "expected" not in case and not case.get("checks"):
            self.left_out["cases that ask for nothing that can be carried over"] += 1
            return
        taken = {each["id"] for each in self.cases}
        base = re.sub(r"[^\w.+-]+", "-", wanted.lower()).strip("-")[:80] or f"case-{at:04}"
        name, again = base, 2
        while name in taken:
            name, again = f"{base}-{again}", again + 1
        self.cases.append({"id": name, **case})


def read(path: Path, variable: str = "input") -> Imported:
    """The cases in the file at `path`, told by its ending. `WorkspaceError` for what is neither.

    `variable` is what the text of an eval is called in the templates.
    """
    text, problem = documents.read(path, str(path), documents.CASES_MAX_BYTES)
    if problem is not None:
        raise WorkspaceError(str(problem))
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise WorkspaceError(f"{path} is none of {', '.join(READERS)}: nobody knows how to read it")
    made = Imported()
    reader(text, str(path), made, variable)
    if not (made.cases or made.left_out):
        raise WorkspaceError(f"{path} holds no case", hint="name the file that holds the tests themselves")
    return made


# --- promptfoo ----------------------------------------------------------------------------------


def _yaml(text: str, file: str, made: Imported, variable: str) -> None:
    document = documents.parse_yaml(text, file)
    if document.problems:
        raise WorkspaceError("\n".join(map(str, document.problems)))
    root = document.value
    listed = root.get("tests", []) if isinstance(root, dict) else root
    default = root.get("defaultTest", {}) if isinstance(root, dict) else {}
    if not isinstance(listed, list):
        raise WorkspaceError(f"{file} has no list of `tests`", hint="point at the file that holds them")
    for at, test in enumerate(listed, start=1):
        if isinstance(test, dict):
            _test(test, default if isinstance(default, dict) else {}, made, at)
        else:
            made.left_out["tests that are kept in another file"] += 1


def _test(test: JsonObject, default: JsonObject, made: Imported, at: int) -> None:
    inputs = {**_object(default.get("vars")), **_object(test.get("vars"))}
    case: JsonObject = {"inputs": inputs}
    checks: list[Json] = []
    for each in (*_list(default.get("assert")), *_list(test.get("assert"))):
        if isinstance(each, dict):
            _assertion(each, case, checks, made)
    _finish(case, checks, test.get("metadata"), str(test.get("description") or ""), made, at)


def _finish(case: JsonObject, checks: list[Json], metadata: Json, name: str, made: Imported, at: int) -> None:
    if checks:
        case["checks"] = checks
    tags = [str(each)[:60] for each in _list(_object(metadata).get("tags")) if isinstance(each, str) and each]
    if tags:
        case["tags"] = list[Json](tags)
    made.add(case, name, at)


def _assertion(raw: JsonObject, case: JsonObject, checks: list[Json], made: Imported) -> None:
    kind = str(raw.get("type", ""))
    if any("{{" in str(each) for each in (raw.get("value"),)):
        made.left_out["assertions with templates in them"] += 1
        return
    reading = ASSERTIONS.get(kind)
    carried = list(reading(raw)) if reading else []
    if not carried:
        made.left_out[f"assertions of the type {kind or '(none)'}"] += 1
    for each in carried:
        if "expected" in each and "expected" not in case:
            case["expected"] = each["expected"]
        elif "expected" in each:
            checks.append({"kind": "equals", "value": each["expected"]})
        else:
            checks.append(each)


def _texts(raw: JsonObject) -> list[str]:
    """The values of an assertion that may take several, as a list or with commas."""
    value = raw.get("value")
    given = value.split(",") if isinstance(value, str) else _list(value)
    return [str(each).strip() for each in given if str(each).strip()]


def _contains(kind: str, *, folds: bool) -> Callable[[JsonObject], Iterator[JsonObject]]:
    def reading(raw: JsonObject) -> Iterator[JsonObject]:
        if isinstance(raw.get("value"), str) and raw["value"]:
            yield {"kind": kind, "value": raw["value"], **({"ignore_case": True} if folds else {})}

    return reading


def _contains_all(*, folds: bool) -> Callable[[JsonObject], Iterator[JsonObject]]:
    def reading(raw: JsonObject) -> Iterator[JsonObject]:
        for each in _texts(raw):
            yield {"kind": "contains", "value": each, **({"ignore_case": True} if folds else {})}

    return reading


def _contains_any(*, folds: bool) -> Callable[[JsonObject], Iterator[JsonObject]]:
    def reading(raw: JsonObject) -> Iterator[JsonObject]:
        texts = [re.escape(each) for each in _texts(raw)]
        if texts:
            yield {"kind": "regex", "pattern": ("(?i)" if folds else "") + "|".join(texts)}

    return reading


def _equals(raw: JsonObject) -> Iterator[JsonObject]:
    if "value" in raw:
        yield {"expected": raw["value"]}


def _regex(raw: JsonObject) -> Iterator[JsonObject]:
    if isinstance(raw.get("value"), str) and raw["value"]:
        yield {"kind": "regex", "pattern": raw["value"]}


def _starts_with(raw: JsonObject) -> Iterator[JsonObject]:
    if isinstance(raw.get("value"), str) and raw["value"]:
        yield {"kind": "regex", "pattern": rf"\A{re.escape(str(raw['value']))}"}


def _is_json(raw: JsonObject) -> Iterator[JsonObject]:
    value = raw.get("value")
    if value is None or isinstance(value, dict):
        yield {"kind": "schema", "schema": value or {}}


def _rubric(raw: JsonObject) -> Iterator[JsonObject]:
    if isinstance(raw.get("value"), str) and raw["value"]:
        threshold = raw.get("threshold")
        yield {"kind": "judge", "rubric": raw["value"], "min": threshold if _is_share(threshold) else 0.5}


def _similar(raw: JsonObject) -> Iterator[JsonObject]:
    if isinstance(raw.get("value"), str) and raw["value"]:
        threshold = raw.get("threshold")
        least = threshold if _is_share(threshold) and threshold else SIMILAR_DEFAULT
        yield {"kind": "similarity", "reference": raw["value"], "min": least}


def _refusal(raw: JsonObject) -> Iterator[JsonObject]:
    yield {"kind": "refusal"}


def _is_share(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


ASSERTIONS: Mapping[str, Callable[[JsonObject], Iterator[JsonObject]]] = {
    "equals": _equals,
    "contains": _contains("contains", folds=False),
    "icontains": _contains("contains", folds=True),
    "not-contains": _contains("not_contains", folds=False),
    "not-icontains": _contains("not_contains", folds=True),
    "contains-all": _contains_all(folds=False),
    "icontains-all": _contains_all(folds=True),
    "contains-any": _contains_any(folds=False),
    "icontains-any": _contains_any(folds=True),
    "starts-with": _starts_with,
    "regex": _regex,
    "is-json": _is_json,
    "llm-rubric": _rubric,
    "similar": _similar,
    "is-refusal": _refusal,
}
"""What each of promptfoo's assertions is called here."""


def _csv(text: str, file: str, made: Imported, variable: str) -> None:
    """One row a test: columns are variables, `__expected` what must hold, as promptfoo writes it."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    for at, row in enumerate(rows, start=1):
        case: JsonObject = {"inputs": {}}
        checks: list[Json] = []
        inputs: JsonObject = {}
        for column, value in row.items():
            if column is None or value is None:
                raise WorkspaceError(f"{file}: row {at} has not as many columns as the first line names")
            if not column.startswith("__"):
                inputs[column] = value
            elif column.startswith("__expected") and value.strip():
                _assertion(_short(value.strip()), case, checks, made)
        case["inputs"] = inputs
        _finish(case, checks, None, row.get("__description") or "", made, at)


def _short(value: str) -> JsonObject:
    """`contains:refund`, `similar(0.8):hello`; without a known type it is what the answer equals."""
    found = re.fullmatch(r"([a-z-]+)(?:\(([\d.]+)\))?\s*:\s*(.*)", value, re.DOTALL)
    if found and found[1] == "grade":
        return {"type": "llm-rubric", "value": found[3]}
    if found and (
        found[1] in ASSERTIONS or found[1] in ("javascript", "python", "fn", "eval", "levenshtein")
    ):
        threshold = {"threshold": float(found[2])} if found[2] else {}
        return {"type": found[1], "value": found[3], **threshold}
    if value in ASSERTIONS and value in ("is-json", "is-refusal"):
        return {"type": value}
    return {"type": "equals", "value": value}


# --- OpenAI evals -------------------------------------------------------------------------------


def _evals(text: str, file: str, made: Imported, variable: str) -> None:
    """One sample a line: the last message of `input` is the variable, `ideal` what is expected."""
    for line, document in documents.parse_json_lines(text, file):
        raw = document.value
        if document.problems or not isinstance(raw, dict):
            raise WorkspaceError(f"{file}:{line} is no sample of an eval: it is not a JSON object")
        turns, ideal = raw.get("input", raw.get("messages")), raw.get("ideal")
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            content = turns[-1].get("content")
            for turn in turns[:-1]:
                role = turn.get("role") if isinstance(turn, dict) else None
                made.left_out[f"messages of the role {role}: the config has its own"] += 1
        else:
            content = turns
        if not isinstance(content, str):
            made.left_out["samples whose last message is no text"] += 1
            continue
        case: JsonObject = {"inputs": {variable: content}}
        if isinstance(ideal, list) and len(ideal) > 1:
            either = "|".join(re.escape(str(each)) for each in ideal)
            case["checks"] = [{"kind": "regex", "pattern": rf"\A\s*(?:{either})\s*\Z"}]
        elif ideal is not None:
            case["expected"] = ideal[0] if isinstance(ideal, list) and ideal else ideal
        made.add(case, str(raw.get("id") or ""), line)


def _object(value: Json) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def spelled(case: JsonObject) -> str:
    """A case as a line of `cases.jsonl`."""
    return json.dumps(case, ensure_ascii=False)


CODE = ("javascript", "python", "fn", "eval", "levenshtein")
"""Assertions that are code or have no counterpart: left out, and told."""
READERS: Mapping[str, Callable[[str, str, Imported, str], None]] = {
    ".yaml": _yaml,
    ".yml": _yaml,
    ".csv": _csv,
    ".jsonl": _evals,
}
