"""The daemon's settings, its start and its signals."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import CPUS, PATIENCE, Daemon
from harness_certificates import Certificates

from vambrace.errors import ConfigError
from vambrace.host.settings import load_settings, parse_settings
from vambrace.partition.cards import Network


def test_gate_and_signals(tmp_path: Path, certificates: Certificates) -> None:
    """The real process: silent until the gate opens, then serving, and gone on SIGTERM."""
    keys = certificates.directory
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "host.toml"
    config.write_text(
        f'certificate = "{keys}/server.pem"\nkey = "{keys}/server.key"\nclient_ca = "{keys}/ca.pem"\n'
        f'state = "{tmp_path}/state"\nendorsement = "{tmp_path}/chain.pem"\n'
        f'vendor_root = "{certificates.vendor_root}"\nlisten = "127.0.0.1"\nport = {port}\ninsecure = "no-trustzone"\n'
        f'vmm_cpus = [{CPUS[0]}]\nshared_cpus = [{CPUS[0]}]\nallow_affinity = true\ncgroups = "{tmp_path}/none"\n'
    )
    command = [sys.executable, "-m", "vambrace.host", "--config", str(config), "--gate", str(gate)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stderr is not None
        assert "ready at gate" in process.stderr.readline()
        assert not (tmp_path / "state").exists()
        gate.write_text("go\n")
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "listening" in line:
                break
        assert any("insecure" in line for line in lines)
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_failures_at_start(tmp_path: Path, certificates: Certificates) -> None:
    missing = subprocess.run(
        [sys.executable, "-m", "vambrace.host", "--config", str(tmp_path / "none.toml")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert missing.returncode == ConfigError.exit_code
    assert "none.toml cannot be read: No such file" in missing.stderr
    assert "Traceback" not in missing.stderr

    async def taken() -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            daemon = Daemon(tmp_path, certificates, port=other.getsockname()[1])
            with pytest.raises(Exception, match="cannot listen"):
                await daemon.start()
            daemon.hub.close()

    asyncio.run(taken())


def test_settings(tmp_path: Path) -> None:
    files = ("certificate", "key", "client_ca", "state", "endorsement", "vendor_root")
    paths: dict[str, Any] = dict.fromkeys(files, "/x")
    assert parse_settings({**paths, "vmm_cpus": [2, 3], "allow_debug": True}).vmm_cpus == (2, 3)
    paths |= {"vmm_cpus": [1, 2]}
    assert parse_settings({**paths, "shared_cpus": [2]}).shared_cpus == (2,)
    assert parse_settings(paths).allow_affinity is False
    for change in (
        {"unknown": 1},
        {"vmm_command": ["sh"]},
        {"devices": "/tmp"},
        {"port": 70000},
        {"port": True},
        {"port": "1"},
        {"insecure": "yes"},
        {"state": "relative"},
        {"state": 7},
        {"vmm_cpus": [-1]},
        {"vmm_cpus": "0"},
        {"vmm_cpus": []},
        {"vmm_cpus": [1, 1]},
        {"shared_cpus": [3]},
        {"shared_cpus": [2, 2]},
        {"allow_affinity": "yes"},
        {"cgroups": "relative"},
        {"allow_debug": 1},
        {"guest_memory": -1},
        {"channels": 0},
        {"networks": ["lab"]},
        {"networks": {"Lab": {"bridge": "br0"}}},
        {"networks": {"lab": {}}},
        {"networks": {"lab": "br0"}},
        {"networks": {"lab": {"bridge": "../br0"}}},
        {"networks": {"lab": {"bridge": ".."}}},
        {"networks": {"lab": {"bridge": "a-name-that-is-too-long"}}},
        {"networks": {"lab": {"bridge": "br0", "isolated": 1}}},
        {"networks": {"lab": {"bridge": "br0", "cards": 0}}},
        {"networks": {"lab": {"bridge": "br0", "cards": True}}},
        {"networks": {"lab": {"bridge": "br0", "vlan": 1}}},
        {"networks": {"lab": {"bridge": "br0"}, "other": {"bridge": "br0"}}},
    ):
        with pytest.raises(ConfigError):
            parse_settings({**paths, **change})
    networks = {"lab": {"bridge": "br0"}, "shared": {"bridge": "br1", "isolated": False, "cards": 2}}
    assert parse_settings({**paths, "networks": networks}).networks == (
        Network("lab", "br0", isolated=True, cards=16),
        Network("shared", "br1", isolated=False, cards=2),
    )
    with pytest.raises(ConfigError, match="vmm_cpus is missing"):
        parse_settings({name: path for name, path in paths.items() if name != "vmm_cpus"})
    with pytest.raises(ConfigError, match="state is missing"):
        parse_settings({name: path for name, path in paths.items() if name != "state"})
    (tmp_path / "bad.toml").write_text("= =")
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML"):
        load_settings(tmp_path / "bad.toml")
