"""How long a launch token takes on the emulated server, and how much of that is TrustZone's.

The token is what the daemon gets for a domain that it has loaded: random numbers for the run's keys, evidence for the
launch challenge, and the endorsement put beside it, through the daemon's own code.
"""

from __future__ import annotations

import json
from statistics import median

from bench.parts.emulated import emulated
from bench.report import Report, rounds
from testbed.door import Door
from testbed.door import variant as with_door

ROUNDS = rounds(15)

#: Run in the host. Calls of the trusted application are timed from inside of what needs them.
MEASURE = """
import asyncio, json, os, sys, time
from pathlib import Path
from vambrace.attest.challenge import launch_challenge
from vambrace.host.platform import Platform
from vambrace.trustzone import RealmClaims, TrustZone

class Timed(TrustZone):
    spent = 0.0
    def random(self, length):
        return self.timed(super().random, length)
    def evidence(self, request):
        return self.timed(super().evidence, request)
    def timed(self, call, argument):
        started = time.perf_counter()
        try:
            return call(argument)
        finally:
            self.spent += time.perf_counter() - started

async def main():
    with Timed() as zone:
        root = Path("/etc/vambrace/vendor-root.pem")
        platform = Platform(zone, Path("/state/endorsement.pem"), root, insecure=False)
        for _ in range(int(sys.argv[1]) + 1):
            zone.spent, started = 0.0, time.perf_counter()
            keys = await platform.fresh_keys()
            challenge = launch_challenge(os.urandom(32), keys.instance)
            claims = RealmClaims(keys.instance, bytes(32), (bytes(32),) * 4, bytes(64), challenge)
            await platform.token(claims)
            print(json.dumps([time.perf_counter() - started, zone.spent]))
        platform.close()

asyncio.run(main())
"""


def run(report: Report) -> None:
    """Rows ``attest.launch-token/whole`` and ``/trustzone``, the latter with its share. Raises Unavailable."""
    with emulated(with_door()) as server:
        server.up(lambda text: None, cold=True)
        with Door(server) as door:
            done = door.python(MEASURE, str(ROUNDS), seconds=600)
    if done.code:
        raise RuntimeError(done.output)
    # The first token makes the keys.
    times = [json.loads(line) for line in done.output.splitlines()][1:]
    whole, inside = (median(column) for column in zip(*times, strict=True))
    report.add("attest.launch-token", "whole", 1000 * whole, "ms")
    share = median(part / total for total, part in times)
    report.add("attest.launch-token", "trustzone", 1000 * inside, "ms", ratio=share, against="whole")
