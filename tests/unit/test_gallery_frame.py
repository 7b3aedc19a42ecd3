"""The gallery without a server: its examples are whole, its clients notice what is wrong, its table says what was."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from broker_world import MEASUREMENT, World
from postgresql import postgresql
from sqlalchemy import create_engine, text

from examples.gallery.__main__ import HEADINGS, table
from examples.gallery.analysis.example import WARDS, check_summary, resamples
from examples.gallery.broker import Broker
from examples.gallery.exhibit import ContainerService, Service
from examples.gallery.images import COMMON, LOCK
from examples.gallery.inference.digits import train
from examples.gallery.inference.example import IMAGES, REQUESTS, Inference, holds
from examples.gallery.java.example import JavaService, check_factors, make_archive
from examples.gallery.load import Load, run_client
from examples.gallery.nginx import example as nginx
from examples.gallery.postgresql.example import PostgreSql
from examples.gallery.redis import example as redis
from examples.gallery.visit import HERE, Row, exhibit_of, known
from examples.gallery.web import request
from vambrace.attest.policy import Policy
from vambrace.broker.platforms import PlatformFiles
from vambrace.debian import tools
from vambrace.errors import BrokerError, VambraceError
from vambrace.image.packages import lock_path

ROOT = Path(__file__).parents[2]


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
    if "packages" in application or "java" in application:
        recorded = json.loads(lock_path(HERE / name / "manifest.yaml").read_text())
        assert len(recorded) == 1 and {*application.get("packages", [])} <= {*next(iter(recorded)).split()}
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


def test_a_mistake_in_a_round_is_not_lost() -> None:
    with Load(lambda: [][0]) as load:
        with pytest.raises(IndexError):
            load.await_whole_round(20)
        with pytest.raises(IndexError):
            load.finish()


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
        assert request((host, port), "/") == page
        with pytest.raises(VambraceError, match="answered with 404"):
            request((host, port), "/nothing.html")
    assert nginx.completed(report, len(page)) == nginx.REQUESTS
    for wrong, size in ((missing, len(page)), (fewer, len(page)), (report, len(page) + 1), ("", 1)):
        with pytest.raises(VambraceError, match="ab reports"):
            nginx.completed(wrong, size)
    with pytest.raises(VambraceError, match="no answer to a request"):
        request((host, port), "/")


def test_redis_benchmark_is_believed_when_it_did_all() -> None:
    report = '"test","rps","avg_latency_ms"\n' + "".join(f'"{name}","12.5","1.0"\n' for name in redis.COMMANDS)
    redis.check_report(report)
    others = ("", "test,rps\nSET,1\n", "test\nSET\n", "test,rps\nSET,x\n")
    for wrong in (report.replace('"12.5"', '"0"', 1), report.rsplit("\n", 2)[0], *others):
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def service(client: Service, words: list[str | Path], folder: Path) -> Iterator[tuple[str, int]]:
    """The program of an example on this machine, once its client finds that it serves; the last word is its port."""
    port = free_port()
    with subprocess.Popen([*words, str(port)], cwd=folder) as process:
        try:
            for _ in range(300):
                try:
                    client.ask(("127.0.0.1", port))
                    break
                except VambraceError:
                    assert process.poll() is None
                    time.sleep(0.1)
            yield ("127.0.0.1", port)
        finally:
            process.terminate()


def test_the_model_is_read_as_it_is(tmp_path: Path) -> None:
    client = Inference(None)
    client.seen = client.right = 0
    client.chance = np.random.default_rng(7)
    client.model = train(client.chance)
    np.savez(tmp_path / "model.npz", **client.model)
    needle = client.model["first"].tobytes()
    assert holds(tmp_path / "model.npz", needle) and not holds(tmp_path / "model.npz", needle + needle)
    program = HERE / "inference/program/serve.py"
    with service(client, [sys.executable, program], tmp_path) as address:
        assert client.do_round(address) == REQUESTS
        assert client.seen == REQUESTS * IMAGES and client.right > 0.95 * client.seen
        for wrong in (bytes(63), bytes(257 * 64)):
            with pytest.raises(VambraceError, match="answered with 400"):
                request(address, "/", wrong)
        client.right = 0
        with pytest.raises(VambraceError, match=r"only \d+ of 512 digits are read right"):
            client.do_round(address)
        client.model["second"] = client.model["second"][:, ::-1]
        with pytest.raises(VambraceError, match="other digits than its model does here"):
            client.do_round(address)


def test_a_broker_for_one_visit(tmp_path: Path) -> None:
    world = World(tmp_path)
    platform = PlatformFiles(world.root, world.references)
    policy = Policy(measurements=frozenset({MEASUREMENT})).table()
    for _ in range(2):  # what the last visit has left is of no use to the next one
        with Broker(tmp_path / "ours", world.owner, platform, 0) as broker:
            with broker.client() as client:
                assert client.put("gallery/key/model", b"k" * 64, policy) == 1
                assert client.describe("gallery/key/model")["policy"]["realm"] == policy["realm"]
            with (
                pytest.raises(BrokerError, match=f"cannot listen on 127.0.0.1:{broker.port}"),
                Broker(tmp_path / "another", world.owner, platform, broker.port),
            ):
                pass


def test_the_java_service_knows_its_factors(tmp_path: Path) -> None:
    make_archive(HERE / "java/Service.java", tmp_path / "service.jar")
    make_archive(HERE / "java/Service.java", tmp_path / "again.jar")
    assert (tmp_path / "service.jar").read_bytes() == (tmp_path / "again.jar").read_bytes()
    client = JavaService(None)
    with service(client, ["java", "-jar", "service.jar"], tmp_path) as address:
        assert [client.do_round(address), client.do_round(address)] == [40, 40]
        client.first = 999_999_990
        with pytest.raises(VambraceError, match=r"curl ended with 22 and said: .*400"):
            client.do_round(address)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("6 = 2 3\n", "1 answers to 2 questions"),
        ("6 = 2 3\n6 = 2 3\n", "'6 = 2 3' is no answer to 7"),
        ("6 = 6\n7 = 7\n", "these are not the prime factors: '6 = 6'"),
        ("6 = 2 3\n7 = 1 7\n", "these are not the prime factors: '7 = 1 7'"),
        ("6 = 2 2\n7 = 7\n", "these are not the prime factors: '6 = 2 2'"),
    ],
)
def test_wrong_factors_are_told(said: str, why: str) -> None:
    with pytest.raises(VambraceError) as caught:
        check_factors(said, 6, 7)
    assert caught.value.message == why


def test_the_results_are_those_of_the_records() -> None:
    records = [(ward, days) for ward in WARDS for days in (1, 2, 3, 4, 5)]
    good = {ward: {"patients": 5, "mean": 3.0, "interval": [1.8, 4.2]} for ward in WARDS}
    check_summary(summary(good), records)
    for change, why in (
        ({"patients": 4}, "not those of its 5 records"),
        ({"mean": 3.001}, "not those of its 5 records"),
        ({"interval": [3.1, 4.2]}, "the interval of surgery is 3.1 to 4.2"),
        ({"interval": [1.8, 9.0]}, "the interval of surgery is 1.8 to 9.0"),
    ):
        with pytest.raises(VambraceError, match=why):
            check_summary(summary(good | {"surgery": good["surgery"] | change}), records)
    lacking = summary({ward: good[ward] for ward in WARDS if ward != "surgery"})
    for wrong in (lacking, summary(good | {"surgery": {}}), lacking[:-9], b"[]"):
        with pytest.raises(VambraceError, match="there are no results of"):
            check_summary(wrong, records)


def summary(wards: dict[str, object]) -> bytes:
    return json.dumps({"resamples": 100, "wards": wards}).encode()


def test_progress_is_read_from_the_log() -> None:
    said = b"numpy 2, pandas 2: waiting for records\nresampled 20 times\nresampled 40 times\nresampled 60"
    assert resamples(said) == 40 and resamples(b"") == 0
