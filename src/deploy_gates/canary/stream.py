"""Recorded traffic, one observation a line, read as the tallies a canary is weighed by.

    {"t": 12.5, "arm": "candidate", "error": false, "key": "user-17", "latency_s": 0.83, "cost": 0.0021}

`t` counts seconds from anywhere, `cost` is in dollars; `key`, `latency_s`, `cost` and `metrics` (an object of
numbers, true and false) may be absent. Lines of the same five seconds come in any order, bins do not.

Whole blocks of lines are parsed at once. Where one does not parse, it is read again line by line, and what
that says counts: this is where the sentences and their line numbers come from.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy_gates.core.canary import COST, ERRORS, LATENCY
from deploy_gates.core.errors import DeployGatesError
from deploy_gates.core.tally import BIN_MS, GROWTH, HIGHEST, LOWEST, METRICS_MAX, Arm, Histogram, Tally, Unit

CONFIG = ENVIRONMENT = "recorded"
"""A stream does not say of what and where it is."""
BIN_S = BIN_MS / 1000
USER_S = 20.0
"""How long after the first request the value of a user is closed."""
LOOK_S = 30.0
"""So much traffic tells whether users are the unit; of the candidate, too, where keys do repeat."""
LOOK_LINES_MAX = 500_000
_LOOK_BINS = int(LOOK_S / BIN_S)
REPEATS_MIN = 0.01
"""Where more requests than this carry a key seen before, users are the unit."""
CROSSINGS_MIN = 20
"""Nobody keeps an arm where so many further requests of users go to the other one ..."""
CROSSINGS_SHARE_MIN = 0.5
"""... and this share of them ..."""
BOTH_WAYS_MIN = 0.005
"""... or this share both ways at the same time, which no step of traffic does."""
GAP_MAX_S = 86_400.0
SPAN_MAX_S = 31 * 86_400.0
T_MAX_S = 1e11
AMOUNT_MAX = 1e12
"""No latency, cost or metric is larger: the outermost bucket reaches no further."""
LINE_MAX = 1 << 20
"""Bytes of one line."""
BLOCK = 1 << 20
"""Bytes read, or unpacked, at once."""
BIN_LINES_MAX = 2_000_000
"""Lines of users that are kept until their five seconds are over."""
USERS_MAX = 10_000_000
"""Users that are remembered as counted, at 8 bytes each."""
NAME_MAX = 200
"""Characters of the name of a metric."""

Step: TypeAlias = tuple[int, tuple[Tally, ...]]
"""The end of a closed bin in milliseconds, and what was in it."""
Progress: TypeAlias = Callable[[int, int | None], None]
"""Takes the bytes read so far, and all there are where that is known."""
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


class StreamError(DeployGatesError):
    """Recorded observations that cannot be read, and in which line."""


def read(
    path: str,
    *,
    unit: Unit | None = None,
    progress: Progress | None = None,
    needs_both: bool = True,
) -> Iterator[Step]:
    """Yield a step for each five seconds of the recording at `path`, gzipped or not; `-` is standard input.

    Without a unit, users are taken where keys repeat and keep their arm. A user is counted once before the
    candidate's first request and once from then on, in the bin and the arm of the first request, together
    with what follows it there within 20 s; a step of users therefore comes when its bin is 20 s old, and
    requests without a key are left out.

    `StreamError`, with the line, for what is no such recording. It may come after steps that were fine: only
    who has read to the end knows that the recording is whole. Unless it `needs_both`, one arm will do.
    """
    name = "standard input" if path == "-" else path
    total: _Requests | _Users | None = None if unit is None else _total_of(unit, name)
    look = _Look()
    check = _Check(name)
    for rows, error in _rows(_blocks(path, name, progress), name):
        rows, error = check.passed(rows, error)
        if total is None:
            look.add(rows)
            if look.is_over:
                total = _total_of(look.unit, name)
                rows = look.rows
        if total is not None:
            yield from total.add(rows)
        if error is not None:
            raise error
    if total is None:
        total = _total_of(look.unit, name)
        yield from total.add(look.rows)
    check.end(needs_both)
    yield from total.end()


def _total_of(unit: Unit, name: str) -> _Requests | _Users:
    return _Users(name) if unit is Unit.USER else _Requests()


# --- Rows: what lines say, column by column --------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Observations, one array for each member."""

    line: Ints
    t: Floats
    bin: Ints
    arm: NDArray[np.int8]
    """0 for the baseline, 1 for the candidate."""
    error: NDArray[np.bool_]
    key: Ints
    """The hash of the key; 0: none."""
    amounts: dict[str, Floats]
    """By metric, the latency and the cost among them; NaN: not given, or not to be counted."""

    def __len__(self) -> int:
        return len(self.line)

    def of(self, which: slice | NDArray[np.bool_] | Ints) -> _Rows:
        """Some of these rows."""
        return _Rows(
            line=self.line[which],
            t=self.t[which],
            bin=self.bin[which],
            arm=self.arm[which],
            error=self.error[which],
            key=self.key[which],
            amounts={name: values[which] for name, values in self.amounts.items()},
        )


