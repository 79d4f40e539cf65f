"""Run the chapters with papermill, tell whether they finished, and promote clean results.

The committed notebooks are read and never written, except by `promote`, which replaces one of
them by a finished, default-parameter run of itself in a single step. All else goes to ``build/``.
"""

import ast
import copy
import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import nbformat

from .._validate import require
from .chapter import SENTINEL, validate
from .reference import GLUE

LONGEST_CELL = 30
MIME_WIDGET = "application/vnd.jupyter.widget"
TIMING = re.compile(r"Wall time|CPU times|\bit/s\b|\d ?(?:s|ms|µs|us|ns|secs?|seconds|minutes)\b")


class Unfinished(RuntimeError):
    """A chapter that raised, ran out of time, or never came to its last cell."""


# --- Which chapters there are ----------------------------------------------------------------


def find_root(start: Path | None = None) -> Path:
    """The folder of the project: the first one upwards that has a book and a pyproject.

    Raises
    ------
    FileNotFoundError
        Neither `start` (default: here) nor the package lies in such a folder.
    """
    for origin in (Path(start or Path.cwd()).resolve(), Path(__file__).resolve()):
        for folder in (origin, *origin.parents):
            if (folder / "book/_toc.yml").is_file() and (folder / "pyproject.toml").is_file():
                return folder
    raise FileNotFoundError("no book here: run inside the project's folder (book/_toc.yml)")


def chapters(book: Path) -> dict[str, Path]:
    """The book's notebooks by name (``01_heston_transform``), in the order of ``_toc.yml``."""
    import yaml

    toc = yaml.safe_load((book / "_toc.yml").read_text("utf-8"))
    entries = [e for part in toc.get("parts", []) for e in part.get("chapters", [])]
    paths = [book / f"{entry['file']}.ipynb" for entry in entries if "file" in entry]
    return {path.stem: path for path in paths if path.is_file()}


def select(book: Path, names: list[str]) -> dict[str, Path]:
    """The chapters called `names`, all for none: ``01_heston_transform``, a path, or ``1``.

    Raises
    ------
    ValueError
        There is no such chapter.
    """
    known = chapters(book)
    chosen = {}
    for name in names:
        stem = Path(name).stem
        match = [k for k in known if k == stem or (stem.isdigit() and k[:2] == stem.zfill(2))]
        require(len(match) == 1, "chapter", repr(name), f"one of {', '.join(known)}")
        chosen[match[0]] = known[match[0]]
    return chosen or known


