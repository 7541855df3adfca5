"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from deploy_gates.core.errors import WorkspaceError


def replace(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Put `content` at `path`: who reads finds what was there or all of this, also after a crash.

    `mode` is that of the file, less the umask. `WorkspaceError` if that cannot be done; what was there is
    then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise WorkspaceError(
            f"{path} cannot be written: {error.strerror or error}; nothing was changed"
        ) from error
