"""What every committed chapter must satisfy, and that the pages around them agree with it."""

import ast
import re
import subprocess
import sys
import tomllib
from typing import Any

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_output

from soundgreeks.book import reference, runner

ROOT = runner.find_root()
CHAPTERS = runner.chapters(ROOT / "book")


@pytest.mark.parametrize("path", CHAPTERS.values(), ids=CHAPTERS)
def test_chapter_may_be_committed(path):
    notebook = nbformat.read(path, as_version=4)
    assert runner.faults(notebook) == []
    assert runner.clean(notebook) == notebook, "not promoted by the runner"
    assert runner.parameters(notebook) == {"profile": "read", "device": "auto", "seed": 0}


@pytest.mark.parametrize("path", CHAPTERS.values(), ids=CHAPTERS)
def test_chapter_has_its_anatomy(path):
    prose = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
    for part in (
        "Objectives",
        "Prerequisites",
        "Where it fails",
        "Exercises",
        "Take-aways",
        "Further reading",
        "solution-start",
    ):
        assert part in prose, f"{path.name} lacks {part!r}"


@pytest.mark.parametrize("path", CHAPTERS.values(), ids=CHAPTERS)
def test_stored_verdicts_agree_with_the_reference(path):
    for verdict in runner.verdicts(nbformat.read(path, 4)):
        assert reference.load()[verdict["key"]].holds(verdict["value"]), verdict


def test_the_counts_of_the_scoreboard_add_up(pages):
    """On the page: those of its first line, and the numbers named in its tables."""
    entries = reference.load().values()
    counts = reference.counts(entries)
    line = pages.summary(ROOT / "book")
    total, *parts = [int(n) for n in re.findall(r"\b(\d+) (?:numbers|\()", line)]
    assert parts == list(counts.values()) and total == sum(parts) == len(entries)
    for evidence, count in counts.items():
        header, *rows = pages.scoreboard(ROOT / "book", evidence)
        assert all(len(row) == len(header) for row in rows)
        expected = [e.what for e in entries if e.evidence == evidence]
        assert len(expected) == count and list(dict.fromkeys(row[0] for row in rows)) == list(
            dict.fromkeys(expected)
        )
    page = (ROOT / "book/scoreboard.md").read_text()
    order = re.findall(r"^```\{scoreboard\} ?(\w*)$", page, re.MULTILINE)
    assert order == ["", *reference.EVIDENCE]


def test_a_paper_that_we_miss_is_shown_although_our_own_bound_holds(pages, monkeypatch):
    fields: dict[str, Any] = dict(what="x", value=0.99, tolerance=0.0, source="s", kind="at least")
    entries = {
        "a": reference.Reference("a", evidence="external", paper="0.997033", **fields),
        "b": reference.Reference("b", evidence="external", paper="0.902470", **fields),
        "c": reference.Reference("c", evidence="external", **fields),
        "d": reference.Reference("d", evidence="regression", **fields),
    }
    found = {key: [(0.992862, True, "")] for key in entries}
    monkeypatch.setattr(reference, "load", lambda: entries)
    monkeypatch.setattr(pages, "measured", lambda book: found)
    header, *rows = pages.scoreboard(ROOT, "external")
    paper, ours, agrees = (header.index(v) for v in ("the paper has", "ours is", "agrees"))
    assert [(row[paper], row[ours], row[agrees]) for row in rows] == [
        ("0.997033", "**worse**", "yes"),
        ("0.902470", "better", "yes"),
        ("–", "–", "yes"),
    ]
    assert "1 better, 0 same, 1 worse" in pages.summary(ROOT)
    assert "4 numbers: 3 (75%) external, 0 (0%) independent, 1 (25%) regression" in pages.summary(
        ROOT
    )
    header, *rows = pages.scoreboard(ROOT, "regression")
    assert "the paper has" not in header and len(rows) == 1
    found["a"] = [(0.992862, False, "")]
    assert pages.scoreboard(ROOT, "external")[1][ours] == "–"


def test_every_reference_number_is_checked_by_a_chapter():
    checked = {v["key"] for p in CHAPTERS.values() for v in runner.verdicts(nbformat.read(p, 4))}
    assert set(reference.load()) == checked


def glued_by_profile(source: str) -> list[str]:
    """The names that a cell glues under an `if` about the profile."""
    found = []
    for branch in ast.walk(ast.parse(source)):
        if not isinstance(branch, ast.If) or branch.orelse:
            continue
        asked = {name.id for name in ast.walk(branch.test) if isinstance(name, ast.Name)}
        for call in ast.walk(branch):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "glue":
                found += [ast.unparse(call.args[0])] * bool(asked & {"profile", "full", "smoke"})
    return found


@pytest.mark.parametrize("path", CHAPTERS.values(), ids=CHAPTERS)
def test_the_prose_finds_its_numbers_in_every_profile(path):
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert [name for source in cells for name in glued_by_profile(source)] == []


def test_a_number_glued_in_one_profile_alone_is_seen():
    assert glued_by_profile('if profile == "read":\n    glue("a", 1)') == ["'a'"]
    assert glued_by_profile('if x:\n    glue("a", 1)') == []


def test_no_notebook_stands_outside_the_contents():
    found = [
        p
        for p in (ROOT / "book").rglob("*.ipynb")
        if "_build" not in p.parts and ".ipynb_checkpoints" not in p.parts
    ]
    assert sorted(found) == sorted(CHAPTERS.values())


