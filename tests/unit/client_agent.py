"""The real agent for the tests of clients, and a stand-in for its monitor, which needs an ARM machine."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attest_factory import Platform

from vambrace.attest.owner import Bounds, verify_bounds, verify_percent
from vambrace.config import DomainConfig, Zone
from vambrace.errors import VambraceError
from vambrace.measure.registers import Registers

sys.path.insert(0, str(Path(__file__).parents[2] / "guest" / "agent"))

from vambrace_agent import AgentError, channel  # noqa: E402
from vambrace_agent import main as agent_main  # noqa: E402
from vambrace_agent.events import Events  # noqa: E402
from vambrace_agent.logs import Log  # noqa: E402
from vambrace_agent.ports import Ports  # noqa: E402
from vambrace_agent.service import Service  # noqa: E402
from vambrace_agent.settings import Application  # noqa: E402
from vambrace_agent.supervisor import Process, Supervisor  # noqa: E402


def make_stats(zone: Zone, **changes: Any) -> dict[str, Any]:
    """What a window could say of ``zone``: ZoneStats as JSON."""
    return {
        "pages": zone.memory >> 12,
        "percent": zone.percent,
        "open": False,
        "window": 819,
        "plaintext": 700,
        "plaintext_max": 800,
        "standby": 20,
        "pinned": 0,
        "pin_budget": 0,
        "faults": 1000,
        "zero_faults": 100,
        "standby_hits": 50,
        "demotions": 400,
        "evictions": 300,
        "discarded": 5,
        "bytes_encrypted": 300 << 12,
        "bytes_decrypted": 200 << 12,
        "busy": 1,
        "rekeys": 0,
        "handler_ns": 5_000_000,
        "histogram": [0, 0, 10, 980, 0, 9] + [0] * 17 + [1],
        **changes,
    }


def make_auto(bounds: Bounds, **changes: Any) -> dict[str, Any]:
    """What a monitor could say of a zone that is held within ``bounds``."""
    return {**dataclasses.asdict(bounds), "idle": False, "expected": 31, "error": "", **changes}


class Monitor:
    """Stands for the monitor: tokens by the platform's keys, percentages by the owner's signed word."""

    def __init__(self, platform: Platform, config: DomainConfig, measurement: bytes, instance: bytes) -> None:
        self.platform, self.config = platform, config
        self.measurement, self.instance = measurement, instance
        self.registers = Registers(config.hash)
        self.percents = [zone.percent for zone in config.zones]
        self.sampling: list[bool] = []
        self.counter = -1
        self.error = ""  # of a zone on auto
        self.stubborn = False  # whether bounds do not come into force
        self.autos: list[object] = [None for _ in config.zones]
        self.changes: dict[int, dict[str, Any]] = {}
        self.change_lies: dict[str, object] = {}
        self.pace, self.fails = 400, ""
        self.traffic: object = []
        self.lies: dict[str, object] = {}  # instead of the statistics' own values

    def token(self, challenge: bytes) -> bytes:
        def claims(values: dict[int, Any]) -> None:
            values[10] = challenge
            values[44235] = self.config.personalization()
            values[44238] = self.measurement
            values[44239] = list(self.registers.values)

        return self.platform.token(realm=claims, instance=self.instance)

    attest = token

    def extend(self, register: int, digest: bytes) -> None:
        self.registers.extend(register, digest)

    def encrypt(self, message: str) -> object:
        try:
            order = verify_percent(
                base64.b64decode(message),
                owner=self.config.owner,
                instance=self.instance,
                last_counter=self.counter,
            )
        except VambraceError as error:
            raise AgentError(str(error)) from None
        self.counter = order.counter
        change = {"zone": order.zone, "percent": order.percent, "counter": order.counter, "state": "running"}
        self.changes[order.zone] = change | {"working": 0, "left": 400, "total": 400, "error": "", "hint": ""}
        return self.change(order.zone)

    def change(self, zone: int) -> object:
        """Each look finds it ``pace`` pages further, and ``fails`` ends it."""
        change = self.changes.get(zone)
        if change is None or change["state"] != "running":
            return change
        change["left"] = max(0, change["left"] - self.pace)
        if self.fails:
            change |= {"state": "failed", "error": self.fails, "hint": "release pages"}
        elif not change["left"]:
            change["state"] = "done"
            self.percents[zone] = change["percent"]
        return {**change, **self.change_lies}

    def sample(self, on: bool, seconds: int) -> None:
        assert not on or seconds >= 1
        self.sampling.append(on)

    def reuse(self) -> dict[str, object]:
        """The system's pages come back after half of it, the others' are idle."""
        busy = [0] * 101
        busy[50] = 1000
        counts = [busy, [0] * 101, [0] * 101]
        zones = [{"on": False, "shift": 4, "ns": 2 * 10**9, "touches": sum(one), "reuse": one} for one in counts]
        return {"zones": zones, "fault_ns": 10_000}

    def auto(self, message: str) -> object:
        try:
            order = verify_bounds(
                base64.b64decode(message), owner=self.config.owner, instance=self.instance, last_counter=self.counter
            )
        except VambraceError as error:
            raise AgentError(str(error)) from None
        self.counter = order.counter
        self.autos[order.zone] = order.bounds and make_auto(order.bounds, error=self.error)
        # What they have been found at by the time of the next look.
        if order.bounds is not None and not self.stubborn:
            self.percents[order.zone] = max(order.bounds.lowest, self.percents[order.zone])
        return self.autos

    def messages(self) -> object:
        return self.traffic

    def stats(self) -> dict[str, object]:
        zones = [
            {**make_stats(zone, percent=percent), **self.lies}
            for zone, percent in zip(self.config.zones, self.percents, strict=True)
        ]
        return {"zones": zones, "auto": self.autos}


class Agent:
    """The real agent's loop, channel and supervisor in a thread; its port is TCP, its programs run here."""

    def __init__(
        self, directory: Path, monitor: Monitor, ended: Callable[[str, str], None], *, key: bytes | None = None
    ) -> None:
        directory.mkdir(parents=True)
        self.root = directory
        tls_key, certificate = channel.make_key(str(directory))
        self.spki = channel.public_key(certificate)
        owner = monitor.config.owner
        context = channel.make_context(tls_key, certificate, owner)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        loop = agent_main.Loop()
        self.processes = processes = []
        for index, application in enumerate(monitor.config.applications, 1):
            logs = directory / f"log-{index}"
            logs.mkdir()
            fields = application.as_object() | {"memory": monitor.config.zones[index].memory}
            processes.append(Process(Application(index, fields), Log(str(logs))))
        self.events = Events(monitor.config.hash, monitor.extend)
        supervisor = Supervisor(processes, self.launch, self.terminate, lambda application: None, loop.poll)
        self.clock: list[int] = []
        instance, set_clock = monitor.instance, self.clock.append
        self.service = Service(
            supervisor, monitor, self.events, key or self.spki, instance, loop.wake, set_clock, str(directory)
        )
        for process in processes:  # they run as whoever runs the tests
            process.application.uid = os.getuid()
        self.ports = Ports([process.application for process in processes])
        doors = channel.Channel(
            self.listener, context, ssl.PEM_cert_to_DER_cert(owner), self.service, self.ports, loop.wake
        )

        def life() -> None:
            states: list[str] = []
            config = monitor.config
            told = (config.collect_seconds, not config.kind.ends_itself)
            ended(
                *agent_main.run(loop, supervisor, self.service, doors, lambda state, _: states.append(state), *told)
            )

        threading.Thread(target=life, daemon=True).start()

    def launch(self, application: Application, output: int) -> int:
        self.events.started(application)
        environment = {**os.environ, **application.environment, "ROOT": str(self.root), "NAME": application.name}
        actions = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
        return os.posix_spawnp(application.command[0], application.command, environment, file_actions=actions)

    def terminate(self, application: Application) -> None:
        os.kill(next(process.pid for process in self.processes if process.application is application), signal.SIGTERM)

    def close(self) -> None:
        """Kill the applications that still run (the loop's thread reaps them)."""
        for process in self.processes:
            if process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    def go(self) -> None:
        """Let the applications end."""
        (self.root / "go").touch()
