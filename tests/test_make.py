"""The Makefile, run with an environment that only notes what it is asked to do."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from soundgreeks.book import runner

ROOT = runner.find_root()


@pytest.fixture
def folder(tmp_path):
    """A function that makes a project NAME with an environment up to date; returns its folder.

    Its Python is this one, but for `-m`, which it notes in the file ``asked`` and leaves.
    """

    def make_folder(name: str) -> Path:
        folder = tmp_path / name
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / "book").mkdir()
        for file in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / file, folder)
        note = f'echo "$*" >> {folder}/asked'
        python = f'#!/bin/sh\ntest "$1" = -m || exec {sys.executable} "$@"\n{note}\n'
        soundgreeks = f"#!{folder}/.venv/bin/python\n"
        for command, text in (("python", python), ("soundgreeks", soundgreeks)):
            (folder / ".venv/bin" / command).write_text(text)
            (folder / ".venv/bin" / command).chmod(0o755)
        (folder / stamp(folder)).touch()
        return folder

    return make_folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = ["make", "-C", str(folder), f"PYTHON={folder}/.venv/bin/python", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def stamp(folder: Path) -> str:
    """The file whose presence says that the environment is up to date."""
    shown = make(folder, "--no-print-directory", "--eval", "show: ; @echo $(STAMP)", "show")
    return shown.stdout.strip()


def test_a_copied_checkout_sets_up_an_environment_of_its_own(folder, tmp_path):
    first = folder("first")
    asked = first / "asked"
    assert make(first, stamp(first)).returncode == 0
    assert not asked.exists()
    shutil.copytree(first, tmp_path / "second")
    second = tmp_path / "second"
    assert stamp(second) != stamp(first)
    assert make(second, stamp(second)).returncode == 0
    assert "-m venv --clear .venv" in asked.read_text()
    assert (second / stamp(second)).exists() and not (second / stamp(first)).exists()


def test_a_changed_lock_keeps_the_environment_and_installs_anew(folder):
    here = folder("here")
    (here / "requirements.lock").write_text("torch==1.0\n")
    assert make(here, stamp(here)).returncode == 0
    asked = (here / "asked").read_text()
    assert "venv" not in asked and "pip install -q -r requirements.lock -e ." in asked


def test_two_books_in_one_folder_do_not_mix(folder):
    here = folder("here")
    (here / "build/book").mkdir(parents=True)
    (here / "build/book/page").touch()
    with (here / "build/book.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = make(here, "book")
    assert second.returncode == 2 and (here / "build/book/page").exists()
    assert "another make book is at work in build/book: wait" in second.stderr
    make(here, "book")  # stops at its first chapter: the environment has no commands
    assert not (here / "build/book/page").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_make_gpu_says_that_there_is_none(folder):
    here = folder("here")
    result = make(here, "gpu")
    assert result.returncode == 2 and not (here / "asked").exists()
    assert "make gpu needs a CUDA GPU, and torch finds none here" in result.stderr
