"""From an image, however it is packed, to a disk and an application."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from config_factory import make_application, make_elf, make_kernel, owner
from container_images import CONFIG, hard, image, layer, link, member

from vambrace.canonical import canonical
from vambrace.container import DEFAULT_CAPABILITIES, Container, Health
from vambrace.debian.erofs import VerityDisk
from vambrace.errors import BuildError, ConfigError, ImageError, VambraceError
from vambrace.image import Bundle
from vambrace.image.base import RuntimeBase
from vambrace.image.build import build_bundle
from vambrace.image.containers import read_image
from vambrace.image.containers.make import TAG
from vambrace.image.containers.program import check_command
from vambrace.image.containers.settings import find_user, parse_signal, read_settings
from vambrace.image.containers.source import fetch, read, reference
from vambrace.image.containers.tree import Tree
from vambrace.image.layout import Layout
from vambrace.image.oci import INDEX, index_of
from vambrace.image.single import Single, manifest_file, name_of

FILES = layer(
    member("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:100:101::/srv:/bin/sh\nbad:x:9\n"),
    member("etc/group", b"root:x:0:\nweb:x:101:\nlogs:x:7:web,other\ntape:x:8:other\n"),
    member("srv/page", b"<p>" * 5000, mode=0o640, uid=100, gid=101),
    member("bin/tool", b"\x7fELF", mode=0o4755),
    hard("bin/twin", "bin/tool"),
    link("bin/sh", "/bin/tool"),
)
SAYS = {
    "User": "web",
    "Env": ["A=b", "my.name=c=d", "PATH=/bin"],
    "Entrypoint": ["/bin/tool"],
    "Cmd": ["serve"],
    "WorkingDir": "/srv/new",
    "StopSignal": "SIGQUIT",
    "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
    "Healthcheck": {"Test": ["CMD-SHELL", "tool check"], "Interval": 5_000_000_000, "Retries": 2},
}


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> RuntimeBase:
    folder = tmp_path_factory.mktemp("base")
    for name, data in (("kernel", make_kernel()), ("initrd", b"i" * 5000), ("disk", bytes(8192))):
        (folder / name).write_bytes(data)
    info = VerityDisk(hashlib.sha256(bytes(8192)).hexdigest(), 8192, 4096, "ab" * 32, "cd" * 32)
    (folder / "tree/usr/bin").mkdir(parents=True)
    (folder / "tree/usr/bin/python3").write_bytes(make_elf())
    (folder / "tree/usr/bin/python3").chmod(0o755)
    return RuntimeBase(folder / "kernel", folder / "initrd", folder / "disk", info, folder / "tree", containers=True)


def build(folder: Path, base: RuntimeBase, lines: str, name: str = "out") -> Bundle:
    (folder / "owner.pem").write_text(owner()[0])
    text = f"name: patients\nowner: owner.pem\nsystem: {{memory: 96M}}\napplications:\n{lines}"
    (folder / "manifest.yaml").write_text(text)
    return build_bundle(folder / "manifest.yaml", folder / name, base)


ONE = "  - {name: web, container: 'oci:image:latest', memory: 32M, publish: [80], results: [out]}\n"


def test_an_image_becomes_an_application(tmp_path: Path, base: RuntimeBase) -> None:
    image(tmp_path / "image", FILES, config=SAYS)
    config = build(tmp_path, base, ONE).config
    (application,) = config.applications
    container = application.container
    assert container is not None
    assert application.command == ("/bin/tool", "serve") and application.directory == "/srv/new"
    assert application.environment == {"HOME": "/srv", "PATH": "/bin", "A": "b", "my.name": "c=d"}
    assert (container.uid, container.gid, container.groups) == (100, 101, (7, 101))
    assert container.capabilities == DEFAULT_CAPABILITIES and container.stop_signal == 3
    assert container.health == Health(("/bin/sh", "-c", "tool check"), interval=5000, retries=2)
    assert [disk.name for disk in config.disks] == ["base", "apps", "image-1"]
    assert container.disk == "image-1" and config.parse(config.encode()) == config
    assert application.results == ("/results/web/out",) and application.ports[0].port == 80


def test_a_manifest_says_otherwise(tmp_path: Path, base: RuntimeBase) -> None:
    image(tmp_path / "image", FILES, layer(member("x", mode=0o755)), config=SAYS)
    config = build(
        tmp_path,
        base,
        "  - {name: one, container: image, memory: 32M, entrypoint: [/x], user: 'root:logs', health: false,\n"
        "     environment: {A: c}, directory: /srv, capabilities: {drop: [ALL], add: [cap_chown]}, files: 64}\n"
        "  - {name: two, container: image, memory: 32M, command: 'say \"a b\"', user: '5'}\n"
        "  - {name: plain, files: [manifest.yaml], memory: 32M, command: [python3]}\n",
    ).config
    one, two, plain = config.applications
    assert one.container and two.container and not plain.container
    assert one.command == ("/x",) and one.directory == "/srv" and one.environment["A"] == "c"
    assert (one.container.uid, one.container.groups) == (0, (7,)) and one.container.health is None
    assert one.container.capabilities == ("CHOWN",) and one.container.files == 64
    assert two.command == ("/bin/tool", "say", "a b") and two.environment["HOME"] == "/"
    assert (two.container.uid, two.container.gid, two.container.groups) == (5, 0, (0,))
    # One image, one disk.
    assert len(config.disks) == 3 and one.container.disk == two.container.disk


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("tool", {}, ""),
        ("linked", {}, ""),
        ("./own", {"directory": "/srv"}, ""),
        ("../bin/tool", {"directory": "/srv"}, ""),
        ("own", {"environment": {"PATH": "/none:/srv"}}, ""),
        ("own", {"environment": {"PATH": ""}, "directory": "/srv"}, ""),
        ("/data/run", {}, ""),
        ("kept", {}, ""),
        ("/data/../bin/none", {}, "no such program"),
        ("none", {}, "no such program.*PATH is /usr/local/sbin"),
        ("none", {"environment": {"PATH": "/data/bin:/bin"}}, ""),
        ("own", {}, "no such program"),
        ("./own", {"directory": "/"}, "no such program"),
        ("/bin/none", {}, "no such program"),
        ("/bin/broken", {}, "no such program"),
        ("/srv", {}, "no such program"),
        ("text", {}, "not executable"),
        ("text", {"environment": {"PATH": "/bin:/srv"}}, ""),
        ("pipe", {}, "no such program"),
    ],
)
def test_a_program_that_is_not_in_the_image(command: str, more: dict[str, Any], message: str) -> None:
    """As a runtime would look for it; what is on a volume is not known."""
    tree = Tree()
    run = {"mode": 0o755}
    tree.apply(
        io.BytesIO(
            layer(
                *(member("bin/tool", **run), member("bin/text"), member("srv/own", **run), member("srv/text", **run)),
                *(link("usr/bin/linked", "/bin/tool"), link("bin/kept", "../data/kept")),
                *(link("bin/broken", "nothing"), member("data/", type=tarfile.DIRTYPE)),
                member("bin/pipe", type=tarfile.FIFOTYPE, **run),
            )
        )
    )
    says = {"command": (command, "-v"), "directory": "/", "environment": {}, "container": Container("image-1")}
    application = make_application("web", **{**says, "results": (), **more})
    if not message:
        check_command(application, tree, ["/data"])
        return
    with pytest.raises(ConfigError, match=f"application web: .*{message.split('.*')[0]}") as raised:
        check_command(application, tree, ["/data"])
    assert message.split(".*")[-1] in f"{raised.value.message} {raised.value.hint}"


def test_a_build_says_that_a_program_is_missing(tmp_path: Path, base: RuntimeBase) -> None:
    image(tmp_path / "image", FILES, config=SAYS | {"Entrypoint": ["nginx"]})
    with pytest.raises(ConfigError, match="application web: nginx: no such program in the image"):
        build(tmp_path, base, ONE)


def test_the_same_image_gives_the_same_bits(tmp_path: Path, base: RuntimeBase) -> None:
    """From a layout, another one with other compression, an OCI archive, and one as 'docker save' writes it."""
    image(tmp_path / "image", FILES, layer(member("srv/.wh.page"), member("srv/other")), config=SAYS)
    first = build(tmp_path, base, ONE)
    measured = [first.measurement()]
    for name, target in (("a.tar", "oci-archive:a.tar:x"), ("b", "dir:b")):
        subprocess.run(["skopeo", "copy", "-q", "oci:image:latest", target], cwd=tmp_path, check=True)
        measured.append(build(tmp_path, base, ONE.replace("oci:image:latest", name)).measurement())
    assert len(set(measured)) == 1
    # On its way to Docker's format a configuration of OCI's loses its health check; all else is the same.
    subprocess.run(
        ["skopeo", "copy", "-q", "oci:image:latest", "docker-archive:c.tar:x:latest"], cwd=tmp_path, check=True
    )
    saved = build(tmp_path, base, ONE.replace("oci:image:latest", "c.tar")).config
    assert saved.disks[2:] == first.config.disks[2:]
    application = saved.applications[0]
    assert application.container is not None and first.config.applications[0].container is not None
    assert application.replace(container=application.container.replace(health=Health(("x",)))) == (
        first.config.applications[0].replace(
            container=first.config.applications[0].container.replace(health=Health(("x",)))
        )
    )
    (tmp_path / "again").mkdir()
    (tmp_path / "again/image").symlink_to(tmp_path / "image")
    assert build(tmp_path / "again", base, ONE).measurement() == measured[0]


def test_the_disk_holds_what_the_image_does(tmp_path: Path) -> None:
    """The kernel's own reader of EROFS, by way of fsck.erofs, finds every file as it was."""
    names = [f"many/{number:04}-{'n' * (number % 90)}" for number in range(700)]
    info, content = member("srv/big", os.urandom(3_000_001), mode=0o604, uid=70000, gid=1 << 23, mtime=1234567890)
    info.pax_headers = {"SCHILY.xattr.user.colour": "blue"}
    files = layer(*(member(name, os.urandom(index * 7 % 5000)) for index, name in enumerate(names)), (info, content))
    found = read_image(image(tmp_path / "image", FILES, files), tmp_path / "work")
    out = tmp_path / "out"
    subprocess.run(["fsck.erofs", f"--extract={out}", "--no-preserve", found.disk], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(files)) as tar:
        for entry in tar:
            assert (out / entry.name).read_bytes() == tar.extractfile(entry).read()  # type: ignore[union-attr]
    assert (out / "bin/sh").readlink() == Path("/bin/tool")
    assert (out / "bin/twin").read_bytes() == b"\x7fELF"
    described = subprocess.run(
        ["dump.erofs", "--path=/srv/big", found.disk], check=True, capture_output=True, text=True
    ).stdout
    assert "Uid: 70000   Gid: 8388608" in described and "Access: 0604" in described
    assert stat.S_ISREG((out / "srv/page").stat().st_mode)
    assert found.files == len(list(out.rglob("*"))) + 1


