"""Containers, on this machine: what a process in one finds, may do and may not. Needs root, namespaces and crun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from container_images import hard, image, layer, link, member

from vambrace.image.containers import read_image

HERE = Path(__file__).parent
BUSYBOX = Path("/bin/busybox")
ASK = r"""
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
    struct sockaddr_un desk = {AF_UNIX, "/run/vambrace-agent"};
    char line[200];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&desk, sizeof desk)) return 1;
    write(fd, "{\"op\": \"who\"}\n", 14);
    write(1, line, read(fd, line, sizeof line));
    return 0;
}
"""
APPLETS = ("sh", "id", "ls", "cat", "echo", "env", "hostname", "mount", "unshare", "nc", "stat", "touch", "sleep")
APPLETS += ("chown", "grep", "mknod", "su", "wc", "ps", "dd", "nsenter", "rm")


def _can() -> bool:
    known = Path("/proc/filesystems").read_text()
    return os.geteuid() == 0 and BUSYBOX.exists() and "erofs" in known and shutil.which("crun") is not None


pytestmark = pytest.mark.skipif(not _can(), reason="needs root, busybox-static, crun, and EROFS in the kernel")


def compiled(program: Path, source: str) -> bytes:
    program.with_suffix(".c").write_text(source)
    subprocess.run(["gcc", "-static", "-O1", "-w", "-o", program, program.with_suffix(".c")], check=True)
    return program.read_bytes()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with a static busybox of this machine; that it is for arm64 is said, not so."""
    folder = tmp_path_factory.mktemp("image")
    busybox = BUSYBOX.read_bytes()
    files = layer(
        member("bin/busybox", busybox, mode=0o755),
        *(hard(f"bin/{name}", "bin/busybox") for name in APPLETS),
        member("bin/ask", compiled(folder / "ask", ASK), mode=0o755),
        member("set-user-id/id", busybox, mode=0o4755),
        member("etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:100:101::/srv:/bin/sh\n"),
        member("etc/group", b"root:x:0:\nweb:x:101:\n"),
        member("srv/", mode=0o750, uid=100, gid=101),
        member("srv/page", b"page", mode=0o640, uid=100, gid=101),
        member("tmp/", mode=0o1777),
        link("srv/out", "/../../etc/passwd"),
        member("big", b"b" * 100_000, uid=(1 << 24) - 1),
    )
    return read_image(image(folder / "image", files), folder / "work").disk


def inside(disk: Path, program: str) -> Any:
    """What ``program`` tells, which has everything of ``container_machine`` and the ``disk``."""
    text = f"from container_machine import *\nbegin()\ndisk = Path({str(disk)!r})\n{textwrap.dedent(program)}"
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=HERE, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return json.loads(done.stdout)


def shell(disk: Path, script: str, **container: Any) -> tuple[int, list[str]]:
    code, text = inside(
        disk,
        f"""
        one = application(1, "one", ["sh", "-c", {script!r}], container={container!r})
        prepare(disk, one)
        open_desk(one)
        tell(run(one))
        """,
    )
    return code, text.splitlines()


ROOT = {"capabilities": ["CHOWN", "DAC_OVERRIDE", "KILL", "MKNOD", "SETGID", "SETUID", "SYS_CHROOT"]}
WEB = {"uid": 100, "gid": 101, "groups": [7, 101], **ROOT}


def test_the_application_is_as_the_image_says(disk: Path) -> None:
    code, lines = shell(
        disk,
        "id; pwd; hostname; env; umask; cat /srv/page; echo; echo $$; ls /dev; echo again > /dev/stdout; exit 7",
        **WEB,
    )
    assert code == 7
    assert lines[:4] == ["uid=100(web) gid=101(web) groups=7,101(web)", "/", "one", lines[3]]
    assert {"PATH=/bin", "0022", "page", "1", "again"} <= set(lines)
    assert {"null", "zero", "urandom", "shm", "pts"} <= set(lines) and not {"vda", "loop0", "kmsg", "mem"} & set(lines)


