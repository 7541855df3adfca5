"""The model configuration, its golden cases, and what a change did to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from deploy_gates.core.canonical import Json, JsonObject, digest
from deploy_gates.core.errors import Problem
from deploy_gates.core.question import Answer, Api

ENVIRONMENTS = ("development", "staging", "production")
"""In the order in which a release travels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of the prompt; every string in `content` is a template."""

    role: str
    content: Json
    name: str = ""
    extra: JsonObject = field(default_factory=dict)
    """`tool_calls` and `tool_call_id` of few-shot turns that use tools."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The shape every answer must have."""

    name: str
    schema: JsonObject
    strict: bool = True
    allow_breaking: tuple[str, ...] = ()
    """Paths at which a change may break consumers, because somebody said so: `$.category`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How `expected` is compared with the answer, by deepdiff's own words."""

    exclude_paths: tuple[str, ...] = ()
    ignore_order: bool = False
    significant_digits: int | None = None
    ignore_string_case: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the config may use, at most. `None` is no limit declared."""

    context_window: int | None = None
    cost_per_request_nanousd: int | None = None
    monthly_budget_nanousd: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """How many tokens a request has, as declared: half of them at most `p50`, 95 % at most `p95`."""

    p50: int
    p95: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What production sends."""

    requests_per_month: int | None = None
    input_tokens: Profile | None = None
    output_tokens: Profile | None = None
    cached_input_share: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Where a config is served: an endpoint, the name of its key, and how long a call may take."""

    name: str
    base_url: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    timeout_s: float = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """All that decides what a model call does and costs."""

    name: str
    document: JsonObject
    """The whole configuration, referenced files inlined; what the digest is taken of."""
    model: str
    api: Api
    messages: tuple[Message, ...]
    inputs: JsonObject
    """JSON Schema of the template's variables."""
    parameters: JsonObject
    output: Output | None = None
    tools: tuple[JsonObject, ...] = ()
    consumers: tuple[str, ...] = ()
    comparison: Comparison = Comparison()
    limits: Limits = Limits()
    traffic: Traffic = Traffic()
    environments: tuple[Environment, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    """On which line of the file a key stands: `parameters.temperature` → 31."""

    @property
    def digest(self) -> str:
        return digest(self.document)

    @property
    def max_output_tokens(self) -> int | None:
        """The declared bound on the answer, whatever the protocol calls it."""
        for key in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
            value = self.parameters.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    def environment(self, name: str) -> Environment:
        """The environment of that name; one with defaults if the config does not declare it."""
        return next((each for each in self.environments if each.name == name), Environment(name=name))


class Kind(StrEnum):
    """What a golden check looks at."""

    SCHEMA = "schema"
    EQUALS = "equals"
    CONTAINS = "contains"
    NOT_CONTAINS = "not_contains"
    REGEX = "regex"
    RANGE = "range"
    CHOICE = "choice"
    TOOL_CALL = "tool_call"
    REFUSAL = "refusal"
    CALLABLE = "callable"
    JUDGE = "judge"
    SIMILARITY = "similarity"


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseCheck:
    """One thing that must hold of an answer: a kind and what that kind needs to know."""

    kind: Kind
    spec: JsonObject
    """The check as written, without its kind."""


_NOTHING: Json = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One golden input, and what must hold of the answer."""

    id: str
    inputs: JsonObject
    expects: bool = False
    """Whether `expected` is given: `null` can be an expectation too."""
    expected: Json = _NOTHING
    comparison: Comparison | None = None
    """Overrides of the config's comparison, already merged with it; `None` where the case has none."""
    checks: tuple[CaseCheck, ...] = ()
    weight: float = 1.0
    tags: tuple[str, ...] = ()
    cluster: str = ""
    must_pass: bool = False
    samples: int = 0
    """How often it is asked; 0: as the policy says."""
    line: int = 0

    @property
    def is_smoke(self) -> bool:
        return "smoke" in self.tags


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """One config folder at one moment: what could be read of it, and what was wrong."""

    folder: str
    """Relative to the repository's root, with forward slashes: `golden/ticket-triage`."""
    config_file: str
    cases_file: str
    config: ModelConfig | None
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The files as they are, by path: for what must be looked for in the text itself."""
    cases_digest: str = ""

    @property
    def name(self) -> str:
        return self.folder.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldChange:
    """One field that differs, in human words: what was, what is."""

    key: str
    baseline: str
    candidate: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigChange:
    """A baseline, a candidate, and each field that differs."""

    name: str
    baseline: Snapshot | None
    """`None`: the config is new."""
    candidate: Snapshot
    fields: tuple[FieldChange, ...] = ()
    base: str = ""
    """What it is compared with, for people: `main`, `3f9c2e1`."""
    base_commit: str = ""
    """The commit the baseline was read from."""
    renamed_from: str = ""
    recordings: Mapping[str, Answer] = field(default_factory=dict, repr=False)
    """Recorded answers by the key of their question."""
