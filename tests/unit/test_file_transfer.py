"""Files in and out of an application over its attested channel, against the real agent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_harness import World, living_world
from config_factory import MIB
from vambrace_agent import AgentError, files

from vambrace import Realm
from vambrace.cli.main import main
from vambrace.client.files import PART, Place
from vambrace.errors import ChannelClosed, DomainError, UsageError

DATA = os.urandom(5 * PART + 1234)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with living_world(tmp_path) as world:
        yield world


@pytest.fixture
def realm(world: World) -> Iterator[Realm]:
    """One that runs; ``analysis`` has a volume at /data/records."""
    with Realm.run(world.bundle) as realm:
        root = world.agent.root
        for folder in ("results/analysis", "volumes/records"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        world.agent.processes[0].application.mounts.append(("/volumes/records", "/data/records"))
        yield realm


def inside(world: World, path: str = "") -> Path:
    return world.agent.root / "volumes/records" / path


def test_there_and_back(world: World, realm: Realm, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(DATA)
    steps: list[tuple[int, int]] = []
    sent = realm.put_file(
        tmp_path / "in", "analysis:/data/records/a/b/data", lambda step, done=0, total=0: steps.append((done, total))
    )
    there = inside(world, "a/b/data")
    assert sent == len(DATA) and there.read_bytes() == DATA
    assert there.stat().st_mode & 0o777 == 0o600 and [path.name for path in there.parent.iterdir()] == ["data"]
    assert steps[-1] == (len(DATA), len(DATA)) and steps == sorted(steps)
    assert realm.get_file("analysis:/data/records/a/b/data", tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out").read_bytes() == DATA
    found, more = realm.list_files("analysis:/data/records/a/b")
    assert not more and [(file.name, file.kind, file.size) for file in found] == [("data", "file", len(DATA))]
    found, _ = realm.list_files("analysis:/data/records")
    assert [(file.name, file.kind) for file in found] == [("a", "folder")]
    # A name without a beginning is below the results; what is there is replaced as a whole.
    for content in (b"", b"second"):
        (tmp_path / "in").write_bytes(content)
        realm.put_file(tmp_path / "in", "analysis:small")
        assert (world.agent.root / "results/analysis/small").read_bytes() == content
        assert realm.get_file("analysis:small", tmp_path / "small").read_bytes() == content


def test_the_longest_list(world: World, realm: Realm) -> None:
    """Names are the application's choice, and JSON makes six characters of each of these."""
    folder = inside(world, "many")
    folder.mkdir()
    for number in range(files.MAX_ENTRIES + 1):
        (folder / f"{number:03}{chr(1) * 252}").touch()
    found, more = realm.list_files("analysis:/data/records/many")
    assert (len(found), more) == (files.MAX_ENTRIES, True)


