"""Debian's packages in a Realm's root: what their scripts would set up, and the lock beside the manifest."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import vambrace.debian
from vambrace.debian import root
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.debian.configure import (
    Alternative,
    add_accounts,
    configure,
    find_accounts,
    find_alternatives,
    inside,
    install_alternatives,
)
from vambrace.errors import BuildError, ConfigError
from vambrace.image import base
from vambrace.image.packages import check_packages, lock_path, locked_packages

SCRIPT = r"""
set -e
if [ "$1" = configure ]; then
    update-alternatives --install /usr/bin/editor editor \
        /usr/bin/ed 10 \
        --slave /usr/share/man/man1/editor.1.gz editor.1.gz /usr/share/man/man1/ed.1.gz
    update-alternatives --remove old /usr/bin/old
    adduser --system --quiet --home /var/lib/store \
        --group store || true
    update-alternatives --install /usr/bin/$i $i $basedir/bin/$i $priority
    update-alternatives --install /../etc/passwd escape /usr/bin/ed 10
    update-alternatives --install /usr/bin/x ../../x /usr/bin/ed 10
    update-alternatives --install /usr/bin/touch touch /usr/bin/ed 10; touch "/tmp/an open quotation
fi
"""


def make_package(folder: Path, name: str, script: str, files: dict[str, str]) -> Path:
    """A Debian package as dpkg-deb writes it."""
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: arm64\nMaintainer: nobody <n@example.org>\nDescription: test\n"
    )
    (tree / "DEBIAN/postinst").write_text("#!/bin/sh\n" + script)
    (tree / "DEBIAN/postinst").chmod(0o755)
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree], check=True, capture_output=True)
    return folder / f"{name}.deb"


def small_root() -> list[Path]:
    """Packages of the archive that a root needs for accounts and the dynamic linker."""
    cache = Cache()
    archive = Archive(cache.root / "archive", Path(vambrace.debian.__file__).with_name("packages.lock"))
    names = ("base-passwd", "libc6", "libc-bin")
    packages = [package for package in archive.binaries("normal", names) if package.name in names]
    assert len(packages) == len(names)
    return archive.fetch(packages)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for path in ("usr/bin/ed", "usr/bin/vi", "etc/passwd", "etc/group"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text("")
    (tree / "etc/passwd").write_text("root:*:0:0::/root:/bin/sh\nold:*:100:7::/:/bin/false\n")
    (tree / "etc/group").write_text("root:*:0:\nadm:*:101:\n")
    return tree


def test_scripts_are_read_and_not_run() -> None:
    found = find_alternatives(SCRIPT)
    assert Alternative("editor", "/usr/bin/editor", "/usr/bin/ed", 10) in found
    assert {each.name for each in found} == {"editor", "editor.1.gz", "touch"}
    assert find_accounts(SCRIPT) == ["store"]
    assert find_accounts("adduser --system $USER\nadduser someone\nadduser --system -x\n") == []


def test_the_highest_alternative_of_what_is_there(tree: Path) -> None:
    choices = [("ed", 10), ("vi", 20), ("missing", 30)]
    install_alternatives(tree, [Alternative("editor", "/usr/bin/editor", f"/usr/bin/{n}", p) for n, p in choices])
    assert (tree / "usr/bin/editor").readlink() == Path("/etc/alternatives/editor")
    assert inside(tree, "/usr/bin/editor") == tree / "usr/bin/vi"


def test_an_alternative_replaces_no_file(tree: Path) -> None:
    install_alternatives(tree, [Alternative("vi", "/usr/bin/vi", "/usr/bin/ed", 10)])
    assert not (tree / "usr/bin/vi").is_symlink()


def test_links_are_followed_within_the_tree(tree: Path) -> None:
    (tree / "loop").symlink_to("/loop")
    (tree / "out").symlink_to("../../../../../../../../etc/passwd")
    (tree / "absolute").symlink_to("/usr/bin")
    assert inside(tree, "/loop") is None
    assert inside(tree, "/out") == tree / "etc/passwd"
    assert inside(tree, "/absolute/../bin/ed") == tree / "usr/bin/ed"
    assert inside(tree, "/usr/bin/none") is None


def test_accounts_get_free_numbers(tree: Path) -> None:
    add_accounts(tree, ["one", "old", "two"], ["application-1:*:1000:1000::/results:/bin/sh"])
    users = [line.split(":")[:4] for line in (tree / "etc/passwd").read_text().splitlines()]
    assert users[2:] == [
        ["one", "*", "102", "102"],
        ["two", "*", "103", "103"],
        ["application-1", "*", "1000", "1000"],
    ]
    assert (tree / "etc/group").read_text().splitlines()[2:] == ["one:*:102:", "two:*:103:", "application-1:*:1000:"]


def test_a_root_is_configured(tmp_path: Path) -> None:
    """With a package of our own and Debian's linker: links, accounts, Java's programs, certificates and libraries."""
    files = {
        "usr/bin/ed": "x",
        "usr/lib/jvm/.java-21.jinfo": "priority=2111\n\nhl java /usr/lib/jvm/java-21/bin/java\n",
        "usr/lib/jvm/java-21/bin/java": "x",
        "usr/share/ca-certificates/b.crt": "B\n",
        "usr/share/ca-certificates/a.crt": "A",
        "usr/lib/store/readme": "no library",
        "etc/ld.so.conf.d/store.conf": "/usr/lib/store\n",
    }
    packages = [*small_root(), make_package(tmp_path, "store", SCRIPT, files)]
    tree = tmp_path / "tree"
    root.build_root(packages, tree)
    # A library where only a package's own setting leads to.
    (tree / "usr/lib/store/libstore.so.1").write_bytes((tree / "usr/lib/aarch64-linux-gnu/libm.so.6").read_bytes())
    configure(packages, tree, ["application-1:*:1000:1000::/results:/bin/sh"])
    assert inside(tree, "/usr/bin/editor") == tree / "usr/bin/ed"
    assert inside(tree, "/usr/bin/java") == tree / "usr/lib/jvm/java-21/bin/java"
    assert [name in (tree / "etc/passwd").read_text() for name in ("\nstore:", "\napplication-1:")] == [True, True]
    assert (tree / "etc/ssl/certs/ca-certificates.crt").read_text() == "A\nB\n"
    cached = (tree / "etc/ld.so.cache").read_bytes()
    assert b"/usr/lib/store/" in cached and b"/lib/aarch64-linux-gnu/libc.so.6" in cached
    assert not (tree / "var/cache/ldconfig/aux-cache").exists()


@pytest.mark.parametrize("name", ["-oDpkg::Pre-Invoke=x", "Postgres", "a", "x=1", "a/b", "x y", ""])
def test_names_of_packages(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a Debian package"):
        check_packages([name])


def test_packages_twice_or_too_many() -> None:
    with pytest.raises(ConfigError, match="twice"):
        check_packages(["redis", "redis"])
    with pytest.raises(ConfigError, match="201 packages"):
        check_packages([f"package{number}" for number in range(201)])


def entries(*names: str) -> list[dict[str, str]]:
    return [{"name": n, "version": "1", "path": f"pool/{n}_1_arm64.deb", "sha256": "ab" * 32} for n in sorted(names)]


def test_the_lock_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded is taken without asking the archive, which here is nowhere."""
    monkeypatch.setenv("VAMBRACE_DEBIAN_MIRROR", (tmp_path / "nowhere/debian").as_uri())
    manifest = tmp_path / "shop.yaml"
    lock = lock_path(manifest)
    assert lock == tmp_path / "shop.packages.lock"
    lock.write_text(json.dumps({"redis": entries(*base.PACKAGES, "libc-bin", "redis", "libatomic1")}))
    found = locked_packages(["redis"], manifest, tmp_path / "archive")
    assert "libatomic1" in [package.name for package in found]
    # Another set is resolved as a whole, and so is a renewal; the old record stays where that fails.
    before = lock.read_text()
    for names, newer in ((["redis", "nginx"], False), (["redis"], True)):
        with pytest.raises(BuildError):
            locked_packages(names, manifest, tmp_path / "archive", newer=newer)
    assert lock.read_text() == before


