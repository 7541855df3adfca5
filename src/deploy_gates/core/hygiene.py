"""Whether a golden set is a sample to decide by: what is there twice, what it lacks, what nobody fails."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import Case
from deploy_gates.core.past import Past
from deploy_gates.core.stats import clopper_pearson

NEAR = 0.8
"""Texts that have so much of their three-word phrases in common are nearly the same."""
PHRASES_MIN = 5
"""Shorter texts are alike by chance."""
BANDS, ROWS = 20, 4
"""Of the signature that finds candidates: texts at `NEAR` are missed in fewer than 1 of 10,000 cases."""
LABELS_MAX = 20
"""A field with more values than this is no label."""
LABEL_CASES_MIN = 5
DOMINANT = 0.8
PAST_MIN = 10
UNLIKE_QUANTILE = 0.05
SAMPLES_MIN = 20


class Kind(StrEnum):
    """What may be wrong with a set."""

    CONTRADICTION = "contradiction"
    """The same inputs, and not the same expected: no config can meet both."""
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near duplicate"
    BALANCE = "balance"
    NEVER_MISSED = "never missed"
    DRIFT = "drift"


@dataclass(frozen=True, kw_only=True, slots=True)
class Flaw:
    """One thing that is wrong, in words, and the cases it is about."""

    kind: Kind
    message: str
    cases: tuple[str, ...] = ()

    @property
    def is_error(self) -> bool:
        """Whether it is wrong for certain; the rest is for people to weigh."""
        return self.kind is Kind.CONTRADICTION


def flaws(
    cases: Sequence[Case], past: Mapping[str, Past] | None = None, production: Sequence[JsonObject] = ()
) -> tuple[Flaw, ...]:
    """Everything that stands out: certain things first."""
    found = [
        *_twice(cases),
        *_nearly_twice(cases),
        *_balance(cases),
        *_never_missed(cases, past or {}),
        *_drift(cases, production),
    ]
    return tuple(sorted(found, key=lambda each: list(Kind).index(each.kind)))


def _twice(cases: Sequence[Case]) -> Iterator[Flaw]:
    for alike in _by_inputs(cases).values():
        if len(alike) < 2:
            continue
        named = tuple(case.id for case in alike)
        wanted = {json.dumps(case.expected, sort_keys=True) for case in alike if case.expects}
        if len(wanted) > 1:
            told = f"the same inputs, and not the same expected: {_named(named)}"
            yield Flaw(kind=Kind.CONTRADICTION, message=told, cases=named)
        elif len({case.cluster for case in alike if case.cluster}) != 1:
            told = f"the same inputs: {_named(named)}; each counts as if it were a case of its own"
            yield Flaw(kind=Kind.DUPLICATE, message=told, cases=named)


def _by_inputs(cases: Iterable[Case]) -> dict[str, list[Case]]:
    made: dict[str, list[Case]] = {}
    for case in cases:
        made.setdefault(json.dumps(case.inputs, sort_keys=True), []).append(case)
    return made


# --- Nearly the same ----------------------------------------------------------------------------


def _nearly_twice(cases: Sequence[Case]) -> Iterator[Flaw]:
    """Pairs whose phrases overlap, but for those of one cluster: that is what clusters are for.

    Broder 1997, Compression and Complexity of Sequences: equal parts of short signatures find the pairs, and
    the phrases themselves decide.
    """
    first = [alike[0] for alike in _by_inputs(cases).values()]
    phrases = {case.id: _phrases(_text(case.inputs)) for case in first}
    buckets: dict[tuple[int, tuple[int, ...]], list[Case]] = {}
    for case in first:
        if len(phrases[case.id]) < PHRASES_MIN:
            continue
        signature = _signature(phrases[case.id])
        for band in range(BANDS):
            part = tuple(signature[band * ROWS : (band + 1) * ROWS])
            buckets.setdefault((band, part), []).append(case)
    seen: set[tuple[str, str]] = set()
    for alike in buckets.values():
        for one, other in itertools.islice(itertools.combinations(alike, 2), 10_000):
            pair = (one.id, other.id)
            if pair in seen or (one.cluster and one.cluster == other.cluster):
                continue
            seen.add(pair)
            a, b = phrases[one.id], phrases[other.id]
            common = len(a & b) / len(a | b)
            if common >= NEAR:
                told = f"{one.id} and {other.id} have {100 * common:.0f} % in common: give them one `cluster`"
                yield Flaw(kind=Kind.NEAR_DUPLICATE, message=told, cases=pair)


def _text(value: Json) -> str:
    if isinstance(value, dict):
        return " ".join(_text(each) for each in value.values())
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return str(value)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _phrases(text: str) -> frozenset[int]:
    words = _words(text)
    parts = [" ".join(words[at : at + 3]) for at in range(max(0, len(words) - 2))]
    return frozenset(int.from_bytes(hashlib.blake2b(each.encode(), digest_size=8).digest()) for each in parts)


def _signature(phrases: frozenset[int]) -> list[int]:
    prime = (1 << 61) - 1
    made = []
    for at in range(BANDS * ROWS):
        factor, shift = (2 * at + 1) * 0x9E3779B97F4A7C15 % prime, (at + 7) * 0xC2B2AE3D27D4EB4F % prime
        made.append(min((factor * each + shift) % prime for each in phrases))
    return made


# --- What it holds ------------------------------------------------------------------------------


def _balance(cases: Sequence[Case]) -> Iterator[Flaw]:
    """Labels that nearly all cases have, and labels that hardly any has."""
    for field, labels in _labels(cases).items():
        total, (most, count) = sum(labels.values()), labels.most_common(1)[0]
        where = f"`{field}`" if field else "the answer"
        if len(labels) > 1 and count > DOMINANT * total:
            told = f"{where} is {most} in {count:,} of {total:,} cases: the others hardly count"
            yield Flaw(kind=Kind.BALANCE, message=told)
        rare = sorted(label for label, n in labels.items() if n < LABEL_CASES_MIN)
        if rare and total >= LABEL_CASES_MIN * len(labels):
            told = f"{where} is {_named(rare)} in fewer than {LABEL_CASES_MIN} cases each"
            yield Flaw(kind=Kind.BALANCE, message=told)


def _labels(cases: Sequence[Case]) -> dict[str, Counter[str]]:
    """How often each value of a field is expected, for fields that are labels."""
    made: dict[str, Counter[str]] = {}
    for case in cases:
        expected = case.expected if isinstance(case.expected, dict) else {"": case.expected}
        for field, value in expected.items() if case.expects else ():
            if isinstance(value, str | bool):
                made.setdefault(field, Counter())[str(value)] += 1
    return {
        field: labels
        for field, labels in made.items()
        if len(labels) <= min(LABELS_MAX, sum(labels.values()) / 2)
    }


def _never_missed(cases: Sequence[Case], past: Mapping[str, Past]) -> Iterator[Flaw]:
    known = {case.id: past[case.id].scored for case in cases if case.id in past and not case.must_pass}
    known = {case: scored for case, scored in known.items() if len(scored) >= PAST_MIN}
    never = tuple(case for case, scored in known.items() if min(each.score for each in scored) >= 1)
    if never and len(never) > DOMINANT * len(cases):
        told = (
            f"{len(never):,} of {len(cases):,} cases were never missed in {PAST_MIN} answers or more: "
            "they cannot tell good configs apart; add harder ones"
        )
        yield Flaw(kind=Kind.NEVER_MISSED, message=told, cases=never)


# --- Against production -------------------------------------------------------------------------


def _drift(cases: Sequence[Case], production: Sequence[JsonObject]) -> Iterator[Flaw]:
    """Whether what production is sent looks like the cases: by the nearest case, and by length."""
    if len(production) < SAMPLES_MIN or len(cases) < SAMPLES_MIN:
        return
    own = [_words(_text(case.inputs)) for case in cases]
    sent = [_words(_text(each)) for each in production]
    rarity = _rarity(own)
    vectors, others = [_vector(each, rarity) for each in own], [_vector(each, rarity) for each in sent]
    index = _index(vectors)
    among = sorted(_nearest(each, index, but=at) for at, each in enumerate(vectors))
    bar = among[int(UNLIKE_QUANTILE * len(among))]
    unlike = [at for at, each in enumerate(others) if _nearest(each, index) < bar or not each]
    least = clopper_pearson(len(unlike), len(others), 0.95).low
    if least > 2 * UNLIKE_QUANTILE:
        shown = "; ".join(_clip(_text(production[at])) for at in unlike[:3])
        told = (
            f"{len(unlike):,} of {len(others):,} production samples are unlike any case "
            f"(at least {100 * least:.0f} %, 95 % sure), such as: {shown}"
        )
        yield Flaw(kind=Kind.DRIFT, message=told)
    before, now = _median([len(each) for each in own]), _median([len(each) for each in sent])
    if now > 2 * before or before > 2 * now:
        told = f"production samples have {now:,.0f} words in the middle, the cases {before:,.0f}"
        yield Flaw(kind=Kind.DRIFT, message=told)


def _rarity(texts: Sequence[Sequence[str]]) -> dict[str, float]:
    counts = Counter(word for text in texts for word in set(text))
    return {word: math.log(1 + len(texts) / count) for word, count in counts.items()}


def _vector(words: Sequence[str], rarity: Mapping[str, float]) -> dict[str, float]:
    """Words by how telling they are; one that no case has counts as the rarest."""
    rarest = max(rarity.values(), default=1.0)
    made = {word: count * rarity.get(word, rarest) for word, count in Counter(words).items()}
    length = math.sqrt(sum(each * each for each in made.values()))
    return {word: each / length for word, each in made.items()} if length else {}


def _index(vectors: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[int, float]]]:
    made: dict[str, list[tuple[int, float]]] = {}
    for at, vector in enumerate(vectors):
        for word, weight in vector.items():
            made.setdefault(word, []).append((at, weight))
    return made


def _nearest(
    vector: Mapping[str, float], index: Mapping[str, Sequence[tuple[int, float]]], but: int = -1
) -> float:
    alike: dict[int, float] = {}
    for word, weight in vector.items():
        for at, other in index.get(word, ()):
            if at != but:
                alike[at] = alike.get(at, 0.0) + weight * other
    return max(alike.values(), default=0.0)


def _median(values: Sequence[int]) -> float:
    return sorted(values)[len(values) // 2]


def _clip(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:59] + "…"


def _named(names: Sequence[str]) -> str:
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more:,} more" if more > 0 else "")
