"""pip, which may start no other program: run by its path, with pip's arguments.

``--only-binary`` holds for what pip finds in an index, not for what a wheel requires by a URL: that would be built, or
fetched by a version control system, and so a stranger's code would run here.
"""

from __future__ import annotations

import errno
import runpy
import sys
from pathlib import PurePath
from typing import Final

REFUSAL: Final = "pip may start no program here"
_STARTS: Final = (
    *("subprocess.Popen", "pty.spawn", "os.exec", "os.fork", "os.forkpty"),
    *("os.posix_spawn", "os.spawn", "os.startfile", "os.system"),
)
_CREDENTIALS: Final = "keyring"  # pip asks it, where its configuration says so


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook (PEP 578). Raises ``PermissionError`` for every start of a program but that for credentials."""
    if event not in _STARTS:
        return
    if event == "subprocess.Popen" and PurePath(str(arguments[0])).name == _CREDENTIALS:
        return
    raise PermissionError(errno.EPERM, REFUSAL)


if __name__ == "__main__":
    sys.addaudithook(refuse)
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
