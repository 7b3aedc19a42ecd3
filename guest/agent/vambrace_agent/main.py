"""The agent's life: prepare, listen, report ready, run the applications, wait for the owner, end."""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import select
import sys
import time
from collections.abc import Callable

from vambrace_agent import AgentError, channel, confine, devices, monitor, network, settings, system
from vambrace_agent.channel import Channel
from vambrace_agent.desk import Desk, Handler, Request
from vambrace_agent.endpoints import Endpoints, listen_vsock
from vambrace_agent.events import Events
from vambrace_agent.health import HealthCheck
from vambrace_agent.logs import Log
from vambrace_agent.monitor import Monitor
from vambrace_agent.pace import Pace
from vambrace_agent.ports import Ports
from vambrace_agent.release import Broker
from vambrace_agent.sealing import Sealing
from vambrace_agent.secrets import Secrets
from vambrace_agent.service import Service
from vambrace_agent.settings import Application, Secret, Settings
from vambrace_agent.supervisor import Process, Supervisor

SETTINGS = "/app/vambrace.json"
STATE = "/run/vambrace"
LINGER_SECONDS = 5.0  # for owners who read logs while nothing is to be collected
#: Requests of applications a second and at once, of which each costs one to the monitor: in all, in equal shares.
DESK_RATE, DESK_BURST = 5.0, 10.0
LEAST_BURST = 2.0
_LONGEST_WAIT = 5.0  # orphans are reaped at least this often


class Loop:
    """One thread that waits for everything: applications, connections, requests, deadlines."""

    def __init__(self) -> None:
        self.poll = select.poll()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.poll.register(self._event, select.POLLIN)

    def wake(self) -> None:
        """Make ``step`` return; from any thread."""
        os.eventfd_write(self._event, 1)

    def step(self, supervisor: Supervisor, doors: Channel, timeout: float) -> None:
        """Wait at most ``timeout`` seconds for events and handle them."""
        due = supervisor.tick(time.monotonic())
        longest = min(timeout, _LONGEST_WAIT, due if due is not None else _LONGEST_WAIT)
        for fd, _ in self.poll.poll(max(0.0, longest) * 1000):
            if fd == self._event:
                os.eventfd_read(self._event)
            elif fd == doors.listener.fileno():
                doors.accept()
            else:
                supervisor.ready(fd)
        if os.getpid() == 1:
            supervisor.reap()


def run(
    loop: Loop,
    supervisor: Supervisor,
    service: Service,
    doors: Channel,
    report: Callable[[str, str], None],
    collect_seconds: float,
    lasting: bool,
) -> tuple[str, str]:
    """From ready to the end; returns the last state and what to say of it, still to be reported.

    ``lasting``: there is no end. The applications' is reported, and their owner served on.
    """
    loop.poll.register(doors.listener.fileno(), select.POLLIN)
    report("ready", "")
    while not supervisor.succeeded and supervisor.failed is None:
        if service.start_wanted.is_set() and not supervisor.started:
            supervisor.start()
            service.state = "running"
            report("running", "")
        while service.stops_wanted:
            supervisor.end(service.stops_wanted.popleft())
        loop.step(supervisor, doors, _LONGEST_WAIT)
    failed = supervisor.failed
    if failed is not None:
        supervisor.end()
        while supervisor.running:
            loop.step(supervisor, doors, _LONGEST_WAIT)
        service.state = "failed"
        detail = f"application {failed.application.name}: exit code {failed.exit_code}"
    else:
        service.state = "succeeded"
        detail = ""
    if lasting:
        report(service.state, detail)
    while lasting:
        loop.step(supervisor, doors, _LONGEST_WAIT)
    declared = any(process.application.results for process in supervisor.processes)
    wait = collect_seconds if declared and failed is None else LINGER_SECONDS
    _wait_for_owner(loop, supervisor, service, doors, wait, declared and failed is None)
    return service.state, detail


def _wait_for_owner(
    loop: Loop, supervisor: Supervisor, service: Service, doors: Channel, seconds: float, collecting: bool
) -> None:
    deadline = time.monotonic() + seconds
    while not service.collected.is_set():
        left = deadline - time.monotonic()
        if left <= 0 or (not collecting and not doors.owners):
            return
        loop.step(supervisor, doors, left)


def main() -> None:
    """As PID 1: never returns; ends with the machine off."""
    port = None
    try:
        port = Monitor(monitor.open_port())  # first, so that the rest can be told
        system.harden()
        with contextlib.ExitStack() as stack:
            state, detail = _life(port, stack)
    except AgentError as error:
        state, detail = "failed", f"agent: {error}"
    except Exception as error:  # whatever it is, the Realm must end, and say no secret
        state, detail = "failed", f"agent: {type(error).__name__}"
        sys.excepthook(type(error), error, error.__traceback__)  # seen in a debug Realm only
    try:
        if port is not None:
            port.report(state, detail)
    except (AgentError, OSError):
        pass  # the monitor sees the machine go off
    finally:
        system.power_off()


