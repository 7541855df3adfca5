"""Names and numbers in addresses and queries."""

from __future__ import annotations

import re

from starlette.requests import Request

from deploy_gates.server.asking import refuse

_NAME = re.compile(r"[^\x00-\x1f/\ud800-\udfff]{1,200}")


def name(given: str, what: str, status: int = 404) -> str:
    """A name of something; an answer is raised for what cannot be one."""
    if not _NAME.fullmatch(given):
        raise refuse(f"{what} is no name of 1 to 200 characters", status)
    return given


def number(request: Request, key: str, default: int, most: int) -> int:
    """A number of the query; an answer is raised for anything else."""
    value = request.query_params.get(key)
    if value is None:
        return default
    if not re.fullmatch(r"[0-9]{1,16}", value) or int(value) > most:
        raise refuse(f"`{key}` is no whole number from 0 to {most:,}")
    return int(value)
