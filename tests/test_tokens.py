"""Token counts: equal to tiktoken's, kept between runs, and honest about what is only estimated."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken_ext.openai_public
from hypothesis import given
from hypothesis import strategies as st

from deploy_gates import prompt, tokens
from deploy_gates.core.canonical import Json
from deploy_gates.core.config import Message
from deploy_gates.core.question import Api, question
from deploy_gates.testing import TICKET_SCHEMA, a_config
from deploy_gates.tokens import ENCODINGS, Tokenizer, estimate_input, worst_case

TEXTS = (
    "",
    " ",
    "hello world",
    "Sort the ticket #4821: REFUND, please!\r\n\r\n  Thanks,\tAda's team'll know   ",
    "退款请求：三十天后。ありがとうございます。",
    "Привет, мир! مرحبا بالعالم नमस्ते दुनिया",
    "🤷🏽‍♀️👩‍👩‍👧‍👦 e\u0301 \u200b\u2028 \x00\x7f",
    '{"category":"refund","reason":"30 days","amount":12345.678}',
    "<|endoftext|><|im_start|>system<|im_sep|>",
    "def f(x):\n    return x ** 2  # squares\n\n\n",
    "aB" * 400,
    "=" * 3000,
    " " * 3000 + "x",
    "abcdefghij" * 300,
    "\ud83d half a pair",
)


def words(encoding: str, text: str) -> int:
    return len(text.split())


@pytest.fixture(params=sorted(ENCODINGS))
def encoding(request: pytest.FixtureRequest) -> str:
    name = request.param
    assert isinstance(name, str)
    return name


# --- Text ---------------------------------------------------------------------------------------


def test_the_patterns_are_those_of_tiktoken(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", lambda *_, **__: {b"a": 0})

    theirs = tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS[encoding]()

    assert ENCODINGS[encoding].pattern == theirs["pat_str"]


def test_the_vocabularies_are_those_tiktoken_would_fetch(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []
    monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", _remembering(wanted))
    tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS[encoding]()

    ours = b"".join(
        b"%b %d\n" % (token, rank)
        for rank, token in enumerate(tokens._vocabulary(ENCODINGS[encoding].vocabulary))
    )

    assert [hashlib.sha256(ours).hexdigest()] == wanted


def _remembering(wanted: list[str]) -> Callable[..., dict[bytes, int]]:
    def load(url: str, expected_hash: str) -> dict[bytes, int]:
        wanted.append(expected_hash)
        return {}

    return load


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_text_has_as_many_tokens_as_tiktoken_says(encoding: str, text: str) -> None:
    expected = len(tokens.reference(encoding).encode_ordinary(text))

    assert tokens.counter(encoding)(text) == expected


@given(st.text(max_size=300))
def test_any_text_has_as_many_tokens_as_tiktoken_says(text: str) -> None:
    for name in ("o200k_base", "cl100k_base"):
        expected = len(tokens.reference(name).encode_ordinary(text))

        assert tokens.counter(name)(text) == expected, name


def test_source_code_of_a_hundred_thousand_characters_has_as_many_tokens_as_tiktoken_says() -> None:
    text = Path(subprocess.__file__).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    random.Random(7).shuffle(lines)
    text += "".join(lines)

    assert len(text) > 100_000
    for name in ("o200k_base", "cl100k_base"):
        assert tokens.counter(name)(text) == len(tokens.reference(name).encode_ordinary(text)), name


def test_counting_touches_neither_the_network_nor_the_environment_nor_a_cache_folder(tmp_path: Path) -> None:
    script = (
        "import os, socket, sys\n"
        "before = dict(os.environ)\n"
        "def refused(*_): raise OSError('no network here')\n"
        "socket.getaddrinfo = socket.socket.connect = refused\n"
        "from deploy_gates import tokens\n"
        "print(tokens.Tokenizer()('o200k_base', 'hello world'), 'tiktoken' in sys.modules)\n"
        "print(tokens.Tokenizer()('cl100k_base', '=' * 999))\n"
        "print(dict(os.environ) == before)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": "", "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines() == ["2 False", "17", "True"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_never_breaks_is_counted_without_quadratic_patience() -> None:
    text = "x" * 1_000_000

    assert tokens.counter("o200k_base")(text) == len(tokens.reference("o200k_base").encode_ordinary(text))


# --- Counts that are kept -----------------------------------------------------------------------


def test_kept_counts_spare_the_next_run_the_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Tokenizer(tmp_path)
    first("o200k_base", "hello world")
    first.save()
    monkeypatch.setattr(tokens, "counter", _never)

    second = Tokenizer(tmp_path)

    assert second("o200k_base", "hello world") == 2
    with pytest.raises(AssertionError, match="loaded"):
        second("o200k_base", "something else")
    with pytest.raises(AssertionError, match="loaded"):
        second("cl100k_base", "hello world")


def _never(encoding: str) -> Callable[[str], int]:
    raise AssertionError("a vocabulary was loaded")


def test_two_runs_at_once_keep_what_both_have_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Tokenizer(tmp_path), Tokenizer(tmp_path)
    one("o200k_base", "one")
    other("o200k_base", "the other")

    one.save()
    other.save()

    monkeypatch.setattr(tokens, "counter", _never)
    third = Tokenizer(tmp_path)
    assert (third("o200k_base", "one"), third("o200k_base", "the other")) == (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b'{"o200k_base', b"[1]", b"\xff\xfe", b'{"o200k_base %s": "2"}', b'{"o200k_base %s": -1}', b"null"],
)
def test_a_file_that_is_torn_or_not_ours_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    key = hashlib.sha256(b"hello world").hexdigest()[:32].encode()
    (tmp_path / "tokens.json").write_bytes(content.replace(b"%s", key))
    tokenizer = Tokenizer(tmp_path)

    count = tokenizer("o200k_base", "hello world")
    tokenizer.save()

    assert count == 2
    assert list(json.loads((tmp_path / "tokens.json").read_bytes()).values()) == [2]


def test_counts_that_cannot_be_kept_are_counted_again(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    tokenizer = Tokenizer(tmp_path / "state")

    count = tokenizer("o200k_base", "hello world")
    tokenizer.save()

    assert count == 2
    assert (tmp_path / "state").read_text() == "a file where the folder should be"


def test_the_file_stays_bounded_and_keeps_what_was_used_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "COUNTS_MAX", 3)
    for generation in ("a", "b"):
        tokenizer = Tokenizer(tmp_path)
        for number in range(2):
            tokenizer("o200k_base", f"{generation}{number}")
        tokenizer.save()

    kept = Tokenizer(tmp_path)._kept

    newest = [f"o200k_base {hashlib.sha256(text).hexdigest()[:32]}" for text in (b"b0", b"b1")]
    assert len(kept) == 3
    assert set(newest) <= set(kept)


def test_nothing_is_written_where_nothing_new_was_counted(tmp_path: Path) -> None:
    Tokenizer(tmp_path).save()

    assert list(tmp_path.iterdir()) == []


# --- Requests -----------------------------------------------------------------------------------


def test_plain_messages_are_counted_as_openai_published() -> None:
    body: dict[str, Json] = {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "be brief please"},
            {"role": "user", "name": "ada", "content": "hello there"},
        ],
    }

    estimate = estimate_input(question(Api.CHAT, body), words, encoding="o200k_base")

    assert estimate.tokens == (3 + 1 + 3) + (3 + 1 + 1 + 1 + 2) + 3
    assert estimate.exact


def test_a_request_that_was_counted_before_is_estimated_for_whoever_asks_now() -> None:
    made = question(
        Api.CHAT, {"model": "gpt-4o", "messages": [{"role": "user", "content": "退款请求：三十天后"}]}
    )
    tokenizer = Tokenizer()

    first = estimate_input(made, tokenizer, encoding="o200k_base")
    assumed = estimate_input(made, tokenizer, encoding="o200k_base", encoding_is_exact=False)
    older = estimate_input(made, tokenizer, encoding="cl100k_base")

    assert assumed.tokens == first.tokens
    assert first.exact
    assert assumed.notes == ("gpt-4o's own tokenizer is not published: counted with o200k_base",)
    assert older == estimate_input(made, Tokenizer(), encoding="cl100k_base")
    assert older.tokens != first.tokens


def test_the_cookbooks_own_example_has_the_tokens_the_api_billed() -> None:
    """From OpenAI's cookbook: `num_tokens_from_messages` and the API agree on 124 for gpt-4o."""
    pairs = [
        (
            "system",
            "",
            "You are a helpful, pattern-following assistant that translates "
            "corporate jargon into plain English.",
        ),
        ("system", "example_user", "New synergies will help drive top-line growth."),
        ("system", "example_assistant", "Things working well together will increase revenue."),
        (
            "system",
            "example_user",
            "Let's circle back when we have more bandwidth to touch base on "
            "opportunities for increased leverage.",
        ),
        ("system", "example_assistant", "Let's talk later when we're less busy about how to do better."),
        (
            "user",
            "",
            "This late pivot means we don't have time to boil the ocean for the client deliverable.",
        ),
    ]
    messages: list[Json] = [
        {"role": role, "content": content} | ({"name": name} if name else {}) for role, name, content in pairs
    ]
    tokenizer = Tokenizer()

    billed = {
        model: estimate_input(
            question(Api.CHAT, {"model": model, "messages": messages}), tokenizer, encoding=encoding
        ).tokens
        for model, encoding in (("gpt-4o", "o200k_base"), ("gpt-4-0613", "cl100k_base"))
    }

    assert billed == {"gpt-4o": 124, "gpt-4-0613": 129}


