"""Files that people write, read with the line of every key: YAML, JSON, and JSON Lines.

Whatever is wrong comes back as `Problem`s, all of them at once; nothing here raises for bad input.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from deploy_gates.core.canonical import SAFE_INTEGER, Json, JsonObject
from deploy_gates.core.errors import Problem

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

Valid: TypeAlias = "Callable[[Any], bool]"

CONFIG_MAX_BYTES = 1 << 20
CASES_MAX_BYTES = 256 << 20
VALUES_MAX = 100_000
"""So many values may one document expand to: YAML aliases can name a billion in ten lines."""
DEPTH_MAX = 100
PROBLEMS_MAX = 50
"""More than these of one file help nobody."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A parsed file: its value if it could be read, on which line each key stands, and what is wrong."""

    file: str
    value: Json = None
    lines: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def line(self, key: str) -> int:
        """The line of `key`, or of the nearest key above it that has one."""
        while key and key not in self.lines:
            key = parent(key)
        return self.lines.get(key, 0)


def join(path: Iterable[str | int]) -> str:
    """A place in a document, as people write it: `messages[0].content`."""
    key = ""
    for part in path:
        if isinstance(part, int):
            key += f"[{part}]"
        else:
            key += f".{part}" if key else part
    return key


def parent(key: str) -> str:
    """The place above: `messages[0].content` → `messages[0]` → `messages` → ``."""
    cut = max(key.rfind("."), key.rfind("["))
    return key[:cut] if cut > 0 else ""


def decode(raw: bytes, file: str, max_bytes: int) -> tuple[str, Problem | None]:
    """The text of a file: UTF-8, with or without a byte-order mark, of a bounded size."""
    if len(raw) > max_bytes:
        return "", _too_large(len(raw), file, max_bytes)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return "", Problem(
            message=f"is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}",
            file=file,
            line=line,
            hint="save the file as UTF-8",
        )
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        return "", Problem(message="holds a NUL byte, so it is no text file", file=file, line=line)
    return text, None


def read(path: Path, file: str, max_bytes: int) -> tuple[str, Problem | None]:
    """`decode` what stands in `path`; `file` is how people call it."""
    try:
        if (size := path.stat().st_size) > max_bytes:
            return "", _too_large(size, file, max_bytes)
        raw = path.read_bytes()
    except OSError as error:
        return "", Problem(message=f"cannot be read: {error.strerror or error}", file=file)
    return decode(raw, file, max_bytes)


def _too_large(size: int, file: str, max_bytes: int) -> Problem:
    return Problem(
        message=f"is {size / (1 << 20):,.1f} MiB; at most {max_bytes / (1 << 20):,.0f} MiB are read",
        file=file,
    )


# --- YAML 1.2 -----------------------------------------------------------------------------------