def test_goes_on_where_it_was_cut(
    world: World, realm: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself where a new connection can be made, else when it is done again."""
    (tmp_path / "in").write_bytes(DATA)
    sent: list[int] = []
    real = files.OPERATIONS["file-write"]

    def counted(*arguments: object) -> object:
        sent.append(len(arguments[1]["body"]))  # type: ignore[index]
        if len(sent) in (2, 4):
            world.host.cut(world.record)  # the part was written, and nobody is told
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setitem(files.OPERATIONS, "file-write", counted)  # type: ignore[arg-type]
    realm.put_file(tmp_path / "in", "analysis:/data/records/data")
    assert inside(world, "data").read_bytes() == DATA
    assert len(DATA) <= sum(sent) <= len(DATA) + 2 * PART

    # Somebody who gives up, and comes again.
    def stop(step: str, done: int = 0, total: int = 0) -> None:
        if done > 2 * PART:
            raise KeyboardInterrupt

    fresh = os.urandom(len(DATA))
    (tmp_path / "in").write_bytes(fresh)
    with pytest.raises(KeyboardInterrupt):
        realm.put_file(tmp_path / "in", "analysis:/data/records/data", stop)
    assert inside(world, "data").read_bytes() == DATA, "the old one stays until the new one is whole"
    sent[:] = [0] * 9
    realm.put_file(tmp_path / "in", "analysis:/data/records/data")
    assert inside(world, "data").read_bytes() == fresh and sum(sent) == len(DATA) - 3 * PART
    with pytest.raises(KeyboardInterrupt):
        realm.get_file("analysis:/data/records/data", tmp_path / "out", stop)
    assert not (tmp_path / "out").exists()
    parts: list[int] = []
    realm.get_file("analysis:/data/records/data", tmp_path / "out", lambda _, done=0, total=0: parts.append(done))
    assert (tmp_path / "out").read_bytes() == fresh and parts[0] == 4 * PART


def test_what_changes_on_the_way_is_noticed(world: World, realm: Realm, tmp_path: Path) -> None:
    inside(world, "data").write_bytes(DATA)

    def change(step: str, done: int = 0, total: int = 0) -> None:
        inside(world, "data").write_bytes(os.urandom(len(DATA)))

    with pytest.raises(DomainError, match="changed while it was fetched"):
        realm.get_file("analysis:/data/records/data", tmp_path / "out", change)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*out*"))
    # What another's hand did to a part that waits: the hash says no, and the part is gone.
    (tmp_path / "in").write_bytes(DATA)
    inside(world, f".new.{SHA256[:16]}.part").write_bytes(os.urandom(len(DATA)))
    with pytest.raises(DomainError, match="not what was meant"):
        realm.put_file(tmp_path / "in", "analysis:/data/records/new")
    realm.put_file(tmp_path / "in", "analysis:/data/records/new")
    assert inside(world, "new").read_bytes() == DATA


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "/data/records/../../etc/x", "/data/records//x", "/data/records/./x", "/data/recordsx/y"),
        *("/data/records/" + "n" * 201, "/data/records/a\0b", "/data/records/" + "d/" * 40 + "x"),
        *("/results/report/out.txt", "/data"),
    ],
)
def test_paths_that_lead_elsewhere(realm: Realm, tmp_path: Path, path: str) -> None:
    (tmp_path / "in").write_bytes(b"x")
    for work in (
        lambda: realm.put_file(tmp_path / "in", f"analysis:{path}"),
        lambda: realm.get_file(f"analysis:{path}", tmp_path / "out"),
        lambda: realm.list_files(f"analysis:{path}"),
    ):
        with pytest.raises(DomainError, match="must be below one of|is none"):
            work()


def test_links_and_devices_of_the_application_are_not_followed(world: World, realm: Realm, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"the agent's")
    inside(world, "folder").symlink_to(secret)
    inside(world, "file").symlink_to(secret / "file")
    os.mkfifo(inside(world, "pipe"))
    (tmp_path / "in").write_bytes(b"x")
    part = inside(world, f".new.{hashlib.sha256(b'x').hexdigest()[:16]}.part")
    part.symlink_to(secret / "file")
    for place in ("folder/file", "file", "pipe", "folder"):
        with pytest.raises(DomainError):
            realm.get_file(f"analysis:/data/records/{place}", tmp_path / "out")
    for place in ("folder/file", "folder/new", "new"):
        with pytest.raises(DomainError):
            realm.put_file(tmp_path / "in", f"analysis:/data/records/{place}")
    part.unlink()
    # In the place of a link comes the file; what it led to stays.
    realm.put_file(tmp_path / "in", "analysis:/data/records/file")
    assert (secret / "file").read_bytes() == b"the agent's" and not inside(world, "file").is_symlink()
    kinds = {file.name: file.kind for file in realm.list_files("analysis:/data/records")[0]}
    assert kinds == {"folder": "link", "file": "file", "pipe": "other"}
    assert [path.name for path in secret.iterdir()] == ["file"]


@pytest.mark.skipif(os.getuid() != 0, reason="another user is needed")
def test_what_is_sent_is_the_application_s(world: World, realm: Realm, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x")
    world.agent.processes[0].application.uid = 1234
    with pytest.raises(DomainError, match="Permission denied"):
        realm.put_file(tmp_path / "in", "analysis:/data/records/x")
    os.chown(inside(world), 1234, 1234)
    realm.put_file(tmp_path / "in", "analysis:/data/records/a/x")
    for path in (inside(world, "a"), inside(world, "a/x")):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1234)


def test_what_is_too_large(world: World, realm: Realm, tmp_path: Path) -> None:
    with inside(world, "holes").open("wb") as file:
        file.truncate(17 * MIB)  # its zone has 16
    with pytest.raises(DomainError, match="more than there is room for"):
        realm.get_file("analysis:/data/records/holes", tmp_path / "out")
    with inside(world, "holes").open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(DomainError, match="has holes"):
        realm.get_file("analysis:/data/records/holes", tmp_path / "out")
    with pytest.raises(DomainError, match="No space left"):
        realm._ask("file-begin", application="analysis", path="/data/records/x", size=1 << 60, sha256="0" * 64)
    for name in range(files.MAX_ENTRIES + 1):
        inside(world, f"f{name}").touch()
    found, more = realm.list_files("analysis:/data/records")
    assert more and len(found) == files.MAX_ENTRIES


@pytest.mark.parametrize(
    "request_",
    [
        {"path": "/data/records/x"},
        {"path": "/data/records/x", "sha256": "0" * 63, "size": 1},
        {"path": "/data/records/x", "sha256": "../" + "0" * 61, "size": 1},
        {"path": "/data/records/x", "sha256": "0" * 64, "size": -1},
        {"path": "/data/records/x", "sha256": "0" * 64, "size": "1"},
        {"path": "/data/records", "sha256": "0" * 64, "size": 1},
        {"path": 7, "sha256": "0" * 64, "size": 1},
        {"path": "/data/records/\udcff", "sha256": "0" * 64, "size": 1},
        {"path": "/data/records/x", "sha256": "0" * 64, "offset": 5},
    ],
)
def test_requests_that_are_none(world: World, realm: Realm, request_: dict[str, object]) -> None:
    application = world.agent.processes[0].application
    for operation in ("file-begin", "file-write", "file-end"):
        if operation == "file-begin" and "offset" in request_:
            continue
        with pytest.raises(AgentError):
            files.serve(operation, application, {"op": operation, **request_}, str(world.agent.root))
    assert [path for path in inside(world).iterdir() if not path.name.endswith(".part")] == []


@pytest.mark.parametrize("length", [-1, True, "5", (256 << 10) + 1, None])
def test_a_body_that_is_none_ends_the_connection(realm: Realm, length: object) -> None:
    with pytest.raises(ChannelClosed):
        realm._connect().request("status", length=length)
    assert realm.status()["state"]


@pytest.mark.parametrize("text", ["", "analysis", ":/data", "/data/records/x"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(UsageError):
        Place.parse(text)


def test_local_mistakes(world: World, realm: Realm, tmp_path: Path) -> None:
    inside(world, "data").write_bytes(b"x")
    with pytest.raises(UsageError, match="no such application"):
        realm.list_files("nobody:/data")
    with pytest.raises(UsageError, match="No such file"):
        realm.put_file(tmp_path / "nothing", "analysis:x")
    with pytest.raises(UsageError, match="in the way"):
        realm.get_file("analysis:/data/records/data", tmp_path)
    os.mkfifo(tmp_path / "pipe")  # as a device: what is written there is not for a file in its place
    with pytest.raises(UsageError, match="in the way"):
        realm.get_file("analysis:/data/records/data", tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(UsageError, match="cannot be written"):
        realm.get_file("analysis:/data/records/data", tmp_path / "no/such/folder")


def test_the_commands(world: World, realm: Realm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").write_bytes(DATA)
    assert main(["file", "put", "patients", str(tmp_path / "in"), "analysis:/data/records/data"]) == 0
    assert main(["file", "list", "patients", "analysis:/data/records"]) == 0
    assert "data" in capsys.readouterr().out
    assert main(["file", "get", "patients", "analysis:/data/records/data", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_bytes() == DATA
    assert main(["file", "get", "patients", "analysis:/data/records/none", str(tmp_path / "out")]) == 8
    assert "No such file" in capsys.readouterr().err
