"""Recorded observations become tallies, however they arrive; what is no recording is told by its line."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy_gates.canary import stream
from deploy_gates.canary.stream import Step, StreamError, read
from deploy_gates.core.tally import Arm, Histogram, Tally, Unit

RELAXED = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


def line(t: float, arm: str = "baseline", *, error: bool = False, **members: Any) -> str:
    return json.dumps({"t": t, "arm": arm, "error": error, **members})


def recording(folder: Path, lines: Iterable[str], name: str = "traffic.ndjson") -> str:
    path = folder / name
    path.write_text("".join(f"{each}\n" for each in lines), "utf-8")
    return str(path)


def both(t: float = 0.0, **members: Any) -> list[str]:
    return [line(t, **members), line(t, "candidate", **members)]


def refusal(path: str, **options: Any) -> StreamError:
    with pytest.raises(StreamError) as caught:
        list(read(path, **options))
    return caught.value


def spoken(path: str, unit: Unit | None) -> tuple[list[Step], StreamError | None]:
    """The steps of what is fine to its end; otherwise what is wrong."""
    try:
        return list(read(path, unit=unit)), None
    except StreamError as error:
        return [], error


def alike(steps: list[Step], others: list[Step]) -> bool:
    """The same but for the last digits of sums of floats, which depend on their order."""
    return len(steps) == len(others) and all(
        at == other_at and len(tallies) == len(others) and all(map(_alike, tallies, others))
        for (at, tallies), (other_at, others) in zip(steps, others, strict=True)
    )


def _alike(one: Tally, other: Tally) -> bool:
    return bool(_rounded(one.to_json()) == _rounded(other.to_json()))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return float(f"{value:.11g}") if isinstance(value, float) else value


# --- Requests -------------------------------------------------------------------------------------


def test_lines_become_tallies_of_five_seconds_and_empty_bins_are_steps_too(tmp_path: Path) -> None:
    path = recording(
        tmp_path,
        [
            line(4.9, latency_s=0.5, cost=0.001, key="a"),
            line(0.0, "candidate", latency_s=2.0),
            line(1.0, error=True, latency_s=30.0, cost=0.004),
            line(10.0, latency_s=1.5, metrics={"accepted": True, "score": 0.7}),
            line(14.999, metrics={"accepted": False}),
        ],
    )

    steps = list(read(path))

    first, empty, last = steps
    baseline, candidate = first[1]
    assert [at_ms for at_ms, _ in steps] == [5_000, 10_000, 15_000]
    assert baseline == Tally(
        config="recorded",
        environment="recorded",
        revision=1,
        arm=Arm.BASELINE,
        start_ms=0,
        started=2,
        finished=2,
        errors=1,
        latency_s=Histogram.of([0.5]),
        cost_usd=Histogram.of([0.001, 0.004]),
    )
    assert (candidate.arm, candidate.started, candidate.latency_s.total) == (Arm.CANDIDATE, 1, 2.0)
    assert empty[1] == ()
    assert last[1][0].metrics == {"accepted": Histogram.of([1, 0]), "score": Histogram.of([0.7])}


@pytest.mark.parametrize("origin", [-12_345.0, 0.0, 1_795_000_000.0])
def test_time_may_begin_anywhere(tmp_path: Path, origin: float) -> None:
    path = recording(tmp_path, [*both(origin + 1), *both(origin + 12)])

    steps = list(read(path))

    assert [at_ms for at_ms, _ in steps] == [int((origin + end) * 1000) for end in (5, 10, 15)]
    assert all(tally.start_ms == at_ms - 5_000 for at_ms, tallies in steps for tally in tallies)


def test_what_does_not_matter_is_let_pass(tmp_path: Path) -> None:
    plain = recording(tmp_path, both(latency_s=1.0))
    odd = tmp_path / "odd.ndjson"
    lines = [line(0, latency_s=1.0, key=None), "", line(0, "candidate", latency_s=1, cost=None, metrics=None)]
    odd.write_bytes(b"\xef\xbb\xbf" + "\r\n \r\n".join(lines).encode())

    assert list(read(str(odd))) == list(read(plain))


@st.composite
def traffic(draw: st.DrawFn) -> list[list[str]]:
    """The lines of each bin."""
    amount = st.none() | st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 3.3]) | st.floats(0, 1e6)
    members = st.fixed_dictionaries(
        {"error": st.booleans(), "latency_s": amount, "cost": amount},
        optional={
            "key": st.sampled_from(["a", "b", "c", "ü"]),
            "metrics": st.dictionaries(
                st.sampled_from(["x", "y"]), st.booleans() | st.floats(-5, 5), max_size=2
            ),
        },
    )
    observation = st.tuples(st.integers(0, 4_999), st.sampled_from(list(Arm)), members)
    bins = draw(st.lists(st.lists(observation, max_size=8), min_size=1, max_size=12))
    lines = [
        [json.dumps({"t": 5 * at + ms / 1000, "arm": arm, **more}) for ms, arm, more in each]
        for at, each in enumerate(bins)
    ]
    return [both(0.0, key="z") + lines[0], *lines[1:], both(5.0 * len(bins) + 25, key="z")]


@pytest.mark.parametrize("unit", [Unit.REQUEST, Unit.USER])
@RELAXED
@given(bins=traffic(), data=st.data())
def test_the_order_within_a_bin_does_not_matter(
    tmp_path: Path, unit: Unit, bins: list[list[str]], data: st.DataObject
) -> None:
    shuffled = [data.draw(st.permutations(each)) for each in bins]

    steps = list(read(recording(tmp_path, chain.from_iterable(bins)), unit=unit))
    others = list(read(recording(tmp_path, chain.from_iterable(shuffled)), unit=unit))

    assert alike(steps, others)


@pytest.mark.parametrize("unit", [None, Unit.REQUEST, Unit.USER])
@RELAXED
@given(bins=traffic(), block=st.integers(1, 700))
def test_the_size_of_what_is_read_at_once_does_not_matter(
    tmp_path: Path, unit: Unit | None, bins: list[list[str]], block: int
) -> None:
    path = recording(tmp_path, chain.from_iterable(bins))
    whole = list(read(path, unit=unit))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", block)
        pieces = list(read(path, unit=unit))

    assert alike(pieces, whole)


@RELAXED
@given(bins=traffic())
def test_lines_that_are_read_one_by_one_say_the_same(tmp_path: Path, bins: list[list[str]]) -> None:
    lines = list(chain.from_iterable(bins))
    at_once = list(read(recording(tmp_path, lines)))

    one_by_one = list(read(recording(tmp_path, [f" {each}\n" for each in lines])))

    assert one_by_one == at_once


@RELAXED
@given(bins=traffic(), members=st.integers(1, 3), block=st.integers(1, 200))
def test_gzip_says_the_same_in_one_member_or_several(
    tmp_path: Path, bins: list[list[str]], members: int, block: int
) -> None:
    path = recording(tmp_path, chain.from_iterable(bins))
    text = Path(path).read_bytes()
    cut = len(text) // members + 1
    packed = tmp_path / "traffic"
    packed.write_bytes(
        b"".join(gzip.compress(text[at : at + cut]) for at in range(0, len(text), cut)) + b"\0" * 8
    )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", block)
        unpacked = list(read(str(packed)))

    assert alike(unpacked, list(read(path)))


def test_progress_tells_bytes_read_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recording(tmp_path, both() * 10)
    size = Path(path).stat().st_size
    monkeypatch.setattr(stream, "BLOCK", size // 2 + 1)
    told: list[tuple[int, int | None]] = []

    list(read(path, progress=lambda n, total: told.append((n, total))))

    assert told == [(size // 2 + 1, size), (size, size)]


# --- Users ----------------------------------------------------------------------------------------


def keyed(t: float, key: str, arm: str = "baseline", **members: Any) -> str:
    return line(t, arm, key=key, **members)


def test_a_user_is_one_value_in_the_bin_of_the_first_request(tmp_path: Path) -> None:
    path = recording(
        tmp_path,
        [
            keyed(0.0, "other", "candidate"),
            keyed(3.0, "ada", latency_s=1.0, cost=0.01),
            keyed(4.0, "ada", error=True, latency_s=99.0),
            keyed(23.0, "ada", latency_s=4.0, cost=0.04, metrics={"score": 0.5}),
            keyed(23.1, "ada", latency_s=50.0),
            keyed(49.0, "ada", latency_s=50.0),
        ],
    )

    steps = list(read(path, unit=Unit.USER))

    (at_ms, (ada, other)), *later = steps
    assert at_ms == 5_000
    assert (ada.unit, ada.arm, ada.started, ada.finished, ada.errors) == (Unit.USER, Arm.BASELINE, 1, 1, 1)
    assert ada.latency_s.n == ada.cost_usd.n == 1
    assert ada.latency_s.total == pytest.approx(2.0)
    assert ada.cost_usd.total == pytest.approx(0.02)
    assert ada.metrics == {"score": Histogram.of([0.5])}
    assert (other.arm, other.started, other.latency_s.n) == (Arm.CANDIDATE, 1, 0)
    assert [[(each.arm, each.started) for each in tallies] for _, tallies in later] == [
        *[[]] * 3,
        [(Arm.BASELINE, 0)],  # there was traffic, and nobody new
        [],
    ]


def test_steps_of_users_come_when_a_bin_is_twenty_seconds_old_and_the_youngest_are_left_out(
    tmp_path: Path,
) -> None:
    lines = [keyed(t, f"{arm}{t}", arm) for t in range(100) for arm in ("baseline", "candidate")]

    steps = list(read(recording(tmp_path, lines), unit=Unit.USER))

    assert [at_ms for at_ms, _ in steps] == list(range(5_000, 80_001, 5_000))
    assert all(tally.started == 5 for _, tallies in steps for tally in tallies)


def test_a_step_of_users_waits_for_nothing_but_the_end_of_its_twenty_seconds(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    lines = [keyed(t, f"{arm}-{t}", arm) for t in range(26) for arm in ("baseline", "candidate")]
    writer = threading.Thread(target=lambda: _feed(pipe, lines, done))
    done = threading.Event()
    writer.start()

    first = next(steps := read(str(pipe), unit=Unit.USER))
    done.set()
    writer.join(10)

    assert first[0] == 5_000
    assert len(list(steps)) == 1


def _feed(pipe: Path, lines: list[str], done: threading.Event) -> None:
    with pipe.open("w") as file:
        file.write("".join(f"{each}\n" for each in lines))
        file.flush()
        done.wait(10)


def test_who_was_there_before_the_canary_is_counted_again_in_it(tmp_path: Path) -> None:
    before = [keyed(t, f"user-{t % 10}") for t in range(60)]
    moved = [keyed(t, f"user-{t % 10}", "candidate" if t % 10 < 3 else "baseline") for t in range(60, 120)]

    steps = list(read(recording(tmp_path, before + moved), unit=Unit.USER))

    of_candidate = {
        at: sum(each.started for each in tallies if each.arm is Arm.CANDIDATE) for at, tallies in steps
    }
    of_baseline = {
        at: sum(each.started for each in tallies if each.arm is Arm.BASELINE) for at, tallies in steps
    }
    assert {at: n for at, n in of_candidate.items() if n} == {65_000: 3}
    assert {at: n for at, n in of_baseline.items() if n} == {5_000: 5, 10_000: 5, 65_000: 2, 70_000: 5}


def test_who_moves_to_the_candidate_with_a_step_of_traffic_stays_what_he_was(tmp_path: Path) -> None:
    first = [keyed(t, f"user-{t % 10}", "candidate" if t % 10 < 1 else "baseline") for t in range(30)]
    then = [keyed(t, f"user-{t % 10}", "candidate" if t % 10 < 5 else "baseline") for t in range(30, 100)]

    steps = list(read(recording(tmp_path, first + then), unit=Unit.USER))

    counted = [(each.arm, each.started) for _, tallies in steps for each in tallies if each.started]
    assert counted == [(Arm.BASELINE, 4), (Arm.CANDIDATE, 1), (Arm.BASELINE, 5)]


def test_requests_without_a_key_are_nobodys(tmp_path: Path) -> None:
    lines = [
        each
        for t in range(30)
        for arm in ("baseline", "candidate")
        for each in [line(t, arm), line(t, arm, key=""), keyed(t, f"{arm}-{t}", arm)]
    ]

    steps = list(read(recording(tmp_path, lines), unit=Unit.USER))

    assert {each.started for _, tallies in steps for each in tallies} == {5}


@pytest.mark.parametrize(
    ("repeated", "sticky", "unit"),
    [(0, True, Unit.REQUEST), (1, True, Unit.REQUEST), (3, True, Unit.USER), (30, True, Unit.USER),
     (30, False, Unit.REQUEST)],
)  # fmt: skip
def test_users_are_the_unit_where_keys_repeat_and_keep_their_arm(
    tmp_path: Path, repeated: int, sticky: bool, unit: Unit
) -> None:
    """In every hundred requests so many come from the same user as the one before."""
    lines = []
    user = 0
    by_request = random.Random(4)
    for n in range(10_000):
        user += n % 100 >= repeated
        drawn = user % 4 if sticky else by_request.randrange(4)
        arm = "candidate" if n > 4_000 and drawn == 0 else "baseline"
        lines.append(keyed(n / 100, f"user-{user}", arm))

    found = {each.unit for _, tallies in read(recording(tmp_path, lines)) for each in tallies}

    assert found == {unit}


def test_users_that_keep_no_arm_are_refused_as_the_unit(tmp_path: Path) -> None:
    lines = [keyed(n / 10, f"user-{n % 50}", "candidate" if n % 7 == 0 else "baseline") for n in range(2_000)]

    error = refusal(recording(tmp_path, lines), unit=Unit.USER)

    number = int(error.message.partition("line ")[2].partition(":")[0])
    *seen, here = [json.loads(each) for each in lines[:number]]
    arms = {each["key"]: each["arm"] for each in seen}
    assert "this user gets the other arm" in error.message
    assert arms[here["key"]] != here["arm"]


def test_requests_that_are_sent_to_both_arms_are_the_unit(tmp_path: Path) -> None:
    lines = [each for t in range(60) for each in both(t, key=f"request-{t}")]

    found = {each.unit for _, tallies in read(recording(tmp_path, lines)) for each in tallies}

    assert found == {Unit.REQUEST}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (both(0.0) * 3, "names no user"),
        ([line(0.0, key="a"), line(0.0, "candidate")], "names no user in the candidate"),
        ([*both(0.0, key="a"), *both(19.0, key="b")], "lasts no longer than the 20 s"),
    ],
)
def test_a_recording_without_users_is_refused_where_users_are_asked_for(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    error = refusal(recording(tmp_path, lines), unit=Unit.USER)

    assert message in error.message
    assert error.hint


def test_remembered_users_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "USERS_MAX", 50)
    lines = [keyed(t, f"{arm}-{t}", arm) for t in range(60) for arm in ("baseline", "candidate")]

    error = refusal(recording(tmp_path, lines), unit=Unit.USER)

    assert "more than 50 users" in error.message


def test_lines_of_five_seconds_are_bounded_where_users_are_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BIN_LINES_MAX", 50)
    monkeypatch.setattr(stream, "BLOCK", 500)

    error = refusal(recording(tmp_path, both(1.0, key="a") * 100), unit=Unit.USER)

    assert "line 51: there are more than 50 requests within five seconds" in error.message


# --- Bad input ------------------------------------------------------------------------------------

WRONG = [
    ("{", "no JSON: "),
    ("nonsense", "no JSON: "),
    (line(1.0) + line(1.0), "no JSON: Extra data"),
    ("[" * 100_000, "no JSON"),
    (line(1.0).replace("1.0", "1" * 5_000), "no JSON"),
    ("[]", "a list and no object"),
    ("17", "a number and no object"),
    ("null", "null and no object"),
    ('{"arm": "baseline", "error": false}', "`t` is missing"),
    ('{"t": 1, "error": false}', "`arm` is missing"),
    ('{"t": 1, "arm": "baseline"}', "`error` is missing"),
    (line(1.0, "canary"), '`arm` is "canary"'),
    ('{"t": 1, "arm": ["baseline"], "error": false}', '`arm` is ["baseline"]'),
    (line(1.0, latency=3.0), 'the member "latency"'),
    (line(1.0, latency_s=-0.1), "`latency_s` is negative: -0.1"),
    (line(1.0, latency_s=math.nan), "`latency_s` is NaN"),
    (line(1.0, latency_s=-math.inf), "`latency_s` is -Infinity"),
    ('{"t": 1, "arm": "baseline", "error": false, "latency_s": 1e400}', "`latency_s` is Infinity"),
    (line(1.0, latency_s=True), "`latency_s` is true or false"),
    (line(1.0, latency_s="0.8"), "`latency_s` is a text"),
    (line(1.0, latency_s=1e13), "`latency_s` lies outside 0 to 1e+12"),
    (line(1.0, cost=-1), "`cost` is negative: -1"),
    (line(1.0, cost=math.inf), "`cost` is Infinity"),
    (line(1.0, cost=10**400), "`cost` lies outside"),
    (line(1.0, cost=False), "`cost` is true or false"),
    (line(True), "`t` is true or false"),
    (line(math.nan), "`t` is NaN"),
    (line(1_795_000_000_000.0), "`t` lies outside"),
    ('{"t": null, "arm": "baseline", "error": false}', "`t` is null"),
    ('{"t": "2026-11-23T12:00:00Z", "arm": "baseline", "error": false}', "`t` is a text"),
    ('{"t": 1, "arm": "baseline", "error": 0}', "`error` is a number"),
    ('{"t": 1, "arm": "baseline", "error": null}', "`error` is null"),
    (line(1.0, key=17), "`key` is a number"),
    (line(1.0, metrics=[1]), "`metrics` is a list"),
    (line(1.0, metrics={"a": "x"}), 'the metric "a" is a text'),
    (line(1.0, metrics={"a": None}), 'the metric "a" is null'),
    (line(1.0, metrics={"a": math.nan}), 'the metric "a" is NaN'),
    (line(1.0, metrics={"latency": 1}), '"latency" cannot be the name of a metric'),
    (line(1.0, metrics={"": 1}), '"" cannot be the name of a metric'),
    (line(1.0, metrics={f"m{n}": 1 for n in range(17)}), "more than 16 metrics"),
    (line(100_000.0), "jumps from 2 s to 100000 s"),
    (line(-3.0), "backwards: -3 s comes after 2 s"),
]


@pytest.mark.parametrize("block", [1 << 20, 200], ids=["at once", "in pieces"])
@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_line_is_told_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, message: str, block: int
) -> None:
    monkeypatch.setattr(stream, "BLOCK", block)
    path = recording(tmp_path, [*both(2.0) * 5, "", *both(2.0) * 5, wrong, *both(2.0) * 5])

    error = refusal(path)

    assert error.message.startswith(f"{path}, line 22: ")
    assert message in error.message
    assert "\n" not in error.message
    assert len(error.message) < len(path) + 250
    assert error.hint


def test_a_misspelt_member_is_asked_back(tmp_path: Path) -> None:
    error = refusal(recording(tmp_path, [line(1.0, latency=3.0)]))

    assert error.hint.startswith("did you mean `latency_s`?")


def test_of_two_wrong_lines_the_first_is_told(tmp_path: Path) -> None:
    error = refusal(recording(tmp_path, [*both(10.0), line(2.0), line(10.0, "nobody")]))

    assert "line 3: time goes backwards" in error.message


def test_what_was_before_a_wrong_line_has_been_told(tmp_path: Path) -> None:
    steps = read(recording(tmp_path, [*both(0.0), *both(7.0), "{"]), unit=Unit.REQUEST)

    first = next(steps)

    assert first[0] == 5_000
    with pytest.raises(StreamError):
        next(steps)


def test_a_recording_of_months_is_refused(tmp_path: Path) -> None:
    lines = [each for day in range(40) for each in both(day * 80_000.0)]

    error = refusal(recording(tmp_path, lines))

    assert "line 69: the recording lasts more than 31 days" in error.message


@pytest.mark.parametrize(("arm", "missing"), [("baseline", "candidate"), ("candidate", "baseline")])
def test_one_arm_alone_is_refused(tmp_path: Path, arm: str, missing: str) -> None:
    error = refusal(recording(tmp_path, [line(float(t), arm) for t in range(20)]))

    assert f"line 20: the recording ends without one request of the {missing}" in error.message


GOOD = "".join(
    f"{each}\n" for t in range(2_000) for each in both(t / 10, key=f"user-{t}", latency_s=0.1)
).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", " is empty"),
        (b"\n\n  \n", " is empty"),
        (gzip.compress(b"", mtime=0), " is empty"),
        (b"\x1f", "line 1: "),
        (b"\x1f\x8b", "line 1: the gzip data ends here"),
        (GOOD + b"\xff\xfe\n", "line 4001: byte 1 of the line is no UTF-8"),
        (GOOD + b'{"t": 1, "key": "\xc3"}\n', "line 4001: byte 18 of the line is no UTF-8"),
        (GOOD + b'{"t": 500.0, "arm"', "line 4001: this is no JSON"),
        (GOOD.decode().encode("utf-16"), "line 1: this is no text"),
        (b"\x7fELF\x02\x01\x01\0\0\0", "line 1: this is no text"),
        (b"\x28\xb5\x2f\xfdabcdef", "line 1: this is packed with zstd"),
        (b"{" * (3 << 20), "line 1: the line is longer than 1 MiB"),
        (GOOD + b" " * (3 << 20), "line 4001: the line is longer than 1 MiB"),
        (gzip.compress(GOOD) + b"rubbish", "line 4001: the gzip data is damaged here"),
        (gzip.compress(GOOD)[:-6] + b"abcdef", "line 4001: the gzip data is damaged here"),
        (gzip.compress(GOOD)[:-4], "line 4001: the gzip data ends here, in the middle"),
        (gzip.compress(GOOD)[:-4] + gzip.compress(GOOD), "the gzip data is damaged here"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "traffic"
    path.write_bytes(content)

    error = refusal(str(path))

    assert error.message.startswith(str(path))
    assert message in error.message
    assert error.hint


def test_where_a_gzip_file_was_cut_off_is_told_to_the_line(tmp_path: Path) -> None:
    packed = gzip.compress(GOOD)
    half = packed[: len(packed) // 2]
    path = tmp_path / "traffic.ndjson.gz"
    path.write_bytes(half)
    whole_lines = gzip.zlib.decompressobj(wbits=31).decompress(half).count(b"\n")  # type: ignore[attr-defined]

    error = refusal(str(path))

    assert f"line {whole_lines + 1}: the gzip data ends here" in error.message


def test_a_gzip_bomb_is_met_with_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(256):
            file.write(b"\0" * (1 << 20))

    error = refusal(str(path))

    assert "longer than 1 MiB" in error.message


def test_a_place_without_a_file_is_refused(tmp_path: Path) -> None:
    nowhere, folder = str(tmp_path / "nowhere"), str(tmp_path)

    assert f"there is no file {nowhere}" in refusal(nowhere).message
    assert f"{folder} is a directory" in refusal(folder).message
    assert "cannot be read" in refusal("a\0b").message
    assert "cannot be read" in refusal("x" * 5_000).message


# --- Random bytes ---------------------------------------------------------------------------------

PIECES = st.lists(
    st.binary(max_size=30)
    | st.sampled_from([*(f"{each}\n".encode() for each in both(1.0, key="a", latency_s=1.0))] * 3)
    | st.sampled_from(
        [b"\n", b"{", b"}\n", b'"t":', b"1e999", b"\x1f\x8b", b"\0", b"\xff", b"-", b"null", b","]
    )
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=3),
        max_leaves=5,
    ).flatmap(
        lambda value: st.sampled_from(["t", "arm", "error", "key", "latency_s", "cost", "metrics", "tt"]).map(
            lambda member: f"{json.dumps({**json.loads(line(1.0)), member: value})}\n".encode()
        )
    ),
    max_size=12,
).map(b"".join)


@settings(RELAXED, max_examples=300)
@given(content=PIECES, packed=st.booleans(), unit=st.sampled_from([None, *Unit]))
def test_no_bytes_whatsoever_lead_to_anything_but_steps_or_one_sentence(
    tmp_path: Path, content: bytes, packed: bool, unit: Unit | None
) -> None:
    path = tmp_path / "traffic"
    path.write_bytes(gzip.compress(content) if packed else content)

    found, refused = spoken(str(path), unit)

    assert bool(found) != bool(refused)
    assert refused is None or (refused.hint and "\n" not in refused.message)


@settings(RELAXED, max_examples=200)
@given(at=st.integers(0, len(GOOD) - 1), byte=st.binary(max_size=3), cut=st.integers(0, 40))
def test_a_damaged_recording_says_the_same_at_once_and_one_by_one(
    tmp_path: Path, at: int, byte: bytes, cut: int
) -> None:
    path = tmp_path / "traffic"
    path.write_bytes(GOOD[:at][-3_000:] + byte + GOOD[at + cut :][:3_000])

    whole, whole_refused = spoken(str(path), Unit.REQUEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", 300)
        pieces, pieces_refused = spoken(str(path), Unit.REQUEST)

    assert str(pieces_refused) == str(whole_refused)
    assert alike(pieces, whole)


class _Refusing:
    """A decoder that takes nothing."""

    def decode(self, raw: bytes) -> None:
        raise ValueError

    decode_lines = decode


@settings(RELAXED, max_examples=200)
@given(content=PIECES, at=st.integers(0, 3_000), byte=st.binary(max_size=3), cut=st.integers(0, 20))
def test_the_parser_that_explains_takes_lines_for_the_same(
    tmp_path: Path, content: bytes, at: int, byte: bytes, cut: int
) -> None:
    path = tmp_path / "traffic"
    path.write_bytes(GOOD[:at] + byte + GOOD[at + cut : 3_000].rpartition(b"\n")[0] + b"\n" + content)
    steps, refused = spoken(str(path), Unit.REQUEST)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_decoder", _Refusing())
        explained, refused_again = spoken(str(path), Unit.REQUEST)

    assert str(refused_again) == str(refused)
    assert explained == steps


# --- Processes ------------------------------------------------------------------------------------

READER = """
import sys
from deploy_gates.canary.stream import read
for at_ms, tallies in read("-"):
    print(at_ms, sum(each.started for each in tallies), flush=True)
