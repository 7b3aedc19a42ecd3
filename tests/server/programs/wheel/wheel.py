"""A program whose module comes from a wheel with compiled code."""

import json
import os
import sys

import markupsafe
from markupsafe import _speedups

report = {
    "escaped": str(markupsafe.escape("<a & b>")),
    "compiled": _speedups.__file__,
    "prefix": sys.prefix,
    "machine": os.uname().machine,
    "cached": markupsafe.__cached__,
}
with open("/results/wheel/report.json", "w", encoding="utf-8") as file:
    json.dump(report, file)