def _joined(parts: Sequence[_Rows]) -> _Rows:
    """The rows of all parts, of which there is one at least."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for each in parts for name in each.amounts)
    return _Rows(
        line=np.concatenate([each.line for each in parts]),
        t=np.concatenate([each.t for each in parts]),
        bin=np.concatenate([each.bin for each in parts]),
        arm=np.concatenate([each.arm for each in parts]),
        error=np.concatenate([each.error for each in parts]),
        key=np.concatenate([each.key for each in parts]),
        amounts={name: _column([(each.amounts.get(name), len(each)) for each in parts]) for name in names},
    )


def _column(parts: Sequence[tuple[Floats | None, int]]) -> Floats:
    return np.concatenate([np.full(n, math.nan) if values is None else values for values, n in parts])


_Amount: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=AMOUNT_MAX)]
_Score: TypeAlias = Annotated[float, msgspec.Meta(ge=-AMOUNT_MAX, le=AMOUNT_MAX)]


class _Line(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """What a line may say."""

    t: Annotated[float, msgspec.Meta(ge=-T_MAX_S, le=T_MAX_S)]
    arm: Literal["baseline", "candidate"]
    error: bool
    key: str | None = None
    latency_s: _Amount | None = None
    cost: _Amount | None = None
    metrics: dict[str, bool | _Score] | None = None


_decoder = msgspec.json.Decoder(_Line)


def _rows(blocks: Iterator[bytes], name: str) -> Iterator[tuple[_Rows, StreamError | None]]:
    """The rows of each block of whole lines; with an error, those before it, and nothing comes after it."""
    line = 1
    known: set[str] = set()
    for block in blocks:
        here = block if b"\r" not in block else block.replace(b"\r\n", b"\n")
        n = here.count(b"\n")
        numbers, said, error = list(range(line, line + n)), _at_once(here, n), None
        if said is None or not _are_metrics(said, known):
            numbers, said, error = _one_by_one(here, line, name, known)
        line += n
        if said or error is not None:
            yield _columns(numbers, said, known), error
        if error is not None:
            return


def _at_once(block: bytes, n: int) -> list[_Line] | None:
    """What a block says if it says one thing a line; `None` if it has to be read line by line.

    A line that begins with a brace and ends with one holds no part of an object: no brace opens right after
    another has closed. So as many objects as lines means one each.
    """
    opened = block.count(b"\n{") + block.startswith(b"{")
    if not opened == block.count(b"}\n") == n:
        return None
    try:
        said = _decoder.decode_lines(block)
    except (ValueError, RecursionError):
        return None
    return said if len(said) == n else None


def _are_metrics(said: list[_Line], known: set[str]) -> bool:
    """Whether these are names of metrics, and not too many; they are known from then on."""
    names = {name for each in said if each.metrics for name in each.metrics} - known
    if not all(_is_metric(name) for name in names) or len(names | known) > METRICS_MAX:
        return False
    known |= names
    return True


def _is_metric(name: str) -> bool:
    return 0 < len(name) <= NAME_MAX and name not in (ERRORS, LATENCY, COST)


def _columns(numbers: list[int], said: list[_Line], known: set[str]) -> _Rows:
    n = len(said)
    t = np.array([each.t for each in said], np.float64)
    error = np.array([each.error for each in said], np.bool_)
    latency = np.array([each.latency_s for each in said], np.float64)
    amounts = {LATENCY: np.where(error, math.nan, latency)}
    amounts[COST] = np.array([each.cost for each in said], np.float64)
    for name in sorted(known):
        values = [math.nan if each.metrics is None else each.metrics.get(name, math.nan) for each in said]
        amounts[name] = np.array(values, np.float64)
    return _Rows(
        line=np.array(numbers, np.int64),
        t=t,
        bin=np.floor(t / BIN_S).astype(np.int64),
        arm=np.array([each.arm == "candidate" for each in said], np.int8),
        error=error,
        key=np.fromiter([hash(each.key) if each.key else 0 for each in said], np.int64, n),
        amounts=amounts,
    )


def _no_rows() -> _Rows:
    return _columns([], [], set())


# --- Line by line: what is wrong, and where -------------------------------------------------------


def _one_by_one(
    block: bytes, line: int, name: str, known: set[str]
) -> tuple[list[int], list[_Line], StreamError | None]:
    """The numbers of the lines that say something, what they say, and the error that ends them."""
    numbers: list[int] = []
    said: list[_Line] = []
    for number, raw in enumerate(block.split(b"\n")[:-1], line):
        if not raw.strip():
            continue
        try:
            each = _line(raw)
            if not _are_metrics([each], known):
                raise _Wrong(f"there are more than {METRICS_MAX} metrics", "record those that are judged")
        except _Wrong as wrong:
            return numbers, said, _error(name, number, wrong.message, wrong.hint)
        numbers.append(number)
        said.append(each)
    return numbers, said, None


def _error(name: str, line: int, message: str, hint: str) -> StreamError:
    return StreamError(f"{name}, line {line}: {message}", hint=hint)


class _Wrong(Exception):
    """A line cannot be read."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


