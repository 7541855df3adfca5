"""What was promised to those who read the answers and to those who make the calls, and whether it is kept."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.config import ConfigChange, ModelConfig
from deploy_gates.core.contract import (
    CALLED,
    CHANGED,
    READ,
    Break,
    BreakKind,
    breaks,
    is_at,
    narrowed,
    speaks_of,
)
from deploy_gates.core.instances import instances
from deploy_gates.gates.findings import Findings
from deploy_gates.gates.fitting import is_usable
from deploy_gates.gates.loading import NotLoaded, load, told
from deploy_gates.gates.matching import Matcher

if TYPE_CHECKING:
    from jsonschema.protocols import Validator
    from pydantic import TypeAdapter

INPUTS = "$inputs"
"""Where the inputs lie, in `allow_breaking`: `$inputs.locale`."""
ALLOW = "if all who use it are ready, name the place in `output.allow_breaking`"
REFUSALS_MAX = 5
SHOWN_CHARS = 60


# --- Those who read the answers -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A consumer of the answers, loaded; or why it could not be."""

    name: str
    key: str
    """Where the config names it."""
    adapter: TypeAdapter[object] | None = None
    schema: JsonObject | None = None
    """What it takes; `None` where that cannot be said as a schema."""
    problem: str = ""


def readers(config: ModelConfig, *, folder: Path, root: Path) -> tuple[Reader, ...]:
    """The consumers that the config names."""
    return tuple(
        _reader(name, f"consumers[{at}]", folder=folder, root=root)
        for at, name in enumerate(config.consumers)
    )


def _reader(name: str, key: str, *, folder: Path, root: Path) -> Reader:
    from pydantic import TypeAdapter

    try:
        found = load(name, folder=folder, root=root)
        if inspect.isroutine(found) or inspect.ismodule(found):
            raise NotLoaded("is a function or a module, and no type")
        adapter: TypeAdapter[object] = TypeAdapter(cast("type[object]", found))
    except NotLoaded as error:
        return Reader(name=name, key=key, problem=str(error))
    except Exception as error:  # noqa: BLE001  # what is no type can fail in any way
        return Reader(name=name, key=key, problem=f"is no type that reads JSON: {told(error)}")
    try:
        return Reader(name=name, key=key, adapter=adapter, schema=adapter.json_schema())
    except Exception:  # noqa: BLE001  # the team's types may make their own schema
        return Reader(name=name, key=key, adapter=adapter)


def consumed(findings: Findings, config: ModelConfig, consumers: Sequence[Reader]) -> None:
    """Every consumer reads every answer that the output schema allows."""
    for reader in consumers:
        if reader.adapter is None:
            findings.miss(f"{reader.name} {reader.problem}", key=reader.key)
        elif config.output is None:
            findings.miss(
                f"{reader.name} reads answers of a shape, and the config promises none",
                key=reader.key,
                hint="declare the `output` schema",
            )
        elif not is_usable(config.output.schema):
            findings.doubt(
                f"{reader.name} cannot be compared with a schema that is not valid", key=reader.key
            )
        else:
            _read(findings, config, config.output.schema, reader, reader.adapter)


def _read(
    findings: Findings, config: ModelConfig, schema: JsonObject, reader: Reader, adapter: TypeAdapter[object]
) -> None:
    found = () if reader.schema is None else breaks(schema, reader.schema)
    for each in found:
        is_known = each.kind is not BreakKind.UNKNOWN
        (findings.miss if is_known else findings.doubt)(each.told(READ, reader.name), key=reader.key)
    for place, why in islice(
        _refused(schema, Matcher(config).validator(schema), reader.name, adapter).items(), REFUSALS_MAX
    ):
        if not any(is_at(place, each.path) or is_at(each.path, place) for each in found):
            findings.miss(f"`{place}` {why}", key=reader.key)
    if reader.schema is None:
        findings.doubt(
            f"{reader.name} cannot be compared with the output schema: it cannot be said as a schema",
            key=reader.key,
            hint="name a Pydantic model, a dataclass, or a TypedDict",
        )


