"""Tallies from a real Prometheus server."""

from __future__ import annotations

import http.server
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import prometheus_server
import pytest

from deploy_gates.canary.prometheus import MetricsUnavailable, Prometheus, Queries
from deploy_gates.core.errors import SettingsError
from deploy_gates.core.tally import BIN_MS, Arm, Histogram, Tally, bucket_of

SINCE_MS = 1_760_000_000_000
BINS = 6
EDGES = (0.5, 1.0, 2.0)
BASELINE = {"requests": 100, "errors": 2, "latency": (40, 30, 20, 10)}
CANDIDATE = {"requests": 5, "errors": 1, "latency": (1, 2, 1, 1)}


def moments() -> Iterator[tuple[int, int]]:
    """Seconds since the first bin, and how many bins have ended: six minutes before, too."""
    for at in range(-72, BINS + 1):
        yield at * BIN_MS // 1000, at


def series(name: str, labels: Mapping[str, str], values: Mapping[int, float]) -> str:
    written = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return "".join(f"{name}{{{written}}} {value:g} {SINCE_MS // 1000 + at}\n" for at, value in values.items())


def history() -> str:
    """Counters that rise by the same in each bin; the candidate's appear with the second bin.

    One pod of the baseline starts anew in the third bin: its counters fall to what came since.
    """
    families: dict[str, list[str]] = {
        "calls": [],
        "failures": [],
        "seconds": [],
        "dollars": [],
        "accepted": [],
    }
    for arm, rise in ((Arm.BASELINE, BASELINE), (Arm.CANDIDATE, CANDIDATE)):
        for pod in ("a", "b") if arm is Arm.BASELINE else ("c",):
            labels = {"config": "triage", "arm": arm.value, "pod": pod}

            def counted(step: float, arm: Arm = arm, pod: str = pod) -> dict[int, float]:
                found = {}
                for second, at in moments():
                    if arm is Arm.CANDIDATE:
                        if at >= 1:
                            found[second] = step * at
                    elif pod == "b" and at >= 3:
                        found[second] = step * (at - 2)
                    else:
                        found[second] = 5_000 * step + step * at
                return found

            families["calls"].append(series("calls_total", labels, counted(rise["requests"])))  # type: ignore[arg-type]
            families["failures"].append(series("failures_total", labels, counted(rise["errors"])))  # type: ignore[arg-type]
            families["accepted"].append(series("accepted_total", labels, counted(rise["requests"] * 0.8)))  # type: ignore[operator]
            for name, scale in (("seconds", 1.0), ("dollars", 0.01)):
                upto = 0.0
                for edge, count in zip((*EDGES, float("inf")), rise["latency"], strict=True):  # type: ignore[call-overload]
                    upto += count
                    le = "+Inf" if edge == float("inf") else f"{edge * scale:g}"
                    families[name].append(series(f"{name}_bucket", {**labels, "le": le}, counted(upto)))
                families[name].append(series(f"{name}_count", labels, counted(upto)))
                families[name].append(series(f"{name}_sum", labels, counted(upto * 0.9 * scale)))
    kinds = {"seconds": "histogram", "dollars": "histogram"}
    text = "".join(
        f"# TYPE {name} {kinds.get(name, 'counter')}\n" + "".join(lines) for name, lines in families.items()
    )
    return text + "# EOF\n"


