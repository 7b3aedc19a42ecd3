"""What the scripts of Debian's packages would set up at their installation, as far as programs need it to run.

The scripts themselves are foreign code, which does not run while building: they are read. Of what they call, two kinds
are followed, each with plain words only: ``update-alternatives --install`` and ``adduser --system``. Daemons, databases
and keys that a script would make are not made: a read-only root that everybody may read is no place for them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vambrace.debian import tools
from vambrace.errors import BuildError

_COMMAND = re.compile(r"^[ \t]*(update-alternatives|adduser)\b([^\n;|&]*)", re.MULTILINE)
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_MAX_LINKS = 40
_FIRST_ACCOUNT = 100  # of system accounts, Debian policy 9.2.2
_NO_SHELL = "/usr/sbin/nologin"


@dataclass(frozen=True)
class Alternative:
    """That ``link``, known as ``name``, leads to ``path``, unless another one with a higher ``priority`` says so."""

    name: str
    link: str
    path: str
    priority: int


def configure(packages: Sequence[Path], tree: Path, accounts: Sequence[str] = ()) -> None:
    """Set up ``tree``, in which the .deb files ``packages`` are unpacked; ``accounts`` are further lines of passwd.

    Raises ``BuildError``, ``ToolMissing``.
    """
    scripts = [_script(package) for package in packages]
    install_alternatives(tree, [found for script in scripts for found in find_alternatives(script)] + _java(tree))
    add_accounts(tree, sorted({name for script in scripts for name in find_accounts(script)}), accounts)
    _certificates(tree)
    _name_services(tree)
    _library_cache(tree)


def find_alternatives(script: str) -> list[Alternative]:
    """Those that a maintainer's ``script`` installs in so many words; what needs its variables is left out."""
    found = []
    for words in _calls(script, "update-alternatives"):
        if "--install" not in words:
            continue
        place = words.index("--install") + 1
        master, rest = words[place : place + 4], words[place + 4 :]
        if len(master) < 4 or not re.fullmatch(r"-?[0-9]{1,9}", master[3]):
            continue
        link, name, path, priority = master[0], master[1], master[2], int(master[3])
        found.append(Alternative(name, link, path, priority))
        while rest[:1] == ["--slave"] and len(rest) >= 4:
            # A slave goes with its master: it has its priority, in a group of its own that is decided alike.
            found.append(Alternative(rest[2], rest[1], rest[3], priority))
            rest = rest[4:]
    return [each for each in found if _plain(each.link) and _plain(each.path) and "/" not in each.name]


def find_accounts(script: str) -> list[str]:
    """The system accounts that a maintainer's ``script`` makes in so many words."""
    calls = [words for words in _calls(script, "adduser") if "--system" in words]
    return [words[-1] for words in calls if _ACCOUNT.fullmatch(words[-1])]


def install_alternatives(tree: Path, alternatives: Sequence[Alternative]) -> None:
    """Make the links as update-alternatives(1) would in its automatic mode: by way of /etc/alternatives."""
    chosen: dict[str, Alternative] = {}
    for each in alternatives:
        if inside(tree, each.path) is None:
            continue  # a manual page, for example, which is left out
        if each.name not in chosen or each.priority > chosen[each.name].priority:
            chosen[each.name] = each
    folder = tree / "etc/alternatives"
    for name, each in sorted(chosen.items()):
        link = tree / each.link.lstrip("/")
        if os.path.lexists(link) and not link.is_symlink():
            continue  # a package's own file
        folder.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        for place, target in ((folder / name, each.path), (link, f"/etc/alternatives/{name}")):
            place.unlink(missing_ok=True)
            place.symlink_to(target)


def add_accounts(tree: Path, names: Sequence[str], lines: Sequence[str] = ()) -> None:
    """System accounts ``names``, each with a group of its name, and the finished ``lines`` of passwd."""
    passwd, group = tree / "etc/passwd", tree / "etc/group"
    users, groups = passwd.read_text(), group.read_text()
    known = {line.split(":")[0] for line in users.splitlines()}
    taken = {int(line.split(":")[2]) for line in (*users.splitlines(), *groups.splitlines())}
    for name in names:
        if name in known:
            continue
        number = next(each for each in range(_FIRST_ACCOUNT, 1000) if each not in taken)
        taken.add(number)
        users += f"{name}:*:{number}:{number}::/nonexistent:{_NO_SHELL}\n"
        groups += f"{name}:*:{number}:\n"
    for line in lines:
        name, _, _, its_group = line.split(":")[:4]
        users += line + "\n"
        groups += f"{name}:*:{its_group}:\n"
    passwd.write_text(users)
    group.write_text(groups)


