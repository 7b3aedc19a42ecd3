"""A manifest's wish and an image → the application that runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vambrace.application import Application
from vambrace.container import Container
from vambrace.errors import ConfigError
from vambrace.image.containers.image import ContainerImage, read_image
from vambrace.image.manifest import Program
from vambrace.image.manifest.container import Wish


def settle(programs: tuple[Program, ...], work: Path) -> tuple[tuple[Program, ...], dict[str, ContainerImage]]:
    """``programs``, the containers among them as their images say; and those images by the names of their disks.

    An image that several are made of is read once. ``work`` is a folder for files. Raises ``ConfigError``,
    ``ImageError``, ``BuildError``.
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
            program = replace(program, application=_settle(program.application, program.container, name, images[name]))
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