def _refused(
    schema: JsonObject, validator: Validator, reader: str, adapter: TypeAdapter[object]
) -> dict[str, str]:
    """Where the consumer's own validators refuse an answer that the schema allows, and what they say."""
    from pydantic import ValidationError

    refused: dict[str, str] = {}
    for answer in filter(validator.is_valid, instances(schema)):
        try:
            adapter.validate_json(json.dumps(answer))
        except ValidationError as error:
            for each in error.errors(include_url=False):
                given = json.dumps(each["input"], default=repr, ensure_ascii=False)[:SHOWN_CHARS]
                refused.setdefault(
                    _place(each["loc"]), f"may be {given}, which {reader} refuses: {each['msg']}"
                )
        except Exception as error:  # noqa: BLE001  # the team's validators may raise anything
            refused.setdefault("$", f"may be an answer on which {reader} raises {told(error)}")
    return refused


def _place(location: Iterable[str | int]) -> str:
    return "$" + "".join("[]" if isinstance(step, int) else f".{step}" for step in location)


# --- What a change breaks -----------------------------------------------------------------------


def compatible(
    findings: Findings, change: ConfigChange, config: ModelConfig, consumers: Sequence[Reader]
) -> None:
    """What the baseline promised still holds: of the answers, and of the inputs it takes."""
    baseline = change.baseline.config if change.baseline else None
    allowed = [each.replace("[*]", "[]") for each in config.output.allow_breaking] if config.output else []
    if baseline is None:
        tell = findings.note if "$" in allowed else findings.doubt
        tell(
            f"the baseline ({change.base or 'the base'}) cannot be read, so nobody knows what it promised",
            hint="compare with a commit that can be read, by --gate-base=REF, "
            "or say `allow_breaking: [$]` in `output` if nothing was promised",
        )
        return
    used = set()
    for found in (*_answers_broken(findings, baseline, config), *_inputs_broken(baseline, config)):
        by = [path for path in allowed if is_at(found.path, path)]
        used |= set(by)
        words = CALLED if found.path.startswith(INPUTS) else CHANGED
        said = found.told(words) + _read_by(found.path, consumers)
        at = findings.line("inputs" if words is CALLED else "output.schema")
        if by:
            findings.note(f"{said}; allowed by `output.allow_breaking`", line=at)
        elif found.kind is BreakKind.UNKNOWN:
            findings.doubt(said, line=at, hint=ALLOW)
        else:
            findings.miss(said, line=at, hint=ALLOW)
    for path in sorted(set(allowed) - used - {"$"}):
        findings.note(f"`{path}` is allowed to break and does not", key="output.allow_breaking")


def _answers_broken(findings: Findings, baseline: ModelConfig, config: ModelConfig) -> Iterator[Break]:
    """What may be otherwise in the answers, and what is no longer in them."""
    if baseline.output is None:
        if config.output is not None:
            findings.note("answers were text and are JSON now", key="output")
        return
    if config.output is None:
        findings.miss(
            "is gone: answers were JSON and may now be any text",
            key="output",
            hint="put it back, or give what answers in text a config of its own",
        )
        return
    if baseline.output.strict and not config.output.strict:
        findings.note("is no longer strict: answers may leave the schema", key="output.strict")
    new, old = config.output.schema, baseline.output.schema
    broken = breaks(new, old)
    for each in broken:
        if each.kind is BreakKind.EXTRA:
            # Strict schemas must be closed: that is no promise to readers. Those declared are asked.
            findings.note(f"`{each.path}` is new", key="output")
        else:
            yield each
    retold = {each.path for each in broken if each.kind in _GONE_TOO}
    yield from (each for each in narrowed(new, old) if each.path not in retold)


_GONE_TOO = (BreakKind.TYPE, BreakKind.MISSING, BreakKind.GONE)
"""Where one of these is told, what is no longer given goes without saying."""


def _inputs_broken(baseline: ModelConfig, config: ModelConfig) -> Iterator[Break]:
    """What callers of the baseline may send and what is not taken any more."""
    for each in breaks(baseline.inputs, config.inputs):
        yield replace(each, path=INPUTS + each.path.removeprefix("$"))


def _read_by(path: str, consumers: Sequence[Reader]) -> str:
    names = [each.name for each in consumers if each.schema is not None and speaks_of(each.schema, path)]
    return f"; read by {', '.join(names)}" if names else ""