def entry(path: str, sha256: object) -> str:
    return json.dumps({"redis": [{"name": "x", "version": "1", "path": path, "sha256": sha256}]})


#: What is in the cache is found by its hash, so that a hash must not be a path.
ELSEWHERE = [entry("pool/x.deb", "/tmp/project"), entry("pool/x.deb", 7), entry("pool/../../x.deb", "ab" * 32)]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"redis": [{"name": "x"}]}', '{"redis": 3}', "\xff", *ELSEWHERE]
)
def test_a_broken_lock(tmp_path: Path, text: str) -> None:
    lock_path(tmp_path / "shop.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(BuildError, match="no lock of packages"):
        locked_packages(["redis"], tmp_path / "shop.yaml", tmp_path / "archive")


def test_packages_are_resolved_and_recorded(tmp_path: Path) -> None:
    """By the real archive: a package with what it needs, one that does not exist, one that others provide."""
    directory = tmp_path / "archive"
    found = {package.name for package in locked_packages(["libjemalloc2"], tmp_path / "m.yaml", directory)}
    assert {"libjemalloc2", "libstdc++6", *base.PACKAGES} <= found
    text = lock_path(tmp_path / "m.yaml").read_text()
    assert list(json.loads(text)) == ["libjemalloc2"] and "://" not in text
    with pytest.raises(ConfigError, match="no package no-such-thing for arm64"):
        locked_packages(["no-such-thing"], tmp_path / "n.yaml", directory)
    with pytest.raises((BuildError, ConfigError), match="virtual|no package"):
        locked_packages(["mail-transport-agent"], tmp_path / "v.yaml", directory)