INEXACT: list[tuple[str, Api, dict[str, Json], str]] = [
    ("tools", Api.CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools are estimated"),
    (
        "format",
        Api.CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"schema": TICKET_SCHEMA}}},
        "the response format is estimated",
    ),
    (
        "format of responses",
        Api.RESPONSES,
        {"text": {"format": {"type": "json_schema", "schema": TICKET_SCHEMA}}},
        "the response format is estimated",
    ),
    ("responses", Api.RESPONSES, {"instructions": "be brief"}, "how the Responses API frames"),
    ("another family", Api.CHAT, {"model": "smollm2"}, "how messages are framed for smollm2"),
    (
        "images",
        Api.CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "images are estimated as 1024 × 1024 pixels, with low confidence",
    ),
    (
        "audio",
        Api.CHAT,
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "parts of type input_audio cannot be counted",
    ),
]


@pytest.mark.parametrize(("name", "api", "more", "note"), INEXACT, ids=[each[0] for each in INEXACT])
def test_what_is_only_estimated_is_said(name: str, api: Api, more: dict[str, Json], note: str) -> None:
    key = "messages" if api is Api.CHAT else "input"
    plain: dict[str, Json] = {"model": "gpt-4o", key: [{"role": "user", "content": "hi"}]}

    less = estimate_input(question(api, plain), words, encoding="o200k_base")
    estimate = estimate_input(question(api, plain | more), words, encoding="o200k_base")

    assert not estimate.exact
    assert any(note in each for each in estimate.notes)
    assert estimate.tokens >= less.tokens or name == "audio"


