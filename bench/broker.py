"""The key broker under load: a process of its own, TLS, database on the disk, everything as it is served.

Rows (docs/performance.md): ``broker.proof``, from a new connection to the attestation result; ``broker.release``, a
secret on a session that has proved what it is; ``broker.commit``, a volume's next generation. Of each: requests per
second of ``CONNECTIONS`` Realms together, and the median and 99th percentile of what one waits. Realms and broker share
the machine.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from bench.parts.evidence import COMPONENTS, POLICY, Platform
from bench.report import Report, Unavailable
from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.owner import OwnerIdentity
from vambrace.attest.references import publish
from vambrace.client.broker import BrokerClient

sys.path.append(str(Path(__file__).parents[1] / "guest/agent"))

from vambrace_agent.release import Broker as Agent  # noqa: E402
from vambrace_agent.release import Session  # noqa: E402

CONNECTIONS = 8
SECONDS = 4.0
SECRET, VOLUMES = "bench/secret/password", [f"bench/volume/{number}" for number in range(CONNECTIONS)]
FREE = "rate = 1000000\n"


def run(report: Report) -> None:
    """Raises Unavailable: the packages of a broker are not installed."""
    with tempfile.TemporaryDirectory(prefix="vambrace-bench-") as folder, broker(Path(folder)) as agents:
        measure(report, "proof", [partial(prove, agent) for agent in agents])
        sessions = [agent.session() for agent in agents]
        measure(report, "release", [partial(session.resource, SECRET) for session in sessions])
        measure(report, "commit", [committing(*pair) for pair in zip(sessions, VOLUMES, strict=True)])


def prove(agent: Agent) -> None:
    agent.session().close()


def committing(session: Session, name: str) -> Callable[[], object]:
    volume = session.volume(name)
    return lambda: volume.commit(os.urandom(32))


def measure(report: Report, what: str, works: list[Callable[[], object]]) -> None:
    """Each of ``works`` again and again in a thread of its own, all for ``SECONDS``."""
    waited: list[float] = []
    end = time.monotonic() + SECONDS

    def work(one: Callable[[], object]) -> None:
        while (begun := time.monotonic()) < end:
            one()
            waited.append(time.monotonic() - begun)

    threads = [threading.Thread(target=work, args=(one,)) for one in works]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    subject = f"{len(works)} Realms"
    report.add(f"broker.{what}", subject, len(waited) / (time.monotonic() - begun), "1/s")
    report.add(f"broker.{what}.p50", subject, median(waited) * 1000, "ms")
    report.add(f"broker.{what}.p99", subject, quantiles(waited, n=100)[98] * 1000, "ms")


@contextmanager
def broker(folder: Path) -> Iterator[list[Agent]]:
    """A broker that runs, with a secret and volumes; Realms that may have them."""
    try:
        from vambrace.broker import setup
        from vambrace.broker.platforms import PlatformFiles
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from None
    vendor, owner, home = VendorAuthority.create(), OwnerIdentity.create(folder / "owner"), folder / "broker"
    (folder / "root.pem").write_bytes(vendor.certificate_pem)
    (folder / "references.corim").write_bytes(publish(COMPONENTS, vendor, implementation_id=bytes(32)))
    platform = PlatformFiles(folder / "root.pem", folder / "references.corim")
    owners = {"bench": owner.certificate_pem.encode()}
    setup.create(home, names=["localhost"], platforms={"default": platform}, repositories=owners, port=0)
    settings = home / "broker.toml"
    settings.write_text(FREE + settings.read_text())
    command = [sys.executable, "-m", "vambrace.cli.main", "broker", "serve", str(home)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = next(int(line.split()[-1]) for line in process.stderr if "listening on" in line)
        certificate = home / "certificate.pem"
        url = f"https://localhost:{port}"
        with BrokerClient(url, certificate, owner.certificate_path, owner.key_path) as client:
            client.put(SECRET, os.urandom(32), POLICY.table())
            for name in VOLUMES:
                client.put(name, None, POLICY.table())
        machine = Platform(vendor)
        yield [realm(url, port, certificate.read_text(), machine) for _ in range(CONNECTIONS)]
    finally:
        process.terminate()
        process.wait()


def realm(url: str, port: int, certificate: str, machine: Platform) -> Agent:
    instance = os.urandom(16)

    def dial() -> socket.socket:
        stream = socket.create_connection(("localhost", port))
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    return Agent(url, certificate, dial, lambda challenge: machine.token(challenge, instance), instance)
