"""Runs a module as a process of its own that ends with the one that started it, however that one ended.

`python -m deploy_gates.demo.tied MODULE ARGUMENTS`: standard input is the tie. Nothing is ever written to
it; it is closed when nobody is left at its other end, which even `kill -9` cannot prevent.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE_S = 3.0
"""So long a process has to end by itself once it is alone."""


def main() -> None:
    """Tie this process, and become the module."""
    tie = os.dup(0)  # not inherited by what is started here
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_watch, args=(tie,), name="tie", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _watch(tie: int) -> None:
    while os.read(tie, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    main()
