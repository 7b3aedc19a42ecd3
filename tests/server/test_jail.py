"""VMMs in their jails: what the kernel says of those that run, and attackers in one, while two domains live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from machine import eventually, processes, vmm_of, vmms
from user import Pair

import testbed
from testbed.door import Door

PLACE = "/run/attack"
#: Probes that filter and walls both refuse end a VMM each; on this slow machine only some of them are tried.
SOME = [
    *("read_files", "list_root", "other_processes", "open_devices", "move_others"),
    *("trace", "read_memory", "take_descriptor", "connect_vsock", "execute", "mount", "keys", "another_userfaultfd"),
]
#: What walls alone do not refuse, because it reaches nothing of anybody else's, or has no namespaces (vsock).
WITHOUT_A_FILTER = {
    *("connect_vsock", "fork", "keys", "kernel_programs", "memory_becomes_code", "terminal_input", "watch_files"),
}

# Of each VMM: what /proc says of it, and what is in its root.
LOOK = """
import json, os, sys
found = {}
for pid in sys.argv[1:]:
    lines = (line.split(":", 1) for line in open(f"/proc/{pid}/status"))
    status = {name: value.split() for name, value in lines}
    kinds = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
    found[pid] = {
        "status": status,
        "namespaces": {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds},
        "own": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds},
        "root": os.listdir(f"/proc/{pid}/root"),
        "mounts": [line.split()[4:6] for line in open(f"/proc/{pid}/mountinfo")],
    }
print(json.dumps(found))
"""

# A guest that listens for its owner: the first to be found.
LISTENER = """
import socket
for cid in range(17, 200):
    with socket.socket(socket.AF_VSOCK) as stream:
        try:
            stream.connect((cid, 4050))
        except OSError:
            continue
        print(cid)
        break
"""


@pytest.fixture(scope="module")
def host(pair: Pair) -> Any:
    with Door(pair.server) as door:
        yield door


def test_every_vmm_is_shut_in(pair: Pair, host: Door) -> None:
    """Those of both domains, and the one that waits for the next."""
    assert eventually(lambda: len(vmms(host)) == 3, 60)
    done = host.python(LOOK, *map(str, vmms(host)))
    assert done.code == 0, done.output
    found = json.loads(done.output)
    for vmm in found.values():
        status = vmm["status"]
        assert {name: status[name] for name in ("NoNewPrivs", "Seccomp")} == {"NoNewPrivs": ["1"], "Seccomp": ["2"]}
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert status[name] == ["0" * 16]
        assert len({*status["Uid"], *status["Gid"]}) == 1 and int(status["Uid"][0]) >= 0x7000_0000
        assert status["Groups"] == [] and status["NSpid"][1:] == ["1"]
        assert vmm["root"] == []
        assert [(point, "ro" in options.split(",")) for point, options in vmm["mounts"]] == [("/", True)]
        assert not set(vmm["namespaces"].values()) & set(vmm["own"].values())
    assert len({vmm["status"]["Uid"][0] for vmm in found.values()}) == 3
    for kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert len({vmm["namespaces"][kind] for vmm in found.values()}) == 3


def test_an_attacker_in_a_vmm(pair: Pair, host: Door) -> None:
    """Root reaches all of it without a jail, and nothing of it with one; both domains go on."""
    folder = Path(testbed.__file__).parent
    for name in ("__init__.py", "attacks.py", "attacked.py", "attacker.py"):
        host.put(f"{PLACE}/testbed/{name}", (folder / name).read_bytes())
    first, second = (vmm_of(host, realm.uuid) for realm in pair.realms)
    (daemon,) = processes(host, "vambrace.host")
    key = host.shell("grep '^key' /etc/vambrace/host.toml").output.split('"')[1]
    maps = host.shell(f"grep -m1 'rw-p' /proc/{first}/maps").output
    targets = {
        "files": [key, f"/state/host/domains/{pair.realms[0].uuid}.json", "/etc/vambrace/host.toml"],
        "daemon": daemon,
        "vmm": first,
        "victims": [first, second, daemon],
        "reads": first,
        "address": int(maps.split("-")[0], 16),
        "devices": ["/dev/kvm", "/dev/vhost-vsock", "/dev/userfaultfd", "/dev/vda", "/dev/tee0", "/dev/mem"],
        "cid": int(host.python(LISTENER).output),
        "vsock_port": 4050,
        "card": "eth0",
    }
    environment = f"PYTHONPATH={PLACE}"
    words = ("env", environment, "python3", "-P", "-B", "-m", "testbed.attacker")
    done = host.run(*words, json.dumps({"targets": targets, "some": SOME}), seconds=240)
    assert done.code == 0, done.output
    results: dict[str, dict[str, str]] = json.loads(done.output.splitlines()[-1])
    print(json.dumps(results, indent=1))
    refused = {name for name, result in results["free"].items() if not result.startswith("reached")}
    # lockdown and what this kernel is built with are before root too
    assert refused <= {"kernel_programs", "packets"}, results["free"]
    reached = {name for name, result in results["walled"].items() if not result.startswith("refused ")}
    assert reached <= WITHOUT_A_FILTER
    for name in SOME:
        assert results["jailed"][name].startswith("refused ") or results["jailed"][name] == "ended -31", name
    assert {name for name in SOME if results["jailed"][name] == "ended -31"} == set(SOME[5:])
    for realm in pair.realms:
        assert realm.status()["applications"]
    assert {first, second} <= vmms(host)