def test_the_platform_is_chosen_from_an_index(tmp_path: Path, base: RuntimeBase) -> None:
    both = Layout(tmp_path / "image")
    manifests = []
    for name, files in (("amd64", layer(member("x86"))), ("arm64", FILES)):
        folder = tmp_path / name
        image(folder, files, config=SAYS, architecture=name)
        (entry,) = json.loads((folder / "index.json").read_text())["manifests"]
        del entry["annotations"]
        manifests.append(entry | {"platform": {"architecture": name, "os": "linux"}})
        for blob in (folder / "blobs/sha256").iterdir():
            both.blob(blob.name).write_bytes(blob.read_bytes())
    both.name(TAG, both.put(INDEX, canonical(index_of(manifests))))
    assert build(tmp_path, base, ONE).config.applications[0].command == ("/bin/tool", "serve")


def test_wrong_manifests(tmp_path: Path, base: RuntimeBase) -> None:
    image(tmp_path / "image", FILES)
    image(tmp_path / "silent", FILES, config={"Env": []})
    image(tmp_path / "amd64", FILES, architecture="amd64")
    (tmp_path / "notes").write_text("no image")
    for line, reason in (
        ("container: missing.tar", "no such file"),
        ("container: 'oci:missing'", "no such file"),
        ("container: notes", "no container image"),
        ("container: image, capabilities: {add: [SYS_ADMIN]}", "'SYS_ADMIN' is not known"),
        ("container: image, files: 3", "files is 3"),
        ("container: image, user: nobody", "no user 'nobody'"),
        ("container: image, user: 'web:nobody'", "no group 'nobody'"),
        ("container: image, directory: ../x", "not a whole path"),
        ("container: silent", "names no command"),
        ("container: amd64", "is for 'linux/amd64'"),
        ("container: image, packages: [redis]", "unknown key 'packages'"),
        ("files: [notes], command: [x], publish: [80]", "port is 80"),
    ):
        with pytest.raises(VambraceError, match=reason):
            build(tmp_path, base, f"  - {{name: web, memory: 32M, {line}}}\n")


