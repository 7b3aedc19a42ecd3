"""How long patients stay, by ward: means, and how far they can be trusted (bootstrap, 95 %).

Waits for records.csv, resamples it until there is a file called ``enough``, and leaves summary.json.
"""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

FOLDER = Path("/results/analysis")
RESAMPLES = 100  # a round

print(f"numpy {np.__version__}, pandas {pd.__version__}: waiting for records", flush=True)
while not (FOLDER / "records.csv").exists():
    time.sleep(0.2)
records = pd.read_csv(FOLDER / "records.csv")
wards = {ward: days.to_numpy() for ward, days in records.groupby("ward")["days"]}
chance = np.random.default_rng()
means = []
while not (FOLDER / "enough").exists():
    for _ in range(RESAMPLES):
        means.append({ward: chance.choice(days, days.size).mean() for ward, days in wards.items()})
    print(f"resampled {len(means)} times", flush=True)
spread = pd.DataFrame(means).quantile([0.025, 0.975])
summary = {
    ward: {"patients": int(days.size), "mean": float(days.mean()), "interval": spread[ward].tolist()}
    for ward, days in wards.items()
}
(FOLDER / "summary.json").write_text(json.dumps({"resamples": len(means), "wards": summary}))
