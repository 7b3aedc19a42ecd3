"""Analyse the table of patients for ``--seconds`` and write a summary that names no patient."""

import argparse
import json
import time

import patients

QUERIES = {
    "stay": "SELECT diagnosis, count(*), round(avg(days), 2) FROM patients GROUP BY 1 ORDER BY 1",
    "age_by_ward": "SELECT ward, min(age), round(avg(age), 2), max(age) FROM patients GROUP BY 1 ORDER BY 1",
    "high_glucose": "SELECT ward, count(*) FROM patients WHERE glucose > 9.5 GROUP BY 1 ORDER BY 1",
    # Read every row whole, so that all of the table is in use all the time.
    "notes": "SELECT count(*), min(length(note)), max(length(note)) FROM patients",
    "traces": "SELECT ward, count(*) FROM patients WHERE trace LIKE 'ff%' GROUP BY 1 ORDER BY 1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--seconds", type=float, default=20.0, help="repeat the queries this long")
    parser.add_argument("--output", required=True)
    options = parser.parse_args()

    begin = time.monotonic()
    table = patients.load(options.rows, options.seed)
    print(f"table of {options.rows} rows ready after {time.monotonic() - begin:.1f} s", flush=True)
    rounds, told = 0, begin
    answers: dict[str, list] = {}
    while rounds == 0 or time.monotonic() - begin < options.seconds:
        current = {name: table.execute(query).fetchall() for name, query in QUERIES.items()}
        if answers and current != answers:
            raise SystemExit("the same query gave two answers")
        answers = current
        rounds += 1
        if time.monotonic() - told >= 5:
            told = time.monotonic()
            print(f"round {rounds}, {told - begin:.0f} s", flush=True)
    with open(options.output, "w", encoding="utf-8") as file:
        json.dump({"rows": options.rows, "rounds": rounds, "answers": answers}, file, indent=1)
    print(f"done: {rounds} rounds in {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
