"""Runs mutmut over a copy of the working tree; see scripts/mutation.sh."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments/mutation"
WORK = RESULTS / "work"

READ_SOURCE = ["tests/unit/test_architecture.py"]
"""Tests that read source text: mutmut's copy has every mutant in it, and they fail before anything is changed."""

FASTEST_FIRST = '''
"""Runs the fastest tests first: most mutants are noticed by many tests, and the first that fails is enough."""
import json
from pathlib import Path


def pytest_collection_modifyitems(items):
    stats = Path("mutmut-stats.json")
    if stats.exists():
        seconds = json.loads(stats.read_text())["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0))
'''


def main() -> int:
    """Copy, run, report."""
    parser = argparse.ArgumentParser(description="Which changes to these modules does no test notice?")
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="a file or a folder of the package")
    parser.add_argument("-m", dest="markers", default="not run and not data", help="which tests, as pytest's -m")
    parser.add_argument(
        "-k", dest="names", metavar="EXPRESSION", help="of these the ones whose name fits, as pytest's -k"
    )
    parser.add_argument(
        "--last-digits", default="", metavar="DIGITS", help="a sample: mutants whose number ends in one of these"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="mutants at a time")
    args = parser.parse_args()
    modules = [Path(module).resolve().relative_to(ROOT) for module in args.modules]
    for module in modules:
        if not (ROOT / module).exists():
            parser.error(f"{module} does not exist")
    copy_of_the_tree()
    settings(modules, ["-m", args.markers, *(["-k", args.names] if args.names else [])])
    mutmut = Path(sys.executable).with_name("mutmut")
    # "*": all of them; with names given, the tests are run unchanged only where they reach a mutant.
    wanted = [f"*__mutmut_*{digit}" for digit in args.last_digits] or ["*"]
    status = subprocess.run([mutmut, "run", "--max-children", str(args.processes), *wanted], cwd=WORK).returncode
    report()
    return status


def copy_of_the_tree() -> None:
    """What git knows or would add, in a folder of its own: mutmut writes beside the sources."""
    shutil.rmtree(WORK, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0"):
        if name and (ROOT / name).is_file():
            (WORK / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, WORK / name)


def settings(modules: list[Path], which_tests: list[str]) -> None:
    """Written to the copy's pyproject.toml, where mutmut reads them; JSON's lists and strings are TOML's."""
    (WORK / "conftest.py").write_text(FASTEST_FIRST)
    values = {
        "source_paths": ["sr_distill"],
        "only_mutate": [str(m) if m.suffix == ".py" else f"{m}/*" for m in modules],
        "also_copy": sorted(p.name for p in WORK.iterdir() if p.name != "sr_distill"),
        "pytest_add_cli_args_test_selection": ["tests", *which_tests, *(f"--ignore={path}" for path in READ_SOURCE)],
        "process_isolation": "forkserver",  # torch does not like to be forked after it has run
        # 4 (t + 10) seconds for tests that take t: on a busy machine less makes a survivor look like an endless loop.
        "timeout_multiplier": 4.0,
        "timeout_constant": 10.0,
        "use_git_change_detection": False,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = WORK / "pyproject.toml"
    # The project's own choice of tests would leave out the training runs where mutmut names them one by one.
    own = [line for line in path.read_text().splitlines() if not line.startswith("addopts")]
    path.write_text("\n".join([*own, "", "[tool.mutmut]", *lines]) + "\n")


def report() -> None:
    """A line for each file, and one file of diffs for each that has survivors."""
    os.chdir(WORK)  # mutmut looks for its files below the current folder
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code

    for old in RESULTS.glob("*.diff"):
        old.unlink()
    print(f"\n{'':40} mutants  killed  survived  timed out  other")
    for meta in sorted(Path("mutants").rglob("*.meta")):
        source = meta.relative_to("mutants").with_suffix("")
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        found = {name: status_by_exit_code[code] for name, code in codes.items() if code is not None}
        if not found:
            continue
        counts = Counter(found.values())
        killed, timed_out = counts.pop("killed", 0), counts.pop("timeout", 0)
        survived = counts.pop("survived", 0) + counts.pop("no tests", 0)  # "no tests": no test calls the function
        other = ", ".join(f"{count} {status}" for status, count in counts.items())
        print(f"{source!s:40} {len(found):7} {killed:7} {survived:9} {timed_out:10}  {other}")
        # What timed out is for people to look at: an endless loop was noticed, a slow machine notices nothing.
        alive = [name for name, status in found.items() if status in ("survived", "no tests", "timeout")]
        if alive:
            diffs = (f"# {name}: {found[name]}\n{get_diff_for_mutant(name, path=source)}" for name in alive)
            (RESULTS / (".".join(source.with_suffix("").parts) + ".diff")).write_text("\n".join(diffs))
    print(f"\nSurvivors: {RESULTS.relative_to(ROOT)}/*.diff")


if __name__ == "__main__":
    sys.exit(main())
