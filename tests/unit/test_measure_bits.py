"""One bit of kernel, initrd, command line, configuration or an application: another measurement, or none at all.

From end to end, as a user computes it: the real configuration and boot plan, and for applications the real build,
whose disk is measured by its verity root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from base_factory import make_base
from config_factory import make_certificate, make_kernel, make_realm, owner
from hypothesis import given, settings
from hypothesis import strategies as st

from vambrace.application import Port
from vambrace.config import DomainConfig
from vambrace.errors import ConfigError
from vambrace.image.build import build_bundle
from vambrace.machine.plan import plan_boot
from vambrace.measure import measure_launch
from vambrace.suite import SM

CONFIG = make_realm(("analysis", "report"), cmdline="console=hvc0 quiet vambrace.init=/init")
KERNEL = make_kernel(64 << 10)
INITRD = hashlib.shake_256(b"an initrd").digest(20_001)


def measure(config: DomainConfig = CONFIG, kernel: bytes = KERNEL, initrd: bytes = INITRD) -> bytes:
    return measure_launch(config, plan_boot(config, kernel, initrd))


MEASUREMENT = measure()


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refused_or_another(launch: Callable[[], bytes]) -> bool:
    """Whether what is launched was refused; fails if it measures as the original does."""
    try:
        assert launch() != MEASUREMENT
    except ConfigError:
        return True
    return False


def test_the_original_is_measured_the_same_twice() -> None:
    assert measure() == MEASUREMENT
    assert measure(DomainConfig.parse(CONFIG.encode()), KERNEL[:100] + KERNEL[100:], b"" + INITRD) == MEASUREMENT


@settings(deadline=None)
@given(st.integers(0, len(KERNEL) * 8 - 1))
def test_any_bit_of_the_kernel(bit: int) -> None:
    refused = refused_or_another(lambda: measure(kernel=flip(KERNEL, bit)))
    assert not refused or bit // 8 < 64, "only its header can make it no kernel"


def test_every_bit_of_the_kernel_s_header() -> None:
    for bit in range(64 * 8):
        refused_or_another(lambda bit=bit: measure(kernel=flip(KERNEL, bit)))  # type: ignore[misc]


@settings(deadline=None)
@given(st.integers(0, len(INITRD) * 8 - 1))
def test_any_bit_of_the_initrd(bit: int) -> None:
    assert measure(initrd=flip(INITRD, bit)) != MEASUREMENT


@given(st.sampled_from([b"\0", b"\0" * 4095, b"070701"]))
def test_nothing_can_be_appended_to_the_initrd(tail: bytes) -> None:
    """Zeros too: they may complete a page, and a page's padding is zeros."""
    assert measure(initrd=INITRD + tail) != MEASUREMENT


def test_every_bit_of_the_command_line() -> None:
    """All of its characters and none beyond: what is not printable is refused."""
    words = CONFIG.cmdline.encode()
    allowed = 0
    for bit in range(len(words) * 8):
        cmdline = flip(words, bit).decode("latin-1")
        allowed += not refused_or_another(lambda cmdline=cmdline: measure(CONFIG.replace(cmdline=cmdline)))  # type: ignore[misc]
    assert allowed > len(words), "the test tests something"


ENCODED = CONFIG.encode()
#: Hash, cipher and owner's keys change together, or not at all.
SUITE = {"hash": "sm3", "cipher": "sm4-gcm", "owner": owner(SM)[0], "channel": owner()[0]}


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, len(ENCODED) * 8 - 1))
def test_any_bit_of_the_configuration(bit: int) -> None:
    """The bytes that are measured, as a host would be given them: many changes make them no configuration."""
    refused_or_another(lambda: measure(DomainConfig.parse(flip(ENCODED, bit))))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "patientt"},
        {"vcpus": 2},
        SUITE,
        {**SUITE, "channel": make_certificate()[0]},
        {"debug": True},
        {"verdict_seconds": 121},
        {"collect_seconds": 301},
        {"cmdline": CONFIG.cmdline + " "},
        {"disks": CONFIG.disks[::-1]},
        {"zones": (CONFIG.zones[0].replace(memory=130 << 20), *CONFIG.zones[1:])},
        {"zones": (CONFIG.zones[0].replace(follow=False), *CONFIG.zones[1:])},
        {"zones": (*CONFIG.zones[:2], CONFIG.zones[2].replace(percent=79))},
        {"applications": (CONFIG.applications[0].replace(restarts=1), CONFIG.applications[1])},
        {"applications": (CONFIG.applications[0].replace(ports=(Port(5432),)), CONFIG.applications[1])},
        {"applications": (CONFIG.applications[0].replace(registers=(1,)), CONFIG.applications[1])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_the_configuration(change: dict[str, Any]) -> None:
    """All of them valid: what is changed is measured, not refused."""
    assert measure(CONFIG.replace(**change)) != MEASUREMENT


# Applications: on a disk, whose verity root is in the configuration

MANIFEST = """\
name: patients
owner: owner.pem
system: {memory: 96M}
applications:
  - {name: analysis, files: analysis, command: [python3, main.py], memory: 16M}
  - {name: report, files: report.py, command: [python3, report.py], memory: 16M}
"""
# A file of several blocks, one of a few bytes, which EROFS keeps in its inode, and one alone.
FILES = {
    "analysis/data": hashlib.shake_256(b"a table").digest(9000),
    "analysis/main.py": b"print(1)\n",
    "report.py": b"print(2)\n" * 600,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, bytes]], bytes]:
    """Builds the image with these files, and measures it."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "analysis").mkdir()
    (folder / "owner.pem").write_text(owner()[0])
    (folder / "manifest.yaml").write_text(MANIFEST)
    base = make_base(folder, KERNEL, INITRD)

    def build(files: dict[str, bytes]) -> bytes:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return build_bundle(folder / "manifest.yaml", Path(folder / "out"), base).measurement()

    return build


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_bit_of_an_application(data: st.DataObject, built: Callable[[dict[str, bytes]], bytes]) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)))
    bit = data.draw(st.integers(0, len(FILES[name]) * 8 - 1))
    original = built(FILES)
    assert built({**FILES, name: flip(FILES[name], bit)}) != original
    assert built(FILES) == original
