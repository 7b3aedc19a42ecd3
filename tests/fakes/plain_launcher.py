"""Starts what stands in for VMMs, without a jail: such a program needs the test's files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from vambrace.errors import DomainError


class PlainLauncher:
    """Starts ``command`` as the real one does."""

    def __init__(self, *command: str) -> None:
        self.command = command

    async def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def start(self, control: int, errors: int, cpus: Sequence[int]) -> asyncio.subprocess.Process:
        try:
            process = await asyncio.create_subprocess_exec(
                *(*self.command, "--control", str(control)),
                pass_fds=(control,),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
                env={key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ},
            )
        except OSError as error:
            raise DomainError(f"the VMM cannot be started: {error.strerror}") from error
        if cpus:
            os.sched_setaffinity(process.pid, cpus)
        return process
