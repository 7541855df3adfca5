"""The five gates: what to check, and how to judge what came out. They ask; they do not call."""
