"""A service as a process: on each line with a revision, it waits for that one and says what it serves.

    python tests/store/following.py URL

It answers `FOLLOWED REVISION STALE`, and ends with its input.
"""

from __future__ import annotations

import sys

from deploy_gates.client import ConfigClient

PATIENCE_S = 20

if __name__ == "__main__":
    with ConfigClient(sys.argv[1], environment="development", last_good=None) as client:
        for line in sys.stdin:
            is_there = client.wait_for("ticket-triage", int(line), PATIENCE_S)
            served = client.get("ticket-triage")
            sys.stdout.write(f"{is_there} {served.revision} {client.is_stale}\n")
            sys.stdout.flush()