def parse_yaml(text: str, file: str) -> Document:
    """YAML 1.2 (and so JSON), with anchors and merge keys resolved and duplicate keys refused."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="rt", pure=True)
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        return Document(file=file, problems=(Problem(message=_yaml_words(error), file=file, line=line),))
    except (YAMLError, ValueError, RecursionError) as error:
        return Document(file=file, problems=(Problem(message=f"is not YAML: {error}", file=file),))
    if node is None:
        return Document(file=file, problems=(Problem(message="is empty", file=file),))
    building = _Building(file)
    try:
        value = building.value(node, ())
    except _TooMuch as error:
        return Document(file=file, problems=(Problem(message=str(error), file=file),))
    return Document(file=file, value=value, lines=building.lines, problems=tuple(building.problems))


def _yaml_words(error: Any) -> str:
    said = " ".join(str(part).strip() for part in (error.context, error.problem) if part)
    return f"is not YAML: {said}"


class _TooMuch(Exception):
    pass


_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL_OR_HEX = re.compile(r"0(o[0-7]+|x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_PLAIN: dict[str, Json] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "null", "bool", "int", "float", "merge", "timestamp", "value")
}
"""What plain YAML resolves to; every other tag would make an object of something."""


class _Building:
    """Makes plain values of YAML nodes, by the core schema of YAML 1.2, and notes where each key stands."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self._values = 0

    def value(self, node: Any, path: tuple[str | int, ...]) -> Json:
        self._values += 1
        if self._values > VALUES_MAX:
            raise _TooMuch(f"expands to more than {VALUES_MAX:,} values; are there aliases of aliases?")
        if len(path) > DEPTH_MAX:
            raise _TooMuch(f"is nested more than {DEPTH_MAX} deep, or an alias contains itself")
        self.lines.setdefault(join(path), node.start_mark.line + 1)
        if node.tag is not None and str(node.tag) not in _TAGS:
            self._problem(node, path, f"has the tag {node.tag}", "write a plain value")
        if node.id == "sequence":
            return [self.value(each, (*path, at)) for at, each in enumerate(node.value)]
        if node.id == "mapping":
            return self._mapping(node, path)
        return self._scalar(node, path)

    def _mapping(self, node: Any, path: tuple[str | int, ...]) -> Json:
        made: JsonObject = {}
        merged: JsonObject = {}
        for key_node, value_node in node.value:
            if key_node.id != "scalar":
                self._problem(key_node, path, "has a key that is not a string")
                continue
            key = str(key_node.value)
            if key == "<<" and key_node.style is None:
                merged = self._merged(value_node, path) | merged
                continue
            if key in made:
                self._problem(key_node, (*path, key), "stands here twice", "keep one of the two")
                continue
            self.lines[join((*path, key))] = key_node.start_mark.line + 1
            made[key] = self.value(value_node, (*path, key))
        return merged | made

    def _merged(self, node: Any, path: tuple[str | int, ...]) -> JsonObject:
        parts = list(node.value) if node.id == "sequence" else [node]
        merged: JsonObject = {}
        for part in parts:
            value = self.value(part, path)
            if not isinstance(value, dict):
                self._problem(part, (*path, "<<"), "merges something that is not a mapping")
            else:
                merged = value | merged
        return merged

    def _scalar(self, node: Any, path: tuple[str | int, ...]) -> Json:
        text = str(node.value)
        if node.style is not None:
            return text
        if text in _PLAIN:
            return _PLAIN[text]
        if _OCTAL_OR_HEX.match(text):
            return int(text, 0)
        if _INT.match(text):
            return self._number(node, path, int(text[:400]))
        if _FLOAT.match(text):
            return self._number(node, path, float(text))
        if text.lower().lstrip("+-") in (".inf", ".nan"):
            self._problem(node, path, f"is {text}, which JSON cannot say")
            return None
        return text

    def _number(self, node: Any, path: tuple[str | int, ...], value: float) -> Json:
        if isinstance(value, int) and abs(value) > SAFE_INTEGER:
            self._problem(
                node, path, "is larger than 2**53, which JSON cannot say exactly", "put it in quotes"
            )
            return None
        if not math.isfinite(value):
            self._problem(node, path, "is larger than any number JSON can say")
            return None
        return value

    def _problem(self, node: Any, path: tuple[str | int, ...], message: str, hint: str = "") -> None:
        self.problems.append(
            Problem(message=message, file=self.file, line=node.start_mark.line + 1, key=join(path), hint=hint)
        )


# --- JSON and JSON Lines ------------------------------------------------------------------------


class _Refused(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, Json]]) -> JsonObject:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"has the key `{twice}` twice in one object")
    return made


def _no_constant(name: str) -> Json:
    raise _Refused(f"holds {name}, which is not JSON")


def _safe_int(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > SAFE_INTEGER:
        raise _Refused("holds an integer larger than 2**53, which JSON cannot say exactly")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"holds {text}, larger than any number JSON can say")
    return value


def parse_json(text: str, file: str, *, first_line: int = 1) -> Document:
    """One JSON value; duplicate keys, NaN, and inexact integers are refused."""
    try:
        value: Json = _strict().decode(text)
    except json.JSONDecodeError as error:
        message = f"is not JSON: {error.msg} at column {error.colno}"
        return Document(
            file=file, problems=(Problem(message=message, file=file, line=first_line + error.lineno - 1),)
        )
    except (_Refused, RecursionError) as error:
        said = str(error) if isinstance(error, _Refused) else "is nested too deep"
        return Document(file=file, problems=(Problem(message=said, file=file, line=first_line),))
    return Document(file=file, value=value)


@functools.cache
def _strict() -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_no_duplicates,
        parse_constant=_no_constant,
        parse_int=_safe_int,
        parse_float=_finite,
    )


def parse_json_lines(text: str, file: str) -> Iterator[tuple[int, Document]]:
    """Each line that is not blank, with its number. Windows line endings are fine."""
    for number, line in enumerate(text.split("\n"), start=1):
        if stripped := line.strip():
            yield number, parse_json(stripped, file, first_line=number)


# --- JSON Schema, told to people ----------------------------------------------------------------


@functools.cache
def _validator(name: str) -> Validator:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema(name))


@functools.cache
def _quick_of(name: str) -> Valid | None:
    return quick(schema(name))


def quick(schema: JsonObject) -> Valid | None:
    """Whether a value is valid under `schema`, by jsonschema-rs where that is installed; `None` elsewhere.

    It is fifty times as fast, and as strict or stricter: who hears no asks jsonschema, which also says why.
    """
    try:
        import jsonschema_rs

        made = jsonschema_rs.Draft202012Validator(schema, validate_formats=True, retriever=_fetch_nothing)
    except Exception:  # noqa: BLE001  # not installed, or a schema that it cannot take
        return None
    return made.is_valid


def _fetch_nothing(uri: str) -> Any:
    raise ValueError(f"{uri} is not in the schema, and nothing is fetched")


