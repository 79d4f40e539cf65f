"""Plant faults in a copy of the core, one at a time: the unit tests must catch each.

    python tests/mutants [--only NAME ...] [-j PROCESSES]

`faults.toml` lists them. The working tree is copied once and never written to; each fault then goes
into a copy of that copy, and the tests that concern it run there until one fails. A test that also
fails without the fault proves nothing, so in the end all that caught something run on an unchanged
copy. The exit status is 0 only if every fault was caught so.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("src", "tests", "book", "conftest.py", "pyproject.toml", "README.md", "CONTRIBUTING.md")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "_build", ".ipynb_checkpoints")
PATIENCE = 300  # seconds that the tests of one fault may take

# Runs pytest on the copy, after making sure that it is the copy, and notes the tests that failed.
PROGRAM = """
import importlib.util, sys
src, noted, *arguments = sys.argv[1:]
origin = importlib.util.find_spec("soundgreeks").origin
if not origin.startswith(src):
    print(f"soundgreeks is imported from {origin}, not from {src}")
    sys.exit(97)
import pytest
class Note:
    def pytest_runtest_logreport(self, report):
        if report.failed:
            with open(noted, "a") as file:
                file.write(report.nodeid + chr(10))
sys.exit(pytest.main(arguments, plugins=[Note()]))
"""


class Fault(NamedTuple):
    """A planted fault: `old` becomes `new` in `file`; these `tests` or `chapters` should notice."""

    name: str
    file: str  # below src/soundgreeks
    old: str  # found there exactly once
    new: str
    why: str  # what a user would suffer
    tests: tuple[str, ...] = ()  # "heston" is tests/test_heston.py, "heston::test_a" one test
    chapters: tuple[str, ...] = ()  # "operator/01_heston_transform", run by nbval; slow

    def selection(self) -> list[str]:
        """Arguments of pytest."""
        named = [name.partition("::") for name in self.tests]
        files = [f"tests/test_{file}.py{colons}{test}" for file, colons, test in named]
        books = [f"book/{name}.ipynb" for name in self.chapters]
        return files + (["--nbval-lax", *books] if books else [])


class Result(NamedTuple):
    caught: bool
    by: str  # the test, or what happened instead
    seconds: float


def read_faults() -> dict[str, Fault]:
    """The list, by name."""
    text = Path(__file__).with_name("faults.toml").read_text("utf-8")
    found = {}
    for name, entry in tomllib.loads(text).items():
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        found[name] = fault = Fault(name, **values)
        if not (fault.tests or fault.chapters):
            raise ValueError(f"{name} must name tests or chapters")
    return found


def run_tests(tree: Path, arguments: list[str]) -> tuple[int, list[str], str]:
    """Exit status of pytest in `tree`, the tests that failed, and what it printed."""
    noted, src = tree.with_name(f"{tree.name}.failed"), str(tree / "src")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [src, os.environ.get("PYTHONPATH")]))
    quiet = ["-q", "-p", "no:cacheprovider", f"--basetemp={tree}.tmp"]
    command = [sys.executable, "-c", PROGRAM, src + os.sep, str(noted), *quiet, *arguments]
    try:
        done = subprocess.run(command, cwd=tree, env=env, text=True, timeout=PATIENCE,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        status, output = -1, f"no end within {PATIENCE} s"
    failed = noted.read_text().splitlines() if noted.exists() else []
    return status, failed, output


def judge(fault: Fault, original: Path) -> Result:
    """Plant one fault in a copy of `original` and let its tests look for it."""
    start = time.monotonic()
    text = (original / "src/soundgreeks" / fault.file).read_text("utf-8")
    if (count := text.count(fault.old)) != 1:
        return Result(False, f"NOT PLANTED: old text found {count} times in {fault.file}", 0.0)
    tree = original.with_name(fault.name)
    shutil.copytree(original, tree)
    (tree / "src/soundgreeks" / fault.file).write_text(text.replace(fault.old, fault.new), "utf-8")
    status, failed, output = run_tests(tree, ["-x", *fault.selection()])
    shutil.rmtree(tree)
    seconds = time.monotonic() - start
    if status == 1 and failed:
        return Result(True, failed[0], seconds)
    if status == 0:
        return Result(False, f"SURVIVED ({fault.why})", seconds)
    last = output.strip().splitlines()[-1:] or [""]
    return Result(False, f"NO VERDICT: pytest ended with {status}, {last[0]}", seconds)


def control(results: dict[str, Result], original: Path) -> dict[str, Result]:
    """The results, without the catches by tests that fail on the unchanged copy too."""
    catchers = {r.by for r in results.values() if r.caught}
    if not catchers:
        return results
    cells = {c for c in catchers if ".ipynb::" in c}  # a cell needs those before it
    books = {c.partition("::")[0] for c in cells}
    nbval = ["--nbval-lax", *sorted(books)] if books else []
    status, failed, output = run_tests(original, [*nbval, *sorted(catchers - cells)])
    if status not in (0, 1) or (status == 1 and not failed):
        raise RuntimeError(f"the tests do not run on the unchanged copy:\n{output}")
    return {
        name: r._replace(caught=False, by=f"NO PROOF: {r.by} fails without the fault too")
        if r.caught and r.by in failed
        else r
        for name, r in results.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("-j", type=int, default=2, metavar="PROCESSES", help="at a time")
    args = parser.parse_args()
    faults = read_faults()
    if unknown := set(args.only) - set(faults):
        parser.error(f"no fault {', '.join(sorted(unknown))}; there are {', '.join(faults)}")
    chosen = [faults[name] for name in args.only] or list(faults.values())
    width, start = max(len(f.name) for f in chosen), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        original = Path(folder).resolve() / "original"
        for name in NEEDED:
            copy = shutil.copy2 if (ROOT / name).is_file() else _copy_folder
            original.mkdir(exist_ok=True)
            copy(ROOT / name, original / name)
        results = {}
        with ThreadPoolExecutor(args.j) as pool:
            found = pool.map(lambda fault: judge(fault, original), chosen)
            try:
                for fault, result in zip(chosen, found, strict=True):
                    results[fault.name] = result
                    by = result.by.removeprefix("tests/")
                    by = by if len(by) < 100 else f"{by[:97]}..."
                    print(f"{fault.name:{width}}  {result.seconds:5.1f} s  {by}", flush=True)
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise
        results = control(results, original)
    missed = {name: r for name, r in results.items() if not r.caught}
    for name, result in missed.items():
        print(f"not caught: {name}: {result.by}")
    total = time.monotonic() - start
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults caught, in {total:.0f} s")
    return 1 if missed else 0


def _copy_folder(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=LEFT_OUT)


if __name__ == "__main__":
    sys.exit(main())
