"""Literals in a text that look like keys: found by line, named by kind, and never repeated.

Some are certain by their form alone: no other text begins with `github_pat_` and goes on like that. Others
are only likely, by the name they stand beside: those are not looked for where people write about anything.
"""

from __future__ import annotations

import bisect
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

SHOWN_CHARS = 4
"""So much of a key is shown, for its owner to recognise it."""
DISTINCT_MIN = 8
"""A key has more different characters than this; `sk-xxxxxxxxxxxxxxxxxxxx` is none."""
ENTROPY_MIN_BITS = 3.0
"""Per character, of what is a key only by its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """A literal that looks like a key, by all but its first characters hidden."""

    line: int
    kind: str
    masked: str


def find_secrets(text: str, *, only_certain: bool = False) -> tuple[Leak, ...]:
    """What looks like a key in `text`; only what its form gives away, where `only_certain`."""
    found = list(_matches(_CERTAIN, text))
    if not only_certain:
        taken = [match.span() for _, match in found]
        for kind, match in _matches(_LIKELY, text):
            if not any(_overlap(match.span(), span) for span in taken):
                taken.append(match.span())
                found.append((kind, match))
    starts = [0, *(match.end() for match in re.finditer("\n", text))] if found else []
    return tuple(
        Leak(
            line=bisect.bisect_right(starts, match.start("secret")),
            kind=kind,
            masked=f"{_secret(match)[:SHOWN_CHARS]}…",
        )
        for kind, match in sorted(found, key=lambda each: each[1].start("secret"))
    )


# --- Forms --------------------------------------------------------------------------------------

_CERTAIN: dict[str, re.Pattern[str]] = {
    kind: re.compile(rf"(?<![A-Za-z0-9_+/-])(?P<secret>{form})(?![A-Za-z0-9_+/=-])")
    for kind, form in {
        "an OpenAI key": r"sk-(?:proj|svcacct|admin|None)-[A-Za-z0-9_-]{20,}"
        r"|sk-(?=[A-Za-z]*[0-9])[A-Za-z0-9]{20,}",
        "an Anthropic key": r"sk-ant-[A-Za-z0-9_-]{20,}",
        "an OpenRouter key": r"sk-or-[A-Za-z0-9-]{20,}",
        "an AWS access key id": r"(?:AKIA|ASIA)[A-Z0-9]{16}",
        "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}",
        "a GitLab token": r"glpat-[A-Za-z0-9_-]{20,}",
        "a Google API key": r"AIza[A-Za-z0-9_-]{35}",
        "a Slack token": r"xox[abeoprs]-(?=[A-Za-z-]*[0-9])[A-Za-z0-9-]{10,}|xapp-[0-9]-[A-Za-z0-9-]{10,}",
        "a Stripe key": r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9]{24,}",
        "a Hugging Face token": r"hf_[A-Za-z0-9]{30,}",
        "a Groq key": r"gsk_[A-Za-z0-9]{40,}",
        "a JSON Web Token": r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    }.items()
} | {
    "a private key": re.compile(
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY-----(?:\\[rn]|\s)*(?P<secret>[A-Za-z0-9+/]{20,})"
    ),
}

_BEGINS: dict[str, tuple[str, ...]] = {
    "an OpenAI key": ("sk-",),
    "an Anthropic key": ("sk-ant-",),
    "an OpenRouter key": ("sk-or-",),
    "an AWS access key id": ("AKIA", "ASIA"),
    "a GitHub token": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    "a GitLab token": ("glpat-",),
    "a Google API key": ("AIza",),
    "a Slack token": ("xox", "xapp-"),
    "a Stripe key": ("k_live_", "k_test_", "whsec_"),
    "a Hugging Face token": ("hf_",),
    "a Groq key": ("gsk_",),
    "a JSON Web Token": ("eyJ",),
    "a private key": ("-----BEGIN ",),
}
"""One of these stands in every such key: a text without them need not be looked through letter by letter."""

_NAME = r"(?:api[_-]?key|(?:access|account|private)[_-]?key|secret|token|passwd|password|credentials?)"
_NAMED = "a literal beside the name of a key"
_LIKELY: dict[str, re.Pattern[str]] = {
    "a bearer token": re.compile(r"(?i:\bbearer)[ \t]+(?P<secret>[A-Za-z0-9._~+/-]{20,}=*)"),
    "a password in a URL": re.compile(r"\b[a-z][a-z0-9+]*://[^\s/:@\"']*:(?P<secret>[^\s/@\"']{6,})@"),
    _NAMED: re.compile(
        rf"(?im){_NAME}[\w-]*[\"']?[ \t]*[:=][ \t]*"
        r"[\"']?(?P<secret>[A-Za-z0-9+/_=.~-]{20,})(?:[\"']|[ \t]*,?[ \t]*(?:#.*)?$)"
    ),
}


def _matches(forms: dict[str, re.Pattern[str]], text: str) -> Iterator[tuple[str, re.Match[str]]]:
    for kind, form in forms.items():
        if not any(begin in text for begin in _BEGINS.get(kind, ("",))):
            continue
        for match in form.finditer(text):
            if not _is_placeholder(_secret(match)) and (kind != _NAMED or _is_random(_secret(match))):
                yield kind, match


def _secret(match: re.Match[str]) -> str:
    return match["secret"]


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


# --- What only looks like one -------------------------------------------------------------------

_STANDS_FOR_ONE = re.compile(
    r"(?i)your|example|placeholder|change-?me|redacted|dummy|insert|password|secret|x{4}|\*{3}|\.{3}|…|[<>${}]"
)
_UUID = re.compile(r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_WORD = re.compile(r"[A-Za-z]*\d{0,4}\Z")


def _is_placeholder(secret: str) -> bool:
    """Whether it stands where a key is to be put: `sk-your-key-here`, `${TOKEN}`."""
    return bool(_STANDS_FOR_ONE.search(secret)) or (len(secret) >= 20 and len(set(secret)) < DISTINCT_MIN)


def _is_random(secret: str) -> bool:
    """Whether nobody would have thought of it: no words, no names of variables, no UUIDs."""
    if _UUID.match(secret) or all(map(_WORD.match, re.split(r"[-_./=]", secret))):
        return False
    counts = Counter(secret).values()
    entropy = -sum(count / len(secret) * math.log2(count / len(secret)) for count in counts)
    return entropy >= ENTROPY_MIN_BITS and any(map(str.isdigit, secret)) and any(map(str.isalpha, secret))
