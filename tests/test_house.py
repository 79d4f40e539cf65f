"""The house: imports go one way, the table of contents is whole, docstrings say what they must."""

import ast
import doctest
import importlib
import pkgutil
import tomllib
from pathlib import Path

import pytest
import torch

import soundgreeks

ROOT = Path(soundgreeks.__file__).parent

ALLOWED = {
    "arithmetic": set(),
    "models": {"arithmetic"},
    "training": set(),
    "operators": {"arithmetic", "models", "training"},
    "pruning": {"arithmetic", "training"},
    "weights": {"arithmetic", "operators", "pruning"},
    "book": {"arithmetic", "models", "operators", "pruning", "training", "weights"},
}
"""What each wing may import, beside itself and the private modules of the ground floor."""


def imported(path: Path) -> set[str]:
    """The wings that a file imports, whichever way it names them."""
    package = ["soundgreeks", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            names = [[*module, a.name] for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name.split(".") for a in node.names]
        else:
            continue
        found |= {n[1] for n in names if n[0] == "soundgreeks" and len(n) > 1}
    return {wing for wing in found if wing in ALLOWED}


@pytest.mark.parametrize("wing", ALLOWED)
def test_imports_go_one_way(wing):
    for path in (ROOT / wing).rglob("*.py"):
        assert imported(path) - {wing} <= ALLOWED[wing], path


def test_the_wings_are_all_there_is_and_none_leans_on_itself():
    wings = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert wings == set(ALLOWED)
    order = list(ALLOWED)
    assert all(order.index(b) < order.index(a) for a in ALLOWED for b in ALLOWED[a])


def test_the_table_of_contents():
    for name in soundgreeks.__all__:
        assert getattr(soundgreeks, name) is not None
    p = soundgreeks.heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
    assert soundgreeks.heston.call(0.0, 0.04, 0.0, p) < 1e-16
    assert (ROOT / "py.typed").is_file()


def modules():
    names = [m.name for m in pkgutil.walk_packages([str(ROOT)], "soundgreeks.")]
    return [n for n in names if "__main__" not in n and ".book." not in n]


@pytest.mark.parametrize("name", modules())
def test_worked_numbers_in_docstrings(name):
    module = importlib.import_module(name)
    space = {"torch": torch} | {n: getattr(soundgreeks, n) for n in soundgreeks.__all__}
    results = doctest.testmod(module, extraglobs=space, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


@pytest.mark.parametrize("name", modules())
def test_whatever_is_public_is_described(name):
    module = importlib.import_module(name)
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        assert getattr(value, "__doc__", None), f"{name}.{key} has no docstring"


def test_planted_faults_still_fit_the_code():
    """`tests/mutants` plants each once; a stale one would be noticed only when it is run."""
    faults = tomllib.loads((Path(__file__).parent / "mutants" / "faults.toml").read_text())
    for name, fault in faults.items():
        assert (ROOT / fault["file"]).read_text().count(fault["old"]) == 1, name
