"""``vambrace image build --container`` and ``--app``: a Realm of one container image or program, without a manifest."""

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
_SINGLE = (
    *("owner", "name", "memory", "percent", "system-memory", "vcpus", "publish", "env", "result", "restarts"),
    *(*_FILES_ONLY, *_CONTAINER_ONLY),
)


def add_single(build: argparse.ArgumentParser) -> None:
    """The options of ``image build`` for one application; all but the first two have no meaning beside a manifest."""
    build.add_argument("words", nargs="*", metavar="COMMAND", help="with --app: what runs, behind '--'")
    group = build.add_argument_group("one application, in the place of a manifest (docs/containers.md, docs/images.md)")
    group.add_argument(
        "--container", metavar="IMAGE", help="a file of 'docker save', an OCI layout or archive, or docker://NAME"
    )
    group.add_argument("--app", type=Path, metavar="PATH", help="a program, a Java archive, or a folder with a program")
    group.add_argument("--package", action="append", metavar="NAME", help="of Debian, which the --app needs")
    group.add_argument("--requirements", type=Path, metavar="FILE", help="of the --app in Python")
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
    from vambrace.image.single import Files, Single, manifest_file, name_of

    if options.container is None and options.app is None:
        _check_manifest(options)
        yield Path(options.manifest), Path(options.manifest)
        return
    words = [word for word in (options.manifest, *options.words) if word is not None]
    _check_single(options, words)
    files = Files(options.app, words, options.package or (), options.requirements) if options.app else None
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
    )
    with manifest_file(single) as path:
        name = options.name or name_of(options.container or str(options.app.resolve()))
        yield path, Path(name).with_suffix(".yaml")


def _check_manifest(options: argparse.Namespace) -> None:
    """That there is one, and nothing that it says itself."""
    if options.manifest is None:
        raise UsageError("neither a manifest nor a --container or --app", hint="see 'vambrace image build --help'")
    if options.words:
        raise UsageError(f"{options.words[0][:80]!r} beside a manifest", hint="one manifest, and no command")
    for option in _SINGLE:
        if getattr(options, option.replace("-", "_")) is not None:
            raise UsageError(f"--{option} without --container or --app", hint=_MANIFEST_SAYS)


def _check_single(options: argparse.Namespace, words: list[str]) -> None:
    """That what is asked for is a container or a program, with what belongs to that."""
    if options.container is not None and options.app is not None:
        raise UsageError("a --container and an --app", hint="in a manifest there may be several applications")
    if options.container is not None:
        if words:
            raise UsageError("a manifest and a --container", hint="write 'container: …' into the manifest")
        foreign, kind = _FILES_ONLY, "--app"
    else:
        foreign, kind = _CONTAINER_ONLY, "--container"
    for option in foreign:
        if getattr(options, option) is not None:
            raise UsageError(f"--{option} without {kind}", hint="see 'vambrace image build --help'")
    if options.owner is None:
        raise UsageError(
            f"--{'app' if options.app else 'container'} needs the --owner",
            hint="'vambrace owner show > owner.pem' writes it",
        )


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not NAME=VALUE")
    return name, value
