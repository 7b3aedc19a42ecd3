"""``vambrace secret``: what an owner stores at a broker, and who may have it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vambrace.cli import session
from vambrace.cli.attest import describe
from vambrace.cli.broker import entry_lines
from vambrace.cli.output import Output, table
from vambrace.cli.parser import Commands

if TYPE_CHECKING:
    from vambrace.attest.policy import Policy
    from vambrace.client.broker import BrokerClient


def add(commands: Commands) -> None:
    secrets = commands.group("secret", "secrets at a broker, in your repositories")
    put = secrets.add("put", "store a secret, or change it or who may have it", _put,
                      "vambrace secret put patients/secret/password --value FILE --bundle BUNDLE")  # fmt: skip
    put.add_argument("--value", type=Path, metavar="FILE", help="its contents; - reads standard input. A new volume's "
                     "key is made by the broker")  # fmt: skip
    put.add_argument("--bundle", type=Path, action="append", default=[], help="an image that may have it; repeat it")
    put.add_argument("--policy", type=Path, metavar="FILE", help="a policy file in place of --bundle")
    put.add_argument("--add", action="store_true", help="the images beside those that may have it already")
    put.add_argument("--platform", default="default", metavar="NAME", help="the platform that it must run on (default)")
    show = secrets.add("show", "its generation and policy; never its value", _show,
                       "vambrace secret show patients/secret/password")  # fmt: skip
    delete = secrets.add("delete", "forget a secret; a volume's data is lost with its key", _delete,
                         "vambrace secret delete patients/volume/records")  # fmt: skip
    listing = secrets.add("list", "what is in a repository", _list, "vambrace secret list patients")
    log = secrets.add("log", "who asked for what is in a repository, and was given it or not", _log,
                      "vambrace secret log patients")  # fmt: skip
    for parser in (put, show, delete):
        parser.add_argument("resource", type=_resource, metavar="REPOSITORY/TYPE/NAME")
    for parser in (listing, log):
        parser.add_argument("repository")
    for parser in (put, show, delete, listing, log):
        parser.add_argument("--broker", metavar="URL", help="the broker, if it is not the one that was made here last")
        parser.add_argument("--certificate", type=Path, metavar="FILE", help="its certificate (PEM)")


def _resource(text: str) -> str:
    from vambrace.broker.names import ResourceName
    from vambrace.errors import UsageError

    try:
        return str(ResourceName.parse(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.message} ({error.hint})") from None


@contextmanager
def _client(options: argparse.Namespace) -> Iterator[BrokerClient]:
    import tomllib

    from vambrace.attest.owner import OwnerIdentity
    from vambrace.client.broker import BrokerClient
    from vambrace.errors import UsageError

    context = session.open_context()
    url, certificate = options.broker, options.certificate
    if not (url and certificate):
        try:
            known = tomllib.loads((context.home / "broker.toml").read_text())
            url, certificate = url or known["url"], certificate or Path(known["certificate"])
        except (OSError, ValueError, KeyError):
            raise UsageError("no broker is known", hint="give --broker URL and --certificate FILE") from None
    owner = OwnerIdentity.load(context.owner)
    with BrokerClient(url, certificate, *owner.channel_paths) as client:
        yield client


def _put(options: argparse.Namespace, output: Output) -> int:
    from vambrace.errors import UsageError

    if options.policy and (options.bundle or options.add):
        raise UsageError("--policy stands for --bundle and --add", hint="give one or the other")
    with _client(options) as client:
        policy = _policy(options, client, output)
        value = _value(options.value)
        if value is None and policy is None and "/volume/" not in options.resource:
            raise UsageError("there is nothing to change", hint="give --value, --bundle or --policy")
        output.progress("storing")
        generation = client.put(options.resource, value, policy.table() if policy else None, options.platform)
    output.result(
        {"resource": options.resource, "generation": generation}, [f"{options.resource}: generation {generation}"]
    )
    return 0


def _value(path: Path | None) -> bytes | None:
    from vambrace.errors import UsageError

    if path is None:
        return None
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error


def _policy(options: argparse.Namespace, client: BrokerClient, output: Output) -> Policy | None:
    """What the options say of who may have the secret; None where they say nothing."""
    from vambrace.attest.policy import Policy
    from vambrace.errors import UsageError
    from vambrace.image import Bundle

    if options.policy:
        try:
            return Policy.parse(options.policy.read_bytes())
        except OSError as error:
            raise UsageError(f"{options.policy} cannot be read: {error.strerror}", hint="check the path") from error
    if not options.bundle:
        return None
    policy = Policy()
    if options.add:
        policy = Policy.from_table(client.describe(options.resource)["policy"])
    for path in options.bundle:
        output.progress(f"measuring {path.name}")
        bundle = Bundle.open(path)
        if policy.measurements and policy.hash_algorithm != bundle.config.hash:
            raise UsageError(
                f"{path.name} is measured with {bundle.config.hash}, the other images with {policy.hash_algorithm}",
                hint="a secret is for images of one suite: store it once more for the other",
            )
        policy = replace(
            policy,
            measurements=(policy.measurements or frozenset()) | {bundle.measurement()},
            owners=(policy.owners or frozenset()) | {bundle.config.personalization()},
            hash_algorithm=bundle.config.hash,
        )
    return policy


def _show(options: argparse.Namespace, output: Output) -> int:
    with _client(options) as client:
        found = client.describe(options.resource)
    lines = [f"{found['resource']}: generation {found['generation']}, platform {found['platform']}"]
    lines += describe(found["policy"], "  ")
    output.result(found, lines)
    return 0


def _delete(options: argparse.Namespace, output: Output) -> int:
    with _client(options) as client:
        client.delete(options.resource)
    output.result({"deleted": options.resource}, [f"{options.resource} is forgotten"])
    return 0


def _list(options: argparse.Namespace, output: Output) -> int:
    with _client(options) as client:
        found = client.secrets(options.repository)
    rows = [["RESOURCE", "GENERATION", "IMAGES"]]
    for each in found:
        images = each["policy"]["realm"]["measurements"]
        rows.append([each["resource"], str(each["generation"]), str(len(images))])
    output.result(found, table(rows))
    return 0


def _log(options: argparse.Namespace, output: Output) -> int:
    entries: list[dict[str, Any]] = []
    with _client(options) as client:
        while True:
            after = entries[-1]["sequence"] if entries else 0
            more, head = client.audit(options.repository, after)
            entries += more
            if not more:
                break
    output.result({"head": head, "entries": entries}, entry_lines(entries))
    return 0
