"""A short report about where it was made: what an application of a Realm sees of its surroundings."""

import argparse
import os
import platform
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    processes = [name for name in os.listdir("/proc") if name.isdigit()]
    lines = [
        "Report",
        f"kernel      {platform.release()} on {platform.machine()}",
        f"user        {os.getuid()}",
        f"processes   {len(processes)} visible",
        f"up          {time.clock_gettime(time.CLOCK_BOOTTIME):.0f} s",
    ]
    with open(options.output, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print("report written", flush=True)


if __name__ == "__main__":
    main()
