"""The programs that are recorded. Each runs by itself, and is the same every time with the same DATA, a number:

    python3 -m bench.policy.workloads NAME DATA
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import sqlite3
import statistics
import sys
from array import array
from collections import defaultdict, deque
from collections.abc import Callable
from itertools import accumulate, islice


def _popular(chance: random.Random, things: int, count: int) -> array[int]:
    """Numbers below ``things`` in Zipf's order (0.99), the popular ones anywhere. Not a list: its numbers are objects
    all over the heap, whose pages would be recorded as well."""
    ranked = list(range(things))
    chance.shuffle(ranked)
    weights = list(accumulate(1 / rank**0.99 for rank in range(1, things + 1)))
    return array("I", chance.choices(ranked, cum_weights=weights, k=count))


def _database(chance: random.Random, rows: int) -> sqlite3.Connection:
    """A table of some 1,000 bytes a row, with an index."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE patient (number INTEGER PRIMARY KEY, ward INTEGER, age INTEGER, notes BLOB)")
    contents = (
        (number, chance.randrange(200), chance.randrange(100), chance.randbytes(chance.randrange(600, 1400)))
        for number in range(rows)
    )
    database.executemany("INSERT INTO patient VALUES (?, ?, ?, ?)", contents)
    database.execute("CREATE INDEX by_ward ON patient (ward)")
    return database


def sqlite_lookups(chance: random.Random) -> object:
    """100 MB; single rows by their key, one in ten changed."""
    database = _database(chance, 100_000)
    found = 0
    for step, number in enumerate(_popular(chance, 100_000, 50_000)):
        if step % 10:
            found += len(database.execute("SELECT notes FROM patient WHERE number = ?", (number,)).fetchone()[0])
        else:
            database.execute("UPDATE patient SET age = age + 1 WHERE number = ?", (number,))
    return found


def sqlite_reports(chance: random.Random) -> object:
    """40 MB; lookups, and every now and then a ward by the index or a pass over everything."""
    database = _database(chance, 40_000)
    result = 0.0
    for step, number in enumerate(_popular(chance, 40_000, 36_000)):
        result += database.execute("SELECT age FROM patient WHERE number = ?", (number,)).fetchone()[0]
        if step % 600 == 0:
            ward = (chance.randrange(200),)
            result += database.execute("SELECT avg(length(notes)) FROM patient WHERE ward = ?", ward).fetchone()[0]
        if step % 6000 == 0:
            result += len(database.execute("SELECT ward, avg(age) FROM patient GROUP BY ward").fetchall())
    return result


def store(chance: random.Random) -> object:
    """A key-value store in a dictionary: 60 MB, four reads to a write."""
    values = {f"user{number}": chance.randbytes(chance.randrange(500, 1500)) for number in range(60_000)}
    read = 0
    for step, number in enumerate(_popular(chance, 60_000, 120_000)):
        if step % 5:
            read += values[f"user{number}"][0]
        else:
            values[f"user{number}"] = chance.randbytes(chance.randrange(500, 1500))
    return read


def analysis(chance: random.Random) -> object:
    """A CSV file of 30,000 lines: read, grouped, and statistics of each group."""
    text = io.StringIO()
    writer = csv.writer(text)
    for number in range(30_000):
        writer.writerow([number, chance.randrange(50), chance.gauss(37, 1), chance.gauss(80, 12), chance.randrange(99)])
    text.seek(0)
    rows = [(int(ward), float(heat), float(pulse)) for _, ward, heat, pulse, _ in csv.reader(text)]
    wards: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for ward, heat, pulse in rows:
        wards[ward].append((heat, pulse))
    results = []
    for ward in sorted(wards):
        heats, pulses = zip(*wards[ward], strict=True)
        results.append((statistics.fmean(heats), statistics.median(heats), statistics.correlation(heats, pulses)))
    results.sort()
    overall = [heat for _, heat, _ in rows]
    return results[0], statistics.fmean(overall), statistics.quantiles(overall, n=10)


def documents(chance: random.Random) -> object:
    """JSON of 20,000 nested objects: written, read, some looked up."""
    records = [
        {
            "id": number,
            "name": f"name {chance.random()}",
            "visits": [{"day": chance.randrange(365), "heat": chance.gauss(37, 1)} for _ in range(8)],
        }
        for number in range(20_000)
    ]
    text = json.dumps(records)
    del records
    again = json.loads(text)
    seen = [len(again[number]["visits"]) for number in _popular(chance, len(again), 60_000)]
    return len(text), sum(seen)