QUERIES = Queries(
    requests='calls_total{config="$config",arm="$arm"}',
    errors='failures_total{config="$config",arm="$arm"}',
    latency='seconds{config="$config",arm="$arm"}',
    cost='dollars{config="$config",arm="$arm"}',
    shares={"accepted": 'accepted_total{config="$config",arm="$arm"}'},
    amounts={"again": 'seconds{config="$config",arm="$arm"}'},
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[prometheus_server.Server]:
    with prometheus_server.serving(tmp_path_factory.mktemp("prometheus"), history=history()) as running:
        yield running


def asked(server: prometheus_server.Server, queries: Queries = QUERIES, config: str = "triage") -> Prometheus:
    return Prometheus(server.url, queries, config=config, environment="production", revision=7)


def of_arm(tallies: tuple[Tally, ...], arm: Arm) -> list[Tally]:
    return [each for each in tallies if each.arm is arm]


def test_counters_are_subtracted_bin_by_bin_to_the_last_request(server: prometheus_server.Server) -> None:
    found = asked(server).tallies(SINCE_MS, SINCE_MS + BINS * BIN_MS)

    baseline, candidate = (of_arm(found, arm) for arm in Arm)
    assert [each.start_ms for each in baseline] == [SINCE_MS + at * BIN_MS for at in range(BINS)]
    # A pod that starts anew has lost what came between its last scrape and its end: here, nothing.
    assert [each.started for each in baseline] == [200] * BINS
    assert [each.errors for each in baseline] == [4] * BINS
    assert [each.started for each in candidate] == [5] * BINS
    assert [each.errors for each in candidate] == [1] * BINS
    assert {each.revision for each in found} == {7}
    assert {(each.config, each.environment) for each in found} == {("triage", "production")}


def test_buckets_are_told_apart_and_summed_over_pods(server: prometheus_server.Server) -> None:
    found = of_arm(asked(server).tallies(SINCE_MS, SINCE_MS + BINS * BIN_MS), Arm.BASELINE)[0]

    places = [bucket_of(each) for each in (0.35, 0.5**0.5, 2**0.5, 3.0)]
    assert found.latency_s.counts == dict(zip(places, (80, 60, 40, 20), strict=True))
    assert found.latency_s.total == pytest.approx(180.0)
    assert found.cost_usd.n == 200
    assert found.cost_usd.total == pytest.approx(1.8)
    assert found.metrics["again"] == found.latency_s
    assert found.metrics["accepted"] == Histogram(counts={0: 160, -710: 40}, total=160.0)


def test_asking_in_parts_tells_the_same(server: prometheus_server.Server) -> None:
    source = asked(server)

    whole = source.tallies(SINCE_MS, SINCE_MS + BINS * BIN_MS)
    parts = [
        each
        for at in range(BINS)
        for each in source.tallies(SINCE_MS + at * BIN_MS, SINCE_MS + (at + 1) * BIN_MS)
    ]

    assert sorted(parts, key=lambda each: (each.start_ms, each.arm)) == sorted(
        (each for each in whole if each.started), key=lambda each: (each.start_ms, each.arm)
    )


def test_scrapes_that_are_further_apart_make_wider_bins(server: prometheus_server.Server) -> None:
    found = asked(server, replace(QUERIES, scrape_s=15.0)).tallies(SINCE_MS, SINCE_MS + BINS * BIN_MS)

    assert [each.started for each in of_arm(found, Arm.BASELINE)] == [600, 600]
    assert asked(server, replace(QUERIES, scrape_s=15.0)).delay_s == 30.0


def test_an_arm_without_series_has_no_tallies(server: prometheus_server.Server) -> None:
    found = asked(server, replace(QUERIES, candidate="nobody")).tallies(SINCE_MS, SINCE_MS + BIN_MS)

    assert {each.arm for each in found} == {Arm.BASELINE}


def test_no_series_at_all_is_an_error_and_no_zeros(server: prometheus_server.Server) -> None:
    with pytest.raises(MetricsUnavailable, match=r'calls_total\{config="else",arm="baseline"\}'):
        asked(server, config="else").tallies(SINCE_MS, SINCE_MS + BIN_MS)


def test_wrong_promql_is_told_in_the_words_of_the_server(server: prometheus_server.Server) -> None:
    wrong = asked(server, replace(QUERIES, errors='failures_total{arm="$arm"'))

    with pytest.raises(MetricsUnavailable, match=r"parse error.*status 400"):
        wrong.tallies(SINCE_MS, SINCE_MS + BIN_MS)
    assert 'failures_total{arm="baseline"' in wrong.resolved


def test_names_cannot_leave_their_quotes(server: prometheus_server.Server) -> None:
    with pytest.raises(MetricsUnavailable, match="no series matches"):
        asked(server, config='x"} or calls_total{arm="baseline').tallies(SINCE_MS, SINCE_MS + BIN_MS)


def test_a_server_that_was_killed_is_an_error_and_no_zeros(tmp_path: Path) -> None:
    with prometheus_server.serving(tmp_path, history=history()) as server:
        source = asked(server)
        source.tallies(SINCE_MS, SINCE_MS + BIN_MS)
        server.kill()

        with pytest.raises(MetricsUnavailable, match="cannot be asked"):
            source.tallies(SINCE_MS, SINCE_MS + BIN_MS)


def test_a_window_of_no_bins_asks_nothing(server: prometheus_server.Server) -> None:
    source = asked(server)

    assert source.tallies(SINCE_MS, SINCE_MS) == ()
    assert source.resolved == ()


# --- Native histograms, scraped from a real exporter in protobuf -----------------------------------


class Exporter(http.server.BaseHTTPRequestHandler):
    """A native histogram of schema 3 whose buckets 1 and 2 rise with each scrape."""

    scrapes = 0

    def do_GET(self) -> None:
        Exporter.scrapes += 1
        arms = (("baseline", 10), ("candidate", 1))
        values = [(4, body_of(arm, Exporter.scrapes * times)) for arm, times in arms]
        calls = [(4, counter(arm, Exporter.scrapes * times * 3)) for arm, times in arms]
        body = delimited(message((1, b"native_seconds"), (2, b"."), (3, 4), *values))
        body += delimited(message((1, b"native_calls_total"), (2, b"."), (3, 0), *calls))
        self.send_response(200)
        self.send_header(
            "Content-Type",
            "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
        )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


def message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """Protocol buffers: whole numbers as varints, floats as doubles, bytes with their length."""
    found = b""
    for number, value in fields:
        if isinstance(value, bytes):
            found += varint(number << 3 | 2) + varint(len(value)) + value
        elif isinstance(value, float):
            found += varint(number << 3 | 1) + struct.pack("<d", value)
        else:
            found += varint(number << 3) + varint(value)
    return found


def delimited(body: bytes) -> bytes:
    return varint(len(body)) + body


def label(name: bytes, value: bytes) -> tuple[int, bytes]:
    return 1, message((1, name), (2, value))


def counter(arm: str, value: int) -> bytes:
    return message(label(b"arm", arm.encode()), (3, message((1, float(value)))))


def body_of(arm: str, n: int) -> bytes:
    """So many values in bucket 1, from 1 to 2^(1/8), and twice as many in bucket 2."""
    histogram = message(
        (1, 3 * n),
        (2, 3.3 * n),
        (5, zigzag(3)),
        (6, 1e-128),
        (7, 0),
        (12, message((1, zigzag(1)), (2, 2))),
        (13, zigzag(n)),
        (13, zigzag(n)),
    )
    return message(label(b"arm", arm.encode()), (7, histogram))


def test_native_histograms_are_read_as_well(tmp_path: Path) -> None:
    exporter = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
    thread = threading.Thread(target=exporter.serve_forever)
    thread.start()
    queries = Queries(
        requests='native_calls_total{arm="$arm"}',
        errors='native_failures_total{arm="$arm"}',
        latency='native_seconds{arm="$arm"}',
        cost="",
    )
    try:
        options = ("--enable-feature=native-histograms",)
        with prometheus_server.serving(tmp_path, scrape=exporter.server_port, options=options) as server:
            source = asked(server, queries)
            found = _until_there(source)
    finally:
        exporter.shutdown()
        exporter.server_close()
        thread.join()

    for arm in Arm:
        whole = sum((each.latency_s for each in of_arm(found, arm)), Histogram())
        first, second = (bucket_of(2 ** ((at - 0.5) / 8)) for at in (1, 2))
        assert set(whole.counts) == {first, second}
        assert whole.counts[second] == 2 * whole.counts[first] > 0
        assert whole.n == sum(each.started for each in of_arm(found, arm))
        assert whole.total == pytest.approx(1.1 * whole.n)


def _until_there(source: Prometheus) -> tuple[Tally, ...]:
    """Two bins that are over and in which something was scraped."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        until_ms = time.time_ns() // 1_000_000 // BIN_MS * BIN_MS
        try:
            found = source.tallies(until_ms - 2 * BIN_MS, until_ms)
        except MetricsUnavailable:
            found = ()
        if all(each.latency_s.n for arm in Arm for each in of_arm(found, arm)) and len(found) == 4:
            return found
        threading.Event().wait(0.5)
    raise AssertionError("nothing was scraped")


# --- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "url"),
        ({"url": "ftp://x"}, "no http"),
        ({"url": "http://u:p@x"}, "holds a password"),
        ({"url": "http://x", "latancy": "y"}, "latancy is not known"),
        ({"url": "http://x", "latency": 3}, "latency is no text"),
        ({"url": "http://x", "latency": "y{a='$who'}"}, "other than"),
        ({"url": "http://x", "scrape_s": 0}, "scrape_s"),
        ({"url": "http://x", "timeout_s": -1}, "timeout_s"),
        ({"url": "http://x", "token_env": "NOT_SET_AT_ALL"}, "NOT_SET_AT_ALL"),
        ({"url": "http://x", "shares": {f"m{at}": "x" for at in range(17)}}, "more than 16"),
    ],
)
def test_settings_that_cannot_be_used_are_told(raw: Mapping[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Prometheus.of(raw, config="c", environment="e")  # type: ignore[arg-type]


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Listening(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(str(self.headers.get("Authorization")))
            self.send_error(401, "no")

        def log_message(self, *_: object) -> None:
            """Nothing."""

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listening)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setenv("A_TOKEN", "secret")
    monkeypatch.setenv("A_USER", "ada")
    try:
        for raw in (
            {"url": url, "token_env": "A_TOKEN"},
            {"url": url, "user_env": "A_USER", "password_env": "A_TOKEN"},
        ):
            with pytest.raises(MetricsUnavailable, match="status 401") as told:
                Prometheus.of(raw, config="c", environment="e").tallies(SINCE_MS, SINCE_MS + BIN_MS)
            assert "secret" not in str(told.value)
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()

    assert heard == ["Bearer secret", "Basic YWRhOnNlY3JldA=="]
