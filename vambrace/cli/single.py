"""``vambrace image build --container``, ``--app`` and ``--vm``: a Realm of one container image, program or disk,
without a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vambrace.cli.parser import percent, port
from vambrace.errors import UsageError

_MANIFEST_SAYS = "in a manifest it stands there"
_FILES_ONLY = ("package", "requirements")
_CONTAINER_ONLY = ("command", "user")
_VM_ONLY = ("unit", "partition")
_KINDS = {"container": _CONTAINER_ONLY, "app": _FILES_ONLY, "vm": _VM_ONLY}
_SINGLE = (
    *("owner", "name", "memory", "percent", "system-memory", "vcpus", "publish", "env", "result", "restarts"),
    *(*_FILES_ONLY, *_CONTAINER_ONLY, *_VM_ONLY),
)


def add_single(build: argparse.ArgumentParser) -> None:
    """The options of ``image build`` for one application; none of them has a meaning beside a manifest."""
    build.add_argument("words", nargs="*", metavar="COMMAND", help="with --app: what runs, behind '--'")
    title = "one application, in the place of a manifest (docs/containers.md, docs/images.md, docs/vm-form.md)"
    group = build.add_argument_group(title)
    group.add_argument(
        "--container", metavar="IMAGE", help="a file of 'docker save', an OCI layout or archive, or docker://NAME"
    )
    group.add_argument("--app", type=Path, metavar="PATH", help="a program, a Java archive, or a folder with a program")
    group.add_argument("--package", action="append", metavar="NAME", help="of Debian, which the --app needs")
    group.add_argument("--requirements", type=Path, metavar="FILE", help="of the --app in Python")
    group.add_argument("--vm", type=Path, metavar="DISK", help="a raw or qcow2 disk with a system of systemd")
    group.add_argument("--unit", metavar="NAME", help="of the --vm, which is the application: nginx.service")
    group.add_argument("--partition", type=int, metavar="N", help="of the --vm, with its root (default: found)")
    group.add_argument("--owner", type=Path, metavar="FILE", help="the owner's certificate: 'vambrace owner show'")
    group.add_argument("--name", help="of the Realm and its application (default: the image's)")
    group.add_argument("--memory", metavar="SIZE", help="of the application, such as 256M")
    group.add_argument("--percent", type=percent, metavar="N", help="the encrypted part of that memory")
    group.add_argument("--system-memory", metavar="SIZE", help="of the system beneath it")
    group.add_argument("--vcpus", type=int, metavar="N", help="virtual processors")
    group.add_argument("--publish", type=port, action="append", metavar="PORT", help="that the owner reaches")
    group.add_argument("--env", type=_variable, action="append", metavar="NAME=VALUE", help="beside the container's")
    group.add_argument("--command", metavar="WORDS", help="in the place of the container's")
    group.add_argument("--user", help="in the place of the container's: NAME or NAME:GROUP, or numbers")
    group.add_argument("--result", action="append", metavar="FILE", help="below /results/NAME, to be collected")
    group.add_argument("--restarts", type=int, metavar="N", help="how often it is started again when it fails")


@contextmanager
def wanted_manifest(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """The manifest that is to be built, written for the application if none is given, and the file that names it."""
    from vambrace.image.single import Files, Single, System, manifest_file

    if all(getattr(options, kind) is None for kind in _KINDS):
        _check_manifest(options)
        yield Path(options.manifest), Path(options.manifest)
        return
    words = [word for word in (options.manifest, *options.words) if word is not None]
    _check_single(options, words)
    files = Files(options.app, words, options.package or (), options.requirements) if options.app else None
    system = System(options.vm, options.unit, options.partition) if options.vm else None
    single = Single(
        container=options.container or "",
        owner=options.owner,
        name=options.name or "",
        memory=options.memory or "",
        percent=options.percent,
        system_memory=options.system_memory or "",
        vcpus=options.vcpus,
        publish=options.publish or (),
        command=options.command or "",
        user=options.user or "",
        environment=dict(options.env or ()),
        results=options.result or (),
        restarts=options.restarts,
        files=files,
        system=system,
    )
    with manifest_file(single) as path:
        yield path, Path(options.name or single.default_name()).with_suffix(".yaml")


def _check_manifest(options: argparse.Namespace) -> None:
    """That there is one, and nothing that it says itself."""
    if options.manifest is None:
        what = "neither a manifest nor a --container, --app or --vm"
        raise UsageError(what, hint="see 'vambrace image build --help'")
    if options.words:
        raise UsageError(f"{options.words[0][:80]!r} beside a manifest", hint="one manifest, and no command")
    for option in _SINGLE:
        if getattr(options, option.replace("-", "_")) is not None:
            raise UsageError(f"--{option} without --container, --app or --vm", hint=_MANIFEST_SAYS)


def _check_single(options: argparse.Namespace, words: list[str]) -> None:
    """That what is asked for is one thing, with what belongs to that."""
    wanted = [kind for kind in _KINDS if getattr(options, kind) is not None]
    if len(wanted) > 1:
        raise UsageError("one of --container, --app and --vm", hint="in a manifest there may be several applications")
    [kind] = wanted
    if kind != "app" and words:
        raise UsageError(f"a manifest and a --{kind}", hint=f"write '{kind}: …' into the manifest")
    for other, its_own in _KINDS.items():
        for option in its_own if other != kind else ():
            if getattr(options, option) is not None:
                raise UsageError(f"--{option} without --{other}", hint="see 'vambrace image build --help'")
    if kind == "vm" and options.unit is None:
        raise UsageError("--vm needs the --unit", hint="the service of the disk's systemd that is the application")
    if options.owner is None:
        raise UsageError(f"--{kind} needs the --owner", hint="'vambrace owner show > owner.pem' writes it")


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not NAME=VALUE")
    return name, value