def test_a_container_gets_no_device(tmp_path: Path, base: RuntimeBase) -> None:
    image(tmp_path / "image", FILES)
    device = "devices:\n  - {name: disk, kind: nvme, application: web}\n"
    with pytest.raises(ConfigError, match="device disk: application: 'web' is not known"):
        build(tmp_path, base, ONE + device)


def test_a_base_that_runs_no_containers(tmp_path: Path, base: RuntimeBase) -> None:
    image(tmp_path / "image", FILES)
    plain = RuntimeBase(base.kernel, base.initrd, base.disk, base.disk_info, base.tree)
    with pytest.raises(BuildError, match="runs no containers"):
        build(tmp_path, plain, ONE)


def copied(tmp_path: Path, **changes: Any) -> Path:
    """What skopeo would have copied, changed."""
    folder = tmp_path / "copied"
    image(tmp_path / "image", FILES)
    subprocess.run(["skopeo", "copy", "-q", "oci:image:latest", f"dir:{folder}"], cwd=tmp_path, check=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mediaType": "application/vnd.oci.image.index.v1+json"}, "unknown kind"),
        ({"config": {"mediaType": "application/vnd.oci.empty.v1+json"}}, "no container image"),
        ({"layers": []}, "do not agree"),
        ({"layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"}]}, "cannot be read here"),
        ({"layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "md5:0"}]}, "damaged digest"),
        (
            {"layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:" + "0" * 64}]},
            "lacks the blob",
        ),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        read(copied(tmp_path, **changes))