@functools.cache
def schema(name: str) -> JsonObject:
    """The JSON Schema of that name which ships with the package: `config`, `case`, or `settings`."""
    text = resources.files("deploy_gates").joinpath("data", f"{name}.schema.json").read_text("utf-8")
    loaded: JsonObject = json.loads(text)
    return loaded


def validate(document: Document, name: str, *, line: int = 0, prefix: str = "") -> tuple[Problem, ...]:
    """What the schema `name` says against the document, in people's words.

    `line` stands for every key of a document that is a single line; `prefix` goes before each key.
    """
    is_valid = _quick_of(name)
    if is_valid is not None and is_valid(document.value):
        return ()
    validator = _validator(name)
    found = []
    for error in validator.iter_errors(document.value):
        for leaf in _leaves(error):
            for key, message, hint in _words(leaf):
                found.append(
                    Problem(
                        message=message,
                        file=document.file,
                        line=line or document.line(key),
                        key=prefix + key,
                        hint=hint,
                    )
                )
                if len(found) >= PROBLEMS_MAX:
                    return tuple(found)
    return tuple(sorted(found, key=lambda problem: problem.line))


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    """The errors that say something: of alternatives, those of the one the author most likely meant."""
    if error.validator not in ("oneOf", "anyOf", "allOf", "if", "then") or not error.context:
        yield error
        return
    branches: dict[object, list[ValidationError]] = {}
    for each in error.context:
        branches.setdefault(each.schema_path[0], []).append(each)
    meant = min(
        branches.values(),
        key=lambda errors: (
            any(each.validator == "type" and each.relative_path == error.relative_path for each in errors)
            or any(each.validator in ("type", "const") and not each.relative_path for each in errors),
            len(errors),
        ),
    )
    for each in meant:
        yield from _leaves(each)


def _words(error: ValidationError) -> Iterator[tuple[str, str, str]]:
    """Key, sentence, and hint of one error."""
    path = list(error.absolute_path)
    key = join(path)
    rule, value = error.validator, error.instance
    limit: Any = error.validator_value
    if rule == "additionalProperties" and isinstance(value, dict):
        known = sorted(error.schema.get("properties", {})) if isinstance(error.schema, Mapping) else []
        for extra in sorted(set(value) - set(known)):
            yield join([*path, extra]), "is not known here", nearest(extra, known)
        return
    if rule == "required" and isinstance(value, dict) and isinstance(limit, list):
        missing = error.message.split("'")[1]
        yield key, f"lacks `{missing}`", ""
    elif rule == "dependentRequired":
        yield key, error.message.replace("'", "`"), ""
    elif rule == "type":
        yield key, f"is {_kind(value)}, and must be {_type_words(limit)}", ""
    elif rule in ("enum", "const"):
        allowed = limit if rule == "enum" else [limit]
        hint = nearest(value, [each for each in allowed if isinstance(each, str)])
        yield key, f"is {_short(value)}, and must be {_choices(allowed)}", hint
    elif rule == "pattern":
        like = error.schema.get("examples") if isinstance(error.schema, Mapping) else None
        said = f"and must look like `{like[0]}`" if like else f"which does not match {limit}"
        yield key, f"is {_short(value)}, {said}", ""
    elif rule in ("minimum", "exclusiveMinimum"):
        more = "at least" if rule == "minimum" else "more than"
        yield key, f"is {_short(value)}, and must be {more} {limit}", ""
    elif rule in ("maximum", "exclusiveMaximum"):
        less = "at most" if rule == "maximum" else "less than"
        yield key, f"is {_short(value)}, and must be {less} {limit}", ""
    elif rule in ("minItems", "minLength") and limit == 1:
        yield key, "is empty", ""
    elif rule == "not":
        yield key, "does not belong here", "it is made from `model`, `messages`, `output` and `tools`"
    else:
        yield key, _clip(error.message), ""


def nearest(word: object, known: Sequence[str]) -> str:
    """`did you mean …` for a word that nobody knows."""
    if not isinstance(word, str):
        return ""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    if known and len(known) <= 12:
        return "known are " + ", ".join(f"`{each}`" for each in known)
    return ""


def _kind(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return f"the string {_short(value)}"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a list" if isinstance(value, list) else "a mapping"


_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "a string",
    "number": "a number",
    "integer": "an integer",
    "boolean": "true or false",
    "null": "null",
}


def _type_words(limit: object) -> str:
    names = limit if isinstance(limit, list) else [limit]
    return " or ".join(_TYPES.get(str(name), str(name)) for name in names)


def _choices(allowed: Sequence[object]) -> str:
    if len(allowed) == 1:
        return _short(allowed[0])
    return "one of " + ", ".join(_short(each) for each in allowed)


def _short(value: object) -> str:
    """A value as messages show it: what may be a secret in the wrong place shows its beginning only."""
    if isinstance(value, str) and len(value) >= 20 and " " not in value:
        return f'"{value[:4]}…", {len(value)} characters long'
    return _clip(json.dumps(value, ensure_ascii=False), 60)


def _clip(text: str, width: int = 200) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