def test_files_are_as_in_the_image_and_can_be_changed(disk: Path) -> None:
    code, lines = shell(
        disk,
        "stat -c '%n %a %u:%g' /srv /srv/page /set-user-id/id /big /tmp /;"
        "cat /srv/out | wc -l; echo new > /srv/page; chown 5:6 /srv/page; stat -c %u:%g /srv/page; rm /big; ls /big",
        **ROOT,
    )
    assert lines[:6] == [
        "/srv 750 100:101", "/srv/page 640 100:101", "/set-user-id/id 4755 0:0", "/big 644 16777215:0",
        "/tmp 1777 0:0", "/ 755 0:0",
    ]  # fmt: skip
    assert lines[6:8] == ["2", "5:6"] and code == 1


def test_namespaces_and_what_is_closed(disk: Path) -> None:
    code, lines = shell(
        disk,
        """
        cat /proc/self/uid_map
        ls /proc | grep -c '^[0-9]'
        grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/self/status
        for try in 'mount -t tmpfs x /srv' 'unshare -U true' 'unshare -m true' 'mknod /tmp/d b 8 0' \\
            'nsenter -t 1 -m true' 'cat /proc/kcore' 'touch /proc/sys/kernel/hostname' 'dd if=/dev/mem'; do
            $try > /dev/null 2>&1 && echo "could: $try"
        done
        cat /proc/keys | wc -c
        ls /sys
        """,
        **ROOT,
    )
    assert code == 0
    assert lines[0].split() == ["0", str(1 << 24), str(1 << 24)]
    assert int(lines[1]) <= 3  # the shell, ls and grep
    status = dict(line.split(":\t") for line in lines[2:6])
    bits = sum(1 << number for number in (0, 1, 5, 6, 7, 18, 27))
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == bits
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert lines[6:] == ["0", "devices", "fs"]


def test_who_is_not_root_stays_so(disk: Path) -> None:
    """Neither a set-user-id program nor su helps; and files of others are closed."""
    code, lines = shell(
        disk,
        "/set-user-id/id -u; su -c 'id -u'; grep CapEff /proc/self/status; touch /bin/x || echo closed; id -u",
        **{**WEB, "uid": 5, "gid": 5},
    )
    assert lines[0] == "5" and "CapEff:\t0000000000000000" in lines and "closed" in lines and lines[-1] == "5"
    assert code == 0 and "0" not in lines


def test_the_filter_looks_as_the_kernel_does(tmp_path: Path) -> None:
    """Of a number of 32 bits only the low half counts: what is above it opens nothing."""
    source = """
        #include <stdio.h>
        #include <errno.h>
        #include <unistd.h>
        #include <sys/syscall.h>
        static int call(long number, unsigned long first, unsigned long second) {
            errno = 0;
            long result = syscall(number, first, second, 0, 0, 0);
            if (result == 0 && number != SYS_socket && number != SYS_unshare) _exit(0);
            return result >= 0 ? 0 : errno;
        }
        int main(void) {
            printf("%d %d %d ", call(SYS_socket, 40, 1), call(SYS_socket, 0x100000028UL, 1), call(SYS_socket, 2, 1));
            printf("%d %d ", call(SYS_unshare, 0x10000000, 0), call(SYS_unshare, 0x10000400, 0));
            printf("%d %d ", call(SYS_clone, 0x10000011, 0), call(SYS_clone3, 0, 0));
            printf("%d %d\\n", call(SYS_io_uring_setup, 1, 0), call(SYS_keyctl, 0, 0));
            return 0;
        }
        """
    files = layer(member("calls", compiled(tmp_path / "calls", source), mode=0o755))
    disk = read_image(image(tmp_path / "image", files), tmp_path / "work").disk
    code, text = inside(
        disk,
        """
        one = application(1, "one", ["/calls"])
        prepare(disk, one)
        open_desk(one)
        tell(run(one))
        """,
    )
    assert (code, text.split()) == (0, ["1", "1", "0", "1", "1", "1", "38", "1", "1"])


def test_two_containers_and_who_they_are(disk: Path) -> None:
    """Root in each: the desk tells them apart, neither sees the other's processes or files, sockets are theirs."""
    program = """
        from vambrace_agent.ports import listeners
        import threading, time
        one = application(1, "one", ["sh", "-c", "ask; nc -l -p 18080 > /dev/null & sleep 3; ls /results"])
        two = application(2, "two", ["sh", "-c", "ask; sleep 1; ps; ls /results; ls /run"])
        prepare(disk, one, two)
        open_desk(one, two)
        found = {}
        def go(each):
            found[each.name] = run(each)
        threads = [threading.Thread(target=go, args=(each,)) for each in (one, two)]
        for thread in threads: thread.start()
        users = set()
        for _ in range(35):
            users |= {user for user, _ in listeners([18080])[18080]}
            time.sleep(0.1)
        for thread in threads: thread.join()
        tell({"found": found, "owned": [[one.owns(user), two.owns(user)] for user in users]})
        """
    told = inside(disk, program)
    assert told["owned"] == [[True, False]]
    one, two = (told["found"][name][1] for name in ("one", "two"))
    assert '{"ok": true, "name": "one"}' in one and '{"ok": true, "name": "two"}' in two
    assert one.splitlines()[-1] == "one" and two.splitlines()[-2:] == ["two", "vambrace-agent"]
    assert "nc -l" not in two