def parameters(notebook) -> dict:
    """The literals of the cell tagged ``parameters``, by name.

    Raises
    ------
    ValueError
        No such cell, or one that holds anything but assignments of literals.
    """
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    require(len(cells) == 1, "notebook", f"{len(cells)} of them", "with one parameters cell")
    try:
        lines = ast.parse(cells[0].source).body
        found = {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    except (AttributeError, SyntaxError, ValueError) as error:
        raise ValueError(f"the parameters cell must hold literals only: {error}") from error
    missing = {"profile", "device", "seed"} - found.keys()
    require(not missing, "parameters cell", sorted(found), "with profile, device and seed")
    return found


# --- One run -----------------------------------------------------------------------------------


def run(name: str, path: Path, *, root: Path, timeout: int = 600, progress=True, **given):
    """Execute one chapter in ``build/`` and return the cleaned notebook.

    Parameters
    ----------
    name, path : the chapter, as `chapters` gives it
    root : the project's folder; the run and its record are kept under ``root/build``
    timeout : seconds that one cell may take
    given : `profile`, `device`, `seed`, or any other name of the chapter's parameters cell

    Raises
    ------
    ValueError
        An unknown parameter, profile or device.
    Unfinished
        A cell failed or took too long, or the last cell was not reached.
    """
    import papermill

    notebook = nbformat.read(path, as_version=4)
    defaults = parameters(notebook)
    require(timeout > 0, "timeout", timeout, "a positive number of seconds")
    for key in given:
        require(key in defaults, "parameter", repr(key), f"one of {', '.join(defaults)}")
    values = defaults | given
    device = validate(values["profile"], values["device"], values["seed"])

    scratch = root / "build/running" / f"{name}.ipynb"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    record = {"chapter": name, **values, "device": device_name(device), "versions": versions()}
    record |= {"when": datetime.now(UTC).isoformat(timespec="seconds"), "state": "unfinished"}
    write_record(root, record)  # so that even a killed run is on record
    start = time.perf_counter()
    try:
        papermill.execute_notebook(
            path,
            scratch,
            {key: value for key, value in values.items() if value != defaults[key]},
            kernel_name="python3",
            execution_timeout=timeout,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            cwd=path.parent,
            progress_bar={"desc": name, "unit": "cell", "disable": None if progress else True},
        )
        done = nbformat.read(scratch, as_version=4)
        require_complete(done)
        record["state"] = "finished"
    except KeyboardInterrupt:
        raise
    except Exception as error:
        record["state"] = "failed"
        reason = str(error)
        if isinstance(error, papermill.PapermillExecutionError):
            reason = f"cell [{error.exec_count}] raised {error.ename}: {error.evalue}"
        raise Unfinished(f"{name} did not finish: {reason}\nSee {scratch}") from error
    finally:
        record["wall_s"] = round(time.perf_counter() - start, 1)
        if scratch.is_file():
            record["verdicts"] = {v["key"]: v for v in verdicts(nbformat.read(scratch, 4))}
        write_record(root, record)
    scratch.unlink()
    return clean(done)


def require_complete(notebook) -> None:
    """Raise `Unfinished` unless every code cell ran and the last one printed the sentinel."""
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    skipped = [i for i, cell in enumerate(code, 1) if cell.execution_count is None]
    if skipped:
        raise Unfinished(f"code cells {skipped} were not executed")
    if not any(SENTINEL in o.get("text", "") for o in code[-1].outputs):
        raise Unfinished(f"the last cell did not print {SENTINEL!r}")


def verdicts(notebook) -> list[dict]:
    """What `reference.check` recorded in the outputs of a notebook, in order."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return [o.metadata["soundgreeks"] for o in outputs if "soundgreeks" in o.get("metadata", {})]


def clean(notebook):
    """A copy whose bytes depend on source and results alone.

    No papermill metadata, times, standard error, widget state or Python version; adjacent pieces
    of standard output, which arrive as the clock has it, are joined.
    """
    notebook = copy.deepcopy(notebook)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    language = {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": language})
    for cell in notebook.cells:
        for key in ("papermill", "execution", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            if output.get("name") == "stderr":
                continue
            if any(mime.startswith(MIME_WIDGET) for mime in output.get("data", {})):
                continue
            if kept and output.output_type == kept[-1].output_type == "stream":
                kept[-1].text += output.text
            else:
                kept.append(output)
        cell.outputs = kept
    return notebook


# --- What the repository may hold --------------------------------------------------------------


def faults(notebook) -> list[str]:
    """Why a notebook must not be committed; an empty list for a good one."""
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    found = []
    if [c.execution_count for c in code] != list(range(1, len(code) + 1)):
        found.append("code cells are not executed 1..n")
    try:
        parameters(notebook)
    except ValueError as error:
        found.append(str(error))
    try:
        require_complete(notebook)
    except (Unfinished, IndexError) as error:
        found.append(f"no sentinel: {error}")
    if not verdicts(notebook):
        found.append("no recorded check")
    for number, cell in enumerate(code, 1):
        found += [f"code cell {number}: {fault}" for fault in _cell_faults(cell)]
    return found + _prose_faults(notebook)


def _prose_faults(notebook) -> list[str]:
    """Numbers that the prose asks for and no cell glues, or that its format does not fit."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    glued = {
        o.metadata["scrapbook"]["name"]: ast.literal_eval(o.data[f"{GLUE}text/plain"])
        for o in outputs
        if "scrapbook" in o.get("metadata", {}) and f"{GLUE}text/plain" in o.data
    }
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    found = []
    for role in re.findall(r"{glue:text}`([^`]*)`", prose):
        if "::" in role:  # on another page
            continue
        name, _, form = role.partition(":")
        try:
            format(glued[name], form)
        except KeyError:
            found.append(f"the prose asks for {name!r}, which no cell glues")
        except ValueError as error:
            found.append(f"the prose asks for {role!r}: {error}")
    return found


