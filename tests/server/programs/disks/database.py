"""A container with a volume, started as the agent starts it, until the power goes. The port that it publishes is one of
the network card, too."""

import os
import socket
import subprocess
import threading

from played import Lasting
from vambrace_agent import confine, container, network, settings, system
from vambrace_agent.volumes import Volumes


def carry(source, target):
    """One direction of a connection."""
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()


def relay(listener, port):
    while True:
        outside, _ = listener.accept()
        try:
            inside = socket.create_connection(("127.0.0.1", port))
        except OSError:
            outside.close()
            continue
        for pair in ((outside, inside), (inside, outside)):
            threading.Thread(target=carry, args=pair, daemon=True).start()


wanted = settings.load("/app/vambrace.json")
(application,), (disk,) = wanted.applications, wanted.disks
for kind, path in (("cgroup2", "/sys/fs/cgroup"), ("tmpfs", "/results")):
    subprocess.run(["busybox", "mount", "-t", kind, kind, path], check=True)
for folder in ("/run/vambrace", "/dev/shm"):
    os.makedirs(folder, mode=0o700, exist_ok=True)
with open(settings.DESK, "x"):
    pass  # nobody is at the desk
system.enable_controllers()
network.run("link", "set", "lo", "up")
network.bring_up(wanted.networks)
container.begin([application])
print("opening: now", flush=True)
Volumes(Lasting(), None).attach(disk, application)
confine.prepare(application, "/run/logs")
container.complete([application], wanted.images, None)
print("starting: now", flush=True)
pid = container.launch(application, os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY))
address = wanted.networks[0].address.partition("/")[0]
(port,) = application.ports
threading.Thread(target=relay, args=(socket.create_server((address, port)), port), daemon=True).start()
print("ended:", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
