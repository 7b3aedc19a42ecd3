"""An analysis with numpy and pandas of records that its user sends into the Realm; its client are the results."""

from __future__ import annotations

import contextlib
import csv
import json
import random
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from examples.gallery.exhibit import READY_SECONDS, Exhibit, check_running
from examples.gallery.load import CALL_SECONDS, Load
from vambrace.client.realm import Realm
from vambrace.errors import VambraceError

WARDS: Final = {"cardiology": 6.0, "geriatrics": 11.0, "surgery": 4.0}  # and their usual days
PATIENTS: Final = 3000
_POLL_SECONDS: Final = 0.5
_PROGRESS: Final = re.compile(rb"^resampled (\d+) times\n", re.MULTILINE)


class Analysis(Exhibit):
    form = "Python"

    def prepare(self) -> None:
        chance = random.Random(7)
        wards = chance.choices(list(WARDS), k=PATIENTS)
        self.records = [(ward, 1 + int(chance.expovariate(1 / WARDS[ward]))) for ward in wards]

    @contextlib.contextmanager
    def client(self, realm: Realm) -> Iterator[Load]:
        """It has the records as soon as it waits for them."""
        self.said, self.offset = b"", 0
        # In another thread, and so on a channel of its own.
        with Realm.attach(realm.uuid, **self.stage.user.options) as own:
            self._await_word(own, re.compile(rb"waiting for records\n"), READY_SECONDS)
            own.put_file(self._write_records(), "analysis:records.csv")
            with Load(lambda: self._next_resamples(own)) as load:
                yield load

    def tell(self, load: Load) -> str:
        return f"results: {PATIENTS} records, {load.requests} resamples"

    def end(self, realm: Realm) -> str:
        """By itself, when it is told that it has resampled enough; its results are the user's."""
        enough = self.stage.work / "enough"
        enough.touch()
        realm.put_file(enough, "analysis:enough")
        results = self.stage.work / "results"
        shutil.rmtree(results, ignore_errors=True)
        state = realm.finish(results, progress=self.stage.story.progress).state
        check_summary((results / "analysis/summary.json").read_bytes(), self.records)
        return f"results collected, {state}"

    def _write_records(self) -> Path:
        path = self.stage.work / "records.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("ward", "days"), *self.records])
        return path

    def _next_resamples(self, own: Realm) -> int:
        """How many more it has done, once it has said so."""
        before = self.said
        self._await_word(own, _PROGRESS, CALL_SECONDS, len(before))
        return resamples(self.said) - resamples(before)

    def _await_word(self, own: Realm, word: re.Pattern[bytes], seconds: float, begin: int = 0) -> None:
        """Read its log until ``word`` is in it, from ``begin`` on."""
        deadline = time.monotonic() + seconds
        while not word.search(self.said, begin):
            self.offset, data, _ = own.logs("analysis", self.offset)
            self.said += data
            if not data:
                check_running(own)
                if time.monotonic() > deadline:
                    raise VambraceError(f"the analysis says nothing more within {seconds:.0f} s")
                time.sleep(_POLL_SECONDS)


def resamples(said: bytes) -> int:
    """How many the program has done by what it has said."""
    return max((int(number) for number in _PROGRESS.findall(said)), default=0)


def check_summary(text: bytes, records: list[tuple[str, int]]) -> None:
    """Raises ``VambraceError`` unless the results are those of ``records``: the same numbers and means, and intervals
    around these that are not wider than they can be."""
    for ward in WARDS:
        days = [each for its, each in records if its == ward]
        mean = statistics.fmean(days)
        try:
            found = json.loads(text)["wards"][ward]
            number, center, (low, high) = found["patients"], float(found["mean"]), map(float, found["interval"])
        except (ValueError, KeyError, TypeError):
            raise VambraceError(f"there are no results of {ward}") from None
        if number != len(days) or abs(center - mean) > 1e-9 * mean:
            raise VambraceError(f"the results of {ward} are not those of its {len(days)} records")
        error = statistics.stdev(days) / len(days) ** 0.5
        if not mean - 4 * error < low < mean < high < mean + 4 * error:
            raise VambraceError(f"the interval of {ward} is {low} to {high}, around {mean}")


EXHIBIT = Analysis