def test_a_tokenizer_that_is_not_published_is_said() -> None:
    asked = prompt.ask(a_config(output=None, model="gpt-4o"), {"body": "hi"})

    estimate = estimate_input(asked, words, encoding="o200k_base", encoding_is_exact=False)

    assert estimate.notes == ("gpt-4o's own tokenizer is not published: counted with o200k_base",)


IMAGES = [
    ("gpt-4o", "low", 85),
    ("gpt-4o", "high", 765),
    ("gpt-4.1-2025-04-14", "auto", 765),
    ("gpt-4o-mini", "low", 2833),
    ("gpt-4o-mini-2024-07-18", "high", 25501),
    ("gpt-4.1-mini", "high", 1659),
    ("gpt-5-nano", "low", 1536),
]


@pytest.mark.parametrize(("model", "detail", "expected"), IMAGES)
def test_images_cost_what_openai_documents_for_their_model(model: str, detail: str, expected: int) -> None:
    content: list[Json] = [{"type": "image_url", "image_url": {"url": "https://x", "detail": detail}}]
    body: dict[str, Json] = {"model": model, "messages": [{"role": "user", "content": content}]}

    estimate = estimate_input(question(Api.CHAT, body), words, encoding="o200k_base")

    assert estimate.tokens == 3 + 1 + expected + 3