def _life(port: Monitor, stack: contextlib.ExitStack) -> tuple[str, str]:
    """From the settings to the end; what is to be closed then, before anybody is told, is on ``stack``."""
    wanted = settings.load(SETTINGS)
    system.enable_controllers()
    if wanted.networks:
        network.bring_up(wanted.networks)
    if wanted.devices:
        devices.hand_out(wanted.devices, wanted.applications)
    os.makedirs(STATE, mode=0o700, exist_ok=True)
    key, certificate = channel.make_key(STATE)
    context = channel.make_context(key, certificate, wanted.owner_pem)
    listener = channel.listen_vsock()
    loop = Loop()
    instance = port.identity()
    streams = None
    if wanted.endpoints or wanted.broker:
        streams = Endpoints(wanted.endpoints, listen_vsock(), port.connect)
        streams.start()
    broker = None
    if wanted.broker and streams:
        dial = functools.partial(streams.dial, port.broker)
        broker = Broker(wanted.broker.url, wanted.broker.certificate, dial, port.attest, instance)
    sealing = Sealing(wanted.sealing, port.sealing_key)
    for application in wanted.applications:
        if application.files:
            from vambrace_agent.images import mount_image  # as seldom

            mount_image(wanted.images[application.files], broker, f"/app/{application.name}")
    containers = [application for application in wanted.applications if application.container]
    if containers:
        from vambrace_agent import container  # as seldom as the next

        container.begin(containers)
    if wanted.disks:
        _attach(wanted, broker, sealing, stack)
    events = Events(wanted.hash, port.extend)
    supervisor: Supervisor
    if wanted.system:
        from vambrace_agent.vm import Machine  # as seldom

        machine = Machine(wanted.system)
        supervisor, who = machine.prepare(wanted, broker, f"{STATE}/logs", loop.poll, events.started), machine.whose
    else:
        supervisor, who = _programs(wanted, broker, events, loop), None
    key_info, digests = channel.public_key(certificate), wanted.digests
    service = Service(supervisor, port, events, key_info, instance, loop.wake, system.set_clock, digests=digests)
    # In a disk's system its root may be anybody, so that nobody is known to be greedy.
    ports = Ports(wanted.applications, None if wanted.system else confine.stop)
    doors = Channel(listener, context, wanted.owner, service, ports, loop.wake)
    granted = wanted.broker.secrets if wanted.broker else []
    answers = handlers(events, broker, granted, sealing, wanted.applications)
    Desk(settings.DESK, wanted.applications, answers, who).start()
    return run(loop, supervisor, service, doors, port.report, wanted.collect_seconds, wanted.lasting)


def _programs(wanted: Settings, broker: Broker | None, events: Events, loop: Loop) -> Supervisor:
    """Who supervises programs in the base itself and containers, once these are ready. Raises ``AgentError``."""
    containers = [application for application in wanted.applications if application.container]
    if containers:
        from vambrace_agent import container
    processes = []
    for application in wanted.applications:
        logs = f"{STATE}/logs/{application.name}"
        confine.prepare(application, logs)
        health = application.container.health if application.container else None
        check = HealthCheck(application, health, container.launch_health) if health else None
        processes.append(Process(application, Log(logs), check))
    if containers:
        container.complete(containers, wanted.images, broker)

    def launch(application: Application, output: int) -> int:
        events.started(application)
        return container.launch(application, output) if application.container else confine.launch(application, output)

    def terminate(application: Application) -> None:
        if application.container:
            container.terminate(application)
        else:
            confine.terminate(application)

    return Supervisor(processes, launch, terminate, confine.stop, loop.poll)


def _attach(wanted: Settings, broker: Broker | None, sealing: Sealing, stack: contextlib.ExitStack) -> None:
    """Open and mount all disks of this Realm, until ``stack`` ends. Raises ``AgentError``."""
    from vambrace_agent.volumes import Volumes  # not every Realm has any

    volumes = Volumes(broker, sealing)
    stack.callback(volumes.close)
    named = {application.name: application for application in wanted.applications}
    for disk in wanted.disks:
        volumes.attach(disk, named[disk.application])


def handlers(
    events: Events, broker: Broker | None, granted: list[Secret], sealing: Sealing, applications: list[Application]
) -> dict[str, Handler]:
    """What ``applications`` may ask for, each at a pace of its own: ``granted`` secrets, each with evidence that has
    all ``events`` so far."""
    share = 1 / len(applications)
    paces = {one.name: Pace(DESK_RATE * share, max(DESK_BURST * share, LEAST_BURST)) for one in applications}
    secrets = Secrets(broker, granted, events.count)

    def extend(application: Application, request: Request) -> Request:
        register, text = request.get("register"), request.get("text")
        if type(register) is not int or not isinstance(text, str):
            raise AgentError("register: a number, and text: a string, are expected")
        paces[application.name].wait()
        events.told(application, register, text)
        return {}

    def secret(application: Application, request: Request) -> Request:
        paces[application.name].wait()
        return _coded(secrets.get(application.name, request.get("name")))

    def seal(application: Application, request: Request) -> Request:
        paces[application.name].wait()
        return _coded(sealing.seal(application.name, _data(request)))

    def unseal(application: Application, request: Request) -> Request:
        paces[application.name].wait()
        return _coded(sealing.unseal(application.name, _data(request)))

    return {"extend": extend, "secret": secret, "seal": seal, "unseal": unseal}


def _coded(value: bytes) -> Request:
    return {"value": base64.b64encode(value).decode()}


def _data(request: Request) -> bytes:
    try:
        return base64.b64decode(str(request.get("value")), validate=True)
    except ValueError:
        raise AgentError("value: base64 is expected") from None
