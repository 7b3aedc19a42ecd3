"""Whose memory is on which node, without a server: an application's on its own, the agent's on the system's."""

from __future__ import annotations

from pathlib import Path

from plain_guest import Guest
from user import PROGRAMS

from vambrace.image.base import RuntimeBase


def test_the_agent_s_memory_stays_where_it_is(base: RuntimeBase, tmp_path: Path) -> None:
    """A process that enters a cgroup takes all pages along that it maps, and so would a child of the agent's."""
    guest = Guest(tmp_path, base, PROGRAMS / "nodes/launch.py", nodes=(192, 48, 16))
    guest.run()
    said = dict(guest.said)
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/results/asked",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    # Names that a shell would not let pass, too.
    environment |= {"A-B": "c d=e", "PWD": "f"}
    assert said == {
        "before": "N0",
        "asked": f"0 ['N1'] 0::/asked {environment} ['0', '1', '2']",
        # The smallest there is: enough for a program, and not for the agent.
        "small": "0 1001",
        "after": "N0",
    }
