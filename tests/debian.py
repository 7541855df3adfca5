"""Programs that tests want and pip has not: unpacked from Debian's packages, which installs nothing."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def unpacked(package: str, *, with_libraries: bool = False) -> Path:
    """The folder with the files of a package, kept for the next run; `OSError` says what stands in the way.

    With its libraries, all that it depends on and this machine has not is there too.
    """
    kept = Path(tempfile.gettempdir()) / f"deploy-gates-tests-{getpass.getuser()}" / package
    if kept.exists():
        return kept
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        made = Path(folder) / "unpacked"
        for each in _downloaded(package, Path(folder), with_libraries=with_libraries):
            subprocess.run(["dpkg-deb", "-x", each, made], check=True)
        with contextlib.suppress(OSError):  # another process was quicker
            made.rename(kept)
    return kept


def environment(folder: Path) -> dict[str, str]:
    """What a program of such a folder has to be told to find its libraries, and a font."""
    libraries = [*folder.glob("lib/*-linux-gnu*"), *folder.glob("usr/lib/*-linux-gnu*")]
    libraries += [each for above in libraries for each in above.iterdir() if any(each.glob("*.so*"))]
    told = {"LD_LIBRARY_PATH": os.pathsep.join(str(each) for each in libraries)}
    if not Path("/etc/fonts/fonts.conf").exists():
        fonts = folder / "fonts.conf"
        fonts.write_text(
            f"<fontconfig><dir>{folder}/usr/share/fonts</dir><cachedir>{folder}/fonts</cachedir></fontconfig>"
        )
        told["FONTCONFIG_FILE"] = str(fonts)
    return told


def _downloaded(package: str, folder: Path, *, with_libraries: bool) -> Sequence[Path]:
    command = ["apt-get", "download", package]
    if with_libraries:
        (folder / "partial").mkdir()
        options = [f"Dir::Cache::archives={folder}/", "Debug::NoLocking=1"]
        command = ["apt-get", "--yes", "--no-install-recommends", "--download-only", "install", package]
        command += [word for each in options for word in ("--option", each)]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode:  # a new machine has no lists yet
        subprocess.run(["apt-get", "update"], capture_output=True, check=False)
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    packages = sorted(folder.glob("*.deb"))
    if done.returncode or not packages:
        raise OSError(f"Debian's package {package} cannot be had: {done.stderr.decode()[-300:].strip()}")
    return packages
