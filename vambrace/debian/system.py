"""A stock Debian system for a Normal VM: Debian's kernel, a root with systemd as its init, and what finds that root.

Packages are unpacked as by ``dpkg --unpack``, and registered as such: no foreign code runs while building. What their
scripts would set up for a first boot is done here: accounts, PAM, name services. Nothing of vambrace is in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vambrace.debian import root, tools
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.debian.initrd import make_system_initrd
from vambrace.debian.kernel import kernel
from vambrace.errors import BuildError

#: Debian's essential packages, and what makes them a machine: an init, devices, logins, network tools, apt.
PACKAGES = (
    *("base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "debianutils", "diffutils", "dpkg"),
    *("findutils", "grep", "gzip", "hostname", "init-system-helpers", "libc-bin", "login", "mount", "ncurses-base"),
    *("ncurses-bin", "perl-base", "sed", "sysvinit-utils", "tar", "util-linux"),
    *("apt", "dbus", "e2fsprogs", "iproute2", "kmod", "libpam-modules", "libpam-runtime", "passwd", "procps"),
    *("systemd", "systemd-sysv", "udev"),
)
MODULES = ("virtio_mmio", "virtio_blk", "ext4", "virtio_console", "virtio-rng", "virtio_balloon", "virtio_iommu")
SLACK = 48 << 20  # bytes that are free on the disk
_UUID = "76616d62-7261-6365-8000-000000000002"
# What pam-auth-update writes where no further module is installed.
_PAM = {
    "common-auth": "auth [success=1 default=ignore] pam_unix.so nullok\nauth requisite pam_deny.so\n"
    "auth required pam_permit.so\n",
    "common-account": "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\n"
    "account requisite pam_deny.so\naccount required pam_permit.so\n",
    "common-password": "password [success=1 default=ignore] pam_unix.so obscure yescrypt\n"
    "password requisite pam_deny.so\npassword required pam_permit.so\n",
    "common-session": "session [default=1] pam_permit.so\nsession requisite pam_deny.so\n"
    "session required pam_permit.so\nsession required pam_unix.so\n",
    "common-session-noninteractive": "session [default=1] pam_permit.so\nsession requisite pam_deny.so\n"
    "session required pam_permit.so\nsession required pam_unix.so\n",
}


@dataclass(frozen=True)
class System:
    """Files of the cache. ``tree`` is the root's contents, ``key`` changes with it."""

    kernel: Path
    initrd: Path
    tree: Path
    key: str


def stock_system(archive: Archive, cache: Cache) -> System:
    """The system, built if the cache does not have it. Raises ``BuildError``, ``ToolMissing``."""
    packages = archive.binaries("normal", PACKAGES)
    inputs = {"packages": archive.key(packages), "recipe": "1"}

    def build(work: Path) -> None:
        tree = work / "tree"
        files = archive.fetch(packages)
        root.build_root(files, tree)
        for name in ("app", "results", "state"):
            (tree / name).rmdir()
        _register(files, tree)
        _configure(tree)

    product = cache.build("debian-system", inputs, build)
    image = kernel(archive, cache)
    return System(image.image, make_system_initrd(archive, cache, image, MODULES), product / "tree", product.name)


def make_ext4(trees: Sequence[Path], out: Path, slack: int = SLACK) -> None:
    """Write a file system with the contents of ``trees``, later ones over earlier ones, all of it root's.

    The same trees give the same bits. Raises ``BuildError``.
    """
    merged = out.with_suffix(".tree")
    try:
        for tree in trees:
            shutil.copytree(tree, merged, symlinks=True, dirs_exist_ok=True)
        (merged / "root").chmod(0o700)
        # A file takes whole blocks; an inode is 256 bytes, and the journal 16 MiB at most at this size.
        used = sum(-(-path.lstat().st_size // 4096) * 4096 + 512 for path in merged.rglob("*"))
        size = -(-(used + used // 20 + slack + (16 << 20)) // (1 << 20)) << 20
        out.unlink(missing_ok=True)
        with out.open("wb") as file:
            file.truncate(size)
        more = f"hash_seed={_UUID},root_owner=0:0,lazy_itable_init=0"
        options = ["-q", "-t", "ext4", "-b", "4096", "-U", _UUID, "-E", more]
        command: list[str | Path] = ["mke2fs", *options, "-d", merged, out]
        if os.geteuid():
            # In a namespace where they are root's, whoever builds.
            command = ["unshare", "--map-root-user", *command]
        tools.run(command, env={"E2FSPROGS_FAKE_TIME": "1767225600"})
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def _register(files: Sequence[Path], tree: Path) -> None:
    """What ``dpkg`` knows of the packages: there, not configured."""
    database = tree / "var/lib/dpkg"
    (database / "info").mkdir(parents=True, exist_ok=True)
    entries = []
    for package in files:
        fields = _control(package)
        first, _, rest = fields.partition("\n")
        entries.append(f"{first}\nStatus: install ok unpacked\n{rest}")
    (database / "status").write_text("\n".join(sorted(entries)))


def _control(package: Path) -> str:
    done = subprocess.run([tools.find("dpkg-deb"), "-f", str(package)], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.startswith("Package: "):
        raise BuildError(f"{package.name} is not a Debian package", hint="delete it from the cache, try again")
    return done.stdout


def _configure(tree: Path) -> None:
    """What the packages' own scripts do at their first configuration, as far as a boot needs it."""
    (tree / "etc/hostname").write_text("debian\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 debian\n")
    (tree / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    (tree / "etc/machine-id").write_text("")
    for name in ("nsswitch.conf", "profile"):
        template = tree / "usr/share/base-files" / name
        if template.exists() and not (tree / "etc" / name).exists():
            shutil.copyfile(template, tree / "etc" / name)
    for name, text in _PAM.items():
        (tree / "etc/pam.d" / name).write_text(text)
    accounts = [line.split(":")[0] for line in (tree / "etc/passwd").read_text().splitlines()]
    shadow = tree / "etc/shadow"
    shadow.write_text("".join(f"{account}:*:20454:0:99999:7:::\n" for account in accounts))
    shadow.chmod(0o640)
    # systemd's own tool, by the tree's own copy of it: accounts of its services.
    sysusers = tree / "usr/bin/systemd-sysusers"
    tools.run(["qemu-aarch64-static", "-L", tree, sysusers, f"--root={tree}"])
    for name in ("root", "var/log", "var/tmp", "mnt", "media", "srv", "opt", "home"):
        (tree / name).mkdir(parents=True, exist_ok=True)
