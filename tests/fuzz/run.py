"""Coverage-guided fuzzing (CONTRIBUTING.md): ``python tests/fuzz/run.py [--seconds N | --runs N] [TARGET …]``.

Each target has a folder of inputs in ``corpus``; all of them are run first. What fails is written to ``build/fuzz`` and
shown. Without the fuzzer (atheris has no wheel for arm64) or with ``--replay`` that is all.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"
WORK = ROOT / "build" / "fuzz"
#: What fuzzes one input for longer than this is a finding: some thousand times what the slowest takes.
INPUT_SECONDS = 60
LONGEST = 4096
HASH = re.compile("[0-9a-f]{40}")

sys.path[:0] = [
    str(HERE / "targets"),
    str(HERE),
    str(HERE.parent / "unit"),
    str(HERE.parent / "fakes"),
    str(HERE.parent),
    str(ROOT),
]


def targets() -> list[str]:
    return sorted(path.stem for path in (HERE / "targets").glob("*.py"))


def replay(name: str, files: list[Path]) -> None:
    """Run inputs, each once; an exception names the file."""
    run = importlib.import_module(name).run
    for path in files:
        try:
            run(path.read_bytes())
        except BaseException as error:
            error.add_note(f"input: {path}")
            raise


def fuzz(name: str, options: list[str], folders: list[Path]) -> None:
    """In this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["vambrace", "vambrace_agent"]):
        module = importlib.import_module(name)
    artifacts = WORK / name / "found"
    artifacts.mkdir(parents=True, exist_ok=True)
    common = [f"-artifact_prefix={artifacts}/", f"-timeout={INPUT_SECONDS}", f"-max_len={LONGEST}", "-len_control=10"]
    # To merge, the fuzzer starts itself again through a shell, by its first word.
    itself = f"{sys.executable} {__file__} --inside {name}"
    atheris.Setup([itself, *common, *options, *map(str, folders)], module.run)
    atheris.Fuzz()


def child(name: str, *words: str) -> int:
    return subprocess.run([sys.executable, __file__, "--inside", name, *words], cwd=ROOT, check=False).returncode


def minimise(name: str) -> None:
    """Make the target's corpus the smallest set that covers what it and the long runs' inputs cover."""
    merged = WORK / name / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    kept, long = CORPUS / name, WORK / name / "corpus"
    kept.mkdir(exist_ok=True)
    if child(
        name, "-set_cover_merge=1", "-use_counters=0", *(str(path) for path in (merged, kept, long) if path.exists())
    ):
        raise SystemExit(f"{name}: cannot be minimised")
    for path in kept.iterdir():
        if HASH.fullmatch(path.name):  # what has a name of its own stays
            path.unlink()
    known = {path.read_bytes() for path in kept.iterdir()}
    for path in merged.iterdir():
        if path.read_bytes() not in known:
            shutil.copy(path, kept / path.name)
    print(f"{name}: {len(list(kept.iterdir()))} inputs")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=targets(), help=f"of {', '.join(targets())}")
    parser.add_argument("--seconds", type=int, default=60, help="fuzz each target for so long")
    parser.add_argument("--runs", type=int, default=0, help="try so many inputs of each target")
    parser.add_argument("--replay", action="store_true", help="only the corpus")
    parser.add_argument("--minimise", action="store_true", help="take new inputs into the corpus, and leave out others")
    parser.add_argument("--input", type=Path, help="only this input of the one target")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(targets()):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    failed = 0
    for name in options.targets:
        if options.minimise:
            minimise(name)
            continue
        files = [options.input] if options.input else sorted((CORPUS / name).glob("*"))
        if options.replay or options.input or importlib.util.find_spec("atheris") is None:
            replay(name, files)
            print(f"{name}: {len(files)} inputs")
            continue
        (CORPUS / name).mkdir(exist_ok=True)
        print(f"{name}:", flush=True)
        # What is new goes into the first folder: kept from one long run to the next.
        if options.runs:
            with tempfile.TemporaryDirectory() as new:
                failed += child(name, f"-runs={options.runs}", new, str(CORPUS / name)) != 0
        else:
            long = WORK / name / "corpus"
            long.mkdir(parents=True, exist_ok=True)
            failed += child(name, f"-max_total_time={options.seconds}", str(long), str(CORPUS / name)) != 0
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        _, _, name, *words = sys.argv
        fuzz(name, [word for word in words if word.startswith("-")], [Path(word) for word in words if word[0] != "-"])
    else:
        sys.exit(main())
