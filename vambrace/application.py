"""An application of an attested domain, as the measured configuration describes it (docs/architecture.md, section 1).

Standard library only, and few modules of it: the VMM process imports this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from vambrace.canonical import Object
from vambrace.checks import (
    MAX_ITEMS,
    check_absolute,
    check_below,
    check_integer,
    check_name,
    check_strings,
    check_text,
    check_unique,
)
from vambrace.container import Container
from vambrace.errors import ConfigError
from vambrace.record import Record

MAX_APPLICATIONS: Final = 15  # Debian's arm64 kernel has 16 NUMA nodes, one is the system's
MAX_RESTARTS: Final = 1000
MAX_PORTS: Final = 64
FIRST_PORT, LAST_PORT = 1024, 65535  # a program of the application form has no capability for smaller ones
#: The measurement registers of applications. A Realm has one more, 0, which is the agent's.
REGISTERS: Final = (1, 2, 3)

#: The system zone's name, which no application can have.
SYSTEM: Final = "system"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@-]{0,119}\.service")
_WORD = re.compile(r"[!-<>-~]{1,128}")  # images have dots and dashes in names, too


class Port(Record):
    """A TCP port on the guest's loopback where an application serves, and which the owner reaches (section 7)."""

    port: int

    def __post_init__(self) -> None:
        check_integer(self.port, 1, LAST_PORT, "port")


class Application(Record):
    """One unmodified program with its own zone; ``results`` are files below ``/results/<name>``. With ``container``, it
    is one: its ``directory`` is one of the container's. With ``unit``, it is that unit of a disk's system, which has
    the command.

    ``ports`` are those that it publishes: nobody reaches another one. ``registers`` are the measurement registers that
    it may extend while it runs.
    """

    OPTIONAL = frozenset({"ports", "registers", "container", "unit"})

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    restarts: int = 0
    results: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    registers: tuple[int, ...] = ()
    container: Container | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "application")
        where = f"application {self.name}"
        if self.name == SYSTEM:
            raise ConfigError(f"{where}: the name is the system zone's", hint="choose another name")
        check_strings(self.command, f"{where}: command")
        if self.unit:
            check_unit(self.unit, where)
            if self.command or self.container:
                raise ConfigError(f"{where}: a unit has no command of the manifest's", hint="change the unit")
        elif not self.command or not self.command[0]:
            raise ConfigError(f"{where}: the command is empty", hint='for example ["python3", "main.py"]')
        elif "=" in self.command[0] and not self.container:
            # What starts it in its Realm would take it for a variable.
            raise ConfigError(f"{where}: the name of its program has a '='", hint="start it by a link or a script")
        for argument in self.command:
            check_text(argument, f"{where}: command")
        check_environment(self.environment, where, container=self.container is not None)
        if self.container or self.unit:
            check_absolute(self.directory, f"{where}: directory")
        else:
            check_below(self.directory, f"/app/{self.name}", f"{where}: directory", itself=True)
            check_unprivileged(self.ports, where)
        check_integer(self.restarts, 0, MAX_RESTARTS, f"{where}: restarts")
        check_results(self.results, self.name)
        check_registers(self.registers, where)

    @property
    def program(self) -> str:
        """What runs, in a line for people."""
        return self.unit or " ".join(self.command)

    @property
    def described(self) -> str:
        """Its name, its program and the ports that it publishes, in a line for people."""
        ports = f" (publishes {', '.join(str(port.port) for port in self.ports)})" if self.ports else ""
        return f"{self.name}: {self.program}{ports}"

    @classmethod
    def read(cls, item: Object) -> Application:
        return cls(
            name=item.string("name"),
            command=item.strings("command"),
            environment=item.mapping("environment"),
            directory=item.string("directory"),
            restarts=item.integer("restarts"),
            results=item.strings("results"),
            ports=tuple(Port(port.integer("port")) for port in item.objects("ports")) if "ports" in item else (),
            registers=item.integers("registers") if "registers" in item else (),
            container=Container.read(item.object("container")) if "container" in item else None,
            unit=item.string("unit") if "unit" in item else "",
        )


def check_unit(unit: object, where: str) -> None:
    """The name of one service (systemd.unit(5)), no template. Raises ``ConfigError``."""
    if not isinstance(unit, str) or not _UNIT.fullmatch(unit) or unit.count("@") > 1:
        raise ConfigError(f"{where}: {str(unit)[:60]!r} is no service of systemd", hint="for example nginx.service")


def check_units(applications: Sequence[Application]) -> None:
    """A unit is in one zone, so it is one application. Raises ``ConfigError``."""
    check_unique([application.unit for application in applications if application.unit], "unit")


def check_application_count(count: int) -> None:
    """From 1 to ``MAX_APPLICATIONS``. Raises ``ConfigError``."""
    if count == 0:
        raise ConfigError("applications: there are none", hint="a Realm runs at least one application")
    if count > MAX_APPLICATIONS:
        raise ConfigError(
            f"applications: {count}, but at most {MAX_APPLICATIONS} are possible",
            hint="each needs a zone of its own and a guest has 16; put the others in a second Realm",
        )


def check_unprivileged(ports: Sequence[Port], where: str) -> None:
    """From ``FIRST_PORT`` on: a program on the base has no capability for smaller ones. Raises ``ConfigError``."""
    for port in ports:
        check_integer(port.port, FIRST_PORT, LAST_PORT, f"{where}: port")


def check_results(results: tuple[str, ...], name: str) -> None:
    """They are below ``/results/<name>``, each once. Raises ``ConfigError``."""
    where = f"application {name}: result"
    check_strings(results, f"{where}s")
    for path in results:
        check_below(path, f"/results/{name}", where)
    check_unique(results, where)


def check_registers(registers: Sequence[int], where: str) -> None:
    """Those of applications, each once. Raises ``ConfigError``."""
    for register in registers:
        check_integer(register, REGISTERS[0], REGISTERS[-1], f"{where}: register")
    check_unique([str(register) for register in registers], f"{where}: register")


def check_ports(applications: Sequence[Application], listening: Sequence[int]) -> None:
    """They share one loopback: a port is published once, and is none that the agent is ``listening`` on.

    Raises ``ConfigError``."""
    ports = [port.port for application in applications for port in application.ports]
    if len(ports) > MAX_PORTS:
        raise ConfigError(f"{len(ports)} published ports", hint=f"at most {MAX_PORTS}")
    check_unique([str(port) for port in ports], "port")
    for port in ports:
        if port in listening:
            raise ConfigError(f"port {port} is an endpoint's", hint="the agent listens there: publish another port")


def check_environment(environment: object, where: str, *, container: bool = False) -> None:
    """Names and values of at most ``MAX_ITEMS`` variables; a ``container`` may have names that no shell takes.

    Raises ``ConfigError``."""
    names = _WORD if container else _VARIABLE
    if not isinstance(environment, Mapping) or len(environment) > MAX_ITEMS:
        raise ConfigError(f"{where}: environment must map names to strings", hint=f"at most {MAX_ITEMS} of them")
    for variable, value in environment.items():
        if not isinstance(variable, str) or not names.fullmatch(variable):
            raise ConfigError(
                f"{where}: {variable!r} is no name of an environment variable",
                hint="letters, digits and _, not starting with a digit",
            )
        check_text(value, f"{where}: environment variable {variable}")