def compression(chance: random.Random) -> object:
    """40 MB of text that compresses fourfold or so: packed, unpacked, compared."""
    words = [chance.randbytes(6).hex().encode() for _ in range(3000)]
    text = b" ".join(chance.choices(words, k=3_000_000))
    packed = gzip.compress(text, 1)
    return len(packed), gzip.decompress(packed) == text


def index(chance: random.Random) -> object:
    """12,000 texts and an index of their words; then queries of two words, popular ones more often."""
    vocabulary = [f"{number:x}" * 3 for number in range(20_000)]
    drawn = iter(_popular(chance, 20_000, 1_200_000))
    texts = [" ".join(vocabulary[word] for word in islice(drawn, chance.randrange(50, 150))) for _ in range(12_000)]
    places: dict[str, set[int]] = defaultdict(set)
    for number, text in enumerate(texts):
        for word in text.split():
            places[word].add(number)
    found = 0
    words = _popular(chance, 20_000, 8_000)
    for one, other in zip(words[::2], words[1::2], strict=True):
        both = places.get(vocabulary[one], set()) & places.get(vocabulary[other], set())
        found += sum(len(texts[number]) for number in islice(both, 5))
    return found


def graph(chance: random.Random) -> object:
    """60,000 people who know six others each, some of them many: everybody's distance from a few of them."""
    known = _popular(chance, 60_000, 360_000)
    knows = [[known[at + step] for step in range(6)] for at in range(0, len(known), 6)]
    reached = 0
    for _ in range(6):
        start = chance.randrange(len(knows))
        distance, waiting = {start: 0}, deque([start])
        while waiting:
            person = waiting.popleft()
            for other in knows[person]:
                if other not in distance:
                    distance[other] = distance[person] + 1
                    waiting.append(other)
        reached += len(distance)
    return reached


def _numbers(chance: random.Random) -> bytes:
    return b"".join(b"%d %d\n" % (chance.randrange(10**12), number) for number in range(800_000))


def _words(chance: random.Random) -> bytes:
    """Lines of a dozen words, of which most are seldom."""
    words = [b"%x" % number for number in chance.sample(range(1 << 32), 200_000)]
    drawn = _popular(chance, len(words), 900_000)
    return b"\n".join(b" ".join(words[number] for number in drawn[at : at + 12]) for at in range(0, len(drawn), 12))


_PROGRAMS: dict[str, Callable[[random.Random], object]] = {
    "sqlite-lookups": sqlite_lookups,
    "sqlite-reports": sqlite_reports,
    "store": store,
    "analysis": analysis,
    "documents": documents,
    "compression": compression,
    "index": index,
    "graph": graph,
}
# Programs that we did not write at all, and what they read from standard input.
_FOREIGN: dict[str, tuple[list[str], Callable[[random.Random], bytes]]] = {
    "sort": (["sort", "--parallel=1", "--buffer-size=200M"], _numbers),
    "perl": (["perl", "-ne", "$n{$_}++ for split; END { print scalar(grep { $n{$_} > 2 } sort keys %n) }"], _words),
    "xz": (["xz", "--stdout", "--threads=1", "-6"], _words),
}
NAMES = ("sqlite-lookups", "sqlite-reports", "store", "analysis", "documents", "compression", "sort")
#: Recorded as well, but the policy was not chosen by these.
HELD_OUT = ("index", "graph", "perl", "xz")


def _chance(name: str, data: int) -> random.Random:
    return random.Random(name if data == 1 else f"{name} {data}")


def command(name: str, data: int = 1) -> tuple[list[str], bytes]:
    """The command line, and what it reads from standard input. Raises KeyError."""
    if name in _FOREIGN:
        words, feed = _FOREIGN[name]
        return words, feed(_chance(name, data))
    if name not in _PROGRAMS:
        raise KeyError(name)
    return [sys.executable, "-m", "bench.policy.workloads", name, str(data)], b""


def main() -> None:
    name, data = sys.argv[1:]
    print(_PROGRAMS[name](_chance(name, int(data))))


if __name__ == "__main__":
    main()