def _cell_faults(cell) -> list[str]:
    found = []
    checks = bool(re.search(r"\bcheck\(", cell.source))
    tagged = "nbval-check-output" in cell.metadata.get("tags", [])
    if checks and not tagged:
        found.append("calls check but is not tagged nbval-check-output")
    if tagged and not cell.outputs:
        found.append("is tagged nbval-check-output but has no output")
    if len(cell.source.splitlines()) > LONGEST_CELL:
        found.append(f"{len(cell.source.splitlines())} lines, at most {LONGEST_CELL}")
    settings = cell.metadata.get("mystnb", {})
    alt = settings.get("image", {}).get("alt", "")
    if settings.get("figure", {}).get("name") and len(cell.outputs) > 1:
        found.append("names its figure but shows more than it: the name would stand twice")
    for output in cell.outputs:
        data = output.get("data", {})
        text = "".join(output.get("text", "") or data.get("text/plain", ""))
        if output.output_type == "error":
            found.append(f"raised {output.ename}")
        if tagged and output.output_type == "execute_result":
            found.append(f"shows a bare value, which nbval would compare digit by digit: {text}")
        if output.get("name") == "stderr":
            found.append("keeps standard error")
        if any(mime.startswith(MIME_WIDGET) for mime in data):
            found.append("keeps a widget")
        if any(mime.startswith("image/") for mime in data) and not alt.strip():
            found.append("shows a figure without alternative text (mystnb: image: alt)")
        if timing := TIMING.search(text):
            found.append(f"keeps an absolute time ({timing.group()!r})")
    return found


def write(notebook, target: Path, scratch: Path) -> bool:
    """Put `notebook` at `target` in one step by way of the folder `scratch`; False if unchanged."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if target.is_file() and target.read_bytes() == text.encode():
        return False
    scratch.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = scratch / f"{target.name}.{os.getpid()}"
    part.write_text(text, "utf-8", newline="\n")
    os.replace(part, target)
    return True


def promote(notebook, target: Path, root: Path) -> bool:
    """Make a cleaned, executed notebook the committed one; False if it is that already.

    Raises
    ------
    ValueError
        The notebook has faults, or was run with other parameters than its own.
    """
    found = faults(notebook)
    if any("injected-parameters" in c.metadata.get("tags", []) for c in notebook.cells):
        found.append("was run with other parameters than its own, which nbval could not repeat")
    if found:
        raise ValueError(f"{target.name} is not promoted:\n  " + "\n  ".join(found))
    return write(notebook, target, root / "build/promoting")


# --- Records of runs ---------------------------------------------------------------------------


def device_name(device) -> str:
    """``cpu``, or the name of the GPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def versions() -> dict[str, str]:
    """The versions that a run depends on."""
    packages = {name: version(name) for name in ("torch", "numpy", "scipy", "soundgreeks")}
    return {"python": ".".join(map(str, sys.version_info[:3])), **packages}


def write_record(root: Path, record: dict) -> None:
    """Keep `record` as the last run of its chapter on this machine."""
    path = root / "build/runs" / f"{record['chapter']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def read_records(root: Path) -> dict[str, dict]:
    """The last run of each chapter on this machine, by name; chapters that never ran are absent."""
    paths = sorted((root / "build/runs").glob("*.json"))
    return {path.stem: json.loads(path.read_text("utf-8")) for path in paths}


def status(root: Path, book: Path | None = None) -> list[list[str]]:
    """One row a chapter: name, last run, state, profile, device, wall time, verdicts, versions."""
    rows, records = [], read_records(root)
    for name in chapters(book or root / "book"):
        if (record := records.get(name)) is None:
            rows.append([name, "never on this machine", *[""] * 6])
            continue
        judged = [v["ok"] for v in record.get("verdicts", {}).values() if v["judged"]]
        wall = f"{record['wall_s']} s" if "wall_s" in record else ""
        when = record["when"].replace("T", " ").replace("+00:00", " UTC")
        used = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
        checks = f"{sum(judged)} of {len(judged)} ok"
        fields = (when, record["state"], record["profile"], record["device"], wall, checks, used)
        rows.append([name, *fields])
    return rows