def test_volumes_have_owners_as_inside(disk: Path) -> None:
    """On the disk is the container's own number, so that the volume may be another application's the next time."""
    program = """
        from vambrace_agent.volumes import welcome
        box = {"uid": 100, "gid": 101}
        script = "id -u; stat -c %u:%a /data /data/of-5; echo mine > /data/new && cat /data/of-5 2>&1"
        one = application(3, "one", ["sh", "-c", script], container=box)
        prepare(disk)
        container.make_folder(one)
        identities.make_user_namespace(f"{container.folder(one)}/user", one.identities)
        for path in ("/run/volume", "/run/raw"):
            Path(path).mkdir()
        system.call("mount", b"tmpfs", b"/run/volume", b"tmpfs", 0, b"mode=755")
        Path("/run/volume/lost+found").mkdir()
        Path("/run/volume/of-5").write_text("secret")
        os.chown("/run/volume/of-5", 5, 5)
        os.chmod("/run/volume/of-5", 0o600)
        system.call("mount", b"/run/volume", b"/run/raw", None, 4096, None)
        where = container.adopt(one, "/run/volume", "v")
        welcome(where, one.uid)
        one.mounts.append((where, "/data"))
        Path(one.results_directory).mkdir()
        open_desk(one)
        container.make_root(one)
        container.write_bundle(one)
        found = run(one)
        tell([*found, os.stat("/run/raw/new").st_uid, os.stat("/run/raw").st_uid, os.path.exists("/run/volume")])
        """
    code, text, new, top, left = inside(disk, program)
    assert (code, new, top, left) == (1, 100, 100, False)
    assert text.splitlines() == ["100", "100:755", "5:600", "cat: can't open '/data/of-5': Permission denied"]


def test_stop_signals_and_exit_codes(disk: Path) -> None:
    program = """
        import threading, time
        wait = "trap 'echo asked; exit 3' USR1; echo ready; while :; do sleep 0.1; done"
        one = application(1, "one", ["sh", "-c", wait], container={"stop_signal": 10})
        two = application(2, "two", ["sh", "-c", "kill -TERM $$; sleep 1; exit 4"])
        gone = application(3, "gone", ["/no/such"])
        prepare(disk, one, two, gone)
        open_desk(one)
        found = {}
        thread = threading.Thread(target=lambda: found.update(one=run(one)))
        thread.start()
        time.sleep(2)
        container.terminate(one)
        thread.join()
        found["two"], found["gone"] = run(two), run(gone)
        found["two again"] = run(two)
        tell(found)
        """
    told = inside(disk, program)
    assert told["one"] == [3, "ready\nasked\n"]
    assert told["two"][0] == told["two again"][0] == 4
    assert told["gone"][0] != 0 and "/no/such" in told["gone"][1]


def test_health_checks_run_inside(disk: Path) -> None:
    program = """
        import threading, time
        check = {"command": ["sh", "-c", "id -u > /tmp/checked; test -e /tmp/well"], "interval": 1000, "timeout": 1000}
        box = {"uid": 100, "gid": 101, "health": check | {"start_period": 0, "retries": 2}}
        one = application(1, "one", ["sh", "-c", "sleep 2; touch /tmp/well; sleep 2; cat /tmp/checked"], container=box)
        prepare(disk, one)
        open_desk(one)
        found = []
        def check():
            pid = container.launch_health(one)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        thread = threading.Thread(target=lambda: found.append(run(one)))
        thread.start()
        time.sleep(1)
        codes = [check()]
        time.sleep(2)
        codes.append(check())
        thread.join()
        tell([codes, *found])
        """
    assert inside(disk, program) == [[1, 0], [0, "100\n"]]
