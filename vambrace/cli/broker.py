"""``vambrace broker``: a key broker of one's own."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vambrace.cli import session
from vambrace.cli.attest import read_file
from vambrace.cli.output import Output, table
from vambrace.cli.parser import Commands, host_option, port

if TYPE_CHECKING:
    from vambrace.broker.settings import Settings


def add(commands: Commands) -> None:
    group = commands.group("broker", "a key broker: hands secrets to Realms that it has verified")
    init = group.add("init", "make a broker's folder: keys, certificate, settings", _init,
                     "vambrace broker init ~/broker --repository patients")  # fmt: skip
    init.add_argument("folder", type=Path)
    init.add_argument("--repository", action="append", required=True, metavar="NAME", help="of your own; repeat it")
    init.add_argument("--owner", type=Path, metavar="FILE", help="whose they are, a certificate (default: yours)")
    init.add_argument("--name", action="append", default=[], help="a name or address by which Realms reach it")
    init.add_argument("--listen", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    init.add_argument("--port", type=port, default=0, help="the TCP port (8444)")
    init.add_argument("--database", metavar="URL", help="sqlite:///FILE, or postgresql+psycopg://USER@HOST/NAME")
    host_option(init)
    serve = group.add("serve", "run it until it is interrupted", _serve, "vambrace broker serve ~/broker")
    audit = group.add("audit", "print its log, having checked that it is whole", _audit,
                      "vambrace broker audit ~/broker --json")  # fmt: skip
    audit.add_argument("--accept", action="store_true", help="a backup was restored: go on from where its log ends")
    for parser in (serve, audit):
        parser.add_argument("folder", type=Path, help="the folder, or its broker.toml")


def _init(options: argparse.Namespace, output: Output) -> int:
    from vambrace.attest.owner import OwnerIdentity
    from vambrace.broker import setup
    from vambrace.broker.platforms import PlatformFiles
    from vambrace.broker.settings import PORT
    from vambrace.client.context import toml_string

    context = session.open_context()
    with session.advice(options, context):
        _, entry = context.host(options.host)
    references = Path(entry.references) if Path(entry.references).is_file() else None
    owner = read_file(options.owner) if options.owner else OwnerIdentity.load(context.owner).published.encode()
    names = list(dict.fromkeys([*options.name, "localhost", "127.0.0.1"]))
    setup.create(
        options.folder,
        names=names,
        platforms={"default": PlatformFiles(Path(entry.vendor_root), references)},
        repositories=dict.fromkeys(options.repository, owner),
        listen=options.listen,
        port=options.port or PORT,
        database=options.database or setup.DATABASE,
    )
    certificate = (options.folder / setup.CERTIFICATE).absolute()
    url = f"https://{names[0]}:{options.port or PORT}"
    local = f"https://localhost:{options.port or PORT}"
    lines = [f"url = {toml_string(local)}", f"certificate = {toml_string(str(certificate))}"]
    context.write("broker.toml", ("\n".join(lines) + "\n").encode())
    output.result(
        {"folder": str(options.folder), "certificate": str(certificate), "url": url},
        [f"made in {options.folder}: back up master.key, apart from the database", f"certificate: {certificate}"],
    )
    return 0


def _settings(folder: Path) -> Settings:
    try:
        from vambrace.broker.settings import load_settings
    except ImportError as error:
        raise session.not_installed(error, "broker") from None
    return load_settings(folder)


def _serve(options: argparse.Namespace, output: Output) -> int:
    import asyncio
    import logging
    import resource

    settings = _settings(options.folder)
    try:
        from vambrace.broker.server import serve
    except ImportError as error:
        raise session.not_installed(error, "broker") from None
    # It holds every secret: nothing of it on a disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    asyncio.run(serve(settings))
    return 0


def _audit(options: argparse.Namespace, output: Output) -> int:
    settings = _settings(options.folder)
    try:
        from vambrace.broker.anchor import Anchor, read_anchor
        from vambrace.broker.store import Store
        from vambrace.broker.vault import Vault
    except ImportError as error:
        raise session.not_installed(error, "broker") from None
    vault, anchor = Vault.load(settings.master_key), settings.anchor
    with Store(settings.database, vault) as store:
        output.progress("checking the log")
        kept = read_anchor(anchor, vault) if anchor and not options.accept else None
        head = store.verify(whole=True, through=kept)
        if anchor and options.accept:
            with Anchor(anchor, vault) as accepted:
                accepted.restart(head)
        entries = [json.loads(entry.text) for entry in store.log()]
    value = {"head": {"sequence": head.sequence, "hash": head.hash.hex()}, "entries": entries}
    output.result(value, [*entry_lines(entries), f"whole: {head.sequence} entries, {head.hash.hex()}"])
    return 0


def entry_lines(entries: list[dict[str, Any]]) -> list[str]:
    """Entries of the audit log, for people."""
    rows = [["AT", "EVENT", "OUTCOME", "RESOURCE", "GENERATION", "REASON"]]
    for entry in entries:
        cells = [entry["at"], entry["event"], entry["outcome"], entry["resource"] or "-"]
        rows.append([*cells, str(entry["generation"]), entry["reason"]])
    return table(rows)
