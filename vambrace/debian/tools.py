"""Running the build's outside tools, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from vambrace.errors import BuildError, NoSpace, ToolMissing

_FULL = os.strerror(errno.ENOSPC)  # in the C locale, which the tools run in
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find(tool: str) -> str:
    """Path of ``tool``, also looked for where only root's PATH leads. Raises ToolMissing."""
    path = shutil.which(tool) or shutil.which(tool, path=_SYSTEM_PATH)
    if path is None:
        raise ToolMissing(tool)
    return path


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    stdin: bytes | None = None,
) -> str:
    """Run ``command`` and return its standard output.

    With ``log`` the output goes to that file instead (and the result is empty).
    Raises ToolMissing, or BuildError with the tail of the output (NoSpace where that speaks of a full disk).
    """
    words = [find(str(command[0])), *(str(word) for word in command[1:])]
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PATH": f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}",
        **(env or {}),
    }
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            result = subprocess.run(
                words,
                cwd=cwd,
                env=environment,
                input=stdin,
                stdout=sink,
                stderr=subprocess.STDOUT,
                check=False,
            )
        output = b""
        trouble = log.read_bytes() if result.returncode else b""
    else:
        result = subprocess.run(words, cwd=cwd, env=environment, input=stdin, capture_output=True, check=False)
        output = result.stdout
        trouble = result.stderr or result.stdout
    if result.returncode:
        tail = "\n".join(trouble.decode(errors="replace").splitlines()[-15:])
        if _FULL in tail:
            place = next((word.parent for word in command if isinstance(word, Path)), cwd or Path.cwd())
            raise NoSpace(str(place), f"what {Path(words[0]).name} writes")
        raise BuildError(
            f"{Path(words[0]).name} failed with exit code {result.returncode}:\n{tail}",
            hint=f"the whole log is in {log}" if log else None,
        )
    return output.decode(errors="replace")
