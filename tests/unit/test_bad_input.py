"""What a user can get wrong, through the command line: one line that says so, one that says what to do, the documented
exit code, and nothing left behind. The host is the real daemon with a fake VMM."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from base_factory import make_base
from config_factory import MIB, make_disk, make_kernel, make_realm
from refusals import Refusals, check_words, tree

sys.path[:0] = [str(Path(__file__).parent / "test_host")]

from harness import Daemon, introduce, leftovers, run  # noqa: E402
from harness_certificates import Certificates  # noqa: E402

from vambrace.image import write_bundle  # noqa: E402
from vambrace.image.base import RuntimeBase  # noqa: E402

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]
Commands = Callable[["Daemon"], Awaitable[None]]

MANIFEST = """\
name: patients
owner: owner.pem
system: {memory: 96M}
applications:
  - {name: analysis, files: analysis, command: [python3, main.py], memory: 16M, percent: 80}
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> RuntimeBase:
    """A runtime base of a few bytes in the place of Debian's."""
    folder = tmp_path_factory.mktemp("base")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    made = make_base(folder)
    monkeypatch.setattr("vambrace.image.prepare.runtime_base", lambda *_, **__: made)
    return made


@pytest.fixture
def work(tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder: a good manifest with its files, and nothing else."""
    folder = tmp_path / "work"
    (folder / "analysis").mkdir(parents=True)
    (folder / "owner.pem").write_text(certificates.owner.certificate_pem)
    (folder / "manifest.yaml").write_text(MANIFEST)
    (folder / "analysis/main.py").write_text("print(1)\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(capsys: Capture) -> Refusals:
    return Refusals(capsys)


@pytest.fixture
def unchanged(work: Path, own_state: Path) -> Iterator[None]:
    """Nothing is left behind: not in the user's folder, not in the user's state."""
    before = tree(work, own_state)
    yield
    after = tree(work, own_state)
    assert after.keys() - before.keys() <= {own_state / "lock"}
    assert {path: after[path] for path in before} == before


# A broken manifest, a missing file, a percentage, too many applications


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        (MANIFEST + "  - [", "line 6: not YAML", "examples/patients/manifest.yaml"),
        ("", "empty", "examples/patients/manifest.yaml"),
        (MANIFEST + "colour: red\n", "line 6: the manifest: unknown key 'colour'", "known are"),
        (MANIFEST.replace("patients", "Patients!"), "line 1: Realm: 'Patients!' is not a valid name", "a-z"),
        (MANIFEST.replace("owner.pem", "manifest.yaml"), "line 2: owner", "PEM"),
        (MANIFEST.replace("owner.pem", '"a\\0b"'), "line 2: owner", "PEM"),
        (MANIFEST.replace("16M", "16 bananas"), "line 5: '16 bananas' is no size of memory", "128M"),
        (MANIFEST.replace("16M", "1M"), "line 5: application analysis: memory is 1048576", "from 16 to 1048576 MiB"),
    ],
    ids=["not YAML", "empty", "unknown key", "name", "owner", "owner with NUL", "memory", "too little memory"],
)
def test_a_broken_manifest(work: Path, refused: Refusals, base: RuntimeBase, text: str, says: str, hint: str) -> None:
    (work / "manifest.yaml").write_text(text)
    before = tree(work)
    refused(3, "image", "build", "manifest.yaml", says=says, hint=hint)
    assert tree(work) == before


@pytest.mark.usefixtures("unchanged")
def test_a_missing_file(work: Path, refused: Refusals, base: RuntimeBase) -> None:
    refused(3, "image", "build", "none.yaml", says="none.yaml: No such file", hint="examples/patients")
    refused(3, "image", "build", ".", says="Is a directory", hint="examples/patients")
    refused(3, "image", "measure", "none.vambrace", says="none.vambrace: No such file", hint="image build")
    refused(3, "image", "inspect", "none.vambrace", says="none.vambrace: No such file", hint="image build")
    refused(6, "image", "build", "manifest.yaml", "-o", "none/x", says="none is not a folder", hint="make it")
    refused(6, "image", "build", "manifest.yaml", "-o", "analysis", says="analysis is a folder", hint="--output")
    refused(2, "run", "none.vambrace", says="no host is set up", hint="server up")
    trust = ["--root", "r", "--references", "c", "--nonce", "00" * 32, "--measurement", "00" * 32]
    says = "vendor root cannot be read: r"
    refused(3, "verify", "t", *trust, "--owner", "owner.pem", says=says, hint="check the path")
    refused(2, "verify", "t", *trust, "--owner", "none", says="none cannot be read", hint="check the path")
    refused(2, "broker", "init", "broker", "--repository", "patients", says="no host is set up", hint="server up")


@pytest.mark.usefixtures("unchanged")
def test_a_file_that_is_no_token(work: Path, refused: Refusals) -> None:
    refused(4, "token", "show", "manifest.yaml", says="CBOR", hint="vambrace token show REALM --save FILE")


@pytest.mark.parametrize("name", ["nothing", "n" * 300], ids=["not there", "longer than any name"])
def test_a_missing_file_of_an_application(work: Path, refused: Refusals, base: RuntimeBase, name: str) -> None:
    (work / "manifest.yaml").write_text(MANIFEST.replace("files: analysis", f"files: {name}"))
    before = tree(work)
    refused(3, "image", "build", "manifest.yaml", says="line 5: application analysis: ", hint="path")
    assert tree(work) == before


def test_a_percentage_of_101(work: Path, refused: Refusals, base: RuntimeBase) -> None:
    words = ["encrypt", "patients", "--app", "analysis"]
    refused(2, *words, "101", says="'101' is not a whole number from 0 to 100", hint="vambrace encrypt --help")
    (work / "manifest.yaml").write_text(MANIFEST.replace("percent: 80", "percent: 101"))
    before = tree(work)
    says = "line 5: application analysis: percent is 101"
    refused(3, "image", "build", "manifest.yaml", says=says, hint="from 0 to 100")
    assert tree(work) == before


def test_sixteen_applications(work: Path, refused: Refusals, base: RuntimeBase) -> None:
    lines = MANIFEST.splitlines()
    many = [lines[-1].replace("name: analysis", f"name: a{number}") for number in range(16)]
    (work / "manifest.yaml").write_text("\n".join([*lines[:-1], *many, ""]))
    before = tree(work)
    refused(
        3,
        *("image", "build", "manifest.yaml"),
        says="line 4: applications: 16, but at most 15 are possible",
        hint="put the others in a second Realm",
    )
    assert tree(work) == before


# Larger than the memory


@pytest.mark.usefixtures("unchanged")
def test_kernel_and_initrd_larger_than_the_system_s_memory(work: Path, refused: Refusals, base: RuntimeBase) -> None:
    with base.initrd.open("wb") as file:
        file.truncate(100 * MIB)
    says = "kernel and initrd do not fit in the system's 96 MiB"
    refused(
        3, "image", "build", "manifest.yaml", says=says, hint="they alone take 104 MiB: give the system more memory"
    )


@pytest.mark.usefixtures("unchanged")
def test_a_bundle_whose_kernel_is_larger_than_its_memory(refused: Refusals, tmp_path: Path) -> None:
    make_bundle(tmp_path, "patients", kernel=make_kernel(130 * MIB))
    words = ["image", "measure", str(tmp_path / "patients.vambrace")]
    refused(3, *words, says="do not fit in the system's 128 MiB", hint="give the system more memory")


def test_files_larger_than_the_application_s_memory(work: Path, refused: Refusals, base: RuntimeBase) -> None:
    with (work / "analysis/big").open("wb") as file:
        file.truncate(17 * MIB)
    before = set(work.rglob("*"))
    says = "application analysis: its files take 18 MiB, more than its memory"
    refused(3, "image", "build", "manifest.yaml", says=says, hint="give it more memory than 16 MiB")
    assert set(work.rglob("*")) == before


# The host: another Realm's name, its memory, its disk


def make_bundle(folder: Path, name: str, kernel: bytes = b"", padding: int = 8192, **changes: object) -> Path:
    """A sound bundle without programs, for a host that is to refuse it."""
    parts = [folder / part for part in ("kernel", "initrd", "base", "apps")]
    for part, data in zip(parts, (kernel or make_kernel(), b"initrd", bytes(8192), os.urandom(padding)), strict=True):
        part.write_bytes(data)
    disks = tuple(
        make_disk(part.name, sha256=hashlib.sha256(part.read_bytes()).hexdigest(), size=part.stat().st_size)
        for part in parts[2:]
    )
    config = make_realm(name=name, disks=disks, **changes)
    return write_bundle(folder / f"{name}.vambrace", config, parts[0], parts[1], parts[2:]).path


async def everything(daemon: Daemon) -> dict[str, object]:
    """All that the host has: images, Realms that live, files of uploads, processes."""
    realms = (await daemon.get("/v1/domains")).json["domains"]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "images": sorted(image["sha256"] for image in (await daemon.get("/v1/images")).json["images"]),
        "domains": sorted(realm["uuid"] for realm in realms),
        "uploads": leftovers(daemon),
        "vmm": [pid for pid in children if b"fake_vmm" in Path(f"/proc/{pid}/cmdline").read_bytes()],
        "memory": (await daemon.get("/v1/host")).json["memory"],
    }


def refuse_run(
    tmp_path: Path,
    certificates: Certificates,
    refused: Refusals,
    own_state: Path,
    bundle: Path,
    *,
    code: int = 5,
    says: str,
    hint: str,
    first: Commands | None = None,
    **changes: object,
) -> None:
    """``vambrace run`` of ``bundle`` on a host where ``first`` was done is refused; host and user are as before."""

    async def test(daemon: Daemon) -> None:
        introduce(daemon, own_state)
        if first:
            await first(daemon)
        host, files = await everything(daemon), tree(own_state)
        words = ("run", str(bundle), "--allow-insecure", "--results", str(tmp_path / "results"))
        await asyncio.to_thread(refused, code, *words, says=says, hint=hint)
        assert await everything(daemon) == host
        assert tree(own_state) == files
        assert not (tmp_path / "results").exists()

    (tmp_path / "daemon").mkdir()
    run(tmp_path / "daemon", certificates, test, **changes)


@pytest.fixture
def owned(certificates: Certificates) -> dict[str, object]:
    return {"owner": certificates.owner.certificate_pem}


def test_a_second_realm_with_the_same_name(
    tmp_path: Path, certificates: Certificates, refused: Refusals, own_state: Path, owned: dict[str, object]
) -> None:
    async def first(daemon: Daemon) -> None:
        await daemon.awaiting()

    bundle = make_bundle(tmp_path, "patients", **owned)
    says, hint = "a domain named patients exists", "choose another name or destroy that one"
    refuse_run(tmp_path, certificates, refused, own_state, bundle, first=first, says=says, hint=hint)


def test_a_realm_that_needs_more_than_the_host_has(
    tmp_path: Path, certificates: Certificates, refused: Refusals, own_state: Path, owned: dict[str, object]
) -> None:
    bundle = make_bundle(tmp_path, "patients", **owned)
    says = "patients cannot be given 195 MiB of memory (free: 100 of 100 MiB)"
    hint = "destroy a Realm, or use a host with more"
    refuse_run(tmp_path, certificates, refused, own_state, bundle, says=says, hint=hint, guest_memory=100 * MIB)


def test_a_realm_whose_memory_another_one_has(
    tmp_path: Path, certificates: Certificates, refused: Refusals, own_state: Path, owned: dict[str, object]
) -> None:
    async def first(daemon: Daemon) -> None:
        await daemon.awaiting()

    bundle = make_bundle(tmp_path, "second", **owned)
    says = "second cannot be given 195 MiB of memory (free: 22 of 200 MiB; patients holds 178 MiB)"
    hint = "destroy a Realm"
    refuse_run(
        tmp_path, certificates, refused, own_state, bundle, first=first, says=says, hint=hint, guest_memory=200 * MIB
    )


def test_no_space_for_an_upload(
    tmp_path: Path,
    certificates: Certificates,
    refused: Refusals,
    own_state: Path,
    owned: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host refuses before it has read the body; the client must hear why, not that the connection broke."""

    async def first(daemon: Daemon) -> None:
        monkeypatch.setattr("vambrace.host.store.SPARE", 1 << 60)

    bundle = make_bundle(tmp_path, "patients", padding=96 * MIB, **owned)
    says, hint = "no space on the host for 195 MiB", "delete images"
    refuse_run(tmp_path, certificates, refused, own_state, bundle, first=first, says=says, hint=hint)


def test_a_host_whose_disk_fails_in_the_middle_of_an_upload(
    tmp_path: Path, certificates: Certificates, refused: Refusals, own_state: Path, owned: dict[str, object]
) -> None:
    """A limit on the size of files stands for a quota: the kernel refuses a write that nobody foresaw."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def first(daemon: Daemon) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, limits[1]))

    bundle = make_bundle(tmp_path, "patients", padding=8 * MIB, **owned)
    says, hint = "the image could not be stored: File too large", "delete images"
    try:
        refuse_run(tmp_path, certificates, refused, own_state, bundle, first=first, says=says, hint=hint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", ["Not A Name", "n" * 33])
def test_a_name_that_no_realm_may_have(
    tmp_path: Path, certificates: Certificates, refused: Refusals, own_state: Path, owned: dict[str, object], name: str
) -> None:
    """Known before anything is sent."""
    bundle = make_bundle(tmp_path, "patients", **owned)

    async def test(daemon: Daemon) -> None:
        introduce(daemon, own_state)
        host, files = await everything(daemon), tree(own_state)
        words = ("run", str(bundle), "--allow-insecure", "--name", name)
        await asyncio.to_thread(refused, 2, *words, says=f"domain: {name!r} is not a valid name", hint="1 to 32 of a-z")
        assert await everything(daemon) == host
        assert tree(own_state) == files

    (tmp_path / "daemon").mkdir()
    run(tmp_path / "daemon", certificates, test)


# No space on this machine

_ON_A_SMALL_DISK = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import base_factory, vambrace.image.prepare
base = base_factory.make_base(Path(sys.argv[3]))
vambrace.image.prepare.runtime_base = lambda *_, **__: base
from vambrace.cli.main import main
sys.exit(main(sys.argv[4:]))
"""


def on_a_small_disk(folder: Path, size: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command while ``folder`` is a disk of ``size`` of its own; afterwards its files are listed on stdout.

    Skips the test where a mount namespace cannot be had.
    """
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    base = folder.parent / "base"
    base.mkdir()
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && {{ "$@"; code=$?; find "$0" -mindepth 1; exit $code; }}'
    python = [sys.executable, "-c", _ON_A_SMALL_DISK, str(Path(__file__).parent), str(ROOT), str(base)]
    command = [*unshare, "sh", "-c", script, str(folder), *python, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("size", ["64k", "512k", "1200k"], ids=["for the files", "for their disk", "for the bundle"])
def test_no_space_for_an_image(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    """The disk gets full at each of the build's steps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (work / "analysis/data").write_bytes(os.urandom(500 << 10))
    target = tmp_path / "small"
    target.mkdir()
    done = on_a_small_disk(target, size, "image", "build", "manifest.yaml", "-o", str(target / "out.vambrace"))
    check_words(
        done.returncode,
        done.stdout,
        done.stderr,
        code=6,
        says=f"no space left in {target} for the image",
        hint="free some, or choose another --output",
    )


def test_no_space_for_the_user_s_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "small"
    target.mkdir()
    monkeypatch.setenv("VAMBRACE_HOME", str(target / "home"))
    # A disk with room for the key, not for its certificate too.
    done = on_a_small_disk(target, "4k", "owner", "create")
    found = [line for line in done.stdout.splitlines() if not line.endswith(("/home", "/home/owner"))]
    assert not found
    check_words(done.returncode, "", done.stderr, code=3, says="cannot be written: No space left", hint="make room")


def test_no_space_for_a_dump(work: Path, tmp_path: Path, refused: Refusals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAMBRACE_SERVER", str(tmp_path / "server"))
    monkeypatch.setattr("vambrace.emulator.qemu.running", lambda home: os.getpid())
    usage = shutil.disk_usage(work)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 * MIB))
    refused(7, "server", "dump", "memory.bin", says="no space for", hint="name another disk")
    assert not (work / "memory.bin").exists()


# And what else makes one line of an internal error


def test_an_owner_s_name_that_no_certificate_takes(refused: Refusals, own_state: Path) -> None:
    for name in ("", "n" * 65):
        refused(2, "owner", "create", "--name", name, says="1 to 64 characters", hint="choose another")
    assert not tree(own_state)
