"""``vambrace image build --container``: a Realm of one container image, without a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vambrace.cli.parser import percent, port
from vambrace.errors import UsageError

_MANIFEST_SAYS = "in a manifest it stands there"


def add_container(build: argparse.ArgumentParser) -> None:
    """The options of ``image build`` for a container; all but the first have no meaning beside a manifest."""
    group = build.add_argument_group("a container image, in the place of a manifest (docs/containers.md)")
    group.add_argument(
        "--container", metavar="IMAGE", help="a file of 'docker save', an OCI layout or archive, or docker://NAME"
    )
    group.add_argument("--owner", type=Path, metavar="FILE", help="the owner's certificate: 'vambrace owner show'")
    group.add_argument("--name", help="of the Realm and its application (default: the image's)")
    group.add_argument("--memory", metavar="SIZE", help="of the container, such as 256M")
    group.add_argument("--percent", type=percent, metavar="N", help="the encrypted part of that memory")
    group.add_argument("--system-memory", metavar="SIZE", help="of the system beneath it")
    group.add_argument("--vcpus", type=int, metavar="N", help="virtual processors")
    group.add_argument("--publish", type=port, action="append", metavar="PORT", help="that the owner reaches")
    group.add_argument("--env", type=_variable, action="append", metavar="NAME=VALUE", help="beside the image's")
    group.add_argument("--command", metavar="WORDS", help="in the place of the image's")
    group.add_argument("--user", help="in the place of the image's: NAME or NAME:GROUP, or numbers")
    group.add_argument("--result", action="append", metavar="FILE", help="below /results/NAME, to be collected")
    group.add_argument("--restarts", type=int, metavar="N", help="how often it is started again when it fails")


@contextmanager
def wanted_manifest(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """The manifest that is to be built, written for the container if none is given, and the file that names it."""
    from vambrace.image.single import Single, manifest_file, name_of

    given = {
        "--owner": options.owner,
        "--name": options.name,
        "--memory": options.memory,
        "--percent": options.percent,
        "--system-memory": options.system_memory,
        "--vcpus": options.vcpus,
        "--publish": options.publish,
        "--env": options.env,
        "--command": options.command,
        "--user": options.user,
        "--result": options.result,
        "--restarts": options.restarts,
    }
    if options.container is None:
        if options.manifest is None:
            raise UsageError("neither a manifest nor a --container", hint="see 'vambrace image build --help'")
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} without --container", hint=_MANIFEST_SAYS)
        yield options.manifest, options.manifest
        return
    if options.manifest is not None:
        raise UsageError("a manifest and a --container", hint="write 'container: …' into the manifest")
    if options.owner is None:
        raise UsageError("--container needs the --owner", hint="'vambrace owner show > owner.pem' writes it")
    single = Single(
        container=options.container,
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
    )
    with manifest_file(single) as path:
        yield path, Path(options.name or name_of(options.container)).with_suffix(".yaml")


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not NAME=VALUE")
    return name, value
