"""The ``vambrace`` command. Exit codes are those of ``vambrace.errors`` (docs/cli.md); 130 after Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from vambrace import __version__
from vambrace.cli import (
    advise,
    attest,
    broker,
    connect,
    console,
    file,
    image,
    owner,
    partition,
    realm,
    run,
    secret,
    server,
    session,
    top,
    verify,
    volume,
)
from vambrace.cli.output import Output
from vambrace.cli.parser import Commands, Parser
from vambrace.errors import UsageError, VambraceError

INTERRUPTED = 130
INTERNAL = 1


def make_parser() -> Parser:
    """Every command and its options."""
    parser = Parser(
        prog="vambrace",
        description="Confidential VMs on ARM servers: build, measure, start, verify and talk to Realms.",
        epilog="example:\n  vambrace server up && vambrace run examples/patients/manifest.yaml",
    )
    parser.add_argument("--version", action="version", version=f"vambrace {__version__}")
    commands = Commands(parser)
    about_domains = (server, owner, image, run, realm, file, advise, attest, connect, console)
    for group in (*about_domains, volume, verify, broker, secret, partition, top):
        group.add(commands)
    return parser


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Raises ``UsageError``, whose hint is the help of the command that was meant."""
    options, unknown = make_parser().parse_known_args(words)
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)[:200]}", hint=f"see '{options.called} --help'")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    output = Output(json_mode="--json" in words)
    debug = "--debug" in words
    options = argparse.Namespace()
    try:
        options = _parse(words)
        output = Output(json_mode=options.json, progress=options.progress)
        code: int = options.handler(options, output)
        sys.stdout.flush()
    except VambraceError as error:
        if debug:
            traceback.print_exc()
        session.advise(error, options)
        output.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        output.end_progress()
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if debug:
            traceback.print_exc()
        failure = VambraceError(
            f"internal error: {type(error).__name__}: {error}", hint="run it again with --debug and report it"
        )
        output.error(failure)
        return INTERNAL
    return code


if __name__ == "__main__":
    sys.exit(main())
