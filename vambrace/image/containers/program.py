"""A manifest's wish and an image → the application that runs."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vambrace.application import Application
from vambrace.container import Container
from vambrace.errors import ConfigError
from vambrace.image.containers import tar
from vambrace.image.containers.image import ContainerImage, read_image
from vambrace.image.containers.settings import PATH
from vambrace.image.containers.tree import Tree
from vambrace.image.manifest import Program
from vambrace.image.manifest.container import Wish
from vambrace.storage import SCRATCH, Storage


def settle(
    programs: tuple[Program, ...], work: Path, storage: Storage | None = None
) -> tuple[tuple[Program, ...], dict[str, ContainerImage]]:
    """``programs``, the containers among them as their images say; and those images by the names of their disks.

    An image that several are made of is read once. ``work`` is a folder for files, ``storage`` what is mounted over
    images. Raises ``ConfigError``, ``ImageError``, ``BuildError``.
    """
    references = sorted({program.container.reference for program in programs if program.container})
    images: dict[str, ContainerImage] = {}
    names: dict[str, str] = {}
    for number, reference in enumerate(references, 1):
        names[reference] = f"image-{number}"
        images[names[reference]] = read_image(reference, work / names[reference])
    settled = []
    for program in programs:
        if program.container:
            name = names[program.container.reference]
            application = _settle(program.application, program.container, name, images[name])
            check_command(application, images[name].tree, _mounts(application.name, storage))
            program = replace(program, application=application)
        settled.append(program)
    return tuple(settled), images


def _settle(application: Application, wish: Wish, disk: str, image: ContainerImage) -> Application:
    says = image.settings
    entrypoint = says.entrypoint if wish.entrypoint is None else wish.entrypoint
    # Docker: whoever gives another entry point does not want the image's arguments for it.
    command = wish.command if wish.command is not None else says.command if wish.entrypoint is None else ()
    where = f"application {application.name}"
    if not entrypoint and not command:
        raise ConfigError(f"{where}: the image names no command", hint="give one in the manifest, or with --command")
    user = image.user(says.user if wish.user is None else wish.user)
    container = wish.container.replace(
        disk=disk,
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        stop_signal=says.stop_signal,
        health=says.health if wish.health else None,
    )
    assert isinstance(container, Container)
    settled = application.replace(
        command=(*entrypoint, *command),
        environment={"HOME": user.home, **says.environment, **application.environment},
        directory=wish.directory or says.directory,
        container=container,
    )
    assert isinstance(settled, Application)
    return settled


def check_command(application: Application, tree: Tree, mounts: Sequence[str] = ()) -> None:
    """Raises ``ConfigError`` if what the command names is no program of the image, as runtimes look for it: at its
    path, or in the folders of PATH. What is below ``mounts`` is known when it runs."""
    program = application.command[0]
    folders = application.environment.get("PATH", PATH).split(":")
    places = [program] if "/" in program else [f"{folder or '.'}/{program}" for folder in folders]
    found = False
    for place in (posixpath.join(application.directory, each) for each in places):
        if any(target.is_relative_to(mount) for target in _targets(tree, place) for mount in mounts):
            return
        node = tree.find(place)
        if node is not None and node.kind == tar.FILE:
            if node.permissions & 0o111:
                return
            found = True
    where = f"application {application.name}: {program[:80]}"
    if found:
        raise ConfigError(f"{where}: not executable in the image", hint="chmod +x in the image, or name what runs it")
    looked = "PATH is " + ":".join(folders)[:200] if "/" not in program else "it is a path in the image"
    raise ConfigError(f"{where}: no such program in the image", hint=f"correct command or entrypoint; {looked}")


def _targets(tree: Tree, place: str) -> list[PurePosixPath]:
    """Where ``place`` is, and where a link there leads, which may be to what is not in the image."""
    folder, name = posixpath.split(posixpath.normpath(place))
    parent = tree.find(folder)
    node = parent.children.get(name.encode("utf-8", "surrogateescape")) if parent else None
    found = [posixpath.join(folder, name)]
    if node is not None and node.kind == tar.SYMLINK:
        found.append(posixpath.normpath(posixpath.join(folder, node.link.decode("utf-8", "surrogateescape"))))
    return [PurePosixPath(each) for each in found]


def _mounts(name: str, storage: Storage | None) -> list[str]:
    """Where disks of the application ``name`` are."""
    if storage is None:
        return []
    scratch = [SCRATCH for each in storage.scratch if each.application == name]
    return [*scratch, *(volume.mount for volume in storage.volumes if volume.application == name)]
