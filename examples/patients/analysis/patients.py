"""A table of patients out of a seed: made where it is used, so that no copy of it travels with the image."""

import random
import sqlite3

# Joined when the program runs: the image, which anyone may read, holds the whole word nowhere.
CANARY = "-".join(("VAMBRACE", "CANARY", ""))
SAMPLES = 480  # of one patient's heart; they make the table some 14 MB
DIAGNOSES = ("asthma", "diabetes", "fracture", "hypertension", "influenza", "migraine", "pneumonia")
WARDS = ("cardiology", "emergency", "neurology", "surgery")


def rows(count: int, seed: int):
    """``count`` tuples; the note of each carries a canary that can be searched for in memory."""
    source = random.Random(seed)
    for number in range(count):
        yield (
            number,
            f"patient-{source.getrandbits(40):010x}",
            source.randrange(1, 100),
            source.choice(DIAGNOSES),
            source.choice(WARDS),
            source.randrange(1, 60),
            round(source.uniform(3.0, 12.0), 2),
            f"{CANARY}{source.getrandbits(32):08x}",
            source.randbytes(SAMPLES).hex(),
        )


def load(count: int, seed: int) -> sqlite3.Connection:
    """The table in memory, never on a disk."""
    table = sqlite3.connect(":memory:")
    table.execute("PRAGMA temp_store = MEMORY")
    table.execute(
        "CREATE TABLE patients (id INTEGER PRIMARY KEY, name TEXT, age INTEGER, diagnosis TEXT, ward TEXT,"
        " days INTEGER, glucose REAL, note TEXT, trace TEXT)"
    )
    table.executemany("INSERT INTO patients VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows(count, seed))
    table.commit()
    return table
