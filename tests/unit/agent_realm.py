"""The agent without a Realm, for tests: its loop in a thread, a monitor at the end of a socket pair, and its owner."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config_factory import owner
from vambrace_agent import channel, confine, main, settings
from vambrace_agent.channel import Channel
from vambrace_agent.events import Events
from vambrace_agent.logs import Log
from vambrace_agent.monitor import Monitor
from vambrace_agent.ports import Ports
from vambrace_agent.service import Service
from vambrace_agent.supervisor import Process, Supervisor

INSTANCE = bytes(range(16))


class FakeMonitor:
    """Answers the agent's requests; ``requests`` has them all."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.agent_fd = theirs.detach()
        self.requests: list[dict[str, Any]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        for line in self.ours.makefile("rb"):
            request = json.loads(line)
            self.requests.append(request)
            answers: dict[str, dict[str, Any]] = {
                "identity": {"instance": INSTANCE.hex()},
                "attest": {"token": base64.b64encode(b"token:" + request.get("challenge", "").encode()).decode()},
                "encrypt": {"change": {"zone": 1, "percent": 95, "left": 5}},
                "change": {"change": {"zone": request.get("zone"), "left": 3}},
                "auto": {"auto": [None, {"lowest": 30}]},
                "stats": {"zones": [{"pages": 1}], "auto": [None]},
                "sample": {},
                "reuse": {"zones": [{"touches": 2}], "fault_ns": 5},
                "messages": {"messages": [{"endpoint": "records"}]},
                "connect": {},
                "report": {},
            }
            reply = {"id": request["id"], "ok": True, **answers[request["op"]]}
            if request.get("message") == "forged":
                reply = {"id": request["id"], "ok": False, "error": "not signed by the owner"}
            self.ours.sendall(json.dumps({"id": 0, "ok": True}).encode() + b"\n" + json.dumps(reply).encode() + b"\n")

    @property
    def reports(self) -> list[tuple[str, str]]:
        return [(r["state"], r["detail"]) for r in self.requests if r["op"] == "report"]


class Client:
    """The owner's side, with the certificate and key (PEM) that it shows."""

    def __init__(self, path: Path, folder: Path, pair: tuple[str, str]) -> None:
        own = folder / f"client-{time.monotonic_ns()}.pem"
        own.write_text(pair[0] + pair[1])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(own)
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(60)
        raw.connect(str(path))
        self.tls = context.wrap_socket(raw)
        self.file = self.tls.makefile("rb")

    def ask(self, operation: str, **arguments: object) -> tuple[dict[str, Any], bytes]:
        return self.send(json.dumps({"op": operation, **arguments}).encode())

    def send(self, line: bytes) -> tuple[dict[str, Any], bytes]:
        self.tls.sendall(line + b"\n")
        answer = self.file.readline()
        if not answer:
            raise ConnectionError
        reply = json.loads(answer)
        return reply, self.file.read(reply.get("length", 0))


class Realm:
    """The agent's loop in a thread of this process."""

    def __init__(self, folder: Path, applications: list[dict[str, Any]], collect_seconds: float) -> None:
        self.folder = folder
        self.monitor = FakeMonitor()
        fields = {"name": "r", "owner": owner()[0], "hash": "sha-256", "lasting": False}
        fields["digests"] = ["sha256", "sha512"]
        defaults = {"environment": {}, "directory": str(folder), "restarts": 0, "results": [], "memory": 1 << 24}
        described = [{**defaults, **application} for application in applications]
        wanted = settings.Settings({**fields, "collect_seconds": 0, "applications": described})
        key, certificate = channel.make_key(str(folder))
        context = channel.make_context(key, certificate, wanted.owner_pem)
        assert not Path(key).exists()
        self.path = folder / "door"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(8)
        loop = main.Loop()
        processes = []
        for application in wanted.applications:
            logs = folder / "logs" / application.name
            logs.mkdir(parents=True)
            (folder / "results" / application.name).mkdir(parents=True)
            processes.append(Process(application, Log(str(logs))))
        port = Monitor(self.monitor.agent_fd, timeout=10)

        def kill(number: int) -> Callable[[settings.Application], None]:
            def each(application: settings.Application) -> None:
                pid = next(process.pid for process in processes if process.application is application)
                if pid:
                    os.kill(pid, number)

            return each

        self.supervisor = Supervisor(processes, launch, kill(signal.SIGTERM), kill(signal.SIGKILL), loop.poll)
        self.key = channel.public_key(certificate)
        events = Events(wanted.hash, port.extend)
        self.clock: list[int] = []
        instance, set_clock = port.identity(), self.clock.append
        service = Service(self.supervisor, port, events, self.key, instance, loop.wake, set_clock, root=str(folder))
        ports = Ports(wanted.applications)
        doors = Channel(listener, context, wanted.owner, service, ports, loop.wake)
        self.outcome: tuple[str, str] | None = None

        def life() -> None:
            self.outcome = main.run(loop, self.supervisor, service, doors, port.report, collect_seconds, False)

        self.thread = threading.Thread(target=life, daemon=True)
        self.thread.start()

    def client(self, pair: tuple[str, str] | None = None) -> Client:
        return Client(self.path, self.folder, pair or owner())

    def ended(self, seconds: float = 60) -> tuple[str, str]:
        self.thread.join(seconds)
        assert self.outcome is not None
        return self.outcome


def launch(application: settings.Application, output: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            confine.execute(application, os.open("/dev/null", os.O_WRONLY))
        finally:
            os._exit(126)
    return pid


Make = Callable[..., Realm]


def shell(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "command": ["sh", "-c", script], **more}


def wait_for(client: Client, name: str, state: str) -> dict[str, Any]:
    for _ in range(1200):
        status, _data = client.ask("status")
        for application in status["applications"]:
            if application["name"] == name and application["state"] == state:
                return dict(application)
        time.sleep(0.05)
    raise AssertionError(status)
