"""How a machine is started: resumed from its saved state, or cold, and then saved for the next time."""

from __future__ import annotations

import dataclasses
import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vambrace.emulator import devicetree, fuse, plugged, qemu
from vambrace.emulator.api import Api
from vambrace.emulator.build import Progress
from vambrace.emulator.diagnosis import refusal
from vambrace.emulator.saved import SavedState, fingerprint
from vambrace.errors import ServerError

READY_SECONDS = 240
RESUMED_SECONDS = 60


@dataclass(frozen=True)
class Starter:
    """Of the machine in ``home`` whose host answers at ``api``; with ``devices``, those are plugged in."""

    home: Path
    api: Api
    devices: bool

    def start(self, machine: qemu.Machine, progress: Progress, *, cold: bool) -> str:
        """Start ``machine``, wait until its API answers, and say which way it went. Raises ``ServerError``."""
        # The factory step still changes the fuse: a state from before would bring the old one back.
        settled = machine.flash is None or fuse.read_fuse(machine.flash).secured
        state = self._saved_state(machine) if settled and not cold else None
        if state is not None and state.ready():
            progress("resuming the saved state")
            try:
                pid = self._boot(dataclasses.replace(machine, memory=qemu.Memory(state.saved())))
                self.wait(pid, progress, RESUMED_SECONDS)
                return "resumed"
            except ServerError as error:
                progress(f"the saved state does not resume ({error.message.splitlines()[0]}): starting cold")
                qemu.stop(self.home)
                state.discard()
        progress("starting (cold)")
        if state is None:
            pid = self._boot(machine)
        else:
            # The firmware may have burnt its version into the fuse meanwhile: what is saved is of the machine as it is.
            pid = self._boot(
                dataclasses.replace(machine, memory=qemu.Memory()),
                lambda pid: self._save(pid, self._saved_state(machine), progress),
            )
        self.wait(pid, progress, READY_SECONDS)
        return "cold"

    def wait(self, pid: int, progress: Progress, seconds: float = READY_SECONDS) -> None:
        """Wait until the API of the machine that is the process ``pid`` answers. Raises ``ServerError``."""
        progress("waiting for the API")
        deadline = time.monotonic() + seconds
        trouble = "no answer"
        while time.monotonic() < deadline:
            gone = qemu.wait_gone(pid, 0.5)
            if (refused := refusal(self.home / "console.log")) is not None:
                raise refused
            if gone:
                raise ServerError(
                    "the emulated server stopped while starting; the end of its console:\n"
                    + qemu.tail(self.home / "console.log"),
                    hint=f"see {self.home}/console.log, secure.log and qemu.log",
                )
            try:
                self.api.get("/v1/host", timeout=10)
                return
            except ServerError:
                raise
            except (OSError, http.client.HTTPException) as error:
                trouble = str(error)
        raise ServerError(
            f"the API does not answer after {seconds:.0f} s ({trouble}); the end of the console:\n"
            + qemu.tail(self.home / "console.log"),
            hint=f"see {self.home}/console.log and secure.log",
        )

    def _boot(self, machine: qemu.Machine, at_gate: Callable[[int], None] = lambda pid: None) -> int:
        """Start ``machine``, do ``at_gate`` with its process id while it waits there, and let it through."""
        pid = qemu.start(machine)
        with qemu.at_gate(machine, pid, seconds=READY_SECONDS) as gate:
            # The connection stays open: a machine that is saved waits for a byte from here.
            at_gate(pid)
            if self.devices:
                with qemu.Monitor(self.home / "qmp.sock") as monitor:
                    plugged.plug(monitor, self.home / "nvme.img")
            qemu.open_gate(gate, machine, pid)
        return pid

    def _save(self, pid: int, state: SavedState, progress: Progress) -> None:
        """Only the next start is the poorer if this fails."""
        progress("saving the state for the next start")
        try:
            with qemu.Monitor(self.home / "qmp.sock") as monitor:
                state.save(pid, monitor)
        except ServerError as error:
            progress(f"{error.message}; the next start will be a cold one")

    def _saved_state(self, machine: qemu.Machine) -> SavedState:
        # The whole command line, whichever the port is; the cache's names stand for the files' contents.
        words = [devicetree.qemu_version(), *dataclasses.replace(machine, port=0, broker=0).command()]
        return SavedState(self.home / "saved", fingerprint(words, [machine.flash] if machine.flash else []))