"""


@pytest.fixture
def reader() -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads standard input and prints each step at once."""
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def _sent(reader: subprocess.Popen[bytes], content: bytes) -> None:
    assert reader.stdin is not None
    reader.stdin.write(content)
    reader.stdin.flush()


def test_standard_input_is_read_while_it_grows(reader: subprocess.Popen[bytes]) -> None:
    assert reader.stdout is not None
    lines = [f"{each}\n".encode() for t in range(0, 60, 5) for each in both(t)]

    _sent(reader, b"".join(lines[:14]))
    early = [reader.stdout.readline() for _ in range(6)]
    _sent(reader, lines[14][:10])
    _sent(reader, lines[14][10:] + lines[15] + lines[16])
    later = reader.stdout.readline() + reader.stdout.readline()
    output, errors = reader.communicate(lines[17], timeout=20)

    assert early == [b"%d 2\n" % at for at in range(5_000, 30_001, 5_000)]
    assert later == b"35000 2\n40000 2\n"
    assert output == b"45000 2\n"
    assert (errors, reader.returncode) == (b"", 0)


def test_standard_input_may_be_gzipped_and_is_named_in_errors(reader: subprocess.Popen[bytes]) -> None:
    output, errors = reader.communicate(gzip.compress(GOOD)[:-4], timeout=20)

    assert output.startswith(b"5000 100\n")
    assert b"StreamError: standard input, line 4001: the gzip data ends here" in errors


def test_a_recording_of_the_baseline_alone_will_do_for_a_plan(tmp_path: Path) -> None:
    file = tmp_path / "baseline.ndjson"
    file.write_text("".join(f'{{"t": {at}, "arm": "baseline", "error": false}}\n' for at in range(12)))

    with pytest.raises(stream.StreamError, match="one request of the candidate"):
        list(stream.read(str(file)))
    found = [each for _, tallies in stream.read(str(file), needs_both=False) for each in tallies]

    assert sum(each.started for each in found) == 12