def test_tools_are_counted_as_in_openais_cookbook() -> None:
    """The cookbook's weather function, for which it reports 101 tokens with gpt-4o and 105 with gpt-4."""
    tool: Json = {
        "type": "function",
        "function": {
            "name": "get_current_weather",
            "description": "Get the current weather in a given location",
            "parameters": {
                "type": "object",
                "properties": {
                    "location": {
                        "type": "string",
                        "description": "The city and state, e.g. San Francisco, CA",
                    },
                    "unit": {
                        "type": "string",
                        "description": "The unit of temperature to return",
                        "enum": ["celsius", "fahrenheit"],
                    },
                },
                "required": ["location"],
            },
        },
    }
    messages: list[Json] = [
        {
            "role": "system",
            "content": "You are a helpful assistant that can answer to questions about the weather.",
        },
        {"role": "user", "content": "What's the weather like in San Francisco?"},
    ]
    tokenizer = Tokenizer()

    counts = {
        model: estimate_input(
            question(Api.CHAT, {"model": model, "messages": messages, "tools": [tool]}),
            tokenizer,
            encoding=encoding,
        ).tokens
        for model, encoding in (("gpt-4o", "o200k_base"), ("gpt-4", "cl100k_base"))
    }

    assert counts == {"gpt-4o": 101, "gpt-4": 105}


def test_a_tool_with_objects_below_costs_more_than_without() -> None:
    def tokens_of(parameters: Json) -> int:
        tool: Json = {"type": "function", "name": "f", "parameters": parameters}
        body: dict[str, Json] = {"model": "gpt-4o", "input": [], "tools": [tool]}
        return estimate_input(question(Api.RESPONSES, body), words, encoding="o200k_base").tokens

    inner: Json = {"type": "object", "properties": {"city": {"type": "string"}}}
    flat = tokens_of({"properties": {"place": {"type": "object"}}})
    nested = tokens_of({"properties": {"place": inner}})
    listed = tokens_of({"properties": {"place": {"type": "array", "items": inner}}})

    assert flat < nested == listed


def test_calls_of_tools_in_few_shot_turns_are_counted() -> None:
    call: Json = {"id": "c1", "type": "function", "function": {"name": "look up", "arguments": '{"id": 7}'}}
    turns = (
        Message(role="assistant", content=None, extra={"tool_calls": [call]}),
        Message(role="tool", content="found it", extra={"tool_call_id": "c1"}),
    )
    config = a_config(output=None, model="gpt-4o")

    without = estimate_input(prompt.ask(config, {"body": "x"}), words, encoding="o200k_base")
    some = estimate_input(
        prompt.ask(a_config(output=None, model="gpt-4o", messages=config.messages + turns), {"body": "x"}),
        words,
        encoding="o200k_base",
    )

    assert some.tokens - without.tokens == (3 + 1) + (3 + 3) + (3 + 1 + 2)
    assert some.notes == ("calls of tools in messages are estimated",)


BOUNDS: list[tuple[dict[str, Json], int | None, int]] = [
    ({"max_completion_tokens": 120}, 9_000, 120),
    ({"max_tokens": 99}, None, 99),
    ({}, 9_000, 9_000),
    ({}, None, tokens.ASSUMED_MAX_OUTPUT_TOKENS),
    ({"max_tokens": True}, 9_000, 9_000),
]


@pytest.mark.parametrize(("parameters", "of_model", "expected"), BOUNDS)
def test_the_worst_answer_is_as_long_as_request_or_model_allow(
    parameters: dict[str, Json], of_model: int | None, expected: int
) -> None:
    asked = prompt.ask(a_config(parameters=parameters, output=None), {"body": "two words"})

    usage = worst_case(asked, words, encoding="o200k_base", max_output_tokens=of_model)

    assert usage.output_tokens == expected
    assert usage.input_tokens == estimate_input(asked, words, encoding="o200k_base").tokens