def inside(tree: Path, path: str, mounts: Mapping[str, Path] | None = None) -> Path | None:
    """What ``path`` of the system in ``tree`` leads to, links followed as that system would; None where to nothing.

    ``mounts`` are folders of this machine that stand in places of the system's.
    """
    place = resolve(tree, path, mounts)
    return None if place is None else _here(tree, PurePosixPath(place).parts[1:], mounts or {})


def resolve(tree: Path, path: str, mounts: Mapping[str, Path] | None = None) -> str | None:
    """As ``inside``, but how that system calls it: a path without links."""
    try:
        return _resolve(tree, path, mounts or {})
    except (OSError, ValueError):
        return None  # a name that no file system takes


def _resolve(tree: Path, path: str, mounts: Mapping[str, Path]) -> str | None:
    done: list[str] = []
    todo = list(reversed(PurePosixPath(path).parts))
    links = 0
    while todo:
        part = todo.pop()
        if part in ("/", ".."):
            done = [] if part == "/" else done[:-1]
            continue
        here = _here(tree, [*done, part], mounts)
        if here.is_symlink():
            links += 1
            if links > _MAX_LINKS:
                return None
            todo += reversed(PurePosixPath(here.readlink()).parts)
            continue
        done.append(part)
    return str(PurePosixPath("/", *done)) if _here(tree, done, mounts).exists() else None


def _here(tree: Path, parts: Sequence[str], mounts: Mapping[str, Path]) -> Path:
    place = PurePosixPath("/", *parts)
    for point, folder in mounts.items():
        if place.is_relative_to(point):
            return folder / place.relative_to(point)
    return tree.joinpath(*parts)


def _calls(script: str, program: str) -> Iterator[list[str]]:
    """The words of each call of ``program``, without those that hold a variable."""
    for match in _COMMAND.finditer(script.replace("\\\n", " ")):
        if match[1] != program:
            continue
        try:
            words = shlex.split(match[2], comments=True)
        except ValueError:
            continue  # a quotation that goes on behind the separator
        yield [word for word in words if not any(sign in word for sign in "$`>")]


def _plain(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/")


def _script(package: Path) -> str:
    """The script that the package has for its configuration, perhaps empty."""
    done = subprocess.run([tools.find("dpkg-deb"), "--ctrl-tarfile", str(package)], capture_output=True, check=False)
    if done.returncode:
        raise BuildError(f"{package.name} is not a Debian package", hint="delete it from the cache, try again")
    names = subprocess.run(["tar", "-t"], input=done.stdout, capture_output=True, check=True).stdout.split()
    if b"./postinst" not in names:
        return ""
    return tools.run(["tar", "-x", "-O", "./postinst"], stdin=done.stdout)


def _java(tree: Path) -> list[Alternative]:
    """A Java runtime lists its programs in a file of its own (update-java-alternatives(8))."""
    found = []
    for file in sorted((tree / "usr/lib/jvm").glob(".*.jinfo")):
        text = file.read_text(errors="replace")
        priority = re.search(r"^priority=([0-9]{1,9})$", text, re.MULTILINE)
        for kind, name, path in re.findall(r"^(\w+) ([\w.-]+) (/\S+)$", text, re.MULTILINE):
            if kind in ("hl", "jre", "jdkhl", "jdk") and priority and _plain(path):
                found.append(Alternative(name, f"/usr/bin/{name}", path, int(priority[1])))
    return found


def _certificates(tree: Path) -> None:
    """All certificates of ca-certificates in one file, as update-ca-certificates(8) writes it."""
    shared = tree / "usr/share/ca-certificates"
    if not shared.is_dir():
        return
    folder = tree / "etc/ssl/certs"
    folder.mkdir(parents=True, exist_ok=True)
    texts = [file.read_text().rstrip("\n") + "\n" for file in sorted(shared.rglob("*.crt"))]
    (folder / "ca-certificates.crt").write_text("".join(texts))


def _name_services(tree: Path) -> None:
    template = tree / "usr/share/libc-bin/nsswitch.conf"
    if template.exists():
        (tree / "etc/nsswitch.conf").write_text(template.read_text())


def _library_cache(tree: Path) -> None:
    """The cache of the dynamic linker, by the tree's own ldconfig, which knows the tree's processor."""
    tools.run(["qemu-aarch64-static", "-L", tree, tree / "usr/sbin/ldconfig", "-X", "-r", tree])
    # Of times and inode numbers, for ldconfig's own next run.
    (tree / "var/cache/ldconfig/aux-cache").unlink(missing_ok=True)
