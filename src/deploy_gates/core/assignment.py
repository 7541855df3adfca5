"""Who gets the candidate: a bucket for every key, the same in every language and at every weight.

The vectors in `data/assignment.vectors.json` pin it down for whoever writes a client of their own.
"""

from __future__ import annotations

from hashlib import sha256

WHOLE_BP = 10_000
"""All of the traffic, in basis points: weights are counted in hundredths of a percent."""


def bucket(salt: str, key: str) -> int:
    """The bucket of `key`, from 0 to 9,999: the first 64 bits of SHA-256 of `salt:key`, scaled.

    A key gets the candidate where its bucket is below the weight in basis points. So whoever has it at 5 %
    keeps it at 25 %, and a new salt draws anew.
    """
    drawn = int.from_bytes(sha256(f"{salt}:{key}".encode()).digest()[:8], "big")
    return drawn * WHOLE_BP >> 64