_EXAMPLE = 'a line is like {"t": 12.5, "arm": "candidate", "error": false, "latency_s": 0.83, "cost": 0.0021}'
_AMOUNT_HINT = f"a number from 0 to {AMOUNT_MAX:.0e}; leave it out where it is not known"


def _line(raw: bytes) -> _Line:
    """What one line says. `_Wrong`, in one sentence, for anything else."""
    try:
        said = _decoder.decode(raw)
    except (ValueError, RecursionError):
        return _explained(raw)
    return said if all(map(_is_metric, said.metrics or ())) else _explained(raw)


def _explained(raw: bytes) -> _Line:
    """What a line says that was refused without saying why."""
    if b"\0" in raw:
        raise _Wrong(
            "this is no text, for it holds a zero byte",
            "give a file of JSON lines in UTF-8, or one that gzip made",
        )
    try:
        found = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as broken:
        message = f"byte {broken.start + 1} of the line is no UTF-8"
        raise _Wrong(message, "write the recording in UTF-8") from None
    except json.JSONDecodeError as broken:
        raise _Wrong(f"this is no JSON: {broken.msg} at column {broken.colno}", _EXAMPLE) from None
    except (ValueError, RecursionError):
        raise _Wrong("this is no JSON that anybody could mean", _EXAMPLE) from None
    if not isinstance(found, dict):
        raise _Wrong(f"this is {_what(found)} and no object", _EXAMPLE)
    for member in found:
        if member not in _Line.__struct_fields__:
            raise _Wrong(f"nobody knows the member {_shown(member)}", _meant(member))
    for member in ("t", "arm", "error"):
        if member not in found:
            raise _Wrong(f"`{member}` is missing", _EXAMPLE)
    arm, error, key = found["arm"], found["error"], found.get("key")
    if arm not in ("baseline", "candidate"):
        raise _Wrong(f"`arm` is {_shown(arm)}", "the arms are `baseline` and `candidate`")
    if not isinstance(error, bool):
        raise _Wrong(f"`error` is {_what(error)}", "it is true or false: whether the request failed")
    if key is not None and not isinstance(key, str):
        raise _Wrong(f"`key` is {_what(key)}", 'a key is text, like "user-17"')
    t_hint = "seconds, from anywhere: divide milliseconds by 1000"
    return _Line(
        t=_number(found["t"], "`t`", -T_MAX_S, T_MAX_S, t_hint),
        arm=arm,
        error=error,
        key=key,
        latency_s=_amount(found, "latency_s"),
        cost=_amount(found, "cost"),
        metrics=_metrics(found.get("metrics")),
    )


def _amount(found: dict[str, object], member: str) -> float | None:
    value = found.get(member)
    return None if value is None else _number(value, f"`{member}`", 0.0, AMOUNT_MAX, _AMOUNT_HINT)


