"""The gallery without a server: its examples are whole, its clients notice what is wrong, its table says what was."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml
from postgresql import postgresql
from sqlalchemy import create_engine, text

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from examples.gallery.__main__ import HEADINGS, table  # noqa: E402
from examples.gallery.exhibit import ContainerService, Service  # noqa: E402
from examples.gallery.images import COMMON, LOCK  # noqa: E402
from examples.gallery.load import Load, run_client  # noqa: E402
from examples.gallery.nginx import example as nginx  # noqa: E402
from examples.gallery.postgresql.example import PostgreSql  # noqa: E402
from examples.gallery.redis import example as redis  # noqa: E402
from examples.gallery.visit import HERE, Row, exhibit_of, known  # noqa: E402
from examples.gallery.web import get  # noqa: E402
from vambrace.debian import tools  # noqa: E402
from vambrace.errors import VambraceError  # noqa: E402


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """A web server of what is in ``folder``."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield ("127.0.0.1", server.server_port)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", known())
def test_an_example_is_whole(name: str) -> None:
    kind = exhibit_of(name)
    manifest = yaml.safe_load((HERE / name / "manifest.yaml").read_text())
    (application,) = manifest["applications"]
    assert manifest["name"] == f"gallery-{name}" and application["name"] == name
    # Raised and lowered, from a percentage that is between both.
    highest, lowest = kind.percentages
    assert lowest < application["percent"] < highest
    if issubclass(kind, Service):
        assert application["publish"] == [kind.port] and tools.find(kind.program)
    if issubclass(kind, ContainerService):
        recorded = {package["name"] for package in json.loads(LOCK.read_text())[name]}
        assert {*COMMON, *kind.image.packages, *kind.image.without} <= recorded


def test_a_load_counts_whole_rounds() -> None:
    begun: list[float] = []

    def do_round() -> int:
        begun.append(time.monotonic())
        time.sleep(0.02)
        return 3

    with Load(do_round) as load:
        for _ in range(3):
            asked, before = time.monotonic(), load.rounds
            load.await_whole_round(20)
            # One that began after it was asked for has ended.
            assert any(asked < start for start in begun[: load.rounds]) and load.rounds >= before + 2
        load.finish()
    assert load.requests == 3 * load.rounds == 3 * len(begun)


def test_a_load_ends_with_the_first_failure() -> None:
    answers = iter([5, 5])

    def do_round() -> int:
        if (found := next(answers, None)) is None:
            raise VambraceError("one was not answered")
        return found

    with Load(do_round) as load:
        with pytest.raises(VambraceError, match="one was not answered"):
            load.await_whole_round(20)
            load.await_whole_round(20)
        with pytest.raises(VambraceError, match="one was not answered"):
            load.finish()
    assert (load.rounds, load.requests) == (2, 10)


def test_a_round_without_end_is_told() -> None:
    stop = threading.Event()
    with Load(lambda: int(stop.wait(60))) as load:
        with pytest.raises(VambraceError, match="no whole round within 0 s"):
            load.await_whole_round(0.2)
        stop.set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sh", "-c", "exit 3"], "sh ended with 3 and said: nothing"),
        (["sh", "-c", "echo lost >&2"], "sh ended with 0 and said: lost"),
        (["sleep", "30"], "sleep did not end within 0 s"),
        (["no-such-client"], "no-such-client is not installed"),
    ],
)
def test_a_client_that_fails(words: list[str], said: str) -> None:
    with pytest.raises(VambraceError) as caught:
        run_client(words, seconds=0.5)
    assert caught.value.message == said


def test_what_a_client_prints() -> None:
    assert run_client(["sort"], "b\na\n") == "a\nb\n"


def test_ab_is_believed_when_all_was_answered(tmp_path: Path) -> None:
    page = (HERE / "nginx/files/srv/index.html").read_bytes()
    (tmp_path / "index.html").write_bytes(page)
    words = ["ab", "-q", "-n", str(nginx.REQUESTS), "-c", "2"]
    with served(tmp_path) as (host, port):
        report = run_client([*words, f"http://{host}:{port}/index.html"])
        missing = run_client([*words, f"http://{host}:{port}/nothing.html"])
        fewer = run_client(["ab", "-q", "-n", "2", f"http://{host}:{port}/index.html"])
        assert get((host, port), "/") == page
        with pytest.raises(VambraceError, match="answered with 404"):
            get((host, port), "/nothing.html")
    assert nginx.completed(report, len(page)) == nginx.REQUESTS
    for wrong, size in ((missing, len(page)), (fewer, len(page)), (report, len(page) + 1), ("", 1)):
        with pytest.raises(VambraceError, match="ab reports"):
            nginx.completed(wrong, size)
    with pytest.raises(VambraceError, match="no answer to a request"):
        get((host, port), "/")


def test_redis_benchmark_is_believed_when_it_did_all() -> None:
    report = '"test","rps","avg_latency_ms"\n' + "".join(f'"{name}","12.5","1.0"\n' for name in redis.COMMANDS)
    redis.check_report(report)
    for wrong in (report.replace('"12.5"', '"0"', 1), report.rsplit("\n", 2)[0], "", "test,rps\nSET,1\n"):
        with pytest.raises(VambraceError, match="redis-benchmark reports"):
            redis.check_report(wrong)


def test_no_other_program_is_taken_for_redis(tmp_path: Path) -> None:
    with served(tmp_path) as address, pytest.raises(VambraceError, match="redis-benchmark ended with 1 and said: "):
        run_client(["redis-benchmark", *redis.at(address), "-n", "1", "-t", "set", "--csv"], seconds=30)


def test_psql_is_told_of_what_is_lost() -> None:
    with postgresql() as url:
        with create_engine(url.format("postgres"), isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("CREATE ROLE postgres SUPERUSER LOGIN"))
            address = (url.partition("host=")[2], 5432)
            client = PostgreSql(None)
            client.ask(address)
            client.ask(address)  # until it serves it may be asked more than once
            assert [client.do_round(address) for _ in range(2)] == [21, 21]
            connection.execute(text("UPDATE stays SET days = days + 1 WHERE bed = 7"))
            with pytest.raises(VambraceError, match=r"PostgreSQL has '60\|871' of '60\|870'"):
                client.do_round(address)
            connection.execute(text("DROP TABLE stays"))
        with pytest.raises(VambraceError, match='relation "stays" does not exist'):
            client.do_round(address)


def test_the_table_is_markdown() -> None:
    good = Row("redis", "container", 12.34, 50 << 20, 9.0, 30.06, [50, 85, 20], "redis-benchmark: 800 requests")
    good.end = "stopped, succeeded"
    lines = table([good, Row("nginx", "container", error="no mirror")])
    assert len({line.count("|") for line in lines}) == len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == list(HEADINGS)
    assert cells[2][:6] == ["redis", "container", "12.3", "50", "9.0", "30.1"]
    assert cells[2][6:] == ["redis-benchmark: 800 requests", "50, 85, 20", "0", "stopped, succeeded"]
    assert cells[3] == ["nginx", "container", "", "", "", "", "", "", "0", "no mirror"]


def test_an_unknown_example_is_refused_in_one_line() -> None:
    words = [sys.executable, "-m", "examples.gallery", "oracle"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"there is no 'oracle': choose from {', '.join(known())}" in done.stderr.splitlines()[-1]
