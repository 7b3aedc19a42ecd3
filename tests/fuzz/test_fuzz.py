"""Each fuzzing target over its corpus, and some hundred inputs more; and that the judge of virtio devices is awake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
#: What each can do in a few seconds.
RUNS = {"virtio": 200, "passthrough": 300}
TARGETS = sorted(path.stem for path in (HERE / "targets").glob("*.py"))

# A device, queue or transport with one thing wrong, and what the corpus must find then.
PLANTED = {
    "addresses that nobody checks": (
        "memory.GuestMemory.check = lambda self, address, length: address - self.base",
        "outside of guest memory",
    ),
    "descriptors without an end": ("queue.range = lambda *_: itertools.count()", "a kick costs too much"),
    "a disk that writes to its request": (
        """
serve = block.Block._serve
def wrong(self, chain):
    chain.readable[0][:1] = b"x"
    return serve(self, chain)
block.Block._serve = wrong
""",
        "a device wrote elsewhere",
    ),
    "a failure that the driver is not told": ("mmio._NEEDS_RESET = 0", "the driver is not told of the failure"),
    "a start after a failure": (
        """
def wrong(self, offset, data):
    try:
        if len(data) == 4 and offset < 0x100:
            self._write(offset, int.from_bytes(data, "little"))
    except memory.GuestFault as fault:
        self._fail(fault)
mmio.Transport.write = wrong
""",
        "a device that failed still has queues",
    ),
    "parts of pages": ("balloon.PAGE = 1024", "no whole pages are discarded"),
    "a disk that is written behind its end": (
        """
begin = block.Block.__init__
def wrong(self, *words, **more):
    begin(self, *words, **more)
    self.size += 1 << 20
block.Block.__init__ = wrong
""",
        "a disk has another size",
    ),
    "keys that nobody reads and all are kept": (
        """
send = console.Console.send
def wrong(self, index, data):
    if index == console.RX_CONSOLE:
        self._pending[index] += data
        return True
    return send(self, index, data)
console.Console.send = wrong
""",
        "the console keeps too much",
    ),
    "a disk without bounds": ("block.READ_LIMIT = 1 << 40", "a kick moves too much of a disk"),
}


def run(*words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "run.py")] if code is None else [sys.executable, "-c", code]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize("target", TARGETS)
def test_target(target: str) -> None:
    """What it finds is in the output, and as a file in build/fuzz."""
    assert any((HERE / "corpus" / target).iterdir())
    done = run(target, "--runs", str(RUNS.get(target, 1500)))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.parametrize("fault", PLANTED)
def test_corpus_finds_planted_faults(fault: str) -> None:
    plant, finding = PLANTED[fault]
    code = f"""
import itertools, sys
sys.path.insert(0, {str(HERE)!r})
import run, domain
from vambrace.virtio import balloon, block, console, memory, mmio, queue
install = domain.install
domain.install = lambda: (install(), exec({plant!r}, globals()))
run.replay("virtio", sorted((run.CORPUS / "virtio").iterdir()))
"""
    done = run(code=code)
    assert done.returncode != 0 and finding in done.stderr, done.stderr[-2000:] or "nothing was found"
