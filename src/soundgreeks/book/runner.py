"""Run the chapters with papermill, tell whether they finished, and promote clean results.

The committed notebooks are read and never written, except by `promote`, which replaces one of
them by a finished, default-parameter run of itself in a single step. All else goes to `workspace`.
"""

import ast
import copy
import hashlib
import importlib
import json
import os
import re
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from .._environment import device_name, environment
from .._validate import require
from .chapter import SENTINEL, validate
from .reference import GLUE

LONGEST_CELL = 30
ROOM = 2**21  # bytes that a folder must have room for: an executed chapter holds less
MIME_WIDGET = "application/vnd.jupyter.widget"
TIMING = re.compile(r"Wall time|CPU times|\bit/s\b|\d ?(?:s|ms|µs|us|ns|secs?|seconds|minutes)\b")


class Unfinished(RuntimeError):
    """A chapter that raised, ran out of time, or never came to its last cell."""


class Missing(ImportError):
    """A package that the chapters need and the library itself does not."""


def tool(name: str) -> ModuleType:
    """The module `name`, which the library's own dependencies do not bring.

    Raises
    ------
    Missing
        It, or something it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Missing(
            f"{error.name} is missing; pip install -e '.[run]' in the project's folder installs "
            "what the chapters need"
        ) from error


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
    """The book's notebooks by name (``01_heston_transform``), in the order of ``_toc.yml``.

    Raises
    ------
    ValueError
        ``_toc.yml`` is damaged.
    """
    yaml, contents = tool("yaml"), book / "_toc.yml"
    try:
        toc = yaml.safe_load(contents.read_text("utf-8"))
        entries = [e for part in toc.get("parts", []) for e in part.get("chapters", [])]
        paths = [book / f"{entry['file']}.ipynb" for entry in entries if "file" in entry]
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise damaged(contents, error) from error
    return {path.stem: path for path in paths if path.is_file()}


def damaged(path: Path, error: object) -> ValueError:
    """One line that names the file."""
    return ValueError(f"{path} is damaged: {' '.join(str(error).split())}")


def read(path: Path):
    """The notebook at `path`.

    Raises
    ------
    ValueError
        It is no notebook.
    """
    nbformat = tool("nbformat")
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except OSError:
        raise
    except Exception as error:  # nbformat raises whatever it stumbles over
        raise damaged(path, f"not a notebook ({type(error).__name__})") from error
    return notebook


def select(book: Path, names: list[str]) -> dict[str, Path]:
    """The chapters called `names`, all for none: ``01_heston_transform``, a path, ``1`` or ``1b``.

    Raises
    ------
    ValueError
        There is no such chapter.
    """
    known = chapters(book)
    chosen = {}
    for name in names:
        stem = Path(name).stem
        number = re.sub(r"^\d+", lambda digits: digits.group().zfill(2), stem)
        match = [k for k in known if stem == k or number == k.partition("_")[0]]
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


def workspace(root: Path) -> Path:
    """Where the project at `root` keeps its runs and their records: its ``build`` folder.

    For a checkout that cannot be written to, a folder of its own in the user's state folder
    (``$XDG_STATE_HOME``), or among the temporary files where there is none either.
    """
    mark = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    state = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"))
    user = os.getuid() if hasattr(os, "getuid") else ""
    choices = (
        root / "build",
        state / "soundgreeks" / f"{root.name}-{mark}",
        Path(tempfile.gettempdir()) / f"soundgreeks{user}-{mark}",
    )
    return next((folder for folder in choices if _may_write(folder)), choices[-1])


def _may_write(folder: Path) -> bool:
    """Whether `folder`, or the nearest one above it that exists, lets us write."""
    there = next(p for p in (folder, *folder.parents) if os.path.exists(p))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def require_room(folder: Path, name: str = "out") -> None:
    """Make `folder`, the value of the argument `name`, and see that it takes `ROOM` bytes.

    Raises
    ------
    ValueError
        It is a file, cannot be written to, or is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(ROOM))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise ValueError(
            f"{name} must be a folder with room to write, got {folder}: {error.strerror}"
        ) from error


def prepare(path: Path, *, timeout: int = 600, **given) -> tuple[dict, dict]:
    """The parameters of the chapter at `path`: its own, and those in force.

    Parameters
    ----------
    timeout : seconds that one cell may take
    given : `profile`, `device`, `seed`, or any other name of the chapter's parameters cell

    Raises
    ------
    ValueError
        A damaged notebook, or an unknown parameter, profile or device.
    """
    defaults = parameters(read(path))
    require(timeout > 0, "timeout", timeout, "a positive number of seconds")
    for key in given:
        require(key in defaults, "parameter", repr(key), f"one of {', '.join(defaults)}")
    values = defaults | given
    validate(values["profile"], values["device"], values["seed"])
    return defaults, values


def run(name: str, path: Path, *, root: Path, timeout: int = 600, progress=True, **given):
    """Execute one chapter in the `workspace` and return the cleaned notebook.

    Parameters
    ----------
    name, path : the chapter, as `chapters` gives it
    root : the project's folder
    timeout, given : as for `prepare`

    Raises
    ------
    ValueError
        As for `prepare`.
    Unfinished
        A cell failed or took too long, or the last cell was not reached.
    """
    papermill = tool("papermill")
    tool("soundgreeks.book.warm").prefer()
    defaults, values = prepare(path, timeout=timeout, **given)
    device = validate(values["profile"], values["device"], values["seed"])

    scratch = workspace(root) / "running" / f"{name}.{os.getpid()}.ipynb"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    record = {"chapter": name, **values, "device": device_name(device), **environment()}
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
        done = read(scratch)
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
            record["verdicts"] = {v["key"]: v for v in verdicts(read(scratch))}
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
    nbformat, notebook = tool("nbformat"), copy.deepcopy(notebook)
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
        kept: list[Any] = []
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
    images = [mime for o in cell.outputs for mime in o.get("data", {}) if mime.startswith("image/")]
    if settings.get("figure", {}).get("name") and not images:
        found.append("names its figure but shows none")
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


def write(notebook, target: Path) -> bool:
    """Put `notebook` at `target` in one step; False if it is there already."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if target.is_file() and target.read_bytes() == text.encode():
        return False
    _replace(target, text)
    return True


def _replace(target: Path, text: str) -> None:
    """Write a file in one step: all of it or, whatever happens, none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_text(text, "utf-8", newline="\n")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def promote(notebook, target: Path) -> bool:
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
    return write(notebook, target)


# --- Records of runs ---------------------------------------------------------------------------


def write_record(root: Path, record: dict) -> None:
    """Keep `record` as the last run of its chapter on this machine."""
    path = workspace(root) / "runs" / f"{record['chapter']}.json"
    _replace(path, json.dumps(record, indent=1) + "\n")


def read_records(root: Path) -> dict[str, dict]:
    """The last run of each chapter on this machine, by name; chapters that never ran are absent.

    Raises
    ------
    ValueError
        A record is damaged.
    """
    records = {}
    for path in sorted((workspace(root) / "runs").glob("*.json")):
        try:
            records[path.stem] = record = json.loads(path.read_text("utf-8"))
            for field in ("when", "state", "profile", "device", "versions"):
                record[field]
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(path, f"delete it ({type(error).__name__}: {error})") from error
    return records


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
        versions = {"python": record.get("python", "?")} | record["versions"]
        used = ", ".join(f"{k} {v}" for k, v in versions.items())
        checks = f"{sum(judged)} of {len(judged)} ok"
        fields = (when, record["state"], record["profile"], record["device"], wall, checks, used)
        rows.append([name, *fields])
    return rows
