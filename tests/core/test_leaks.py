"""Keys are found by their form or their name, shown by four characters, and nothing else is taken for one."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid

import pytest

from deploy_gates.core.leaks import find_secrets


def random_text(length: int, alphabet: str = "") -> str:
    """Always the same, and nobody's key."""
    digits = "".join(hashlib.sha256(f"no key {at}".encode()).hexdigest() for at in range(1 + length // 32))
    if not alphabet:
        alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    return "".join(alphabet[int(digits[2 * at : 2 * at + 2], 16) % len(alphabet)] for at in range(length))


UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
HEX = "0123456789abcdef"

# Put together here, so that no file of this repository holds anything that looks like a key.
CERTAIN = {
    "an OpenAI key": ["sk-" + random_text(48), "sk-proj-" + random_text(60), "sk-svcacct-" + random_text(40)],
    "an Anthropic key": ["sk-ant-api03-" + random_text(60)],
    "an OpenRouter key": ["sk-or-v1-" + random_text(64, HEX)],
    "an AWS access key id": ["AKIA" + random_text(16, UPPER)],
    "a GitHub token": ["ghp_" + random_text(36), "github_pat_" + random_text(50)],
    "a GitLab token": ["glpat-" + random_text(20)],
    "a Google API key": ["AIza" + random_text(35)],
    "a Slack token": ["xoxb-" + random_text(12, "0123456789") + "-" + random_text(24)],
    "a Stripe key": ["sk_live_" + random_text(24), "rk_test_" + random_text(24)],
    "a Hugging Face token": ["hf_" + random_text(34)],
    "a Groq key": ["gsk_" + random_text(52)],
    "a JSON Web Token": [f"eyJ{random_text(20)}.eyJ{random_text(40)}.{random_text(43)}"],
}
LIKELY = {
    "a bearer token": ["Authorization: Bearer " + random_text(40)],
    "a password in a URL": ["postgres://triage:" + random_text(12) + "@db.example.com/triage"],
    "a literal beside the name of a key": [
        f'api_key: "{random_text(24)}"',
        f"client_secret = '{random_text(40)}'",
        f"  azure-api-key: {random_text(32, HEX)}   # the old one",
        f'{{"access_token": "{random_text(30)}", "x": 1}}',
    ],
}

NO_KEYS = [
    "api_key_env: OPENAI_API_KEY",
    "api_key: OPENAI_API_KEY_FOR_PRODUCTION_2026",
    "api_key: ${OPENAI_API_KEY_FOR_PRODUCTION}",
    'api_key: "<your key goes right here, please>"',
    "api_key: sk-...",
    "export OPENAI_API_KEY=sk-" + "x" * 48,
    "sk-your-key-here-and-no-other-1234567890",
    "sk-proj-YOUR_KEY_HERE_1234567890_abcdefgh",
    "AKIAIOSFODNN7EXAMPLE",
    "the digest is " + hashlib.sha256(b"a config").hexdigest(),
    "token_digest: sha256:" + hashlib.sha256(b"a config").hexdigest(),
    f"session token: {uuid.UUID(int=0x123E4567E89B42D3A456426614174000)}",
    "token: ticket-triage-production-v2-2026",
    "secret: tests/golden/ticket-triage/consumer.py",
    "token = settings.authentication.read_token_of_environment2(name)",
    "password: {{ password_of_the_customer }}",
    "postgres://triage:${DATABASE_PASSWORD}@db.example.com/triage",
    "postgres://triage:password@localhost/triage",
    "http://localhost:8080/v1",
    "max_completion_tokens: 12000000000000000000000",
    "I use scikit-learn and desk-organizers-of-1990-and-later in task-12345678901234567890",
    "She said: the bearer of this letter is a friend",
    "data:image/png;base64," + base64.b64encode(random_text(6000).encode()).decode(),
    "data:image/png;base64,AKIA" + random_text(16, UPPER) + base64.b64encode(b"more of it").decode(),
    "-----BEGIN PRIVATE KEY----- is how such a file begins",
    "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA",
]


@pytest.mark.parametrize(
    ("kind", "literal"), [(kind, each) for kind, them in CERTAIN.items() for each in them]
)
def test_a_key_is_certain_by_its_form_wherever_it_stands(kind: str, literal: str) -> None:
    said = f'{{"body": "my key is {literal}, help"}}'
    for text in (literal, f"OPENAI_API_KEY={literal}", f"notes:\n  - works with {literal}\n", said):
        found = find_secrets(text, only_certain=True)

        assert [each.kind for each in found] == [kind]
        assert find_secrets(text) == found


@pytest.mark.parametrize(("kind", "line"), [(kind, each) for kind, them in LIKELY.items() for each in them])
def test_a_literal_beside_the_name_of_a_key_is_likely_and_not_certain(kind: str, line: str) -> None:
    found = find_secrets(f"model: gpt-4.1-mini\n{line}\n")

    assert [(each.line, each.kind) for each in found] == [(2, kind)]
    assert find_secrets(line, only_certain=True) == ()


@pytest.mark.parametrize("text", NO_KEYS, ids=range(len(NO_KEYS)))
def test_what_only_speaks_of_keys_is_none(text: str) -> None:
    assert find_secrets(text) == ()


def test_a_private_key_is_found_in_yaml_and_in_json() -> None:
    body = base64.b64encode(random_text(120).encode()).decode()

    yaml = find_secrets(f"key: |\n  -----BEGIN RSA PRIVATE KEY-----\n  {body}\n")
    json = find_secrets(f'{{"body": "-----BEGIN PRIVATE KEY-----\\n{body}"}}', only_certain=True)

    assert [(each.line, each.kind) for each in yaml] == [(3, "a private key")]
    assert [each.kind for each in json] == ["a private key"]


def test_no_more_than_four_characters_of_a_key_are_repeated() -> None:
    literals = [each for them in CERTAIN.values() for each in them]

    shown = [leak.masked for each in literals for leak in find_secrets(each)]

    assert shown == [f"{each[:4]}…" for each in literals]


def test_keys_are_listed_by_line_and_each_only_once() -> None:
    openai, github = CERTAIN["an OpenAI key"][1], CERTAIN["a GitHub token"][0]

    found = find_secrets(f'a: 1\ntoken: "{github}"\n\napi_key: {openai}\n')

    assert [(each.line, each.kind) for each in found] == [(2, "a GitHub token"), (4, "an OpenAI key")]


def test_a_dataset_of_many_megabytes_is_read_in_a_moment() -> None:
    picture = base64.b64encode(random_text(40_000).encode()).decode()
    text = "".join(f'{{"id": "{at}", "inputs": {{"image": "{picture}"}}}}\n' for at in range(100))

    started = time.perf_counter()
    found = find_secrets(text, only_certain=True)

    assert found == ()
    assert time.perf_counter() - started < 5.0