def _number(value: object, what: str, least: float, greatest: float, hint: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Wrong(f"{what} is {_what(value)} and no number", hint)
    if isinstance(value, float) and not math.isfinite(value):
        raise _Wrong(f"{what} is {_shown(value)} and no finite number", hint)
    if least == 0.0 and value < 0:
        raise _Wrong(f"{what} is negative: {_shown(value)}", hint)
    if not least <= value <= greatest:
        raise _Wrong(f"{what} lies outside {least:g} to {greatest:g}: {_shown(value)}", hint)
    return float(value)


def _metrics(value: object) -> dict[str, bool | float] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _Wrong(f"`metrics` is {_what(value)} and no object", 'like {"accepted": true, "score": 0.7}')
    hint = f"a metric is true, false, or a number within ±{AMOUNT_MAX:.0e}"
    metrics: dict[str, bool | float] = {}
    for name, each in value.items():
        if not _is_metric(name):
            raise _Wrong(
                f"{_shown(name)} cannot be the name of a metric",
                f"1 to {NAME_MAX} characters, and not {ERRORS}, {LATENCY} or {COST}: every canary has those",
            )
        what = f"the metric {_shown(name)}"
        metrics[name] = each if isinstance(each, bool) else _number(each, what, -AMOUNT_MAX, AMOUNT_MAX, hint)
    return metrics


_WHAT = (
    (bool, "true or false"),
    (int | float, "a number"),
    (str, "a text"),
    (list, "a list"),
    (dict, "an object"),
)


def _what(value: object) -> str:
    return next((word for kind, word in _WHAT if isinstance(value, kind)), "null")


def _shown(value: object) -> str:
    """The value as JSON and in ASCII, cut where it is long."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        return _what(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _meant(member: str) -> str:
    members = _Line.__struct_fields__
    close = difflib.get_close_matches(member[:NAME_MAX], members, n=1, cutoff=0.6)
    rest = f"the members are {', '.join(members)}; others go into metrics"
    return f"did you mean `{close[0]}`? Otherwise: {rest}" if close else rest


# --- What only the order of lines can say ---------------------------------------------------------


class _Check:
    """Whether time moves forward and not too far, and whether both arms are there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines = 0
        self.arms = [False, False]
        self.first: float | None = None
        self.latest = -math.inf
        self.bin = -(1 << 62)

    def passed(self, rows: _Rows, error: StreamError | None) -> tuple[_Rows, StreamError | None]:
        """The rows before the first that is out of order, and what is wrong with it, or else `error`."""
        if not len(rows):
            return rows, error
        if self.first is None:
            self.first = self.latest = float(rows.t[0])
        bins = np.maximum.accumulate(np.append(self.bin, rows.bin))
        reached = np.maximum.accumulate(np.append(self.latest, rows.t))
        back = rows.bin < bins[:-1]
        gap = rows.t - reached[:-1] > GAP_MAX_S
        span = rows.t - self.first > SPAN_MAX_S
        wrong = np.flatnonzero(back | gap | span)
        if len(wrong):
            at = int(wrong[0])
            message, hint = self._message(float(rows.t[at]), float(reached[at]), bool(back[at]))
            error = _error(self.name, int(rows.line[at]), message, hint)
            rows = rows.of(slice(0, at))
        if len(rows):
            self.lines = int(rows.line[-1])
            self.bin, self.latest = int(bins[len(rows)]), float(reached[len(rows)])
            self.arms = [self.arms[0] or bool((rows.arm == 0).any()), self.arms[1] or bool(rows.arm.any())]
        return rows, error

    def end(self, needs_both: bool) -> None:
        """`StreamError` if an arm is missing, or everything."""
        if self.first is None:
            raise StreamError(f"{self.name} is empty: it holds no observation", hint=_EXAMPLE)
        if needs_both and not all(self.arms):
            missing, there = ("candidate", "baseline") if self.arms[0] else ("baseline", "candidate")
            raise StreamError(
                f"{self.name}, line {self.lines}: the recording ends without one request of the {missing}; "
                f"all are of the {there}",
                hint="a canary compares two arms: record both, and name them `baseline` and `candidate`",
            )

    def _message(self, t: float, reached: float, is_back: bool) -> tuple[str, str]:
        if is_back:
            return (
                f"time goes backwards: {t:.15g} s comes after {reached:.15g} s, five seconds that are closed",
                "sort the recording by `t`; lines within the same five seconds may come in any order",
            )
        if t - reached > GAP_MAX_S:
            return (
                f"time jumps from {reached:.15g} s to {t:.15g} s, by more than a day",
                "`t` is in seconds; give two recordings one after the other",
            )
        return (
            f"the recording lasts more than {SPAN_MAX_S / 86_400:.0f} days up to here",
            "give less at once: a canary does not last that long",
        )


# --- Which unit -----------------------------------------------------------------------------------


class _Look:
    """The first traffic of a recording, kept until it tells what the unit is."""

    def __init__(self) -> None:
        self._parts: list[_Rows] = []
        self._lines = 0
        self._end: int | None = None
        self._candidate_end: int | None = None
        self._repeating: bool | None = None
        self.is_over = False

    @property
    def rows(self) -> _Rows:
        """All that was kept."""
        return _joined(self._parts) if self._parts else _no_rows()

    @property
    def unit(self) -> Unit:
        """Users, where keys repeat and keep their arm; otherwise requests."""
        rows = self._first(self._end)
        if not self._repeats(rows):
            return Unit.REQUEST
        rows = self._first(self._candidate_end)
        users = _Users("")
        users.count(rows.of(rows.key != 0))
        return Unit.REQUEST if users.is_crossed else Unit.USER

    def add(self, rows: _Rows) -> None:
        """Look at more."""
        if not len(rows):
            return
        self._parts.append(rows)
        self._lines += len(rows)
        if self._end is None:
            self._end = int(rows.bin[0]) + _LOOK_BINS
        if self._candidate_end is None and rows.arm.any():
            self._candidate_end = int(rows.bin[rows.arm == 1][0]) + _LOOK_BINS
        latest = int(rows.bin[-1])
        if self._repeating is None and latest >= self._end:
            self._repeating = self._repeats(self._first(self._end))
        has_both = self._candidate_end is not None and latest >= self._candidate_end
        self.is_over = (
            self._repeating is False
            or (self._repeating is True and has_both)
            or self._lines >= LOOK_LINES_MAX
        )

    def _first(self, end: int | None) -> _Rows:
        """What was before the bin `end`, at most `LOOK_LINES_MAX`."""
        rows = self.rows.of(slice(0, LOOK_LINES_MAX))
        return rows if end is None else rows.of(rows.bin < end)

    def _repeats(self, rows: _Rows) -> bool:
        keys = rows.key[rows.key != 0]
        return len(keys) - len(np.unique(keys)) > REPEATS_MIN * len(rows)


# --- Requests -------------------------------------------------------------------------------------


def _tallies(rows: _Rows, unit: Unit) -> dict[int, dict[int, Tally]]:
    """The tallies of rows by bin and arm, bins in order."""
    found: dict[int, dict[int, Tally]] = {}
    if not len(rows):
        return found
    groups, group = np.unique(rows.bin * 2 + rows.arm, return_inverse=True)
    n = len(groups)
    count = np.bincount(group, minlength=n).tolist()
    errors = np.bincount(group[rows.error], minlength=n).tolist()
    histograms = {name: _histograms(values, group, n) for name, values in rows.amounts.items()}
    for index, each in enumerate(groups.tolist()):
        number, arm = divmod(each, 2)
        found.setdefault(number, {})[arm] = Tally(
            config=CONFIG,
            environment=ENVIRONMENT,
            revision=1,
            arm=Arm.CANDIDATE if arm else Arm.BASELINE,
            start_ms=number * BIN_MS,
            unit=unit,
            started=count[index],
            finished=count[index],
            errors=errors[index],
            latency_s=histograms[LATENCY][index],
            cost_usd=histograms[COST][index],
            metrics={
                name: by_group[index]
                for name, by_group in histograms.items()
                if name not in (LATENCY, COST) and by_group[index].counts
            },
        )
    return found


def _no_users(number: int, arm: int) -> Tally:
    """What is told of a bin in which only users came who were counted before: that there was traffic."""
    return Tally(
        config=CONFIG,
        environment=ENVIRONMENT,
        revision=1,
        arm=Arm.CANDIDATE if arm else Arm.BASELINE,
        start_ms=number * BIN_MS,
        unit=Unit.USER,
    )


def _histograms(values: Floats, group: Ints, n: int) -> list[Histogram]:
    """The histogram of each of `n` groups."""
    given = ~np.isnan(values)
    values, group = values[given], group[given]
    logs = np.log(np.maximum(values, 1e-300)) / math.log(GROWTH)
    bucket = np.clip(np.floor(logs), LOWEST, HIGHEST).astype(np.int64)
    width = HIGHEST - LOWEST + 1
    codes, counts = np.unique(group * width + (bucket - LOWEST), return_counts=True)
    totals = np.bincount(group, weights=values, minlength=n).tolist()
    ends = np.searchsorted(codes, np.arange(n + 1) * width).tolist()
    buckets, numbers = (codes % width + LOWEST).tolist(), counts.tolist()
    return [
        Histogram(
            counts=dict(zip(buckets[ends[at] : ends[at + 1]], numbers[ends[at] : ends[at + 1]], strict=True)),
            total=totals[at],
        )
        for at in range(n)
    ]


class _Requests:
    """Every request counts; what is kept is the sum of the open bin."""

    def __init__(self) -> None:
        self._bin: int | None = None
        self._open: dict[int, Tally] = {}

    def add(self, rows: _Rows) -> Iterator[Step]:
        """The steps of the bins that these rows close."""
        for number, tallies in _tallies(rows, Unit.REQUEST).items():
            if self._bin is None:
                self._bin = number
            while self._bin < number:
                yield self._step()
            for arm, tally in tallies.items():
                self._open[arm] = self._open[arm] + tally if arm in self._open else tally

    def end(self) -> Iterator[Step]:
        """The last bin is judged as it is."""
        if self._bin is not None:
            yield self._step()

    def _step(self) -> Step:
        assert self._bin is not None
        tallies = tuple(self._open[arm] for arm in sorted(self._open))
        self._open = {}
        self._bin += 1
        return self._bin * BIN_MS, tallies


# --- Users ----------------------------------------------------------------------------------------

_LOG_GRAIN = 2.0**32
"""Logarithms are summed as multiples of its inverse, which add up exactly in any order."""
_LEAST = 1e-12
_USER_BINS = int(USER_S / BIN_S)
_OTHER_CANARY = 0x5DEECE66D1CE4E5B
"""Who was counted before the canary is somebody else in it."""


class _Users:
    """Every user counts once: with the first request, and what follows in the same arm within 20 s."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._parts: list[_Rows] = []
        self._kept = 0
        self._open = _none_open()
        self._seen = _Seen()
        self._next: int | None = None
        self._latest = 0
        self._active: set[tuple[int, int]] = set()
        """Bins that are not closed, and arms, in which there were requests at all."""
        self._canary: int | None = None
        self._has_ended_one = False
        self._further = 0
        self._crossings = 0
        self._both_ways = 0
        self._crossed_line: int | None = None

    @property
    def is_crossed(self) -> bool:
        """Whether users go both ways between the arms, or most are in both, so that no arm is a user's."""
        both_ways = self._both_ways >= max(CROSSINGS_MIN, BOTH_WAYS_MIN * self._further)
        return both_ways or self._crossings >= max(CROSSINGS_MIN, CROSSINGS_SHARE_MIN * self._further)

    def add(self, rows: _Rows) -> Iterator[Step]:
        """The steps of the bins that are 20 s old with these rows."""
        if not len(rows):
            return
        if self._next is None:
            self._next = int(rows.bin[0])
        self._latest = int(rows.bin[-1])
        self._active |= {divmod(each, 2) for each in np.unique(rows.bin * 2 + rows.arm).tolist()}
        if len(keyed := rows.of(rows.key != 0)):
            self._parts.append(keyed)
            self._kept += len(keyed)
        if self._kept > BIN_LINES_MAX and self._parts[0].bin[0] == self._latest:
            raise _error(
                self._name,
                int(keyed.line[BIN_LINES_MAX - self._kept]),
                f"there are more than {BIN_LINES_MAX:,} requests within five seconds",
                "record some of the users, all requests of each; or judge requests",
            )
        yield from self._steps(self._latest)

    def end(self) -> Iterator[Step]:
        """Take the last bin for whole; who is not 20 s old then is left out."""
        yield from self._steps(self._latest + 1)
        if self._canary is None:
            raise StreamError(
                f"{self._name} names no user in the candidate: none of its requests carries a `key`",
                hint="record the key that routing hashes, or judge requests",
            )
        if not self._has_ended_one:
            raise StreamError(
                f"{self._name} lasts no longer than the {USER_S:.0f} s after which users are judged",
                hint="record for longer, or judge requests",
            )

    def count(self, rows: _Rows) -> None:
        """Take in rows of closed bins that carry keys."""
        if self._canary is None and rows.arm.any():
            self._canary = int(rows.bin[rows.arm == 1].min())
            start = int(np.searchsorted(rows.bin, self._canary))
            self._count(rows.of(slice(0, start)))
            self._seen = _Seen()
            rows = rows.of(slice(start, None))
        if self._canary is not None:
            rows = replace(rows, key=rows.key ^ _OTHER_CANARY)
        self._count(rows)

    def _steps(self, until: int) -> Iterator[Step]:
        """Count what is before the bin `until`, and give the bins that can get no more."""
        if self._parts and int(self._parts[0].bin[0]) < until:
            rows = _joined(self._parts)
            n = int(np.searchsorted(rows.bin, until))
            self._parts = [rows.of(slice(n, None))] if n < len(rows) else []
            self._kept = len(rows) - n
            self.count(rows.of(slice(0, n)))
            self._refuse()
        end = until - _USER_BINS
        if self._next is None or self._next >= end:
            return
        tallies = self._closed(end)
        self._has_ended_one = True
        for number in range(self._next, end):
            by_arm = tallies.get(number, {})
            for arm in (0, 1):
                if (number, arm) in self._active:
                    by_arm.setdefault(arm, _no_users(number, arm))
                    self._active.remove((number, arm))
            yield (number + 1) * BIN_MS, tuple(by_arm[arm] for arm in sorted(by_arm))
        self._next = end

    def _count(self, rows: _Rows) -> None:
        if not len(rows):
            return
        rows = rows.of(np.lexsort((rows.arm, rows.t, rows.key)))
        heads = np.flatnonzero(np.append(True, rows.key[1:] != rows.key[:-1]))
        keys = rows.key[heads]
        at, is_open = _places(self._open.key, keys)
        is_new = ~is_open & ~self._seen.holds(keys)
        user = np.repeat(np.arange(len(heads)), np.diff(np.append(heads, len(rows))))
        first_t, arm = rows.t[heads], rows.arm[heads]
        first_t[is_open], arm[is_open] = self._open.t[at[is_open]], self._open.arm[at[is_open]]
        counts = (is_open | is_new)[user] & (rows.t - first_t[user] <= USER_S)
        self._cross(rows.of(counts), arm[user][counts], int(is_new.sum()))
        counts &= rows.arm == arm[user]
        self._seen.add(keys[is_new])
        self._open = self._open.with_new(rows.of(heads[is_new]))
        self._open.take(rows.of(counts))

    def _cross(self, rows: _Rows, arm: NDArray[np.int8], new: int) -> None:
        """Count who goes to the other arm: a step of traffic takes users one way, and not both at once."""
        self._further += len(rows) - new
        up, down = (rows.arm > arm), (rows.arm < arm)
        if not (up | down).any():
            return
        if self._crossed_line is None:
            self._crossed_line = int(rows.line[up | down].min())
        self._crossings += int((up | down).sum())
        least = int(rows.bin.min())
        n = int(rows.bin.max()) - least + 1
        ups, downs = (np.bincount(rows.bin[each] - least, minlength=n) for each in (up, down))
        self._both_ways += int(np.minimum(ups, downs).sum())

    def _refuse(self) -> None:
        if self.is_crossed and self._crossed_line is not None:
            raise _error(
                self._name,
                self._crossed_line,
                "this user gets the other arm within 20 s, and so many do that users cannot be the unit",
                "judge requests, or record the key that routing hashes",
            )
        if len(self._seen) > USERS_MAX:
            raise StreamError(
                f"{self._name} has more than {USERS_MAX:,} users",
                hint="record some of the users, all requests of each; or judge requests",
            )

    def _closed(self, end: int) -> dict[int, dict[int, Tally]]:
        """The tallies of users who came before the bin `end`; they are forgotten but for being seen."""
        is_over = self._open.bin < end
        over, self._open = self._open.of(is_over), self._open.of(~is_over)
        return _tallies(over.rows(), Unit.USER)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Open:
    """Users whose value is not closed yet, ordered by key; the sums are added to in place."""

    key: Ints
    t: Floats
    """Of the first request."""
    bin: Ints
    arm: NDArray[np.int8]
    errors: Ints
    sums: dict[str, Floats]
    counts: dict[str, Floats]

    def of(self, which: NDArray[np.bool_] | Ints) -> _Open:
        """Some of these users."""
        return _Open(
            key=self.key[which],
            t=self.t[which],
            bin=self.bin[which],
            arm=self.arm[which],
            errors=self.errors[which],
            sums={name: each[which] for name, each in self.sums.items()},
            counts={name: each[which] for name, each in self.counts.items()},
        )

    def with_new(self, rows: _Rows) -> _Open:
        """These and those whose first requests are given."""
        n = len(rows)
        names = dict.fromkeys([*self.sums, *rows.amounts])
        before = np.zeros(len(self.key))
        return _Open(
            key=np.append(self.key, rows.key),
            t=np.append(self.t, rows.t),
            bin=np.append(self.bin, rows.bin),
            arm=np.append(self.arm, rows.arm),
            errors=np.append(self.errors, np.zeros(n, np.int64)),
            sums={name: np.append(self.sums.get(name, before), np.zeros(n)) for name in names},
            counts={name: np.append(self.counts.get(name, before), np.zeros(n)) for name in names},
        ).of(np.argsort(np.append(self.key, rows.key)))

    def take(self, rows: _Rows) -> None:
        """Add what these users got."""
        n = len(self.key)
        user = np.searchsorted(self.key, rows.key)
        self.errors[:] += np.bincount(user[rows.error], minlength=n)
        for name, values in rows.amounts.items():
            given = ~np.isnan(values)
            amounts = values[given]
            if name in (LATENCY, COST):
                amounts = np.round(np.log(np.maximum(amounts, _LEAST)) * _LOG_GRAIN)
            self.sums[name][:] += np.bincount(user[given], weights=amounts, minlength=n)
            self.counts[name][:] += np.bincount(user[given], minlength=n)

    def rows(self) -> _Rows:
        """One row a user: any error, the geometric mean of latency and cost, the mean of other metrics."""
        amounts: dict[str, Floats] = {}
        for name, sums in self.sums.items():
            means = np.full(len(self.key), math.nan)
            np.divide(sums, self.counts[name], out=means, where=self.counts[name] > 0)
            amounts[name] = np.exp(means / _LOG_GRAIN) if name in (LATENCY, COST) else means
        return _Rows(
            line=np.zeros(len(self.key), np.int64),
            t=self.t,
            bin=self.bin,
            arm=self.arm,
            error=self.errors > 0,
            key=self.key,
            amounts=amounts,
        )


def _none_open() -> _Open:
    nothing = _no_rows()
    return _Open(
        key=nothing.key,
        t=nothing.t,
        bin=nothing.bin,
        arm=nothing.arm,
        errors=np.zeros(0, np.int64),
        sums={LATENCY: np.zeros(0), COST: np.zeros(0)},
        counts={LATENCY: np.zeros(0), COST: np.zeros(0)},
    )


class _Seen:
    """The hashes of users that were counted, as a few sorted arrays, each twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[Ints] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, keys: Ints) -> None:
        """Remember sorted keys that are not there yet."""
        while len(keys) and self._runs and len(self._runs[-1]) <= 2 * len(keys):
            keys = np.sort(np.append(self._runs.pop(), keys), kind="stable")
        if len(keys):
            self._runs.append(keys)

    def holds(self, keys: Ints) -> NDArray[np.bool_]:
        """Which of the keys are there."""
        found = np.zeros(len(keys), np.bool_)
        for run in self._runs:
            found |= _places(run, keys)[1]
        return found


def _places(among: Ints, keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where the keys are in a sorted array, and whether they are."""
    if not len(among):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
    at = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return at, among[at] == keys


# --- Bytes ----------------------------------------------------------------------------------------

_GZIP = b"\x1f\x8b"
_PACKED = (
    (b"\x28\xb5\x2f\xfd", "zstd", "zstdcat"),
    (b"BZh", "bzip2", "bzcat"),
    (b"\xfd7zXZ\0", "xz", "xzcat"),
)
_BOM = b"\xef\xbb\xbf"
_HEAD = 6
"""Bytes that tell what a file is."""


def _blocks(path: str, name: str, progress: Progress | None) -> Iterator[bytes]:
    """Whole lines, as many as can be read without waiting; a last line without an end gets one."""
    line, rest = 1, b""
    try:
        for piece in _pieces(path, name, progress):
            end = piece.rfind(b"\n") + 1
            if end:
                block, rest = rest + piece[:end], piece[end:]
                yield block
                line += block.count(b"\n")
            else:
                rest += piece
            if len(rest) > LINE_MAX:
                raise _Wrong(f"the line is longer than {LINE_MAX >> 20} MiB", "is this a file of JSON lines?")
    except _Wrong as wrong:
        raise _error(name, line, wrong.message, wrong.hint) from wrong.__cause__
    if rest:
        yield rest + b"\n"


def _pieces(path: str, name: str, progress: Progress | None) -> Iterator[bytes]:
    """What is in the file, unpacked."""
    raw = _raw(path, name, progress)
    head = b""
    for piece in raw:
        head += piece
        if len(head) >= _HEAD:
            break
    for magic, kind, command in _PACKED:
        if head.startswith(magic):
            raise _Wrong(f"this is packed with {kind}", f"`{command} FILE | deploy-gates canary replay -`")
    pieces = _chained(head, raw)
    if head.startswith(_GZIP):
        yield from _unpacked(pieces)
        return
    yield from _chained(next(pieces).removeprefix(_BOM), pieces)


def _chained(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest


def _raw(path: str, name: str, progress: Progress | None) -> Iterator[bytes]:
    opened: int | None = None
    try:
        descriptor = opened = None if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        descriptor = 0 if descriptor is None else descriptor
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise StreamError(f"{name} is a directory", hint="give a file of JSON lines, or `-`")
        total = status.st_size if stat.S_ISREG(status.st_mode) else None
        n = 0
        while piece := os.read(descriptor, BLOCK):
            n += len(piece)
            yield piece
            if progress is not None:
                progress(n, total)
    except FileNotFoundError:
        raise StreamError(f"there is no file {name}", hint="give a file of JSON lines, or `-`") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StreamError(
            f"{name} cannot be read: {reason}", hint="give a file of JSON lines, or `-`"
        ) from error
    finally:
        if opened is not None:
            os.close(opened)


def _unpacked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """What gzip packed, one member after the other, never more than `BLOCK` at once."""
    member = zlib.decompressobj(wbits=31)
    for piece in pieces:
        packed = piece
        while packed:
            if member.eof:
                packed = packed.lstrip(b"\0")
                if not packed:
                    break
                member = zlib.decompressobj(wbits=31)
            before = member.copy()
            try:
                text = member.decompress(packed, BLOCK)
            except zlib.error:
                yield from _until_damaged(before, packed)
                return
            packed = member.unused_data if member.eof else member.unconsumed_tail
            if text:
                yield text
    yield member.flush()
    if not member.eof:
        raise _Wrong("the gzip data ends here, in the middle", "copy the file again: it was cut off")


def _until_damaged(member: zlib._Decompress, packed: bytes) -> Iterator[bytes]:
    """What can be unpacked of damaged data, to the last byte: otherwise nobody knew the line."""
    try:
        for at in range(len(packed)):
            yield member.decompress(packed[at : at + 1])
    except zlib.error as error:
        reason = str(error).rpartition(": ")[2]
        raise _Wrong(f"the gzip data is damaged here: {reason}", "copy the file again") from error
