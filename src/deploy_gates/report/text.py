"""Text on a screen: how wide it is, where it breaks, and what of it a terminal must never see."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

_JOINERS = "\u200c\u200d"
"""Zero-width joiners belong to the spelling of Persian, Hindi, and of many emoji."""
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ASCII = str.maketrans(
    {
        "✓": "ok",
        "✗": "FAIL",
        "→": "->",
        "−": "-",
        "–": "-",
        "—": "-",
        "─": "-",
        "≥": ">=",
        "≤": "<=",
        "…": "...",
        "×": "x",
        "±": "+-",
        "·": "-",
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
    }
)


def visible(text: str) -> str:
    """`text` on one line, with what a terminal or a reader would act on made visible: `\\x1b`, `\\u202e`."""
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def ascii_only(text: str) -> str:
    """`text` for a terminal that knows nothing but ASCII: typography spelled out, the rest by number."""
    if text.isascii():
        return text
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode()


def width(text: str) -> int:
    """How many columns `text` takes: two for wide East Asian characters, none for what combines."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if character in _JOINERS or unicodedata.combining(character):
        return 0
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def pad(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


def pad_left(text: str, columns: int) -> str:
    return " " * (columns - width(text)) + text


def clip(text: str, columns: int, *, ellipsis: str = "…") -> str:
    """`text`, or as much of it as fits into `columns` with an ellipsis behind it."""
    if width(text) <= columns:
        return text
    return _head(text, columns - width(ellipsis)) + ellipsis


def wrap(text: str, columns: int) -> list[str]:
    """`text` in lines of at most `columns`, broken between words; within a word only where it is too long."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if width(joined) <= columns:
            line = joined
            continue
        if line:
            lines.append(line)
        while width(word) > columns:
            head = _head(word, columns) or word[0]
            lines.append(head)
            word = word[len(head) :]
        line = word
    return [*lines, line] if line or not lines else lines


def _head(text: str, columns: int) -> str:
    """The longest beginning of `text` that is at most `columns` wide."""
    taken = 0
    for at, character in enumerate(text):
        taken += _columns(character)
        if taken > columns:
            return text[:at]
    return text


def listed(names: Iterable[str], conjunction: str = "and") -> str:
    """`a`, `a and b`, `a, b, and c`."""
    *rest, last = list(names) or [""]
    if len(rest) < 2:
        return f" {conjunction} ".join([*rest, last])
    return f"{', '.join(rest)}, {conjunction} {last}"


def counted(count: int, noun: str) -> str:
    """`1 config`, `2 configs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