OUTPUTS = {
    "standard error": new_output("stream", name="stderr", text="warning"),
    "an absolute time": new_output("stream", name="stdout", text="took 3.2 s"),
    "a widget": new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
    "raised": new_output("error", ename="ValueError", evalue="", traceback=[]),
    "without alternative text": new_output("display_data", {"image/png": ""}),
    "a bare value": new_output("execute_result", {"text/plain": "1.2345"}),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_must_not_be_committed_is_a_fault(name):
    checked = {"tags": ["nbval-check-output"]}
    cell = new_code_cell("pass", execution_count=1, outputs=[OUTPUTS[name]], metadata=checked)
    assert any(name in fault for fault in runner.faults(nbformat.v4.new_notebook(cells=[cell])))


def test_a_long_cell_and_an_untagged_check_are_faults():
    long = new_code_cell("\n".join(["pass"] * 31))
    bare = new_code_cell("check('a', 1)")
    found = "\n".join(runner.faults(nbformat.v4.new_notebook(cells=[long, bare])))
    assert "31 lines, at most 30" in found and "not tagged nbval-check-output" in found


def test_prose_that_asks_for_what_is_not_glued_is_a_fault():
    data = {f"{reference.GLUE}text/plain": "1.5"}
    output = new_output("display_data", data, metadata={"scrapbook": {"name": "a"}})
    prose = "{glue:text}`a:.1%` {glue:text}`b:.1f` {glue:text}`a:.1q` {glue:text}`x.ipynb::c`"
    cells = [new_code_cell("pass", outputs=[output]), nbformat.v4.new_markdown_cell(prose)]
    found = [f for f in runner.faults(nbformat.v4.new_notebook(cells=cells)) if "prose" in f]
    assert len(found) == 2 and "'b'" in found[0] and "'a:.1q'" in found[1]


def test_a_named_figure_that_stands_with_other_outputs_is_a_fault():
    outputs = [new_output("stream", name="stdout", text="a"), new_output("display_data", {})]
    figure = {"mystnb": {"figure": {"name": "fig-a"}}}
    cell = new_code_cell("pass", outputs=outputs, metadata=figure)
    assert "shows more" in "\n".join(runner.faults(nbformat.v4.new_notebook(cells=[cell])))


def test_a_named_figure_that_is_missing_is_a_fault():
    cell = new_code_cell("pass", metadata={"mystnb": {"figure": {"name": "fig-a"}}})
    for data, missing in (({}, True), ({"image/png": "QQ=="}, False)):
        cell.outputs = [new_output("display_data", data)]
        found = "\n".join(runner.faults(nbformat.v4.new_notebook(cells=[cell])))
        assert ("shows none" in found) == missing


# --- The environment -----------------------------------------------------------------------------


def names(lines) -> set[str]:
    found = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines)
    return {m.group().lower().replace("_", "-").replace(".", "-") for m in found if m}


def lines_of(lock: list[str]) -> list[str]:
    return [line for line in lock if line and not line.startswith("#")]


def test_lock_pins_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = lines_of((ROOT / "requirements.lock").read_text().splitlines())
    assert all(re.match(r"[\w.-]+==[\w.]+( ;|$)", pin) for pin in pins)
    assert "torch==2.13.0" in pins
    extras = project["optional-dependencies"]
    wanted = names([*project["dependencies"], *extras["run"], *extras["book"], *extras["test"]])
    assert wanted - {"soundgreeks"} <= names(pins)
    assert not {n for n in names(pins) if n.startswith(("nvidia", "playwright"))}


READ = """
import sys
from pip._internal.network.session import PipSession
from pip._internal.req.constructors import install_req_from_parsed_requirement as read
from pip._internal.req.req_file import parse_requirements
for requirement in map(read, parse_requirements(sys.argv[1], PipSession())):
    print(requirement.source_dir if requirement.editable else requirement.name)
"""
"""Print the requirements in a file, as pip itself reads them."""


def test_conda_environment_agrees_with_the_lock(tmp_path):
    """conda hands the pip section to pip as a requirements file beside environment.yml."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(d["pip"] for d in dependencies if isinstance(d, dict))
    file = tmp_path / "requirements.txt"
    file.write_text("\n".join(line.replace("-r ", f"-r {ROOT}/") for line in pip))
    read = [sys.executable, "-c", READ, str(file)]
    result = subprocess.run(read, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [pin.partition("==")[0] for pin in lines_of(lock)]
    assert sorted(result.stdout.split()) == sorted([*pins, str(ROOT)])
    python = next(d for d in dependencies if str(d).startswith("python="))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.13" and python in ("python=3.11", "python=3.12")
    others = [d for d in dependencies if isinstance(d, str) and d not in ("pip", python)]
    assert all(d.replace("=", "==") in lock for d in others)


PACKAGES = {
    "yaml": "pyyaml", "IPython": "ipykernel", "jupyter_client": "ipykernel", "cycler": "matplotlib"
}  # fmt: skip
"""What a module comes with, where the names differ or one brings the other."""


def imports(source: str) -> set[str]:
    """The packages that a source imports, other than this one and Python's own."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    found -= {*sys.stdlib_module_names, "soundgreeks"}
    return {PACKAGES.get(name, name).lower().replace("_", "-") for name in found}


def test_every_import_is_a_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = names(project["dependencies"])
    run = core | names(project["optional-dependencies"]["run"])
    used = set()
    for path in (ROOT / "src/soundgreeks").rglob("*.py"):
        allowed = run if path.parent.name == "book" else core
        found = imports(path.read_text())
        assert found <= allowed, f"{path.name} imports {found - allowed}"
        used |= found
    assert core <= used, f"nothing imports {core - used}"
    for path in CHAPTERS.values():
        cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        found = set().union(*map(imports, cells))
        assert found <= run, f"{path.name} imports {found - run}"
