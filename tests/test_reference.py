"""A verdict holds on the right side only, prints no measured digit, and nbval sees it change."""

import math
import shutil
import subprocess
import sys

import nbformat
import pytest

from soundgreeks.book import reference, runner
from soundgreeks.book.reference import Disagreement, Reference, check, parse

CODE = nbformat.v4.new_code_cell
TABLE = '[a.b]\nwhat = "x"\nvalue = 1.0\ntolerance = 0.1\nsource = "s"\n'


@pytest.mark.parametrize(
    "kind, passes, fails",
    [
        ("equal", [0.91, 1.09], [0.89, 1.11, math.nan, math.inf]),
        ("at most", [-5.0, 1.09], [1.11, math.nan, math.inf]),
        ("at least", [0.91, 5.0], [0.89, math.nan, -math.inf]),
    ],
)
def test_tolerance(kind, passes, fails):
    entry = Reference("k", "x", 1.0, 0.1, "s", kind=kind)
    assert all(entry.holds(value) for value in passes)
    assert not any(entry.holds(value) for value in fails)


@pytest.mark.parametrize(
    "text",
    [
        TABLE.replace("tolerance = 0.1", ""),
        TABLE + 'colour = "red"\n',
        TABLE.replace("0.1", "-1"),
        TABLE.replace('"s"', '" "'),
        TABLE.replace("1.0", "nan"),
        TABLE + 'kind = "about"\n',
        "[a]\nb = 1\n",
    ],
)
def test_a_bad_table_is_named(text):
    with pytest.raises(ValueError, match=r"a[.\]]"):
        parse(text)


def test_check_prints_the_claim_and_returns_the_value(capsys):
    assert check("heston.feller_share", 0.51791) == 0.51791
    first = capsys.readouterr().out
    check("heston.feller_share", 0.51799)
    assert first == capsys.readouterr().out == "ok: heston.feller_share = 0.51793 ± 0.0005\n"
    with pytest.raises(Disagreement, match=r"got 0\.6, reference"):
        check("heston.feller_share", 0.6)
    with pytest.raises(KeyError, match=r"did you mean heston\.feller_share"):
        check("heston.feler_share", 0.6)


def test_a_trained_number_is_not_judged_in_the_smoke_profile(monkeypatch, capsys):
    entry = Reference("k", "x", 1.0, 0.1, "s", trained=True)
    monkeypatch.setattr(reference, "load", lambda: {"k": entry})
    with pytest.raises(Disagreement):
        check("k", 2.0)
    monkeypatch.setattr(reference, "profile", "smoke")
    check("k", 2.0)
    assert "not judged" in capsys.readouterr().out


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """An executed notebook with one check and glue in the same cell."""
    import papermill

    folder = tmp_path_factory.mktemp("nbval")
    book = nbformat.v4.new_notebook(
        cells=[
            CODE('profile = "read"\ndevice = "auto"\nseed = 0', metadata={"tags": ["parameters"]}),
            CODE(
                "import random\nfrom soundgreeks.book import check, glue\n"
                "share = 0.5179 + 1e-5 * random.random()\n"
                'glue("share", check("heston.feller_share", share))',
                metadata={"tags": ["nbval-check-output"]},
            ),
            CODE("from soundgreeks.book.chapter import end\nend()"),
        ]
    )
    nbformat.write(book, folder / "raw.ipynb")
    papermill.execute_notebook(
        folder / "raw.ipynb", folder / "done.ipynb", kernel_name="python3", progress_bar=False
    )
    return runner.clean(nbformat.read(folder / "done.ipynb", 4))


def changed(notebook, old: str, new: str):
    return nbformat.reads(nbformat.writes(notebook).replace(old, new), 4)


def test_nbval_sees_a_changed_number_and_a_changed_verdict(executed, tmp_path):
    assert runner.faults(executed) == []
    versions = {
        "as_it_was": executed,  # its last digits move from run to run
        "changed_number": changed(executed, "share = 0.5179 +", "share = 0.6179 +"),
        "changed_verdict": changed(executed, "= 0.51793 ±", "= 0.51794 ±"),
    }
    for name, notebook in versions.items():
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    shutil.copy(runner.find_root() / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    failed = {line.split("::")[0] for line in result.stdout.splitlines() if "FAILED" in line}
    assert failed == {"FAILED changed_number.ipynb", "FAILED changed_verdict.ipynb"}, result.stdout


def test_a_stripped_notebook_has_faults(executed):
    bare = changed(executed, "", "")
    for cell in bare.cells:
        cell.outputs, cell.execution_count = [], None
    found = "\n".join(runner.faults(bare))
    assert "not executed 1..n" in found and "no recorded check" in found
    assert "has no output" in found and "no sentinel" in found
