"""What every command's options have in common. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vambrace.errors import UsageError

if TYPE_CHECKING:
    from vambrace.cli.output import Output

Handler = Callable[[argparse.Namespace, "Output"], int]


class Parser(argparse.ArgumentParser):
    """Raises ``UsageError`` instead of printing its usage and exiting."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see '{self.prog} --help'")


class Commands:
    """Adds commands; ``group`` opens a level below."""

    def __init__(self, parser: argparse.ArgumentParser, title: str = "commands") -> None:
        self._below = parser.add_subparsers(title=title, metavar="COMMAND", required=True, parser_class=Parser)

    def group(self, name: str, text: str) -> Commands:
        return Commands(self._below.add_parser(name, help=text, description=text))

    def add(self, name: str, text: str, handler: Handler, example: str) -> argparse.ArgumentParser:
        """A command with the common options; ``example`` is shown at the end of its help."""
        parser: argparse.ArgumentParser = self._below.add_parser(
            name, help=text, description=text, epilog=f"example:\n  {example}"
        )
        common = parser.add_argument_group("common options")
        common.add_argument("--json", action="store_true", help="print the result as JSON")
        shown = common.add_mutually_exclusive_group()
        shown.add_argument(
            "--progress", action="store_true", default=None, help="show progress where stderr is no terminal"
        )
        shown.add_argument("--no-progress", dest="progress", action="store_false", help="show none")
        common.add_argument("--debug", action="store_true", help="show a traceback if something fails")
        parser.set_defaults(handler=handler, called=parser.prog)
        return parser


def percent(text: str) -> int:
    """A whole number from 0 to 100."""
    if not text.isascii() or not text.isdigit() or int(text[:9]) > 100 or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 100")
    return int(text)


def port(text: str) -> int:
    """A TCP port from 1 to 65535."""
    if not text.isascii() or not text.isdigit() or len(text) > 5 or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a port from 1 to 65535")
    return int(text)


def hexadecimal(*lengths: int) -> Callable[[str], bytes]:
    """So many bytes in hexadecimal, or so many."""
    wanted = " or ".join(str(length) for length in lengths)

    def parse(text: str) -> bytes:
        try:
            data = bytes.fromhex(text)
        except ValueError:
            data = b""
        if len(data) not in lengths:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is not {wanted} bytes in hexadecimal")
        return data

    return parse


def host_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="NAME", help="the host, if not the current one (or VAMBRACE_HOST)")


def policy_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", type=Path, metavar="FILE", help="what is acceptable (TOML); safe defaults without")
    parser.add_argument("--allow-debug", action="store_true", help="accept a Realm in debug mode: NOT confidential")
    parser.add_argument(
        "--allow-insecure", action="store_true", help="accept a platform without TrustZone: PROVES NOTHING"
    )
    parser.add_argument(
        "--cache",
        choices=("divided", "confirmed"),
        help="demand that the last-level cache is divided: by ways or colours, or by what is certain to divide it",
    )