def test_blobs_that_lie(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    digest = json.loads((folder / "manifest.json").read_text())["layers"][0]["digest"][7:]
    (folder / digest).write_bytes(gzip.compress(FILES + b"x"))
    with pytest.raises(ImageError, match="the image lies"):
        read(folder)
    (folder / "manifest.json").write_text('{"a":' * 100_000)
    with pytest.raises(ImageError, match="too deep"):
        read(folder)
    (folder / "manifest.json").write_text(" " * ((4 << 20) + 1))
    with pytest.raises(ImageError, match="at most|has 4194305 bytes"):
        read(folder)
    (tmp_path / "image/blobs/sha256" / digest).write_bytes(b"not that blob")
    with pytest.raises(BuildError, match="oci:"):
        read_image(f"oci:{tmp_path}/image:latest", tmp_path / "work")


def test_users_as_runtimes_find_them() -> None:
    files = {"/etc/passwd": b"root:x:0:0::/root:\nweb:x:5:6::/w:\n7:x:9:9::/seven:\n", "/etc/group": b"g:x:3:web\n"}

    def look(path: str, _most: int) -> bytes:
        return files.get(path, b"")

    assert find_user("", look).home == "/root"
    assert find_user("5", look) == find_user("web", look)
    assert find_user("web", look).groups == (3, 6)
    assert find_user("web:g", look).groups == (3,)
    assert find_user("0:77", look).gid == 77
    assert find_user("1234", lambda _path, _most: b"").home == "/"
    for wrong in ("ghost", "web:ghost", "99999999999", "-1"):
        with pytest.raises(ImageError):
            find_user(wrong, look)


def test_signals() -> None:
    assert [parse_signal(text) for text in ("SIGTERM", "int", "9", "SIGRTMIN+3", "RTMAX-1")] == [15, 2, 9, 37, 63]
    for wrong in ("SIGNOTHING", "0", "65", "SIGRTMIN+40", ""):
        with pytest.raises(ImageError):
            parse_signal(wrong)


@pytest.mark.parametrize(
    "config",
    [
        {"Env": "A=b", "Cmd": 5},
        {"Cmd": ["a\0b"]},
        {"WorkingDir": 3},
        {"Healthcheck": {"Test": ["CMD"]}},
        {"Healthcheck": {"Test": ["CMD", "x"], "Interval": "soon"}},
        {"StopSignal": "KILLING"},
    ],
)
def test_damaged_configurations(config: dict[str, Any]) -> None:
    with pytest.raises(ImageError):
        read_settings({"os": "linux", "architecture": "arm64", "config": config})


def test_references(tmp_path: Path) -> None:
    image(tmp_path / "layout", FILES)
    (tmp_path / "saved.tar.gz").write_bytes(gzip.compress(bytes(700)))
    assert reference("docker://registry:5000/a:b", tmp_path) == "docker://registry:5000/a:b"
    assert reference("layout", tmp_path) == f"oci:{tmp_path}/layout"
    assert reference("oci:layout:latest", tmp_path) == f"oci:{tmp_path}/layout:latest"
    assert reference("saved.tar.gz", tmp_path) == f"docker-archive:{tmp_path}/saved.tar.gz"
    with pytest.raises(BuildError) as caught:
        fetch(reference("saved.tar.gz", tmp_path), tmp_path / "work")
    assert "gunzip" in str(caught.value.hint)
    with pytest.raises(ConfigError):
        reference("containers-storage:x", tmp_path)
    assert CONFIG["Cmd"]


def test_one_container_without_a_manifest(tmp_path: Path, base: RuntimeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "web_Server", FILES, config=SAYS)
    (tmp_path / "owner.pem").write_text(owner()[0])
    monkeypatch.chdir(tmp_path)
    asked = Single("oci:web_Server:latest", Path("owner.pem"), memory="32M", system_memory="96M", percent=0)
    with manifest_file(asked) as path:
        config = build_bundle(path, tmp_path / "out", base).config
    (tmp_path / "by-hand").mkdir()
    text = ONE.replace("oci:image:latest", "../web_Server").replace("name: web,", "name: web-server, percent: 0,")
    written = build(tmp_path / "by-hand", base, text.replace(", publish: [80], results: [out]", "")).config
    assert config.name == "web-server"
    assert (config.applications, config.zones) == (written.applications, written.zones)
    more = Single(
        "web_Server", Path("owner.pem"), name="w", publish=[80, 443], command="a 'b c'", user="0", restarts=2, vcpus=2,
        environment={"X": "y"}, results=["r"],
    )  # fmt: skip
    with manifest_file(more) as path:
        config = build_bundle(path, tmp_path / "out", base).config
    (application,) = config.applications
    assert application.command == ("/bin/tool", "a", "b c") and application.environment["X"] == "y"
    assert [port.port for port in application.ports] == [80, 443] and config.vcpus == 2 and config.name == "w"
    wrong = Single("web_Server", Path("owner.pem"), memory="x")
    with pytest.raises(ConfigError) as caught, manifest_file(wrong) as path:
        build_bundle(path, tmp_path / "out", base)
    assert caught.value.line is None and "line" not in caught.value.message


@pytest.mark.parametrize(
    ("container", "name"),
    [
        ("docker://registry:5000/team/Web_Server:1.2@sha256:00", "web-server"),
        ("images/postgres.tar.gz", "postgres"),
        ("oci:/srv/redis:7", "redis"),
        ("docker-archive:-.tar", "container"),
        ("x" * 50, "x" * 32),
    ],
)
def test_names_of_images(container: str, name: str) -> None:
    assert name_of(container) == name
